//! What is programmed, and the transactions that change it: everything that takes no socket.

use std::borrow::Cow;
use std::collections::btree_map::Entry as Counted;
use std::collections::{BTreeMap, BTreeSet};

use super::affinity::{Affinity, Rounded, Staged};
use super::lanes::{self, Lanes};
use super::program::KUBE_PROXY_TABLE;
use super::program::Program;
use super::program::choice::{self, Verdict};
use super::program::element::Element;
use super::program::lots::Lot;
use super::program::numbers::Class;
use super::program::parts::Parts;
use super::program::sets::{SETS, SetId};
use super::program::sources::{self, CHECK_SOURCE};
use super::program::statement::Chain;
use super::unchanged::{Unchanged, is_unchanged, lot, unchanged};
use super::wire::batch::{Batch, ElementOperation, FinishedBatch};
use super::wire::{elements, tables};
use crate::core::ir::{Delta, Entry, Operation};
use crate::core::model::{Family, Owner, PerFamily};
use crate::dataplane::Options;

/// The program, and how much of it the kernel holds.
pub(super) struct Programmed {
    pub(super) config: Options,
    /// What the kernel holds of what comes and goes.
    pub(super) parts: PerFamily<Parts>,
    /// How many lists are drawn from by each lot.
    lots: PerFamily<BTreeMap<Lot, usize>>,
    /// The counters of lists that are drawn from in turn.
    lanes: Lanes,
    /// How many source ranges have each length of prefix.
    lengths: PerFamily<BTreeMap<u8, usize>>,
    pub(super) affinity: Affinity,
    /// The next transaction replaces the whole table: what is there is not our program.
    pub(super) replace: PerFamily<bool>,
    /// The next transactions keep Services apart, to find the one that is refused.
    pub(super) isolate: bool,
    /// Elements by set.
    pub(super) elements: PerFamily<[usize; SETS.len()]>,
    /// Elements that belong to nothing, to go with the next transaction.
    pub(super) debris: Vec<Element<'static>>,
    /// Tables of kube-proxy that go with the next transaction.
    pub(super) leftovers: Vec<Family>,
}

/// What a transaction will have changed.
pub(super) struct Change {
    affinity: Staged,
    lots: PerFamily<BTreeMap<Lot, isize>>,
    lanes: lanes::Staged,
    lengths: PerFamily<BTreeMap<u8, isize>>,
    elements: PerFamily<[isize; SETS.len()]>,
    /// What comes to the parts, and the timeouts if they are other ones.
    parts: PerFamily<(Parts, bool)>,
}

impl Programmed {
    /// Nothing yet.
    pub(super) fn new(config: Options) -> Self {
        Self {
            config,
            parts: PerFamily::default(),
            lots: PerFamily::default(),
            lanes: Lanes::default(),
            lengths: PerFamily::default(),
            affinity: Affinity::default(),
            replace: PerFamily::from_fn(|_| true),
            isolate: false,
            elements: PerFamily::default(),
            debris: Vec::new(),
            leftovers: Vec::new(),
        }
    }

    /// Forgets what the kernel holds of a family: it holds nothing that is of use.
    pub(super) fn start_over(&mut self, family: Family) {
        *self.parts.get_mut(family) = Parts::default();
        self.lots.get_mut(family).clear();
        self.lanes.forget(family);
        self.lengths.get_mut(family).clear();
        *self.elements.get_mut(family) = [0; SETS.len()];
        self.affinity.forget(family);
        self.debris
            .retain(|element| element.family() != Some(family));
        *self.replace.get_mut(family) = true;
    }

    /// Whether something is to be done whatever is wanted.
    pub(super) fn has_own_work(&self) -> bool {
        let families = self.config.families.iter();
        families.clone().any(|family| *self.replace.get(*family))
            || families
                .clone()
                .any(|family| self.leftovers.contains(family))
            || !self.debris.is_empty()
    }

    /// The program without any data, for the kernel to look at.
    pub(super) fn rehearsal(&self) -> FinishedBatch {
        self.batch(&Delta::default()).0.finish_as_rehearsal()
    }

    /// Takes in an element that was found in the kernel.
    pub(super) fn found(&mut self, family: Family, element: &Element<'_>) {
        self.elements.get_mut(family)[element.set() as usize] += 1;
        if let Element::Shape { shape, .. } = element
            && let Some(lot) = shape.lot()
        {
            *self.lots.get_mut(family).entry(lot).or_insert(0) += 1;
        }
        self.lanes.found(element);
        if let Element::AllowedSource { network, .. } = element {
            let lengths = self.lengths.get_mut(family);
            *lengths.entry(network.prefix()).or_insert(0) += 1;
        }
    }

    /// Takes in that an element that was found belongs to nothing: what it would need of the program is needed by
    /// it no more. It goes with the next transaction.
    pub(super) fn belongs_to_nothing(&mut self, family: Family, element: Element<'static>) {
        if let Element::Shape { shape, .. } = &element
            && let Some(lot) = shape.lot()
            && let Counted::Occupied(mut users) = self.lots.get_mut(family).entry(lot)
        {
            *users.get_mut() -= 1;
            if *users.get() == 0 {
                users.remove();
            }
        }
        self.lanes.lost(&element);
        self.debris.push(element);
    }

    /// The transaction for a delta, and what will have changed once the kernel has taken it.
    pub(super) fn encode(&self, delta: &Delta) -> (FinishedBatch, Change) {
        let (batch, change) = self.batch(delta);
        (batch.finish(), change)
    }

    fn batch(&self, delta: &Delta) -> (Batch, Change) {
        let mut batch = Batch::new(self.isolate);
        for family in &self.config.families {
            if self.leftovers.contains(family) {
                tables::put_delete_named_table(&mut batch, *family, KUBE_PROXY_TABLE);
            }
            if *self.replace.get(*family) {
                tables::put_delete_table(&mut batch, *family);
                tables::put_create_table(&mut batch, *family);
                for set in SETS {
                    tables::put_set(&mut batch, *family, set);
                }
            }
        }
        let mut change = Change {
            affinity: self.affinity.stage(delta),
            lots: PerFamily::default(),
            lanes: self.lanes.stage(delta),
            lengths: PerFamily::default(),
            elements: PerFamily::default(),
            parts: PerFamily::default(),
        };
        let unchanged = unchanged(delta);
        self.put_removals(&mut batch, delta, &unchanged, &mut change);
        batch.barrier();
        for family in &self.config.families {
            self.put_parts(&mut batch, *family, delta, &mut change);
        }
        put_additions(&mut batch, delta, &unchanged, &mut change);
        (batch, change)
    }

    fn put_removals(
        &self,
        batch: &mut Batch,
        delta: &Delta,
        unchanged: &Unchanged,
        change: &mut Change,
    ) {
        let mut put = |owner, family, element: &Element<'_>| {
            let kind = ElementOperation::Delete;
            batch.put_element(family, element.set(), kind, owner, |out| {
                elements::put_key(out, element);
            });
            change.elements.get_mut(family)[element.set() as usize] -= 1;
        };
        for element in &self.debris {
            if let Some(family) = element.family() {
                put(Owner::Cluster, family, element);
            }
        }
        for Operation { owner, entry } in &delta.remove {
            if let Some(element) = Element::of(entry, 0, None, 0)
                && !is_unchanged(entry, unchanged)
            {
                put(*owner, entry.family(), &element);
            }
            if let Some(lot) = lot(entry, self.lanes.of_entry(entry)) {
                let lots = change.lots.get_mut(entry.family());
                *lots.entry(lot).or_insert(0) -= 1;
            }
            if let Entry::AllowedSource { network, .. } = entry {
                let lengths = change.lengths.get_mut(entry.family());
                *lengths.entry(network.prefix()).or_insert(0) -= 1;
            }
        }
        for (owner, element) in &change.affinity.remove {
            if let Some(family) = element.family() {
                put(*owner, family, element);
            }
        }
    }

    /// Appends the parts of the program that are needed from now on and are not there.
    fn put_parts(&self, batch: &mut Batch, family: Family, delta: &Delta, change: &mut Change) {
        let lots = change.lots.get_mut(family);
        let lengths = change.lengths.get_mut(family);
        for Operation { entry, .. } in &delta.add {
            if entry.family() != family {
                continue;
            }
            if let Some(lot) = lot(entry, change.lanes.of_entry(entry)) {
                *lots.entry(lot).or_insert(0) += 1;
            }
            if let Entry::AllowedSource { network, .. } = entry {
                *lengths.entry(network.prefix()).or_insert(0) += 1;
            }
        }
        let known = self.parts.get(family);
        // Nothing new is the rule.
        let needed: BTreeSet<Lot> = lots
            .iter()
            .filter(|(lot, by)| **by > 0 && !known.lots.contains(lot))
            .map(|(lot, _)| *lot)
            .filter(|lot| *lot != Lot::NONE)
            .collect();
        let needed_chains = choice::drawn(&needed);
        let chains: Vec<Lot> = needed_chains.difference(&known.draws).copied().collect();
        let program = Program::new(&self.config, family);
        let replace = *self.replace.get(family);
        let mut new: Vec<Chain> = if replace {
            program.fixed_chains()
        } else {
            Vec::new()
        };
        new.extend(chains.iter().map(|lot| choice::draw_chain(*lot)));
        // First all chains, then all rules: a rule may go to any chain.
        for chain in &new {
            tables::put_chain(batch, family, chain);
        }
        for chain in &new {
            tables::put_rules(batch, family, chain);
        }
        let mut put = |(map, number, verdict): (SetId, u32, Verdict)| {
            let (kind, verdict) = (ElementOperation::Add, Cow::Owned(verdict));
            let element = Element::Verdict {
                map,
                number,
                verdict,
            };
            batch.put_element(family, map, kind, Owner::Cluster, |out| {
                elements::put(out, &element);
            });
        };
        if replace {
            choice::fixed_elements().for_each(&mut put);
        }
        for lot in &needed {
            choice::draw_elements(*lot).for_each(&mut put);
        }
        batch.barrier();
        let new_lengths = lengths
            .iter()
            .filter(|(length, by)| **by > 0 && !known.lengths.contains(length))
            .map(|(length, _)| *length);
        let lengths: BTreeSet<u8> = new_lengths.collect();
        if !lengths.is_empty() {
            put_lengths(batch, family, &(&known.lengths | &lengths));
        }
        let (parts, new_timeouts) = change.parts.get_mut(family);
        parts.lengths = lengths;
        parts.draws.extend(chains);
        parts.lots = needed;
        if let Some(timeouts) = change.affinity.timeouts(family)
            && timeouts
                .iter()
                .any(|(class, seconds)| known.timeouts.get(class) != Some(seconds))
        {
            put_timeouts(batch, family, &timeouts, !replace);
            (parts.timeouts, *new_timeouts) = (timeouts, true);
        }
    }

    /// Takes in that the kernel has taken a transaction. Returns what was rounded.
    pub(super) fn applied(&mut self, mut change: Change) -> Vec<Rounded> {
        for family in Family::BOTH {
            let lots = self.lots.get_mut(family);
            for (lot, by) in std::mem::take(change.lots.get_mut(family)) {
                let count = lots.entry(lot).or_insert(0);
                *count = count.saturating_add_signed(by);
                if *count == 0 {
                    lots.remove(&lot);
                }
            }
            let lengths = self.lengths.get_mut(family);
            for (length, by) in std::mem::take(change.lengths.get_mut(family)) {
                let count = lengths.entry(length).or_insert(0);
                *count = count.saturating_add_signed(by);
                if *count == 0 {
                    lengths.remove(&length);
                }
            }
            let elements = self.elements.get_mut(family);
            for (count, by) in elements.iter_mut().zip(change.elements.get(family)) {
                *count = count.saturating_add_signed(*by);
            }
            let (new, new_timeouts) = std::mem::take(change.parts.get_mut(family));
            let parts = self.parts.get_mut(family);
            parts.draws.extend(new.draws);
            parts.lots.extend(new.lots);
            parts.lengths.extend(new.lengths);
            if new_timeouts {
                parts.timeouts = new.timeouts;
            }
        }
        let rounded = std::mem::take(&mut change.affinity.rounded);
        self.affinity.commit(change.affinity);
        self.lanes.commit(change.lanes);
        for family in &self.config.families {
            *self.replace.get_mut(*family) = false;
            self.leftovers.retain(|left| left != family);
        }
        self.debris.clear();
        rounded
    }

    /// The parts of the program that are of use in a family.
    fn used(&self, family: Family) -> Parts {
        let lots: BTreeSet<Lot> = self
            .lots
            .get(family)
            .keys()
            .copied()
            .filter(|lot| *lot != Lot::NONE)
            .collect();
        Parts {
            draws: choice::drawn(&lots),
            lots,
            timeouts: self.affinity.classes.get(family).timeouts(),
            lengths: self.lengths.get(family).keys().copied().collect(),
        }
    }

    /// What of the program is in use and not there: somebody has taken it away.
    pub(super) fn lacking(&self, family: Family) -> Option<String> {
        let (known, used) = (self.parts.get(family), self.used(family));
        let lot = used.lots.difference(&known.lots).next();
        let length = used.lengths.difference(&known.lengths).next();
        lot.map(|lot| format!("nobody draws one of {} places ({lot})", lot.size()))
            .or_else(|| {
                length.map(|length| format!("nobody looks for source ranges of length {length}"))
            })
    }

    /// Whether the kernel holds parts of the program that nobody uses any more.
    pub(super) fn has_garbage(&self) -> bool {
        let mut families = self.config.families.iter();
        families.any(|family| self.used(*family) != *self.parts.get(*family))
    }

    /// The transaction that takes away the parts that nobody uses any more, and what is left.
    pub(super) fn collect(&self) -> (Batch, PerFamily<Parts>) {
        let mut batch = Batch::new(false);
        let mut left = self.parts.clone();
        for family in &self.config.families {
            let (known, used) = (self.parts.get(*family), self.used(*family));
            for lot in known.lots.difference(&used.lots) {
                for (map, number, verdict) in choice::draw_elements(*lot) {
                    let (kind, verdict) = (ElementOperation::Delete, Cow::Owned(verdict));
                    let element = Element::Verdict {
                        map,
                        number,
                        verdict,
                    };
                    batch.put_element(*family, map, kind, Owner::Cluster, |out| {
                        elements::put_key(out, &element);
                    });
                }
            }
            batch.barrier();
            for lot in known.draws.difference(&used.draws) {
                tables::put_delete_chain(&mut batch, *family, &choice::draw_name(*lot));
            }
            if known.timeouts != used.timeouts {
                put_timeouts(&mut batch, *family, &used.timeouts, true);
            }
            if known.lengths != used.lengths {
                put_lengths(&mut batch, *family, &used.lengths);
            }
            *left.get_mut(*family) = used;
        }
        (batch, left)
    }
}

/// Writes the rules that remember anew.
fn put_timeouts(batch: &mut Batch, family: Family, timeouts: &BTreeMap<Class, u32>, flush: bool) {
    if flush {
        tables::put_flush_chain(batch, family, super::program::TABLE, choice::REMEMBER);
    }
    let rules = timeouts
        .iter()
        .map(|(class, seconds)| choice::remember_rule(family, *class, *seconds));
    let chain = Chain::regular(choice::REMEMBER, rules.collect());
    tables::put_rules(batch, family, &chain);
}

/// Writes the rules that admit sources anew.
fn put_lengths(batch: &mut Batch, family: Family, lengths: &BTreeSet<u8>) {
    tables::put_flush_chain(batch, family, super::program::TABLE, CHECK_SOURCE);
    tables::put_rules(batch, family, &sources::check_source(family, lengths));
}

fn put_additions(batch: &mut Batch, delta: &Delta, unchanged: &Unchanged, change: &mut Change) {
    let (staged, counts) = (&change.affinity, &mut change.elements);
    let mut put = |owner, family, element: &Element<'_>| {
        let kind = ElementOperation::Add;
        batch.put_element(family, element.set(), kind, owner, |out| {
            elements::put(out, element);
        });
        counts.get_mut(family)[element.set() as usize] += 1;
    };
    for Operation { owner, entry } in &delta.add {
        let (class, wanted) = match entry {
            Entry::Route { destination, .. } | Entry::ExternalRoute { destination, .. } => {
                staged.class_of(destination)
            }
            _ => (0, None),
        };
        if let Some(element) = Element::of(entry, class, wanted, change.lanes.of_entry(entry))
            && !is_unchanged(entry, unchanged)
        {
            put(*owner, entry.family(), &element);
        }
    }
    for (owner, element) in &staged.add {
        if let Some(family) = element.family() {
            put(*owner, family, element);
        }
    }
}

/// Makes transactions without a kernel to take them: what a node would be sent, for tests and
/// benchmarks to count and measure. Every transaction is taken to have been applied.
#[cfg(any(test, feature = "internals"))]
pub struct Encoder(Programmed);

#[cfg(any(test, feature = "internals"))]
impl Encoder {
    /// One that begins with an empty kernel.
    #[must_use]
    pub fn new(config: Options) -> Self {
        Self(Programmed::new(config))
    }

    /// The bytes of the transaction for a delta, as they go over the socket.
    pub fn transaction(&mut self, delta: &Delta) -> Vec<u8> {
        let (batch, change) = self.0.encode(delta);
        self.0.applied(change);
        batch.into_bytes()
    }
}

#[cfg(test)]
#[path = "transaction_tests.rs"]
mod tests;
