//! What the loop does and when: with backends in memory, and nobody waits but for what happens.

use std::thread::JoinHandle;

use clap::Parser;
use tokio::sync::oneshot;

use super::*;
use crate::agent::fakes::{
    Fake, Handle, Holds, moved, there_is, there_is_dual_stack, there_is_no, with_both_backends,
};
use crate::agent::inbox::{Events, MOST_QUESTIONS};
use crate::agent::inquiries::Asked;
use crate::agent::reconciler::Desired;
use crate::agent::status::Loop;
use crate::config::Args;
use crate::core::compile::NodePortAddresses;
use crate::core::model::{Change, Family, Node};
use crate::dataplane::Mode;
use crate::serve::registry::Metrics;

with_both_backends! {
    g3_what_is_heard_is_programmed_and_the_rest_stays_when_the_loop_ends,
    g4_a_backend_that_cannot_be_asked_is_asked_again_and_events_do_not_hurry_it,
    g6_what_somebody_else_takes_away_is_put_back,
    who_asks_is_answered_and_nothing_changes_for_it,
    one_who_is_refused_does_not_keep_the_others_from_being_programmed,
    events_are_heard_between_the_transactions_of_a_large_change,
    a_family_that_was_refused_has_another_chance,
    a_takeover_and_a_watch_that_fail_are_tried_again_until_they_succeed,
}

struct Running<H> {
    backend: Handle<H>,
    events: Events,
    health: Arc<Health>,
    tables: watch::Receiver<Table>,
    ask: mpsc::Sender<Asked>,
    stop: Option<oneshot::Sender<()>>,
    thread: JoinHandle<Result<()>>,
}

fn run<H: Holds>(fake: Fake<H>) -> Running<H> {
    let backend = Handle::new(fake);
    let arguments = [
        "pointsman",
        "--manifests",
        "-",
        "--iptables-sync-period=1s",
        "--takeover",
    ];
    let config = Config::from_args(&Args::parse_from(arguments), "node-1").unwrap();
    let desired = Desired::new(Node::named("node-1"), NodePortAddresses::Primary);
    let health = Arc::new(Health::new(Duration::from_secs(60), vec![Family::V4]));
    let (sender, tables) = watch::channel(Table::default());
    let (cleaner, _cleaning) = Cleaner::start(|_, _| ()).unwrap();
    let outlets = Outlets {
        watching: watch::channel(Watching::default()).0,
        cleaner,
        tables: sender,
        loopback: watch::channel(loopback::Table::default()).0,
        health: Arc::clone(&health),
        metrics: AgentMetrics::new(&Metrics::new().unwrap(), &[Family::V4], Mode::Nftables)
            .unwrap(),
    };
    let proxy = Proxy::new(desired, backend.clone());
    let sync_loop = SyncLoop::new(proxy, outlets, config, Timestamp::now());
    let (events, inbox) = mpsc::channel(WAITING);
    let (stop, stopped) = oneshot::channel();
    let (ask, questions) = mpsc::channel(MOST_QUESTIONS);
    let inbox = Inbox {
        events: inbox,
        stop: stopped,
        questions,
    };
    Running {
        backend,
        events,
        health,
        tables,
        ask,
        stop: Some(stop),
        thread: std::thread::spawn(move || sync_loop.run(inbox)),
    }
}

impl<H: Holds> Running<H> {
    fn tell(&self, changes: impl IntoIterator<Item = Change>) {
        let changes = Changes {
            changes: changes.into_iter().collect(),
            ..Changes::default()
        };
        self.events.blocking_send(changes).unwrap();
    }

    /// Waits until the backend is as it should be; for as long as the test may run.
    fn until(&self, is: impl Fn(&Fake<H>) -> bool) {
        while !is(&self.backend.lock()) {
            assert!(!self.thread.is_finished(), "the loop has ended");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn answer<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Asked) -> T {
        let (told, answer) = oneshot::channel();
        assert!(
            self.ask.blocking_send(question(told)).is_ok(),
            "the loop has ended"
        );
        answer.blocking_recv().unwrap()
    }

    fn end(mut self) -> Handle<H> {
        drop(self.stop.take());
        self.thread.join().unwrap().unwrap();
        self.backend
    }
}

fn who_asks_is_answered_and_nothing_changes_for_it<H: Holds>() {
    let running = run::<H>(Fake::default());
    running.tell([81, 82].map(there_is));
    running.until(|fake| fake.served() == [81, 82]);
    let status: Loop = running.answer(Asked::Status);
    assert_eq!((status.services, status.failing), (2, None));
    let wanted = running.answer(Asked::Wanted).unwrap();
    let mut backend = running.backend.clone();
    assert_eq!(backend.differences(&wanted.whole).unwrap(), []);
    assert_eq!(running.answer(Asked::Number), (wanted.number, false));
    let entries = running.answer(|told| Asked::History(10, told));
    assert!(
        entries.iter().any(|entry| entry.causes == ["the start"]),
        "{entries:?}"
    );
    let transactions = running.backend.lock().transactions;
    running.end();
    assert_eq!(backend.lock().transactions, transactions);
}

fn g3_what_is_heard_is_programmed_and_the_rest_stays_when_the_loop_ends<H: Holds>() {
    let running = run::<H>(Fake::default());
    running.tell([81, 82].map(there_is));
    running.until(|fake| fake.served() == [81, 82]);
    running.tell([there_is_no(81), there_is(83)]);
    running.until(|fake| fake.served() == [82, 83]);
    // Told once it is so.
    while !running.tables.has_changed().unwrap() || !running.health.is_healthy() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let backend = running.end();
    assert_eq!(backend.lock().served(), [82, 83]);
}

fn g4_a_backend_that_cannot_be_asked_is_asked_again_and_events_do_not_hurry_it<H: Holds>() {
    let running = run::<H>(Fake::default());
    running.tell([there_is(81)]);
    running.until(|fake| fake.served() == [81]);
    running.backend.lock().down = true;
    let before = running.backend.lock().attempts;
    // One event each time that the loop has heard the last one, for two attempts' time at least.
    for port in 100..400 {
        running.tell([there_is(port)]);
        std::thread::sleep(Duration::from_millis(1));
    }
    running.until(|fake| fake.attempts >= before + 2);
    let attempts = running.backend.lock().attempts - before;
    // After 100 ms, 200 ms, 400 ms, ...: a machine that stops for a while makes them fewer.
    assert!(attempts < 10, "{attempts} attempts for 300 events");
    running.backend.lock().down = false;
    running.until(|fake| fake.served().len() == 301);
    running.end();
}

fn g6_what_somebody_else_takes_away_is_put_back<H: Holds>() {
    let running = run::<H>(Fake::default());
    running.tell([81, 82].map(there_is));
    running.until(|fake| fake.served() == [81, 82] && fake.changed.is_some());
    let readings = running.backend.lock().readings;
    running.backend.interfere(81);
    running.until(|fake| fake.served() == [81, 82] && fake.readings > readings);
    running.end();
}

fn one_who_is_refused_does_not_keep_the_others_from_being_programmed<H: Holds>() {
    let running = run::<H>(Fake {
        hates: [82].into(),
        ..Fake::default()
    });
    running.tell([81, 82, 83].map(there_is));
    running.until(|fake| fake.served() == [81, 83]);
    running.tell([there_is(84)]);
    running.until(|fake| fake.served() == [81, 83, 84]);
    running.tell([moved(82, 85)]);
    running.until(|fake| fake.served() == [81, 83, 84, 85]);
    running.end();
}

fn events_are_heard_between_the_transactions_of_a_large_change<H: Holds>() {
    let running = run::<H>(Fake {
        most: 2,
        ..Fake::default()
    });
    running.tell((1_000..1_500).map(there_is));
    running.until(|fake| fake.served().len() > 10);
    running.tell([there_is(81)]);
    running.until(|fake| fake.served().contains(&81));
    running.until(|fake| fake.served().len() == 501);
    running.end();
}

fn a_takeover_and_a_watch_that_fail_are_tried_again_until_they_succeed<H: Holds>() {
    let running = run::<H>(Fake {
        stubborn: 2,
        unwatchable: 2,
        ..Fake::default()
    });
    running.tell([there_is(81)]);
    running.until(|fake| fake.taken_over && fake.changed.is_some());
    running.backend.interfere(81);
    running.until(|fake| fake.served() == [81]);
    running.end();
}

fn a_family_that_was_refused_has_another_chance<H: Holds>() {
    let running = run::<H>(Fake {
        hates_family: Some(Family::V6),
        ..Fake::default()
    });
    running.tell([81, 82].map(there_is_dual_stack));
    running.until(|fake| fake.served_in(Family::V4) == [81, 82]);
    running.until(|fake| fake.withheld == [Family::V6]);
    running.backend.lock().hates_family = None;
    running.until(|fake| fake.served_in(Family::V6) == [81, 82]);
    while !running.health.is_healthy() {
        std::thread::sleep(Duration::from_millis(1));
    }
    running.end();
}
