//! What is programmed, and the transactions that change it: everything that takes no socket.

use std::collections::{BTreeMap, BTreeSet};

use super::KUBE_PROXY_TABLE;
use super::chains::ShapeChain;
use super::clients::ClientMap;
use super::netlink::batch::{Batch, ElementOperation, FinishedBatch};
use super::netlink::{elements, objects};
use super::program::{Program, ProgramConfig};
use super::sets::{FIXED_SETS, SetId};
use crate::ir::{Delta, Entry, Operation};
use crate::model::{Family, PerFamily, ServiceId};

/// How many verdicts lead to each chain, and which chains are there.
#[derive(Debug, Default)]
pub(super) struct Shapes {
    /// Verdicts per chain.
    pub(super) used: BTreeMap<ShapeChain, usize>,
    /// Those of them that were not used when the kernel last took a transaction.
    fresh: BTreeSet<ShapeChain>,
    /// Chains in the kernel; with each there are those that it needs.
    pub(super) installed: BTreeSet<ShapeChain>,
    /// Affinity maps in the kernel.
    pub(super) affinity_maps: BTreeSet<ClientMap>,
}

impl Shapes {
    /// The chains that the used ones need, themselves included.
    pub(super) fn needed(&self) -> BTreeSet<ShapeChain> {
        ShapeChain::needed(self.used.keys().copied())
    }
}

/// A remembered client on its way to the map of another timeout.
pub(super) struct MovedClient {
    pub(super) family: Family,
    pub(super) to: ClientMap,
    /// The element as it is to be added.
    pub(super) element: Vec<u8>,
}

/// The chains and affinity maps that a transaction creates.
pub(super) type Created = PerFamily<(Vec<ShapeChain>, BTreeSet<ClientMap>)>;

/// The program, and how much of it the kernel holds.
pub(super) struct Programmed {
    pub(super) config: ProgramConfig,
    pub(super) shapes: PerFamily<Shapes>,
    /// The next transaction replaces the whole table: what is there is not our program.
    pub(super) replace: bool,
    /// The next transactions keep Services apart, to find the one that is refused.
    pub(super) isolate: bool,
    /// Elements by set.
    pub(super) elements: BTreeMap<(Family, SetId), usize>,
    /// Tables of kube-proxy that go with the next transaction.
    pub(super) leftovers: Vec<Family>,
}

impl Programmed {
    /// Nothing yet.
    pub(super) fn new(config: ProgramConfig) -> Self {
        Self {
            config,
            shapes: PerFamily::default(),
            replace: true,
            isolate: false,
            elements: BTreeMap::new(),
            leftovers: Vec::new(),
        }
    }

    pub(super) fn count(&mut self, entry: &Entry, by: isize) {
        let elements = self
            .elements
            .entry((entry.family(), SetId::of(entry)))
            .or_insert(0);
        *elements = elements.saturating_add_signed(by);
        if let Some(shape) = ShapeChain::of(entry) {
            let shapes = self.shapes.get_mut(entry.family());
            let count = shapes.used.entry(shape).or_insert_with(|| {
                shapes.fresh.insert(shape);
                0
            });
            *count = count.saturating_add_signed(by);
            if *count == 0 {
                shapes.used.remove(&shape);
            }
        }
    }

    /// Takes in what a delta will have changed; with `by` -1, that it has not.
    pub(super) fn count_delta(&mut self, delta: &Delta, by: isize) {
        for operation in &delta.remove {
            self.count(&operation.entry, -by);
        }
        for operation in &delta.add {
            self.count(&operation.entry, by);
        }
    }

    /// Takes in that the kernel has taken a transaction.
    pub(super) fn applied(&mut self, created: Created) {
        for (family, (shapes, maps)) in [(Family::V4, created.v4), (Family::V6, created.v6)] {
            let known = self.shapes.get_mut(family);
            known.fresh.clear();
            known.installed.extend(shapes);
            known.affinity_maps.extend(maps);
        }
        self.replace = false;
        self.leftovers.clear();
    }

    /// The transaction for a delta, and the chains and maps that it creates.
    pub(super) fn encode(&self, delta: &Delta, moved: &[MovedClient]) -> (FinishedBatch, Created) {
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
        let mut new = Created::default();
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

    fn put_new_chains(
        &self,
        batch: &mut Batch,
        family: Family,
    ) -> (Vec<ShapeChain>, BTreeSet<ClientMap>) {
        let known = self.shapes.get(family);
        let program = Program::new(&self.config, family);
        let fresh = known.fresh.iter().copied();
        let missing = fresh
            .filter(|shape| known.used.contains_key(shape) && !known.installed.contains(shape));
        let new: Vec<ShapeChain> = ShapeChain::needed(missing)
            .difference(&known.installed)
            .copied()
            .collect();
        let maps: BTreeSet<ClientMap> = new
            .iter()
            .filter_map(|shape| shape.affinity_map())
            .filter(|map| !known.affinity_maps.contains(map))
            .collect();
        for map in &maps {
            objects::put_set(batch, family, SetId::Affinity(*map));
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

/// Makes transactions without a kernel to take them: what a node would be sent, for tests and
/// benchmarks to count and measure. Every transaction is taken to have been applied.
pub struct Encoder(Programmed);

impl Encoder {
    /// One that begins with an empty kernel.
    #[must_use]
    pub fn new(config: ProgramConfig) -> Self {
        Self(Programmed::new(config))
    }

    /// The bytes of the transaction for a delta, as they go over the socket.
    pub fn transaction(&mut self, delta: &Delta) -> Vec<u8> {
        self.0.count_delta(delta, 1);
        let (batch, created) = self.0.encode(delta, &[]);
        self.0.applied(created);
        batch.into_bytes()
    }
}
