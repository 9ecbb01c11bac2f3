//! The facts by which two forwardings of a destination differ.

use std::cmp::Ordering;

use ipnetwork::IpNetwork;

use crate::core::ir::{Delta, Destination, Entry, Forwarding, List, Operation, Sources};
use crate::core::model::{Endpoint, Endpoints, Owner};

/// Appends what turns one destination's entries into others.
pub(super) fn difference(
    destination: Destination,
    old: Option<&Forwarding>,
    new: Option<&Forwarding>,
    owner: Owner,
    delta: &mut Delta,
) {
    let operation = |entry: Entry| Operation { owner, entry };
    match (old, new) {
        (Some(old), Some(new)) if old.has_facts_of(new) => {}
        (Some(old), Some(new)) => {
            let facts = |forwarding: &Forwarding| {
                let mut facts = Vec::with_capacity(3);
                forwarding.for_each_fact(destination, |entry| facts.push(entry));
                facts
            };
            let (old_facts, new_facts) = (facts(old), facts(new));
            let gone = old_facts.iter().filter(|fact| !new_facts.contains(fact));
            delta.remove.extend(gone.cloned().map(operation));
            let come = new_facts.iter().filter(|fact| !old_facts.contains(fact));
            delta.add.extend(come.cloned().map(operation));
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
    let networks = |forwarding: Option<&Forwarding>| {
        forwarding.map_or_else(Sources::default, |forwarding| forwarding.sources.clone())
    };
    let (was, is) = (networks(old), networks(new));
    let source = |network: &IpNetwork| {
        operation(Entry::AllowedSource {
            destination,
            network: *network,
        })
    };
    for (network, comes) in changes(was.networks(), is.networks()) {
        if comes {
            delta.add.push(source(network));
        } else {
            delta.remove.push(source(network));
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

/// The networks that go, and with `true` those that come, between two sorted lists.
pub(super) fn changes<'a>(
    was: &'a [IpNetwork],
    is: &'a [IpNetwork],
) -> impl Iterator<Item = (&'a IpNetwork, bool)> {
    // Most often it is the same list.
    let (was, is): (&[_], &[_]) = if std::ptr::eq(was, is) {
        (&[], &[])
    } else {
        (was, is)
    };
    let (mut was, mut is) = (was.iter().peekable(), is.iter().peekable());
    std::iter::from_fn(move || {
        loop {
            let order = match (was.peek(), is.peek()) {
                (None, None) => return None,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(gone), Some(come)) => order(gone).cmp(&order(come)),
            };
            match order {
                Ordering::Less => return Some((was.next()?, false)),
                Ordering::Greater => return Some((is.next()?, true)),
                Ordering::Equal => {
                    was.next();
                    is.next();
                }
            }
        }
    })
}

/// What lists of networks are sorted by.
pub(super) fn order(network: &IpNetwork) -> (std::net::IpAddr, u8) {
    (network.ip(), network.prefix())
}
