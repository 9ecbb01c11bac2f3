//! From `Node`s and `ServiceCIDR`s to the model (docs/semantics.md, A3, E16, I3).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use compact_str::CompactString;
use ipnetwork::IpNetwork;

use super::objects::{self, GOING_TAINT, ZONE_LABEL};
use super::parse;
use super::report::Reporter;
use crate::core::model::{Name, Node};

pub(super) fn node(object: &objects::Node, report: &mut Reporter<'_>) -> Node {
    let mut addresses = Vec::new();
    for kind in ["InternalIP", "ExternalIP"] {
        for (index, address) in object.status.addresses.iter().enumerate() {
            if address.type_ != kind {
                continue;
            }
            match parse::address(&address.address) {
                Some(address) => addresses.push(address),
                None => report.warn(
                    format!("status.addresses[{index}].address"),
                    format!("{:?} is not an IP address; it is left out", address.address),
                ),
            }
        }
    }
    let spec = &object.spec;
    let pod_cidrs = if spec.pod_cidrs.is_empty() {
        let single = spec.pod_cidr.iter().filter(|range| !range.is_empty());
        let single: Vec<CompactString> = single.cloned().collect();
        parsed_networks("spec.podCIDR", &single, report)
    } else {
        parsed_networks("spec.podCIDRs", &spec.pod_cidrs, report)
    };
    Node {
        name: Name::from(object.metadata.name.as_str()),
        zone: object
            .metadata
            .labels
            .text(ZONE_LABEL)
            .filter(|zone| !zone.is_empty())
            .map(Name::from),
        addresses,
        pod_cidrs,
        eligible: object.metadata.deletion_timestamp.is_none()
            && spec.taints.iter().all(|taint| taint.key != GOING_TAINT),
    }
}

/// What every node has.
const LOOPBACK: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::LOCALHOST),
    IpAddr::V6(Ipv6Addr::LOCALHOST),
];

/// Where Services have their addresses. What none has of them is refused: with loopback among them, a node could not
/// hear any more that they have been corrected.
pub(super) fn service_ranges(
    object: &objects::ServiceCidr,
    report: &mut Reporter<'_>,
) -> Vec<IpNetwork> {
    let mut ranges = parsed_networks("spec.cidrs", &object.spec.cidrs, report);
    ranges.retain(|range| {
        let is_ours = LOOPBACK.into_iter().any(|address| range.contains(address));
        if is_ours {
            report.warn(
                "spec.cidrs",
                format!("{range} has loopback addresses in it; it is left out"),
            );
        }
        !is_ours
    });
    ranges
}

pub(super) fn parsed_networks(
    field: &str,
    texts: &[CompactString],
    report: &mut Reporter<'_>,
) -> Vec<IpNetwork> {
    let mut networks = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        match parse::network(text.trim()) {
            Some(network) => networks.push(network),
            None => report.warn(
                format!("{field}[{index}]"),
                format!("{text:?} is not a network in CIDR notation; it is left out"),
            ),
        }
    }
    networks
}
