//! Alerts and the dashboard: they parse, they fire when they should, and what they look at exists.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::harness::{Host, METRICS, Pointsman, get};
use crate::objects::{Manifests, service, slice};

const RULES: &str = include_str!("../../manifests/monitoring/prometheusrule.yaml");
const DASHBOARD: &str = include_str!("../../manifests/monitoring/dashboard.json");
const ALERTS: &str = include_str!("../data/alerts.yaml");
const TROUBLESHOOT: &str = include_str!("../../docs/troubleshoot.md");

/// What others export, or iptables mode does, or who has to be counted first.
const ELSEWHERE: [&str; 5] = [
    "up",
    "node_nf_conntrack_entries",
    "node_nf_conntrack_entries_limit",
    "kubeproxy_sync_proxy_rules_iptables_restore_failures_total",
    "pointsman_service_connections_total",
];

fn rules() -> Value {
    let rules: Value = serde_saphyr::from_str(RULES).expect("YAML");
    rules["spec"].clone()
}

fn promtool(directory: &Path, arguments: &[&str]) -> String {
    let output = Command::new("promtool")
        .args(arguments)
        .current_dir(directory)
        .output()
        .expect("promtool (scripts/setup.sh)");
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{arguments:?}: {text}");
    text
}

#[test]
fn alerts_fire_for_what_they_are_for_and_for_nothing_else() {
    let directory = tempfile::tempdir().expect("a directory");
    // JSON is YAML.
    std::fs::write(directory.path().join("rules.yaml"), rules().to_string()).expect("a file");
    std::fs::write(directory.path().join("alerts.yaml"), ALERTS).expect("a file");
    promtool(directory.path(), &["check", "rules", "rules.yaml"]);
    promtool(directory.path(), &["test", "rules", "alerts.yaml"]);
}

#[test]
fn every_alert_leads_to_its_paragraph() {
    let rules = rules();
    let alerts = rules["groups"][0]["rules"].as_array().expect("rules");
    assert!(alerts.len() >= 10);
    for alert in alerts {
        let name = alert["alert"].as_str().expect("a name");
        assert!(
            TROUBLESHOOT.contains(&format!("\n### {name}\n\n")),
            "{name}"
        );
        let anchor = format!("docs/troubleshoot.md#{}", name.to_lowercase());
        assert_eq!(alert["annotations"]["runbook_url"], anchor, "{name}");
    }
}

/// The names of metrics in an expression.
fn names(expression: &str) -> BTreeSet<String> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let is_one = |word: &&str| {
        let begins = ["pointsman_", "kubeproxy_", "process_", "node_nf_"];
        begins.iter().any(|begin| word.starts_with(begin)) || *word == "up"
    };
    words.filter(is_one).map(str::to_owned).collect()
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn what_alerts_and_the_dashboard_look_at_is_exported_and_ours_is_as_prometheus_likes_it() {
    let host = Host::new();
    let manifests = Manifests::new(vec![
        service("web", &["10.96.0.10"]).0,
        slice("web", "TCP", &["10.244.1.1"]),
    ]);
    let _process = Pointsman::start(
        &host,
        &[
            "--manifests",
            manifests.path(),
            "--service-metrics",
            "endpoints",
        ],
    );
    let metrics = get(&host, METRICS, "/metrics").expect("metrics").body;
    let dashboard: Value = serde_json::from_str(DASHBOARD).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let targets = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().expect("targets"));
    let shown = targets.map(|target| target["expr"].as_str().expect("an expression"));
    let rules = rules();
    let alerts = rules["groups"][0]["rules"].as_array().expect("rules");
    let watched = alerts
        .iter()
        .map(|alert| alert["expr"].as_str().expect("an expression"));
    let looked_at: BTreeSet<String> = shown.chain(watched).flat_map(names).collect();
    assert!(looked_at.len() > 15, "{looked_at:?}");
    for name in looked_at {
        let plain = name
            .trim_end_matches("_bucket")
            .trim_end_matches("_sum")
            .trim_end_matches("_count");
        let is_there = metrics.contains(&format!("# TYPE {plain} "));
        assert!(
            is_there || ELSEWHERE.contains(&name.as_str()),
            "{name} is not exported"
        );
    }
    // kube-proxy's names are as they are.
    let ours = metrics.lines().filter(|line| {
        let name = line
            .trim_start_matches("# HELP ")
            .trim_start_matches("# TYPE ");
        name.starts_with("pointsman_")
    });
    let ours = ours.fold(String::new(), |all, line| all + line + "\n");
    let (ok, said) = host.sh_with_input("promtool check metrics", &ours);
    assert!(ok && said.is_empty(), "{said}");
}

#[test]
fn no_overlay_takes_away_what_an_operator_has_configured() {
    let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests");
    let mut seen = 0;
    for overlay in std::fs::read_dir(&manifests).expect("manifests") {
        let overlay = overlay.expect("an overlay").path();
        if overlay.ends_with("base") || !overlay.is_dir() {
            continue;
        }
        for file in std::fs::read_dir(&overlay).expect("files") {
            let path = file.expect("a file").path();
            let text = std::fs::read_to_string(&path).expect("a file");
            let replaces = text.contains("config.conf: |") || text.contains("kubeconfig.conf: |");
            assert!(
                !replaces,
                "{} replaces the configuration of base",
                path.display()
            );
            seen += 1;
        }
    }
    assert!(seen > 8, "{seen}");
}
