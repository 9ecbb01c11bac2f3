//! What a question costs that an administrator asks the running program, on a large cluster.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::api_server::ApiServer;
use crate::cluster::Shape;
use crate::harness::{CLUSTER_CIDR, Host, Pointsman, eventually_within};
use crate::objects::{node, service_cidr};
use crate::output::{Cell, Table, quantiles};

/// An empty table.
pub fn table() -> Table {
    Table::new(
        "Questions",
        "The program beside an API server, asked on its socket, and by the command, whose start is part of it. \"nft list\" is\n\
         nft's own listing of one table of what is compared.",
        &[
            "cluster",
            "question",
            "times",
            "median",
            "p99",
            "by the command",
            "nft list",
        ],
    )
}

/// Asks everything so many times.
pub fn measure(shape: Shape, name: &str, times: usize, table: &mut Table) {
    let host = Host::new();
    let mut objects = vec![node(), service_cidr()];
    for text in shape.objects() {
        objects.push(serde_json::from_str::<Value>(&text).expect("JSON"));
    }
    let service = objects
        .iter()
        .rev()
        .find(|object| object["kind"] == "Service")
        .expect("a Service")
        .clone();
    let text = |pointer: &str| {
        service
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let of = format!("{}/{}", text("/metadata/namespace"), text("/metadata/name"));
    let at = format!(
        "{}:{}",
        text("/spec/clusterIP"),
        service["spec"]["ports"][0]["port"]
    );
    let server = ApiServer::start(&host, objects);
    let kubeconfig = server.kubeconfig();
    let kubeconfig = kubeconfig.to_str().expect("a path").to_owned();
    let process = Pointsman::launch(
        &host,
        &["--kubeconfig", &kubeconfig, "--cluster-cidr", CLUSTER_CIDR],
    );
    eventually_within(Duration::from_secs(120), "the first sync", || {
        process.log().contains("synced")
    });
    let began = Instant::now();
    let listed = host
        .try_sh("timeout 120 nft list table ip pointsman > /dev/null")
        .0;
    let listing = began.elapsed();
    let questions: [(&str, &str, Vec<(&str, &str)>, usize); 5] = [
        (
            "explain ADDRESS:PORT",
            "/v1/explain",
            vec![("to", &at)],
            times,
        ),
        (
            "explain NAMESPACE/SERVICE",
            "/v1/explain",
            vec![("from", "10.244.9.9"), ("to", &of)],
            times,
        ),
        ("status", "/v1/status", Vec::new(), times),
        ("history", "/v1/history", Vec::new(), times),
        ("verify", "/v1/verify", Vec::new(), times.min(10)),
    ];
    for (question, path, parameters, times) in questions {
        let mut took = Vec::new();
        for _ in 0..times {
            let began = Instant::now();
            let answer = process.ask(path, &parameters);
            took.push(began.elapsed());
            assert!(answer["error"].is_null(), "{question}: {}", answer["error"]);
            if question == "verify" {
                assert_eq!(answer["answer"]["differences"], serde_json::json!([]));
            }
        }
        let command = question.split(' ').next().unwrap_or_default();
        let arguments: Vec<&str> = parameters
            .iter()
            .rev()
            .map(|(_, value)| *value)
            .rev()
            .collect();
        let began = Instant::now();
        process.command(command, &arguments);
        let by_command = began.elapsed();
        let (median, p99) = quantiles(took);
        table.row(vec![
            name.to_owned().into(),
            question.to_owned().into(),
            Cell::Count(times),
            median.into(),
            p99.into(),
            by_command.into(),
            if question == "verify" && listed {
                listing.into()
            } else {
                Cell::Text(String::new())
            },
        ]);
    }
}
