//! The selection of one Service port, kept up by what changes in its slices.
//!
//! It costs memory for each endpoint, so it is for Services that have many. What it selects is what
//! [`super::select`] would; a property test holds the two together. Counts of the endpoints that
//! decide something (ready ones, those without a hint, …) tell whether a change does more than put
//! single endpoints on a list or take them off.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use rustc_hash::FxHashMap;

use super::{Selection, ServingSlice, Slots, Uses, hinted_to, is_fallback, rank};
use crate::core::model::{Endpoint, Endpoints, Hint, Name, Node, SliceEndpoint};

/// Which lists an endpoint that is known may be on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cluster {
    /// Those hinted to this node.
    SameNode,
    /// Those hinted to this zone.
    SameZone,
    /// All that are ready.
    Ready,
    /// Nobody is ready: those that serve while they terminate.
    Fallback,
}

/// How many endpoints there are of each kind that decides something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Tally {
    ready: usize,
    fallback: usize,
    ready_with_node_hint: usize,
    ready_hinted_here: usize,
    ready_with_zone_hints: usize,
    ready_hinted_to_zone: usize,
    local_ready: usize,
}

/// A word about an endpoint, by its rank.
#[derive(Debug, Clone)]
struct Ranked(SliceEndpoint);

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> Ordering {
        rank(&self.0).cmp(&rank(&other.0))
    }
}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Ranked {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Ranked {}

/// The words of the slices about one endpoint; almost always there is one.
#[derive(Debug)]
enum Known {
    One(SliceEndpoint),
    /// With how many slices say each: an author may have thousands say it.
    Many(BTreeMap<Ranked, usize>),
}

impl Known {
    /// The one that counts.
    fn best(&self) -> Option<&SliceEndpoint> {
        match self {
            Self::One(known) => Some(known),
            Self::Many(known) => known.last_key_value().map(|(best, _)| &best.0),
        }
    }

    fn with(self, word: SliceEndpoint) -> Self {
        let mut many = match self {
            Self::One(known) => BTreeMap::from([(Ranked(known), 1)]),
            Self::Many(many) => many,
        };
        *many.entry(Ranked(word)).or_insert(0) += 1;
        Self::Many(many)
    }

    /// Without a word; `None` if that was the last.
    fn without(self, word: SliceEndpoint) -> Option<Self> {
        let mut many = match self {
            Self::One(_) => return None,
            Self::Many(many) => many,
        };
        let word = Ranked(word);
        if let Some(count) = many.get_mut(&word) {
            *count -= 1;
            if *count == 0 {
                many.remove(&word);
            }
        }
        let said_once = many.len() == 1 && many.values().all(|count| *count == 1);
        match many.first_key_value() {
            Some((last, _)) if said_once => Some(Self::One(last.0.clone())),
            Some(_) => Some(Self::Many(many)),
            None => None,
        }
    }
}

/// The selection of one Service port in one family.
#[derive(Debug)]
pub struct Tracked {
    uses: Uses,
    zone: Option<Name>,
    known: FxHashMap<Endpoint, Known>,
    tally: Tally,
    cluster_of: Cluster,
    /// The local list is of ready ones.
    local_ready: bool,
    cluster: Slots,
    local: Slots,
    serving: Slots,
    on_this_node: BTreeSet<Endpoint>,
}

/// What a change does to the words about endpoints.
#[derive(Debug, Default)]
struct Words {
    gone: Vec<(Endpoint, SliceEndpoint)>,
    come: Vec<(Endpoint, SliceEndpoint)>,
}

impl Words {
    /// From what a slice said to what it says.
    fn of(before: Option<ServingSlice<'_>>, now: Option<ServingSlice<'_>>) -> Self {
        let mut words = Self::default();
        let word =
            |port, endpoint: SliceEndpoint| (Endpoint::new(endpoint.address, port), endpoint);
        match (before, now) {
            (Some((before, port)), Some((now, same))) if port == same => {
                let (gone, come) = before.endpoints.differences(&now.endpoints);
                words
                    .gone
                    .extend(gone.into_iter().map(|gone| word(port, gone)));
                words
                    .come
                    .extend(come.into_iter().map(|come| word(port, come)));
            }
            (before, now) => {
                let all = |(slice, port): ServingSlice<'_>| -> Vec<_> {
                    let endpoints = slice.endpoints.iter();
                    endpoints.map(|endpoint| word(port, endpoint)).collect()
                };
                words.gone = before.map(all).unwrap_or_default();
                words.come = now.map(all).unwrap_or_default();
            }
        }
        words
    }
}

impl Tracked {
    /// The selection from some slices. Where endpoints are in lists already they keep their places:
    /// `held` are the lists of the whole cluster and of this node.
    pub fn new<'a>(
        slices: impl Iterator<Item = ServingSlice<'a>>,
        uses: Uses,
        node: &Node,
        held: [Option<&Endpoints>; 2],
    ) -> Self {
        let mut tracked = Self {
            uses,
            zone: node.zone.clone(),
            known: FxHashMap::default(),
            tally: Tally::default(),
            cluster_of: Cluster::Fallback,
            local_ready: false,
            cluster: Slots::default(),
            local: Slots::default(),
            serving: Slots::default(),
            on_this_node: BTreeSet::new(),
        };
        for slice in slices {
            tracked.take(Words::of(None, Some(slice)));
        }
        tracked.select_all(held);
        tracked
    }

    /// Takes in what has become of one slice that serves the port, before or now.
    pub fn change(&mut self, before: Option<ServingSlice<'_>>, now: Option<ServingSlice<'_>>) {
        let touched = self.take(Words::of(before, now));
        let (cluster_of, local_ready) = self.modes();
        if (cluster_of, local_ready) != (self.cluster_of, self.local_ready) {
            let held = [self.cluster.list().clone(), self.local.list().clone()];
            self.select_all([Some(&held[0]), Some(&held[1])]);
            return;
        }
        let mut changes: [(Vec<Endpoint>, Vec<Endpoint>); 3] = Default::default();
        let mut touched: Vec<Endpoint> = touched.into_iter().collect();
        touched.sort_unstable();
        touched.dedup();
        for endpoint in &touched {
            let is = self.lists_of(endpoint);
            let lists = [&self.cluster, &self.local, &self.serving];
            for ((list, is), (gone, come)) in lists.into_iter().zip(is).zip(&mut changes) {
                match (list.contains(endpoint), is) {
                    (true, false) => gone.push(*endpoint),
                    (false, true) => come.push(*endpoint),
                    _ => {}
                }
            }
        }
        let lists = [&mut self.cluster, &mut self.local, &mut self.serving];
        for (list, (gone, come)) in lists.into_iter().zip(&changes) {
            list.change(gone, come);
        }
        for endpoint in touched {
            if self.is_on_this_node(&endpoint) {
                self.on_this_node.insert(endpoint);
            } else {
                self.on_this_node.remove(&endpoint);
            }
        }
    }

    /// What is selected now.
    #[must_use]
    pub fn selection(&self) -> Selection {
        Selection {
            cluster: self.cluster.list().clone(),
            local: self.local.list().clone(),
            on_this_node: self.on_this_node.iter().copied().collect(),
            serving: self.serving.list().clone(),
            has_any: self.tally.ready + self.tally.fallback > 0,
            weights: None,
        }
    }

    /// Takes words in; returns whom they are about.
    fn take(&mut self, words: Words) -> Vec<Endpoint> {
        let mut touched = Vec::with_capacity(words.gone.len() + words.come.len());
        for (endpoint, word) in words.gone {
            self.count(&endpoint, false);
            let known = self.known.remove(&endpoint);
            if let Some(left) = known.and_then(|known| known.without(word)) {
                self.known.insert(endpoint, left);
            }
            self.count(&endpoint, true);
            touched.push(endpoint);
        }
        for (endpoint, word) in words.come {
            self.count(&endpoint, false);
            let known = match self.known.remove(&endpoint) {
                None => Known::One(word),
                Some(known) => known.with(word),
            };
            self.known.insert(endpoint, known);
            self.count(&endpoint, true);
            touched.push(endpoint);
        }
        touched
    }

    /// Counts an endpoint, or counts it no more.
    fn count(&mut self, endpoint: &Endpoint, up: bool) {
        let Some(known) = self.known.get(endpoint).and_then(Known::best) else {
            return;
        };
        let to_zone = self
            .zone
            .as_ref()
            .is_some_and(|zone| hinted_to(known, zone));
        let tally = &mut self.tally;
        let ready = known.ready;
        for (count, applies) in [
            (&mut tally.ready, ready),
            (&mut tally.fallback, is_fallback(known)),
            (
                &mut tally.ready_with_node_hint,
                ready && known.node_hint != Hint::None,
            ),
            (
                &mut tally.ready_hinted_here,
                ready && known.node_hint == Hint::Here,
            ),
            (
                &mut tally.ready_with_zone_hints,
                ready && known.zone_hints.is_some(),
            ),
            (&mut tally.ready_hinted_to_zone, ready && to_zone),
            (&mut tally.local_ready, ready && known.local),
        ] {
            if applies {
                *count = if up { *count + 1 } else { *count - 1 };
            }
        }
    }

    /// Of whom the lists are, by the counts: as [`super::Topology`] has it.
    const fn modes(&self) -> (Cluster, bool) {
        let tally = &self.tally;
        let cluster = if tally.ready == 0 {
            Cluster::Fallback
        } else if tally.ready_with_node_hint == tally.ready && tally.ready_hinted_here > 0 {
            Cluster::SameNode
        } else if tally.ready_with_zone_hints == tally.ready && tally.ready_hinted_to_zone > 0 {
            Cluster::SameZone
        } else {
            Cluster::Ready
        };
        (cluster, tally.local_ready > 0)
    }

    /// Whether an endpoint belongs on the list of the cluster, of this node, of those that serve.
    fn lists_of(&self, endpoint: &Endpoint) -> [bool; 3] {
        let Some(known) = self.known.get(endpoint).and_then(Known::best) else {
            return [false; 3];
        };
        let cluster = match self.cluster_of {
            Cluster::SameNode => known.ready && known.node_hint == Hint::Here,
            Cluster::SameZone => {
                let zone = self.zone.as_ref();
                known.ready && zone.is_some_and(|zone| hinted_to(known, zone))
            }
            Cluster::Ready => known.ready,
            Cluster::Fallback => is_fallback(known),
        };
        let usable = if self.local_ready {
            known.ready
        } else {
            is_fallback(known)
        };
        [
            self.uses.cluster && cluster,
            self.uses.local && known.local && usable,
            self.uses.flows && known.serving,
        ]
    }

    fn is_on_this_node(&self, endpoint: &Endpoint) -> bool {
        let known = self.known.get(endpoint).and_then(Known::best);
        known.is_some_and(|known| known.local)
            && (self.cluster.contains(endpoint) || self.local.contains(endpoint))
    }

    /// Selects anew, from all endpoints.
    fn select_all(&mut self, held: [Option<&Endpoints>; 2]) {
        (self.cluster_of, self.local_ready) = self.modes();
        let mut lists: [Vec<Endpoint>; 3] = Default::default();
        for endpoint in self.known.keys() {
            for (list, is) in lists.iter_mut().zip(self.lists_of(endpoint)) {
                if is {
                    list.push(*endpoint);
                }
            }
        }
        let [cluster, local, serving] = lists.map(|mut list| {
            list.sort_unstable();
            list
        });
        let [held_cluster, held_local] = held;
        let placed = |sorted: Vec<Endpoint>, held: Option<&Endpoints>| match held {
            Some(held) => Slots::placed(held, &sorted),
            None => Slots::new(sorted.into()),
        };
        self.cluster = placed(cluster, held_cluster);
        self.local = placed(local, held_local);
        self.serving = Slots::new(serving.into());
        let on_this_node: BTreeSet<Endpoint> = self
            .known
            .keys()
            .filter(|endpoint| self.is_on_this_node(endpoint))
            .copied()
            .collect();
        self.on_this_node = on_this_node;
    }
}
