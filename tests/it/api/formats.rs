//! Protobuf and JSON say the same.

use std::path::Path;

use pointsman::source::cluster::{self, Notice, WatchOptions};
use pointsman::source::convert::Converter;

use super::*;

/// What is told of the objects of a server until all kinds are complete.
fn told(host: &Host, server: &ApiServer, format: cluster::Format) -> BTreeSet<String> {
    let kubeconfig = server.kubeconfig();
    let follow = async move {
        let (client, _) = cluster::connect(Some(kubeconfig), None)
            .await
            .expect("a client");
        let options = WatchOptions {
            formats: vec![format],
            ..WatchOptions::new(crate::harness::NODE)
        };
        let converter = Converter::new(crate::harness::NODE);
        let mut notices = cluster::follow(&client, converter, &options);
        let mut told = BTreeSet::new();
        let mut complete = 0;
        while complete < Kind::ALL.len() {
            match notices.recv().await.expect("a notice") {
                Notice::Changes(changes) => {
                    told.extend(changes.changes.iter().map(|change| format!("{change:#?}")));
                    told.extend(changes.warnings.iter().map(ToString::to_string));
                    told.extend(
                        changes
                            .triggers
                            .iter()
                            .map(|trigger| format!("{trigger:?}")),
                    );
                    told.extend(changes.causes.iter().map(|cause| format!("{cause:?}")));
                }
                Notice::Complete(_) => complete += 1,
                Notice::Failed(kind, why, _) => panic!("{}: {why}", kind.name()),
            }
        }
        told
    };
    host.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(follow)
    })
}

/// The objects of the golden files, as an API server would have them.
fn golden() -> Vec<Value> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut objects = Vec::new();
    for entry in std::fs::read_dir(directory).expect("the golden files") {
        let path = entry.expect("an entry").path();
        let name = path
            .file_stem()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("a file");
        for document in text.split("\n---") {
            let Ok(mut object) = serde_saphyr::from_str::<Value>(document) else {
                panic!("{}: {document}", path.display());
            };
            if object.is_null() || object["kind"] == "Node" {
                continue;
            }
            let metadata = &mut object["metadata"];
            metadata["name"] = json!(format!(
                "{name}-{}",
                metadata["name"].as_str().unwrap_or("")
            ));
            metadata["creationTimestamp"] = json!("2026-01-02T03:04:05Z");
            objects.push(object);
        }
    }
    assert!(objects.len() > 15, "{}", objects.len());
    objects
}

/// Objects with every field that is read, and with values that are wrong.
fn odd() -> Vec<Value> {
    let mut objects = vec![
        json!({"kind": "Service", "metadata": {
            "name": "all", "namespace": "shop", "creationTimestamp": "2026-01-02T03:04:05Z",
            "annotations": {"pointsman.io/algorithm": "maglev", "pointsman.io/ejection": "true", "x": "y"},
        }, "spec": {
            "type": "LoadBalancer", "clusterIP": "10.96.7.1", "clusterIPs": ["10.96.7.1", "fd00:10:96::7"],
            "ipFamilies": ["IPv4", "IPv6"], "externalIPs": ["192.0.2.1", "nonsense"],
            "loadBalancerSourceRanges": ["10.0.0.0/8", "fd00::/8", "x"],
            "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 77}},
            "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local", "healthCheckNodePort": 30777,
            "ports": [
                {"name": "a", "port": 80, "nodePort": 30080, "targetPort": 8080},
                {"name": "b", "port": 53, "protocol": "UDP"},
                {"name": "c", "port": 70000, "protocol": "TCP"},
                {"name": "d", "port": 5, "protocol": "QUIC"},
                {"name": "e", "port": -1},
            ],
        }, "status": {"loadBalancer": {"ingress": [
            {"ip": "192.0.2.7"}, {"ip": "192.0.2.8", "ipMode": "Proxy"}, {"hostname": "x"}, {"ip": "y"},
        ]}}}),
        json!({"kind": "Service", "metadata": {"name": "odd", "namespace": "shop"}, "spec": {
            "clusterIP": "10.96.7.2", "sessionAffinity": "Sticky", "internalTrafficPolicy": "Nearby",
            "ports": [{"port": 1}],
        }}),
        json!({"kind": "Service", "metadata": {"name": "without", "namespace": "shop"}, "spec": {}}),
        json!({"kind": "Service", "metadata": {"name": "external", "namespace": "shop"}, "spec": {
            "type": "ExternalName", "externalName": "example.com",
        }}),
        json!({"kind": "EndpointSlice", "metadata": {
            "name": "all-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "all"},
            "annotations": {
                "endpoints.kubernetes.io/last-change-trigger-time": "2026-01-02T03:04:05.5Z",
                "service.cilium.io/weight": "3", "pointsman.io/weights": "10.1.0.2=5,x",
            },
        }, "addressType": "IPv4", "ports": [
            {"name": "a", "port": 8080, "protocol": "TCP"}, {"name": "b"}, {"port": 5}, {"name": "", "port": 99999},
        ], "endpoints": [
            {"addresses": ["10.1.0.1"], "conditions": {"ready": true}, "nodeName": "node-1", "zone": "z",
             "hints": {"forZones": [{"name": "a"}], "forNodes": [{"name": "node-1"}, {"name": "node-2"}]}},
            {"addresses": ["10.1.0.2", "10.1.0.3"], "conditions": {"ready": false, "serving": true, "terminating": true}},
            {"addresses": []}, {"addresses": ["fd00::1"]}, {"addresses": ["x"]},
            {"addresses": ["10.1.0.4"], "conditions": {}, "hints": {}},
        ]}),
        json!({"kind": "EndpointSlice", "metadata": {
            "name": "names", "namespace": "shop", "labels": {"kubernetes.io/service-name": "all"},
        }, "addressType": "FQDN", "endpoints": [{"addresses": ["example.com"]}]}),
        json!({"kind": "EndpointSlice", "metadata": {
            "name": "odd", "namespace": "shop", "labels": {"kubernetes.io/service-name": "all"},
        }, "addressType": "IPv7"}),
        json!({"kind": "ServiceCIDR", "metadata": {"name": "odd"}, "spec": {"cidrs": ["10.96.0.0/12", "x"]}}),
        json!({"kind": "Node", "metadata": {
            "name": "node-1", "deletionTimestamp": "2026-01-02T03:04:05Z",
            "labels": {"topology.kubernetes.io/zone": "a"},
        }, "spec": {
            "podCIDR": "10.244.0.0/24", "podCIDRs": ["10.244.0.0/24", "fd00:244::/64"],
            "taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}],
        }, "status": {"addresses": [
            {"type": "ExternalIP", "address": "192.0.2.99"}, {"type": "InternalIP", "address": "172.18.0.2"},
            {"type": "InternalIP", "address": "x"}, {"type": "Hostname", "address": "node-1"},
        ]}}),
    ];
    for object in &mut objects {
        object["apiVersion"] = json!("v1");
    }
    objects
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn m2_objects_mean_the_same_in_protobuf_and_in_json() {
    let host = Host::new();
    let server = ApiServer::start(&host, [golden(), odd()].concat());
    let [protobuf, json] = [cluster::Format::Protobuf, cluster::Format::Json]
        .map(|format| told(&host, &server, format));
    assert!(protobuf.len() > 60, "{protobuf:?}");
    let differences: Vec<_> = protobuf.symmetric_difference(&json).collect();
    assert!(differences.is_empty(), "{differences:#?}");
    let formats: BTreeSet<_> = server
        .requests()
        .iter()
        .map(|request| format!("{:?}", request.format))
        .collect();
    assert_eq!(formats.len(), 2, "{formats:?}");
}
