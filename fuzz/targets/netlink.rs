//! Netlink messages one after the other, as the kernel sends them: listings of our table, notices of
//! changes, answers to a transaction, flows. The first byte says of which family.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pointsman::core::diff::Engine;
use pointsman::core::model::Family;
use pointsman::dataplane::nftables::{Watched, entries_of, render};
use pointsman::dataplane::{Options, conntrack};
use pointsman::host::netlink::answers;

fuzz_target!(|data: &[u8]| {
    let Some((first, messages)) = data.split_first() else {
        return;
    };
    let family = Family::BOTH[usize::from(*first) % 2];
    let options = Options::default();
    if let Ok(entries) = entries_of(&options, family, messages) {
        assert!(!render(&options, &entries).is_empty());
        let mut engine = Engine::default();
        engine.adopt(entries);
        // Nothing is wanted: all of it goes.
        while !engine.is_settled() {
            let pending = engine.pending_up_to(64);
            engine.commit(pending);
        }
        assert!(engine.applied_entries().is_empty());
    }
    let mut watched = Watched::by(7);
    for culprit in watched.hear(messages).flatten() {
        assert!(culprit.to_string().contains("pid"));
    }
    let (refusals, _) = answers(messages, 1);
    assert!(refusals.len() <= messages.len() / 16);
    for (flow, request) in conntrack::listed(messages, family) {
        assert!(!flow.destination.to_string().is_empty());
        assert!(request.len() <= messages.len() + 64);
    }
});
