use super::*;
use crate::core::compile::NodePortAddresses;
use crate::core::model::{Change, Node};
use crate::dataplane::Applied;

fn cause(name: &str, version: u64) -> Cause {
    Cause {
        kind: "Service",
        key: ObjectKey::new("shop", name),
        version,
        gone: false,
    }
}

fn desired() -> Desired {
    let mut desired = Desired::new(Node::named("node-1"), NodePortAddresses::Primary);
    let change = crate::agent::fakes::there_is(81);
    desired.take([change]);
    desired
}

fn synced(operations: usize) -> Synced {
    Synced {
        applied: Applied {
            operations,
            transactions: 1,
            ..Applied::default()
        },
        ..Synced::default()
    }
}

#[test]
fn a_transaction_is_told_with_the_objects_that_brought_it() {
    let desired = desired();
    let mut journal = Journal::new();
    journal.heard(vec![cause("web", 7), cause("api", 8)], &desired);
    journal.synced(&synced(5), &desired);
    journal.synced(&synced(0), &desired);
    let entries = journal.entries(10);
    assert_eq!(entries.len(), 1, "one that did nothing for nobody is none");
    let entry = &entries[0];
    assert_eq!((entry.number, entry.operations), (1, 5));
    let causes = [
        "Service shop/web at resourceVersion 7",
        "Service shop/api at resourceVersion 8",
    ];
    assert_eq!(entry.causes, causes);
}

#[test]
fn one_that_failed_is_told_with_the_reason() {
    let desired = desired();
    let mut journal = Journal::new();
    journal.heard(vec![cause("web", 7)], &desired);
    journal.failed("no memory".to_owned());
    journal.synced(&synced(5), &desired);
    let entries = journal.entries(10);
    assert_eq!(entries[0].refused.as_deref(), Some("no memory"));
    assert_eq!(entries[1].refused, None);
}

#[test]
fn however_much_happens_what_is_kept_of_it_is_bounded() {
    let desired = desired();
    let mut journal = Journal::new();
    for number in 0..1000 {
        let many = (0..100)
            .map(|one| cause(&one.to_string(), number))
            .collect();
        journal.heard(many, &desired);
        journal.synced(&synced(1), &desired);
    }
    let entries = journal.entries(usize::MAX);
    assert_eq!(entries.len(), MOST_TRANSACTIONS);
    assert_eq!(entries.last().map(|entry| entry.number), Some(1000));
    assert!(
        entries
            .iter()
            .all(|entry| entry.causes.len() == MOST_CAUSES && entry.more_causes == 92)
    );
}

#[test]
fn a_service_is_told_when_and_for_what_it_was_programmed_last() {
    let mut desired = desired();
    let mut journal = Journal::new();
    let Change::Service(key, _) = crate::agent::fakes::there_is(81) else {
        panic!("it is a Service");
    };
    let id = desired.state().id_of(&key).unwrap();
    assert_eq!(journal.programmed(id), None, "nothing is programmed yet");
    journal.synced(&synced(1), &desired);
    assert_eq!(
        journal.programmed(id).unwrap().because_of,
        "the start of this process"
    );
    let cause = Cause {
        key: key.clone(),
        ..cause("", 12)
    };
    journal.heard(vec![cause], &desired);
    journal.synced(&synced(1), &desired);
    assert_eq!(journal.pending(), 1, "it is not compiled yet");
    desired.compile();
    let pending = desired.engine.pending_up_to(usize::MAX);
    desired.engine.commit(pending);
    journal.synced(&synced(1), &desired);
    assert_eq!(journal.pending(), 0);
    let because_of = journal.programmed(id).unwrap().because_of;
    assert_eq!(because_of, format!("Service {key} at resourceVersion 12"));
}

#[test]
fn of_services_that_come_and_go_nothing_is_kept() {
    let mut desired = Desired::new(Node::named("node-1"), NodePortAddresses::Primary);
    let mut journal = Journal::new();
    for port in 1..100 {
        for change in [
            crate::agent::fakes::there_is(port),
            crate::agent::fakes::there_is_no(port),
        ] {
            let cause = Cause::of(&change).unwrap();
            desired.take([change]);
            journal.heard(vec![cause], &desired);
            desired.compile();
            let pending = desired.engine.pending_up_to(usize::MAX);
            desired.engine.commit(pending);
            journal.synced(&synced(1), &desired);
        }
    }
    assert_eq!((journal.last.len(), journal.pending.len()), (0, 0));
}

#[test]
fn a_new_list_of_what_is_known_is_no_cause_of_anything() {
    let mut desired = desired();
    desired.compile();
    let pending = desired.engine.pending_up_to(usize::MAX);
    desired.engine.commit(pending);
    let mut journal = Journal::new();
    let change = crate::agent::fakes::there_is(81);
    let cause = Cause::of(&change).unwrap();
    desired.take([change]);
    journal.heard(vec![cause], &desired);
    assert_eq!(journal.pending(), 0);
    journal.synced(&synced(0), &desired);
    assert_eq!(journal.entries(10), []);
}
