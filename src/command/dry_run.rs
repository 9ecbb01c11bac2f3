//! What a dry run prints: the same compilation as for the kernel, as text.

use std::net::IpAddr;

use serde::Serialize;

use crate::agent::reconciler::Desired;
use crate::core::ir::{Action, Destination, Draw, Forwarding, Host, Shared, SourcePolicy, Sources};
use crate::core::model::{Endpoints, Family};
use crate::dataplane::{Backend, Options};

/// The ruleset, as the tool of the backend takes it.
#[must_use]
pub fn rules<B: Backend>(config: &Options, desired: &Desired) -> String {
    B::render(config, &desired.engine().wanted_entries())
}

/// The intermediate representation as JSON. Its format is documented in `ARCHITECTURE.md`.
///
/// # Errors
///
/// Never in practice: the value holds nothing that JSON cannot.
pub fn json(desired: &Desired) -> serde_json::Result<String> {
    let engine = desired.engine();
    let mut document = Document {
        destinations: engine
            .wanted_destinations()
            .into_iter()
            .map(|(destination, forwarding)| destination_json(destination, forwarding))
            .collect(),
        ..Document::default()
    };
    for shared in engine.wanted_shared() {
        match shared {
            Shared::ClusterIp(address) => document.cluster_ips.push(address),
            Shared::ServiceCidr(network) => document.service_cidrs.push(network.to_string()),
            Shared::NodePortAddress(address) => document.node_port_addresses.push(address),
            Shared::Hairpin { protocol, endpoint } => document.hairpins.push(HairpinJson {
                protocol: protocol.name(),
                endpoint: endpoint.to_string(),
            }),
        }
    }
    serde_json::to_string_pretty(&document)
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    destinations: Vec<DestinationJson>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Vec<IpAddr>,
    #[serde(rename = "serviceCIDRs")]
    service_cidrs: Vec<String>,
    hairpins: Vec<HairpinJson>,
    node_port_addresses: Vec<IpAddr>,
}

#[derive(Debug, Serialize)]
struct HairpinJson {
    protocol: &'static str,
    endpoint: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct DestinationJson {
    /// `null` for a `NodePort`.
    address: Option<IpAddr>,
    family: &'static str,
    protocol: &'static str,
    port: u16,
    service: String,
    action: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoints: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    external_endpoints: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    draw: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    affinity_seconds: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    allowed_sources: Option<Vec<String>>,
}

fn destination_json(destination: Destination, forwarding: &Forwarding) -> DestinationJson {
    let texts = |list: &Endpoints| list.iter().map(ToString::to_string).collect();
    let mut json = DestinationJson {
        address: match destination.host {
            Host::Address(address) => Some(address),
            Host::Node(_) => None,
        },
        family: Family::name(destination.family()),
        protocol: destination.protocol.name(),
        port: destination.port,
        service: forwarding.label.as_str().to_owned(),
        action: "reject",
        policy: None,
        endpoints: None,
        external_endpoints: None,
        draw: None,
        affinity_seconds: None,
        allowed_sources: match &forwarding.sources {
            Sources::Any | Sources::Prepared(_) => None,
            Sources::Only(networks) => Some(networks.iter().map(ToString::to_string).collect()),
        },
    };
    match &forwarding.action {
        Action::Reject => {}
        Action::Drop => json.action = "drop",
        Action::Balance {
            policy,
            primary,
            external,
            draw,
            affinity,
        } => {
            json.action = "balance";
            json.policy = Some(match policy {
                SourcePolicy::ClusterIp => "ClusterIP",
                SourcePolicy::External => "External",
                SourcePolicy::ExternalLocal => "ExternalLocal",
            });
            json.endpoints = Some(texts(primary));
            json.external_endpoints = external.as_ref().map(texts);
            json.draw = (*draw != Draw::Random).then(|| draw.words());
            json.affinity_seconds = *affinity;
        }
    }
    json
}
