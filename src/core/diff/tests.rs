//! The engine against a model of a backend: a map that refuses what a kernel would refuse.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::core::compile::{NodePortAddresses, compile_cluster, compile_known};
use crate::core::ir::{Action, Draw, Host, Label, List, Route};
use crate::core::model::{
    Affinity, Algorithm, Change, Dirty, Endpoint, EndpointSlice, Family, Hint, Node, ObjectKey,
    Owner, PerFamily, Protocol, Service, ServiceId, ServicePort, SliceEndpoint, SlicePort,
    SourceRanges, State, ZoneHints,
};

/// An entry's key: two entries with one key cannot both be there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Route(Destination),
    ExternalRoute(Destination),
    Slot(Destination, List, u32),
    NoEndpoints(Destination),
    Whole(Entry),
}

fn key(entry: &Entry) -> Key {
    match entry {
        Entry::Route { destination, .. } => Key::Route(*destination),
        Entry::ExternalRoute { destination, .. } => Key::ExternalRoute(*destination),
        Entry::Slot {
            destination,
            list,
            index,
            ..
        } => Key::Slot(*destination, *list, *index),
        Entry::NoEndpoints { destination, .. } => Key::NoEndpoints(*destination),
        whole => Key::Whole(whole.clone()),
    }
}

/// A backend that takes a delta only if the kernel would.
#[derive(Debug, Default)]
struct Backend(BTreeMap<Key, Entry>);

impl Backend {
    fn apply(&mut self, delta: &Delta) {
        for Operation { entry, .. } in &delta.remove {
            assert_eq!(
                self.0.remove(&key(entry)).as_ref(),
                Some(entry),
                "a removed entry is there"
            );
        }
        for Operation { entry, .. } in &delta.add {
            assert_eq!(
                self.0.insert(key(entry), entry.clone()),
                None,
                "the key of an added entry is free"
            );
        }
    }

    fn entries(&self) -> Vec<Entry> {
        self.0.values().cloned().collect()
    }
}

/// Entries with each list's endpoints sorted, unless its order matters: which one sits in which slot
/// may differ.
fn without_slot_order(entries: &[Entry]) -> BTreeSet<Entry> {
    let draws: BTreeMap<Destination, Draw> = entries
        .iter()
        .filter_map(|entry| match entry {
            Entry::Route {
                destination,
                route: Route::Balance { draw, .. },
                ..
            } => Some((*destination, *draw)),
            _ => None,
        })
        .collect();
    let mut lists: BTreeMap<(Destination, List, bool), Vec<(u32, Endpoint)>> = BTreeMap::new();
    let mut rest = BTreeSet::new();
    for entry in entries {
        if let Entry::Slot {
            destination,
            list,
            index,
            remembered,
            endpoint,
        } = entry
        {
            lists
                .entry((*destination, *list, *remembered))
                .or_default()
                .push((*index, *endpoint));
        } else {
            rest.insert(entry.clone());
        }
    }
    for ((destination, list, remembered), mut slots) in lists {
        slots.sort_unstable();
        let has_no_gaps = (0..).zip(&slots).all(|(index, (known, _))| index == *known);
        assert!(has_no_gaps, "{destination}: {slots:?}");
        let draw = draws.get(&destination).copied().unwrap_or_default();
        let mut endpoints: Vec<Endpoint> =
            slots.into_iter().map(|(_, endpoint)| endpoint).collect();
        if !draw.is_ordered() {
            endpoints.sort_unstable();
        }
        if !draw.repeats() {
            let each: BTreeSet<Endpoint> = endpoints.iter().copied().collect();
            assert_eq!(each.len(), endpoints.len(), "no endpoint has two slots");
        }
        for (index, endpoint) in (0..).zip(endpoints) {
            rest.insert(Entry::Slot {
                destination,
                list,
                index,
                remembered,
                endpoint,
            });
        }
    }
    rest
}

/// A backend that writes what a destination does as a whole.
#[derive(Debug, Default)]
struct Chains {
    chains: BTreeMap<Destination, Forwarding>,
    shared: BTreeSet<Shared>,
}

impl Chains {
    /// With all that makes a whole of what an engine has found.
    fn of(engine: &Engine) -> Self {
        let applied = engine.applied.iter();
        Self {
            chains: applied.map(|(at, does)| (*at, does.clone())).collect(),
            shared: engine.applied_shared.iter().copied().collect(),
        }
    }

    fn apply(&mut self, delta: &Delta) {
        for change in &delta.destinations {
            let held = match &change.after {
                Some(after) => self.chains.insert(change.destination, after.clone()),
                None => self.chains.remove(&change.destination),
            };
            assert_eq!(held, change.before, "{}", change.destination);
        }
        for operation in &delta.remove {
            if let Entry::Shared(shared) = operation.entry {
                assert!(self.shared.remove(&shared), "{shared:?} is there");
            }
        }
        for operation in &delta.add {
            if let Entry::Shared(shared) = operation.entry {
                assert!(self.shared.insert(shared), "{shared:?} is not there");
            }
        }
    }

    fn entries(&self) -> Vec<Entry> {
        let mut entries: Vec<Entry> = self.shared.iter().copied().map(Entry::Shared).collect();
        for (destination, forwarding) in &self.chains {
            forwarding.for_each_entry(*destination, |entry| entries.push(entry));
        }
        entries
    }
}

struct Cluster {
    state: State,
    engine: Engine,
    backend: Backend,
    chains: Chains,
}

impl Cluster {
    fn new() -> Self {
        Self {
            state: State::new(Node {
                addresses: vec!["192.0.2.1".parse().unwrap()],
                zone: Some("a".into()),
                ..Node::named("here")
            }),
            engine: Engine::default(),
            backend: Backend::default(),
            chains: Chains::default(),
        }
    }

    fn change(&mut self, change: Change) {
        self.state.apply(change);
        for Dirty { owner, .. } in self.state.take_dirty() {
            let compiled = match owner {
                Owner::Cluster => Some(compile_cluster(&self.state, &NodePortAddresses::Primary)),
                Owner::Service(id) => {
                    let known = self.state.service(id);
                    known.map(|known| compile_known(known, self.state.node()))
                }
            };
            self.engine.update(owner, compiled);
        }
    }

    fn sync(&mut self) -> Delta {
        let pending = self.engine.pending();
        let delta = pending.delta().clone();
        self.backend.apply(&delta);
        self.chains.apply(&delta);
        self.engine.commit(pending);
        delta
    }

    fn compiled_from_nothing(&self) -> Vec<Entry> {
        let mut engine = Engine::default();
        for id in (0..10_000).map(ServiceId::nth) {
            if let Some(known) = self.state.service(id) {
                let compiled = compile_known(known, self.state.node());
                engine.update(Owner::Service(id), Some(compiled));
            }
        }
        engine.update(
            Owner::Cluster,
            Some(compile_cluster(&self.state, &NodePortAddresses::Primary)),
        );
        engine.wanted_entries()
    }

    fn assert_converged(&self) {
        let held = without_slot_order(&self.backend.entries());
        assert_eq!(held, without_slot_order(&self.compiled_from_nothing()));
        assert_eq!(held, without_slot_order(&self.engine.applied_entries()));
        assert_eq!(held, without_slot_order(&self.chains.entries()));
    }
}

fn owner(number: u32) -> Owner {
    Owner::Service(ServiceId::nth(number))
}

fn service_key(number: u8) -> ObjectKey {
    ObjectKey::new("default", format!("svc-{number}"))
}

/// Few names and addresses, so that changes meet and Services contest tuples.
fn any_service() -> impl Strategy<Value = Service> {
    let address = |base: u8| (0u8..4).prop_map(move |last| [10, base, 0, last].into());
    let port = (
        0u8..3,
        0usize..2,
        80u16..82,
        prop_oneof![Just(0u16), 30000u16..30003],
    )
        .prop_map(|(name, protocol, port, node_port)| ServicePort {
            name: format!("p{name}").into(),
            protocol: Protocol::ALL[protocol],
            port,
            node_port,
        });
    (
        0i64..3,
        proptest::option::of(address(96)),
        proptest::option::of(Just("fd00::1".parse().unwrap())),
        proptest::collection::vec(address(1), 0..2),
        proptest::collection::vec(address(2), 0..2),
        proptest::collection::vec(port, 0..3),
        proptest::option::of(prop_oneof![Just(60u32), Just(120u32)]),
        any::<bool>(),
        any::<bool>(),
        proptest::option::of(0u8..3),
        proptest::sample::select(ALGORITHMS.to_vec()),
    )
        .prop_map(
            |(
                created,
                v4,
                v6,
                external_ips,
                vips,
                ports,
                affinity,
                internal,
                external,
                ranges,
                algorithm,
            )| {
                let ranges = ranges.map_or(SourceRanges::Any, |count| {
                    let list = ["10.0.0.0/8", "192.168.0.0/16", "192.0.2.0/24"];
                    SourceRanges::Only(
                        list[..usize::from(count)]
                            .iter()
                            .map(|text| text.parse().unwrap())
                            .collect(),
                    )
                });
                Service {
                    created,
                    cluster_ips: PerFamily { v4, v6 },
                    external_ips,
                    vips,
                    source_ranges: PerFamily {
                        v4: ranges,
                        v6: SourceRanges::Any,
                    },
                    ports,
                    affinity: affinity.map(|timeout_seconds| Affinity { timeout_seconds }),
                    algorithm,
                    ejects: false,
                    internal_local: internal,
                    external_local: external,
                    health_check_node_port: 0,
                }
            },
        )
}

/// Random as often as all others together.
const ALGORITHMS: [Algorithm; 8] = [
    Algorithm::Random,
    Algorithm::RoundRobin,
    Algorithm::Random,
    Algorithm::SourceHash,
    Algorithm::Random,
    Algorithm::DestinationHash,
    Algorithm::Random,
    Algorithm::LeastConnection,
];

fn any_endpoint() -> impl Strategy<Value = SliceEndpoint> {
    (
        0u8..12,
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
        0u8..4,
        prop_oneof![6 => Just(1u32), 1 => 0u32..5],
    )
        .prop_map(
            |(last, ready, serving, terminating, local, zone, weight)| SliceEndpoint {
                address: [10, 244, 0, last].into(),
                ready,
                serving,
                terminating,
                local,
                node_hint: Hint::None,
                weight,
                zone_hints: (zone > 1).then(|| ZoneHints::new(["a".into()].into())),
            },
        )
}

fn any_slice() -> impl Strategy<Value = EndpointSlice> {
    (
        0u8..4,
        proptest::collection::vec(any_endpoint(), 0..8),
        proptest::collection::vec((0u8..3, 0usize..2), 1..3),
    )
        .prop_map(|(service, endpoints, ports)| EndpointSlice {
            service: service_key(service),
            family: Family::V4,
            ports: ports
                .into_iter()
                .map(|(name, protocol)| SlicePort {
                    name: format!("p{name}").into(),
                    protocol: Protocol::ALL[protocol],
                    port: 8080,
                })
                .collect(),
            endpoints: endpoints.into(),
        })
}

fn any_change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (0u8..4, proptest::option::weighted(0.8, any_service())).prop_map(|(number, service)| {
            Change::Service(service_key(number), service.map(Box::new))
        }),
        (0u8..6, proptest::option::weighted(0.8, any_slice())).prop_map(|(number, slice)| {
            let key = ObjectKey::new("default", format!("slice-{number}"));
            Change::EndpointSlice(key, slice.map(Box::new))
        }),
        (0u8..2, proptest::option::of(0u8..3)).prop_map(|(number, prefix)| {
            let ranges = prefix
                .map(|prefix| vec![format!("10.96.0.0/{}", 12 + prefix * 4).parse().unwrap()]);
            Change::ServiceCidr(format!("cidr-{number}"), ranges)
        }),
        proptest::option::of(Just("a".into())).prop_map(|zone| {
            Change::Node(Some(Box::new(Node {
                zone,
                addresses: vec!["192.0.2.1".parse().unwrap()],
                ..Node::named("here")
            })))
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// For any sequence of events, the deltas applied one after another give the entries of
    /// compiling the final state from nothing.
    #[test]
    fn deltas_end_where_compiling_from_nothing_begins(
        steps in proptest::collection::vec((any_change(), any::<bool>()), 1..40),
    ) {
        let mut cluster = Cluster::new();
        for (change, sync) in steps {
            cluster.change(change);
            if sync {
                cluster.sync();
            }
        }
        cluster.sync();
        cluster.assert_converged();
        prop_assert!(cluster.sync().is_empty(), "nothing is left to do");
    }

    /// Whatever a backend holds, after adopting it the next delta leads to what is wanted, and
    /// if it held just that, there is no delta.
    #[test]
    fn adoption_repairs_whatever_it_finds(
        changes in proptest::collection::vec(any_change(), 1..20),
        lost in proptest::collection::vec(any::<prop::sample::Index>(), 0..5),
        other in proptest::collection::vec(any_change(), 0..10),
    ) {
        let mut cluster = Cluster::new();
        for change in changes {
            cluster.change(change);
        }
        cluster.sync();
        cluster.engine.adopt(cluster.backend.entries());
        cluster.chains = Chains::of(&cluster.engine);
        prop_assert!(cluster.engine.pending().delta().is_empty(), "a restart sends nothing");

        for index in lost {
            let keys: Vec<Key> = cluster.backend.0.keys().cloned().collect();
            if !keys.is_empty() {
                cluster.backend.0.remove(index.get(&keys));
            }
        }
        let mut elsewhere = Cluster::new();
        for change in other {
            elsewhere.change(change);
        }
        elsewhere.sync();
        for (key, entry) in elsewhere.backend.0 {
            cluster.backend.0.entry(key).or_insert(entry);
        }
        cluster.engine.adopt(cluster.backend.entries());
        cluster.chains = Chains::of(&cluster.engine);
        cluster.sync();
        cluster.assert_converged();
    }

    /// However small the parts are, and whatever comes between them, they end where one delta
    /// would; no address is refused as unused before its Services are served.
    #[test]
    fn parts_of_a_delta_end_where_the_whole_does(
        changes in proptest::collection::vec(any_change(), 1..20),
        between in proptest::collection::vec(any_change(), 0..10),
        most in 1usize..6,
    ) {
        let mut cluster = Cluster::new();
        for change in changes {
            cluster.change(change);
        }
        let mut between = between.into_iter();
        loop {
            let pending = cluster.engine.pending_up_to(most);
            cluster.backend.apply(pending.delta());
            cluster.chains.apply(pending.delta());
            let delta = pending.delta().clone();
            cluster.engine.commit(pending);
            for Operation { owner, entry } in &delta.add {
                let Entry::Shared(Shared::ClusterIp(address)) = entry else {
                    continue;
                };
                for (destination, _) in cluster.engine.wanted_destinations() {
                    let claim = cluster.engine.claims.winner(destination);
                    let mine = claim.is_some_and(|claim| claim.owner == *owner);
                    if mine && destination.host == Host::Address(*address) {
                        prop_assert!(cluster.engine.applied(&destination).is_some());
                    }
                }
            }
            if cluster.engine.is_settled() {
                break;
            }
            if let Some(change) = between.next() {
                cluster.change(change);
            }
        }
        cluster.assert_converged();
    }

    /// A delta that was not applied is made again, with what has come since.
    #[test]
    fn a_dropped_delta_loses_nothing(
        first in proptest::collection::vec(any_change(), 1..10),
        second in proptest::collection::vec(any_change(), 0..10),
    ) {
        let mut cluster = Cluster::new();
        for change in first {
            cluster.change(change);
        }
        drop(cluster.engine.pending());
        for change in second {
            cluster.change(change);
        }
        cluster.sync();
        cluster.assert_converged();
    }

    /// One endpoint changed in a list of N costs at most 3 operations on each list it is on,
    /// and at most a verdict replaced beside it; never N.
    #[test]
    fn one_endpoint_costs_three_operations_a_list(
        count in 1u8..100,
        victim in any::<prop::sample::Index>(),
        replace in 0u8..3,
    ) {
        let mut cluster = Cluster::new();
        let service = Service {
            vips: vec!["10.1.0.1".parse().unwrap()],
            external_local: true,
            ports: vec![ServicePort {
                name: "p0".into(),
                protocol: Protocol::Tcp,
                port: 80,
                node_port: 30000,
            }],
            ..plain_service()
        };
        cluster.change(Change::Service(service_key(0), Some(Box::new(service))));
        let mut addresses: Vec<u8> = (0..count).collect();
        cluster.change(slice(&addresses));
        cluster.sync();
        let victim = victim.index(addresses.len());
        match replace {
            0 => addresses[victim] = 200,
            1 => { addresses.remove(victim); }
            _ => addresses.push(200),
        }
        cluster.change(slice(&addresses));
        let delta = cluster.sync();
        cluster.assert_converged();
        let mut slots: BTreeMap<(Destination, List), usize> = BTreeMap::new();
        let mut others: BTreeMap<Destination, usize> = BTreeMap::new();
        let mut shared = 0;
        for operation in delta.remove.iter().chain(&delta.add) {
            match &operation.entry {
                Entry::Slot { destination, list, .. } => {
                    *slots.entry((*destination, *list)).or_default() += 1;
                }
                Entry::Route { destination, .. }
                | Entry::ExternalRoute { destination, .. }
                | Entry::NoEndpoints { destination, .. } => {
                    *others.entry(*destination).or_default() += 1;
                }
                Entry::Shared(_) => shared += 1,
                other => prop_assert!(false, "unexpected: {other:?}"),
            }
        }
        prop_assert!(slots.values().all(|count| *count <= 3), "{slots:?}");
        // A verdict and that for sources from outside, each taken away and put back.
        prop_assert!(others.values().all(|count| *count <= 4), "{others:?}");
        prop_assert!(shared <= 2);
    }
}

fn plain_service() -> Service {
    Service {
        created: 1,
        cluster_ips: PerFamily {
            v4: Some("10.96.0.1".parse().unwrap()),
            v6: None,
        },
        external_ips: Vec::new(),
        vips: Vec::new(),
        source_ranges: PerFamily::default(),
        ports: vec![ServicePort {
            name: "p0".into(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: 0,
        }],
        affinity: None,
        algorithm: Algorithm::Random,
        ejects: false,
        internal_local: false,
        external_local: false,
        health_check_node_port: 0,
    }
}

fn slice(addresses: &[u8]) -> Change {
    let endpoints = addresses
        .iter()
        .map(|last| SliceEndpoint {
            address: [10, 244, 0, *last].into(),
            ready: true,
            serving: true,
            terminating: false,
            local: true,
            node_hint: Hint::None,
            weight: 1,
            zone_hints: None,
        })
        .collect();
    Change::EndpointSlice(
        ObjectKey::new("default", "slice"),
        Some(Box::new(EndpointSlice {
            service: service_key(0),
            family: Family::V4,
            ports: [SlicePort {
                name: "p0".into(),
                protocol: Protocol::Tcp,
                port: 8080,
            }]
            .into(),
            endpoints,
        })),
    )
}

fn contested_service(created: i64) -> Service {
    Service {
        created,
        cluster_ips: PerFamily {
            v4: Some([10, 96, 0, u8::try_from(created).unwrap()].into()),
            v6: None,
        },
        external_ips: vec!["203.0.113.1".parse().unwrap()],
        ..plain_service()
    }
}

fn owner_of_contested(cluster: &Cluster) -> Option<Label> {
    let destination = Destination {
        host: Host::Address("203.0.113.1".parse().unwrap()),
        protocol: Protocol::Tcp,
        port: 80,
    };
    Some(cluster.engine.applied(&destination)?.label.clone())
}

#[test]
fn n_e11_the_older_service_owns_a_contested_destination_and_the_younger_takes_over() {
    let mut cluster = Cluster::new();
    let put = |cluster: &mut Cluster, number: u8, created: Option<i64>| {
        let service = created.map(|created| Box::new(contested_service(created)));
        cluster.change(Change::Service(service_key(number), service));
        cluster.sync();
    };
    put(&mut cluster, 1, Some(5));
    assert_eq!(
        owner_of_contested(&cluster),
        Some(Label::new("default/svc-1:p0"))
    );
    assert_eq!(cluster.engine.contested_claims(), 0);
    put(&mut cluster, 2, Some(3));
    assert_eq!(
        owner_of_contested(&cluster),
        Some(Label::new("default/svc-2:p0"))
    );
    put(&mut cluster, 3, Some(9));
    assert_eq!(
        owner_of_contested(&cluster),
        Some(Label::new("default/svc-2:p0"))
    );
    assert_eq!(cluster.engine.contested_claims(), 2);
    put(&mut cluster, 2, None);
    assert_eq!(
        owner_of_contested(&cluster),
        Some(Label::new("default/svc-1:p0"))
    );
    put(&mut cluster, 1, None);
    assert_eq!(
        owner_of_contested(&cluster),
        Some(Label::new("default/svc-3:p0"))
    );
    assert_eq!(cluster.engine.contested_claims(), 0);
    put(&mut cluster, 3, None);
    assert_eq!(owner_of_contested(&cluster), None);
    cluster.assert_converged();
}

#[test]
fn n_e11_services_of_one_age_are_ordered_by_namespace_and_name() {
    let mut engine = Engine::default();
    let compiled = |name: &str| {
        let service = contested_service(7);
        compile_in(
            &ObjectKey::new("default", name),
            &service,
            &State::new(Node::default()),
        )
    };
    assert_eq!(engine.update(owner(1), Some(compiled("zebra"))), []);
    let contested = engine.update(owner(2), Some(compiled("aardvark")));
    // The ClusterIP is the same too.
    assert_eq!(contested.len(), 2);
    for Contested { winner, loser, .. } in contested {
        assert_eq!((winner, loser), (owner(2), owner(1)));
    }
}

#[test]
fn n_e11_a_contest_is_reported_once_and_not_at_every_update() {
    let mut engine = Engine::default();
    let state = State::new(Node::default());
    let compiled = |name: &str, created| {
        compile_in(
            &ObjectKey::new("default", name),
            &contested_service(created),
            &state,
        )
    };
    engine.update(owner(1), Some(compiled("a", 1)));
    assert_eq!(engine.update(owner(2), Some(compiled("b", 2))).len(), 1);
    let mut changed = compiled("b", 2);
    changed.destinations[0].1.action = Action::Drop;
    assert_eq!(engine.update(owner(2), Some(changed)), []);
}

/// Compiles a Service with the slices that a cluster has for it.
fn compile_in(key: &ObjectKey, service: &Service, state: &State) -> Compiled {
    let slices: Vec<_> = state.slices(key).collect();
    crate::core::compile::compile(key, service, &slices, None, state.node())
}

/// What a destination does that leads to so many endpoints, from one on.
fn to(first: u32, count: u32) -> Forwarding {
    let endpoints = (first..first + count)
        .map(|number| Endpoint::new(std::net::Ipv4Addr::from(0x0a00_0000 + number).into(), 53));
    Forwarding {
        label: Label::new("a/b"),
        action: Action::Balance {
            policy: crate::core::ir::SourcePolicy::External,
            primary: endpoints.collect(),
            external: None,
            draw: Draw::Random,
            affinity: None,
        },
        sources: crate::core::ir::Sources::Any,
    }
}

fn at(last: u8, protocol: Protocol) -> Destination {
    Destination {
        host: Host::Address([203, 0, 113, last].into()),
        protocol,
        port: 53,
    }
}

fn compiled(destinations: Vec<(Destination, Forwarding)>) -> Compiled {
    let of_udp = destinations
        .iter()
        .filter(|(at, _)| at.protocol == Protocol::Udp)
        .filter_map(|(at, does)| Some((*at, does.list(List::Primary)?.clone())));
    Compiled {
        flows: of_udp.collect(),
        destinations: destinations.into(),
        ..Compiled::default()
    }
}

#[test]
fn who_changes_before_each_transaction_keeps_neither_others_nor_itself_from_a_turn() {
    let (small, large, other) = (
        at(1, Protocol::Tcp),
        at(2, Protocol::Tcp),
        at(3, Protocol::Tcp),
    );
    let mut engine = Engine::default();
    let restless = |round: u32| compiled(vec![(small, to(round, 1)), (large, to(0, 5_000))]);
    engine.update(owner(1), Some(compiled(vec![(other, to(0, 1))])));
    for round in 0..20 {
        engine.update(owner(0), Some(restless(round)));
        let pending = engine.pending_up_to(1_000);
        engine.commit(pending);
    }
    assert!(engine.applied(&other).is_some());
    let large = engine.applied(&large).map(Forwarding::weight);
    assert_eq!(large, Some(to(0, 5_000).weight()));
}

#[test]
fn n_h4_flows_to_a_destination_that_was_deleted_when_its_rules_were_gone_already_are_stale() {
    let destination = at(1, Protocol::Udp);
    let mut engine = Engine::default();
    engine.update(owner(0), Some(compiled(vec![(destination, to(0, 2))])));
    let pending = engine.pending();
    assert_eq!(engine.commit(pending).len(), 1, "it is new");
    engine.update(owner(0), None);
    engine.adopt([]);
    let pending = engine.pending();
    let stale = engine.commit(pending);
    let destinations: Vec<Destination> = stale.iter().map(|flows| flows.destination).collect();
    assert_eq!(destinations, [destination]);
}

#[test]
fn h2_n_h1_flows_are_looked_through_where_rules_were_gone_and_nowhere_else() {
    let (kept, lost) = (1, 2);
    let everywhere = [kept, lost].map(|last| [at(last, Protocol::Tcp), at(last, Protocol::Udp)]);
    let wanted = |more: Option<Destination>| {
        let all = everywhere.iter().flatten().copied().chain(more);
        compiled(all.map(|at| (at, to(0, 2))).collect())
    };
    let sync = |engine: &mut Engine| -> Vec<Destination> {
        let pending = engine.pending();
        let mut stale = engine.commit(pending);
        stale.extend(engine.take_unserved());
        let stale = stale.into_iter().map(|flows| flows.destination);
        let mut stale: Vec<Destination> = stale.collect();
        stale.sort_unstable();
        stale
    };
    let mut engine = Engine::default();
    engine.update(owner(0), Some(wanted(None)));
    let mut all: Vec<Destination> = everywhere.iter().flatten().copied().collect();
    all.sort_unstable();
    assert_eq!(sync(&mut engine), all, "the first sync");

    engine.adopt(engine.applied_entries());
    assert_eq!(sync(&mut engine), [], "everything is as it was");

    let mut left = Vec::new();
    for at in everywhere[0] {
        let applied = engine.applied(&at).expect("its forwarding");
        applied.for_each_entry(at, |entry| left.push(entry));
    }
    engine.adopt(left);
    assert_eq!(sync(&mut engine), everywhere[1], "some of it is gone");

    engine.update(owner(0), Some(wanted(Some(at(3, Protocol::Tcp)))));
    assert_eq!(
        sync(&mut engine),
        [],
        "a new destination was refused before"
    );
}

#[test]
fn h2_flows_from_before_a_first_sync_are_told_of_all_that_is_served_and_for_the_last_time_at_its_end()
 {
    let owners = 0..4;
    let served = |owner: u32| at(u8::try_from(owner).unwrap() + 1, Protocol::Tcp);
    let mut engine = Engine::default();
    for number in owners.clone() {
        let wanted = compiled(vec![(served(number), to(number, 2))]);
        engine.update(owner(number), Some(wanted));
    }
    let mut told = Vec::new();
    while !engine.is_settled() {
        let pending = engine.pending_up_to(3);
        assert_eq!(engine.commit(pending), [], "nothing is noted meanwhile");
        let flows = engine.take_unserved();
        let mut all: Vec<Destination> = flows.map(|flows| flows.destination).collect();
        all.sort_unstable();
        told.push(all);
    }
    assert!(told.len() > 1, "{told:?}");
    assert!(told.is_sorted_by_key(Vec::len), "{told:?}");
    let all: Vec<Destination> = owners.map(served).collect();
    assert_eq!(told.last(), Some(&all));
    assert_eq!(engine.take_unserved().count(), 0, "once");
}
