//! The nftables backend: a fixed program per family, and the cluster as elements of its maps.
//!
//! One table named `pointsman` per family. A delta is one transaction for both families:
//! removals, then the parts of the program that are newly used, then additions. Parts that nobody
//! uses any more stay until [`Nftables::tidy`].

mod affinity;
mod contents;
mod interference;
mod leftovers;
mod program;
mod text;
mod transaction;
mod unchanged;
mod wire;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::core::ir::{Delta, Destination, Entry};
use crate::core::model::Family;
use crate::dataplane::{Applied, ApplyError, Backend, Changed, Options, Refused, Unavailable};
use crate::host::netlink::socket::{Refusal, Socket, SocketError};

use affinity::Rounded;
use contents::Contents;
use program::element::Element;
use program::sets::SETS;
use program::{KUBE_PROXY_TABLE, Program};
use transaction::Programmed;
use wire::batch::{Batch, FinishedBatch, Subject};
use wire::dump::{self, Found, Lister};
use wire::{foreign, tables};

pub use text::render;
#[cfg(feature = "internals")]
pub use transaction::Encoder;

/// Operations in one transaction, a tenth of a second of the kernel's time or so: what else
/// changes the packet filter on the node (a CNI plugin, a firewall) waits no longer for us.
const OPERATIONS_AT_ONCE: usize = 1 << 15;

/// The program in the kernel, and the way to change its data.
pub struct Nftables {
    programmed: Programmed,
    /// There was a table of ours when it was last looked for, whatever was in it.
    existed: bool,
    /// The number of the ruleset if nobody but us has changed it since we began to read it.
    generation: u32,
    /// A transaction failed since the kernel was last read: it may hold what we do not know of.
    refused: bool,
    socket: Socket,
}

impl From<SocketError> for Unavailable {
    fn from(error: SocketError) -> Self {
        Self(Box::new(error))
    }
}

impl From<SocketError> for ApplyError {
    fn from(error: SocketError) -> Self {
        Self::Unavailable(error.into())
    }
}

impl Nftables {
    /// Connects to the kernel. Changes nothing.
    ///
    /// # Errors
    ///
    /// If there is no nf_tables, or we may not use it.
    pub fn connect(config: Options) -> Result<Self, SocketError> {
        let mut socket = Socket::open()?;
        for family in &config.families {
            dump::table_exists(&mut socket, *family).map_err(|error| match error {
                SocketError::Dump(error) => SocketError::Unsupported {
                    family: family.name(),
                    error,
                },
                error => error,
            })?;
        }
        Ok(Self {
            programmed: Programmed::new(config),
            existed: true,
            generation: 0,
            refused: false,
            socket,
        })
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

/// What is found in the kernel.
struct Reading {
    programmed: Programmed,
    entries: Vec<Entry>,
    /// There is a table, whatever is in it.
    existed: bool,
    /// There is something else than our program.
    replace: bool,
    /// Somebody has changed the ruleset meanwhile, not necessarily our part of it.
    disturbed: bool,
}

impl Reading {
    fn read(&mut self, backend: &mut Nftables, family: Family) -> Result<(), SocketError> {
        let thorough = backend.refused;
        let program = Program::new(&backend.programmed.config, family);
        let mut lister = Lister {
            socket: &mut backend.socket,
            family,
            disturbed: false,
        };
        let installed = match dump::program(&mut lister, &program)? {
            Found::Ours(installed) => installed,
            Found::Nothing => {
                self.replace = true;
                return Ok(());
            }
            Found::Another(why) => {
                self.existed = true;
                tracing::info!(%family, why, "the table is not this program: it will be replaced");
                self.replace = true;
                return Ok(());
            }
        };
        self.existed = true;
        let programmed = &mut self.programmed;
        let each = |element: &Element<'_>| programmed.found(family, element);
        let assembly = dump::contents(&mut lister, &installed, thorough, each)?;
        self.disturbed |= lister.disturbed;
        let Some(assembly) = assembly else {
            tracing::warn!(%family, "the table holds elements that are not ours: it will be replaced");
            self.replace = true;
            return Ok(());
        };
        let Contents {
            mut entries,
            remembering,
            debris,
        } = assembly.finish(&installed.parts.timeouts);
        if !debris.is_empty() {
            let elements = debris.len();
            tracing::warn!(%family, elements, "elements that belong to nothing will be removed");
        }
        self.entries.append(&mut entries);
        programmed.debris.extend(debris);
        for found in remembering {
            programmed.affinity.found(found);
        }
        *programmed.parts.get_mut(family) = installed.parts;
        Ok(())
    }
}

impl Backend for Nftables {
    fn open(options: Options) -> Result<Self, Unavailable> {
        Ok(Self::connect(options)?)
    }

    fn render(options: &Options, entries: &[Entry]) -> String {
        render(options, entries)
    }

    fn reconfigure(&mut self, options: Options) {
        self.programmed.config = options;
    }

    fn take_over(&mut self) -> Result<(), Unavailable> {
        for family in self.programmed.config.families.clone() {
            if dump::named_table_exists(&mut self.socket, family, KUBE_PROXY_TABLE)? {
                self.programmed.leftovers.push(family);
            }
        }
        Ok(())
    }

    fn remove_leftovers(&mut self) -> Result<usize, ApplyError> {
        let (batch, chains) =
            leftovers::removal(&mut self.socket, &self.programmed.config.families)?;
        if chains > 0 {
            self.send(&batch)?;
        }
        Ok(chains)
    }

    fn clean_up(&mut self) -> Result<(), ApplyError> {
        let mut batch = Batch::new(false);
        for family in self.programmed.config.families.clone() {
            if dump::table_exists(&mut self.socket, family)? {
                tables::put_delete_table(&mut batch, family);
            }
        }
        if !batch.is_empty() {
            self.send(&batch.finish())?;
        }
        self.programmed.start_over();
        Ok(())
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

    fn read(&mut self) -> Result<Vec<Entry>, Unavailable> {
        let config = self.programmed.config.clone();
        let mut found = Reading {
            programmed: Programmed::new(config),
            entries: Vec::new(),
            existed: false,
            replace: false,
            disturbed: false,
        };
        let generation = foreign::generation(&mut self.socket)?;
        for family in self.programmed.config.families.clone() {
            found.read(self, family)?;
        }
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
        self.programmed.replace = found.replace;
        if found.replace {
            self.programmed.start_over();
            return Ok(Vec::new());
        }
        Ok(found.entries)
    }

    fn apply(&mut self, delta: &Delta) -> Result<Applied, ApplyError> {
        let programmed = &self.programmed;
        if delta.is_empty()
            && !programmed.replace
            && programmed.leftovers.is_empty()
            && programmed.debris.is_empty()
        {
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
        let serves = self.programmed.replace && self.existed;
        if serves || !self.programmed.leftovers.is_empty() {
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
        if self.programmed.replace || !self.programmed.has_garbage() {
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
        Some(Subject::Program(what)) => what.clone(),
        Some(Subject::Elements { family, set, .. }) => {
            format!("elements of {} ({family})", set.name())
        }
        None => "the transaction as a whole".to_owned(),
    };
    Refused {
        what,
        owners: subject.map_or_else(Vec::new, |subject| subject.owners(refusal.offset)),
        errno: refusal.errno,
        message: refusal.message,
    }
}
