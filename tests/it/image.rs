//! The image: a runtime of containers runs it as the DaemonSet says.
//!
//! `POINTSMAN_IMAGE` names what `scripts/image.sh` made; runc and a seccomp profile of a runtime have to be there. Without
//! them nothing is tested here, and that is said.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{Host, NODE, Servers, World, connect, eventually};
use crate::objects::{Manifests, service, slice};

/// The profile that runtimes of this family mean by `RuntimeDefault`.
const SECCOMP: &str = "/usr/share/containers/seccomp.json";

fn image() -> Option<PathBuf> {
    let image = std::env::var_os("POINTSMAN_IMAGE").filter(|image| !image.is_empty());
    if image.is_none() {
        eprintln!("ignored: POINTSMAN_IMAGE does not say where an image is");
    }
    image.map(PathBuf::from)
}

fn read(path: impl AsRef<Path>) -> Value {
    let path = path.as_ref();
    let text = std::fs::read_to_string(path);
    let text = text.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).expect("JSON")
}

/// The DaemonSet's pod, and one of its containers.
fn pod(kind: &str) -> (Value, Value) {
    let text = include_str!("../../manifests/base/daemonset.yaml");
    let set: Value = serde_saphyr::from_str(text).expect("YAML");
    let pod = set["spec"]["template"]["spec"].clone();
    let container = pod[kind][0].clone();
    (pod, container)
}

/// The profile as a runtime hands it to the kernel, for so many capabilities.
fn seccomp(capabilities: &[String]) -> Value {
    let profile = read(SECCOMP);
    let each = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let has = |value: &Value| capabilities.iter().any(|name| value == name);
    let applies = |rule: &&Value| {
        let (includes, excludes) = (&rule["includes"], &rule["excludes"]);
        each(&includes["caps"]).iter().all(has)
            && !each(&excludes["caps"]).iter().any(has)
            && (includes["arches"].is_null() || each(&includes["arches"]).contains(&json!("amd64")))
            && !each(&excludes["arches"]).contains(&json!("amd64"))
    };
    let rules = each(&profile["syscalls"]);
    let rules = rules.iter().filter(applies).map(|rule| {
        let mut kept = json!({"names": rule["names"], "action": rule["action"]});
        for field in ["args", "errnoRet"] {
            let value = &rule[field];
            if !value.is_null() && *value != json!([]) {
                kept[field] = value.clone();
            }
        }
        kept
    });
    json!({
        "defaultAction": profile["defaultAction"], "defaultErrnoRet": profile["defaultErrnoRet"],
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": rules.collect::<Vec<_>>(),
    })
}

/// A container of the image that runs as one of the DaemonSet's, on a host of the harness.
struct Container {
    name: String,
    bundle: TempDir,
}

impl Container {
    fn new(image: &Path, kind: &str, manifests: &Manifests, arguments: &[&str]) -> Self {
        let (pod, container) = pod(kind);
        let context = &container["securityContext"];
        let names = context["capabilities"]["add"].as_array().cloned();
        let privileged = context["privileged"] == true;
        let capabilities: Vec<String> = if privileged {
            // All but what a machine that is a container itself may lack.
            let status = std::fs::read_to_string("/proc/self/status").expect("a status");
            let mask = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
            let mask = u64::from_str_radix(mask.expect("a mask").trim(), 16).expect("a mask");
            let all = ["CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SYS_ADMIN"];
            let numbers = [12, 13, 21];
            let there = all
                .iter()
                .zip(numbers)
                .filter(|(_, at)| mask >> at & 1 == 1);
            there.map(|(name, _)| (*name).to_owned()).collect()
        } else {
            assert_eq!(context["capabilities"]["drop"], json!(["ALL"]));
            let names = names.expect("capabilities");
            names
                .iter()
                .map(|name| format!("CAP_{}", name.as_str().expect("a name")))
                .collect()
        };
        assert_eq!(
            pod["securityContext"]["seccompProfile"]["type"],
            "RuntimeDefault"
        );
        assert_eq!(pod["hostNetwork"], true);
        let config = read(image.join("config.json"));
        let entry = config["config"]["Entrypoint"][0]
            .as_str()
            .expect("a program");
        let mut process = vec![
            entry,
            "--hostname-override",
            NODE,
            "--manifests",
            "/manifests",
        ];
        process.extend(arguments);
        let read_only = |kind: &str| {
            json!({"destination": format!("/{kind}"), "type": kind,
            "source": kind, "options": ["nosuid", "noexec", "nodev", "ro"]})
        };
        let proc = json!({"destination": "/proc", "type": "proc", "source": "proc"});
        let dev = json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "mode=755", "size=65536k"]});
        let run = json!({"destination": "/run/pointsman", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "nodev", "size=1m"]});
        let files = json!({"destination": "/manifests", "type": "bind",
            "source": manifests.path(), "options": ["rbind", "ro"]});
        let mut spec = json!({
            "ociVersion": "1.0.2",
            "root": {"path": image.join("root"), "readonly": context["readOnlyRootFilesystem"]},
            "process": {
                "terminal": false, "user": {"uid": 0, "gid": 0}, "cwd": "/",
                "args": process, "env": config["config"]["Env"],
                "noNewPrivileges": context["allowPrivilegeEscalation"] == false,
                "capabilities": {
                    "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
                },
            },
            "mounts": [proc, dev, read_only("sysfs"), run, files],
            "linux": {
                // The host's network: that of whoever runs it.
                "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
            },
        });
        spec["mounts"][2]["destination"] = json!("/sys");
        if !privileged {
            spec["linux"]["seccomp"] = seccomp(&capabilities);
            spec["linux"]["readonlyPaths"] = json!(["/proc/sys", "/proc/sysrq-trigger"]);
        }
        let bundle = tempfile::tempdir().expect("a directory");
        let file = bundle.path().join("config.json");
        std::fs::write(file, spec.to_string()).expect("a file");
        let name = bundle.path().file_name().expect("a name").to_string_lossy();
        let name = format!("pointsman{}", name.replace('.', "-"));
        let cgroup = format!("/{name}");
        let mut container = Self { name, bundle };
        container.set("/linux/cgroupsPath", json!(cgroup));
        container
    }

    fn set(&mut self, pointer: &str, value: Value) {
        let file = self.bundle.path().join("config.json");
        let mut spec = read(&file);
        let (parent, field) = pointer.rsplit_once('/').expect("a path");
        spec.pointer_mut(parent).expect("a field")[field] = value;
        std::fs::write(file, spec.to_string()).expect("a file");
    }

    fn runc(&self) -> Command {
        let mut command = Command::new("runc");
        command.arg("--root").arg(self.bundle.path().join("state"));
        command.stdin(Stdio::null());
        command
    }

    /// Runs to its end.
    fn run(&self, host: &Host) -> Output {
        let mut command = self.runc();
        command
            .args(["run", "--bundle"])
            .arg(self.bundle.path())
            .arg(&self.name);
        host.run(move || command.output().expect("runc"))
    }

    /// Runs until it is told to end.
    fn start(&self, host: &Host) -> Child {
        let mut command = self.runc();
        command
            .args(["run", "--bundle"])
            .arg(self.bundle.path())
            .arg(&self.name);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        host.run(move || command.spawn().expect("runc"))
    }

    /// Runs the program once more in it, as `kubectl exec` does.
    fn exec(&self, arguments: &[&str]) -> Output {
        let mut command = self.runc();
        command
            .args(["exec", &self.name, "/usr/bin/pointsman"])
            .args(arguments);
        command.output().expect("runc")
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.runc().args(["delete", "--force", &self.name]).output();
    }
}

/// The size of conntrack's table belongs to the whole machine.
const LEAVE: &[&str] = &["--conntrack-max-per-core=0", "--cluster-cidr=10.244.0.0/16"];

fn said(output: &Output) -> String {
    let text = [output.stdout.as_slice(), &output.stderr].concat();
    String::from_utf8_lossy(&text).into_owned()
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn the_image_runs_as_the_daemon_set_says_and_answers() {
    let Some(image) = image() else { return };
    let world = World::new();
    let _servers = Servers::tcp(&world.pods, &[8080]);
    let manifests = Manifests::new(vec![
        service("web", &["10.96.0.10"]).0,
        slice("web", "TCP", &["10.244.1.1"]),
    ]);
    let arguments = [LEAVE, &["--init-only"]].concat();
    let init = Container::new(&image, "initContainers", &manifests, &arguments).run(&world.node);
    assert!(init.status.success(), "{}", said(&init));
    let once = [LEAVE, &["--once"]].concat();
    let once = Container::new(&image, "containers", &manifests, &once).run(&world.node);
    assert!(once.status.success(), "{}", said(&once));
    let target = "10.96.0.10:80".parse().expect("an address");
    let connects = || world.pod.run(move || connect(None, target).is_ok());
    assert!(connects());

    let container = Container::new(&image, "containers", &manifests, LEAVE);
    let mut process = container.start(&world.node);
    manifests.write("more.json", vec![service("other", &["10.96.0.11"]).0]);
    eventually("another Service", || {
        world.node.ruleset().contains("default/other:http")
    });
    let verified = container.exec(&["verify"]);
    assert!(verified.status.success(), "{}", said(&verified));
    let explained = container.exec(&["explain", "10.244.1.7", "default/web"]);
    assert!(
        said(&explained).contains("10.244.1.1:8080"),
        "{}",
        said(&explained)
    );
    let killed = container
        .runc()
        .args(["kill", &container.name, "TERM"])
        .status();
    assert!(killed.expect("runc").success());
    let ended = std::thread::spawn(move || process.wait().expect("an end"));
    eventually("its end", || ended.is_finished());
    assert_eq!(ended.join().expect("an end").code(), Some(0));
    assert!(connects(), "what is programmed stays");
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn in_kube_proxys_daemon_set_the_image_takes_its_place() {
    let Some(image) = image() else { return };
    let host = Host::new();
    host.sh("nft add table ip kube-proxy");
    let manifests = Manifests::new(vec![
        service("web", &["10.96.0.10"]).0,
        slice("web", "TCP", &["10.244.1.1"]),
    ]);
    // kubeadm's is privileged, and names the program.
    let mut container = Container::new(&image, "initContainers", &manifests, &[]);
    let name = [
        "--hostname-override",
        NODE,
        "--manifests",
        "/manifests",
        "--once",
    ];
    let command = [&["/usr/local/bin/kube-proxy"][..], &name, LEAVE].concat();
    container.set("/process/args", json!(command));
    let output = container.run(&host);
    assert!(output.status.success(), "{}", said(&output));
    let ruleset = host.ruleset();
    assert!(ruleset.contains("10.244.1.1"), "{ruleset}");
    assert!(!ruleset.contains("table ip kube-proxy"), "{ruleset}");
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn the_image_has_what_iptables_mode_needs() {
    let Some(image) = image() else { return };
    for variant in ["nft", "legacy"] {
        let host = Host::new();
        if !host.try_sh(&format!("iptables-{variant}-save -t nat")).0 {
            eprintln!("ignored: this kernel has no iptables-{variant}");
            continue;
        }
        let hint = format!("iptables-{variant} -w -t mangle -N KUBE-IPTABLES-HINT");
        host.sh(&hint);
        let manifests = Manifests::new(vec![
            service("web", &["10.96.0.10"]).0,
            slice("web", "TCP", &["10.244.1.1"]),
        ]);
        let more: &[&str] = &[
            "--once",
            "--proxy-mode=iptables",
            "--iptables-localhost-nodeports=false",
        ];
        let timeouts: &[&str] = &[
            "--conntrack-tcp-timeout-established=0",
            "--conntrack-tcp-timeout-close-wait=0",
        ];
        let arguments = [LEAVE, more, timeouts].concat();
        let mut container = Container::new(&image, "containers", &manifests, &arguments);
        let both = json!(["CAP_NET_ADMIN", "CAP_NET_RAW"]);
        for set in ["bounding", "effective", "permitted"] {
            container.set(&format!("/process/capabilities/{set}"), both.clone());
        }
        let lock = tempfile::NamedTempFile::new().expect("a file");
        let file = container.bundle.path().join("config.json");
        let mut mounts = read(file)["mounts"].clone();
        mounts.as_array_mut().expect("mounts").push(json!({
            "destination": "/run/xtables.lock", "type": "bind", "source": lock.path(), "options": ["bind", "rw"],
        }));
        container.set("/mounts", mounts);
        let output = container.run(&host);
        assert!(output.status.success(), "{variant}: {}", said(&output));
        let rules = host.sh(&format!("iptables-{variant}-save -t nat"));
        assert!(rules.contains("10.244.1.1:8080"), "{variant}: {rules}");
    }
}

#[test]
fn the_image_is_small_says_what_is_in_it_and_has_nothing_else() {
    let Some(image) = image() else { return };
    let root = image.join("root");
    let packages = root.join("var/lib/dpkg/status.d");
    let mut names: Vec<String> = std::fs::read_dir(packages)
        .expect("packages")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    for needed in ["iptables", "libc6", "libmnl0", "libnftnl11"] {
        assert!(
            names.iter().any(|name| name == needed),
            "{needed}: {names:?}"
        );
    }
    for absent in ["bin/sh", "usr/bin/sh", "etc/passwd", "usr/bin/dpkg"] {
        assert!(!root.join(absent).exists(), "{absent}");
    }
    let size = |path: &Path| std::fs::metadata(path).map_or(0, |file| file.len());
    let program = size(&root.join("usr/bin/pointsman"));
    assert!((1 << 20..40 << 20).contains(&program), "{program} bytes");
}

#[test]
fn the_sbom_names_the_packages_of_the_image_and_the_crates_that_it_is_built_from_and_no_other() {
    let Some(image) = image() else { return };
    let sbom = read(image.join("sbom.json"));
    assert_eq!(sbom["bomFormat"], "CycloneDX");
    let components = sbom["components"].as_array().expect("components");
    let purls: BTreeSet<&str> = components
        .iter()
        .filter_map(|component| component["purl"].as_str())
        .collect();
    let packages = image.join("root/var/lib/dpkg/status.d");
    let mut of_packages = 0;
    for package in std::fs::read_dir(packages).expect("packages") {
        let text = std::fs::read_to_string(package.expect("a file").path()).expect("text");
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
        let needed = |name: &str| field(name).expect("a field").replace('+', "%2B");
        let version = needed("Version: ").replace(':', "%3A");
        let mut purl = format!(
            "pkg:deb/debian/{}@{version}?arch={}&distro=debian-13",
            needed("Package: "),
            needed("Architecture: "),
        );
        if let Some(source) = field("Source: ") {
            let name = source.split(' ').next().expect("a name");
            purl.push_str(&format!("&upstream={}", name.replace('+', "%2B")));
        }
        assert!(purls.contains(purl.as_str()), "{purl}: {purls:?}");
        of_packages += 1;
    }
    let target = sbom["metadata"]["properties"][0]["value"].as_str();
    let tree = Command::new(env!("CARGO"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["tree", "--locked", "--edges", "normal", "--prefix", "none"])
        .args(["--target", target.expect("a target")])
        .output();
    let tree = String::from_utf8(tree.expect("cargo").stdout).expect("text");
    let built: BTreeSet<String> = tree
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let (name, version) = (words.next()?, words.next()?.strip_prefix('v')?);
            (name != env!("CARGO_PKG_NAME")).then(|| format!("pkg:cargo/{name}@{version}"))
        })
        .collect();
    let of_crates = purls.iter().filter(|purl| purl.starts_with("pkg:cargo/"));
    let of_crates: BTreeSet<String> = of_crates.map(|purl| (*purl).to_owned()).collect();
    assert!(built.len() > 100, "{tree}");
    assert_eq!(of_crates, built, "the crates that it is built from");
    assert_eq!(purls.len(), built.len() + of_packages);
    let text = sbom.to_string();
    assert!(
        !text.contains("file:/"),
        "a path of the machine that built it"
    );
}
