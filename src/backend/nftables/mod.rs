//! The nftables backend: a fixed program per family, and the cluster as elements of its maps.
//!
//! One table named `pointsman` per family. A delta is one transaction for both families:
//! removals, then the chains of new shapes, then additions. Chains of shapes that nobody has any
//! more stay until [`Nftables::tidy`], since a chain can be taken away only once no packet can
//! be on its way to it.

mod affinity;
mod chains;
mod leftovers;
mod netlink;
mod program;
mod purge;
mod sets;
mod text;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashSet;

use super::{Applied, ApplyError, Backend, Refused, Unavailable};
use crate::ir::{Delta, Entry, Operation};
use crate::model::{Family, PerFamily, ServiceId};
use crate::netlink::socket::{Refusal, Socket, SocketError};

use affinity::{Forgetting, Moves};
use chains::ShapeChain;
use netlink::batch::{Batch, ElementOperation, FinishedBatch, Subject};
use netlink::dump::{self, Found};
use netlink::elements::Element;
use netlink::{elements, objects};
use program::Program;
use purge::{Doomed, Purge};
use sets::{FIXED_SETS, SetId};

pub use program::{LocalDetector, ProgramConfig};
pub use text::{render, render_cleanup};
pub use watch::watch;

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

/// The table of kube-proxy's nftables mode, in each family.
const KUBE_PROXY_TABLE: &str = "kube-proxy";

/// For so long a sync waits for the search for clients to forget: a small map is looked through
/// in much less.
const PATIENCE: Duration = Duration::from_millis(50);
/// Clients that are forgotten in one transaction.
const CLIENTS_AT_ONCE: usize = 512;

/// A remembered client on its way to the map of another timeout.
struct MovedClient {
    family: Family,
    to: u32,
    /// The element as it is to be added.
    element: Vec<u8>,
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
    /// The search for clients to forget that is under way.
    purge: Option<Purge>,
    /// Elements by set.
    elements: BTreeMap<(Family, SetId), usize>,
    /// Tables of kube-proxy that go with the next transaction.
    leftovers: Vec<Family>,
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
            purge: None,
            elements: BTreeMap::new(),
            leftovers: Vec::new(),
        })
    }

    /// Programs differently from the next transaction on. The caller reads again first.
    pub fn reconfigure(&mut self, config: ProgramConfig) {
        self.config = config;
    }

    /// How many elements our sets and maps hold, by name. Remembered clients do not count: the
    /// kernel adds and removes them.
    pub fn elements(&self) -> impl Iterator<Item = (Family, String, usize)> {
        self.elements
            .iter()
            .map(|((family, set), count)| (*family, set.name(), *count))
    }

    /// Removes kube-proxy's nftables tables in the next transaction.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
    pub fn take_over(&mut self) -> Result<(), SocketError> {
        for family in self.config.families.clone() {
            if dump::named_table_exists(&mut self.socket, family, KUBE_PROXY_TABLE)? {
                self.leftovers.push(family);
            }
        }
        Ok(())
    }

    /// Removes the chains of kube-proxy's iptables mode, in one transaction. Returns how many
    /// there were.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked or refuses; nothing has changed then.
    pub fn remove_iptables_leftovers(&mut self) -> Result<usize, ApplyError> {
        let (batch, chains) = leftovers::removal(&mut self.socket, &self.config.families)?;
        if chains > 0 {
            self.send(&batch)?;
        }
        Ok(chains)
    }

    /// The port number of our netlink socket, for [`watch()`].
    #[must_use]
    pub fn port(&self) -> u32 {
        self.socket.port()
    }

    fn count(&mut self, entry: &Entry, by: isize) {
        let elements = self
            .elements
            .entry((entry.family(), SetId::of(entry)))
            .or_insert(0);
        *elements = elements.saturating_add_signed(by);
        if let Some(shape) = ShapeChain::of(entry) {
            let used = &mut self.shapes.get_mut(entry.family()).used;
            let count = used.entry(shape).or_insert(0);
            *count = count.saturating_add_signed(by);
            if *count == 0 {
                used.remove(&shape);
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
        moved: &[MovedClient],
    ) -> (FinishedBatch, PerFamily<(Vec<ShapeChain>, BTreeSet<u32>)>) {
        let mut batch = Batch::new(self.isolate);
        for family in &self.leftovers {
            objects::put_delete_named_table(&mut batch, *family, KUBE_PROXY_TABLE);
        }
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
        for client in moved {
            batch.put_element(
                client.family,
                SetId::Affinity(client.to),
                ElementOperation::Add,
                ServiceId::CLUSTER,
                |out| out.extend_from_slice(&client.element),
            );
        }
        (batch.finish(), new)
    }

    /// The clients of destinations whose timeout a delta changes: they keep their endpoints, and
    /// are remembered for the new time.
    ///
    /// While the culprit of a refusal is looked for they are left out, lest they be it.
    fn moved_clients(&mut self, delta: &Delta) -> Result<Vec<MovedClient>, SocketError> {
        let mut moved = Vec::new();
        if self.isolate {
            return Ok(moved);
        }
        let moves = Moves::of(delta);
        for (family, from, to) in moves.maps() {
            let known = &self.shapes.get(family).affinity_maps;
            if !known.contains(&from) {
                continue;
            }
            let there: FxHashSet<Vec<u8>> = if known.contains(&to) {
                let pick = |destination, _, element: &Element<'_>| {
                    moves
                        .has(destination, from, to)
                        .then(|| element.key().to_vec())
                };
                let keys = dump::remembered(&mut self.socket, family, to, pick)?;
                keys.into_iter().collect()
            } else {
                FxHashSet::default()
            };
            let pick = |destination, _, element: &Element<'_>| {
                let moves_here = moves.has(destination, from, to) && !there.contains(element.key());
                moves_here.then(|| {
                    let mut bytes = Vec::new();
                    element.put_with_timeout(&mut bytes, to);
                    MovedClient {
                        family,
                        to,
                        element: bytes,
                    }
                })
            };
            moved.extend(dump::remembered(&mut self.socket, family, from, pick)?);
        }
        Ok(moved)
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

    /// Looks through the maps of remembered clients, and forgets those whose endpoint has gone.
    /// Returns whether to come back for more.
    fn forget(&mut self) -> Result<bool, ApplyError> {
        let purge = match self.purge.take() {
            Some(purge) => purge,
            None => {
                let maps: Vec<(Family, u32)> = self
                    .forgetting
                    .due()
                    .into_iter()
                    .filter(|(family, timeout)| {
                        self.shapes.get(*family).affinity_maps.contains(timeout)
                    })
                    .collect();
                let search = Arc::new(self.forgetting.begin());
                if maps.is_empty() {
                    return Ok(self.forgetting.has_more());
                }
                match Purge::start(maps, Arc::clone(&search)) {
                    Ok(purge) => purge,
                    Err(error) => {
                        self.forgetting.again(&search);
                        return Err(Unavailable(Box::new(error)).into());
                    }
                }
            }
        };
        let Some(found) = purge.wait(PATIENCE) else {
            self.purge = Some(purge);
            return Ok(true);
        };
        let result = found
            .map_err(ApplyError::from)
            .and_then(|doomed| self.delete_clients(&doomed));
        if let Err(error) = result {
            self.forgetting.again(&purge.search);
            return Err(error);
        }
        Ok(self.forgetting.has_more())
    }

    fn delete_clients(&mut self, doomed: &[Doomed]) -> Result<(), ApplyError> {
        let doomed: Vec<&Doomed> = doomed
            .iter()
            .filter(|client| {
                !self
                    .forgetting
                    .has_returned(client.timeout, client.destination, client.endpoint)
            })
            .collect();
        for chunk in doomed.chunks(CLIENTS_AT_ONCE) {
            match self.send(&deletion(chunk)) {
                // One of them has expired meanwhile: each on its own then, and those that are
                // gone are gone.
                Err(ApplyError::Refused(_)) => {
                    for client in chunk {
                        match self.send(&deletion(&[client])) {
                            Err(ApplyError::Refused(_)) => {}
                            result => result.map(drop)?,
                        }
                    }
                }
                result => result.map(drop)?,
            }
        }
        Ok(())
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

impl Backend for Nftables {
    fn read(&mut self) -> Result<Vec<Entry>, Unavailable> {
        self.replace = false;
        self.shapes = PerFamily::default();
        self.elements.clear();
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
            self.purge = None;
            return Ok(Vec::new());
        }
        for entry in &entries {
            self.count(entry, 1);
            self.forgetting.learn(entry);
        }
        Ok(entries)
    }

    fn apply(&mut self, delta: &Delta) -> Result<Applied, ApplyError> {
        if delta.is_empty() && !self.replace && self.leftovers.is_empty() {
            return Ok(Applied::default());
        }
        let started = Instant::now();
        for operation in &delta.remove {
            self.count(&operation.entry, -1);
        }
        for operation in &delta.add {
            self.count(&operation.entry, 1);
        }
        let moved = self.moved_clients(delta)?;
        let (batch, new) = self.encode(delta, &moved);
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
                self.leftovers.clear();
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

    fn isolate_services(&mut self, isolate: bool) {
        self.isolate = isolate;
    }

    fn forget_clients(&mut self) -> Result<(), ApplyError> {
        self.forget()?;
        Ok(())
    }

    fn tidy(&mut self) -> Result<bool, ApplyError> {
        let more = self.forget()?;
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
}

/// What forgets some clients.
fn deletion(clients: &[&Doomed]) -> FinishedBatch {
    let mut batch = Batch::new(false);
    for client in clients {
        batch.put_element(
            client.family,
            SetId::Affinity(client.timeout),
            ElementOperation::Delete,
            ServiceId::CLUSTER,
            |out| out.extend_from_slice(&client.key),
        );
    }
    batch.finish()
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
