//! The program: what rules are made of, and the fixed chains. The chains that shapes need are in
//! `shape_rules`.
//!
//! Rules are written once, here, as [`Statement`]s; `text` prints them and `netlink` encodes
//! them, and a test compares what the kernel makes of both. What they must do to packets is
//! SEMANTICS.md's section E; why they are shaped so is DESIGN.md's section 2.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use super::clients::ClientMap;
use super::sets::SetId;
use crate::model::{Family, PerFamily, Protocol};

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

/// A value that a rule loads from the packet or its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Load {
    /// The packet's source address.
    SourceAddress,
    /// The packet's destination address.
    DestinationAddress,
    /// The transport protocol.
    Protocol,
    /// The packet's destination port.
    DestinationPort,
    /// The source address of the connection's first packet.
    OriginalSourceAddress,
    /// The destination address of the connection's first packet.
    OriginalDestinationAddress,
    /// The destination port of the connection's first packet.
    OriginalDestinationPort,
    /// A random number in `offset..offset + modulus`.
    Random {
        /// How many there are.
        modulus: u32,
        /// The smallest.
        offset: u32,
    },
}

/// A step of a rule. A match that fails ends the rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Statement {
    /// The packet opens a connection.
    StateNew,
    /// The connection's destination has been translated.
    DestinationTranslated,
    /// The connection's destination has been translated, by this very packet: it is the first
    /// one, and no other has been seen of the connection.
    JustTranslated,
    /// The transport protocol is this one.
    ProtocolIs(Protocol),
    /// An address of the packet is inside a network, or is not.
    AddressIn {
        /// Source or destination.
        load: Load,
        /// The network.
        network: IpNetwork,
        /// Whether it must be outside.
        negate: bool,
    },
    /// An address of the packet is this node's.
    AddressIsLocal(Load),
    /// The packet came in by an interface, or did not.
    Interface {
        /// The name, or its first characters.
        name: String,
        /// Whether only the first characters count.
        prefix: bool,
        /// Whether it must be another one.
        negate: bool,
    },
    /// A set holds the key, or does not.
    InSet {
        /// The key.
        key: Vec<Load>,
        /// The set.
        set: SetId,
        /// Whether it must not.
        negate: bool,
    },
    /// The packet's mark has this bit.
    Marked(u32),
    /// Sets a bit of the packet's mark.
    Mark(u32),
    /// Flips a bit of the packet's mark.
    Unmark(u32),
    /// Does what a verdict map holds under the key.
    VerdictMap {
        /// The key.
        key: Vec<Load>,
        /// The map.
        map: SetId,
    },
    /// Translates the destination to what a map holds under the key.
    TranslateTo {
        /// The key.
        key: Vec<Load>,
        /// The map.
        map: SetId,
    },
    /// Writes the chosen endpoint under the connection's original key, for a time.
    Remember {
        /// The map, whose name says the timeout.
        map: ClientMap,
    },
    /// Translates the source to the outgoing interface's address, with a random port.
    Masquerade,
    /// Refuses with an ICMP port unreachable.
    Reject,
    /// Drops.
    Drop,
    /// Goes on in another chain and comes back.
    Jump(String),
    /// Goes on in another chain for good.
    Goto(String),
}

/// A rule: statements from left to right.
pub(crate) type Rule = Vec<Statement>;

/// What a base chain does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChainKind {
    /// `type filter`.
    Filter,
    /// `type nat`.
    Nat,
}

/// Where in the stack a base chain sits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    /// Packets from outside, before routing.
    Prerouting,
    /// Packets for this node.
    Input,
    /// Packets through this node.
    Forward,
    /// Packets from this node.
    Output,
    /// Packets that leave, after routing.
    Postrouting,
}

impl Hook {
    /// Its name in nft.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
        }
    }
}

/// A chain that the kernel calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Base {
    /// What it may do.
    pub(crate) kind: ChainKind,
    /// Where it is called.
    pub(crate) hook: Hook,
    /// In which order among others (`linux/netfilter_ipv4.h`, `enum nf_ip_hook_priorities`).
    pub(crate) priority: i32,
}

/// A chain and its rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chain {
    /// Its name.
    pub(crate) name: String,
    /// Where the kernel calls it, if it does.
    pub(crate) base: Option<Base>,
    /// Its rules.
    pub(crate) rules: Vec<Rule>,
}

const DSTNAT: i32 = -100;
const FILTER: i32 = 0;
const SRCNAT: i32 = 100;
/// Source ranges are checked before the destination is translated.
const BEFORE_DSTNAT: i32 = DSTNAT - 10;
/// Clients are remembered by the address that they have before masquerading.
const BEFORE_SRCNAT: i32 = SRCNAT - 1;

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

    /// The chains that every ruleset has. A chain comes after those that it jumps to.
    pub(crate) fn fixed_chains(&self) -> Vec<Chain> {
        let base = |name: &str, kind, hook, priority, rules| Chain {
            name: name.to_owned(),
            base: Some(Base {
                kind,
                hook,
                priority,
            }),
            rules,
        };
        let jump = |chain: &str| vec![Statement::Jump(chain.to_owned())];
        let jump_if_new =
            |chain: &str| vec![Statement::StateNew, Statement::Jump(chain.to_owned())];
        // A choice is remembered when it is made. What a client sends again while nobody
        // answers must not bring back an endpoint that has left meanwhile.
        let jump_to_remember = || {
            vec![
                Statement::JustTranslated,
                Statement::Jump("remember".to_owned()),
            ]
        };
        use ChainKind::{Filter, Nat};
        use Hook::{Forward, Input, Output, Postrouting, Prerouting};
        vec![
            self.services(),
            self.source_ranges(),
            self.no_endpoints(),
            self.unused_addresses(),
            self.remember(),
            base(
                "filter-prerouting",
                Filter,
                Prerouting,
                BEFORE_DSTNAT,
                vec![jump_if_new("source-ranges")],
            ),
            base(
                "filter-output-before-dnat",
                Filter,
                Output,
                BEFORE_DSTNAT,
                vec![jump_if_new("source-ranges")],
            ),
            base(
                "nat-prerouting",
                Nat,
                Prerouting,
                DSTNAT,
                vec![jump("services")],
            ),
            base("nat-output", Nat, Output, DSTNAT, vec![jump("services")]),
            base(
                "filter-input",
                Filter,
                Input,
                FILTER,
                vec![
                    jump_if_new("no-endpoints"),
                    [
                        vec![Statement::StateNew],
                        self.node_port_condition(),
                        vec![
                            Statement::InSet {
                                key: NODE_PORT.to_vec(),
                                set: SetId::NoEndpointsNodePorts,
                                negate: false,
                            },
                            Statement::Reject,
                        ],
                    ]
                    .concat(),
                    jump_to_remember(),
                ],
            ),
            base(
                "filter-forward",
                Filter,
                Forward,
                FILTER,
                vec![jump_if_new("no-endpoints"), jump_if_new("unused-addresses")],
            ),
            base(
                "filter-output",
                Filter,
                Output,
                FILTER,
                vec![jump_if_new("no-endpoints"), jump_if_new("unused-addresses")],
            ),
            base(
                "filter-postrouting",
                Filter,
                Postrouting,
                BEFORE_SRCNAT,
                vec![jump_to_remember()],
            ),
            base(
                "nat-postrouting",
                Nat,
                Postrouting,
                SRCNAT,
                self.masquerading(),
            ),
        ]
    }

    pub(super) fn regular(name: &str, rules: Vec<Rule>) -> Chain {
        Chain {
            name: name.to_owned(),
            base: None,
            rules,
        }
    }

    fn services(&self) -> Chain {
        Self::regular(
            "services",
            vec![
                vec![Statement::VerdictMap {
                    key: DESTINATION.to_vec(),
                    map: SetId::ServiceIps,
                }],
                [
                    self.node_port_condition(),
                    vec![Statement::VerdictMap {
                        key: NODE_PORT.to_vec(),
                        map: SetId::ServiceNodePorts,
                    }],
                ]
                .concat(),
            ],
        )
    }

    /// Matches packets to an address that accepts `NodePort`s.
    fn node_port_condition(&self) -> Rule {
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
        let mut rule = vec![Statement::AddressIsLocal(load)];
        rule.extend(loopback.ok().map(|network| Statement::AddressIn {
            load,
            network,
            negate: true,
        }));
        rule
    }

    fn source_ranges(&self) -> Chain {
        let mut with_source = DESTINATION.to_vec();
        with_source.push(Load::SourceAddress);
        Self::regular(
            "source-ranges",
            vec![vec![
                Statement::InSet {
                    key: DESTINATION.to_vec(),
                    set: SetId::GuardedIps,
                    negate: false,
                },
                Statement::InSet {
                    key: with_source,
                    set: SetId::AllowedSources,
                    negate: true,
                },
                Statement::Drop,
            ]],
        )
    }

    fn no_endpoints(&self) -> Chain {
        Self::regular(
            "no-endpoints",
            vec![vec![
                Statement::InSet {
                    key: DESTINATION.to_vec(),
                    set: SetId::NoEndpointsIps,
                    negate: false,
                },
                Statement::Reject,
            ]],
        )
    }

    fn unused_addresses(&self) -> Chain {
        let rule = |set, verdict| {
            vec![
                Statement::InSet {
                    key: vec![Load::DestinationAddress],
                    set,
                    negate: false,
                },
                verdict,
            ]
        };
        Self::regular(
            "unused-addresses",
            vec![
                rule(SetId::ClusterIps, Statement::Reject),
                rule(SetId::ServiceCidrs, Statement::Drop),
            ],
        )
    }

    /// nft gives a connection's original port its type only once the protocol is known, hence
    /// a rule for each.
    fn remember(&self) -> Chain {
        let by_address = [
            Load::OriginalDestinationAddress,
            Load::Protocol,
            Load::OriginalDestinationPort,
        ];
        let rule = |protocol, key: &[Load], map| {
            vec![
                Statement::ProtocolIs(protocol),
                Statement::VerdictMap {
                    key: key.to_vec(),
                    map,
                },
            ]
        };
        let rules = Protocol::ALL
            .into_iter()
            .flat_map(|protocol| {
                [
                    rule(protocol, &by_address, SetId::AffinityIps),
                    rule(protocol, &by_address[1..], SetId::AffinityNodePorts),
                ]
            })
            .collect();
        Self::regular("remember", rules)
    }

    fn masquerading(&self) -> Vec<Rule> {
        let mark = self.config.mark();
        vec![
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
