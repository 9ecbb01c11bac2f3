//! The chains that are always there, and the kernel's chains that lead to them.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::IpNetwork;

use super::chain::{Chain, comment};
use super::chain_names::{FORWARD, POSTROUTING, SERVICES};
use super::record::NAT;
use super::saved;
use super::spelling;
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
const LOCALNET: &str = "POINTSMAN-LOCALNET";

/// A rule in a chain of the kernel's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hook {
    chain: &'static str,
    matches: &'static str,
    target: &'static str,
}

impl Hook {
    /// What it is, without its chain.
    fn rule(&self) -> String {
        let comment = comment("kubernetes service portals, by pointsman");
        format!("{}{comment} -j {}", self.matches, self.target)
    }

    /// As it is listed, after `-A`.
    pub(super) fn listed(&self) -> String {
        format!("{} {}", self.chain, self.rule())
    }

    /// The same as the first rule of its chain, after `-I`.
    pub(super) fn first(&self) -> String {
        format!("{} 1 {}", self.chain, self.rule())
    }

    /// Whether a listed rule leads where this one does.
    pub(super) fn is_like(&self, listed: &str) -> bool {
        listed.split(' ').next() == Some(self.chain)
            && saved::target_of(listed) == Some(self.target)
    }
}

const NEW: &str = "-m conntrack --ctstate NEW ";
/// What has another destination already is not what was refused here, whatever its destination is now.
const TRANSLATED: &str = "-m conntrack --ctstate DNAT -j RETURN";

const fn hook(chain: &'static str, matches: &'static str, target: &'static str) -> Hook {
    Hook {
        chain,
        matches,
        target,
    }
}

/// The rules that lead to our chains of a table.
pub(super) fn hooks(table: usize, family: Family) -> Vec<Hook> {
    if table == NAT {
        return vec![
            hook("PREROUTING", "", SERVICES),
            hook("OUTPUT", "", SERVICES),
            hook("POSTROUTING", "", POSTROUTING),
        ];
    }
    let mut hooks = vec![
        hook("INPUT", NEW, INPUT),
        hook("FORWARD", "", FORWARD),
        hook("OUTPUT", NEW, REFUSE),
    ];
    if family == Family::V4 {
        hooks.push(hook("INPUT", "! -s 127.0.0.0/8 -d 127.0.0.0/8 ", LOCALNET));
    }
    hooks
}

/// What the chains that are always there depend on.
pub(super) struct Base<'a> {
    pub(super) family: Family,
    pub(super) mark: u32,
    pub(super) drop_invalid: bool,
    /// `NodePort`s are accepted on all addresses of the node but loopback.
    pub(super) everywhere: bool,
    /// So are they on 127.0.0.1.
    pub(super) localhost: bool,
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
        let mut input = vec![TRANSLATED.to_owned(), format!("-j {REFUSED}")];
        input.extend(self.to_node(REFUSED_NODE_PORTS));
        let mut refuse = vec![TRANSLATED.to_owned(), format!("-j {REFUSED}")];
        let ranges = self.service_cidrs.iter();
        refuse.extend(ranges.map(|range| format!("{}-j DROP", spelling::network("-d", *range))));
        let mut forward = vec!["-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT".to_owned()];
        if self.drop_invalid {
            // Such a packet would leave untranslated, and its receiver would end the connection.
            forward.push("-m conntrack --ctstate INVALID -j DROP".to_owned());
        }
        forward.push(format!("{NEW}-j {REFUSE}"));
        forward.push(format!("-m mark --mark {mark:#x}/{mark:#x} -j ACCEPT"));
        let mut chains = vec![
            chain(INPUT, input),
            chain(REFUSE, refuse),
            chain(FORWARD, forward),
        ];
        if self.family == Family::V4 {
            // With `route_localnet` a neighbour's packet would reach what listens on loopback alone
            // (CVE-2020-8558). It may be set whether we need it or not.
            let unasked = "-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP".to_owned();
            chains.push(chain(LOCALNET, vec![unasked]));
        }
        chains
    }

    /// What goes to an address of the node that accepts `NodePort`s.
    fn to_node(&self, target: &str) -> Vec<String> {
        if self.everywhere && self.localhost {
            return vec![format!("-m addrtype --dst-type LOCAL -j {target}")];
        }
        if self.everywhere {
            let loopback = match self.family {
                Family::V4 => "127.0.0.0/8",
                Family::V6 => "::1/128",
            };
            return vec![format!(
                "! -d {loopback} -m addrtype --dst-type LOCAL -j {target}"
            )];
        }
        let localhost = self.localhost.then_some(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let addresses = self.node_addresses.iter().copied().chain(localhost);
        addresses
            .map(|address| {
                let to = spelling::network("-d", IpNetwork::from(address));
                format!("{to}-j {target}")
            })
            .collect()
    }
}

fn chain(name: &str, rules: Vec<String>) -> Chain {
    Chain {
        name: name.to_owned(),
        rules,
    }
}
