//! `/healthz`, `/livez`, and the small endpoints beside the metrics.

use super::*;

/// The names in a body, in their order, without the times.
fn names(body: &str) -> String {
    body.split('"')
        .skip(1)
        .step_by(2)
        .filter(|text| !text.ends_with('Z'))
        .collect::<Vec<_>>()
        .join(" ")
}

fn json(reply: &Reply) -> Value {
    serde_json::from_str(&reply.body).expect("JSON")
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn n_i2_healthz_is_503_before_the_first_sync_and_200_after_while_livez_is_200() {
    let host = Host::new();
    let server = ApiServer::start(&host, cluster(web("web", 10, &[1])));
    server.misbehave(Kind::Slices, Phase::List, Answer::Stall, usize::MAX);
    let process = launch(&host, &server, &[]);
    wait_for_health(&host, "/livez", 200);
    let healthz = get(&host, HEALTH, "/healthz").unwrap();
    assert_eq!(healthz.code, 503);
    assert_eq!(json(&healthz)["healthy"], false);
    assert_eq!(
        names(&healthz.body),
        "lastUpdated currentTime nodeEligible healthy reason nothing is programmed yet; pointsman status says what is waited for"
    );
    let livez = get(&host, HEALTH, "/livez").unwrap();
    assert_eq!(names(&livez.body), "lastUpdated currentTime healthy");
    server.behave();
    process.wait_for("synced");
    wait_for_health(&host, "/healthz", 200);
    assert_eq!(health(&host, "/livez"), Some(200));
    in_step("the rules are there", &host, &server);
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn i4_answers_have_kube_proxys_bodies_and_headers() {
    let host = Host::new();
    let server = ApiServer::start(&host, cluster(web("web", 10, &[1])));
    let _process = start(&host, &server);
    wait_for_health(&host, "/healthz", 200);
    let families = "status IPv4 lastUpdated healthy IPv6 lastUpdated healthy";
    for (path, expected) in [
        ("/healthz", "lastUpdated currentTime nodeEligible healthy"),
        ("/livez", "lastUpdated currentTime healthy"),
    ] {
        let reply = get(&host, HEALTH, path).unwrap();
        assert_eq!(reply.code, 200, "{path}");
        assert_eq!(names(&reply.body), format!("{expected} {families}"));
        let body = json(&reply);
        assert_eq!(body["healthy"], true, "{path}");
        assert_eq!(body["lastUpdated"], body["currentTime"], "now, when 200");
        for time in [
            &body["currentTime"],
            &body["status"]["IPv4"]["lastUpdated"],
            &body["status"]["IPv6"]["lastUpdated"],
        ] {
            let time = time.as_str().unwrap();
            assert!(time.parse::<jiff::Timestamp>().is_ok(), "{time}");
        }
        assert!(!reply.body.contains([' ', '\n']), "{}", reply.body);
        for header in [
            "Content-Type: application/json",
            "X-Content-Type-Options: nosniff",
        ] {
            assert!(reply.head.contains(header), "{path}: {}", reply.head);
        }
    }
    let reply = get(&host, "[::1]:10256", "/livez").unwrap();
    assert_eq!(reply.code, 200, "I5: by default both families are served");
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn l1_l2_other_paths_are_not_found() {
    let host = Host::new();
    let server = ApiServer::start(&host, cluster([]));
    let _process = start(&host, &server);
    for (address, path) in [
        (HEALTH, "/"),
        (HEALTH, "/metrics"),
        (HEALTH, "/healthz/ping"),
        (METRICS, "/"),
        (METRICS, "/livez"),
        (METRICS, "/debug/pprof/"),
    ] {
        let reply = get(&host, address, path).unwrap();
        assert_eq!(reply.code, 404, "{address}{path}");
    }
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn l2_the_metrics_port_says_ok_which_mode_and_which_configuration() {
    let host = Host::new();
    let server = ApiServer::start(&host, cluster([]));
    let _process = start_with(&host, &server, &["--masquerade-all"]);
    let of = |path: &str| {
        let reply = get(&host, METRICS, path).unwrap();
        assert_eq!(reply.code, 200, "{path}");
        reply
    };
    assert_eq!(of("/healthz").body, "ok");
    assert_eq!(of("/healthz/ping").body, "ok");
    let mode = of("/proxyMode");
    assert_eq!(mode.body, "nftables");
    assert!(mode.head.contains("text/plain"), "{}", mode.head);
    let configz = of("/configz");
    assert!(
        configz.head.contains("application/json"),
        "{}",
        configz.head
    );
    let configuration = &json(&configz)["kubeproxy.config.k8s.io"];
    assert_eq!(configuration["kind"], "KubeProxyConfiguration");
    let version = "kubeproxy.config.k8s.io/v1alpha1";
    assert_eq!(configuration["apiVersion"], version);
    assert_eq!(configuration["nftables"]["masqueradeAll"], true);
    assert_eq!(configuration["clusterCIDR"], crate::harness::CLUSTER_CIDR);
}

/// A Node that is about to go, each in another way.
fn going() -> Vec<(String, Option<Value>)> {
    let mut cases = vec![("deleted".to_owned(), None)];
    let mut ending = node();
    ending["metadata"]["deletionTimestamp"] = json!("2026-01-02T03:04:05Z");
    cases.push(("being deleted".to_owned(), Some(ending)));
    for effect in ["NoSchedule", "PreferNoSchedule", "NoExecute"] {
        let mut tainted = node();
        tainted["spec"]["taints"] = json!([
            {"key": "other", "effect": "NoSchedule"},
            {"key": "ToBeDeletedByClusterAutoscaler", "value": "1", "effect": effect},
        ]);
        cases.push((format!("tainted with {effect}"), Some(tainted)));
    }
    cases
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn i3_n_i3_a_node_that_goes_or_is_gone_gets_no_new_traffic() {
    let host = Host::new();
    let [service, slice] = web("web", 10, &[1]);
    let service = crate::objects::Service(service).node_port(30010).0;
    let server = ApiServer::start(&host, cluster([service, slice]));
    let _process = start(&host, &server);
    wait_for_health(&host, "/healthz", 200);
    in_step("the first sync", &host, &server);
    let before = elements(&host);
    for (how, object) in going() {
        match object {
            Some(object) => server.put(object),
            None => server.delete(&node()),
        };
        wait_for_health(&host, "/healthz", 503);
        let body = json(&get(&host, HEALTH, "/healthz").unwrap());
        assert_eq!(body["nodeEligible"], false, "{how}");
        assert_eq!(body["healthy"], true, "{how}");
        assert_eq!(health(&host, "/livez"), Some(200), "{how}");
        assert_eq!(elements(&host), before, "{how}: what is served stays");
        server.put(node());
        wait_for_health(&host, "/healthz", 200);
    }
    let mut other = node();
    other["spec"]["taints"] = json!([{"key": "node.kubernetes.io/unschedulable"}]);
    server.put(other);
    // A Service that comes after it says that the taint has been seen.
    for object in web("marker", 11, &[2]) {
        server.put(object);
    }
    in_step("the marker", &host, &server);
    assert_eq!(
        health(&host, "/healthz"),
        Some(200),
        "other taints are fine"
    );
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn n_i3_a_node_that_was_deleted_while_the_watch_was_away_is_not_eligible() {
    let host = Host::new();
    let server = ApiServer::start(&host, cluster(web("web", 10, &[1])));
    let _process = start(&host, &server);
    wait_for_health(&host, "/healthz", 200);
    server.wait_until_heard(Kind::Nodes);
    server.lose(|server| {
        server.delete(&node());
    });
    server.say_gone(Kind::Nodes);
    wait_for_health(&host, "/healthz", 503);
    assert_eq!(health(&host, "/livez"), Some(200));
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn i5_a_health_port_that_is_taken_is_tried_again() {
    let host = Host::new();
    let taken = host.run(|| std::net::TcpListener::bind("0.0.0.0:10256").unwrap());
    let server = ApiServer::start(&host, cluster(web("web", 10, &[1])));
    let process = start(&host, &server);
    process.wait_for("cannot serve health; trying again");
    in_step("the rules do not wait for it", &host, &server);
    drop(taken);
    wait_for_health(&host, "/healthz", 200);
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn i5_a_port_that_must_be_had_and_cannot_ends_the_process() {
    for address in ["0.0.0.0:10256", METRICS] {
        let host = Host::new();
        let taken = address.to_owned();
        let _taken = host.run(|| std::net::TcpListener::bind(taken).unwrap());
        let server = ApiServer::start(&host, cluster([]));
        let process = launch(&host, &server, &["--bind-address-hard-fail"]);
        process.wait_for(&format!("on {address}"));
        assert_eq!(process.wait(), Some(1), "{address}");
    }
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn l2_slis_flags_and_status_are_served_beside_the_metrics() {
    let host = Host::new();
    let server = ApiServer::start(&host, cluster([]));
    let _process = start(&host, &server);
    let paths = ["/metrics/slis", "/flagz", "/statusz"];
    let codes = paths.map(|path| get(&host, METRICS, path).map(|reply| reply.code));
    assert_eq!(codes, [Some(200); 3], "{paths:?}");
}
