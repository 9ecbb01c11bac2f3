//! What the chains of shapes do: tell sources apart, look up an earlier choice, choose an endpoint,
//! remember the choice.

use super::chains::ShapeChain;
use super::clients::ClientMap;
use super::program::{
    Chain, DESTINATION, Load, LocalDetector, NODE_PORT, Program, Rule, Statement,
};
use super::sets::{EXTERNAL_OFFSET, SetId};
use crate::ir::{List, SourcePolicy};
use crate::model::Protocol;

/// Rules that draw a place, at most; one more for what cannot be.
const MOST_DRAWS: u32 = 16;

/// From how many places to draw, one after another, until one is filled.
///
/// More than half of the places are filled, from the first one on, so that two draws do on average,
/// or fewer; of 4 places one may be all, and takes two and a half. Each is uniform among the filled ones as
/// long as it takes in all of them, and the draws go down place by place, so that one which takes
/// in exactly those that are filled ends the search. With more places than can be counted down, the
/// last draw is from the first half, which is filled, and gets one connection in 2^15. Place 0
/// comes last of all: it is filled even while another transaction takes endpoints away.
fn draws(places: u32) -> impl Iterator<Item = u32> {
    let least = if places <= 4 { 1 } else { places / 2 + 1 };
    let countable = places - least < MOST_DRAWS;
    (0..MOST_DRAWS.min(places - least + 1))
        .map(move |draw| match draw {
            _ if countable => places - draw,
            draw if draw + 1 == MOST_DRAWS => least,
            _ => places,
        })
        .chain((least > 1).then_some(1))
}

impl Program<'_> {
    /// The chain of one shape.
    pub(crate) fn shape_chain(&self, shape: ShapeChain) -> Chain {
        let rules = match shape {
            ShapeChain::Balance {
                node_port,
                list,
                places,
                affinity,
            } => Self::balance(shape, node_port, list, places, affinity),
            ShapeChain::Policy {
                node_port, policy, ..
            } => self.policy(shape, node_port, policy),
            ShapeChain::Remember { map } => Protocol::ALL
                .into_iter()
                .map(|protocol| vec![Statement::ProtocolIs(protocol), Statement::Remember { map }])
                .collect(),
        };
        Self::regular(&shape.to_string(), rules)
    }

    fn goto_next(shape: ShapeChain) -> Option<Statement> {
        shape.next().map(|next| Statement::Goto(next.to_string()))
    }

    fn balance(
        shape: ShapeChain,
        node_port: bool,
        list: List,
        places: u32,
        affinity: Option<ClientMap>,
    ) -> Vec<Rule> {
        if let Some(map) = affinity {
            let mut rules = vec![vec![Statement::TranslateTo {
                key: vec![
                    Load::SourceAddress,
                    Load::DestinationAddress,
                    Load::Protocol,
                    Load::DestinationPort,
                ],
                map: SetId::Affinity(map),
            }]];
            rules.extend(Self::goto_next(shape).map(|next| vec![next]));
            return rules;
        }
        let (key, map) = if node_port {
            (&NODE_PORT[..], SetId::NodePortEndpoints)
        } else {
            (&DESTINATION[..], SetId::Endpoints)
        };
        draws(places)
            .map(|modulus| {
                let slot = Load::Random {
                    modulus,
                    offset: match list {
                        List::Primary => 0,
                        List::External => EXTERNAL_OFFSET,
                    },
                };
                let key = key.iter().copied().chain([slot]).collect();
                vec![Statement::TranslateTo { key, map }]
            })
            .collect()
    }

    fn policy(&self, shape: ShapeChain, node_port: bool, policy: SourcePolicy) -> Vec<Rule> {
        let mark = Statement::Mark(self.config.mark());
        let Some(next) = Self::goto_next(shape) else {
            return Vec::new();
        };
        match policy {
            SourcePolicy::External => vec![vec![mark, next]],
            SourcePolicy::ClusterIp if self.config.masquerade_all => vec![vec![mark, next]],
            SourcePolicy::ClusterIp => {
                let mut rules = Vec::new();
                if let Some(not_a_pod) = self.not_a_pod() {
                    rules.push(vec![not_a_pod, mark]);
                }
                rules.push(vec![next]);
                rules
            }
            SourcePolicy::ExternalLocal => {
                let mut rules = Vec::new();
                if let Some(pod) = self.pod() {
                    rules.push([pod, vec![next.clone()]].concat());
                }
                rules.push(vec![
                    Statement::AddressIsLocal(Load::SourceAddress),
                    mark,
                    next,
                ]);
                rules.push(vec![if node_port {
                    Statement::VerdictMap {
                        key: NODE_PORT.to_vec(),
                        map: SetId::ExternalLocalNodePorts,
                    }
                } else {
                    Statement::VerdictMap {
                        key: DESTINATION.to_vec(),
                        map: SetId::ExternalLocalIps,
                    }
                }]);
                rules
            }
        }
    }

    /// Matches packets of pods; `None` if pods are not recognised.
    fn pod(&self) -> Option<Rule> {
        Some(match self.config.local_detector.get(self.family) {
            LocalDetector::None => return None,
            // Everyone is a pod.
            LocalDetector::Network(network) if network.prefix() == 0 => Vec::new(),
            _ => vec![self.detector(false)?],
        })
    }

    /// Matches packets of anyone but pods; `None` if there is nobody to match.
    fn not_a_pod(&self) -> Option<Statement> {
        match self.config.local_detector.get(self.family) {
            LocalDetector::Network(network) if network.prefix() == 0 => None,
            _ => self.detector(true),
        }
    }

    fn detector(&self, negate: bool) -> Option<Statement> {
        Some(match self.config.local_detector.get(self.family) {
            LocalDetector::None => return None,
            LocalDetector::Network(network) => Statement::AddressIn {
                load: Load::SourceAddress,
                network: *network,
                negate,
            },
            LocalDetector::Interface(name) => Statement::Interface {
                name: name.clone(),
                prefix: false,
                negate,
            },
            LocalDetector::InterfacePrefix(name) => Statement::Interface {
                name: name.clone(),
                prefix: true,
                negate,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir;

    /// How likely each place is to be chosen when the first `filled` are filled, and how many
    /// draws it takes on average.
    fn chances(filled: u32) -> (Vec<f64>, f64) {
        let mut chances = vec![0.0; filled as usize];
        let (mut missed, mut average) = (1.0, 0.0);
        for modulus in draws(ir::places(filled as usize)) {
            average += missed;
            let reached = filled.min(modulus);
            for chance in chances.iter_mut().take(reached as usize) {
                *chance += missed / f64::from(modulus);
            }
            missed *= 1.0 - f64::from(reached) / f64::from(modulus);
        }
        assert!(missed < 1e-12, "{filled}: some connection finds no place");
        (chances, average)
    }

    #[test]
    fn every_endpoint_is_as_likely_as_any_other_whatever_their_number() {
        for filled in (1..=1100).chain([65_536, 65_537, 100_000]) {
            let (chances, average) = chances(filled);
            let even = 1.0 / f64::from(filled);
            // Exact up to 32 endpoints; beyond, one connection in 2^15 is not chosen evenly.
            let allowed = if filled <= 32 { 1e-9 } else { 1.0 / 32_000.0 };
            for chance in chances {
                assert!((chance / even - 1.0).abs() <= allowed, "{filled}: {chance}");
            }
            assert!(average <= 2.5, "{filled}: {average} draws");
        }
    }

    #[test]
    fn a_connection_that_meets_endpoints_leaving_still_finds_one() {
        for filled in 1..=300 {
            let last = draws(ir::places(filled)).last();
            assert_eq!(last, Some(1), "place 0 is filled as long as any is");
        }
    }
}
