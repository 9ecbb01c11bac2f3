//! The stages from objects to transactions, on a fixed input of every common kind of Service.

use std::net::Ipv4Addr;

use pointsman::core::compile::{Compiled, NodePortAddresses, compile_cluster, compile_known};
use pointsman::core::diff::Engine;
use pointsman::core::model::{
    Affinity, Change, Dirty, EndpointSlice, Family, Hint, Node, ObjectKey, Owner, PerFamily,
    Protocol, Service, ServicePort, SliceEndpoint, SlicePort, SourceRanges, State,
};
use pointsman::dataplane::Options;
use pointsman::dataplane::nftables::Encoder;

/// Services, and endpoints of each.
const SERVICES: u32 = 300;
const ENDPOINTS: u32 = 10;

/// A part of the way. Each ends after those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// The input is made.
    Input,
    /// The objects are taken into the state.
    State,
    /// All Services are compiled.
    Compile,
    /// What is wanted is compared with what is applied: nothing.
    Diff,
    /// The transaction is encoded.
    Encode,
    /// One endpoint of every Service is replaced, one after another, through all stages.
    Replace,
    /// One endpoint of every Service is removed, one after another, through all stages.
    Remove,
}

impl Stage {
    /// All of them, in order.
    pub const ALL: [Self; 7] = [
        Self::Input,
        Self::State,
        Self::Compile,
        Self::Diff,
        Self::Encode,
        Self::Replace,
        Self::Remove,
    ];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::State => "state",
            Self::Compile => "compile",
            Self::Diff => "diff",
            Self::Encode => "encode",
            Self::Replace => "replace",
            Self::Remove => "remove",
        }
    }
}

/// Goes through the stages up to one, and calls `after` after each.
pub fn walk(until: Stage, mut after: impl FnMut(Stage)) {
    let input: Vec<Change> = (0..SERVICES)
        .flat_map(|index| [service(index), slice(index, 0..ENDPOINTS)])
        .collect();
    let replaced: Vec<Change> = (0..SERVICES)
        .map(|index| slice(index, 1..ENDPOINTS + 1))
        .collect();
    let removed: Vec<Change> = (0..SERVICES)
        .map(|index| slice(index, 2..ENDPOINTS + 1))
        .collect();
    let mut state = State::new(Node {
        addresses: vec![Ipv4Addr::new(192, 0, 2, 1).into()],
        ..Node::named("node-1")
    });
    let mut engine = Engine::default();
    let mut encoder = Encoder::new(Options {
        families: vec![Family::V4],
        ..Options::default()
    });
    let mut end = |stage| {
        after(stage);
        stage == until
    };
    if end(Stage::Input) {
        return;
    }
    for change in input {
        state.apply(change);
    }
    if end(Stage::State) {
        return;
    }
    let compiled = compile_dirty(&mut state);
    if end(Stage::Compile) {
        return;
    }
    for (id, compiled) in compiled {
        engine.update(id, Some(compiled));
    }
    let pending = engine.pending();
    if end(Stage::Diff) {
        return;
    }
    let bytes = encoder.transaction(pending.delta());
    assert!(bytes.len() > 100_000, "a transaction for all of them");
    if end(Stage::Encode) {
        return;
    }
    engine.commit(pending);
    for (stage, changes) in [(Stage::Replace, replaced), (Stage::Remove, removed)] {
        for change in changes {
            state.apply(change);
            for (id, compiled) in compile_dirty(&mut state) {
                engine.update(id, Some(compiled));
            }
            let pending = engine.pending();
            assert!(!pending.delta().is_empty(), "something changes");
            encoder.transaction(pending.delta());
            engine.commit(pending);
        }
        if end(stage) {
            return;
        }
    }
}

fn compile_dirty(state: &mut State) -> Vec<(Owner, Compiled)> {
    state
        .take_dirty()
        .into_iter()
        .map(|Dirty { owner, .. }| {
            let compiled = match owner.service().and_then(|id| state.service(id)) {
                Some(known) => compile_known(known, state.node()),
                None => compile_cluster(state, &NodePortAddresses::Primary),
            };
            (owner, compiled)
        })
        .collect()
}

fn key(index: u32) -> ObjectKey {
    ObjectKey::new("default", format!("svc-{index}"))
}

/// Every third has a NodePort, every fifth a VIP with source ranges and policy Local, every
/// seventh remembers its clients, every fourth is for UDP.
fn service(index: u32) -> Change {
    let every = |number: u32| index.is_multiple_of(number);
    let address = |first: [u8; 2]| {
        let [_, _, third, last] = index.to_be_bytes();
        Ipv4Addr::new(first[0], first[1], third, last).into()
    };
    let node_port = 30_000 + u16::try_from(index).unwrap_or(0);
    let service = Service {
        created: i64::from(index),
        cluster_ips: PerFamily {
            v4: Some(address([10, 96])),
            v6: None,
        },
        external_ips: Vec::new(),
        vips: every(5).then(|| address([203, 0])).into_iter().collect(),
        source_ranges: PerFamily::from_fn(|_| {
            if every(5) {
                let ranges = ["10.0.0.0/8", "192.0.2.0/24"];
                SourceRanges::Only(
                    ranges
                        .iter()
                        .filter_map(|range| range.parse().ok())
                        .collect(),
                )
            } else {
                SourceRanges::Any
            }
        }),
        ports: vec![ServicePort {
            name: "main".into(),
            protocol: protocol(index),
            port: 80,
            node_port: if every(3) { node_port } else { 0 },
        }],
        affinity: every(7).then_some(Affinity {
            timeout_seconds: 10_800,
        }),
        algorithm: pointsman::core::model::Algorithm::Random,
        ejects: false,
        internal_local: false,
        external_local: every(5),
        health_check_node_port: 0,
    };
    Change::Service(key(index), Some(Box::new(service)))
}

const fn protocol(index: u32) -> Protocol {
    if index.is_multiple_of(4) {
        Protocol::Udp
    } else {
        Protocol::Tcp
    }
}

fn slice(index: u32, endpoints: std::ops::Range<u32>) -> Change {
    let first = u32::from(Ipv4Addr::new(10, 244, 0, 0)) + index * 2 * ENDPOINTS;
    let slice = EndpointSlice {
        service: key(index),
        family: Family::V4,
        ports: [SlicePort {
            name: "main".into(),
            protocol: protocol(index),
            port: 8080,
        }]
        .into(),
        endpoints: endpoints
            .map(|place| SliceEndpoint {
                address: Ipv4Addr::from(first + place).into(),
                ready: true,
                serving: true,
                terminating: false,
                local: place.is_multiple_of(5),
                node_hint: Hint::None,
                weight: 1,
                zone_hints: None,
            })
            .collect(),
    };
    let name = ObjectKey::new("default", format!("svc-{index}-1"));
    Change::EndpointSlice(name, Some(Box::new(slice)))
}
