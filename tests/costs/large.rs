//! One endpoint of a Service replaced, over and over, by the size of the Service: through the whole of
//! the proxy, to the bytes of the transaction.

use std::net::Ipv4Addr;

use pointsman::agent::reconciler::{Desired, Proxy};
use pointsman::core::compile::NodePortAddresses;
use pointsman::core::ir::{Delta, Entry};
use pointsman::core::model::{
    Change, EndpointSlice, Family, Hint, Node, ObjectKey, PerFamily, Protocol, Service,
    ServicePort, SliceEndpoint, SlicePort, SourceRanges,
};
use pointsman::dataplane::nftables::Encoder;
use pointsman::dataplane::{
    Applied, ApplyError, Backend, Changed, Difference, Mode, Options, Unavailable,
};

/// Endpoints of Services, the smallest first. A hundred thousand would take callgrind minutes to
/// load, and makes trees that are one step higher than the last of these.
pub const SIZES: [u32; 3] = [10, 1_000, 10_000];
/// Endpoints in a slice: the controller's own limit.
const SLICE: u32 = 100;

/// Encodes transactions, and says that the kernel took them.
pub struct Encoding(pub Encoder);

impl Backend for Encoding {
    const MODE: Mode = Mode::Either;

    fn open(options: Options) -> Result<Self, Unavailable> {
        Ok(Self(Encoder::new(options)))
    }

    fn render(_: &Options, _: &[Entry]) -> String {
        String::new()
    }

    fn reconfigure(&mut self, _: Options) {}

    fn families(&self) -> Vec<Family> {
        Family::BOTH.to_vec()
    }

    fn withhold(&mut self, _: Family, _: bool) {}

    fn look_for_families(&mut self) -> bool {
        false
    }

    fn refused_on_loopback(&mut self) -> Result<Vec<(Family, Protocol, u64)>, Unavailable> {
        Ok(Vec::new())
    }

    fn take_over(&mut self) -> Result<(), Unavailable> {
        Ok(())
    }

    fn remove_leftovers(&mut self) -> Result<usize, ApplyError> {
        Ok(0)
    }

    fn clean_up(&mut self) -> Result<(), ApplyError> {
        Ok(())
    }

    fn watch(&mut self, _: Changed) -> Result<bool, Unavailable> {
        Ok(true)
    }

    fn counts(&self) -> Vec<(Family, &'static str, usize)> {
        Vec::new()
    }

    fn differences(&mut self, _: &Delta) -> Result<Vec<Difference>, Unavailable> {
        Ok(Vec::new())
    }

    fn read(&mut self) -> Result<Vec<Entry>, Unavailable> {
        Ok(Vec::new())
    }

    fn apply(&mut self, delta: &Delta) -> Result<Applied, ApplyError> {
        let bytes = self.0.transaction(delta).len();
        Ok(Applied {
            operations: delta.len(),
            bytes,
            ..Applied::default()
        })
    }

    fn most_operations(&self) -> usize {
        usize::MAX
    }

    fn isolate_services(&mut self, _isolate: bool) {}

    fn has_garbage(&self) -> bool {
        false
    }

    fn tidy(&mut self) -> Result<(), ApplyError> {
        Ok(())
    }
}

/// How many endpoints are replaced at most.
pub const REPLACED: u32 = 100;

/// Loads a Service of so many endpoints and replaces one of them so many times, each time another.
/// All changes are made before the first one is taken in, whatever is done with them.
pub fn replace(endpoints: u32, times: u32) {
    let encoder = Encoder::new(Options {
        families: vec![Family::V4],
        ..Options::default()
    });
    let desired = Desired::new(Node::named("node-1"), NodePortAddresses::Primary);
    let mut proxy = Proxy::start(desired, Encoding(encoder)).expect("it has no kernel to ask");
    let mut now: Vec<u32> = (0..endpoints).collect();
    let parts = endpoints.div_ceil(SLICE);
    proxy.take([service()]);
    proxy.take((0..parts).map(|part| slice(part, &now)));
    proxy.sync().expect("the first sync");
    let changes: Vec<Change> = (0..REPLACED)
        .map(|round| {
            let place = round.wrapping_mul(7919) % endpoints;
            now[place as usize] = endpoints + round;
            slice(place / SLICE, &now)
        })
        .collect();
    for change in changes.into_iter().take(times as usize) {
        proxy.take([change]);
        let synced = proxy.sync().expect("a sync");
        assert_eq!(synced.applied.operations, 2, "one goes, one comes");
    }
}

fn key() -> ObjectKey {
    ObjectKey::new("default", "large")
}

fn service() -> Change {
    let service = Service {
        created: 0,
        cluster_ips: PerFamily {
            v4: Some(Ipv4Addr::new(10, 96, 0, 10).into()),
            v6: None,
        },
        external_ips: Vec::new(),
        vips: Vec::new(),
        source_ranges: PerFamily::from_fn(|_| SourceRanges::Any),
        ports: vec![ServicePort {
            name: "main".into(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: 0,
        }],
        affinity: None,
        algorithm: pointsman::core::model::Algorithm::Random,
        ejects: false,
        internal_local: false,
        external_local: false,
        health_check_node_port: 0,
    };
    Change::Service(key(), Some(Box::new(service)))
}

/// One of its slices.
fn slice(part: u32, now: &[u32]) -> Change {
    let first = u32::from(Ipv4Addr::new(10, 128, 0, 0));
    let slice = EndpointSlice {
        service: key(),
        family: Family::V4,
        ports: [SlicePort {
            name: "main".into(),
            protocol: Protocol::Tcp,
            port: 8080,
        }]
        .into(),
        endpoints: now
            .chunks(SLICE as usize)
            .nth(part as usize)
            .expect("one of its slices")
            .iter()
            .map(|number| SliceEndpoint {
                address: Ipv4Addr::from(first + number).into(),
                ready: true,
                serving: true,
                terminating: false,
                local: false,
                node_hint: Hint::None,
                weight: 1,
                zone_hints: None,
            })
            .collect(),
    };
    let name = ObjectKey::new("default", format!("large-{part:05}"));
    Change::EndpointSlice(name, Some(Box::new(slice)))
}
