//! From `EndpointSlice`s to the model (docs/semantics.md, A2, C, D).
//!
//! Pure, as `convert`, whose part this is: what cannot be used is left out with a warning.

use std::sync::Arc;

use super::balancing::SliceWeights;
use super::objects::{self, HEADLESS_LABEL, SERVICE_NAME_LABEL};
use super::parse::{self, port_number, protocol};
use super::report::Reporter;
use crate::core::model::{
    EndpointSlice, Family, Hint, Interner, Name, ObjectKey, SliceEndpoint, SlicePort, ZoneHints,
};

/// The slice, if a Service can use it.
pub(super) fn endpoint_slice(
    object: &objects::EndpointSlice,
    namespace: &Name,
    node_name: &str,
    names: &mut Interner,
    ports: &mut Interner<[SlicePort]>,
    report: &mut Reporter<'_>,
) -> Option<EndpointSlice> {
    let labels = &object.metadata.labels;
    let service = labels
        .text(SERVICE_NAME_LABEL)
        .filter(|name| !name.is_empty())?;
    if labels.text(HEADLESS_LABEL).is_some() {
        return None;
    }
    let family = match object.address_type.as_str() {
        "IPv4" => Family::V4,
        "IPv6" => Family::V6,
        "FQDN" => return None,
        other => {
            report.warn(
                "addressType",
                format!("{other:?} is none of IPv4, IPv6 and FQDN; the object is left out"),
            );
            return None;
        }
    };
    Some(EndpointSlice {
        service: ObjectKey {
            namespace: Arc::clone(namespace),
            name: names.intern(service),
        },
        family,
        ports: ports.intern(&*slice_ports(object, names, report)),
        endpoints: slice_endpoints(object, family, node_name, names, report).into(),
    })
}

fn slice_ports(
    object: &objects::EndpointSlice,
    names: &mut Interner,
    report: &mut Reporter<'_>,
) -> Vec<SlicePort> {
    let mut ports = Vec::with_capacity(object.ports.len());
    for (index, port) in object.ports.iter().enumerate() {
        // A port without a name or a number matches nothing. The API server fills in the name,
        // so only a manifest that never met it has none.
        let Some(name) = port.name.as_deref() else {
            report.warn(
                format!("ports[{index}].name"),
                "is missing; the port is left out (give \"\" to a port without a name)",
            );
            continue;
        };
        let number = match port.port {
            None | Some(0) => continue,
            Some(number) => number,
        };
        match (protocol(port.protocol.as_deref()), port_number(number)) {
            (Some(protocol), Some(port)) => ports.push(SlicePort {
                name: names.intern(name),
                protocol,
                port,
            }),
            (None, _) => report.warn(
                format!("ports[{index}].protocol"),
                format!(
                    "{:?} is none of TCP, UDP and SCTP; the port is left out",
                    port.protocol.as_deref().unwrap_or_default()
                ),
            ),
            (_, None) => report.warn(
                format!("ports[{index}].port"),
                format!("{number} is not between 1 and 65535; the port is left out"),
            ),
        }
    }
    ports
}

fn slice_endpoints(
    object: &objects::EndpointSlice,
    family: Family,
    node_name: &str,
    names: &mut Interner,
    report: &mut Reporter<'_>,
) -> Vec<SliceEndpoint> {
    let mut endpoints = Vec::with_capacity(object.endpoints.len());
    let mut last_zones: Option<ZoneHints> = None;
    let weights = SliceWeights::of(&object.metadata.annotations, report);
    for (index, endpoint) in object.endpoints.iter().enumerate() {
        let Some(text) = &endpoint.address else {
            continue;
        };
        let field = || format!("endpoints[{index}].addresses[0]");
        let Some(address) = parse::address(text) else {
            report.warn(
                field(),
                format!("{text:?} is not an IP address; the endpoint is left out"),
            );
            continue;
        };
        if Family::of(address) != family {
            report.warn(
                field(),
                format!("{text:?} is not an {family} address, as addressType says; the endpoint is left out"),
            );
            continue;
        }
        let weight = weights.weight(address);
        let zones = zone_hints(endpoint, &mut last_zones, names);
        endpoints.push(SliceEndpoint {
            address,
            ready: endpoint.conditions.ready.unwrap_or(true),
            serving: endpoint.conditions.serving.unwrap_or(true),
            terminating: endpoint.conditions.terminating.unwrap_or(false),
            local: endpoint.node_name.as_deref() == Some(node_name),
            node_hint: node_hint(endpoint, node_name),
            weight,
            zone_hints: zones,
        });
    }
    endpoints
}

/// Neighbouring endpoints mostly have the same hints: they share one list.
fn zone_hints(
    endpoint: &objects::Endpoint,
    last: &mut Option<ZoneHints>,
    names: &mut Interner,
) -> Option<ZoneHints> {
    let zones = &endpoint.hints.as_ref()?.for_zones;
    if zones.is_empty() {
        return None;
    }
    if let Some(last) = last
        && last.len() == zones.len()
        && last.iter().zip(zones).all(|(a, b)| **a == *b.name)
    {
        return Some(Arc::clone(last));
    }
    let list = zones.iter().map(|zone| names.intern(&zone.name));
    let list = ZoneHints::new(list.collect());
    *last = Some(Arc::clone(&list));
    Some(list)
}

fn node_hint(endpoint: &objects::Endpoint, node_name: &str) -> Hint {
    match &endpoint.hints {
        Some(hints) if hints.for_nodes.iter().any(|node| node.name == node_name) => Hint::Here,
        Some(hints) if !hints.for_nodes.is_empty() => Hint::Elsewhere,
        _ => Hint::None,
    }
}
