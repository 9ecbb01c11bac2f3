//! What a sync does when the kernel refuses, and whom it makes wait. Numbers at the front of test names
//! are those of `docs/semantics.md`.

use std::collections::BTreeSet;

use nix::errno::Errno;

use super::*;
use crate::agent::fakes::{
    Fake, Handle, Holds, key, moved, service, there_is, there_is_dual_stack, there_is_no,
    with_both_backends,
};
use crate::core::compile::NodePortAddresses;
use crate::core::model::{Family, Node, PerFamily, Protocol, ServicePort};

with_both_backends! {
    a_service_that_is_refused_is_left_out_alone_and_returns_when_it_changes,
    more_than_the_backend_wants_at_once_takes_several_transactions_in_one_sync,
    after_many_refusals_nobody_is_left_out_who_is_not_to_blame,
    drift_is_found_by_the_refusal_and_repaired_in_the_same_sync,
    a_kernel_that_cannot_be_asked_changes_nothing_and_the_next_sync_makes_up_for_it,
    a7_an_object_that_comes_again_unchanged_is_no_transaction,
    n_h1_a_sync_that_fails_loses_no_stale_flows,
    nobody_is_left_out_because_the_machine_has_no_memory,
    nobody_waits_until_another_has_been_served_whole,
    a_family_that_is_refused_does_not_keep_the_other_from_being_programmed,
    a_dual_stack_service_is_left_out_of_the_family_that_refuses_it,
    a_family_that_the_kernel_lacks_is_programmed_when_it_has_come,
    a_costly_service_of_who_has_taken_much_time_waits_and_nobody_else_does,
}

fn start<H: Holds>(fake: Fake<H>) -> (Handle<H>, Proxy<Handle<H>>) {
    let handle = Handle::new(fake);
    let desired = Desired::new(Node::named("node-1"), NodePortAddresses::Primary);
    let proxy = Proxy::start(desired, handle.clone()).unwrap();
    (handle, proxy)
}

fn a_service_that_is_refused_is_left_out_alone_and_returns_when_it_changes<H: Holds>() {
    let (backend, mut proxy) = start::<H>(Fake {
        hates: [82].into(),
        ..Fake::default()
    });
    proxy.take([81, 82, 83].map(there_is));
    let synced = proxy.sync().unwrap();
    assert_eq!(synced.left_out, 1);
    assert_eq!(backend.lock().served(), [81, 83]);

    proxy.take([there_is(84)]);
    proxy.sync().unwrap();
    assert_eq!(backend.lock().served(), [81, 83, 84], "others go on");

    backend.lock().hates.clear();
    let mut changed = service(82);
    changed.created = 2;
    proxy.take([Change::Service(key(82), Some(changed))]);
    let synced = proxy.sync().unwrap();
    assert_eq!(synced.left_out, 0);
    assert_eq!(backend.lock().served(), [81, 82, 83, 84]);
}

fn more_than_the_backend_wants_at_once_takes_several_transactions_in_one_sync<H: Holds>() {
    let (backend, mut proxy) = start::<H>(Fake {
        most: 2,
        hates: [82, 86].into(),
        ..Fake::default()
    });
    proxy.take((81..=89).map(there_is));
    let synced = proxy.sync().unwrap();
    assert_eq!(synced.left_out, 2, "each part is rid of its own culprit");
    assert_eq!(backend.lock().served(), [81, 83, 84, 85, 87, 88, 89]);
    let addresses = backend.lock().shared();
    assert_eq!(addresses, 7, "those that are left out refuse nothing");
    assert_eq!(synced.applied.operations, 14);
}

fn after_many_refusals_nobody_is_left_out_who_is_not_to_blame<H: Holds>() {
    // In transactions of two Services each, of which one is refused.
    let culprits: BTreeSet<u16> = (100..400).step_by(2).collect();
    let (backend, mut proxy) = start::<H>(Fake {
        most: 2,
        hates: culprits.clone(),
        ..Fake::default()
    });
    proxy.take((100..400).map(there_is));
    let synced = proxy.sync().unwrap();
    assert_eq!(synced.left_out, culprits.len());
    let innocent: Vec<u16> = (100..400).filter(|port| !culprits.contains(port)).collect();
    assert_eq!(backend.lock().served(), innocent);
}

fn a_family_that_is_refused_does_not_keep_the_other_from_being_programmed<H: Holds>() {
    for (refused, other) in [(Family::V6, Family::V4), (Family::V4, Family::V6)] {
        for says in [Errno::EINVAL, Errno::EPERM] {
            let (backend, mut proxy) = start::<H>(Fake {
                hates_family: Some(refused),
                says: Some(says),
                ..Fake::default()
            });
            proxy.take([81, 82].map(there_is_dual_stack));
            let synced = proxy.sync().unwrap();
            assert!(*synced.resting.get(refused) && !*synced.resting.get(other));
            assert_eq!(synced.left_out, 0, "it is no Service's fault");
            assert_eq!(backend.lock().served_in(other), [81, 82]);
            assert_eq!(backend.lock().served_in(refused), [0; 0]);

            // What comes meanwhile does not try it again.
            let attempts = backend.lock().attempts;
            proxy.take([there_is_dual_stack(83)]);
            proxy.sync().unwrap();
            assert_eq!(backend.lock().attempts, attempts + 1);

            backend.lock().hates_family = None;
            proxy.wake();
            proxy.read_again().unwrap();
            let synced = proxy.sync().unwrap();
            assert!(!*synced.resting.get(refused));
            assert_eq!(backend.lock().served_in(refused), [81, 82, 83]);
        }
    }
}

fn a_dual_stack_service_is_left_out_of_the_family_that_refuses_it<H: Holds>() {
    let (backend, mut proxy) = start::<H>(Fake {
        hates: [82].into(),
        hates_in: Some(Family::V6),
        ..Fake::default()
    });
    proxy.take([81, 82].map(there_is_dual_stack));
    let synced = proxy.sync().unwrap();
    assert_eq!(synced.left_out, 1);
    assert_eq!(synced.resting, PerFamily::default());
    assert_eq!(backend.lock().served_in(Family::V4), [81, 82]);
    assert_eq!(backend.lock().served_in(Family::V6), [81]);

    backend.lock().hates.clear();
    let Change::Service(key, Some(mut changed)) = there_is_dual_stack(82) else {
        panic!("a Service");
    };
    changed.created = 2;
    proxy.take([Change::Service(key, Some(changed))]);
    assert_eq!(proxy.sync().unwrap().left_out, 0);
    assert_eq!(backend.lock().served_in(Family::V6), [81, 82]);
}

fn a_family_that_the_kernel_lacks_is_programmed_when_it_has_come<H: Holds>() {
    for (lacks, other) in [(Family::V6, Family::V4), (Family::V4, Family::V6)] {
        let (backend, mut proxy) = start::<H>(Fake {
            lacks: vec![lacks],
            ..Fake::default()
        });
        proxy.take([81, 82].map(there_is_dual_stack));
        let synced = proxy.sync().unwrap();
        assert!(synced.settled && synced.resting == PerFamily::default());
        assert_eq!(backend.lock().served_in(other), [81, 82]);
        assert_eq!(backend.lock().served_in(lacks), [0; 0]);

        backend.lock().found = Some(lacks);
        assert!(proxy.backend_mut().look_for_families());
        proxy.read_again().unwrap();
        proxy.sync().unwrap();
        assert_eq!(backend.lock().served_in(lacks), [81, 82]);
    }
}

fn drift_is_found_by_the_refusal_and_repaired_in_the_same_sync<H: Holds>() {
    let (backend, mut proxy) = start::<H>(Fake::default());
    proxy.take([81, 82].map(there_is));
    proxy.sync().unwrap();
    backend.lock().held.lose(81);
    proxy.take([there_is_no(81), there_is(83)]);
    let synced = proxy.sync().unwrap();
    assert_eq!(synced.left_out, 0, "nobody is blamed for drift");
    assert_eq!(backend.lock().served(), [82, 83]);
}

fn a_kernel_that_cannot_be_asked_changes_nothing_and_the_next_sync_makes_up_for_it<H: Holds>() {
    let (backend, mut proxy) = start::<H>(Fake::default());
    proxy.take([there_is(81)]);
    backend.lock().down = true;
    proxy.sync().unwrap_err();
    proxy.take([there_is(82)]);
    backend.lock().down = false;
    proxy.sync().unwrap();
    assert_eq!(backend.lock().served(), [81, 82]);
    assert_eq!(backend.lock().transactions, 1);
}

fn a7_an_object_that_comes_again_unchanged_is_no_transaction<H: Holds>() {
    let (_, mut proxy) = start::<H>(Fake::default());
    proxy.take([there_is(81)]);
    proxy.sync().unwrap();
    proxy.take([there_is(81)]);
    let synced = proxy.sync().unwrap();
    assert_eq!(synced.applied.operations, 0);
}

fn n_h1_a_sync_that_fails_loses_no_stale_flows<H: Holds>() {
    let (backend, mut proxy) = start::<H>(Fake::default());
    let mut udp = service(53);
    udp.ports[0].protocol = Protocol::Udp;
    proxy.take([Change::Service(key(53), Some(udp))]);
    backend.lock().down = true;
    proxy.sync().unwrap_err();
    assert_eq!(proxy.take_stale_flows(), [], "its rules are not there yet");
    backend.lock().down = false;
    proxy.sync().unwrap();
    let stale = |proxy: &mut Proxy<Handle<H>>| -> Vec<String> {
        let flows = proxy.take_stale_flows();
        let destinations = flows.iter().map(|flows| flows.destination.to_string());
        destinations.collect()
    };
    assert_eq!(stale(&mut proxy), ["10.96.0.53:53/udp"]);

    proxy.take([there_is_no(53)]);
    backend.lock().down = true;
    proxy.sync().unwrap_err();
    backend.lock().down = false;
    proxy.sync().unwrap();
    assert_eq!(stale(&mut proxy), ["10.96.0.53:53/udp"], "nor of one gone");
}

fn nobody_is_left_out_because_the_machine_has_no_memory<H: Holds>() {
    let (backend, mut proxy) = start::<H>(Fake::default());
    proxy.take([81, 82].map(there_is));
    proxy.sync().unwrap();
    backend.lock().hates = [81, 82, 83].into();
    backend.lock().says = Some(Errno::ENOMEM);
    proxy.take([moved(82, 83)]);
    for _ in 0..10 {
        let error = proxy.sync().unwrap_err();
        assert!(error.to_string().contains("ENOMEM"), "{error}");
        let served = backend.lock().served();
        assert_eq!(served, [81, 82], "what is programmed stays");
    }
    backend.lock().hates.clear();
    let synced = proxy.sync().unwrap();
    assert_eq!(synced.left_out, 0);
    assert_eq!(backend.lock().served(), [81, 83]);
}

fn nobody_waits_until_another_has_been_served_whole<H: Holds>() {
    let (backend, mut proxy) = start::<H>(Fake {
        most: 64,
        ..Fake::default()
    });
    proxy.take([costly(100, 1_000..3_000), there_is(81)]);
    let synced = proxy.step().unwrap();
    assert!(!synced.settled);
    assert!(backend.lock().served().contains(&81), "it had its turn");
    // What comes meanwhile is served before the rest is.
    proxy.take([there_is(82)]);
    proxy.step().unwrap();
    assert!(backend.lock().served().contains(&82));
    assert!(backend.lock().served().len() < 200);
    while !proxy.step().unwrap().settled {}
    assert_eq!(backend.lock().served().len(), 2_002);
}

/// A Service of many ports, from one on.
fn costly(name: u16, ports: std::ops::Range<u16>) -> Change {
    let mut service = service(name);
    let port = service.ports[0].clone();
    service.ports = ports
        .map(|number| ServicePort {
            name: format!("port-{number}").into(),
            port: number,
            ..port.clone()
        })
        .collect();
    Change::Service(key(name), Some(service))
}

fn a_costly_service_of_who_has_taken_much_time_waits_and_nobody_else_does<H: Holds>() {
    let (backend, mut proxy) = start::<H>(Fake::default());
    proxy.take([costly(81, 1_000..2_000), there_is(82)]);
    proxy.sync().unwrap();
    assert_eq!(proxy.step().unwrap().wait, None, "a first load is free");
    let id = proxy.desired.state.id_of(&key(81)).unwrap();
    proxy.desired.spend(id, Duration::from_secs(60));
    proxy.take([costly(81, 1_001..2_001), moved(82, 182), there_is(83)]);
    let synced = proxy.step().unwrap();
    assert!(synced.settled);
    let until = synced.wait.expect("one waits");
    let seconds = until - Instant::now();
    assert!(seconds > Duration::from_secs(9) && seconds <= Duration::from_secs(10));
    let served = backend.lock().served();
    assert_eq!(served[..2], [83, 182]);
    assert_eq!(served[2], 1_000, "it is as it was");
    // One that is new is costly too, and what is gone is gone at once.
    proxy.take([costly(84, 3_000..4_000), there_is_no(81)]);
    let synced = proxy.step().unwrap();
    assert!(synced.wait.is_some());
    assert_eq!(backend.lock().served(), [83, 182]);
    proxy.sync().unwrap();
    assert_eq!(backend.lock().served().len(), 1_002);
}
