//! What clients are remembered by.

use super::*;

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn n_f1_clients_are_remembered_for_each_address_and_port_on_its_own() {
    const PODS: [u8; 3] = [11, 12, 13];
    let service = affine_service(10800).set(
        "/spec/ports",
        json!([
            {"name": "http", "protocol": "TCP", "port": 80, "nodePort": NODE_PORT},
            {"name": "admin", "protocol": "TCP", "port": 81},
        ]),
    );
    let mut slices = slices("web", "TCP", &PODS);
    for slice in &mut slices {
        // Both ports lead to the same endpoints, so that places can be compared.
        let ports = ["http", "admin"].map(|name| json!({"name": name, "port": 8080}));
        slice["ports"] = json!(ports);
    }
    let all = ["--nodeport-addresses=0.0.0.0/0,::/0"];
    let site = Site::new(with(service, slices), &all);
    for net in tested() {
        let clients = clients(&net);
        let mut targets: Vec<(String, SocketAddr)> = net
            .targets(10, NODE_PORT)
            .map(|(kind, target)| (kind.to_owned(), target))
            .to_vec();
        targets.push(("another port".into(), at(&net.cluster_ip(10), 81)));
        targets.push(("another node address".into(), at(net.node_other, NODE_PORT)));
        let places: Vec<Vec<SocketAddr>> = targets
            .iter()
            .map(|(_, target)| reach(&site.world, &clients, *target))
            .collect();
        for ((name, target), places) in targets.iter().zip(&places) {
            assert_eq!(reach(&site.world, &clients, *target), *places, "{name}");
        }
        for (index, one) in places.iter().enumerate() {
            for (other, (name, _)) in places.iter().zip(&targets).take(index) {
                // By chance this would fail once in 3^40 runs.
                assert_ne!(one, other, "{} and {name}", targets[index].0);
            }
        }
    }
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn f1_affinity_holds_under_policies_local_too() {
    let service = affine_service(10800)
        .set("/spec/internalTrafficPolicy", json!("Local"))
        .set("/spec/externalTrafficPolicy", json!("Local"));
    let objects = with(service, slices("web", "TCP", &[11, 12, 13, 111, 112]));
    let site = Site::new(objects, &[]);
    for net in tested() {
        for (source, host) in sources(&site.world) {
            for (kind, target) in net.targets(10, NODE_PORT) {
                let reached = host.connect_many(&target.to_string(), 40);
                assert_eq!(reached.len(), 1, "{source} to {kind}: {reached:?}");
                if source == "client" || kind == "ClusterIP" {
                    let local = net.endpoints(&[11, 12, 13]);
                    assert!(reached.keys().all(|endpoint| local.contains(endpoint)));
                }
            }
        }
    }
}
