//! The program as a user meets it: what it prints and how it ends.

use std::process::{Command, Output, Stdio};

use crate::harness::{BINARY, Host, Pointsman, eventually};
use crate::objects::{Manifests, service, slice};

fn run(arguments: &[&str]) -> Output {
    Command::new(&*BINARY)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("pointsman")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn help_names_every_flag_and_what_it_is_for() {
    let output = run(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    let help = text(&output.stdout);
    for flag in [
        "--manifests",
        "--once",
        "--dry-run",
        "--output",
        "--cleanup",
        "--hostname-override",
        "--cluster-cidr",
        "--detect-local-mode",
        "--masquerade-all",
        "--nodeport-addresses",
        "--proxy-mode",
        "-v",
        "--logging-format",
        "--version",
    ] {
        assert!(help.contains(flag), "{flag}");
    }
    assert!(help.lines().all(|line| line.len() <= 100), "{help}");
}

#[test]
fn the_version_is_the_crates() {
    let output = run(&["--version"]);
    assert_eq!(
        text(&output.stdout).trim(),
        concat!("pointsman ", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn usage_errors_are_one_clear_line_and_exit_code_2() {
    let cases: [(&[&str], &str); 6] = [
        (&["--oom-score-adj", "5000"], "--oom-score-adj"),
        (
            &["--manifests", "x", "--proxy-mode", "magic"],
            "--proxy-mode",
        ),
        (
            &["--manifests", "x", "--cluster-cidr", "10.0.0.1"],
            "--cluster-cidr",
        ),
        (&["--no-such-flag"], "--no-such-flag"),
        (&["--manifests", "x", "--once", "--dry-run"], "--dry-run"),
        (&["--manifests", "x", "--output", "json"], "--dry-run"),
    ];
    for (arguments, named) in cases {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let error = text(&output.stderr);
        assert!(error.contains(named), "{arguments:?}: {error}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn failures_name_what_failed_and_exit_with_1() {
    let missing = run(&["--manifests", "/nonexistent", "--dry-run"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).contains("/nonexistent"));

    let manifests = Manifests::new(Vec::new());
    let file = manifests.write_text("broken.yaml", "kind: Service\n  bad: [\n");
    let broken = run(&["--manifests", manifests.path(), "--dry-run"]);
    assert_eq!(broken.status.code(), Some(1));
    let error = text(&broken.stderr);
    assert!(error.contains(&format!("{}:2", file.display())), "{error}");
}

#[test]
fn a_dry_run_of_services_without_addresses_says_that_they_have_none() {
    let manifests = Manifests::new(Vec::new());
    let by_hand = "kind: Service\nmetadata: {name: web}\nspec: {ports: [{port: 80}]}\n---\n\
                   kind: Service\nmetadata: {name: db}\nspec: {clusterIP: None, ports: [{port: 80}]}\n---\n\
                   kind: Node\nmetadata: {name: other}\n";
    manifests.write_text("by-hand.yaml", by_hand);
    let arguments = [
        "--manifests",
        manifests.path(),
        "--dry-run",
        "--hostname-override",
        "n",
    ];
    let output = run(&arguments);
    assert_eq!(output.status.code(), Some(0));
    assert!(!text(&output.stdout).contains("default/web"));
    let said = text(&output.stderr);
    for expected in [
        "read services=2 slices=0 nodes=0",
        "not served services=1 first=default/web why=\"without spec.clusterIP\"",
        "not served services=1 first=default/db why=\"headless\"",
        "kubectl get services,endpointslices,nodes,servicecidrs -A -o yaml",
        "there is no Node of this name (--hostname-override): its zone and addresses are unknown others=2",
    ] {
        assert!(said.contains(expected), "{expected} is not in {said}");
    }
}

#[test]
fn manifests_can_come_from_standard_input() {
    use std::io::Write;
    let mut child = Command::new(&*BINARY)
        .args(["--manifests", "-", "--dry-run", "--hostname-override", "n"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("pointsman");
    let manifest =
        "kind: Service\nmetadata: {name: web}\nspec: {clusterIP: 10.9.8.7, ports: [{port: 80}]}\n";
    child
        .stdin
        .take()
        .expect("a pipe")
        .write_all(manifest.as_bytes())
        .expect("a reader");
    let output = child.wait_with_output().expect("an end");
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stdout).contains("10.9.8.7 . tcp . 80 comment \"default/web\""));
}

#[test]
fn the_json_dry_run_says_what_happens_at_each_destination() {
    let manifests = Manifests::new(vec![
        service("web", &["10.96.0.1", "fd00:96::1"])
            .node_port(30080)
            .0,
        slice("web", "TCP", &["10.244.1.1", "10.244.1.2"]),
    ]);
    let output = run(&[
        "--manifests",
        manifests.path(),
        "--dry-run",
        "--output",
        "json",
        "--hostname-override",
        "node-1",
    ]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(
        json["clusterIPs"],
        serde_json::json!(["10.96.0.1", "fd00:96::1"])
    );
    assert_eq!(
        json["serviceCIDRs"],
        serde_json::json!(["10.96.0.0/16", "fd00:96::/112"])
    );
    assert_eq!(
        json["nodePortAddresses"],
        serde_json::json!(["192.0.2.1", "2001:db8:2::1"])
    );
    let destinations = json["destinations"].as_array().expect("a list");
    assert_eq!(destinations.len(), 4);
    assert_eq!(
        destinations[0],
        serde_json::json!({
            "address": "10.96.0.1", "family": "IPv4", "protocol": "tcp", "port": 80,
            "service": "default/web:http", "action": "balance", "policy": "ClusterIP",
            "endpoints": ["10.244.1.1:8080", "10.244.1.2:8080"],
        })
    );
    assert_eq!(destinations[1]["action"], "reject");
    assert_eq!(destinations[2]["address"], serde_json::Value::Null);
    assert_eq!(destinations[2]["port"], 30080);
}

#[test]
fn logs_can_be_json() {
    let manifests = Manifests::new(vec![service("bad", &["nonsense"]).0]);
    let output = run(&[
        "--manifests",
        manifests.path(),
        "--dry-run",
        "--logging-format",
        "json",
        "--hostname-override",
        "node-1",
    ]);
    let log = text(&output.stderr);
    let line: serde_json::Value =
        serde_json::from_str(log.lines().next().expect("a line")).expect("JSON");
    assert_eq!(line["level"], "WARN");
    assert_eq!(line["fields"]["object"], "Service default/bad");
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn sigterm_ends_it_while_manifests_are_read() {
    let directory = tempfile::tempdir().expect("a directory");
    let pipe = directory.path().join("objects.yaml");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    let host = Host::new();
    // A pipe that is named is read, and nobody writes to it.
    let path = pipe.to_str().expect("a path");
    let process = Pointsman::launch(&host, &["--manifests", path]);
    eventually("it waits for the pipe", || {
        crate::harness::get(&host, "127.0.0.1:10256", "/livez").is_some()
    });
    assert_eq!(process.terminate(), Some(0));
    // One in a directory is not.
    let parent = directory.path().to_str().expect("a path");
    let process = Pointsman::start(&host, &["--manifests", parent]);
    assert!(process.log().contains("it is no file"), "{}", process.log());
    assert_eq!(process.terminate(), Some(0));
}

#[test]
fn the_configuration_of_0_1_0_is_accepted_without_a_word() {
    let directory = tempfile::tempdir().expect("a directory");
    let written = directory.path().join("written.conf");
    let written = written.to_str().expect("a path");
    let before = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/config-0.1.0.conf");
    let output = run(&["--config", before, "--write-config-to", written]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(
        !text(&output.stderr).contains("WARN"),
        "{}",
        text(&output.stderr)
    );
    let said = std::fs::read_to_string(written).expect("a file");
    for field in [
        "mode: nftables",
        "kubeconfig: /var/lib/pointsman/kubeconfig.conf",
    ] {
        assert!(said.contains(field), "{field}: {said}");
    }
}
