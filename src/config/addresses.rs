//! What the configuration says about addresses: of pods and of NodePorts.

use std::fmt;

use ipnetwork::IpNetwork;

use super::component_config::KubeProxyConfiguration;
use super::errors::UsageError;
use crate::core::compile::NodePortAddresses;
use crate::core::model::Family;
use crate::core::networks;

/// How pods are recognised, as far as flags can say it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum DetectLocal {
    ClusterCidr(Vec<IpNetwork>),
    NodeCidr,
    Interface(String),
    InterfacePrefix(String),
}

pub(super) fn network(field: impl fmt::Display, text: &str) -> Result<IpNetwork, UsageError> {
    // Without a prefix it would be read as a single address, which nobody means.
    text.parse()
        .ok()
        .filter(|_| text.contains('/'))
        .map(networks::canonical)
        .ok_or_else(|| {
            UsageError::field(
                field.to_string(),
                format!("{text:?} is not a network in CIDR notation, like 10.244.0.0/16"),
            )
        })
}

pub(super) fn node_port_addresses(
    raw: &KubeProxyConfiguration,
) -> Result<NodePortAddresses, UsageError> {
    let list = match raw.node_port_addresses.as_deref() {
        // Unset: what the mode that was asked for would do. An empty list says all.
        None if raw.mode == "nftables" => return Ok(NodePortAddresses::Primary),
        None | Some([]) => return Ok(NodePortAddresses::All),
        Some(list) => list,
    };
    let mut networks = Vec::new();
    for (index, text) in list.iter().enumerate() {
        let field = format!("nodePortAddresses[{index}]");
        let keyword = KEYWORDS.iter().find(|(keyword, _)| keyword == text);
        let Some((_, meant)) = keyword else {
            networks.push(network(field, text).map_err(|error| {
                let problem = format!("{}, and none of primary, localhost and all", error.problem);
                UsageError::field(error.name, problem)
            })?);
            continue;
        };
        if list.iter().take(index).any(|earlier| earlier == text) {
            return Err(UsageError::field(field, format!("{text} is given twice")));
        }
        for text in *meant {
            networks.push(network(&field, text)?);
        }
    }
    let primary = list.iter().any(|text| text == "primary");
    Ok(match (primary, networks.is_empty()) {
        (true, true) => NodePortAddresses::Primary,
        (true, false) => NodePortAddresses::PrimaryAnd(networks),
        (false, _) => NodePortAddresses::Networks(networks),
    })
}

/// What may stand for networks (KEP-6032), and for which.
const KEYWORDS: [(&str, &[&str]); 3] = [
    ("primary", &[]),
    ("localhost", &["127.0.0.0/8", "::1/128"]),
    ("all", &["0.0.0.0/0", "::/0"]),
];

pub(super) fn detect_local(raw: &KubeProxyConfiguration) -> Result<DetectLocal, UsageError> {
    let interface = |field: &str, name: &str| {
        // IFNAMSIZ, less the final NUL.
        let valid = !name.is_empty()
            && name.len() <= 15
            && name
                .chars()
                .all(|c| c.is_ascii_graphic() && !"\"\\/*".contains(c));
        if valid {
            Ok(name.to_owned())
        } else {
            Err(UsageError::field(
                field,
                format!(
                    "{name:?} is not an interface's name, which detectLocalMode {} needs",
                    raw.detect_local_mode
                ),
            ))
        }
    };
    let local = &raw.detect_local;
    match raw.detect_local_mode.as_str() {
        "NodeCIDR" => Ok(DetectLocal::NodeCidr),
        "BridgeInterface" => interface("detectLocal.bridgeInterface", &local.bridge_interface)
            .map(DetectLocal::Interface),
        "InterfaceNamePrefix" => interface(
            "detectLocal.interfaceNamePrefix",
            &local.interface_name_prefix,
        )
        .map(DetectLocal::InterfacePrefix),
        _ => cluster_cidrs(&raw.cluster_cidr).map(DetectLocal::ClusterCidr),
    }
}

pub(super) fn cluster_cidrs(text: &str) -> Result<Vec<IpNetwork>, UsageError> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let cidrs: Vec<IpNetwork> = text
        .split(',')
        .map(|text| network("clusterCIDR", text))
        .collect::<Result<_, _>>()?;
    let of = |wanted: Family| {
        cidrs
            .iter()
            .filter(|network| networks::family(**network) == wanted)
            .count()
    };
    if of(Family::V4) > 1 || of(Family::V6) > 1 {
        return Err(UsageError::field(
            "clusterCIDR",
            format!("{text:?} is neither one network nor one of each family"),
        ));
    }
    Ok(cidrs)
}
