//! The chains that are always there, and the kernel's chains that lead to them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::chain::Chain;
use super::chain_names::{FORWARD, POSTROUTING, SERVICES};
use crate::core::model::Family;

/// Roots of trees.
pub(super) const VIPS: &str = "POINTSMAN-VIPS";
pub(super) const NODE_PORTS: &str = "POINTSMAN-NODEPORTS";
pub(super) const HAIRPIN: &str = "POINTSMAN-HAIRPIN";
pub(super) const REFUSED: &str = "POINTSMAN-REFUSED";
pub(super) const REFUSED_NODE_PORTS: &str = "POINTSMAN-REFUSED-NODEPORTS";
/// What else there is in the filter table.
const INPUT: &str = "POINTSMAN-INPUT";
const REFUSE: &str = "POINTSMAN-REFUSE";

/// A rule in a chain of the kernel's.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hook {
    pub(super) chain: &'static str,
    pub(super) matches: &'static str,
    pub(super) target: &'static str,
}

const NEW: &str = "-m conntrack --ctstate NEW ";

const fn hook(chain: &'static str, matches: &'static str, target: &'static str) -> Hook {
    Hook {
        chain,
        matches,
        target,
    }
}

pub(super) const NAT_HOOKS: &[Hook] = &[
    hook("PREROUTING", "", SERVICES),
    hook("OUTPUT", "", SERVICES),
    hook("POSTROUTING", "", POSTROUTING),
];
pub(super) const FILTER_HOOKS: &[Hook] = &[
    hook("INPUT", NEW, INPUT),
    hook("FORWARD", "", FORWARD),
    hook("OUTPUT", NEW, REFUSE),
];

/// What the chains that are always there depend on.
pub(super) struct Base<'a> {
    pub(super) family: Family,
    pub(super) mark: u32,
    pub(super) drop_invalid: bool,
    /// `NodePort`s are accepted on all addresses of the node but loopback.
    pub(super) everywhere: bool,
    pub(super) node_addresses: &'a BTreeSet<IpAddr>,
    pub(super) service_cidrs: &'a BTreeSet<IpNetwork>,
}

impl Base<'_> {
    pub(super) fn nat(&self) -> Vec<Chain> {
        let mark = self.mark;
        let mut services = vec![format!("-j {VIPS}")];
        services.extend(self.to_node(NODE_PORTS));
        vec![
            chain(SERVICES, services),
            chain(
                POSTROUTING,
                vec![
                    format!("-m conntrack --ctstate DNAT -j {HAIRPIN}"),
                    format!("-m mark ! --mark {mark:#x}/{mark:#x} -j RETURN"),
                    // Who masquerades in a tunnel that this goes through looks at the same bit.
                    format!("-j MARK --set-xmark {mark:#x}/0x0"),
                    "-j MASQUERADE --random-fully".to_owned(),
                ],
            ),
        ]
    }

    pub(super) fn filter(&self) -> Vec<Chain> {
        let mark = self.mark;
        let mut input = vec![format!("-j {REFUSED}")];
        input.extend(self.to_node(REFUSED_NODE_PORTS));
        let mut refuse = vec![format!("-j {REFUSED}")];
        let ranges = self.service_cidrs.iter();
        refuse.extend(ranges.map(|network| format!("-d {network} -j DROP")));
        let mut forward = vec!["-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT".to_owned()];
        if self.drop_invalid {
            // Such a packet would leave untranslated, and its receiver would end the connection.
            forward.push("-m conntrack --ctstate INVALID -j DROP".to_owned());
        }
        forward.push(format!("{NEW}-j {REFUSE}"));
        forward.push(format!("-m mark --mark {mark:#x}/{mark:#x} -j ACCEPT"));
        vec![
            chain(INPUT, input),
            chain(REFUSE, refuse),
            chain(FORWARD, forward),
        ]
    }

    /// What goes to an address of the node that accepts `NodePort`s.
    fn to_node(&self, target: &str) -> Vec<String> {
        if self.everywhere {
            let loopback = match self.family {
                Family::V4 => "127.0.0.0/8",
                Family::V6 => "::1/128",
            };
            return vec![format!(
                "! -d {loopback} -m addrtype --dst-type LOCAL -j {target}"
            )];
        }
        let addresses = self.node_addresses.iter();
        addresses
            .map(|address| format!("-d {address} -j {target}"))
            .collect()
    }
}

fn chain(name: &str, rules: Vec<String>) -> Chain {
    Chain {
        name: name.to_owned(),
        rules,
    }
}
