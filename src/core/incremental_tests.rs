//! What is compiled by what changes is what is compiled from nothing, but for the order of lists.

use proptest::prelude::*;

use super::*;
use crate::core::compile::compile_known;
use crate::core::ir::{Action, Forwarding};
use crate::core::model::{
    Change, Dirty, Endpoint, Hint, ObjectKey, Owner, ServiceId, SliceEndpoint, SlicePort,
    SourceRanges, State, ZoneHints,
};

const ME: &str = "node-1";

fn key() -> ObjectKey {
    ObjectKey::new("default", "web")
}

fn any_endpoint() -> impl Strategy<Value = SliceEndpoint> {
    let hint =
        prop_oneof![4 => Just(Hint::None), 1 => Just(Hint::Elsewhere), 3 => Just(Hint::Here)];
    let zone = prop_oneof![Just(None), Just(Some("here")), Just(Some("there"))];
    let conditions = prop_oneof![
        6 => Just([true, true, false]),
        1 => Just([false, true, true]),
        1 => Just([false, true, false]),
        1 => Just([false, false, false]),
    ];
    (0u8..40, conditions, any::<bool>(), hint, zone).prop_map(
        |(last, [ready, serving, terminating], local, node_hint, zone)| SliceEndpoint {
            address: [10, 244, 0, last].into(),
            ready,
            serving,
            terminating,
            local,
            node_hint,
            weight: 1,
            zone_hints: zone.map(|zone| ZoneHints::new([zone.into()].into())),
        },
    )
}

fn any_slice() -> impl Strategy<Value = EndpointSlice> {
    let ports = prop_oneof![
        6 => Just(vec![("http", Protocol::Tcp, 8080)]),
        1 => Just(vec![("http", Protocol::Tcp, 9090)]),
        1 => Just(vec![("dns", Protocol::Udp, 53), ("http", Protocol::Tcp, 8080)]),
        1 => Just(vec![("http", Protocol::Tcp, 8080), ("http", Protocol::Tcp, 8081)]),
        1 => Just(vec![]),
    ];
    (ports, proptest::collection::vec(any_endpoint(), 0..10)).prop_map(|(ports, endpoints)| {
        let ports = ports.into_iter().map(|(name, protocol, port)| SlicePort {
            name: name.into(),
            protocol,
            port,
        });
        EndpointSlice {
            service: key(),
            family: Family::V4,
            ports: ports.collect(),
            endpoints: endpoints.into_iter().collect(),
        }
    })
}

fn any_service() -> impl Strategy<Value = Service> {
    (any::<[bool; 5]>(), proptest::option::of(Just(60))).prop_map(
        |([internal_local, external_local, vip, external_ip, checks], affinity)| Service {
            created: 1,
            cluster_ips: PerFamily {
                v4: Some([10, 96, 0, 1].into()),
                v6: None,
            },
            external_ips: external_ip
                .then(|| [192, 0, 2, 9].into())
                .into_iter()
                .collect(),
            vips: vip.then(|| [203, 0, 113, 1].into()).into_iter().collect(),
            algorithm: crate::core::model::Algorithm::Random,
            ejects: false,
            source_ranges: PerFamily {
                v4: SourceRanges::Any,
                v6: SourceRanges::Any,
            },
            ports: [("http", Protocol::Tcp, 80), ("dns", Protocol::Udp, 53)]
                .into_iter()
                .map(|(name, protocol, port)| ServicePort {
                    name: name.into(),
                    protocol,
                    port,
                    node_port: 30_000 + port,
                })
                .collect(),
            affinity: affinity
                .map(|timeout_seconds| crate::core::model::Affinity { timeout_seconds }),
            internal_local,
            external_local,
            health_check_node_port: if checks { 32_000 } else { 0 },
        },
    )
}

/// The same with sorted lists.
fn sorted(compiled: Compiled) -> Compiled {
    let sort = |list: &Endpoints| -> Endpoints {
        let mut list: Vec<Endpoint> = list.iter().copied().collect();
        list.sort_unstable();
        list.into()
    };
    let destinations = compiled.destinations.into_iter().map(|(at, forwarding)| {
        let action = match forwarding.action {
            Action::Balance {
                policy,
                primary,
                external,
                draw,
                affinity,
            } => Action::Balance {
                draw,
                policy,
                primary: sort(&primary),
                external: external.as_ref().map(sort),
                affinity,
            },
            action => action,
        };
        (
            at,
            Forwarding {
                action,
                ..forwarding
            },
        )
    });
    let flows = compiled.flows.into_iter();
    Compiled {
        destinations: destinations.collect(),
        flows: flows.map(|(at, list)| (at, sort(&list))).collect(),
        ..compiled
    }
}

#[derive(Debug, Clone)]
enum Step {
    Slice(u8, Option<EndpointSlice>),
    Service(Service),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0u8..4, proptest::option::weighted(0.9, any_slice()))
            .prop_map(|(name, slice)| Step::Slice(name, slice)),
        1 => any_service().prop_map(Step::Service),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn what_is_compiled_by_changes_is_what_is_compiled_from_nothing(
        service in any_service(),
        steps in proptest::collection::vec(proptest::collection::vec(any_step(), 1..4), 1..12),
    ) {
        let node = Node { zone: Some("here".into()), ..Node::named(ME) };
        let mut state = State::new(node);
        state.apply(Change::Service(key(), Some(Box::new(service))));
        state.track(ServiceId::FIRST, true);
        let mut known: Option<Incremental> = None;
        for changes in steps {
            for change in changes {
                state.apply(match change {
                    Step::Slice(name, slice) => {
                        let name = ObjectKey::new("default", format!("web-{name}"));
                        Change::EndpointSlice(name, slice.map(Box::new))
                    }
                    Step::Service(service) => Change::Service(key(), Some(Box::new(service))),
                });
            }
            for Dirty { owner, slices } in state.take_dirty() {
                if owner == Owner::Cluster {
                    continue;
                }
                let service = state.service(ServiceId::FIRST).unwrap();
                match (&mut known, slices) {
                    (Some(known), Some(slices)) => known.change(service, &slices),
                    _ => known = Some(Incremental::new(service, state.node(), |_, _| None)),
                }
            }
            let service = state.service(ServiceId::FIRST).unwrap();
            let found = known.as_ref().unwrap().compile(service, state.node());
            let expected = compile_known(service, state.node());
            prop_assert_eq!(sorted(found), sorted(expected));
        }
    }
}

/// A Service of many endpoints, in slices of a hundred.
fn many(count: u32) -> State {
    let mut state = State::new(Node::named(ME));
    let service = Service {
        created: 1,
        cluster_ips: PerFamily {
            v4: Some([10, 96, 0, 1].into()),
            v6: None,
        },
        external_ips: Vec::new(),
        vips: Vec::new(),
        source_ranges: PerFamily::default(),
        ports: vec![ServicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: 0,
        }],
        affinity: None,
        algorithm: crate::core::model::Algorithm::Random,
        ejects: false,
        internal_local: false,
        external_local: false,
        health_check_node_port: 0,
    };
    state.apply(Change::Service(key(), Some(Box::new(service))));
    for part in 0..count / 100 {
        state.apply(part_of(part, None));
    }
    state
}

/// A slice of a hundred endpoints, of which one may be another.
fn part_of(part: u32, other: Option<u32>) -> Change {
    let endpoints = (0..100u32).map(|place| {
        let number = part * 100 + place;
        let number = if other == Some(place) {
            number + (1 << 20)
        } else {
            number
        };
        SliceEndpoint {
            address: std::net::Ipv4Addr::from(0x0a00_0000 + number).into(),
            ready: true,
            serving: true,
            terminating: false,
            local: false,
            node_hint: Hint::None,
            weight: 1,
            zone_hints: None,
        }
    });
    let slice = EndpointSlice {
        service: key(),
        family: Family::V4,
        ports: [SlicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 8080,
        }]
        .into(),
        endpoints: endpoints.collect(),
    };
    let name = ObjectKey::new("default", format!("web-{part}"));
    Change::EndpointSlice(name, Some(Box::new(slice)))
}

#[test]
fn one_endpoint_of_many_takes_its_place_and_moves_nobody() {
    let mut state = many(5_000);
    state.track(ServiceId::FIRST, true);
    state.take_dirty();
    let service = state.service(ServiceId::FIRST).unwrap();
    let mut known = Incremental::new(service, state.node(), |_, _| None);
    let list = |compiled: &Compiled| {
        let list = compiled.destinations[0].1.list(List::Primary);
        list.unwrap().clone()
    };
    let before = list(&known.compile(service, state.node()));
    state.apply(part_of(7, Some(3)));
    let dirty = state.take_dirty();
    let service = state.service(ServiceId::FIRST).unwrap();
    for Dirty { slices, .. } in dirty {
        known.change(service, &slices.unwrap());
    }
    let after = list(&known.compile(service, state.node()));
    let differences: Vec<usize> = before
        .differences(&after)
        .map(|(place, ..)| place)
        .collect();
    assert_eq!(differences, [703]);
}

#[test]
fn endpoints_keep_the_places_that_are_held_of_them() {
    let state = many(1_000);
    let service = state.service(ServiceId::FIRST).unwrap();
    let first = Incremental::new(service, state.node(), |_, _| None);
    let first = first.compile(service, state.node());
    let list = first.destinations[0].1.list(List::Primary).unwrap();
    let mut held: Vec<Endpoint> = list.iter().copied().collect();
    held.reverse();
    let held = Endpoints::from(held);
    let again = Incremental::new(service, state.node(), |_, list| {
        matches!(list, List::Primary).then_some(&held)
    });
    let again = again.compile(service, state.node());
    assert_eq!(again.destinations[0].1.list(List::Primary), Some(&held));
}

#[test]
fn an_endpoint_that_is_held_in_two_places_is_put_right() {
    let state = many(1_000);
    let service = state.service(ServiceId::FIRST).unwrap();
    let first = Incremental::new(service, state.node(), |_, _| None);
    let first = first.compile(service, state.node());
    let list = first.destinations[0].1.list(List::Primary).unwrap();
    let held = list.with(&[(5, list.get(6).unwrap())], list.len());
    let again = Incremental::new(service, state.node(), |_, list| {
        matches!(list, List::Primary).then_some(&held)
    });
    let again = again.compile(service, state.node());
    assert_eq!(sorted(again), sorted(first));
}
