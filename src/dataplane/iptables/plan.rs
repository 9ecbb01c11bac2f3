//! What a family's chains are to be, and what a delta makes of them.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use rustc_hash::FxBuildHasher;

use super::chain::Chain;
use super::chain_names;
use super::dispatch::{Changes, Tree};
use super::fixed::{self, Base};
use super::key::{Key, Space};
use super::memories::{self, Memories};
use super::served::{self, Common, Made, Refusal, Served};
use crate::core::ir::{Delta, Destination, DestinationChange, Entry, Forwarding, Host, Shared};
use crate::core::model::{Family, Owner};
use crate::dataplane::Options;

/// Chains to write, in an order in which each is there before another leads to it, and chains that nobody
/// is led to any more.
#[derive(Debug, Default)]
pub(super) struct Stage {
    pub(super) chains: Vec<(Owner, Chain)>,
    pub(super) gone: Vec<String>,
}

impl Stage {
    fn take(&mut self, changes: Changes) {
        let chains = changes.chains.into_iter();
        self.chains
            .extend(chains.map(|chain| (Owner::Cluster, chain)));
        self.gone.extend(changes.gone);
    }
}

/// What a delta comes to, one step after the other: who is to be refused from now on is, before it is served
/// no longer, and who is served from now on is, before it is refused no longer.
#[derive(Debug, Default)]
pub(super) struct Stages {
    pub(super) refuse: Stage,
    pub(super) nat: Stage,
    pub(super) filter: Stage,
}

/// What has been applied.
#[derive(Debug, Default)]
struct Facts {
    destinations: HashMap<Destination, Forwarding, FxBuildHasher>,
    memories: Memories,
    cluster_ips: BTreeSet<IpAddr>,
    service_cidrs: BTreeSet<IpNetwork>,
    hairpins: BTreeSet<Shared>,
    node_addresses: BTreeSet<IpAddr>,
}

impl Facts {
    fn set(&mut self, shared: Shared, is: bool) {
        fn put<T: Ord>(set: &mut BTreeSet<T>, item: T, is: bool) {
            if is {
                set.insert(item);
            } else {
                set.remove(&item);
            }
        }
        match shared {
            Shared::ClusterIp(address) => put(&mut self.cluster_ips, address, is),
            Shared::ServiceCidr(network) => put(&mut self.service_cidrs, network, is),
            Shared::NodePortAddress(address) => put(&mut self.node_addresses, address, is),
            Shared::Hairpin { .. } => put(&mut self.hairpins, shared, is),
        }
    }
}

#[derive(Debug)]
struct Trees {
    services: Tree<Served>,
    node_ports: Tree<Served>,
    refused: Tree<Refusal>,
    refused_node_ports: Tree<Refusal>,
    hairpins: Tree<Refusal>,
}

impl Trees {
    const fn new(family: Family) -> Self {
        let addresses = Space::Addresses(family);
        Self {
            services: Tree::new(addresses, fixed::VIPS, "PTMG-"),
            node_ports: Tree::new(Space::Node, fixed::NODE_PORTS, "PTMG-"),
            refused: Tree::new(addresses, fixed::REFUSED, "PTMG-"),
            refused_node_ports: Tree::new(Space::Node, fixed::REFUSED_NODE_PORTS, "PTMG-"),
            hairpins: Tree::new(addresses, fixed::HAIRPIN, "PTMH-"),
        }
    }
}

/// The chains of one family.
#[derive(Debug)]
pub(super) struct Program {
    family: Family,
    common: Common,
    everywhere: bool,
    localhost: bool,
    drop_invalid: bool,
    facts: Facts,
    trees: Trees,
    /// The trees are ahead of the facts: something was planned that has not been done.
    ahead: bool,
    /// What will be remembered when what was planned is there.
    memories: Memories,
    /// The chains that remembered clients when the kernel was read.
    pub(super) remembering: HashSet<String, FxBuildHasher>,
    /// Nothing has been written since the kernel was read.
    pub(super) begins: bool,
}

impl Program {
    pub(super) fn new(options: &Options, family: Family) -> Self {
        Self {
            family,
            common: Common {
                detector: options.local_detector.get(family).clone(),
                masquerade_all: options.masquerade_all,
                mark: options.mark(),
            },
            everywhere: *options.node_ports_everywhere.get(family),
            localhost: options.localhost_node_ports && family == Family::V4,
            drop_invalid: options.drop_invalid,
            facts: Facts::default(),
            trees: Trees::new(family),
            ahead: false,
            memories: Memories::default(),
            remembering: HashSet::default(),
            begins: true,
        }
    }

    /// Whether a delta asks for clients to be remembered.
    pub(super) fn is_to_remember(&self, delta: &Delta) -> bool {
        let mut after = self
            .of_family(delta)
            .filter_map(|change| change.after.as_ref());
        after.any(|forwarding| memories::lists(forwarding) > 0)
    }

    /// From now on nobody is remembered.
    pub(super) const fn forget_clients(&mut self) {
        self.facts.memories.end();
    }

    /// What there is to write for a delta; [`Self::done`] follows when it has been written.
    pub(super) fn plan(&mut self, delta: &Delta) -> Stages {
        if std::mem::replace(&mut self.ahead, true) {
            self.rebuild();
        }
        let mut stages = Stages::default();
        let (mut services, mut node_ports) = (Vec::new(), Vec::new());
        let mut refusals = [Vec::new(), Vec::new()];
        let mut early = [Vec::new(), Vec::new()];
        let before_it = &self.facts.memories;
        let held = |to: Destination| {
            self.begins && self.remembering.contains(&chain_names::destination(to))
        };
        let memories = before_it.with(|| self.of_family(delta), held);
        for change in self.of_family(delta) {
            let to = change.destination;
            let old = self.facts.destinations.get(&to);
            let before = old.map_or_else(Made::default, |old| {
                served::make(&self.common, to, old, before_it.remembers(to))
            });
            let after = change.after.as_ref();
            let after = after.map_or_else(Made::default, |forwarding| {
                served::make(&self.common, to, forwarding, memories.remembers(to))
            });
            let key = Key::of(to);
            let is_node = matches!(to.host, Host::Node(_));
            if is_node {
                node_ports.push((key.clone(), after.served));
            } else {
                services.push((key.clone(), after.served));
            }
            let was_served = old.is_some() && before.refusal.is_none();
            if after.refusal != before.refusal {
                let lists = if was_served {
                    &mut early
                } else {
                    &mut refusals
                };
                lists[usize::from(is_node)].push((key, after.refusal));
            }
            let owner = change.owner;
            stages.nat.gone.extend(superseded(before.nat, &after.nat));
            let nat = after.nat.into_iter().map(|chain| (owner, chain));
            stages.nat.chains.extend(nat);
            stages
                .filter
                .gone
                .extend(superseded(before.filter, &after.filter));
            let filter = after.filter.into_iter().map(|chain| (owner, chain));
            let stage = if was_served {
                &mut stages.refuse
            } else {
                &mut stages.filter
            };
            stage.chains.extend(filter);
        }
        let [early, early_node_ports] = early;
        stages.refuse.take(self.trees.refused.set(early));
        stages
            .refuse
            .take(self.trees.refused_node_ports.set(early_node_ports));

        let [mut refused, refused_node_ports] = refusals;
        let mut hairpins = Vec::new();
        let (mut cidrs, mut addresses) = (
            self.facts.service_cidrs.clone(),
            self.facts.node_addresses.clone(),
        );
        for (shared, is) in self.shared(delta) {
            match shared {
                Shared::ClusterIp(address) => {
                    refused.push((
                        Key::address(address),
                        is.then_some(Refusal::Unused(self.family)),
                    ));
                }
                Shared::ServiceCidr(network) if is => drop(cidrs.insert(network)),
                Shared::ServiceCidr(network) => drop(cidrs.remove(&network)),
                Shared::NodePortAddress(address) if is => drop(addresses.insert(address)),
                Shared::NodePortAddress(address) => drop(addresses.remove(&address)),
                Shared::Hairpin { protocol, endpoint } => {
                    let to = Destination {
                        host: Host::Address(endpoint.address),
                        protocol,
                        port: endpoint.port,
                    };
                    let leaf = is.then_some(Refusal::Hairpin(endpoint.address));
                    hairpins.push((Key::of(to), leaf));
                }
            }
        }
        let trees = &mut self.trees;
        let mut nat = [
            trees.services.set(services),
            trees.node_ports.set(node_ports),
            trees.hairpins.set(hairpins),
        ];
        let mut filter = [
            trees.refused.set(refused),
            trees.refused_node_ports.set(refused_node_ports),
        ];
        if self.begins {
            // Those that nothing is in are not there yet.
            nat = [
                trees.services.all(),
                trees.node_ports.all(),
                trees.hairpins.all(),
            ];
            filter = [trees.refused.all(), trees.refused_node_ports.all()];
        }
        nat.into_iter().for_each(|made| stages.nat.take(made));
        filter.into_iter().for_each(|made| stages.filter.take(made));
        let base = Base {
            family: self.family,
            mark: self.common.mark,
            drop_invalid: self.drop_invalid,
            everywhere: self.everywhere,
            localhost: self.localhost,
            node_addresses: &addresses,
            service_cidrs: &cidrs,
        };
        let of_cluster = |chain| (Owner::Cluster, chain);
        stages
            .nat
            .chains
            .extend(base.nat().into_iter().map(of_cluster));
        stages
            .filter
            .chains
            .extend(base.filter().into_iter().map(of_cluster));
        self.memories = memories;
        stages
    }

    /// What was planned is there.
    pub(super) fn done(&mut self, delta: &Delta) {
        let changes: Vec<(Destination, Option<Forwarding>)> = self
            .of_family(delta)
            .map(|change| (change.destination, change.after.clone()))
            .collect();
        for (destination, after) in changes {
            match after {
                Some(forwarding) => self.facts.destinations.insert(destination, forwarding),
                None => self.facts.destinations.remove(&destination),
            };
        }
        for (shared, is) in self.shared(delta) {
            self.facts.set(shared, is);
        }
        self.facts.memories = std::mem::take(&mut self.memories);
        self.ahead = false;
        self.begins = false;
    }

    fn of_family<'a>(&self, delta: &'a Delta) -> impl Iterator<Item = &'a DestinationChange> {
        let family = self.family;
        let changes = delta.destinations.iter();
        changes.filter(move |change| change.destination.family() == family)
    }

    /// The shared facts of a delta, in the order in which they come about.
    fn shared(&self, delta: &Delta) -> Vec<(Shared, bool)> {
        let of = |operations: &[crate::core::ir::Operation], is: bool| -> Vec<(Shared, bool)> {
            let entries = operations.iter().map(|operation| &operation.entry);
            let shared = entries.filter_map(|entry| match entry {
                Entry::Shared(shared) if shared.family() == self.family => Some((*shared, is)),
                _ => None,
            });
            shared.collect()
        };
        let mut all = of(&delta.remove, false);
        all.extend(of(&delta.add, true));
        all
    }

    /// Makes the trees anew of what has been applied.
    fn rebuild(&mut self) {
        let facts = std::mem::take(&mut self.facts);
        let begins = self.begins;
        // Who was remembered still is, and nobody else.
        self.facts.memories = facts.memories;
        self.trees = Trees::new(self.family);
        let mut delta = Delta::default();
        for (destination, forwarding) in facts.destinations {
            delta.destinations.push(DestinationChange {
                owner: Owner::Cluster,
                destination,
                before: None,
                after: Some(forwarding),
            });
        }
        let cluster_ips = facts.cluster_ips.into_iter().map(Shared::ClusterIp);
        let cidrs = facts.service_cidrs.into_iter().map(Shared::ServiceCidr);
        let addresses = facts.node_addresses.into_iter();
        let addresses = addresses.map(Shared::NodePortAddress);
        let all = cluster_ips.chain(cidrs).chain(addresses);
        for shared in all.chain(facts.hairpins) {
            delta.add.push(crate::core::ir::Operation {
                owner: Owner::Cluster,
                entry: Entry::Shared(shared),
            });
        }
        self.ahead = false;
        drop(self.plan(&delta));
        self.done(&delta);
        self.begins = begins;
        self.ahead = true;
    }
}

/// The chains that are not among the new ones.
fn superseded(before: Vec<Chain>, after: &[Chain]) -> Vec<String> {
    let known: BTreeSet<&str> = after.iter().map(|chain| chain.name.as_str()).collect();
    let names = before.into_iter().map(|chain| chain.name);
    names
        .filter(|name| !known.contains(name.as_str()))
        .collect()
}
