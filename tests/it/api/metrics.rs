//! Metrics as Prometheus reads them.

use super::*;

/// A metric's type and its samples: labels and value.
#[derive(Debug, Default)]
struct Family {
    type_: String,
    samples: Vec<(String, BTreeMap<String, String>, f64)>,
}

/// Reads Prometheus' text format, strictly.
fn parse(text: &str) -> BTreeMap<String, Family> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut current = String::new();
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            current = help.split(' ').next().unwrap().to_owned();
            let is_new = families
                .insert(current.clone(), Family::default())
                .is_none();
            assert!(is_new, "twice: {line}");
        } else if let Some(type_) = line.strip_prefix("# TYPE ") {
            let (name, type_) = type_.split_once(' ').unwrap();
            assert_eq!(name, current, "{line}");
            families.get_mut(name).unwrap().type_ = type_.to_owned();
        } else {
            let (name, value) = line.rsplit_once(' ').unwrap();
            let (name, labels) = match name.split_once('{') {
                None => (name, ""),
                Some((name, labels)) => (name, labels.strip_suffix('}').unwrap()),
            };
            let mut parsed = BTreeMap::new();
            for pair in labels.split("\",").filter(|pair| !pair.is_empty()) {
                let (label, value) = pair.split_once("=\"").unwrap();
                let value = value.trim_end_matches('"');
                parsed.insert(label.to_owned(), value.to_owned());
            }
            assert!(name.starts_with(&current), "{line} under {current}");
            let value = value.parse().unwrap_or_else(|_| panic!("{line}"));
            let sample = (name.to_owned(), parsed, value);
            families.get_mut(&current).unwrap().samples.push(sample);
        }
    }
    families
}

const F: &[&str] = &["ip_family"];
const NO_LABELS: &[&str] = &[];

/// kube-proxy's metrics in nftables mode: name, type and labels.
const NAMES: [(&str, &str, &[&str]); 17] = [
    ("sync_proxy_rules_duration_seconds", "histogram", F),
    ("network_programming_duration_seconds", "histogram", F),
    ("sync_proxy_rules_last_timestamp_seconds", "gauge", F),
    ("sync_proxy_rules_last_queued_timestamp_seconds", "gauge", F),
    (
        "sync_proxy_rules_endpoint_changes_pending",
        "gauge",
        NO_LABELS,
    ),
    (
        "sync_proxy_rules_endpoint_changes_total",
        "counter",
        NO_LABELS,
    ),
    (
        "sync_proxy_rules_service_changes_pending",
        "gauge",
        NO_LABELS,
    ),
    (
        "sync_proxy_rules_service_changes_total",
        "counter",
        NO_LABELS,
    ),
    (
        "sync_proxy_rules_no_local_endpoints_total",
        "gauge",
        &["ip_family", "traffic_policy"],
    ),
    ("proxy_healthz_total", "counter", &["code"]),
    ("proxy_livez_total", "counter", &["code"]),
    ("sync_full_proxy_rules_duration_seconds", "histogram", F),
    ("sync_partial_proxy_rules_duration_seconds", "histogram", F),
    ("conntrack_reconciler_sync_duration_seconds", "histogram", F),
    ("conntrack_reconciler_deleted_entries_total", "counter", F),
    (
        "sync_proxy_rules_nftables_sync_failures_total",
        "counter",
        F,
    ),
    (
        "sync_proxy_rules_nftables_cleanup_failures_total",
        "counter",
        F,
    ),
];

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn j_metrics_have_kube_proxys_names_types_labels_and_buckets() {
    let host = Host::new();
    let server = ApiServer::start(&host, cluster(web("web", 10, &[1])));
    let _process = start(&host, &server);
    in_step("the first sync", &host, &server);
    wait_for_health(&host, "/healthz", 200);
    let reply = get(&host, METRICS, "/metrics").unwrap();
    assert_eq!(reply.code, 200);
    assert!(reply.head.contains("text/plain"), "{}", reply.head);
    let families = parse(&reply.body);
    for (name, type_, labels) in NAMES {
        let family = &families[&format!("kubeproxy_{name}")];
        assert_eq!(family.type_, type_, "{name}");
        assert!(!family.samples.is_empty(), "{name} has no value");
        for (_, found, _) in &family.samples {
            let found: Vec<&str> = found
                .keys()
                .map(String::as_str)
                .filter(|label| *label != "le")
                .collect();
            assert_eq!(found, labels, "{name}");
        }
        if labels == F {
            let of = |wanted: &str| {
                let mut samples = family.samples.iter();
                samples.any(|(_, labels, _)| labels["ip_family"] == wanted)
            };
            assert!(of("IPv4") && of("IPv6"), "{name}");
        }
    }
    let buckets = |name: &str| -> Vec<f64> {
        let family = &families[&format!("kubeproxy_{name}")];
        let of_v4 = |labels: &BTreeMap<String, String>| {
            let bound = labels.get("le").filter(|bound| *bound != "+Inf")?;
            (labels["ip_family"] == "IPv4").then(|| bound.parse().unwrap())
        };
        let samples = family.samples.iter();
        samples.filter_map(|(_, labels, _)| of_v4(labels)).collect()
    };
    let doubling: Vec<f64> = (0..15).map(|k| 0.001 * f64::from(1 << k)).collect();
    assert_eq!(buckets("sync_proxy_rules_duration_seconds"), doubling);
    let programming = buckets("network_programming_duration_seconds");
    let mut expected = vec![0.25, 0.5];
    expected.extend((1..60).map(f64::from));
    expected.extend((60..=115).step_by(5).map(f64::from));
    expected.extend((120..=300).step_by(30).map(f64::from));
    assert_eq!(programming, expected);
    for name in ["process_resident_memory_bytes", "kubernetes_build_info"] {
        assert!(families.contains_key(name), "{name}");
    }
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn j_counters_move_when_something_changes() {
    let host = Host::new();
    let server = ApiServer::start(&host, cluster(web("web", 10, &[1])));
    let _process = start(&host, &server);
    in_step("the first sync", &host, &server);
    let names = [
        "kubeproxy_sync_proxy_rules_endpoint_changes_total",
        "kubeproxy_sync_proxy_rules_service_changes_total",
        r#"kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family="IPv4"}"#,
        r#"kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family="IPv6"}"#,
        r#"kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv4"}"#,
        r#"kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family="IPv6"}"#,
        "pointsman_operations_total",
    ];
    let before = names.map(|name| metric(&host, name));
    for object in web("more", 11, &[2, 3]) {
        server.put(object);
    }
    in_step("a change", &host, &server);
    for (name, before) in names.into_iter().zip(before) {
        eventually(name, || metric(&host, name) > before);
    }
    for pending in ["service", "endpoint"] {
        let name = format!("kubeproxy_sync_proxy_rules_{pending}_changes_pending");
        eventually(&name, || metric(&host, &name) == 0.0);
    }
    for (path, name) in [("/healthz", "healthz"), ("/livez", "livez")] {
        let name = format!("kubeproxy_proxy_{name}_total{{code=\"200\"}}");
        let before = metric(&host, &name);
        assert_eq!(health(&host, path), Some(200));
        assert_eq!(metric(&host, &name), before + 1.0);
    }
    server.delete(&node());
    wait_for_health(&host, "/healthz", 503);
    assert!(metric(&host, r#"kubeproxy_proxy_healthz_total{code="503"}"#) >= 1.0);
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn j_services_that_a_local_policy_leaves_without_endpoints_are_counted() {
    let host = Host::new();
    let mut far = endpoint("10.244.2.1");
    far["nodeName"] = json!("node-2");
    let inside = service("inside", &["10.96.0.10"])
        .set("/spec/internalTrafficPolicy", json!("Local"))
        .0;
    let outside = service("outside", &["10.96.0.11"])
        .vips(&["203.0.113.11"])
        .set("/spec/externalTrafficPolicy", json!("Local"))
        .0;
    let server = ApiServer::start(
        &host,
        cluster([
            inside,
            outside,
            slice_of("inside", "TCP", vec![far.clone()]),
            slice_of("outside", "TCP", vec![far.clone()]),
        ]),
    );
    let _process = start(&host, &server);
    let count = |family: &str, policy: &str| {
        let name = "kubeproxy_sync_proxy_rules_no_local_endpoints_total";
        let labels = format!("ip_family=\"{family}\",traffic_policy=\"{policy}\"");
        metric(&host, &format!("{name}{{{labels}}}"))
    };
    for policy in ["internal", "external"] {
        eventually(policy, || count("IPv4", policy) == 1.0);
        assert_eq!(count("IPv6", policy), 0.0);
    }
    let mut near = far;
    near["nodeName"] = json!(crate::harness::NODE);
    server.put(slice_of("inside", "TCP", vec![near]));
    eventually("one has an endpoint here now", || {
        count("IPv4", "internal") == 0.0
    });
    assert_eq!(count("IPv4", "external"), 1.0);
}

/// A slice whose change is said to have begun then.
fn triggered(address: &str, at: jiff::Timestamp) -> Value {
    let mut slice = slice("web", "TCP", &[address]);
    let annotation = "endpoints.kubernetes.io/last-change-trigger-time";
    slice["metadata"]["annotations"] = json!({ annotation: at.to_string() });
    slice
}

fn programmed(host: &Host, family: &str) -> f64 {
    let name = "kubeproxy_network_programming_duration_seconds_count";
    metric(host, &format!("{name}{{ip_family=\"{family}\"}}"))
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn j_the_time_from_a_slices_change_to_its_effect_is_measured() {
    let host = Host::new();
    let before = jiff::Timestamp::now();
    let [service, _] = web("web", 10, &[]);
    let server = ApiServer::start(&host, cluster([service, triggered("10.244.1.1", before)]));
    let _process = start(&host, &server);
    in_step("the first sync", &host, &server);
    server.put(triggered("10.244.1.2", before));
    in_step("a change that began before the process did", &host, &server);
    assert_eq!(programmed(&host, "IPv4"), 0.0);
    server.put(triggered("10.244.1.3", jiff::Timestamp::now()));
    in_step("a change that began later", &host, &server);
    eventually("it is counted", || programmed(&host, "IPv4") == 1.0);
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn j_a5_a_slice_counts_in_its_own_family_only() {
    let host = Host::new();
    let server = ApiServer::start(&host, cluster(web("web", 10, &[1])));
    let _process = start(&host, &server);
    in_step("the first sync", &host, &server);
    server.put(triggered("10.244.1.3", jiff::Timestamp::now()));
    in_step("a change of an IPv4 slice", &host, &server);
    eventually("it is counted", || programmed(&host, "IPv4") == 1.0);
    assert_eq!(programmed(&host, "IPv6"), 0.0);
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn j_a_change_of_a_service_counts_once_per_family() {
    let host = Host::new();
    let server = ApiServer::start(&host, cluster([]));
    let _process = start(&host, &server);
    let name = "kubeproxy_sync_proxy_rules_service_changes_total";
    let before = metric(&host, name);
    server.put(service("dual", &["10.96.0.10", "fd00:96::10"]).0);
    in_step("a Service of both families", &host, &server);
    eventually("it is counted", || metric(&host, name) > before);
    assert_eq!(metric(&host, name) - before, 2.0);
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn j_a_slice_that_changed_while_the_first_list_was_read_is_measured() {
    let host = Host::new();
    let server = ApiServer::start(&host, cluster(web("web", 10, &[1])));
    server.misbehave(Kind::Slices, Phase::List, Answer::Stall, 1);
    let process = launch(&host, &server, &[]);
    server.wait_for_watch(Kind::Slices);
    wait_for_health(&host, "/livez", 200);
    server.put(triggered("10.244.1.3", jiff::Timestamp::now()));
    server.behave();
    process.wait_for("synced");
    in_step("the first sync", &host, &server);
    wait_for_health(&host, "/healthz", 200);
    assert_eq!(programmed(&host, "IPv4"), 1.0);
}
