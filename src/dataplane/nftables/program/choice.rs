//! The chains that choose an endpoint: from a destination's shape to how sources are told apart,
//! to a place or to the choice that a client made before, to the endpoint.
//!
//! Each chain is one step, and hands what it found to the next in the packet's priority. None
//! depends on a Service; those that draw a place of so many, and the rules that remember a client
//! for so long, come and go with the sizes and timeouts in use, whose number is bounded.

use std::collections::BTreeSet;

use super::base::{DESTINATION, NODE_PORT, Program};
use super::lots::Lot;
use super::numbers::{
    BARE_MASK, CLASS_MASK, Class, KIND_MASK, LOCAL_BIT, LOT_MASK, ROUTE_MASK, Shape, class_bits,
    id_kind, place,
};
use super::sets::SetId;
use super::sizes::Size;
use super::statement::{Chain, Load, Priority, Rule, Statement};
use crate::core::ir::{Draw, List, SourcePolicy};
use crate::core::model::{Family, LocalDetector};

/// What a verdict map of the program holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Drops.
    Drop,
    /// Goes on in another chain and comes back.
    Jump(String),
    /// Goes on in another chain for good.
    Goto(String),
}

impl From<Verdict> for std::borrow::Cow<'_, Verdict> {
    fn from(verdict: Verdict) -> Self {
        Self::Owned(verdict)
    }
}

/// Which map a choice looks into, and under which key.
#[derive(Clone, Copy)]
struct Maps {
    node_port: bool,
    list: List,
}

impl Maps {
    /// All four.
    fn all() -> impl Iterator<Item = Self> {
        [false, true]
            .into_iter()
            .flat_map(|node_port| List::BOTH.map(|list| Self { node_port, list }))
    }

    const fn key(self) -> &'static [Load] {
        if self.node_port {
            &NODE_PORT
        } else {
            &DESTINATION
        }
    }

    const fn shapes(self) -> SetId {
        match (self.node_port, self.list) {
            (false, List::Primary) => SetId::ServiceIps,
            (false, List::External) => SetId::ExternalLocalIps,
            (true, List::Primary) => SetId::ServiceNodePorts,
            (true, List::External) => SetId::ExternalLocalNodePorts,
        }
    }

    const fn endpoints(self) -> SetId {
        if self.node_port {
            SetId::NodePortEndpoints
        } else {
            SetId::Endpoints
        }
    }

    const fn ids(self) -> SetId {
        if self.node_port {
            SetId::AffinityNodePortIds
        } else {
            SetId::AffinityIds
        }
    }

    fn name(self, what: &str) -> String {
        let node_port = if self.node_port { "np-" } else { "" };
        format!("{node_port}{what}")
    }

    /// The chain that chooses.
    fn balance(self, remembered: bool) -> String {
        self.name(match (self.list, remembered) {
            (List::Primary, false) => "lb",
            (List::External, false) => "lb-local",
            (List::Primary, true) => "lb-affinity",
            (List::External, true) => "lb-local-affinity",
        })
    }

    /// Looks the destination's shape up.
    fn load_shape(self) -> Statement {
        let (key, map) = (self.key().to_vec(), self.shapes());
        Statement::SetPriority(Priority::Map { key, map })
    }

    fn with_number(self) -> Vec<Load> {
        [self.key(), &[Load::Priority]].concat()
    }

    /// Translates to the endpoint whose number the priority is.
    fn translate(self) -> Statement {
        let (key, map) = (self.with_number(), self.endpoints());
        Statement::TranslateTo { key, map }
    }

    /// From a place, or an id without a class, to the id.
    fn load_id(self) -> Statement {
        let (key, map) = (self.with_number(), self.ids());
        Statement::SetPriority(Priority::Map { key, map })
    }

    /// Makes a place that was drawn one of this list.
    fn of_list(self) -> Option<Statement> {
        matches!(self.list, List::External)
            .then_some(Statement::SetPriority(Priority::Or(LOCAL_BIT)))
    }
}

/// The chain that draws one of so many places.
pub(crate) fn draw_name(lot: Lot) -> String {
    format!("draw-{lot}")
}

/// The lot whose chain has this name: of those that have the same chain the one that stands for all.
pub(crate) fn drawn_lot(name: &str) -> Option<Lot> {
    let rest = name.strip_prefix("draw-")?;
    let (draw, places, lane) = match rest.split_once('-') {
        None => (Draw::Random, rest, 0),
        Some(("source", places)) => (Draw::Source, places, 0),
        Some(("destination", places)) => (Draw::Destination, places, 0),
        Some(("turn", rest)) => {
            let (places, lane) = rest.split_once('-')?;
            (Draw::Turn, places, lane.parse().ok()?)
        }
        Some(_) => return None,
    };
    let places = places.parse().ok()?;
    let lot = Lot::new(draw, Size::of(places), lane);
    (places > 0 && draw_name(lot) == name).then_some(lot)
}

/// The chain that draws one of so many places of the primary list.
pub(crate) fn draw_chain(lot: Lot) -> Chain {
    let (modulus, offset) = (lot.size().places(), place(List::Primary, 0));
    let hash = |load| Priority::Hash {
        load,
        modulus,
        offset,
    };
    let draw = match lot.draw() {
        Draw::Random | Draw::Weighted => Priority::Random { modulus, offset },
        Draw::Turn | Draw::WeightedTurn => Priority::Turn { modulus, offset },
        Draw::Source => hash(Load::SourceAddress),
        Draw::Destination => hash(Load::DestinationAddress),
    };
    Chain::regular(draw_name(lot), vec![vec![Statement::SetPriority(draw)]])
}

/// What leads to the chain of a lot.
pub(crate) fn draw_elements(lot: Lot) -> impl Iterator<Item = (SetId, u32, Verdict)> {
    let number = u32::from(lot.code());
    let element = |map, lot| (map, number, Verdict::Jump(draw_name(lot)));
    let sure = lot.below().map(|below| element(SetId::SureDraws, below));
    [element(SetId::Draws, lot)].into_iter().chain(sure)
}

/// The lots of which there have to be chains, one for each that is drawn by the same.
pub(crate) fn drawn<'a>(lots: impl IntoIterator<Item = &'a Lot>) -> BTreeSet<Lot> {
    let lots = lots.into_iter().flat_map(|lot| [Some(*lot), lot.below()]);
    lots.flatten().map(Lot::by_chain).collect()
}

/// The chain that remembers clients, each class for its time.
pub(crate) const REMEMBER: &str = "remember";

/// The rule that remembers clients of a class.
pub(crate) fn remember_rule(family: Family, class: Class, timeout_seconds: u32) -> Rule {
    vec![
        Statement::PriorityIs {
            mask: CLASS_MASK,
            value: class_bits(class),
        },
        Statement::Remember {
            key: client(family),
            timeout_seconds,
        },
        Statement::Return,
    ]
}

/// The key of a client and what it connects to.
fn client(family: Family) -> Vec<Load> {
    match family {
        Family::V4 => vec![
            Load::SourceAddress,
            Load::DestinationAddress,
            Load::Protocol,
            Load::DestinationPort,
        ],
        Family::V6 => vec![Load::ClientHash { seed: 1 }, Load::ClientHash { seed: 2 }],
    }
}

const POLICIES: [(SourcePolicy, &str); 3] = [
    (SourcePolicy::ClusterIp, "cluster-ip"),
    (SourcePolicy::External, "external"),
    (SourcePolicy::ExternalLocal, "external-local"),
];

/// The chain that tells sources apart.
fn policy_name(node_port: bool, policy: &str, remembered: bool) -> String {
    let node_port = if node_port { "np-" } else { "" };
    let remembered = if remembered { "-affinity" } else { "" };
    format!("{node_port}{policy}{remembered}")
}

/// A `NodePort` is no `ClusterIP`.
fn policies() -> impl Iterator<Item = (bool, SourcePolicy, &'static str, bool)> {
    [false, true].into_iter().flat_map(|node_port| {
        POLICIES
            .into_iter()
            .filter(move |(policy, _)| !node_port || *policy != SourcePolicy::ClusterIp)
            .flat_map(move |(policy, name)| {
                [false, true].map(|remembered| (node_port, policy, name, remembered))
            })
    })
}

/// The chain that counts and drops what a Local policy leaves without endpoints.
pub(crate) const NO_LOCAL_ENDPOINTS: &str = "no-local-endpoints";

fn nobody_here() -> Verdict {
    Verdict::Goto(NO_LOCAL_ENDPOINTS.to_owned())
}

/// What the verdict maps hold whatever the cluster is.
pub(crate) fn fixed_elements() -> impl Iterator<Item = (SetId, u32, Verdict)> {
    let routes = policies().map(|(node_port, policy, name, remembered)| {
        let shape = Shape::Balance {
            node_port,
            policy,
            class: Class::from(remembered),
            lot: Lot::NONE,
        };
        let chain = policy_name(node_port, name, remembered);
        (SetId::Routes, shape.route(), Verdict::Goto(chain))
    });
    routes.chain([
        (SetId::Routes, Shape::Drop.route(), nobody_here()),
        (SetId::Draws, u32::from(Lot::NONE.code()), nobody_here()),
    ])
}

impl Program<'_> {
    /// The chains that choose, each after those that it leads to; of those with rules that come and
    /// go, `remember` is empty here.
    pub(crate) fn choice(&self) -> Vec<Chain> {
        let mut chains = vec![Chain::regular(REMEMBER, Vec::new())];
        for node_port in [false, true] {
            chains.extend(self.recall(node_port));
        }
        for maps in Maps::all() {
            let rules = Self::balance(maps);
            chains.push(Chain::regular(maps.balance(false), rules));
            let rules = self.balance_remembered(maps);
            chains.push(Chain::regular(maps.balance(true), rules));
        }
        for (node_port, policy, name, remembered) in policies() {
            let name = policy_name(node_port, name, remembered);
            let rules = self.policy(node_port, policy, remembered);
            chains.push(Chain::regular(name, rules));
        }
        chains.push(self.services());
        let nobody = vec![Statement::Counter, Statement::Drop];
        chains.push(Chain::regular(NO_LOCAL_ENDPOINTS, vec![nobody]));
        chains
    }

    fn services(&self) -> Chain {
        let look_up = |node_port| {
            let list = List::Primary;
            let shape = Maps { node_port, list }.load_shape();
            let (mask, map) = (ROUTE_MASK, SetId::Routes);
            vec![shape, Statement::PriorityVerdict { mask, map }]
        };
        let node_ports = [self.node_port_condition(), look_up(true)].concat();
        Chain::regular("services", vec![look_up(false), node_ports])
    }

    fn policy(&self, node_port: bool, policy: SourcePolicy, remembered: bool) -> Vec<Rule> {
        let mark = Statement::Mark(self.config.mark());
        let maps = |list| Maps { node_port, list };
        let next = Statement::Goto(maps(List::Primary).balance(remembered));
        match policy {
            SourcePolicy::External => vec![vec![mark, next]],
            SourcePolicy::ClusterIp if self.config.masquerade_all => vec![vec![mark, next]],
            SourcePolicy::ClusterIp => {
                let not_a_pod = self.not_a_pod().map(|not_a_pod| vec![not_a_pod, mark]);
                not_a_pod.into_iter().chain([vec![next]]).collect()
            }
            SourcePolicy::ExternalLocal => {
                let pod = self.pod().map(|pod| [pod, vec![next.clone()]].concat());
                let source = Statement::AddressIsLocal {
                    load: Load::SourceAddress,
                    negate: false,
                };
                let local = maps(List::External);
                let local = vec![
                    local.load_shape(),
                    Statement::Goto(local.balance(remembered)),
                ];
                pod.into_iter()
                    .chain([vec![source, mark, next], local])
                    .chain([vec![Statement::Goto(NO_LOCAL_ENDPOINTS.to_owned())]])
                    .collect()
            }
        }
    }

    /// Three attempts. The first fails where a place is empty, as some of the last ones are in a
    /// list of more than 256, the second as rarely; the third is from those that are filled. Place
    /// 0 is the last resort, for a packet that meets endpoints leaving.
    fn attempts(maps: Maps, found: &[Rule]) -> Vec<Rule> {
        let draw = |map| Statement::PriorityVerdict {
            mask: LOT_MASK,
            map,
        };
        let again = |map| vec![vec![maps.load_shape(), draw(map)]];
        let first = Statement::SetPriority(Priority::Number(place(maps.list, 0)));
        // A place that was drawn is of the primary list.
        let of_list = |rules: &[Rule]| {
            let mut rules = rules.to_vec();
            if let (Some(of_list), Some(rule)) = (maps.of_list(), rules.first_mut()) {
                rule.insert(0, of_list);
            }
            rules
        };
        let mut last = found.to_vec();
        if let Some(rule) = last.first_mut() {
            rule.insert(0, first);
        }
        [
            again(SetId::Draws),
            of_list(found),
            again(SetId::Draws),
            of_list(found),
            again(SetId::SureDraws),
            of_list(found),
            last,
        ]
        .concat()
    }

    fn balance(maps: Maps) -> Vec<Rule> {
        let mut rules = Self::attempts(maps, &[vec![maps.translate()]]);
        // The shape is at hand still.
        if let Some(rule) = rules.first_mut() {
            rule.remove(0);
        }
        rules
    }

    /// First the choice that the client made before, if it is one of this list and still one of its
    /// endpoints; then a new one.
    fn balance_remembered(&self, maps: Maps) -> Vec<Rule> {
        let jump = |what| Statement::Jump(maps.name(what));
        let key = client(self.family);
        let mut rules = vec![
            vec![
                Statement::SetPriority(Priority::Map {
                    key: key.clone(),
                    map: SetId::Affinity,
                }),
                Statement::PriorityIs {
                    mask: KIND_MASK,
                    value: id_kind(maps.list),
                },
                Statement::SetPriority(Priority::And(BARE_MASK)),
                maps.load_id(),
                jump("recalled"),
            ],
            vec![Statement::Forget { key }],
        ];
        let chosen = vec![maps.load_id(), jump("chosen")];
        rules.extend(Self::attempts(maps, &[chosen]));
        rules
    }

    /// What becomes of a choice, old and new.
    fn recall(&self, node_port: bool) -> [Chain; 2] {
        let maps = Maps {
            node_port,
            list: List::Primary,
        };
        let remember = || vec![Statement::Jump(REMEMBER.to_owned())];
        let translate = || vec![maps.translate()];
        // Of two connections that a client opens at once, one has been first.
        let read_back = Statement::SetPriority(Priority::Map {
            key: client(self.family),
            map: SetId::Affinity,
        });
        [
            Chain::regular(maps.name("recalled"), vec![remember(), translate()]),
            Chain::regular(
                maps.name("chosen"),
                vec![remember(), vec![read_back, maps.translate()], translate()],
            ),
        ]
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
