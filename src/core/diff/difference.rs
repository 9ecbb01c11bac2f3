//! The facts by which two forwardings of a destination differ.

use rustc_hash::FxHashSet;

use crate::core::ir::{Delta, Destination, Entry, Forwarding, List, Operation};
use crate::core::model::{Endpoint, Endpoints, ServiceId};

/// Appends what turns one destination's entries into others.
pub(super) fn difference(
    destination: Destination,
    old: Option<&Forwarding>,
    new: Option<&Forwarding>,
    owner: ServiceId,
    delta: &mut Delta,
) {
    let operation = |entry: Entry| Operation { owner, entry };
    match (old, new) {
        (Some(old), Some(new)) if old.has_facts_of(new) => {}
        (Some(old), Some(new)) => {
            // Few, but for long lists of source ranges.
            let facts = |forwarding: &Forwarding| {
                let mut facts = FxHashSet::default();
                forwarding.for_each_fact(destination, |entry| {
                    facts.insert(entry);
                });
                facts
            };
            let (old_facts, new_facts) = (facts(old), facts(new));
            old.for_each_fact(destination, |entry| {
                if !new_facts.contains(&entry) {
                    delta.remove.push(operation(entry));
                }
            });
            new.for_each_fact(destination, |entry| {
                if !old_facts.contains(&entry) {
                    delta.add.push(operation(entry));
                }
            });
        }
        (old, new) => {
            if let Some(old) = old {
                old.for_each_fact(destination, |entry| delta.remove.push(operation(entry)));
            }
            if let Some(new) = new {
                new.for_each_fact(destination, |entry| delta.add.push(operation(entry)));
            }
        }
    }
    // Places of endpoints that clients come back to change with how long and whereto they do.
    let same_kind = match (old, new) {
        (Some(old), Some(new)) => old.remembers_as(new),
        _ => true,
    };
    let remembers = |forwarding: Option<&Forwarding>| forwarding.is_some_and(Forwarding::remembers);
    let (was_remembered, is_remembered) = (remembers(old), remembers(new));
    for list in List::BOTH {
        let old = old.and_then(|forwarding| forwarding.list(list));
        let new = new.and_then(|forwarding| forwarding.list(list));
        if old.is_none() && new.is_none() {
            continue;
        }
        let none = Endpoints::default();
        let (old, new) = (old.unwrap_or(&none), new.unwrap_or(&none));
        let mut put = |index, before: Option<Endpoint>, after: Option<Endpoint>| {
            let slot = |endpoint, remembered| Entry::Slot {
                destination,
                list,
                // A list longer than u32 cannot be held in memory.
                index: u32::try_from(index).unwrap_or(u32::MAX),
                remembered,
                endpoint,
            };
            if let Some(endpoint) = before {
                delta.remove.push(operation(slot(endpoint, was_remembered)));
            }
            if let Some(endpoint) = after {
                delta.add.push(operation(slot(endpoint, is_remembered)));
            }
        };
        if same_kind {
            for (index, before, after) in old.differences(new) {
                put(index, before, after);
            }
        } else {
            for index in 0..old.len().max(new.len()) {
                put(index, old.get(index), new.get(index));
            }
        }
    }
}
