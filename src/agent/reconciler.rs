//! The sync loop's heart: the cluster's state, the diff engine and the backend, in one place
//! that owns all that changes.
//!
//! Changes go in, transactions come out. When to sync, and what to do about a failure that
//! lasts, is `run`'s business.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::AddAssign;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::core::diff::StaleFlows;
use crate::core::model::{Change, Family, Owner, PerFamily};
use crate::core::observe::Watched;
use crate::dataplane::{Applied, ApplyError, Backend, Refused, Unavailable};

pub use super::desired::Desired;

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
    /// Families that are left as they are because the kernel refuses their program.
    pub resting: PerFamily<bool>,
}

impl AddAssign for Synced {
    fn add_assign(&mut self, next: Self) {
        self.applied += next.applied;
        self.compiled += next.compiled;
        self.computing += next.computing;
        self.left_out = next.left_out;
        self.settled = next.settled;
        self.wait = next.wait;
        self.resting = next.resting;
    }
}

/// How often one sync reads the kernel again and retries: once for drift, once to find a
/// Service that is refused, and then without it.
const ATTEMPTS: usize = 4;
/// From which refusal in a row on it is the fault of the Service that it names.
const TO_BLAME: usize = 3;
/// How often one sync does that in all, before it gives up until the next one.
const MOST_REFUSALS: usize = 100;

/// Who is left out of the next attempt.
enum Without {
    Nobody,
    /// Services that the kernel refuses.
    Services,
    /// All of one family.
    Family,
}

/// A cluster and the kernel that follows it.
pub struct Proxy<B> {
    desired: Desired,
    backend: B,
    left_out: BTreeSet<(Owner, Family)>,
    /// Families that are left as they are because the kernel refuses their program.
    resting: Vec<Family>,
    /// Transactions keep Services apart.
    isolated: bool,
    stale_flows: Vec<StaleFlows>,
    /// The node's addresses of which flows to `NodePort`s have been looked through.
    addresses: BTreeSet<IpAddr>,
}

impl<B: Backend> Proxy<B> {
    /// Takes over what the kernel holds. Changes nothing.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
    #[cfg(any(test, feature = "internals"))]
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
            resting: Vec::new(),
            isolated: false,
            stale_flows: Vec::new(),
            addresses: BTreeSet::new(),
        }
    }

    fn adopt(&mut self) -> Result<(), Unavailable> {
        let entries = self.backend.read()?;
        self.desired.engine.program(&self.backend.families());
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

    /// Gives families that were refused another chance; [`Self::read_again`] must follow.
    pub fn wake(&mut self) {
        for family in std::mem::take(&mut self.resting) {
            self.backend.withhold(family, false);
        }
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

    /// The Service ports of which connections are looked at, if they have changed since the last call.
    pub(super) fn take_watched(&mut self) -> Option<Vec<Arc<[Watched]>>> {
        self.desired.take_watched()
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
            self.left_out.retain(|(owner, _)| !compiled.contains(owner));
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
                    self.desired.spend_transaction(pending.delta());
                    let started = Instant::now();
                    self.stale_flows.extend(self.desired.engine.commit(pending));
                    synced.computing += started.elapsed();
                    synced.settled = self.desired.engine.is_settled();
                    if synced.settled {
                        self.follow_addresses();
                    }
                    self.desired.begun |= synced.settled;
                    let left_out: BTreeSet<Owner> =
                        self.left_out.iter().map(|(owner, _)| *owner).collect();
                    synced.left_out = left_out.len();
                    synced.resting = PerFamily::from_fn(|family| self.resting.contains(&family));
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
                    match self.refused(refused, refusals, enough)? {
                        Without::Nobody => {}
                        // That was one to blame; there may be more.
                        Without::Services => refusals = TO_BLAME - 1,
                        Without::Family => (refusals, all_refusals) = (0, 0),
                    }
                }
            }
        }
    }

    /// Flows to an address that was not the node's for a while were nobody's business meanwhile.
    fn follow_addresses(&mut self) {
        let now: BTreeSet<IpAddr> = self.desired.node_port_addresses().into_iter().collect();
        let come: BTreeSet<Family> = now
            .difference(&self.addresses)
            .map(|address| Family::of(*address))
            .collect();
        for family in come {
            let flows = self.desired.engine.node_port_flows(family);
            self.stale_flows.extend(flows);
        }
        self.addresses = now;
    }

    /// Makes ready for another attempt after a transaction was refused for the given time in a
    /// row, unless that is enough. Returns who is left out of it.
    fn refused(
        &mut self,
        refused: Vec<Refused>,
        times: usize,
        enough: bool,
    ) -> Result<Without, ApplyError> {
        let family = self.family_of(&refused);
        if refused.iter().all(Refused::is_nobodys_fault) {
            // Nothing has changed, and nothing that is tried at once would go better.
            self.isolate(false);
            return self.without(family, ApplyError::Refused(refused));
        }
        let to_blame = refused.iter().filter(|refused| !refused.is_nobodys_fault());
        let blamed: BTreeSet<(Owner, Family)> = to_blame
            .flat_map(|refused| refused.owners.iter().map(|owner| (*owner, refused.family)))
            .filter_map(|(owner, family)| Some((owner, family?)))
            .filter(|(owner, _)| *owner != Owner::Cluster)
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
        if enough {
            return self.without(family, error);
        }
        self.adopt()?;
        Ok(if found {
            Without::Services
        } else {
            Without::Nobody
        })
    }

    /// The family that all of it is about, if there is another one that serves.
    fn family_of(&self, refused: &[Refused]) -> Option<Family> {
        let family = refused.first()?.family?;
        let is_alone = refused.iter().all(|refused| refused.family == Some(family));
        let mut others = self.backend.families().into_iter();
        let serves = |other| other != family && self.desired.engine.serves(other);
        (is_alone && others.any(serves)).then_some(family)
    }

    /// Leaves a family as it is, so that the other one is served; without one there is only the error.
    fn without(
        &mut self,
        family: Option<Family>,
        error: ApplyError,
    ) -> Result<Without, ApplyError> {
        let Some(family) = family else {
            self.adopt()?;
            return Err(error);
        };
        tracing::error!(
            %error,
            "rules of {family} cannot be programmed: they stay as they are, and the other family is served",
        );
        self.backend.withhold(family, true);
        self.resting.push(family);
        self.adopt()?;
        Ok(Without::Family)
    }

    /// The destinations whose flows may be stale, since the last call.
    pub fn take_stale_flows(&mut self) -> Vec<StaleFlows> {
        let mut flows = std::mem::take(&mut self.stale_flows);
        flows.extend(self.desired.engine.take_unserved());
        flows
    }

    fn isolate(&mut self, isolate: bool) {
        self.isolated = isolate;
        self.backend.isolate_services(isolate);
    }

    fn leave_out(&mut self, services: &BTreeSet<(Owner, Family)>) {
        for (id, family) in services {
            tracing::error!(
                service = self.desired.name(*id),
                "the kernel refuses this Service: it is left out of {family} until it changes",
            );
            self.desired.engine.leave_out(*id, *family);
            self.left_out.insert((*id, *family));
        }
    }

    /// Whom the kernel refuses.
    pub fn left_out(&self) -> impl Iterator<Item = (Owner, Family)> {
        self.left_out.iter().copied()
    }

    /// Families that are left as they are because the kernel refuses their program.
    #[must_use]
    pub fn resting(&self) -> Vec<Family> {
        self.resting.clone()
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
