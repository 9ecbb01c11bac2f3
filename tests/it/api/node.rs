//! The Node object, as it changes.

use super::*;
use crate::harness::Servers;

/// The node with something else at a place.
fn node_with(pointer: &str, value: Value) -> Value {
    let mut object = node();
    *object.pointer_mut(pointer).expect("a place") = value;
    object
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn g9_the_nodes_zone_is_followed() {
    let host = Host::new();
    let hinted = |address: &str, zone: &str| {
        let mut endpoint = endpoint(address);
        endpoint["hints"] = json!({"forZones": [{"name": zone}]});
        endpoint
    };
    let slice = slice_of(
        "web",
        "TCP",
        vec![hinted("10.244.1.1", "a"), hinted("10.244.2.2", "b")],
    );
    let [service, _] = web("web", 10, &[]);
    let server = ApiServer::start(&host, cluster([service, slice]));
    let _process = start(&host, &server);
    let serving = |pod: &str| !mentioning(&elements(&host), pod).is_empty();
    assert!(serving("10.244.1.1") && !serving("10.244.2.2"));

    let zone = "/metadata/labels/topology.kubernetes.io~1zone";
    server.put(node_with(zone, json!("b")));
    eventually("the other zone's endpoint", || {
        serving("10.244.2.2") && !serving("10.244.1.1")
    });
    server.put(node_with("/metadata/labels", json!({})));
    eventually("both, without a zone", || {
        serving("10.244.1.1") && serving("10.244.2.2")
    });
    in_step("the end", &host, &server);
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn e6_node_cidr_a_change_of_the_nodes_pod_ranges_changes_who_is_masqueraded() {
    let world = World::new();
    let host = &world.node;
    let servers = Servers::tcp(&world.pods, &[8080]);
    let server = ApiServer::start(host, cluster(web("web", 10, &[1])));
    let kubeconfig = server.kubeconfig();
    let kubeconfig = kubeconfig.to_str().unwrap();
    let arguments = ["--kubeconfig", kubeconfig, "--detect-local-mode=NodeCIDR"];
    let process = Pointsman::start_without_cidr(host, &arguments);
    let source = || {
        let seen = world.pod.connect("10.96.0.10:80").expect("a connection");
        seen.source.to_string()
    };
    assert_eq!(source(), "10.244.1.200", "a pod of this node");
    server.put(node_with("/spec/podCIDRs", json!(["10.245.0.0/24"])));
    eventually("it is none any more", || source() != "10.244.1.200");
    server.put(node_with("/spec/podCIDRs", json!([])));
    server.put(node_with(
        "/spec/podCIDRs",
        json!(["10.244.1.128/25", "fd00:244:0:1::/64"]),
    ));
    eventually("it is one again", || source() == "10.244.1.200");
    let log = process.log();
    assert_eq!(process.terminate(), Some(0), "no restart: {log}");
    servers.stop(&world.pods);
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn k9_node_cidr_waits_for_the_nodes_pod_ranges() {
    let host = Host::new();
    let mut objects = vec![node_with("/spec", json!({})), service_cidr()];
    objects.extend(web("web", 10, &[1]));
    let server = ApiServer::start(&host, objects);
    let kubeconfig = server.kubeconfig();
    let kubeconfig = kubeconfig.to_str().unwrap();
    let arguments = ["--kubeconfig", kubeconfig, "--detect-local-mode=NodeCIDR"];
    let process = Pointsman::launch(&host, &arguments);
    process.wait_for("waiting for the Node");
    assert_eq!(host.ruleset(), "");
    assert_eq!(health(&host, "/livez"), Some(200));
    server.put(node());
    process.wait_for("synced");
    assert!(host.ruleset().contains("10.244.1.0/24"));
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn e13_the_nodes_addresses_are_followed_by_primary_node_ports() {
    let world = World::new();
    let host = &world.node;
    let servers = Servers::tcp(&world.pods, &[8080]);
    let [service, slice] = web("web", 10, &[1]);
    let service = crate::objects::Service(service).node_port(30010).0;
    let server = ApiServer::start(host, cluster([service, slice]));
    let _process = start(host, &server);
    let reach = |client: &Host, address: &str| client.connect(address).is_ok();
    assert!(reach(&world.client, "192.0.2.1:30010"));
    assert!(!reach(&world.peer, "198.51.100.1:30010"));
    let addresses = |list: &[(&str, &str)]| {
        let list = list.iter();
        let list: Vec<Value> = list
            .map(|(type_, address)| json!({"type": type_, "address": address}))
            .collect();
        node_with("/status/addresses", json!(list))
    };
    server.put(addresses(&[
        ("ExternalIP", "192.0.2.1"),
        ("InternalIP", "198.51.100.1"),
    ]));
    in_step("the internal address comes first", host, &server);
    assert!(reach(&world.peer, "198.51.100.1:30010"));
    assert!(!reach(&world.client, "192.0.2.1:30010"));
    server.put(addresses(&[("InternalIP", "2001:db8:2::1")]));
    eventually("N E13: no address of the family, no NodePort", || {
        elements(host)["ip nodeport-ips"].is_empty()
    });
    assert!(!reach(&world.peer, "198.51.100.1:30010"));
    server.put(node());
    in_step("as it was", host, &server);
    assert!(reach(&world.client, "192.0.2.1:30010"));
    servers.stop(&world.pods);
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn a3_other_nodes_count_for_nothing() {
    let host = Host::new();
    let mut other = node();
    other["metadata"]["name"] = json!("node-10");
    let server = ApiServer::start(&host, cluster(web("web", 10, &[1])));
    let _process = start(&host, &server);
    in_step("the first sync", &host, &server);
    let before = elements(&host);
    server.put(other.clone());
    server.delete(&other);
    for object in web("marker", 11, &[2]) {
        server.put(object);
    }
    in_step("the marker", &host, &server);
    let after = elements(&host);
    let both = mentioning(&after, "10.96.0.10");
    assert_eq!(both, mentioning(&before, "10.96.0.10"));
    assert_eq!(health(&host, "/healthz"), Some(200));
}
