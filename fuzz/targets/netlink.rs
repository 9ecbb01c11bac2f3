//! Netlink messages one after the other, as the kernel sends them: listings of our table, notices of
//! changes, answers to a transaction, flows. The first byte says of which family.

#![no_main]

use std::collections::HashSet;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use pointsman::core::diff::Engine;
use pointsman::core::model::Family;
use pointsman::dataplane::nftables::{Watched, entries_of, render};
use pointsman::dataplane::{Options, conntrack};
use pointsman::host::netlink::answers;

/// `NFT_MSG_NEWRULE` of nf_tables.
const RULE: [u8; 2] = (10u16 << 8 | 6).to_ne_bytes();

/// The rules of the table that is a seed. libnftnl ends the process over a rule that no kernel would
/// list (`abi_breakage`), so there are no others.
static RULES: LazyLock<HashSet<&[u8]>> = LazyLock::new(|| {
    let listing = include_bytes!("../corpus/netlink/table");
    whole(&listing[1..])
        .filter(|message| message[4..6] == RULE)
        .collect()
});

/// Messages with their headers.
fn whole(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
        let message = bytes.get(..length).filter(|message| message.len() >= 16)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some(message)
    })
}

fn listing(messages: &[u8]) -> Vec<u8> {
    let mut listing = Vec::new();
    for message in whole(messages) {
        if message[4..6] != RULE || RULES.contains(message) {
            listing.extend_from_slice(message);
            listing.resize(listing.len().next_multiple_of(4), 0);
        }
    }
    listing
}

fuzz_target!(|data: &[u8]| {
    let Some((first, messages)) = data.split_first() else {
        return;
    };
    let family = Family::BOTH[usize::from(*first) % 2];
    let options = Options::default();
    if let Ok(entries) = entries_of(&options, family, &listing(messages)) {
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
