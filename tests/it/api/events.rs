//! Events in the cluster about the proxy.

use super::*;

/// Waits for an event of this reason and returns it.
fn event(server: &ApiServer, reason: &str) -> Value {
    let mut found = None;
    eventually(&format!("an event {reason}"), || {
        let mut events = server.events().into_iter();
        found = events.find(|event| event["reason"] == reason);
        found.is_some()
    });
    found.unwrap()
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn m3_the_start_is_announced_on_the_node() {
    let host = Host::new();
    let server = ApiServer::start(&host, cluster([]));
    let _process = start(&host, &server);
    let event = event(&server, "Starting");
    assert_eq!(event["type"], "Normal");
    assert_eq!(event["action"], "StartKubeProxy");
    assert_eq!(event["reportingController"], "kube-proxy");
    assert_eq!(event["metadata"]["namespace"], "default");
    assert_eq!(event["regarding"]["kind"], "Node");
    assert_eq!(event["regarding"]["name"], crate::harness::NODE);
    let uid = event["regarding"].get("uid").and_then(Value::as_str);
    assert_eq!(uid.unwrap_or_default(), "");
    let posts = server.requests();
    let post = posts.iter().find(|request| request.method == "POST");
    assert_eq!(
        post.unwrap().path,
        "/apis/events.k8s.io/v1/namespaces/default/events"
    );
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn m3_a_health_check_port_that_is_taken_is_announced_on_its_service() {
    let world = World::new();
    let host = &world.node;
    let _taken = host.run(|| std::net::TcpListener::bind("192.0.2.1:32000").unwrap());
    let mut balanced = service("balanced", &["10.96.0.10"])
        .vips(&["203.0.113.10"])
        .set("/spec/externalTrafficPolicy", json!("Local"))
        .set("/spec/healthCheckNodePort", json!(32000))
        .0;
    balanced["metadata"]["namespace"] = json!("shop");
    let server = ApiServer::start(host, cluster([balanced]));
    let _process = start(host, &server);
    let event = event(&server, "FailedToStartServiceHealthcheck");
    assert_eq!(event["type"], "Warning");
    assert_eq!(event["action"], "Listen");
    assert_eq!(event["reportingController"], "kube-proxy");
    assert_eq!(event["metadata"]["namespace"], "shop");
    assert_eq!(event["regarding"]["kind"], "Service");
    assert_eq!(event["regarding"]["namespace"], "shop");
    assert_eq!(event["regarding"]["name"], "balanced");
    assert!(event["note"].as_str().unwrap().contains("32000"), "{event}");
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn m3_events_that_nobody_takes_are_in_nobodys_way() {
    let host = Host::new();
    let server = ApiServer::start(&host, cluster(web("web", 10, &[1])));
    server.refuse_events();
    let process = start(&host, &server);
    process.wait_for("an event could not be written");
    in_step("the rules are there", &host, &server);
    wait_for_health(&host, "/healthz", 200);
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn m3_a_port_that_must_be_had_and_cannot_is_announced_on_the_node() {
    for (address, reason) in [
        (HEALTH, "FailedToStartProxierHealthcheck"),
        (METRICS, "FailedToStartMetricServer"),
    ] {
        let host = Host::new();
        let _taken = host.run(move || std::net::TcpListener::bind(address).unwrap());
        let server = ApiServer::start(&host, cluster([]));
        let addresses = ["--healthz-bind-address", HEALTH];
        let process = launch(
            &host,
            &server,
            &[&addresses[..], &["--bind-address-hard-fail"]].concat(),
        );
        assert_eq!(process.wait(), Some(1), "{address}");
        let event = event(&server, reason);
        assert_eq!(event["type"], "Warning");
        assert_eq!(event["regarding"]["name"], crate::harness::NODE);
    }
}
