//! The program's fixed chains around the choice of an endpoint: who is let in, what is refused,
//! whose source is translated. The choice itself is in `choice`.
//!
//! Every base chain is of `type nat`, which sees a connection's first packet only: an established
//! packet passes none of our rules. What the rules must do to packets is `docs/semantics.md`'s section E;
//! why they are shaped so, `docs/design.md`.

use std::collections::BTreeSet;

use super::base::{DESTINATION, NODE_PORT, Program};
use super::numbers::LEFT_BEHIND;
use super::sets::SetId;
use super::sources;
use super::statement::{Base, Chain, Hook, Load, Priority, Rule, Statement};
use crate::core::model::Protocol;

const DSTNAT: i32 = -100;
/// Before the others that translate the source, at 100 (`NF_IP_PRI_NAT_SRC`) as a rule: of those that
/// do, the kernel asks the first only (`nf_nat_inet_fn`), and the packet's mark and priority have to be
/// set back in any case.
const SRCNAT: i32 = 100 - 10;
/// Source ranges are checked before anybody translates the destination.
const BEFORE_DSTNAT: i32 = DSTNAT - 10;
/// What nobody has translated is refused.
const AFTER_DSTNAT: i32 = DSTNAT + 10;

/// Refuses what no proxy takes on loopback.
pub(crate) const ON_LOOPBACK: &str = "on-loopback";
/// The protocols of what it refuses.
pub(crate) const COUNTED_ON_LOOPBACK: [Protocol; 2] = [Protocol::Udp, Protocol::Sctp];

/// The chain that refuses connections to Services without endpoints.
pub(crate) const NO_ENDPOINTS: &str = "no-endpoints";
/// The chain that refuses undefined ports and unused addresses, of what comes in.
pub(crate) const UNUSED_ADDRESSES: &str = "unused-addresses";
/// The same of what this node sends.
pub(crate) const UNUSED_ADDRESSES_OUTPUT: &str = "unused-addresses-output";

impl Program<'_> {
    /// The chains that every ruleset has. A chain comes after those that it leads to.
    pub(crate) fn fixed_chains(&self) -> Vec<Chain> {
        let mut chains = self.choice();
        chains.extend([
            sources::check_source(self.family, &BTreeSet::new()),
            sources::source_ranges(),
            sources::outside_ranges(),
            self.no_endpoints(),
            Self::unused_addresses(UNUSED_ADDRESSES, true),
            Self::unused_addresses(UNUSED_ADDRESSES_OUTPUT, false),
        ]);
        let on_loopback = *self.config.on_loopback.get(self.family);
        if on_loopback {
            chains.push(self.on_loopback());
        }
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
            (Hook::Prerouting, UNUSED_ADDRESSES),
            (Hook::Output, UNUSED_ADDRESSES_OUTPUT),
        ] {
            let name = |what: &str| format!("{what}-{}", hook.name());
            let ranges = jumps(&["source-ranges"]);
            base(&name("guard"), hook, BEFORE_DSTNAT, ranges);
            base(&name("nat"), hook, DSTNAT, jumps(&["services"]));
            let mut refusals = jumps(&[NO_ENDPOINTS, unused]);
            if on_loopback && matches!(hook, Hook::Output) {
                refusals.splice(..0, jumps(&[ON_LOOPBACK]));
            }
            base(&name("refuse"), hook, AFTER_DSTNAT, refusals);
        }
        let masquerading = self.masquerading();
        base("nat-postrouting", Hook::Postrouting, SRCNAT, masquerading);
        chains
    }

    /// Refuses what no proxy takes at `NodePort`s on loopback, and counts it (KEP-6032): a rule for each of
    /// [`COUNTED_ON_LOOPBACK`].
    fn on_loopback(&self) -> Chain {
        let rule = |protocol: &Protocol| {
            let is_node_port = Statement::SetPriority(Priority::Map {
                key: NODE_PORT.to_vec(),
                map: SetId::ServiceNodePorts,
            });
            let mut rule: Rule = self.to_loopback(false).into_iter().collect();
            rule.extend([
                Statement::ProtocolIs(*protocol),
                is_node_port,
                Statement::Counter,
                Statement::Reject,
            ]);
            rule
        };
        let rules = COUNTED_ON_LOOPBACK.iter().map(rule).collect();
        Chain::regular(ON_LOOPBACK, rules)
    }

    fn no_endpoints(&self) -> Chain {
        let refuse = |key: &[Load], set| {
            let key = key.to_vec();
            let negate = false;
            let is_refused = Statement::InSet { key, set, negate };
            vec![is_refused, Statement::Counter, Statement::Reject]
        };
        let node_ports = refuse(&NODE_PORT, SetId::NoEndpointsNodePorts);
        let rules = vec![
            refuse(&DESTINATION, SetId::NoEndpointsIps),
            [self.node_port_condition(), node_ports].concat(),
        ];
        Chain::regular(NO_ENDPOINTS, rules)
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
            rule.extend([Statement::Counter, verdict]);
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
                    mask: LEFT_BEHIND,
                    value: LEFT_BEHIND,
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
