//! How the process starts, paces itself and ends.

use super::*;

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn sigterm_ends_it_with_0_and_leaves_the_rules() {
    let host = Host::new();
    let mut server = ApiServer::start(&host, cluster(web("web", 10, &[1, 2])));
    let process = start(&host, &server);
    in_step("the first sync", &host, &server);
    let before = elements(&host);
    assert_eq!(process.terminate(), Some(0));
    assert_eq!(elements(&host), before);

    // While it waits for a server too.
    server.go_away();
    let process = launch(&host, &server, &[]);
    process.wait_for("the watch failed");
    wait_for_health(&host, "/livez", 200);
    assert_eq!(process.terminate(), Some(0));
    assert_eq!(elements(&host), before);
    assert!(health(&host, "/livez").is_none(), "nobody listens any more");
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn once_and_dry_run_take_objects_from_an_api_server_too() {
    let host = Host::new();
    let server = ApiServer::start(&host, cluster(web("web", 10, &[1, 2])));
    let kubeconfig = server.kubeconfig();
    let kubeconfig = kubeconfig.to_str().unwrap();
    let (code, text, log) = pointsman(&host, &["--kubeconfig", kubeconfig, "--dry-run"]);
    assert_eq!(code, Some(0), "{log}");
    assert!(text.contains("10.96.0.10 . tcp . 80"), "{text}");
    assert_eq!(host.ruleset(), "");
    let (code, _, log) = pointsman(&host, &["--kubeconfig", kubeconfig, "--once"]);
    assert_eq!(code, Some(0), "{log}");
    let found = elements(&host);
    assert!(!mentioning(&found, "10.96.0.10").is_empty(), "{found:?}");
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn k3_the_servers_address_can_be_given_by_flag() {
    let host = Host::new();
    let server = ApiServer::start(&host, cluster(web("web", 10, &[1])));
    let process = Pointsman::start(&host, &["--master", "http://127.0.0.1:6443"]);
    in_step("without a kubeconfig", &host, &server);
    assert_eq!(process.terminate(), Some(0));
    // It wins over the kubeconfig's.
    let mut other: Value =
        serde_json::from_slice(&std::fs::read(server.kubeconfig()).unwrap()).unwrap();
    other["clusters"][0]["cluster"]["server"] = json!("http://127.0.0.1:1");
    std::fs::write(server.kubeconfig(), other.to_string()).unwrap();
    let process = start_with(&host, &server, &["--master", "http://127.0.0.1:6443"]);
    in_step("with another kubeconfig", &host, &server);
    assert_eq!(process.terminate(), Some(0));
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn a_kubeconfig_that_cannot_be_used_ends_the_process_and_changes_nothing() {
    let host = Host::new();
    let directory = tempfile::tempdir().unwrap();
    let broken = directory.path().join("broken");
    std::fs::write(&broken, "clusters: [").unwrap();
    for path in [directory.path().join("missing"), broken] {
        let path = path.to_str().unwrap();
        let (code, _, log) = pointsman(&host, &["--kubeconfig", path]);
        assert_eq!(code, Some(1), "{log}");
        assert!(log.contains(path), "{log}");
        assert_eq!(host.ruleset(), "");
    }
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn g3_a_burst_of_changes_takes_few_syncs_with_a_least_time_between_them() {
    let host = Host::new();
    let server = ApiServer::start(&host, cluster([]));
    let _process = start_with(&host, &server, &["--iptables-min-sync-period=1s"]);
    let syncs = "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"}";
    let programmed = "kubeproxy_sync_proxy_rules_service_changes_total";
    let before = (metric(&host, syncs), metric(&host, programmed));
    let started = std::time::Instant::now();
    for number in 0..200 {
        for object in web(&format!("web-{number:03}"), number, &[number]) {
            server.put(object);
        }
        // What one change brings is seen before the next: 200 moments to sync in.
        eventually("the change has arrived", || {
            let pending = "kubeproxy_sync_proxy_rules_service_changes_pending";
            let seen = metric(&host, programmed) + metric(&host, pending);
            seen >= before.1 + f64::from(number) + 1.0
        });
    }
    in_step("all of it", &host, &server);
    let seconds = started.elapsed().as_secs_f64();
    let done = metric(&host, syncs) - before.0;
    assert!(done >= 1.0);
    // One at once, and one for each second that has passed.
    assert!(done <= seconds + 2.0, "{done} syncs in {seconds} s");
}

/// A configuration file in a directory of its own.
struct ConfigFile {
    directory: tempfile::TempDir,
}

impl ConfigFile {
    fn new(server: &ApiServer, more: &str) -> Self {
        let file = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        std::fs::write(file.path(), Self::text(server, more)).unwrap();
        file
    }

    fn text(server: &ApiServer, more: &str) -> String {
        format!(
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n\
             mode: nftables\nclusterCIDR: {}\nconntrack: {{maxPerCore: 0}}\n\
             clientConnection: {{kubeconfig: {}}}\n{more}\n",
            crate::harness::CLUSTER_CIDR,
            server.kubeconfig().display(),
        )
    }

    fn path(&self) -> std::path::PathBuf {
        self.directory.path().join("config.yaml")
    }

    fn start(&self, host: &Host) -> Pointsman {
        let path = self.path();
        Pointsman::start_without_cidr(host, &["--config", path.to_str().unwrap()])
    }
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn k_everything_can_come_from_a_configuration_file() {
    let host = Host::new();
    let server = ApiServer::start(&host, cluster(web("web", 10, &[1])));
    let more = "healthzBindAddress: 127.0.0.1:20256\nmetricsBindAddress: 127.0.0.1:20249\n\
                nftables: {masqueradeBit: 3}";
    let file = ConfigFile::new(&server, more);
    let process = file.start(&host);
    in_step("the first sync", &host, &server);
    assert!(host.ruleset().contains("0x00000008"), "{}", host.ruleset());
    assert!(health(&host, "/healthz").is_none(), "not the default port");
    eventually("health elsewhere", || {
        get(&host, "127.0.0.1:20256", "/healthz").is_some_and(|reply| reply.code == 200)
    });
    let metrics = get(&host, "127.0.0.1:20249", "/metrics").unwrap();
    assert_eq!(metrics.code, 200);
    // K4: the harness gives flags that the file has fields for.
    let warnings = process.log();
    assert!(
        warnings.contains("these flags are ignored: --conntrack-max-per-core"),
        "{warnings}"
    );
    assert!(!warnings.contains("--hostname-override,"), "{warnings}");
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn k10_a_configuration_file_that_is_only_touched_changes_nothing() {
    let host = Host::new();
    let server = ApiServer::start(&host, cluster(web("web", 10, &[1])));
    let file = ConfigFile::new(&server, "");
    let process = file.start(&host);
    let path = file.path();
    host.sh(&format!("touch {}", path.display()));
    let text = std::fs::read_to_string(&path).unwrap();
    // The same text again, in place and as a new file.
    std::fs::write(&path, &text).unwrap();
    let other = path.with_extension("new");
    std::fs::write(&other, &text).unwrap();
    std::fs::rename(&other, &path).unwrap();
    for object in web("marker", 11, &[2]) {
        server.put(object);
    }
    in_step("it goes on", &host, &server);
    assert_eq!(process.terminate(), Some(0));
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn k10_a_configuration_file_that_nobody_could_start_with_or_that_says_the_same_ends_nothing() {
    let host = Host::new();
    let server = ApiServer::start(&host, cluster(web("web", 10, &[1])));
    let file = ConfigFile::new(&server, "");
    let process = file.start(&host);
    in_step("the first sync", &host, &server);
    let text = ConfigFile::text(&server, "");
    let cases = [
        (
            format!("{text}\nno: yaml: at all"),
            "nobody could start with it",
        ),
        (format!("{text}\nclusterCIDR: 10.0.0.0/99"), "clusterCIDR"),
    ];
    // Of what says the same nothing is heard; what comes behind it is.
    std::fs::write(file.path(), format!("# A word more.\n{text}")).unwrap();
    for (text, said) in cases {
        std::fs::write(file.path(), text).unwrap();
        process.wait_for(said);
    }
    std::fs::write(file.path(), &text).unwrap();
    server.put(slice("web", "TCP", &["10.244.1.9"]));
    in_step("it goes on", &host, &server);
    std::fs::write(
        file.path(),
        ConfigFile::text(&server, "nftables: {masqueradeAll: true}"),
    )
    .unwrap();
    process.wait_for("has changed; ending");
    assert_eq!(process.wait(), Some(1), "one that is mended counts");
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn k10_a_kubeconfig_that_nobody_could_start_with_ends_nothing_and_is_not_shown() {
    let host = Host::new();
    let server = ApiServer::start(&host, cluster(web("web", 10, &[1])));
    let process = start(&host, &server);
    in_step("the first sync", &host, &server);
    let good = std::fs::read_to_string(server.kubeconfig()).unwrap();
    let cases = [
        (String::new(), "current context"),
        (
            good.replace("\"server\"", "\"proxy-url\":\"http://p\",\"server\""),
            "proxy-url",
        ),
        (
            "users:\n- name: u\n  user: {token: hunter2\n".to_owned(),
            "cannot use kubeconfig",
        ),
    ];
    for (text, said) in cases {
        assert_ne!(text, good);
        std::fs::write(server.kubeconfig(), text).unwrap();
        process.wait_for(said);
    }
    std::fs::write(server.kubeconfig(), &good).unwrap();
    server.put(slice("web", "TCP", &["10.244.1.9"]));
    in_step("it goes on", &host, &server);
    std::fs::write(server.kubeconfig(), format!("{good}\n")).unwrap();
    process.wait_for("has changed; ending");
    assert!(!process.log().contains("hunter2"), "{}", process.log());
    assert_eq!(process.wait(), Some(1));
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn k10_the_process_ends_with_an_error_when_its_configuration_file_changes() {
    for renamed in [false, true] {
        let host = Host::new();
        let server = ApiServer::start(&host, cluster(web("web", 10, &[1])));
        let file = ConfigFile::new(&server, "");
        let process = file.start(&host);
        in_step("the first sync", &host, &server);
        let before = elements(&host);
        let text = ConfigFile::text(&server, "nftables: {masqueradeAll: true}");
        if renamed {
            let other = file.path().with_extension("new");
            std::fs::write(&other, &text).unwrap();
            std::fs::rename(&other, file.path()).unwrap();
        } else {
            std::fs::write(file.path(), &text).unwrap();
        }
        process.wait_for("has changed");
        assert_eq!(process.wait(), Some(1));
        assert_eq!(elements(&host), before, "the rules stay");
    }
}
