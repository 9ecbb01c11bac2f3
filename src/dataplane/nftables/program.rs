//! The program's fixed chains around the choice of an endpoint: who is let in, what is refused,
//! whose source is translated. The choice itself is in `choice`.
//!
//! Every base chain is of `type nat`, which sees a connection's first packet only: an established
//! packet passes none of our rules. What the rules must do to packets is `docs/semantics.md`'s section E;
//! why they are shaped so is DESIGN.md's section 1.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use super::numbers::OURS;
use super::sets::SetId;
use super::sources;
use super::statement::{Base, Chain, Hook, Load, Priority, Rule, Statement};
use crate::core::model::{Family, PerFamily};

/// The name of our table in each family.
pub(crate) const TABLE: &str = "pointsman";

/// How packets of pods on this cluster are recognised (`detectLocalMode`), in one family.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum LocalDetector {
    /// They are not: nobody counts as a pod, and `ClusterIP` traffic is never masqueraded.
    #[default]
    None,
    /// By their source address.
    Network(IpNetwork),
    /// By the interface that they come in by.
    Interface(String),
    /// By the first characters of the interface that they come in by.
    InterfacePrefix(String),
}

/// What the program depends on besides the cluster's objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramConfig {
    /// The bit of the packet mark that asks for masquerading, 0 to 31.
    pub masquerade_bit: u8,
    /// Whether `ClusterIP` traffic of pods is masqueraded too.
    pub masquerade_all: bool,
    /// How pods are recognised.
    pub local_detector: PerFamily<LocalDetector>,
    /// Whether `NodePort`s are accepted on every local address but loopback, or only on those
    /// in the `nodeport-ips` set.
    pub node_ports_everywhere: PerFamily<bool>,
    /// Which families are programmed.
    pub families: Vec<Family>,
}

impl Default for ProgramConfig {
    fn default() -> Self {
        Self {
            masquerade_bit: 14,
            masquerade_all: false,
            local_detector: PerFamily::default(),
            node_ports_everywhere: PerFamily::default(),
            families: Family::BOTH.to_vec(),
        }
    }
}

impl ProgramConfig {
    pub(super) const fn mark(&self) -> u32 {
        1u32.wrapping_shl(self.masquerade_bit as u32)
    }
}

const DSTNAT: i32 = -100;
const SRCNAT: i32 = 100;
/// Source ranges are checked before anybody translates the destination.
const BEFORE_DSTNAT: i32 = DSTNAT - 10;
/// What nobody has translated is refused.
const AFTER_DSTNAT: i32 = DSTNAT + 10;

pub(super) const DESTINATION: [Load; 3] = [
    Load::DestinationAddress,
    Load::Protocol,
    Load::DestinationPort,
];
pub(super) const NODE_PORT: [Load; 2] = [Load::Protocol, Load::DestinationPort];

/// The program of one family.
pub(crate) struct Program<'a> {
    pub(super) config: &'a ProgramConfig,
    pub(super) family: Family,
}

impl<'a> Program<'a> {
    pub(crate) const fn new(config: &'a ProgramConfig, family: Family) -> Self {
        Self { config, family }
    }

    /// The chains that every ruleset has. A chain comes after those that it leads to.
    pub(crate) fn fixed_chains(&self) -> Vec<Chain> {
        let mut chains = self.choice();
        chains.extend([
            sources::check_source(self.family, &BTreeSet::new()),
            sources::source_ranges(),
            self.no_endpoints(),
            Self::unused_addresses("unused-addresses", true),
            Self::unused_addresses("unused-addresses-output", false),
        ]);
        let jumps = |chains: &[&str]| {
            let jump = |chain: &&str| vec![Statement::Jump((*chain).to_owned())];
            chains.iter().map(jump).collect::<Vec<Rule>>()
        };
        let mut base = |name: &str, hook, priority, rules| {
            chains.push(Chain {
                name: name.to_owned(),
                base: Some(Base { hook, priority }),
                rules,
            });
        };
        for (hook, unused) in [
            (Hook::Prerouting, "unused-addresses"),
            (Hook::Output, "unused-addresses-output"),
        ] {
            let name = |what: &str| format!("{what}-{}", hook.name());
            let ranges = jumps(&["source-ranges"]);
            base(&name("guard"), hook, BEFORE_DSTNAT, ranges);
            base(&name("nat"), hook, DSTNAT, jumps(&["services"]));
            let refusals = jumps(&["no-endpoints", unused]);
            base(&name("refuse"), hook, AFTER_DSTNAT, refusals);
        }
        let masquerading = self.masquerading();
        base("nat-postrouting", Hook::Postrouting, SRCNAT, masquerading);
        chains
    }

    /// Matches packets to an address that accepts `NodePort`s.
    pub(super) fn node_port_condition(&self) -> Rule {
        let load = Load::DestinationAddress;
        if !*self.config.node_ports_everywhere.get(self.family) {
            return vec![Statement::InSet {
                key: vec![load],
                set: SetId::NodePortIps,
                negate: false,
            }];
        }
        let loopback = match self.family {
            Family::V4 => IpNetwork::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8),
            Family::V6 => IpNetwork::new(IpAddr::V6(Ipv6Addr::LOCALHOST), 128),
        };
        let mut rule = vec![Statement::AddressIsLocal {
            load,
            negate: false,
        }];
        rule.extend(loopback.ok().map(|network| Statement::AddressIn {
            load,
            network,
            negate: true,
        }));
        rule
    }

    fn no_endpoints(&self) -> Chain {
        let refuse = |key: &[Load], set| {
            let key = key.to_vec();
            let negate = false;
            vec![Statement::InSet { key, set, negate }, Statement::Reject]
        };
        let node_ports = refuse(&NODE_PORT, SetId::NoEndpointsNodePorts);
        let rules = vec![
            refuse(&DESTINATION, SetId::NoEndpointsIps),
            [self.node_port_condition(), node_ports].concat(),
        ];
        Chain::regular("no-endpoints", rules)
    }

    /// Undefined ports of `ClusterIP`s and unused addresses. What comes in for an address of this
    /// node's own is left to whoever has put it there, a DNS cache for example.
    fn unused_addresses(name: &str, elsewhere_only: bool) -> Chain {
        let rule = |set, verdict| {
            let load = Load::DestinationAddress;
            let mut rule = vec![Statement::InSet {
                key: vec![load],
                set,
                negate: false,
            }];
            if elsewhere_only {
                rule.push(Statement::AddressIsLocal { load, negate: true });
            }
            rule.push(verdict);
            rule
        };
        let rules = vec![
            rule(SetId::ClusterIps, Statement::Reject),
            rule(SetId::ServiceCidrs, Statement::Drop),
        ];
        Chain::regular(name, rules)
    }

    fn masquerading(&self) -> Vec<Rule> {
        let mark = self.config.mark();
        vec![
            // Schedulers and VLANs read the priority.
            vec![
                Statement::PriorityIs {
                    mask: OURS,
                    value: OURS,
                },
                Statement::SetPriority(Priority::Number(0)),
            ],
            vec![
                Statement::Marked(mark),
                Statement::Unmark(mark),
                Statement::Masquerade,
            ],
            vec![
                Statement::DestinationTranslated,
                Statement::InSet {
                    key: vec![
                        Load::SourceAddress,
                        Load::DestinationAddress,
                        Load::Protocol,
                        Load::DestinationPort,
                    ],
                    set: SetId::Hairpin,
                    negate: false,
                },
                Statement::Masquerade,
            ],
        ]
    }
}
