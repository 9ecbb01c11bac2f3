//! The sync loop's heart: the cluster's state, the diff engine and the backend, in one place
//! that owns all that changes.
//!
//! Changes go in, transactions come out. When to sync, and what to do about a failure that
//! lasts, is `run`'s business.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::ops::AddAssign;
use std::time::{Duration, Instant};

use rustc_hash::FxBuildHasher;

use crate::agent::budget::Budgets;
use crate::core::compile::{self, Compiled, HealthCheck, NodePortAddresses, WithoutLocal};
use crate::core::diff::{Contested, Engine, StaleFlows};
use crate::core::incremental::Incremental;
use crate::core::ir::{Delta, Destination};
use crate::core::model::{
    Change, ChangedSlices, Dirty, Node, ObjectKey, Owner, PerFamily, ServiceId, State,
};
use crate::dataplane::{Applied, ApplyError, Backend, Refused, Unavailable};

/// What a sync did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Synced {
    /// The transactions, if there was something to do.
    pub applied: Applied,
    /// Services that were compiled again.
    pub compiled: usize,
    /// Time that compiling and comparing took.
    pub computing: Duration,
    /// Services left out because the kernel refused them.
    pub left_out: usize,
    /// Nothing that was taken in is left to be programmed, but for Services that have to wait.
    pub settled: bool,
    /// When the first of those is to be looked at that have to wait, having taken much time before.
    pub wait: Option<Instant>,
}

impl AddAssign for Synced {
    fn add_assign(&mut self, next: Self) {
        self.applied += next.applied;
        self.compiled += next.compiled;
        self.computing += next.computing;
        self.left_out = next.left_out;
        self.settled = next.settled;
        self.wait = next.wait;
    }
}

/// How many lines a Service that claims what others claim is worth.
const REPORTED: usize = 8;
/// A transaction of fewer operations takes so little time that nobody asks whose it was.
const COUNTED: usize = 256;
/// How often one sync reads the kernel again and retries: once for drift, once to find a
/// Service that is refused, and then without it.
const ATTEMPTS: usize = 4;
/// From which refusal in a row on it is the fault of the Service that it names.
const TO_BLAME: usize = 3;
/// How often one sync does that in all, before it gives up until the next one.
const MOST_REFUSALS: usize = 100;

/// What the cluster wants and what the kernel has.
#[derive(Debug)]
pub struct Desired {
    state: State,
    engine: Engine,
    health_checks: BTreeMap<ServiceId, (ObjectKey, HealthCheck)>,
    without_local: BTreeMap<ServiceId, PerFamily<WithoutLocal>>,
    /// How many destinations are left out of Services that are too large.
    too_large: BTreeMap<ServiceId, u32>,
    node_ports: NodePortAddresses,
    /// Services with many endpoints.
    many: HashMap<ServiceId, Incremental, FxBuildHasher>,
    /// How much time Services have taken.
    budgets: Budgets,
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
            node_ports,
            many: HashMap::default(),
            budgets: Budgets::default(),
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

    /// The same but for Services that have taken too much time lately. Returns besides when the
    /// first of them is to be looked at.
    fn compile_in_turn(&mut self) -> (Vec<Owner>, Option<Instant>) {
        let now = Instant::now();
        self.budgets.settle(now);
        let mut first: Option<Instant> = None;
        let budgets = &self.budgets;
        let dirty = self.state.take_dirty_if(|owner| {
            let wait = owner.service().and_then(|id| budgets.wait(id, now));
            if let Some(until) = wait {
                first = Some(first.map_or(until, |first| first.min(until)));
            }
            wait.is_none()
        });
        (self.compile_dirty(dirty), first)
    }

    fn compile_dirty(&mut self, dirty: Vec<Dirty>) -> Vec<Owner> {
        let mut owners = Vec::with_capacity(dirty.len());
        for Dirty { owner, slices } in dirty {
            owners.push(owner);
            let contested = match owner {
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
            };
            self.report(&contested);
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
    fn spend(&mut self, id: ServiceId, time: Duration) {
        if let Some(key) = self.state.name(id) {
            let now = Instant::now();
            self.budgets.spend(id, &key.namespace, time, now);
        }
    }

    /// Notes how much of a transaction was whose.
    fn spend_transaction(&mut self, delta: &Delta, time: Duration) {
        if delta.len() < COUNTED {
            return;
        }
        let mut operations: HashMap<ServiceId, u32, FxBuildHasher> = HashMap::default();
        for operation in delta.remove.iter().chain(&delta.add) {
            if let Some(id) = operation.owner.service() {
                *operations.entry(id).or_insert(0) += 1;
            }
        }
        let all = u32::try_from(delta.len()).unwrap_or(u32::MAX);
        for (id, count) in operations {
            self.spend(id, time / all * count);
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

    fn name(&self, owner: Owner) -> String {
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

/// A cluster and the kernel that follows it.
pub struct Proxy<B> {
    desired: Desired,
    backend: B,
    left_out: BTreeSet<Owner>,
    /// Transactions keep Services apart.
    isolated: bool,
    stale_flows: Vec<StaleFlows>,
}

impl<B: Backend> Proxy<B> {
    /// Takes over what the kernel holds. Changes nothing.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
    pub fn start(desired: Desired, backend: B) -> Result<Self, Unavailable> {
        let mut proxy = Self::new(desired, backend);
        proxy.adopt()?;
        Ok(proxy)
    }

    /// One that does not know yet what the kernel holds: [`Self::read_again`] must come first.
    #[must_use]
    pub const fn new(desired: Desired, backend: B) -> Self {
        Self {
            desired,
            backend,
            left_out: BTreeSet::new(),
            isolated: false,
            stale_flows: Vec::new(),
        }
    }

    fn adopt(&mut self) -> Result<(), Unavailable> {
        let entries = self.backend.read()?;
        self.desired.engine.adopt(entries);
        Ok(())
    }

    /// Reads again what the kernel holds, after somebody else has changed it; [`Self::sync`] puts
    /// it right.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
    pub fn read_again(&mut self) -> Result<(), Unavailable> {
        self.adopt()
    }

    /// Takes in what happened in the cluster; [`Self::sync`] makes it so.
    pub fn take(&mut self, changes: impl IntoIterator<Item = Change>) {
        self.desired.take(changes);
    }

    /// The backend.
    pub const fn backend(&self) -> &B {
        &self.backend
    }

    /// The backend, to change what it programs; [`Self::read_again`] must follow.
    pub const fn backend_mut(&mut self) -> &mut B {
        &mut self.backend
    }

    /// The cluster and what it wants.
    #[must_use]
    pub const fn desired(&self) -> &Desired {
        &self.desired
    }

    /// Brings the kernel to what the cluster wants, in one transaction, or in several if there is
    /// so much to do that one would keep the kernel busy for long.
    ///
    /// # Errors
    ///
    /// As [`Self::step`].
    pub fn sync(&mut self) -> Result<Synced, ApplyError> {
        let mut synced = Synced::default();
        let started = Instant::now();
        let compiled = self.desired.compile();
        self.give_another_chance(&compiled);
        synced.compiled = compiled.len();
        synced.computing = started.elapsed();
        while !synced.settled {
            self.transact(&mut synced)?;
        }
        Ok(synced)
    }

    /// Takes the kernel one transaction nearer to what the cluster wants. Services that have taken
    /// too much time lately wait.
    ///
    /// A transaction that is refused is tried again after reading what the kernel really
    /// holds; a Service that is refused even then is left out, loudly, until it changes.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be brought there now. The transaction that failed has changed
    /// nothing in it, and those before it stay.
    pub fn step(&mut self) -> Result<Synced, ApplyError> {
        let started = Instant::now();
        let (compiled, wait) = self.desired.compile_in_turn();
        self.give_another_chance(&compiled);
        let mut synced = Synced {
            compiled: compiled.len(),
            computing: started.elapsed(),
            wait,
            ..Synced::default()
        };
        self.transact(&mut synced)?;
        Ok(synced)
    }

    /// Those that have changed may not be refused any more.
    fn give_another_chance(&mut self, compiled: &[Owner]) {
        if !self.left_out.is_empty() {
            for owner in compiled {
                self.left_out.remove(owner);
            }
        }
    }

    /// Applies one transaction.
    fn transact(&mut self, synced: &mut Synced) -> Result<(), ApplyError> {
        let (mut refusals, mut all_refusals) = (0, 0);
        loop {
            let started = Instant::now();
            let most = self.backend.most_operations();
            let pending = self.desired.engine.pending_up_to(most);
            synced.computing += started.elapsed();
            match self.backend.apply(pending.delta()) {
                Ok(applied) => {
                    synced.applied += applied;
                    let time = applied.encoding + applied.kernel;
                    self.desired.spend_transaction(pending.delta(), time);
                    let started = Instant::now();
                    self.stale_flows.extend(self.desired.engine.commit(pending));
                    synced.computing += started.elapsed();
                    synced.settled = self.desired.engine.is_settled();
                    synced.left_out = self.left_out.len();
                    self.isolate(false);
                    return Ok(());
                }
                Err(ApplyError::Unavailable(error)) => {
                    self.isolate(false);
                    return Err(error.into());
                }
                Err(ApplyError::Refused(refused)) => {
                    refusals += 1;
                    all_refusals += 1;
                    // Somebody keeps changing what we program: others want to be heard too.
                    let enough = all_refusals >= MOST_REFUSALS;
                    if self.refused(refused, refusals, enough)? {
                        // That was one to blame; there may be more.
                        refusals = TO_BLAME - 1;
                    }
                }
            }
        }
    }

    /// Makes ready for another attempt after a transaction was refused for the given time in a
    /// row, unless that is enough. Returns whether a Service is left out from now on.
    fn refused(
        &mut self,
        refused: Vec<Refused>,
        times: usize,
        enough: bool,
    ) -> Result<bool, ApplyError> {
        if refused.iter().all(Refused::is_nobodys_fault) {
            // Nothing has changed, and nothing that is tried at once would go better.
            self.isolate(false);
            return Err(ApplyError::Refused(refused));
        }
        let to_blame = refused.iter().filter(|refused| !refused.is_nobodys_fault());
        let blamed: BTreeSet<Owner> = to_blame
            .flat_map(|refused| refused.owners.iter().copied())
            .filter(|owner| *owner != Owner::Cluster)
            .collect();
        let error = ApplyError::Refused(refused);
        tracing::warn!(times, %error, "transaction refused; reading the kernel again");
        // Of a transaction that keeps Services apart a refusal names the one that is to blame, of any
        // other whoever is in it.
        let found = self.isolated && times >= TO_BLAME && !blamed.is_empty();
        if found {
            self.leave_out(&blamed);
        }
        let enough = enough || (times >= ATTEMPTS && !found);
        // From the second time on it is not drift: find out whose fault it is.
        self.isolate(times > 1 && !enough);
        self.adopt()?;
        if enough { Err(error) } else { Ok(found) }
    }

    /// The UDP destinations whose flows may be stale, since the last call.
    pub fn take_stale_flows(&mut self) -> Vec<StaleFlows> {
        std::mem::take(&mut self.stale_flows)
    }

    fn isolate(&mut self, isolate: bool) {
        self.isolated = isolate;
        self.backend.isolate_services(isolate);
    }

    fn leave_out(&mut self, services: &BTreeSet<Owner>) {
        for id in services {
            tracing::error!(
                service = self.desired.name(*id),
                "the kernel refuses this Service: it is left out until it changes",
            );
            self.desired.engine.update(*id, None);
            self.left_out.insert(*id);
        }
    }

    /// Whether there is something to [`Self::tidy`].
    #[must_use]
    pub fn has_garbage(&self) -> bool {
        self.backend.has_garbage()
    }

    /// Takes away what nothing needs any more. Returns whether it could be.
    pub fn tidy(&mut self) -> bool {
        let result = self.backend.tidy();
        if let Err(error) = &result {
            // Harmless: unused chains stay until the next time.
            tracing::debug!(%error, "could not take away what is unused");
        }
        result.is_ok()
    }
}

#[cfg(test)]
#[path = "reconciler_tests.rs"]
mod tests;
