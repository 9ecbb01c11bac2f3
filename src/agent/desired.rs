//! What the cluster wants: its state, what that is compiled to, and how it differs from what is
//! applied.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::{FxBuildHasher, FxHashSet};

use super::budget::{self, Budgets};
use crate::core::compile::{self, Compiled, HealthCheck, NodePortAddresses, WithoutLocal};
use crate::core::diff::{Contested, Engine};
use crate::core::incremental::Incremental;
use crate::core::ir::{Delta, Destination};
use crate::core::model::{
    Change, ChangedSlices, Dirty, Node, ObjectKey, Owner, PerFamily, ServiceId, State,
};
use crate::core::observe::{self, Watched};

/// How many lines a Service that claims what others claim is worth.
const REPORTED: usize = 8;
/// A transaction of fewer operations takes so little time that nobody asks whose it was.
const COUNTED: usize = 256;
/// What the cluster wants and what the kernel has.
#[derive(Debug)]
pub struct Desired {
    pub(super) state: State,
    pub(super) engine: Engine,
    health_checks: BTreeMap<ServiceId, (ObjectKey, HealthCheck)>,
    without_local: BTreeMap<ServiceId, PerFamily<WithoutLocal>>,
    /// How many destinations are left out of Services that are too large.
    too_large: BTreeMap<ServiceId, u32>,
    /// Services of which all endpoints of a list weigh nothing.
    drained: FxHashSet<ServiceId>,
    /// Services of which connections are looked at.
    watched: BTreeMap<ServiceId, Arc<[Watched]>>,
    /// They have changed since somebody took them.
    watched_changed: bool,
    node_ports: NodePortAddresses,
    /// Services with many endpoints.
    many: HashMap<ServiceId, Incremental, FxBuildHasher>,
    /// How much time Services have taken.
    budgets: Budgets,
    /// The first load is over, which is nobody's doing.
    pub(super) begun: bool,
    /// What is done now is somebody's doing.
    charges: bool,
}

impl Desired {
    /// An empty cluster around a node.
    #[must_use]
    pub fn new(node: Node, node_ports: NodePortAddresses) -> Self {
        Self {
            state: State::new(node),
            engine: Engine::default(),
            health_checks: BTreeMap::new(),
            without_local: BTreeMap::new(),
            too_large: BTreeMap::new(),
            drained: FxHashSet::default(),
            watched: BTreeMap::new(),
            watched_changed: false,
            node_ports,
            many: HashMap::default(),
            budgets: Budgets::default(),
            begun: false,
            charges: false,
        }
    }

    /// Takes in what happened in the cluster.
    pub fn take(&mut self, changes: impl IntoIterator<Item = Change>) {
        for change in changes {
            self.state.apply(change);
        }
    }

    /// Compiles what the changes touched; returns whose that was.
    pub fn compile(&mut self) -> Vec<Owner> {
        let dirty = self.state.take_dirty();
        self.compile_dirty(dirty)
    }

    /// The same but for costly Services of namespaces that have taken too much time lately. Returns
    /// besides when the first of them is to be looked at.
    pub(super) fn compile_in_turn(&mut self) -> (Vec<Owner>, Option<Instant>) {
        let now = Instant::now();
        self.budgets.settle(now);
        self.charges = self.begun && !self.state.take_all_dirty();
        if self.budgets.are_free() {
            let dirty = self.state.take_dirty();
            return (self.compile_dirty(dirty), None);
        }
        let mut first: Option<Instant> = None;
        let waiting: FxHashSet<Owner> = self
            .state
            .dirty()
            .filter(|owner| {
                let until = self.wait(*owner, now);
                if let Some(until) = until {
                    first = Some(first.map_or(until, |first| first.min(until)));
                }
                until.is_some()
            })
            .collect();
        let dirty = self.state.take_dirty_if(|owner| !waiting.contains(&owner));
        (self.compile_dirty(dirty), first)
    }

    /// Until when somebody has to wait. Who is gone does not: others may be after what it had.
    fn wait(&self, owner: Owner, now: Instant) -> Option<Instant> {
        let known = self.state.service(owner.service()?)?;
        let until = self.budgets.wait(&known.key.namespace, now)?;
        budget::is_costly(known).then_some(until)
    }

    fn compile_dirty(&mut self, dirty: Vec<Dirty>) -> Vec<Owner> {
        let mut owners = Vec::with_capacity(dirty.len());
        let mut contested = Vec::new();
        for Dirty { owner, slices } in dirty {
            owners.push(owner);
            contested.extend(match owner {
                Owner::Cluster => {
                    let compiled = compile::compile_cluster(&self.state, &self.node_ports);
                    self.engine.update(owner, Some(compiled))
                }
                Owner::Service(id) => {
                    let started = Instant::now();
                    let compiled = self.compile_service(id, slices);
                    self.note(id, compiled.as_ref());
                    let contested = self.engine.update(owner, compiled);
                    self.spend(id, started.elapsed());
                    contested
                }
            });
        }
        // A Service that takes over what another lets go of in the same change contests nothing.
        if !contested.is_empty() {
            self.report(&self.engine.still_contested(contested));
        }
        owners
    }

    /// Notes what others than the engine have to know of a Service.
    fn note(&mut self, id: ServiceId, compiled: Option<&Compiled>) {
        match compiled.map(|compiled| compiled.without_local) {
            Some(without) if without != PerFamily::default() => {
                self.without_local.insert(id, without);
            }
            _ => {
                self.without_local.remove(&id);
            }
        }
        self.note_left_out(id, compiled.map_or(0, |compiled| compiled.left_out));
        self.note_watched(id);
        self.note_drained(id, compiled.is_some_and(|compiled| compiled.all_drained));
        let health_check = compiled.and_then(|compiled| compiled.health_check.as_deref().copied());
        match (self.state.name(id), health_check) {
            (Some(key), Some(check)) => {
                self.health_checks.insert(id, (key.clone(), check));
            }
            _ => {
                self.health_checks.remove(&id);
            }
        }
    }

    /// Notes how much time a Service has taken.
    pub(super) fn spend(&mut self, id: ServiceId, time: Duration) {
        if self.charges
            && let Some(key) = self.state.name(id)
        {
            self.budgets.spend(&key.namespace, time, Instant::now());
        }
    }

    /// Notes how much of a transaction was whose.
    pub(super) fn spend_transaction(&mut self, delta: &Delta) {
        if delta.len() < COUNTED {
            return;
        }
        let mut operations: HashMap<ServiceId, u32, FxBuildHasher> = HashMap::default();
        for operation in delta.remove.iter().chain(&delta.add) {
            if let Some(id) = operation.owner.service() {
                *operations.entry(id).or_insert(0) += 1;
            }
        }
        for (id, count) in operations {
            self.spend(id, budget::operations(count));
        }
    }

    fn compile_service(
        &mut self,
        id: ServiceId,
        slices: Option<ChangedSlices>,
    ) -> Option<Compiled> {
        let Some(known) = self.state.service(id) else {
            self.many.remove(&id);
            return None;
        };
        let node = self.state.node();
        if !Incremental::suits(known) {
            let compiled = compile::compile_known(known, node);
            if self.many.remove(&id).is_some() {
                self.state.track(id, false);
            }
            return Some(compiled);
        }
        let incremental = match (self.many.entry(id), slices) {
            (Entry::Occupied(entry), Some(slices)) => {
                let incremental = entry.into_mut();
                incremental.change(known, &slices);
                incremental
            }
            (entry, _) => {
                let held =
                    |destination: Destination, list| self.engine.applied(&destination)?.list(list);
                let new = Incremental::new(known, node, held);
                entry.insert_entry(new).into_mut()
            }
        };
        let compiled = incremental.compile(known, node);
        self.state.track(id, true);
        Some(compiled)
    }

    fn note_watched(&mut self, id: ServiceId) {
        let known = self.state.service(id);
        let watched = known.map(|known| observe::watched(known, self.state.node()));
        let watched = watched.filter(|watched| !watched.is_empty());
        if self.watched.get(&id).map(|known| &**known) == watched.as_deref() {
            return;
        }
        self.watched_changed = true;
        match watched {
            Some(watched) => self.watched.insert(id, watched.into()),
            None => self.watched.remove(&id),
        };
    }

    /// The Service ports of which connections are looked at, if they have changed since the last call.
    pub(super) fn take_watched(&mut self) -> Option<Vec<Arc<[Watched]>>> {
        std::mem::take(&mut self.watched_changed).then(|| self.watched.values().cloned().collect())
    }

    fn note_drained(&mut self, id: ServiceId, is_drained: bool) {
        if !is_drained {
            self.drained.remove(&id);
        } else if self.drained.insert(id) {
            tracing::warn!(
                service = self.name(Owner::Service(id)),
                "all endpoints that could take connections have weight 0: they take them as if all weighed the same",
            );
        }
    }

    fn note_left_out(&mut self, id: ServiceId, left_out: u32) {
        let before = match left_out {
            0 => self.too_large.remove(&id),
            _ => self.too_large.insert(id, left_out),
        };
        if left_out > 0 && before != Some(left_out) {
            tracing::warn!(
                service = self.name(Owner::Service(id)),
                left_out,
                "spec.ports, addresses and endpoints multiply to more than {} elements: \
                 destinations beyond that are left out",
                compile::MOST_ELEMENTS,
            );
        }
    }

    /// One line for each two Services, however many destinations it is about.
    fn report(&self, contested: &[Contested]) {
        let mut pairs: BTreeMap<(Owner, Owner), (Destination, usize)> = BTreeMap::new();
        for one in contested {
            let pair = pairs.entry((one.winner, one.loser));
            pair.or_insert((one.destination, 0)).1 += 1;
        }
        for ((winner, loser), (destination, destinations)) in pairs.iter().take(REPORTED) {
            tracing::warn!(
                %destination,
                destinations,
                served = self.name(*winner),
                waiting = self.name(*loser),
                "two Services claim one address and port: the older one has it",
            );
        }
        if let Some(more) = pairs.len().checked_sub(REPORTED).filter(|more| *more > 0) {
            tracing::warn!(more, "and so do more pairs of Services");
        }
    }

    pub(super) fn name(&self, owner: Owner) -> String {
        let key = owner.service().and_then(|id| self.state.name(id));
        key.map_or_else(|| "the cluster".to_owned(), ToString::to_string)
    }

    /// Which of the node's addresses accept `NodePort`s, as configured.
    #[must_use]
    pub const fn node_ports(&self) -> &NodePortAddresses {
        &self.node_ports
    }

    /// The addresses of this node that accept `NodePort`s.
    #[must_use]
    pub fn node_port_addresses(&self) -> Vec<IpAddr> {
        compile::accepted_node_port_addresses(&self.state, &self.node_ports)
    }

    /// The health checks of Services, and whose they are.
    pub fn health_checks(&self) -> impl Iterator<Item = &(ObjectKey, HealthCheck)> {
        self.health_checks.values()
    }

    /// How many Service ports a Local policy leaves without endpoints here.
    #[must_use]
    pub fn without_local(&self) -> PerFamily<WithoutLocal> {
        let mut sum = PerFamily::<WithoutLocal>::default();
        for service in self.without_local.values() {
            for (family, without) in service.iter() {
                let sum = sum.get_mut(family);
                sum.internal += without.internal;
                sum.external += without.external;
            }
        }
        sum
    }

    /// Services that are too large, of which destinations are left out.
    pub(super) fn too_large(&self) -> Vec<String> {
        let ids = self.too_large.keys();
        ids.map(|id| self.name(Owner::Service(*id))).collect()
    }

    /// The same by id, and how many destinations that is.
    #[must_use]
    pub const fn left_out(&self) -> &BTreeMap<ServiceId, u32> {
        &self.too_large
    }

    /// Whether what an `EndpointSlice` was last is programmed.
    #[must_use]
    pub fn has_programmed(&self, slice: &ObjectKey) -> bool {
        self.state.owner_of(slice).is_none_or(|id| {
            let owner = Owner::Service(id);
            !self.state.is_dirty(owner) && self.engine.has_settled(owner)
        })
    }

    /// The cluster's objects.
    #[must_use]
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// What is wanted, compared with what is applied.
    #[must_use]
    pub const fn engine(&self) -> &Engine {
        &self.engine
    }
}
