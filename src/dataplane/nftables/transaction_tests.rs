//! What transactions leave in the kernel is what the engine takes to be applied, whatever came
//! before: batches are taken by a kernel of maps, which is as strict as the real one, and read back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proptest::prelude::*;

use super::super::contents::Assembly;
use super::super::program::numbers::BARE_MASK;
use super::super::wire::elements::{Listed, listed};
use super::*;
use crate::core::compile::Compiled;
use crate::core::diff::Engine;
use crate::core::ir::{
    Action, Destination, Draw, Forwarding, Host, Label, List, SourcePolicy, Sources,
};
use crate::core::model::{Endpoint, Endpoints, Owner, Protocol, ServiceId};
use crate::host::netlink::attributes::{Attributes, find, string};

/// Elements by set and key, as attributes.
#[derive(Default)]
struct Kernel(BTreeMap<(u8, String, Vec<u8>), Vec<u8>>);

const NEW: u16 = 0x0a0c;
const DELETE: u16 = 0x0a0e;
const KEY: u16 = 1;

impl Kernel {
    fn take(&mut self, mut batch: &[u8]) -> usize {
        let mut operations = 0;
        while let Some(header) = batch.get(..20) {
            let length = u32::from_ne_bytes(header[..4].try_into().unwrap()) as usize;
            let kind = u16::from_ne_bytes(header[4..6].try_into().unwrap());
            let family = header[16];
            if kind == NEW || kind == DELETE {
                let attributes = &batch[20..length];
                let set = find(attributes, 2).and_then(string).unwrap().to_owned();
                for element in listed(attributes) {
                    let key = find(element, KEY).unwrap().to_vec();
                    let key = (family, set.clone(), key);
                    operations += 1;
                    if kind == NEW {
                        let before = self.0.insert(key.clone(), element.to_vec());
                        assert!(before.is_none(), "{key:?} is there already");
                    } else {
                        assert!(self.0.remove(&key).is_some(), "{key:?} is not there");
                    }
                }
            }
            batch = &batch[length.next_multiple_of(4).min(batch.len())..];
        }
        operations
    }

    fn elements(&self) -> impl Iterator<Item = (Family, Element<'_>)> {
        self.0.iter().filter_map(|((family, set, _), attributes)| {
            let family = if *family == 2 { Family::V4 } else { Family::V6 };
            let set = SetId::from_name(set).unwrap();
            if set.is_of_the_program() {
                return None;
            }
            let listed = Listed::read(attributes).unwrap();
            Some((family, listed.element(set, family).unwrap()))
        })
    }

    /// What a start makes of it.
    fn read(&self, programmed: &Programmed) -> (Vec<Entry>, Programmed) {
        let mut again = Programmed::new(programmed.config.clone());
        let mut entries = Vec::new();
        let mut elements: Vec<(Family, Element<'_>)> = self.elements().collect();
        elements.sort_by_key(|(family, element)| (*family, element.set()));
        for family in Family::BOTH {
            let mut assembly = Assembly::default();
            for (_, element) in elements.iter().filter(|(its, _)| *its == family) {
                assert!(assembly.take(element), "{element:?}");
                again.found(family, element);
                if let Element::AllowedSource { network, .. } = element {
                    let rules = &programmed.parts.get(family).lengths;
                    assert!(rules.contains(&network.prefix()), "a rule for {network}");
                }
            }
            let contents = assembly.finish(&programmed.parts.get(family).timeouts);
            assert_eq!(contents.debris, [], "everything belongs to something");
            entries.extend(contents.entries);
            for found in contents.remembering {
                again.affinity.found(found);
            }
            *again.parts.get_mut(family) = programmed.parts.get(family).clone();
        }
        entries.sort_unstable();
        (entries, again)
    }
}

fn destination(index: u8) -> Destination {
    let host = match index {
        0 => Host::Node(Family::V4),
        1 => Host::Address("fd00::1".parse().unwrap()),
        _ => Host::Address([10, 96, 0, index].into()),
    };
    Destination {
        host,
        protocol: Protocol::Udp,
        port: 53,
    }
}

fn endpoints(family: Family, numbers: &[u8]) -> Endpoints {
    let address = |number: u8| match family {
        Family::V4 => Endpoint::new([10, 244, 0, number].into(), 53),
        Family::V6 => Endpoint::new(format!("fd00:244::{number:x}").parse().unwrap(), 53),
    };
    let mut numbers = numbers.to_vec();
    numbers.sort_unstable();
    numbers.dedup();
    numbers.into_iter().map(address).collect()
}

fn any_forwarding(index: u8) -> impl Strategy<Value = Option<Forwarding>> {
    let family = destination(index).family();
    let policies = if index == 0 { 1u8..3 } else { 0..3 };
    let list = proptest::collection::vec(0u8..12, 1..8);
    let affinity = proptest::option::of(prop_oneof![Just(10_800u32), 1u32..60]);
    let draw = proptest::sample::select(Draw::ALL.to_vec());
    let external = proptest::option::of(list.clone());
    let balance = (policies, list, external, affinity, draw).prop_map(
        move |(policy, primary, external, affinity, draw)| {
            let policy = [
                SourcePolicy::ClusterIp,
                SourcePolicy::External,
                SourcePolicy::ExternalLocal,
            ][usize::from(policy)];
            let external = external.unwrap_or_default();
            Action::Balance {
                policy,
                primary: endpoints(family, &primary),
                external: (policy == SourcePolicy::ExternalLocal)
                    .then(|| endpoints(family, &external)),
                draw,
                affinity,
            }
        },
    );
    let action = prop_oneof![1 => Just(Action::Reject), 1 => Just(Action::Drop), 8 => balance];
    let lengths = proptest::collection::btree_set(0u8..=family.address_bits(), 0..4);
    let sources = proptest::option::weighted(0.3, lengths);
    let forwarding = (action, sources).prop_map(move |(action, lengths)| Forwarding {
        label: Label::new("a/b:c"),
        action,
        // NodePorts admit everybody.
        sources: lengths
            .filter(|_| index > 0)
            .map_or(Sources::Any, |lengths| {
                let networks = lengths.into_iter().map(|length| {
                    let address = match family {
                        Family::V4 => std::net::Ipv4Addr::BROADCAST.into(),
                        Family::V6 => std::net::Ipv6Addr::from(u128::MAX).into(),
                    };
                    let network = ipnetwork::IpNetwork::new(address, length).unwrap();
                    crate::core::networks::canonical(network)
                });
                Sources::Only(networks.collect())
            }),
    });
    proptest::option::weighted(0.9, forwarding)
}

/// What each of some destinations does, or that it is gone.
fn any_cluster() -> impl Strategy<Value = Vec<Option<Forwarding>>> {
    (0u8..5).map(any_forwarding).collect::<Vec<_>>()
}

fn sync(engine: &mut Engine, programmed: &mut Programmed, kernel: &mut Kernel, most: usize) {
    loop {
        let pending = engine.pending_up_to(most);
        let (batch, change) = programmed.encode(pending.delta());
        kernel.take(batch.bytes());
        programmed.applied(change);
        engine.commit(pending);
        if engine.is_settled() {
            return;
        }
    }
}

fn want(engine: &mut Engine, cluster: Vec<Option<Forwarding>>) {
    for (index, forwarding) in (0u8..).zip(cluster) {
        let compiled = forwarding.map(|forwarding| Compiled {
            destinations: [(destination(index), forwarding)].into(),
            ..Compiled::default()
        });
        engine.update(Owner::Service(ServiceId::nth(u32::from(index))), compiled);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn what_the_kernel_holds_reads_back_as_what_was_applied(
        clusters in proptest::collection::vec((any_cluster(), any::<bool>()), 1..8),
        most in prop_oneof![Just(usize::MAX), 1usize..20],
    ) {
        let (mut engine, mut kernel) = (Engine::default(), Kernel::default());
        let mut programmed = Programmed::new(Options::default());
        for (cluster, restarts) in clusters {
            want(&mut engine, cluster);
            sync(&mut engine, &mut programmed, &mut kernel, most);
            let (entries, again) = kernel.read(&programmed);
            prop_assert_eq!(&entries, &engine.applied_entries());
            prop_assert_eq!(&again.elements, &programmed.elements);
            prop_assert_eq!(&again.lots, &programmed.lots);
            prop_assert_eq!(&again.lanes, &programmed.lanes);
            if restarts {
                programmed = again;
                programmed.replace = PerFamily::default();
                engine.adopt(entries);
                let pending = engine.pending();
                prop_assert!(pending.delta().is_empty(), "{:?}", pending.delta());
                engine.commit(pending);
            }
            if programmed.has_garbage() {
                let (batch, left) = programmed.collect();
                kernel.take(batch.finish().bytes());
                programmed.parts = left;
                prop_assert!(!programmed.has_garbage());
            }
        }
    }
}

/// A forwarding with a long list, from one number on.
fn any_long() -> impl Strategy<Value = Option<Forwarding>> {
    let list = || (0u32..400, 1u32..1_500, any::<bool>());
    let policy = prop_oneof![
        Just(SourcePolicy::External),
        Just(SourcePolicy::ExternalLocal)
    ];
    let affinity = proptest::option::of(prop_oneof![Just(60u32), Just(600)]);
    let make = |(first, count, odd): (u32, u32, bool)| -> Endpoints {
        let step = if odd { 2 } else { 1 };
        (first..first + count)
            .step_by(step)
            .map(|number| Endpoint::new(std::net::Ipv4Addr::from(number).into(), 53))
            .collect()
    };
    let sources = proptest::option::weighted(0.3, (0u32..400, 0u32..1_500));
    let draw = proptest::sample::select(Draw::ALL.to_vec());
    let forwarding = (policy, list(), list(), affinity, sources, draw).prop_map(
        move |(policy, primary, external, affinity, sources, draw)| Forwarding {
            label: Label::new("a/b"),
            action: Action::Balance {
                policy,
                primary: make(primary),
                external: (policy == SourcePolicy::ExternalLocal).then(|| make(external)),
                draw,
                affinity,
            },
            sources: sources.map_or(Sources::Any, |(first, count)| {
                let addresses = (first..first + count).map(std::net::Ipv4Addr::from);
                Sources::Only(
                    addresses
                        .map(|address| IpAddr::V4(address).into())
                        .collect(),
                )
            }),
        },
    );
    proptest::option::weighted(0.85, forwarding)
}

/// Whether it lets a source in.
fn admits(forwarding: &Forwarding, source: &ipnetwork::IpNetwork) -> bool {
    match &forwarding.sources {
        Sources::Any | Sources::Prepared(_) => true,
        Sources::Only(networks) => networks.contains(source),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn no_transaction_has_more_operations_than_it_should_and_every_one_leaves_what_serves(
        wanted in proptest::collection::vec(any_long(), 1..4),
    ) {
        const MOST: usize = 600;
        let (mut engine, mut kernel) = (Engine::default(), Kernel::default());
        let mut programmed = Programmed::new(Options::default());
        programmed.replace = PerFamily::default();
        for wanted in wanted {
            want(&mut engine, vec![None, None, wanted.clone()]);
            let before = engine.applied(&destination(2)).cloned();
            let mut serves = wanted.is_some() && before.is_some();
            let mut kept: Vec<ipnetwork::IpNetwork> = Vec::new();
            if let (Some(before), Some(wanted)) = (&before, &wanted) {
                let some = before.sources.networks().iter().chain(wanted.sources.networks());
                let both = some.filter(|one| admits(before, one) && admits(wanted, one));
                kept.extend(both.step_by(97));
            }
            let mut steps = 0;
            while !engine.is_settled() {
                let pending = engine.pending_up_to(MOST);
                let (batch, change) = programmed.encode(pending.delta());
                let operations = kernel.take(batch.bytes());
                // And the parts of the program that are newly used.
                prop_assert!(operations <= MOST + 8, "{operations}");
                programmed.applied(change);
                engine.commit(pending);
                let (entries, _) = kernel.read(&programmed);
                prop_assert_eq!(&entries, &engine.applied_entries());
                serves = serves && engine.applied(&destination(2)).is_some();
                if let Some(applied) = engine.applied(&destination(2)) {
                    prop_assert!(kept.iter().all(|source| admits(applied, source)));
                    // Nobody is let in to endpoints that are not for him.
                    let only = |one: Option<&Forwarding>| one.is_some_and(|one| matches!(one.sources, Sources::Only(_)));
                    if only(before.as_ref()) {
                        let open = !only(Some(applied));
                        let are_wanted = |list: List| {
                            let wanted = wanted.as_ref().and_then(|wanted| wanted.list(list));
                            let wanted: BTreeSet<Endpoint> = wanted.into_iter().flatten().copied().collect();
                            applied.list(list).into_iter().flatten().all(|one| wanted.contains(one))
                        };
                        prop_assert!(!open || List::BOTH.into_iter().all(are_wanted));
                    }
                }
                steps += 1;
                prop_assert!(steps < 500, "it comes to an end");
            }
            let applied = engine.applied(&destination(2));
            prop_assert_eq!(applied.is_some(), wanted.is_some());
            if let (Some(applied), Some(wanted)) = (applied, &wanted) {
                let sorted = |list: Option<&Endpoints>| {
                    let mut list: Vec<Endpoint> = list.into_iter().flatten().copied().collect();
                    list.sort_unstable();
                    list
                };
                prop_assert_eq!(&applied.sources, &wanted.sources);
                for list in List::BOTH {
                    prop_assert_eq!(sorted(applied.list(list)), sorted(wanted.list(list)));
                }
            }
        }
    }
}

/// The id that clients of each endpoint are remembered by.
fn ids(kernel: &Kernel) -> BTreeMap<Endpoint, u32> {
    kernel
        .elements()
        .filter_map(|(_, element)| match element {
            Element::Endpoint {
                number, endpoint, ..
            } => Some((endpoint, number & BARE_MASK)),
            _ => None,
        })
        .collect()
}

fn balance(numbers: &[u8], affinity: Option<u32>) -> Option<Forwarding> {
    Some(Forwarding {
        label: Label::new("a/b"),
        action: Action::Balance {
            policy: SourcePolicy::External,
            primary: endpoints(Family::V4, numbers),
            external: None,
            draw: Draw::Random,
            affinity,
        },
        sources: Sources::Any,
    })
}

#[test]
fn f3_clients_keep_an_endpoint_whose_place_or_timeout_changes_and_lose_one_that_leaves() {
    let (mut engine, mut kernel) = (Engine::default(), Kernel::default());
    let mut programmed = Programmed::new(Options::default());
    let mut step = |wanted| {
        want(&mut engine, vec![None, None, wanted]);
        sync(&mut engine, &mut programmed, &mut kernel, usize::MAX);
        ids(&kernel)
    };
    let first = step(balance(&[1, 2, 3], Some(60)));
    let mut expected = first.clone();
    expected.remove(&endpoints(Family::V4, &[1]).get(0).unwrap());
    assert_eq!(step(balance(&[2, 3], Some(60))), expected);
    assert_eq!(step(balance(&[2, 3], Some(3_600))), expected);
    let mut back = step(balance(&[1, 2, 3], Some(60)));
    let one = endpoints(Family::V4, &[1]).get(0).unwrap();
    let (before, now) = (first[&one], back.remove(&one).unwrap());
    assert_ne!(before, now, "who is back is not remembered");
    assert_eq!(back, expected);
}

#[test]
fn of_two_endpoints_with_one_hash_each_has_an_id_of_its_own() {
    // The hash has 22 bits: among so many addresses some share theirs.
    let list: Endpoints = (0u32..20_000)
        .map(|number| Endpoint::new(std::net::Ipv4Addr::from(number).into(), 53))
        .collect();
    let mut forwarding = balance(&[1], Some(60)).unwrap();
    if let Action::Balance { primary, .. } = &mut forwarding.action {
        *primary = list.clone();
    }
    let (mut engine, mut kernel) = (Engine::default(), Kernel::default());
    let mut programmed = Programmed::new(Options::default());
    want(&mut engine, vec![None, None, Some(forwarding)]);
    sync(&mut engine, &mut programmed, &mut kernel, usize::MAX);
    let ids: BTreeSet<u32> = ids(&kernel).into_values().collect();
    assert_eq!(ids.len(), list.len());
}

#[test]
fn a_long_list_that_gets_one_more_endpoint_takes_one_operation() {
    let list = |count: u32| {
        let mut forwarding = balance(&[1], None).unwrap();
        if let Action::Balance { primary, .. } = &mut forwarding.action {
            *primary = (0..count)
                .map(|number| Endpoint::new(std::net::Ipv4Addr::from(number).into(), 53))
                .collect();
        }
        vec![None, None, Some(forwarding)]
    };
    let (mut engine, mut kernel) = (Engine::default(), Kernel::default());
    let mut programmed = Programmed::new(Options::default());
    want(&mut engine, list(1000));
    sync(&mut engine, &mut programmed, &mut kernel, usize::MAX);
    want(&mut engine, list(1001));
    let pending = engine.pending();
    let (batch, _) = programmed.encode(pending.delta());
    assert_eq!(kernel.take(batch.bytes()), 1);
}

#[test]
fn no_timeouts_and_no_sizes_make_more_than_a_bounded_number_of_parts() {
    let (mut engine, mut kernel) = (Engine::default(), Kernel::default());
    let mut programmed = Programmed::new(Options::default());
    for index in 0u32..6_000 {
        let destination = Destination {
            host: Host::Address(std::net::Ipv4Addr::from(0x0a60_0000 + index).into()),
            protocol: Protocol::Tcp,
            port: 80,
        };
        let mut forwarding = balance(&[1], Some(index + 1)).unwrap();
        if index % 100 == 0
            && let Action::Balance { primary, .. } = &mut forwarding.action
        {
            *primary = (0..=index)
                .map(|number| Endpoint::new(std::net::Ipv4Addr::from(number).into(), 53))
                .collect();
        }
        let compiled = Compiled {
            destinations: [(destination, forwarding)].into(),
            ..Compiled::default()
        };
        engine.update(Owner::Service(ServiceId::nth(index)), Some(compiled));
    }
    sync(&mut engine, &mut programmed, &mut kernel, 1 << 15);
    let parts = programmed.parts.get(Family::V4);
    assert!(parts.timeouts.len() <= 56, "{}", parts.timeouts.len());
    assert!(parts.draws.len() <= 450, "{}", parts.draws.len());
    let (entries, _) = kernel.read(&programmed);
    assert!(
        entries == engine.applied_entries(),
        "each keeps what it wants"
    );
}

#[test]
fn attributes_of_a_batch_are_those_of_the_kernel() {
    // What the tests above read with numbers of their own.
    let element = Element::Guarded {
        destination: destination(2),
    };
    let mut bytes = Vec::new();
    elements::put_key(&mut bytes, &element);
    let (_, element) = Attributes(&bytes).next().unwrap();
    assert!(find(element, KEY).is_some());
}

#[test]
fn the_last_message_of_a_transaction_asks_for_an_answer_and_no_other() {
    const ACK: u16 = 4;
    let mut engine = Engine::default();
    want(&mut engine, vec![balance(&[1, 2, 3], Some(600))]);
    let mut encoder = Encoder::new(Options::default());
    // With the program, and then without.
    for endpoints in [&[1, 2, 3][..], &[1, 2]] {
        want(&mut engine, vec![balance(endpoints, Some(600))]);
        let pending = engine.pending();
        let bytes = encoder.transaction(pending.delta());
        engine.commit(pending);
        let mut asks = Vec::new();
        let mut rest = &bytes[..];
        while let Some(header) = rest.get(..16) {
            let length = u32::from_ne_bytes(header[..4].try_into().unwrap()) as usize;
            asks.push(u16::from_ne_bytes([header[6], header[7]]) & ACK != 0);
            rest = &rest[length.next_multiple_of(4).min(rest.len())..];
        }
        // Behind it is the end of the batch.
        let last = asks.len() - 2;
        let asking: Vec<usize> = (0..asks.len()).filter(|index| asks[*index]).collect();
        assert_eq!(asking, [last]);
    }
}

#[test]
fn f4_a_timeout_that_was_rounded_stays_so_until_the_service_wants_another() {
    let (mut engine, mut kernel) = (Engine::default(), Kernel::default());
    let mut programmed = Programmed::new(Options::default());
    // The first is a NodePort, the second of IPv6.
    let mut wanted: Vec<Option<Forwarding>> = vec![None, None];
    wanted.extend((0..40).map(|number| balance(&[1, 2], Some(1_000 + number))));
    wanted.push(balance(&[1, 2, 3], Some(77)));
    let mut step = |wanted: &[Option<Forwarding>]| {
        want(&mut engine, wanted.to_vec());
        let pending = engine.pending();
        let (batch, change) = programmed.encode(pending.delta());
        kernel.take(batch.bytes());
        let rounded = programmed.applied(change);
        engine.commit(pending);
        let (entries, _) = kernel.read(&programmed);
        assert_eq!(entries, engine.applied_entries(), "all of it fits together");
        let timeouts = programmed.affinity.classes.v4.timeouts();
        let has = |seconds: u32| timeouts.values().any(|known| *known == seconds);
        (rounded.len(), has(77), has(120))
    };
    assert_eq!(step(&wanted), (1, false, true));
    (wanted[2], wanted[3]) = (None, None);
    assert_eq!(step(&wanted), (0, false, true), "there is room");
    wanted[42] = balance(&[1, 2, 3, 4], Some(77));
    assert_eq!(step(&wanted), (0, false, true), "its endpoints change");
    wanted[42] = balance(&[2, 3, 4], Some(77));
    assert_eq!(step(&wanted), (0, false, true));
    wanted[42] = balance(&[2, 3, 4], None);
    step(&wanted);
    wanted[42] = balance(&[2, 3, 4], Some(77));
    assert_eq!(step(&wanted), (0, true, false), "it begins anew");
}
