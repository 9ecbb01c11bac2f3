//! The nftables backend: a fixed program per family, and the cluster as elements of its maps.
//!
//! One table named `pointsman` per family. A delta is one transaction for both families:
//! removals, then the chains of new shapes, then additions. Chains of shapes that nobody has any
//! more stay until [`Nftables::tidy`], since a chain can be taken away only once no packet can
//! be on its way to it.

mod affinity;
mod chains;
mod clients;
mod leftovers;
mod netlink;
mod program;
mod purge;
mod sets;
mod shape_rules;
mod text;
mod transaction;
mod watch;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashSet;

use super::{Applied, ApplyError, Backend, Refused, Unavailable};
use crate::ir::{Delta, Entry};
use crate::model::{Family, PerFamily, ServiceId};
use crate::netlink::socket::{Refusal, Socket, SocketError};

use affinity::{Forgetting, Moves};
use chains::ShapeChain;
use clients::ClientMap;
use netlink::batch::{Batch, ElementOperation, FinishedBatch, Subject};
use netlink::dump::{self, Found};
use netlink::elements::Element;
use netlink::objects;
use program::Program;
use purge::{Doomed, Purge};
use sets::SetId;
use transaction::{MovedClient, Programmed, Shapes};

pub use program::{LocalDetector, ProgramConfig};
pub use text::{render, render_cleanup};
pub use transaction::Encoder;
pub use watch::watch;

/// The table of kube-proxy's nftables mode, in each family.
const KUBE_PROXY_TABLE: &str = "kube-proxy";

/// Operations in one transaction, a tenth of a second of the kernel's time or so: what else
/// changes the packet filter on the node (a CNI plugin, a firewall) waits no longer for us.
const OPERATIONS_AT_ONCE: usize = 1 << 15;
/// Clients that are forgotten in one transaction.
const CLIENTS_AT_ONCE: usize = 512;

/// The program in the kernel, and the way to change its data.
pub struct Nftables {
    programmed: Programmed,
    /// There was a table of ours when it was last looked for, whatever was in it.
    existed: bool,
    /// A transaction failed since the kernel was last read: it may hold what we do not know of.
    refused: bool,
    socket: Socket,
    forgetting: Forgetting,
    /// The search for clients to forget that is under way.
    purge: Option<Purge>,
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
            programmed: Programmed::new(config),
            existed: true,
            refused: false,
            socket,
            forgetting: Forgetting::default(),
            purge: None,
        })
    }

    /// Programs differently from the next transaction on. The caller reads again first.
    pub fn reconfigure(&mut self, config: ProgramConfig) {
        self.programmed.config = config;
    }

    /// How many elements our sets and maps hold, by name. Remembered clients do not count: the
    /// kernel adds and removes them.
    pub fn elements(&self) -> impl Iterator<Item = (Family, String, usize)> {
        self.programmed
            .elements
            .iter()
            .map(|((family, set), count)| (*family, set.name(), *count))
    }

    /// Removes kube-proxy's nftables tables in the next transaction.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
    pub fn take_over(&mut self) -> Result<(), SocketError> {
        for family in self.programmed.config.families.clone() {
            if dump::named_table_exists(&mut self.socket, family, KUBE_PROXY_TABLE)? {
                self.programmed.leftovers.push(family);
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
        let (batch, chains) =
            leftovers::removal(&mut self.socket, &self.programmed.config.families)?;
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

    /// The clients of destinations whose timeout a delta changes: they keep their endpoints, and
    /// are remembered for the new time.
    ///
    /// While the culprit of a refusal is looked for they are left out, lest they be it.
    fn moved_clients(&mut self, delta: &Delta) -> Result<Vec<MovedClient>, SocketError> {
        let mut moved = Vec::new();
        if self.programmed.isolate {
            return Ok(moved);
        }
        let moves = Moves::of(delta);
        for (family, from, to) in moves.maps() {
            let known = &self.programmed.shapes.get(family).affinity_maps;
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
                    element.put_with_timeout(&mut bytes, to.timeout_seconds);
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
                let maps: Vec<(Family, ClientMap)> = self
                    .forgetting
                    .due()
                    .into_iter()
                    .filter(|(family, map)| {
                        self.programmed
                            .shapes
                            .get(*family)
                            .affinity_maps
                            .contains(map)
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
        let Some(found) = purge.found() else {
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
                !self.forgetting.has_returned(
                    client.map.timeout_seconds,
                    client.destination,
                    client.endpoint,
                )
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
        for family in self.programmed.config.families.clone() {
            if dump::table_exists(&mut self.socket, family)? {
                objects::put_delete_table(&mut batch, family);
            }
        }
        if !batch.is_empty() {
            self.send(&batch.finish())?;
        }
        self.programmed.shapes = PerFamily::default();
        self.programmed.replace = true;
        Ok(())
    }
}

/// What is found in the kernel.
#[derive(Default)]
struct Reading {
    entries: Vec<Entry>,
    shapes: PerFamily<Shapes>,
    /// There is a table, whatever is in it.
    existed: bool,
    /// There is something else than our program.
    replace: bool,
}

impl Reading {
    fn read(&mut self, backend: &mut Nftables, family: Family) -> Result<(), SocketError> {
        let thorough = backend.refused;
        let program = Program::new(&backend.programmed.config, family);
        match dump::program(&mut backend.socket, family, &program)? {
            Found::Ours(installed) => {
                self.existed = true;
                match dump::entries(&mut backend.socket, family, &installed, thorough)? {
                    Some(mut found) => self.entries.append(&mut found),
                    None => {
                        tracing::warn!(%family, "the table holds elements that are not ours: it will be replaced");
                        self.replace = true;
                    }
                }
                let shapes = self.shapes.get_mut(family);
                shapes.installed = installed.shapes;
                shapes.affinity_maps = installed.affinity_maps;
            }
            Found::Nothing => self.replace = true,
            Found::Another(why) => {
                self.existed = true;
                tracing::info!(%family, why, "the table is not this program: it will be replaced");
                self.replace = true;
            }
        }
        Ok(())
    }
}

impl Backend for Nftables {
    fn read(&mut self) -> Result<Vec<Entry>, Unavailable> {
        let mut found = Reading::default();
        for family in self.programmed.config.families.clone() {
            found.read(self, family)?;
        }
        // From here on nothing can fail: what we know is as old as before, or new as a whole.
        self.existed = found.existed;
        self.refused = false;
        self.programmed.replace = found.replace;
        self.programmed.elements.clear();
        if found.replace {
            self.programmed.shapes = PerFamily::default();
            self.forgetting = Forgetting::default();
            self.purge = None;
            return Ok(Vec::new());
        }
        self.programmed.shapes = found.shapes;
        for entry in &found.entries {
            self.programmed.count(entry, 1);
            self.forgetting.learn(entry);
        }
        Ok(found.entries)
    }

    fn apply(&mut self, delta: &Delta) -> Result<Applied, ApplyError> {
        if delta.is_empty() && !self.programmed.replace && self.programmed.leftovers.is_empty() {
            return Ok(Applied::default());
        }
        let started = Instant::now();
        let moved = self.moved_clients(delta)?;
        self.programmed.count_delta(delta, 1);
        let (batch, new) = self.programmed.encode(delta, &moved);
        let encoding = started.elapsed();
        let applied = self.send(&batch);
        match applied {
            Ok(kernel) => {
                self.programmed.applied(new);
                self.forgetting.note(delta);
                Ok(Applied {
                    operations: batch.operations(),
                    messages: batch.messages(),
                    bytes: batch.bytes().len(),
                    encoding,
                    kernel,
                    transactions: 1,
                    longest: kernel,
                })
            }
            Err(error) => {
                self.programmed.count_delta(delta, -1);
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

    fn forget_clients(&mut self) -> Result<bool, ApplyError> {
        if self.purge.is_some() || self.forgetting.is_new() {
            self.forget()?;
        }
        Ok(self.purge.is_some())
    }

    fn tidy(&mut self) -> Result<bool, ApplyError> {
        let more = self.forget()?;
        for family in self.programmed.config.families.clone() {
            let known = self.programmed.shapes.get(family);
            let needed = known.needed();
            let maps: BTreeSet<ClientMap> =
                needed.iter().filter_map(|s| s.affinity_map()).collect();
            let unused: Vec<ShapeChain> = known.installed.difference(&needed).copied().collect();
            let unused_maps: Vec<ClientMap> =
                known.affinity_maps.difference(&maps).copied().collect();
            if unused.is_empty() && unused_maps.is_empty() {
                continue;
            }
            let mut batch = Batch::new(false);
            // Those that lead to others go first: the order of shapes has them last.
            for shape in unused.iter().rev() {
                objects::put_delete_chain(&mut batch, family, &shape.to_string());
            }
            for map in &unused_maps {
                objects::put_delete_set(&mut batch, family, SetId::Affinity(*map));
            }
            self.send(&batch.finish())?;
            let known = self.programmed.shapes.get_mut(family);
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
            SetId::Affinity(client.map),
            ElementOperation::Delete,
            ServiceId::CLUSTER,
            |out| out.extend_from_slice(&client.key),
        );
    }
    batch.finish()
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
