//! What a sync does when the kernel refuses: a backend that refuses what it is told to refuse.
//! Numbers at the front of test names are those of `docs/semantics.md`.

use std::collections::BTreeSet;

use nix::errno::Errno;

use super::*;
use crate::core::compile::NodePortAddresses;
use crate::core::ir::{Delta, Entry, Operation};
use crate::core::model::{
    Family, Node, ObjectKey, PerFamily, Protocol, Service, ServicePort, SourceRanges,
};
use crate::dataplane::{Changed, Options, Refused};

/// Holds entries as a kernel would, and refuses some.
#[derive(Default)]
struct Picky {
    held: BTreeSet<Entry>,
    /// Destinations whose port it refuses.
    hates: BTreeSet<u16>,
    /// Whether refusals name only the culprit, as they do when Services are kept apart.
    isolated: bool,
    transactions: usize,
    /// How many operations it wants in a transaction; 0 for no limit.
    most: usize,
    down: bool,
    /// What it says if it refuses something; otherwise that it is invalid.
    says: Option<Errno>,
}

fn port(entry: &Entry) -> Option<u16> {
    match entry {
        Entry::NoEndpoints { destination, .. } => Some(destination.port),
        _ => None,
    }
}

impl Backend for &mut Picky {
    fn open(_: Options) -> Result<Self, Unavailable> {
        Err(Unavailable(Box::new(Errno::ENOSYS)))
    }

    fn render(_: &Options, entries: &[Entry]) -> String {
        format!("{entries:?}")
    }

    fn reconfigure(&mut self, _: Options) {}

    fn take_over(&mut self) -> Result<(), Unavailable> {
        Ok(())
    }

    fn remove_leftovers(&mut self) -> Result<usize, ApplyError> {
        Ok(0)
    }

    fn clean_up(&mut self) -> Result<(), ApplyError> {
        self.held.clear();
        Ok(())
    }

    fn watch(&mut self, _: Changed) -> Result<bool, Unavailable> {
        Ok(true)
    }

    fn counts(&self) -> Vec<(Family, &'static str, usize)> {
        vec![(Family::V4, "entries", self.held.len())]
    }

    fn read(&mut self) -> Result<Vec<Entry>, Unavailable> {
        Ok(self.held.iter().cloned().collect())
    }

    fn apply(&mut self, delta: &Delta) -> Result<Applied, ApplyError> {
        if self.down {
            return Err(Unavailable(Box::new(Errno::ENOBUFS)).into());
        }
        self.transactions += 1;
        let mut next = self.held.clone();
        let hated = |entry: &Entry| port(entry).is_some_and(|port| self.hates.contains(&port));
        let mut culprits = Vec::new();
        for operation in &delta.remove {
            if !next.remove(&operation.entry) {
                culprits.push(operation.owner);
            }
        }
        for operation in &delta.add {
            if hated(&operation.entry) || !next.insert(operation.entry.clone()) {
                culprits.push(operation.owner);
            }
        }
        if culprits.is_empty() {
            self.held = next;
            return Ok(Applied {
                operations: delta.len(),
                ..Applied::default()
            });
        }
        let everyone = |operations: &[Operation]| -> Vec<Owner> {
            operations.iter().map(|operation| operation.owner).collect()
        };
        let owners = if self.isolated {
            culprits
        } else {
            everyone(&delta.add)
        };
        Err(ApplyError::Refused(vec![Refused {
            what: "elements".to_owned(),
            owners,
            errno: self.says.unwrap_or(Errno::EINVAL),
            message: None,
        }]))
    }

    fn most_operations(&self) -> usize {
        if self.most == 0 {
            usize::MAX
        } else {
            self.most
        }
    }

    fn isolate_services(&mut self, isolate: bool) {
        self.isolated = isolate;
    }

    fn has_garbage(&self) -> bool {
        false
    }

    fn tidy(&mut self) -> Result<(), ApplyError> {
        Ok(())
    }
}

/// A Service without endpoints on a port of its own.
fn service(port: u16) -> Change {
    let service = Service {
        created: 1,
        cluster_ips: PerFamily {
            v4: Some([10, 96, (port >> 8) as u8, port as u8].into()),
            v6: None,
        },
        external_ips: Vec::new(),
        vips: Vec::new(),
        source_ranges: PerFamily {
            v4: SourceRanges::Any,
            v6: SourceRanges::Any,
        },
        ports: vec![ServicePort {
            name: "".into(),
            protocol: Protocol::Tcp,
            port,
            node_port: 0,
        }],
        affinity: None,
        internal_local: false,
        external_local: false,
        health_check_node_port: 0,
    };
    let key = ObjectKey::new("default", format!("svc-{port}"));
    Change::Service(key, Some(Box::new(service)))
}

fn served(backend: &Picky) -> Vec<u16> {
    backend.held.iter().filter_map(port).collect()
}

fn proxy(backend: &mut Picky) -> Proxy<&mut Picky> {
    let desired = Desired::new(Node::named("node-1"), NodePortAddresses::Primary);
    Proxy::start(desired, backend).unwrap()
}

#[test]
fn a_service_that_is_refused_is_left_out_alone_and_returns_when_it_changes() {
    let mut backend = Picky {
        hates: [82].into(),
        ..Picky::default()
    };
    let mut proxy = proxy(&mut backend);
    proxy.take([service(81), service(82), service(83)]);
    let synced = proxy.sync().unwrap();
    assert_eq!(synced.left_out, 1);
    assert_eq!(served(proxy.backend), [81, 83]);

    proxy.take([service(84)]);
    proxy.sync().unwrap();
    assert_eq!(served(proxy.backend), [81, 83, 84], "others go on");

    proxy.backend.hates.clear();
    let Change::Service(key, Some(mut changed)) = service(82) else {
        unreachable!("a Service")
    };
    changed.created = 2;
    proxy.take([Change::Service(key, Some(changed))]);
    let synced = proxy.sync().unwrap();
    assert_eq!(synced.left_out, 0);
    assert_eq!(served(proxy.backend), [81, 82, 83, 84]);
}

#[test]
fn more_than_the_backend_wants_at_once_takes_several_transactions_in_one_sync() {
    let mut backend = Picky {
        most: 2,
        hates: [82, 86].into(),
        ..Picky::default()
    };
    let mut proxy = proxy(&mut backend);
    proxy.take((81..=89).map(service));
    let synced = proxy.sync().unwrap();
    assert_eq!(synced.left_out, 2, "each part is rid of its own culprit");
    assert_eq!(served(proxy.backend), [81, 83, 84, 85, 87, 88, 89]);
    let addresses = proxy.backend.held.len() - 7;
    assert_eq!(addresses, 7, "those that are left out refuse nothing");
    assert_eq!(synced.applied.operations, 14);
}

#[test]
fn after_many_refusals_nobody_is_left_out_who_is_not_to_blame() {
    // In transactions of two Services each, of which one is refused.
    let culprits: BTreeSet<u16> = (100..400).step_by(2).collect();
    let mut backend = Picky {
        most: 2,
        hates: culprits.clone(),
        ..Picky::default()
    };
    let mut proxy = proxy(&mut backend);
    proxy.take((100..400).map(service));
    let synced = proxy.sync().unwrap();
    assert_eq!(synced.left_out, culprits.len());
    let innocent: Vec<u16> = (100..400).filter(|port| !culprits.contains(port)).collect();
    assert_eq!(served(proxy.backend), innocent);
}

#[test]
fn drift_is_found_by_the_refusal_and_repaired_in_the_same_sync() {
    let mut backend = Picky::default();
    let mut proxy = proxy(&mut backend);
    proxy.take([service(81), service(82)]);
    proxy.sync().unwrap();
    let mut stranger = proxy.backend.held.clone();
    stranger.retain(|entry| port(entry) != Some(81));
    proxy.backend.held = stranger;
    let Change::Service(key, _) = service(81) else {
        unreachable!("a Service")
    };
    proxy.take([Change::Service(key, None), service(83)]);
    let synced = proxy.sync().unwrap();
    assert_eq!(synced.left_out, 0, "nobody is blamed for drift");
    assert_eq!(served(proxy.backend), [82, 83]);
}

#[test]
fn a_kernel_that_cannot_be_asked_changes_nothing_and_the_next_sync_makes_up_for_it() {
    let mut backend = Picky::default();
    let mut proxy = proxy(&mut backend);
    proxy.take([service(81)]);
    proxy.backend.down = true;
    proxy.sync().unwrap_err();
    proxy.take([service(82)]);
    proxy.backend.down = false;
    proxy.sync().unwrap();
    assert_eq!(served(proxy.backend), [81, 82]);
    assert_eq!(proxy.backend.transactions, 1);
}

#[test]
fn a7_an_object_that_comes_again_unchanged_is_no_transaction() {
    let mut backend = Picky::default();
    let mut proxy = proxy(&mut backend);
    proxy.take([service(81)]);
    proxy.sync().unwrap();
    proxy.take([service(81)]);
    let synced = proxy.sync().unwrap();
    assert_eq!(synced.applied.operations, 0);
}

#[test]
fn n_h1_a_sync_that_fails_loses_no_stale_flows() {
    let mut backend = Picky::default();
    let mut proxy = proxy(&mut backend);
    let Change::Service(key, Some(mut udp)) = service(53) else {
        unreachable!("a Service")
    };
    udp.ports[0].protocol = Protocol::Udp;
    proxy.take([Change::Service(key.clone(), Some(udp))]);
    proxy.backend.down = true;
    proxy.sync().unwrap_err();
    assert_eq!(proxy.take_stale_flows(), [], "its rules are not there yet");
    proxy.backend.down = false;
    proxy.sync().unwrap();
    let stale = |proxy: &mut Proxy<&mut Picky>| -> Vec<String> {
        let flows = proxy.take_stale_flows();
        let destinations = flows.iter().map(|flows| flows.destination.to_string());
        destinations.collect()
    };
    assert_eq!(stale(&mut proxy), ["10.96.0.53:53/udp"]);

    proxy.take([Change::Service(key, None)]);
    proxy.backend.down = true;
    proxy.sync().unwrap_err();
    proxy.backend.down = false;
    proxy.sync().unwrap();
    assert_eq!(stale(&mut proxy), ["10.96.0.53:53/udp"], "nor of one gone");
}

#[test]
fn nobody_is_left_out_because_the_machine_has_no_memory() {
    let mut backend = Picky::default();
    let mut proxy = proxy(&mut backend);
    proxy.take([service(81), service(82)]);
    proxy.sync().unwrap();
    proxy.backend.hates = [81, 82, 83].into();
    proxy.backend.says = Some(Errno::ENOMEM);
    let Change::Service(key, Some(mut changed)) = service(82) else {
        unreachable!("a Service")
    };
    changed.ports[0].port = 83;
    proxy.take([Change::Service(key, Some(changed))]);
    for _ in 0..10 {
        let error = proxy.sync().unwrap_err();
        assert!(error.to_string().contains("ENOMEM"), "{error}");
        assert_eq!(served(proxy.backend), [81, 82], "what is programmed stays");
    }
    proxy.backend.hates.clear();
    let synced = proxy.sync().unwrap();
    assert_eq!(synced.left_out, 0);
    assert_eq!(served(proxy.backend), [81, 83]);
}

#[test]
fn nobody_waits_until_another_has_been_served_whole() {
    let mut backend = Picky {
        most: 64,
        ..Picky::default()
    };
    let mut proxy = proxy(&mut backend);
    let Change::Service(key, Some(mut large)) = service(100) else {
        unreachable!("a Service")
    };
    let port = large.ports[0].clone();
    large.ports = (1_000..3_000)
        .map(|number| ServicePort {
            name: format!("port-{number}").into(),
            port: number,
            ..port.clone()
        })
        .collect();
    proxy.take([Change::Service(key, Some(large)), service(81)]);
    let synced = proxy.step().unwrap();
    assert!(!synced.settled);
    assert!(served(proxy.backend).contains(&81), "it had its turn");
    // What comes meanwhile is served before the rest is.
    proxy.take([service(82)]);
    proxy.step().unwrap();
    assert!(served(proxy.backend).contains(&82));
    assert!(served(proxy.backend).len() < 200);
    while !proxy.step().unwrap().settled {}
    assert_eq!(served(proxy.backend).len(), 2_002);
}

#[test]
fn a_service_that_has_taken_much_time_waits_and_the_others_do_not() {
    let mut backend = Picky::default();
    let mut proxy = proxy(&mut backend);
    proxy.take([service(81), service(82)]);
    proxy.sync().unwrap();
    let id = |proxy: &Proxy<&mut Picky>, port: u16| {
        let key = ObjectKey::new("default", format!("svc-{port}"));
        proxy.desired.state.id_of(&key).unwrap()
    };
    let costly = id(&proxy, 81);
    proxy.desired.spend(costly, Duration::from_secs(5));
    let changed = |port: u16| {
        let Change::Service(key, Some(mut changed)) = service(port) else {
            unreachable!("a Service")
        };
        changed.ports[0].port = port + 100;
        Change::Service(key, Some(changed))
    };
    proxy.take([changed(81), changed(82)]);
    let synced = proxy.step().unwrap();
    assert!(synced.settled);
    let until = synced.wait.expect("one waits");
    assert!(until > Instant::now() + Duration::from_secs(30));
    assert_eq!(served(proxy.backend), [81, 182]);
    proxy.sync().unwrap();
    assert_eq!(served(proxy.backend), [181, 182]);
}
