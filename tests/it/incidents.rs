//! What a person is paged for: real packets that do not get where they should, and the first line that `explain` or
//! `status` says, which names the cause.

use serde_json::{Value, json};

use crate::api_server::ApiServer;
use crate::harness::{Failure, Host, Pointsman, Servers, World, by, eventually};
use crate::objects::{Manifests, endpoint, node, service, service_cidr, slice, slice_of};

/// A world with servers, and a proxy that serves these objects.
struct Site {
    process: Pointsman,
    _manifests: Manifests,
    _servers: [Servers; 2],
    world: World,
}

impl Site {
    fn new(objects: Vec<Value>) -> Self {
        let world = World::new();
        let servers = [&world.pods, &world.peer].map(|host| Servers::tcp(host, &[8080]));
        let manifests = Manifests::new(objects);
        let process = Pointsman::start(&world.node, &["--manifests", manifests.path()]);
        Self {
            process,
            _manifests: manifests,
            _servers: servers,
            world,
        }
    }

    fn explained(&self, arguments: &[&str], words: &str) {
        let line = self.process.first_line("explain", arguments);
        assert!(
            line.contains(words),
            "{arguments:?}: {line:?} does not say {words:?}"
        );
    }
}

/// An endpoint in a condition: ready, serving, terminating.
fn in_condition(address: &str, [ready, serving, terminating]: [bool; 3]) -> Value {
    let mut endpoint = endpoint(address);
    endpoint["conditions"] =
        json!({"ready": ready, "serving": serving, "terminating": terminating});
    endpoint
}

const UNREADY: [bool; 3] = [false, false, false];
const TERMINATING: [bool; 3] = [false, true, true];

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn no_endpoint_is_ready() {
    let endpoints = ["10.244.1.11", "10.244.1.12"].map(|address| in_condition(address, UNREADY));
    let site = Site::new(vec![
        service("web", &["10.96.0.10"]).0,
        slice_of("web", "TCP", endpoints.into()),
    ]);
    assert_eq!(
        site.world.pod.connect("10.96.0.10:80"),
        Err(Failure::Refused)
    );
    site.explained(
        &["10.244.1.200", "10.96.0.10:80"],
        "refused: no endpoint is ready (2 are not ready)",
    );
    site.explained(&["default/web"], "refused: no endpoint is ready");
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn a_named_port_matches_no_slice() {
    let mut other = slice("web", "TCP", &["10.244.1.11"]);
    other["ports"][0]["name"] = json!("web");
    let site = Site::new(vec![service("web", &["10.96.0.10"]).0, other]);
    assert_eq!(
        site.world.pod.connect("10.96.0.10:80"),
        Err(Failure::Refused)
    );
    site.explained(
        &["10.244.1.200", "default/web"],
        "refused: no EndpointSlice has a port named \"http\" (tcp): they have \"web\" (tcp)",
    );
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn the_source_is_of_none_of_the_ranges() {
    let limited = service("web", &["10.96.0.10"])
        .vips(&["203.0.113.9"])
        .set("/spec/loadBalancerSourceRanges", json!(["198.51.100.0/24"]));
    let site = Site::new(vec![limited.0, slice("web", "TCP", &["10.244.1.11"])]);
    assert_eq!(
        site.world.client.connect("203.0.113.9:80"),
        Err(Failure::TimedOut)
    );
    site.explained(
        &["192.0.2.2", "203.0.113.9:80"],
        "dropped: spec.loadBalancerSourceRanges admits 198.51.100.0/24",
    );
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn a_local_policy_has_no_endpoint_on_this_node() {
    let local = service("web", &["10.96.0.10"])
        .vips(&["203.0.113.9"])
        .set("/spec/externalTrafficPolicy", json!("Local"));
    let mut elsewhere = endpoint("10.244.2.11");
    elsewhere["nodeName"] = json!("node-2");
    let site = Site::new(vec![local.0, slice_of("web", "TCP", vec![elsewhere])]);
    assert_eq!(
        site.world.client.connect("203.0.113.9:80"),
        Err(Failure::TimedOut)
    );
    site.explained(
        &["192.0.2.2", "203.0.113.9:80"],
        "dropped: externalTrafficPolicy is Local, and no endpoint is on this node (1 endpoint that serves is elsewhere)",
    );
    assert!(site.world.pod.connect("203.0.113.9:80").is_ok());
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn topology_hints_are_not_followed() {
    let mut hinted = endpoint("10.244.1.11");
    hinted["hints"] = json!({"forZones": [{"name": "a"}]});
    let site = Site::new(vec![
        service("web", &["10.96.0.10"]).0,
        slice_of("web", "TCP", vec![hinted, endpoint("10.244.2.12")]),
    ]);
    assert_eq!(site.world.pod.connect_many("10.96.0.10:80", 40).len(), 2);
    site.explained(
        &["10.244.1.200", "default/web"],
        "topology hints are not followed, because 1 of 2 ready endpoints have none",
    );
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn another_service_has_the_address() {
    let claims = |name, cluster_ip: &str, created| {
        service(name, &[cluster_ip])
            .external_ips(&["203.0.113.9"])
            .created(created)
            .0
    };
    let site = Site::new(vec![
        claims("old", "10.96.0.10", "2024-01-01T00:00:00Z"),
        claims("new", "10.96.0.11", "2024-06-01T00:00:00Z"),
        slice("old", "TCP", &["10.244.1.11"]),
        slice("new", "TCP", &["10.244.1.12"]),
    ]);
    let seen = site
        .world
        .client
        .connect("203.0.113.9:80")
        .expect("an endpoint");
    assert_eq!(seen.endpoint.to_string(), "10.244.1.11:8080");
    site.explained(
        &["192.0.2.2", "default/new"],
        "default/new does not get them: default/old claims the same and is older; the connection goes to 10.244.1.11:8080",
    );
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn only_terminating_endpoints_are_left() {
    let endpoints = vec![
        in_condition("10.244.1.11", TERMINATING),
        in_condition("10.244.1.12", UNREADY),
    ];
    let site = Site::new(vec![
        service("web", &["10.96.0.10"]).0,
        slice_of("web", "TCP", endpoints),
    ]);
    let seen = site
        .world
        .pod
        .connect("10.96.0.10:80")
        .expect("an endpoint");
    assert_eq!(seen.endpoint.to_string(), "10.244.1.11:8080");
    site.explained(
        &["10.244.1.200", "default/web"],
        "goes to 10.244.1.11:8080, the only endpoint that takes them; all of them are terminating, and none is ready",
    );
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn a_firewall_drops_what_is_forwarded() {
    let site = Site::new(vec![
        service("web", &["10.96.0.10"]).0,
        slice("web", "TCP", &["10.244.1.11"]),
    ]);
    assert!(site.world.pod.connect("10.96.0.10:80").is_ok());
    site.world.node.sh(
        "nft 'table inet firewalld { chain filter_FORWARD { type filter hook forward priority 10; policy accept; \
         ct state established,related accept; reject with icmpx admin-prohibited; }; }'",
    );
    assert!(site.world.pod.connect("10.96.0.10:80").is_err());
    let line = site.process.first_line("status", &[]);
    let words = "chain filter_FORWARD of table inet firewalld rejects what it forwards and no rule of it accepts";
    assert!(line.contains(words), "{line}");
    site.world.node.sh(
        "nft delete table inet firewalld && nft 'table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; }; }'",
    );
    assert_eq!(
        site.world.pod.connect("10.96.0.10:80"),
        Err(Failure::TimedOut)
    );
    let line = site.process.first_line("status", &[]);
    assert!(
        line.contains("chain FORWARD of table ip filter drops what it forwards"),
        "{line}"
    );
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn the_api_server_is_away() {
    let world = World::new();
    let _servers = Servers::tcp(&world.pods, &[8080]);
    let objects = vec![
        node(),
        service_cidr(),
        service("web", &["10.96.0.10"]).0,
        slice("web", "TCP", &["10.244.1.11"]),
    ];
    let mut server = ApiServer::start(&world.node, objects);
    let kubeconfig = server.kubeconfig();
    let kubeconfig = kubeconfig.to_str().expect("a path");
    let process = Pointsman::start(&world.node, &["--kubeconfig", kubeconfig]);
    assert_eq!(
        process.command("status", &[]).0,
        Some(0),
        "{}",
        process.command("status", &[]).1
    );
    server.go_away();
    eventually("the status says that the API server is away", || {
        let line = process.first_line("status", &[]);
        line.starts_with("the API server ")
            && line.contains("has not been reached for ")
            && line.contains("nothing new is programmed, and what is stays")
    });
    assert_eq!(process.command("status", &[]).0, Some(1));
    assert!(
        world.pod.connect("10.96.0.10:80").is_ok(),
        "what is programmed stays"
    );
    server.come_back(&world.node);
    server.put(service("late", &["10.96.0.11"]).0);
    server.put(slice("late", "TCP", &["10.244.1.12"]));
    let mut node = node();
    node["metadata"]["labels"]["x"] = json!("y");
    server.put(node);
    eventually("a Service that came meanwhile is served", || {
        world.pod.connect("10.96.0.11:80").is_ok()
    });
    // What brought it is told with its version.
    let said = process.ask("/v1/explain", &[("to", "default/late")]);
    let because_of = said["answer"]["routes"][0]["programmed"]["becauseOf"]
        .as_str()
        .unwrap_or_default();
    assert!(
        because_of.contains(" default/late") && because_of.contains(" at resourceVersion "),
        "{said}"
    );
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn somebody_changes_our_tables_over_and_over() {
    if by().is_some() {
        eprintln!("ignored: iptables mode looks for changes once in syncPeriod");
        return;
    }
    let site = Site::new(vec![
        service("web", &["10.96.0.10"]).0,
        slice("web", "TCP", &["10.244.1.11"]),
    ]);
    assert_eq!(
        site.process.command("status", &[]).0,
        Some(0),
        "{}",
        site.process.command("status", &[]).1
    );
    for _ in 0..4 {
        site.world.node.sh("nft flush ruleset");
        eventually("the rules are back", || {
            site.world.node.ruleset().contains("default/web")
        });
    }
    assert!(site.world.pod.connect("10.96.0.10:80").is_ok());
    eventually("the status says who it is", || {
        let line = site.process.first_line("status", &[]);
        line.starts_with("our tables were changed ") && line.contains("last by nft (pid ")
    });
    assert_eq!(site.process.command("status", &[]).0, Some(1));
    let history = site.process.command("history", &[]).1;
    assert!(history.contains("our tables, read anew"), "{history}");
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn nothing_is_programmed_because_the_first_lists_do_not_come() {
    let host = Host::new();
    host.sh("sysctl -qw net.ipv4.ip_forward=1");
    let directory = tempfile::tempdir().expect("a directory");
    let kubeconfig = directory.path().join("kubeconfig");
    let server = "https://127.0.0.1:1";
    let text = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {}}],
    });
    std::fs::write(&kubeconfig, text.to_string()).expect("a file");
    let kubeconfig = kubeconfig.to_str().expect("a path");
    let process = Pointsman::launch(&host, &["--kubeconfig", kubeconfig]);
    eventually("the status says what is waited for", || {
        process.socket().exists() && {
            let line = process.first_line("status", &[]);
            line.starts_with("nothing is programmed yet: the API server ")
        }
    });
    let (code, text) = process.command("explain", &["default/web"]);
    assert_eq!(code, Some(2));
    assert!(text.contains("nothing is programmed yet"), "{text}");
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn a_kubeconfig_that_is_corrected_is_taken_up_by_a_new_start() {
    let host = Host::new();
    let server = ApiServer::start(&host, vec![node(), service_cidr()]);
    let path = server.kubeconfig();
    let text = std::fs::read_to_string(&path).expect("a kubeconfig");
    let process = Pointsman::launch(&host, &["--kubeconfig", path.to_str().expect("a path")]);
    process.wait_for("synced");
    // As the kubelet does with a ConfigMap: the same content is no change.
    std::fs::write(&path, &text).expect("a file");
    let log = process.log();
    std::fs::write(&path, text + "\n# corrected\n").expect("a file");
    assert_eq!(process.wait(), Some(1), "{log}");
}
