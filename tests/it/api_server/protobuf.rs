//! What the API server says in protobuf: objects as tests write them, in the messages of another author.

use std::collections::BTreeMap;

use k8s_pb::api::{core::v1 as core, discovery::v1 as discovery, networking::v1 as networking};
use k8s_pb::apimachinery::pkg::apis::meta::v1 as meta;
use k8s_pb::apimachinery::pkg::runtime;
use prost::Message;
use serde_json::Value;

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

/// As the real server has it: what is no pointer is said though it is empty.
fn said(value: &Value) -> Option<String> {
    Some(text(value).unwrap_or_default())
}

fn texts(value: &Value) -> Vec<String> {
    each(value).filter_map(text).collect()
}

fn number(value: &Value) -> Option<i32> {
    value
        .as_i64()
        .map(|number| number.try_into().expect("an int32"))
}

fn each(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn map(value: &Value) -> BTreeMap<String, String> {
    let all = value.as_object().into_iter().flatten();
    all.filter_map(|(name, value)| Some((name.clone(), text(value)?)))
        .collect()
}

fn time(value: &Value) -> Option<meta::Time> {
    let at: jiff::Timestamp = value.as_str()?.parse().ok()?;
    Some(meta::Time {
        seconds: Some(at.as_second()),
        nanos: Some(at.subsec_nanosecond()),
    })
}

fn metadata(object: &Value) -> Option<meta::ObjectMeta> {
    let of = &object["metadata"];
    Some(meta::ObjectMeta {
        name: said(&of["name"]),
        generate_name: said(&of["generateName"]),
        namespace: said(&of["namespace"]),
        uid: Some("6b7f9c5d-0000-4000-8000-000000000000".to_owned()),
        resource_version: said(&of["resourceVersion"]),
        generation: Some(1),
        // As Go has it: what was never set is said, and empty.
        creation_timestamp: Some(time(&of["creationTimestamp"]).unwrap_or_default()),
        deletion_timestamp: time(&of["deletionTimestamp"]),
        labels: map(&of["labels"]),
        annotations: map(&of["annotations"]),
        // Half of a real object, and nothing to a proxy.
        managed_fields: vec![meta::ManagedFieldsEntry {
            manager: Some("a-controller".to_owned()),
            fields_v1: Some(meta::FieldsV1 {
                raw: Some(b"{\"f:spec\":{}}".to_vec()),
            }),
            ..meta::ManagedFieldsEntry::default()
        }],
        ..meta::ObjectMeta::default()
    })
}

fn service(object: &Value) -> core::Service {
    let spec = &object["spec"];
    let ports = each(&spec["ports"]).map(|port| core::ServicePort {
        name: said(&port["name"]),
        protocol: said(&port["protocol"]),
        port: number(&port["port"]),
        node_port: number(&port["nodePort"]).or(Some(0)),
        ..core::ServicePort::default()
    });
    let ingress = each(&object["status"]["loadBalancer"]["ingress"]);
    let ingress = ingress.map(|ingress| core::LoadBalancerIngress {
        ip: said(&ingress["ip"]),
        hostname: said(&ingress["hostname"]),
        ip_mode: text(&ingress["ipMode"]),
        ..core::LoadBalancerIngress::default()
    });
    let affinity = spec.get("sessionAffinityConfig");
    let client_ip = affinity.and_then(|config| config.get("clientIP"));
    let client_ip = client_ip.map(|config| core::ClientIpConfig {
        timeout_seconds: number(&config["timeoutSeconds"]),
    });
    core::Service {
        metadata: metadata(object),
        spec: Some(core::ServiceSpec {
            ports: ports.collect(),
            selector: map(&spec["selector"]),
            cluster_ip: said(&spec["clusterIP"]),
            cluster_ips: texts(&spec["clusterIPs"]),
            r#type: said(&spec["type"]),
            external_ips: texts(&spec["externalIPs"]),
            session_affinity: said(&spec["sessionAffinity"]),
            load_balancer_source_ranges: texts(&spec["loadBalancerSourceRanges"]),
            external_name: said(&spec["externalName"]),
            external_traffic_policy: said(&spec["externalTrafficPolicy"]),
            health_check_node_port: number(&spec["healthCheckNodePort"]).or(Some(0)),
            session_affinity_config: affinity.map(|_| core::SessionAffinityConfig { client_ip }),
            ip_families: texts(&spec["ipFamilies"]),
            internal_traffic_policy: text(&spec["internalTrafficPolicy"]),
            ..core::ServiceSpec::default()
        }),
        status: Some(core::ServiceStatus {
            load_balancer: Some(core::LoadBalancerStatus {
                ingress: ingress.collect(),
            }),
            ..core::ServiceStatus::default()
        }),
    }
}

fn slice(object: &Value) -> discovery::EndpointSlice {
    let ports = each(&object["ports"]).map(|port| discovery::EndpointPort {
        name: text(&port["name"]),
        protocol: text(&port["protocol"]),
        port: number(&port["port"]),
        ..discovery::EndpointPort::default()
    });
    let endpoints = each(&object["endpoints"]).map(|endpoint| {
        let conditions = &endpoint["conditions"];
        let hints = endpoint.get("hints").map(|hints| discovery::EndpointHints {
            for_zones: each(&hints["forZones"])
                .map(|zone| discovery::ForZone {
                    name: said(&zone["name"]),
                })
                .collect(),
            for_nodes: each(&hints["forNodes"])
                .map(|node| discovery::ForNode {
                    name: said(&node["name"]),
                })
                .collect(),
        });
        discovery::Endpoint {
            addresses: texts(&endpoint["addresses"]),
            conditions: Some(discovery::EndpointConditions {
                ready: conditions["ready"].as_bool(),
                serving: conditions["serving"].as_bool(),
                terminating: conditions["terminating"].as_bool(),
            }),
            node_name: text(&endpoint["nodeName"]),
            zone: text(&endpoint["zone"]),
            hints,
            ..discovery::Endpoint::default()
        }
    });
    discovery::EndpointSlice {
        metadata: metadata(object),
        address_type: said(&object["addressType"]),
        endpoints: endpoints.collect(),
        ports: ports.collect(),
    }
}

fn node(object: &Value) -> core::Node {
    let (spec, status) = (&object["spec"], &object["status"]);
    let taints = each(&spec["taints"]).map(|taint| core::Taint {
        key: said(&taint["key"]),
        effect: said(&taint["effect"]),
        ..core::Taint::default()
    });
    let addresses = each(&status["addresses"]).map(|address| core::NodeAddress {
        r#type: said(&address["type"]),
        address: said(&address["address"]),
    });
    core::Node {
        metadata: metadata(object),
        spec: Some(core::NodeSpec {
            pod_cidr: said(&spec["podCIDR"]),
            pod_cid_rs: texts(&spec["podCIDRs"]),
            taints: taints.collect(),
            ..core::NodeSpec::default()
        }),
        status: Some(core::NodeStatus {
            addresses: addresses.collect(),
            ..core::NodeStatus::default()
        }),
    }
}

fn service_cidr(object: &Value) -> networking::ServiceCIDR {
    networking::ServiceCIDR {
        metadata: metadata(object),
        spec: Some(networking::ServiceCIDRSpec {
            cidrs: texts(&object["spec"]["cidrs"]),
        }),
        ..networking::ServiceCIDR::default()
    }
}

fn status(object: &Value) -> meta::Status {
    meta::Status {
        metadata: Some(meta::ListMeta::default()),
        status: said(&object["status"]),
        message: said(&object["message"]),
        reason: said(&object["reason"]),
        code: number(&object["code"]),
        details: object.get("details").map(|details| meta::StatusDetails {
            causes: each(&details["causes"])
                .map(|cause| meta::StatusCause {
                    reason: said(&cause["reason"]),
                    message: said(&cause["message"]),
                    ..meta::StatusCause::default()
                })
                .collect(),
            ..meta::StatusDetails::default()
        }),
    }
}

fn list_metadata(list: &Value) -> Option<meta::ListMeta> {
    Some(meta::ListMeta {
        self_link: said(&Value::Null),
        resource_version: said(&list["metadata"]["resourceVersion"]),
        r#continue: said(&list["metadata"]["continue"]),
        ..meta::ListMeta::default()
    })
}

/// An object or a list as the answer to a request, if it can be said in protobuf.
pub(super) fn whole(object: &Value) -> Option<Vec<u8>> {
    let kind = object["kind"].as_str()?;
    let (metadata, items) = (list_metadata(object), each(&object["items"]));
    let raw = match kind {
        "Service" => service(object).encode_to_vec(),
        "EndpointSlice" => slice(object).encode_to_vec(),
        "Node" => node(object).encode_to_vec(),
        "ServiceCIDR" => service_cidr(object).encode_to_vec(),
        "Status" => status(object).encode_to_vec(),
        "ServiceList" => {
            let items = items.map(service).collect();
            core::ServiceList { metadata, items }.encode_to_vec()
        }
        "EndpointSliceList" => {
            let items = items.map(slice).collect();
            discovery::EndpointSliceList { metadata, items }.encode_to_vec()
        }
        "NodeList" => {
            let items = items.map(node).collect();
            core::NodeList { metadata, items }.encode_to_vec()
        }
        "ServiceCIDRList" => {
            let items = items.map(service_cidr).collect();
            networking::ServiceCIDRList { metadata, items }.encode_to_vec()
        }
        _ => return None,
    };
    let object = runtime::Unknown {
        type_meta: Some(runtime::TypeMeta {
            api_version: said(&object["apiVersion"]),
            kind: Some(kind.to_owned()),
        }),
        raw: Some(raw),
        content_encoding: Some(String::new()),
        content_type: Some(String::new()),
    };
    Some([b"k8s\0".as_slice(), &object.encode_to_vec()].concat())
}

/// An event of a watch with its length before it, if it can be said in protobuf.
pub(super) fn event(event: &Value) -> Option<Vec<u8>> {
    let event = meta::WatchEvent {
        r#type: Some(text(&event["type"])?),
        object: Some(runtime::RawExtension {
            raw: Some(whole(&event["object"])?),
        }),
    };
    let event = event.encode_to_vec();
    let length = u32::try_from(event.len()).ok()?;
    Some([length.to_be_bytes().as_slice(), &event].concat())
}
