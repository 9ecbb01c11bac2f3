//! The nftables backend: a fixed program per family, and the cluster as elements of its maps.
//!
//! One table named `pointsman` per family. A delta is one transaction for both families:
//! removals, then the parts of the program that are newly used, then additions. Parts that nobody
//! uses any more stay until [`Nftables::tidy`].

mod affinity;
mod compared;
mod contents;
pub mod counting;
mod interference;
mod lanes;
mod leftovers;
mod program;
mod reading;
mod socket_errors;
mod text;
mod transaction;
mod unchanged;
mod wire;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::core::ir::{Delta, Destination, Entry};
use crate::core::model::{Family, PerFamily, Protocol};
use crate::dataplane::owners::{self, is_ours};
use crate::dataplane::{
    Applied, ApplyError, Backend, Changed, Difference, Dropping, Mode, Options, Refused,
    Unavailable,
};
use crate::host::netlink::socket::{Refusal, Socket, SocketError};

use affinity::Rounded;
use program::KUBE_PROXY_TABLE;
use program::sets::SETS;
use reading::{Odd, Reading};
use transaction::Programmed;
use wire::batch::{Batch, FinishedBatch, Subject};
use wire::remembered::{self, Memory};
use wire::{counters, foreign, forward, presence, tables};

#[cfg(feature = "internals")]
pub use interference::Watched;
pub use text::render;
#[cfg(feature = "internals")]
pub use transaction::Encoder;
#[cfg(feature = "internals")]
pub use wire::offline::entries_of;

/// Operations in one transaction, a tenth of a second of the kernel's time or so: what else
/// changes the packet filter on the node (a CNI plugin, a firewall) waits no longer for us.
const OPERATIONS_AT_ONCE: usize = 1 << 15;

/// How often it is worth a line that a table is another program: somebody may make it one all the time.
const TELLING: Duration = Duration::from_secs(1);

/// The program in the kernel, and the way to change its data.
pub struct Nftables {
    /// Its options name the families that are programmed now.
    programmed: Programmed,
    /// Families that are wanted and that the kernel does not have.
    missing: Vec<Family>,
    /// Families that are left as they are.
    withheld: Vec<Family>,
    /// There was a table of ours when it was last looked for, whatever was in it.
    existed: PerFamily<bool>,
    /// The number of the ruleset if nobody but us has changed it since we began to read it.
    generation: u32,
    /// A transaction failed since the kernel was last read: it may hold what we do not know of.
    refused: bool,
    /// When it was last told that a table is another program.
    told: Option<Instant>,
    socket: Socket,
}

/// Whom a client comes back to that connects to a destination at an address, which of a `NodePort` is one of the
/// node's.
///
/// # Errors
///
/// If the kernel cannot be asked.
pub fn remembered(
    client: IpAddr,
    destination: Destination,
    at: IpAddr,
) -> Result<Option<Memory>, SocketError> {
    remembered::remembered(&mut Socket::open()?, client, destination, at)
}

/// Chains of others that drop what is forwarded.
///
/// # Errors
///
/// If the kernel cannot be asked.
pub fn dropping() -> Result<Vec<Dropping>, SocketError> {
    forward::dropping(&mut Socket::open()?)
}

impl Nftables {
    /// Removes the tables of kube-proxy's nftables mode. Returns how many there were.
    pub(super) fn remove_kube_proxys(&mut self) -> Result<usize, ApplyError> {
        let found = leftovers::tables_removal(&mut self.socket)?;
        self.remove(found)
    }

    fn remove(&mut self, (batch, count): (FinishedBatch, usize)) -> Result<usize, ApplyError> {
        if count > 0 {
            self.send(&batch)?;
        }
        Ok(count)
    }

    /// Connects to the kernel, and has it look at the program of each family. Changes nothing.
    ///
    /// # Errors
    ///
    /// If there is no nf_tables for any of the families, or we may not use it.
    pub fn connect(mut config: Options) -> Result<Self, SocketError> {
        let missing = std::mem::take(&mut config.families);
        let mut backend = Self {
            programmed: Programmed::new(config),
            missing,
            withheld: Vec::new(),
            existed: PerFamily::from_fn(|_| true),
            generation: 0,
            refused: false,
            told: None,
            socket: Socket::open()?,
        };
        let mut lacking = backend.find_families();
        if backend.programmed.config.families.is_empty()
            && let Some((_, error)) = lacking.pop()
        {
            return Err(error);
        }
        for (family, error) in lacking {
            tracing::warn!(
                %error,
                "rules of {family} cannot be programmed: only the other family is served until they can",
            );
        }
        Ok(backend)
    }

    /// Begins to program the missing families that the kernel has. Returns why it does not have the
    /// others.
    fn find_families(&mut self) -> Vec<(Family, SocketError)> {
        let mut lacking = Vec::new();
        for family in std::mem::take(&mut self.missing) {
            match self.rehearse(family) {
                Ok(()) => self.program(family),
                Err(error) => {
                    self.missing.push(family);
                    lacking.push((family, error));
                }
            }
        }
        lacking
    }

    fn program(&mut self, family: Family) {
        self.programmed.config.families.push(family);
        self.programmed.config.families.sort_unstable();
        self.programmed.start_over(family);
    }

    /// Whether the kernel takes the program of a family. Where there is a table of ours it has.
    fn rehearse(&mut self, family: Family) -> Result<(), SocketError> {
        let unsupported = |what, error| SocketError::Unsupported {
            family: family.name(),
            what,
            error,
        };
        let exists =
            presence::table_exists(&mut self.socket, family).map_err(|error| match error {
                SocketError::Dump(error) => unsupported("a table".to_owned(), error),
                error => error,
            })?;
        if exists {
            return Ok(());
        }
        let only = Options {
            families: vec![family],
            ..self.programmed.config.clone()
        };
        let batch = Programmed::new(only).rehearsal();
        let refusals = self.socket.transact(batch.bytes(), batch.last())?;
        match refusals.into_iter().next() {
            None => Ok(()),
            Some(refusal) => {
                let refused = refused(&batch, refusal);
                Err(unsupported(refused.what, refused.errno))
            }
        }
    }

    /// What the kernel holds.
    fn look(&mut self) -> Result<Reading, SocketError> {
        let mut found = Reading::of(&self.programmed.config);
        for family in self.programmed.config.families.clone() {
            found.read(&mut self.socket, family, self.refused)?;
        }
        Ok(found)
    }

    /// Says what is not as we program it.
    fn tell(&mut self, all: &[Odd]) {
        for Odd { family, what, .. } in all {
            let now = Instant::now();
            if self.told.is_none_or(|told| now - told >= TELLING) {
                tracing::info!(%family, "{what}");
                self.told = Some(now);
            }
        }
    }

    fn send(&mut self, batch: &FinishedBatch) -> Result<Duration, ApplyError> {
        let started = Instant::now();
        let refusals = self.socket.transact(batch.bytes(), batch.last())?;
        if refusals.is_empty() {
            // 0 is left out.
            self.generation = self.generation.checked_add(1).unwrap_or(1);
            return Ok(started.elapsed());
        }
        Err(ApplyError::Refused(
            refusals
                .into_iter()
                .map(|refusal| refused(batch, refusal))
                .collect(),
        ))
    }
}

impl Backend for Nftables {
    const MODE: Mode = Mode::Nftables;

    fn open(options: Options) -> Result<Self, Unavailable> {
        Ok(Self::connect(options)?)
    }

    fn render(options: &Options, entries: &[Entry]) -> String {
        render(options, entries)
    }

    fn reconfigure(&mut self, options: Options) {
        let families = std::mem::take(&mut self.programmed.config.families);
        self.programmed.config = Options {
            families,
            ..options
        };
    }

    fn families(&self) -> Vec<Family> {
        self.programmed.config.families.clone()
    }

    fn withhold(&mut self, family: Family, withhold: bool) {
        let families = &mut self.programmed.config.families;
        if withhold {
            if families.contains(&family) {
                families.retain(|other| *other != family);
                self.withheld.push(family);
            }
        } else if self.withheld.contains(&family) {
            self.withheld.retain(|other| *other != family);
            self.program(family);
        }
    }

    fn look_for_families(&mut self) -> bool {
        let before = self.programmed.config.families.len();
        for (family, error) in self.find_families() {
            tracing::debug!(%family, %error, "still cannot be programmed");
        }
        self.programmed.config.families.len() > before
    }

    fn take_over(&mut self) -> Result<(), Unavailable> {
        for family in self.programmed.config.families.clone() {
            if presence::named_table_exists(&mut self.socket, family, KUBE_PROXY_TABLE)? {
                self.programmed.leftovers.push(family);
            }
        }
        Ok(())
    }

    fn remove_leftovers(&mut self) -> Result<usize, ApplyError> {
        let families = &self.programmed.config.families;
        let theirs = leftovers::is_kube_proxys_or_ours;
        let found = leftovers::removal(&mut self.socket, families, theirs)?;
        self.remove(found)
    }

    fn remove_other_mode(&mut self) -> Result<usize, ApplyError> {
        let found = leftovers::removal(&mut self.socket, &Family::BOTH, is_ours)?;
        let chains = self.remove(found)?;
        owners::told(chains);
        Ok(chains)
    }

    fn has_leftovers(&mut self) -> Result<bool, Unavailable> {
        Ok(leftovers::are_there(&mut self.socket)?)
    }

    fn clean_up(&mut self) -> Result<(), ApplyError> {
        let mut result = Ok(());
        for family in Family::BOTH {
            let mut batch = Batch::new(false);
            if presence::table_exists(&mut self.socket, family)? {
                tables::put_delete_table(&mut batch, family);
            }
            if !batch.is_empty()
                && let Err(error) = self.send(&batch.finish())
            {
                result = Err(error);
                continue;
            }
            self.programmed.start_over(family);
        }
        result
    }

    fn watch(&mut self, changed: Changed) -> Result<bool, Unavailable> {
        interference::watch(self.socket.port(), changed)
            .map_err(|error| Unavailable(Box::new(error)))?;
        // The first sync is the largest, and to be told of it would take the kernel as long again:
        // the watch begins after it, and the number of the ruleset says whether it missed something.
        let generation = foreign::generation(&mut self.socket)?;
        Ok(generation == self.generation)
    }

    fn counts(&self) -> Vec<(Family, &'static str, usize)> {
        let elements = self.programmed.elements.iter();
        elements
            .flat_map(|(family, counts)| {
                SETS.into_iter()
                    .filter(|set| !set.is_dynamic() && !set.is_of_the_program())
                    .map(move |set| (family, set.name(), counts[set as usize]))
            })
            .collect()
    }

    fn refused_on_loopback(&mut self) -> Result<Vec<(Family, Protocol, u64)>, Unavailable> {
        let mut all = Vec::new();
        for family in self.programmed.config.families.clone() {
            if *self.programmed.config.on_loopback.get(family) {
                let counts = counters::refused_on_loopback(&mut self.socket, family)?;
                let counts = counts.into_iter();
                all.extend(counts.map(|(protocol, count)| (family, protocol, count)));
            }
        }
        Ok(all)
    }

    fn differences(&mut self, whole: &Delta) -> Result<Vec<Difference>, Unavailable> {
        Ok(compared::between(whole, self.look()?))
    }

    fn read(&mut self) -> Result<Vec<Entry>, Unavailable> {
        let generation = foreign::generation(&mut self.socket)?;
        let found = self.look()?;
        self.tell(&found.odd);
        // From here on nothing can fail: what we know is as old as before, or new as a whole.
        self.existed = found.existed;
        self.generation = generation;
        self.refused = false;
        if found.disturbed {
            tracing::info!(
                "another program changed nftables while our tables were read; nft monitor shows who"
            );
        }
        let before = std::mem::replace(&mut self.programmed, found.programmed);
        self.programmed.isolate = before.isolate;
        self.programmed.leftovers = before.leftovers;
        Ok(found.entries)
    }

    fn apply(&mut self, delta: &Delta) -> Result<Applied, ApplyError> {
        let programmed = &self.programmed;
        if delta.is_empty() && !programmed.has_own_work() {
            return Ok(Applied::default());
        }
        let started = Instant::now();
        let (batch, change) = programmed.encode(delta);
        let encoding = started.elapsed();
        match self.send(&batch) {
            Ok(kernel) => {
                warn_of_rounded(&self.programmed.applied(change));
                Ok(Applied {
                    operations: batch.operations(),
                    messages: batch.messages(),
                    bytes: batch.bytes().len(),
                    encoding,
                    kernel,
                    transactions: 1,
                    longest: kernel,
                    largest: batch.operations() + batch.messages(),
                })
            }
            Err(error) => {
                self.refused = true;
                Err(error)
            }
        }
    }

    fn most_operations(&self) -> usize {
        // What serves traffic now must not be gone before what takes its place is complete.
        let mut families = self.programmed.config.families.iter();
        let takes_the_place = |family: &Family| {
            let replaced = *self.programmed.replace.get(*family) && *self.existed.get(*family);
            replaced || self.programmed.leftovers.contains(family)
        };
        if families.any(takes_the_place) {
            usize::MAX
        } else {
            OPERATIONS_AT_ONCE
        }
    }

    fn isolate_services(&mut self, isolate: bool) {
        self.programmed.isolate = isolate;
    }

    fn has_garbage(&self) -> bool {
        self.programmed.has_garbage()
    }

    fn tidy(&mut self) -> Result<(), ApplyError> {
        if self.programmed.has_own_work() || !self.programmed.has_garbage() {
            return Ok(());
        }
        let (batch, left) = self.programmed.collect();
        self.send(&batch.finish())?;
        self.programmed.parts = left;
        Ok(())
    }
}

/// One line for each timeout, however many destinations have it.
fn warn_of_rounded(rounded: &[Rounded]) {
    const SHOWN: usize = 8;
    let mut timeouts: BTreeMap<(u32, u32), (Destination, usize)> = BTreeMap::new();
    for one in rounded {
        let timeout = timeouts.entry((one.wanted_seconds, one.seconds));
        timeout.or_insert((one.destination, 0)).1 += 1;
    }
    for ((wanted, seconds), (destination, destinations)) in timeouts.iter().take(SHOWN) {
        tracing::warn!(
            %destination, destinations, wanted, seconds,
            "too many different affinity timeouts are in use: this one is rounded up",
        );
    }
    if timeouts.len() > SHOWN {
        let more = timeouts.len() - SHOWN;
        tracing::warn!(more, "and so are further affinity timeouts");
    }
}

fn refused(batch: &FinishedBatch, refusal: Refusal) -> Refused {
    let subject = batch.subject(refusal.sequence);
    let what = match subject {
        Some(Subject::Program { family, what }) => format!("{what} ({family})"),
        Some(Subject::Elements { family, set, .. }) => {
            format!("elements of {} ({family})", set.name())
        }
        None => "the transaction as a whole".to_owned(),
    };
    Refused {
        what,
        family: subject.map(Subject::family),
        owners: subject.map_or_else(Vec::new, |subject| subject.owners(refusal.offset)),
        errno: refusal.errno,
        message: refusal.message,
    }
}
