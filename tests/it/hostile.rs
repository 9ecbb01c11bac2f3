//! What a Service's author may write to hurt a node: objects, and how they change.

use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::{IpNetwork, Ipv4Network};
use pointsman::core::model::{
    Affinity, Change, EndpointSlice, Family, Hint, ObjectKey, PerFamily, Protocol, Service,
    ServicePort, SliceEndpoint, SlicePort, SourceRanges,
};

/// One way to hurt.
pub struct Attack {
    /// What it is.
    pub name: &'static str,
    /// What is loaded at once.
    pub load: Vec<Change>,
    /// What changes then, one after another.
    pub changes: Vec<Vec<Change>>,
}

/// Endpoints in a slice: the controller's own limit.
const SLICE: usize = 100;

/// A Service that grows as it is told.
#[derive(Clone)]
pub struct Tenant {
    index: u32,
    service: Service,
    endpoints: u32,
}

impl Tenant {
    /// A Service of one TCP port and some endpoints.
    pub fn new(index: u32, endpoints: u32) -> Self {
        let ip = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 0, 1)) + index);
        Self {
            index,
            service: Service {
                created: i64::from(index),
                cluster_ips: PerFamily {
                    v4: Some(ip.into()),
                    v6: None,
                },
                external_ips: Vec::new(),
                vips: Vec::new(),
                source_ranges: PerFamily::from_fn(|_| SourceRanges::Any),
                ports: ports(1),
                affinity: None,
                algorithm: pointsman::core::model::Algorithm::Random,
                ejects: false,
                internal_local: false,
                external_local: false,
                health_check_node_port: 0,
            },
            endpoints,
        }
    }

    fn with(mut self, change: impl FnOnce(&mut Service)) -> Self {
        change(&mut self.service);
        self
    }

    /// Remembers its clients.
    pub fn affinity(self, seconds: u32) -> Self {
        self.with(|service| {
            service.affinity = Some(Affinity {
                timeout_seconds: seconds,
            });
        })
    }

    fn key(&self) -> ObjectKey {
        ObjectKey::new("tenant", format!("svc-{}", self.index))
    }

    /// The Service as it is, and all its slices.
    pub fn objects(&self) -> Vec<Change> {
        let service = Change::Service(self.key(), Some(Box::new(self.service.clone())));
        std::iter::once(service).chain(self.slices()).collect()
    }

    /// That it is gone, Service and slices.
    pub fn gone(&self) -> Vec<Change> {
        let slices = self.slices().into_iter().map(|slice| match slice {
            Change::EndpointSlice(key, _) => Change::EndpointSlice(key, None),
            other => other,
        });
        std::iter::once(Change::Service(self.key(), None))
            .chain(slices)
            .collect()
    }

    fn slices(&self) -> Vec<Change> {
        let ports: Vec<SlicePort> = self
            .service
            .ports
            .iter()
            .map(|port| SlicePort {
                name: port.name.clone(),
                protocol: port.protocol,
                port: 8080,
            })
            .collect();
        let first = u32::from(Ipv4Addr::new(10, 128, 0, 0)) + self.index * 1_000;
        let all: Vec<u32> = (first..first + self.endpoints).collect();
        let slices = all.chunks(SLICE).enumerate().map(|(part, addresses)| {
            let slice = EndpointSlice {
                service: self.key(),
                family: Family::V4,
                ports: ports.clone().into(),
                endpoints: addresses
                    .iter()
                    .map(|address| SliceEndpoint {
                        address: Ipv4Addr::from(*address).into(),
                        ready: true,
                        serving: true,
                        terminating: false,
                        local: address % 3 == 0,
                        node_hint: Hint::None,
                        weight: 1,
                        zone_hints: None,
                    })
                    .collect(),
            };
            let key = ObjectKey::new("tenant", format!("svc-{}-{part}", self.index));
            Change::EndpointSlice(key, Some(Box::new(slice)))
        });
        slices.collect()
    }
}

fn ports(count: u16) -> Vec<ServicePort> {
    (1..=count)
        .map(|port| ServicePort {
            name: format!("port-{port}").into(),
            protocol: Protocol::Tcp,
            port,
            node_port: 0,
        })
        .collect()
}

fn external(index: u32) -> IpAddr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(203, 0, 0, 1)) + index).into()
}

/// So many ranges of all lengths, some of which lie in others.
fn ranges(count: u32, first: u32) -> SourceRanges {
    let range = |index: u32| {
        let prefix = [32, 32, 30, 28, 26][index as usize % 5];
        let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(100, 64, 0, 0)) + index * 37);
        let network = Ipv4Network::new(address, prefix).expect("a prefix");
        let network = Ipv4Network::new(network.network(), prefix).expect("a prefix");
        IpNetwork::V4(network)
    };
    let mut ranges: Vec<IpNetwork> = (first..first + count).map(range).collect();
    ranges.sort_unstable();
    ranges.dedup();
    SourceRanges::Only(ranges.into())
}

/// Services of so many different affinity timeouts, up to a day.
pub fn timeouts(services: u32) -> Vec<Tenant> {
    (0..services)
        .map(|index| Tenant::new(index, 1).affinity(index * 86_399 / services + 1))
        .collect()
}

/// Services of so many different numbers of endpoints.
pub fn sizes(services: u32) -> Vec<Tenant> {
    (0..services)
        .map(|index| {
            let tenant = Tenant::new(index, index + 1);
            if index % 10 == 0 {
                tenant.affinity(600)
            } else {
                tenant
            }
        })
        .collect()
}

/// One Service that is another one each time, as twice a second for a minute.
pub fn restless() -> Vec<Tenant> {
    (0..120_u32)
        .map(|round| {
            let mut tenant = Tenant::new(0, round * 7 % 400);
            if round % 3 > 0 {
                tenant = tenant.affinity(round * 600 + 1);
            }
            tenant.with(|service| {
                service.internal_local = round % 4 == 1;
                service.external_local = round % 5 == 2;
                service.external_ips = (0..round % 7).map(external).collect();
                service.ports = ports(1 + u16::try_from(round % 11).expect("few"));
                if round % 6 == 5 {
                    service.vips = vec![external(1_000)];
                    service.source_ranges.v4 = ranges(round, round);
                }
            })
        })
        .collect()
}

/// One Service of so many source ranges.
pub fn source_ranges(count: u32) -> [Tenant; 2] {
    [0, 1].map(|first| {
        Tenant::new(0, 10).with(|service| {
            service.vips = vec![external(0)];
            service.source_ranges.v4 = ranges(count, first);
        })
    })
}

/// One Service of so many external IPs and ports.
pub fn addresses(external_ips: u32, count: u16, endpoints: u32) -> Tenant {
    Tenant::new(0, endpoints).with(|service| {
        service.external_ips = (0..external_ips).map(external).collect();
        service.ports = ports(count);
    })
}

/// All of them, of a size: 1 is what a cluster may see.
pub fn attacks(divided_by: u32) -> Vec<Attack> {
    let loaded = |name, tenants: Vec<Tenant>| Attack {
        name,
        load: tenants.iter().flat_map(Tenant::objects).collect(),
        changes: vec![tenants.iter().flat_map(Tenant::gone).collect()],
    };
    let turns = |name, tenants: Vec<Tenant>| {
        let mut known: Option<&Tenant> = None;
        let mut changes = Vec::new();
        for tenant in &tenants {
            // Slices that it no longer has go with it.
            let mut change = known.map_or_else(Vec::new, |known| {
                let gone = known.gone().into_iter();
                gone.filter(|change| matches!(change, Change::EndpointSlice(..)))
                    .collect()
            });
            change.extend(tenant.objects());
            changes.push(change);
            known = Some(tenant);
        }
        changes.extend(known.map(Tenant::gone));
        Attack {
            name,
            load: Vec::new(),
            changes,
        }
    };
    let n = |count: u32| count / divided_by;
    let ports = u16::try_from(n(15_000)).expect("a port");
    let many = 5_000 / divided_by;
    vec![
        loaded("5,000 affinity timeouts", timeouts(n(5_000))),
        turns("one Service, another each half second", restless()),
        loaded("1,000 numbers of endpoints", sizes(n(1_000))),
        turns("10,000 source ranges", source_ranges(n(10_000)).into()),
        turns(
            "1,000 external IPs",
            vec![addresses(n(1_000), 2, 10), addresses(n(1_000) - 1, 2, 9)],
        ),
        turns(
            "15,000 ports of 11 addresses",
            vec![addresses(10, ports, 1), addresses(10, ports, 2)],
        ),
        turns(
            "5,000 endpoints, remembered or not",
            vec![
                Tenant::new(0, many),
                Tenant::new(0, many).affinity(60),
                Tenant::new(0, many),
            ],
        ),
    ]
}
