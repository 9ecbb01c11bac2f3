//! The manifests: what they ask for is what the program needs, no more and no less.

use std::process::{Command, Stdio};

use serde_json::Value;

use crate::harness::{BINARY, Host, NODE, World, connect, eventually};
use crate::objects::{Manifests, service, slice};

const DAEMON_SET: &str = include_str!("../../manifests/base/daemonset.yaml");
const CLEANUP: &str = include_str!("../../manifests/cleanup/daemonset.yaml");
const FOR_IPTABLES: &str = include_str!("../../manifests/iptables/daemonset.yaml");
const RBAC: &str = include_str!("../../manifests/base/rbac.yaml");

fn container() -> Value {
    let daemon_set: Value = serde_saphyr::from_str(DAEMON_SET).expect("YAML");
    daemon_set["spec"]["template"]["spec"]["containers"][0].clone()
}

/// The capabilities that the container keeps, as setpriv spells them.
fn capabilities() -> Vec<String> {
    capabilities_of(&container())
}

fn capabilities_of(container: &Value) -> Vec<String> {
    let names = container["securityContext"]["capabilities"]["add"].as_array();
    let names = names.expect("a list").iter();
    names.map(as_setpriv).collect()
}

fn as_setpriv(name: &Value) -> String {
    format!("+{}", name.as_str().expect("a name").to_lowercase())
}

/// What the component for iptables adds.
fn for_iptables(path: &str) -> Value {
    let patches: Vec<Value> = serde_saphyr::from_str(FOR_IPTABLES).expect("YAML");
    let found = patches.into_iter().find(|patch| patch["path"] == path);
    found.expect("a patch")["value"].clone()
}

/// A command that runs as the container does: these capabilities, no way to get others, and
/// nothing to write to.
fn restricted(capabilities: &[String], arguments: &[&str]) -> Command {
    let bounding = std::iter::once("-all".to_owned())
        .chain(capabilities.iter().cloned())
        .collect::<Vec<_>>()
        .join(",");
    let script = r#"
        mount --make-rprivate / && mount -o remount,bind,ro / &&
        mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys &&
        mount -t tmpfs none /run && touch /run/xtables.lock &&
        mount --bind /run/xtables.lock /run/xtables.lock && mount -o remount,bind,ro /run &&
        exec setpriv --no-new-privs --inh-caps=-all --bounding-set="$0" "$@"
    "#;
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", script, &bounding])
        .arg(BINARY.as_path())
        .args(["--hostname-override", NODE])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn run(host: &Host, mut command: Command) -> (Option<i32>, String) {
    host.run(move || {
        let output = command.output().expect("unshare");
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), log)
    })
}

#[test]
fn the_container_gives_up_everything_but_what_is_named() {
    let context = &container()["securityContext"];
    assert_eq!(context["capabilities"]["drop"], serde_json::json!(["ALL"]));
    assert_eq!(context["readOnlyRootFilesystem"], true);
    assert_eq!(context["allowPrivilegeEscalation"], false);
    assert_eq!(capabilities(), ["+net_admin"]);
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn the_daemon_sets_capabilities_and_a_read_only_root_are_enough() {
    let world = World::new();
    let manifests = Manifests::new(vec![
        service("web", &["10.96.0.10"]).0,
        slice("web", "TCP", &["10.244.1.1"]),
    ]);
    let _server = crate::harness::Servers::tcp(&world.pods, &[8080]);
    // What the privileged init container does, without which the sysctls cannot be set.
    let limit = ["--conntrack-max-per-core", "0"];
    let binary = BINARY.clone();
    let prepared = world.node.run(move || {
        let mut init = Command::new(binary);
        init.args(["--init-only", "--hostname-override", NODE])
            .args(limit);
        init.status().expect("pointsman").code()
    });
    assert_eq!(prepared, Some(0));
    let mut arguments = vec!["--manifests", manifests.path()];
    arguments.extend(limit);
    let mut command = restricted(&capabilities(), &arguments);
    command.stderr(Stdio::null());
    let mut child = world.node.run(move || command.spawn().expect("unshare"));
    let serves = || world.node.ruleset().contains("default/web:http");
    eventually("the first sync", serves);
    let target = "10.96.0.10:80".parse().expect("an address");
    world
        .pod
        .run(move || connect(None, target).expect("an answer"));
    // It goes on to watch files, addresses and its tables.
    world.node.sh("nft delete table ip pointsman");
    eventually("the repair", serves);
    manifests.write("more.json", vec![service("other", &["10.96.0.11"]).0]);
    eventually("another Service", || {
        world.node.ruleset().contains("default/other:http")
    });
    let metrics = "127.0.0.1:10249".parse().expect("an address");
    let listens = move || std::net::TcpStream::connect::<std::net::SocketAddr>(metrics).is_ok();
    assert!(world.node.run(listens));
    let _ = child.kill();
    let _ = child.wait();
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn without_the_capability_it_says_what_is_missing_and_ends() {
    let host = Host::new();
    let manifests = Manifests::new(Vec::new());
    let arguments = [
        "--manifests",
        manifests.path(),
        "--once",
        "--conntrack-max-per-core=0",
        "--conntrack-tcp-timeout-established=0",
        "--conntrack-tcp-timeout-close-wait=0",
    ];
    let (code, log) = run(&host, restricted(&[], &arguments));
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("CAP_NET_ADMIN"), "{log}");
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn iptables_mode_and_the_cleanup_need_what_their_manifests_add_for_either_variant() {
    let manifests = Manifests::new(vec![
        service("web", &["10.96.0.10"]).0,
        slice("web", "TCP", &["10.244.1.1"]),
    ]);
    let arguments = [
        "--manifests",
        manifests.path(),
        "--once",
        "--proxy-mode=iptables",
        // Its sysctl is the init container's business.
        "--iptables-localhost-nodeports=false",
        "--conntrack-max-per-core=0",
        "--conntrack-tcp-timeout-established=0",
        "--conntrack-tcp-timeout-close-wait=0",
    ];
    let capability = "/spec/template/spec/containers/0/securityContext/capabilities/add/-";
    let mut for_legacy = capabilities();
    for_legacy.push(as_setpriv(&for_iptables(capability)));
    let lock = for_iptables("/spec/template/spec/volumes/-");
    assert_eq!(lock["hostPath"]["path"], "/run/xtables.lock");
    let cleanup: Value = serde_saphyr::from_str(CLEANUP).expect("YAML");
    let cleanup = cleanup["spec"]["template"]["spec"]["initContainers"][0].clone();
    for (variant, capabilities) in [("nft", &capabilities()), ("legacy", &for_legacy)] {
        let host = Host::new();
        if !host.try_sh(&format!("iptables-{variant}-save -t nat")).0 {
            eprintln!("ignored: this kernel has no iptables-{variant}");
            continue;
        }
        host.sh(&format!(
            "iptables-{variant} -t mangle -N KUBE-IPTABLES-HINT
             ip6tables-{variant} -t mangle -N KUBE-IPTABLES-HINT"
        ));
        let rules = || host.sh(&format!("iptables-{variant}-save"));
        let (code, log) = run(&host, restricted(capabilities, &arguments));
        assert_eq!(code, Some(0), "{variant}: {log}");
        assert!(rules().contains("default/web:http"), "{variant}");
        let arguments: Vec<&str> = cleanup["args"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|argument| argument.as_str().expect("text"))
            .collect();
        let capabilities = capabilities_of(&cleanup);
        let (code, log) = run(&host, restricted(&capabilities, &arguments));
        assert_eq!(code, Some(0), "{variant}: {log}");
        assert!(!rules().contains("POINTSMAN"), "{variant}");
    }
}

#[test]
fn the_role_allows_what_is_watched_and_written_and_nothing_else() {
    let documents: Vec<Value> = serde_saphyr::from_multiple(RBAC).expect("YAML");
    let role = documents
        .iter()
        .find(|document| document["kind"] == "ClusterRole")
        .expect("a role");
    let mut allowed = Vec::new();
    for rule in role["rules"].as_array().expect("rules") {
        for resource in rule["resources"].as_array().expect("resources") {
            allowed.push(format!(
                "{}/{} {}",
                rule["apiGroups"][0].as_str().expect("a group"),
                resource.as_str().expect("a resource"),
                rule["verbs"],
            ));
        }
    }
    allowed.sort_unstable();
    let expected = [
        r#"/nodes ["list","watch"]"#,
        r#"/services ["list","watch"]"#,
        r#"discovery.k8s.io/endpointslices ["list","watch"]"#,
        r#"events.k8s.io/events ["create","patch"]"#,
        r#"networking.k8s.io/servicecidrs ["list","watch"]"#,
    ];
    assert_eq!(allowed, expected);
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn the_image_is_built_with_every_target_that_cargo_looks_for() {
    let root = env!("CARGO_MANIFEST_DIR");
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--no-deps",
            "--offline",
            "--format-version",
            "1",
        ])
        .current_dir(root)
        .output()
        .expect("cargo");
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let targets = metadata["packages"][0]["targets"].as_array();
    let copied: Vec<&str> = include_str!("../../Dockerfile")
        .lines()
        .filter_map(|line| line.strip_prefix("COPY "))
        .flat_map(|files| files.split(' '))
        .collect();
    for target in targets.expect("targets") {
        let path = target["src_path"].as_str().expect("a path");
        let path = path.strip_prefix(root).expect("a path below the manifest");
        let directory = path.split('/').nth(1).expect("a directory");
        assert!(copied.contains(&directory), "{path}: {copied:?}");
    }
}
