//! The chains of one destination in the nat table, and how the tree of the filter table ends for it.
//!
//! The nat table refuses nothing. A connection that is to be refused keeps its destination there, and is
//! known by it in the filter table, where all that is served has got another one.

use ipnetwork::IpNetwork;

use super::chain::{Chain, comment};
use super::chain_names;
use super::dispatch::Leaf;
use super::draw::{Choice, goes_to};
use super::origin;
use super::spelling;
use crate::core::ir::{Action, Destination, Forwarding, Label, SourcePolicy, Sources};
use crate::core::model::{Family, LocalDetector};

/// What all destinations of a family have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Common {
    pub(super) detector: LocalDetector,
    pub(super) masquerade_all: bool,
    /// The bit of the mark that asks for masquerading.
    pub(super) mark: u32,
}

impl Common {
    /// The target that asks for masquerading.
    pub(super) fn ask(&self) -> String {
        format!("-j MARK --set-xmark {0:#x}/{0:#x}", self.mark)
    }
}

/// How the tree of the nat table ends for a destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Served {
    /// In its chain.
    Chain {
        /// Its name.
        name: String,
        /// Whose it is.
        label: Label,
    },
    /// Nowhere: it is refused, and nobody else is to translate it.
    Refused(Label),
}

impl Leaf for Served {
    fn rule(&self, matches: &str) -> String {
        match self {
            Self::Chain { name, label } => format!("{matches}{}", goes_to(name, label.as_str())),
            Self::Refused(label) => format!("{matches}{} -j ACCEPT", comment(label.as_str())),
        }
    }
}

/// How the tree of the filter table ends for what has kept its destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It is told.
    Reject(Family, Label),
    /// It is not.
    Drop(Label),
    /// Who is allowed is told, and nobody else.
    Guarded {
        /// The chain that tells them apart.
        chain: String,
        /// Whose it is.
        label: Label,
    },
    /// A Service's address, whatever the port.
    Unused(Family),
    /// A connection of an endpoint to itself, by its destination.
    Hairpin(std::net::IpAddr),
}

/// How a connection is refused so that its client knows.
const fn reject(family: Family) -> &'static str {
    match family {
        Family::V4 => "-j REJECT --reject-with icmp-port-unreachable",
        Family::V6 => "-j REJECT --reject-with icmp6-port-unreachable",
    }
}

impl Leaf for Refusal {
    fn rule(&self, matches: &str) -> String {
        match self {
            Self::Reject(family, label) => {
                format!("{matches}{} {}", comment(label.as_str()), reject(*family))
            }
            Self::Drop(label) => format!("{matches}{} -j DROP", comment(label.as_str())),
            Self::Guarded { chain, label } => {
                format!("{matches}{}", goes_to(chain, label.as_str()))
            }
            // What is sent again after a first packet that was let through, before there were rules, waits until that flow
            // is ended: its destination may be served.
            Self::Unused(family) => format!(
                "{matches}-m conntrack ! --ctstatus CONFIRMED {}",
                reject(*family)
            ),
            Self::Hairpin(address) => {
                let source = spelling::network("-s", IpNetwork::from(*address));
                format!("{source}{matches}-j MASQUERADE --random-fully")
            }
        }
    }
}

/// What becomes of a destination.
#[derive(Debug, Default)]
pub(super) struct Made {
    pub(super) nat: Vec<Chain>,
    pub(super) filter: Vec<Chain>,
    pub(super) served: Option<Served>,
    pub(super) refusal: Option<Refusal>,
}

/// Makes the chains of a destination.
pub(super) fn make(
    common: &Common,
    destination: Destination,
    forwarding: &Forwarding,
    remembers: bool,
) -> Made {
    let family = destination.family();
    let name = chain_names::destination(destination);
    let label = forwarding.label.clone();
    let mut made = Made::default();
    let only = match &forwarding.sources {
        Sources::Only(networks) => Some(networks),
        Sources::Any | Sources::Prepared(_) => None,
    };
    let nobody_outside = matches!(
        &forwarding.action,
        Action::Balance { external: Some(external), .. } if external.is_empty()
    );
    made.refusal = match (&forwarding.action, only) {
        (Action::Drop, _) => Some(Refusal::Drop(label.clone())),
        (Action::Balance { .. }, _) if nobody_outside => Some(Refusal::Drop(label.clone())),
        (action, Some(networks)) => {
            // One that is served where it was going, on this node, still has its destination here.
            let allowed = match action {
                Action::Reject => reject(family),
                _ => "-j RETURN",
            };
            let mut rules = Vec::new();
            origin::allow(networks, allowed, &name, &mut made.filter, &mut rules);
            rules.push("-j DROP".to_owned());
            made.filter.push(Chain {
                name: name.clone(),
                rules,
            });
            Some(Refusal::Guarded {
                chain: name.clone(),
                label: label.clone(),
            })
        }
        (Action::Reject, None) => Some(Refusal::Reject(family, label.clone())),
        (Action::Balance { .. }, None) => None,
    };
    let Action::Balance {
        policy,
        primary,
        external,
        draw,
        affinity,
    } = &forwarding.action
    else {
        made.served = Some(Served::Refused(label));
        return made;
    };
    let mut choice = Choice {
        destination,
        label: &forwarding.label,
        draw: *draw,
        affinity: affinity.filter(|_| remembers),
        chains: &mut made.nat,
    };
    let mut rules = Vec::new();
    match policy {
        SourcePolicy::ClusterIp => {
            if common.masquerade_all {
                rules.push(common.ask());
            } else if let Some(others) = origin::pods(&common.detector, true) {
                rules.push(others + &common.ask());
            }
            choice.rules(&name, 'P', primary, &mut rules);
        }
        SourcePolicy::External => {
            rules.push(common.ask());
            choice.rules(&name, 'P', primary, &mut rules);
        }
        SourcePolicy::ExternalLocal => {
            let inner = chain_names::part(&name, 'I', None);
            let mut all = Vec::new();
            choice.rules(&name, 'P', primary, &mut all);
            choice.chains.push(Chain {
                name: inner.clone(),
                rules: all,
            });
            if let Some(pods) = origin::pods(&common.detector, false) {
                rules.push(format!("{pods}-g {inner}"));
            }
            rules.push(origin::HOST.to_owned() + &common.ask());
            rules.push(format!("{}-g {inner}", origin::HOST));
            match external {
                Some(external) if !external.is_empty() => {
                    choice.rules(&name, 'X', external, &mut rules);
                }
                _ => rules.push("-j ACCEPT".to_owned()),
            }
        }
    }
    if let Some(networks) = only {
        let inner = chain_names::part(&name, 'L', None);
        made.nat.push(Chain {
            name: inner.clone(),
            rules,
        });
        let mut guard = Vec::new();
        origin::allow(
            networks,
            &format!("-g {inner}"),
            &name,
            &mut made.nat,
            &mut guard,
        );
        guard.push("-j ACCEPT".to_owned());
        rules = guard;
    }
    made.nat.push(Chain {
        name: name.clone(),
        rules,
    });
    made.served = Some(Served::Chain { name, label });
    made
}
