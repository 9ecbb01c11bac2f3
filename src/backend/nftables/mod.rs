//! The nftables backend: a fixed program per family, and the cluster as elements of its maps.
//!
//! One table named `pointsman` per family. A delta is one transaction for both families:
//! removals, then the chains of new shapes, then additions. Chains of shapes that nobody has any
//! more stay until [`Nftables::tidy`], since a chain can be taken away only once no packet can
//! be on its way to it.

mod affinity;
mod chains;
mod netlink;
mod program;
mod sets;
mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::ir::{Delta, Entry, Operation};
use crate::model::{Family, PerFamily, ServiceId};

use affinity::Forgetting;
use chains::ShapeChain;
use netlink::batch::{Batch, ElementOperation, FinishedBatch, Subject};
use netlink::dump::{self, Found};
use netlink::socket::{Refusal, Socket};
use netlink::{elements, objects};
use program::Program;
use sets::{FIXED_SETS, SetId};

pub use netlink::socket::SocketError;
pub use program::{LocalDetector, ProgramConfig};
pub use text::{render, render_cleanup};

/// A transaction that did not happen.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// The kernel could not be asked.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The kernel refused the transaction; nothing of it was applied.
    #[error("the kernel refused the transaction: {}", reasons(.0))]
    Refused(Vec<Refused>),
}

/// One message that the kernel refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// What it was about.
    pub what: String,
    /// On whose behalf it was sent; empty if it was the program's.
    pub owners: Vec<ServiceId>,
    /// Why.
    pub errno: nix::errno::Errno,
    /// The kernel's own words, if it has any.
    pub message: Option<String>,
}

fn reasons(refused: &[Refused]) -> String {
    const SHOWN: usize = 3;
    let mut texts: Vec<String> = refused
        .iter()
        .take(SHOWN)
        .map(|refused| {
            let words = refused
                .message
                .as_ref()
                .map_or_else(String::new, |words| format!(" ({words})"));
            format!("{}: {}{words}", refused.what, refused.errno)
        })
        .collect();
    if refused.len() > SHOWN {
        texts.push(format!("and {} more", refused.len() - SHOWN));
    }
    texts.join("; ")
}

/// What a transaction was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Applied {
    /// Element operations.
    pub operations: usize,
    /// Netlink messages.
    pub messages: usize,
    /// Bytes sent.
    pub bytes: usize,
    /// Time that encoding took.
    pub encoding: Duration,
    /// Time that the kernel took: the one `sendmsg`.
    pub kernel: Duration,
}

/// How many verdicts lead to each chain, and which chains are there.
#[derive(Debug, Default)]
struct Shapes {
    /// Verdicts per chain.
    used: BTreeMap<ShapeChain, usize>,
    /// Chains in the kernel.
    installed: BTreeSet<ShapeChain>,
    /// Affinity maps in the kernel, by timeout.
    affinity_maps: BTreeSet<u32>,
}

impl Shapes {
    /// The chains that the used ones need, themselves included.
    fn needed(&self) -> BTreeSet<ShapeChain> {
        let mut needed = BTreeSet::new();
        for shape in self.used.keys() {
            let mut next = Some(*shape);
            while let Some(shape) = next
                && needed.insert(shape)
            {
                next = shape.next();
            }
        }
        needed
    }
}

/// The program in the kernel, and the way to change its data.
pub struct Nftables {
    config: ProgramConfig,
    socket: Socket,
    shapes: PerFamily<Shapes>,
    /// The next transaction replaces the whole table: what is there is not our program.
    replace: bool,
    /// The next transactions keep Services apart, to find the one that is refused.
    isolate: bool,
    forgetting: Forgetting,
}

impl Nftables {
    /// Connects to the kernel. Changes nothing.
    ///
    /// # Errors
    ///
    /// If there is no nf_tables, or we may not use it.
    pub fn connect(config: ProgramConfig) -> Result<Self, SocketError> {
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
            config,
            socket,
            shapes: PerFamily::default(),
            replace: true,
            isolate: false,
            forgetting: Forgetting::default(),
        })
    }

    /// Reads what the kernel holds, and returns its entries.
    ///
    /// If it holds anything but our program, that is logged, nothing is returned, and the next
    /// [`Self::apply`] replaces all of it in the same transaction that puts the data in.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
    pub fn read(&mut self) -> Result<Vec<Entry>, SocketError> {
        self.replace = false;
        self.shapes = PerFamily::default();
        let mut entries = Vec::new();
        for family in self.config.families.clone() {
            let program = Program::new(&self.config, family);
            match dump::program(&mut self.socket, family, &program)? {
                Found::Ours(installed) => {
                    let shapes = self.shapes.get_mut(family);
                    shapes.installed = installed.shapes;
                    shapes.affinity_maps = installed.affinity_maps;
                    match dump::entries(&mut self.socket, family)? {
                        Some(mut found) => entries.append(&mut found),
                        None => {
                            tracing::warn!(%family, "the table holds elements that are not ours: it will be replaced");
                            self.replace = true;
                        }
                    }
                }
                Found::Nothing => self.replace = true,
                Found::Another(why) => {
                    tracing::info!(%family, why, "the table is not this program: it will be replaced");
                    self.replace = true;
                }
            }
        }
        if self.replace {
            self.shapes = PerFamily::default();
            self.forgetting = Forgetting::default();
            return Ok(Vec::new());
        }
        for entry in &entries {
            self.count(entry, 1);
            self.forgetting.learn(entry);
        }
        Ok(entries)
    }

    fn count(&mut self, entry: &Entry, by: isize) {
        if let Some(shape) = ShapeChain::of(entry) {
            let used = &mut self.shapes.get_mut(entry.family()).used;
            let count = used.entry(shape).or_insert(0);
            *count = count.saturating_add_signed(by);
            if *count == 0 {
                used.remove(&shape);
            }
        }
    }

    /// Whether the next transaction replaces everything, and the delta has to be everything.
    #[must_use]
    pub const fn will_replace(&self) -> bool {
        self.replace
    }

    /// Whether transactions keep Services apart, so that a refusal names exactly one of them.
    /// They are larger then.
    pub const fn isolate_services(&mut self, isolate: bool) {
        self.isolate = isolate;
    }

    /// Applies a delta in one transaction. After a [`Self::read`] that found another program,
    /// the delta must be that from nothing.
    ///
    /// # Errors
    ///
    /// Nothing has been applied then. The caller reads the kernel again, and tries again:
    /// without the owners that a refusal names if it has named them before.
    pub fn apply(&mut self, delta: &Delta) -> Result<Applied, ApplyError> {
        if delta.is_empty() && !self.replace {
            return Ok(Applied::default());
        }
        let started = Instant::now();
        for operation in &delta.remove {
            self.count(&operation.entry, -1);
        }
        for operation in &delta.add {
            self.count(&operation.entry, 1);
        }
        let (batch, new) = self.encode(delta);
        let encoding = started.elapsed();
        let applied = self.send(&batch);
        match applied {
            Ok(kernel) => {
                for (family, (shapes, maps)) in [(Family::V4, new.v4), (Family::V6, new.v6)] {
                    let known = self.shapes.get_mut(family);
                    known.installed.extend(shapes);
                    known.affinity_maps.extend(maps);
                }
                self.replace = false;
                self.forgetting.note(delta);
                Ok(Applied {
                    operations: batch.operations(),
                    messages: batch.messages(),
                    bytes: batch.bytes().len(),
                    encoding,
                    kernel,
                })
            }
            Err(error) => {
                for operation in &delta.add {
                    self.count(&operation.entry, -1);
                }
                for operation in &delta.remove {
                    self.count(&operation.entry, 1);
                }
                Err(error)
            }
        }
    }

    /// The transaction for a delta, and the chains and maps that it creates.
    #[allow(
        clippy::type_complexity,
        reason = "a pair of lists per family, used once"
    )]
    fn encode(
        &self,
        delta: &Delta,
    ) -> (FinishedBatch, PerFamily<(Vec<ShapeChain>, BTreeSet<u32>)>) {
        let mut batch = Batch::new(self.isolate);
        if self.replace {
            for family in &self.config.families {
                objects::put_delete_table(&mut batch, *family);
                objects::put_create_table(&mut batch, *family);
                for set in FIXED_SETS {
                    objects::put_set(&mut batch, *family, set);
                }
            }
        }
        put_operations(&mut batch, &delta.remove, ElementOperation::Delete);
        batch.barrier();
        let mut new: PerFamily<(Vec<ShapeChain>, BTreeSet<u32>)> = PerFamily::default();
        for family in &self.config.families {
            *new.get_mut(*family) = self.put_new_chains(&mut batch, *family);
        }
        put_operations(&mut batch, &delta.add, ElementOperation::Add);
        (batch.finish(), new)
    }

    fn put_new_chains(
        &self,
        batch: &mut Batch,
        family: Family,
    ) -> (Vec<ShapeChain>, BTreeSet<u32>) {
        let known = self.shapes.get(family);
        let program = Program::new(&self.config, family);
        let new: Vec<ShapeChain> = known
            .needed()
            .difference(&known.installed)
            .copied()
            .collect();
        let maps: BTreeSet<u32> = new
            .iter()
            .filter_map(|shape| shape.affinity_map())
            .filter(|timeout| !known.affinity_maps.contains(timeout))
            .collect();
        for timeout in &maps {
            objects::put_set(batch, family, SetId::Affinity(*timeout));
        }
        let mut chains = if self.replace {
            program.fixed_chains()
        } else {
            Vec::new()
        };
        chains.extend(new.iter().map(|shape| program.shape_chain(*shape)));
        // First all chains, then all rules: a rule may go to any chain.
        for chain in &chains {
            objects::put_chain(batch, family, chain);
        }
        for chain in &chains {
            objects::put_rules(batch, family, chain);
        }
        (new, maps)
    }

    fn send(&mut self, batch: &FinishedBatch) -> Result<Duration, ApplyError> {
        let started = Instant::now();
        let refusals = self.socket.transact(batch.bytes())?;
        if refusals.is_empty() {
            return Ok(started.elapsed());
        }
        Err(ApplyError::Refused(
            refusals
                .into_iter()
                .map(|refusal| refused(batch, refusal))
                .collect(),
        ))
    }

    /// Does what may wait until nothing else is to be done: forgets clients of endpoints that
    /// are gone, and takes away chains and maps that nobody uses. Returns whether there is
    /// something left for another time.
    ///
    /// # Errors
    ///
    /// What could not be taken away stays, harmlessly, for another time.
    pub fn tidy(&mut self) -> Result<bool, ApplyError> {
        let more = self.forget_clients()?;
        for family in self.config.families.clone() {
            let known = self.shapes.get(family);
            let needed = known.needed();
            let maps: BTreeSet<u32> = needed.iter().filter_map(|s| s.affinity_map()).collect();
            let unused: Vec<ShapeChain> = known.installed.difference(&needed).copied().collect();
            let unused_maps: Vec<u32> = known.affinity_maps.difference(&maps).copied().collect();
            if unused.is_empty() && unused_maps.is_empty() {
                continue;
            }
            let mut batch = Batch::new(false);
            // Those that lead to others go first: the order of shapes has them last.
            for shape in unused.iter().rev() {
                objects::put_delete_chain(&mut batch, family, &shape.to_string());
            }
            for timeout in &unused_maps {
                objects::put_delete_set(&mut batch, family, SetId::Affinity(*timeout));
            }
            self.send(&batch.finish())?;
            let known = self.shapes.get_mut(family);
            known.installed = needed;
            known.affinity_maps = maps;
        }
        Ok(more)
    }

    /// Makes the kernel forget the clients whose endpoint has left their list, so that their
    /// next connection goes to a living one. Returns whether it has to be done once more.
    ///
    /// # Errors
    ///
    /// The clients are remembered still, and it is tried again at the next call.
    pub fn forget_clients(&mut self) -> Result<bool, ApplyError> {
        for (family, timeout) in self.forgetting.due() {
            if !self.shapes.get(family).affinity_maps.contains(&timeout) {
                continue;
            }
            let doomed = {
                let forgetting = &self.forgetting;
                dump::remembered(
                    &mut self.socket,
                    family,
                    timeout,
                    |destination, endpoint| !forgetting.is_gone(*destination, *endpoint),
                )?
            };
            let mut batch = Batch::new(false);
            for key in &doomed {
                batch.put_element(
                    family,
                    SetId::Affinity(timeout),
                    ElementOperation::Delete,
                    ServiceId::CLUSTER,
                    |out| out.extend_from_slice(key),
                );
            }
            if !batch.is_empty() {
                match self.send(&batch.finish()) {
                    // One of them expired between listing and deleting: list again.
                    Err(ApplyError::Refused(_)) => return Ok(true),
                    result => result?,
                };
            }
        }
        Ok(self.forgetting.pass())
    }

    /// Removes everything that is ours, and nothing else.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked or refuses.
    pub fn cleanup(&mut self) -> Result<(), ApplyError> {
        let mut batch = Batch::new(false);
        for family in self.config.families.clone() {
            if dump::table_exists(&mut self.socket, family)? {
                objects::put_delete_table(&mut batch, family);
            }
        }
        if !batch.is_empty() {
            self.send(&batch.finish())?;
        }
        self.shapes = PerFamily::default();
        self.replace = true;
        Ok(())
    }
}

fn put_operations(batch: &mut Batch, operations: &[Operation], kind: ElementOperation) {
    for Operation { owner, entry } in operations {
        batch.put_element(
            entry.family(),
            SetId::of(entry),
            kind,
            *owner,
            |out| match kind {
                ElementOperation::Add => elements::put_entry(out, entry),
                ElementOperation::Delete => elements::put_entry_key(out, entry),
            },
        );
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
