//! Which flows may be stale after a delta.
//!
//! A UDP client keeps sending to an endpoint that is gone for as long as its conntrack entry
//! lives, and to nobody at all if it began when there was no endpoint. TCP and SCTP notice, but for who
//! has begun while there were no rules, or waits for an answer of an endpoint that has left: what is sent again then
//! follows the first packet to nobody.

use rustc_hash::FxHashSet;

use crate::core::compile::Compiled;
use crate::core::ir::{
    Action, Delta, Destination, DestinationChange, Draw, Entry, Forwarding, List, Operation,
};
use crate::core::model::{Endpoint, Endpoints, Protocol};

/// A destination whose flows have to be looked through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaleFlows {
    /// What the clients connected to.
    pub destination: Destination,
    /// Flows of UDP that go here are well; all others to this destination are stale. With TCP and SCTP the list is
    /// empty, and stale is only what was never answered, and goes to the destination itself or to who is gone.
    pub keep: Endpoints,
    /// Endpoints that have left, of TCP and SCTP: whoever waits for an answer of theirs is to begin anew.
    pub gone: Vec<Endpoint>,
}

/// Where flows to a destination of a Service may go.
pub(super) fn of<'a>(compiled: &'a Compiled, destination: &Destination) -> Option<&'a Endpoints> {
    let place = compiled
        .flows
        .binary_search_by_key(destination, |(known, _)| *known);
    Some(&compiled.flows.get(place.ok()?)?.1)
}

/// What a change from one set of endpoints to another leaves stale, if anything.
pub(super) fn stale(
    destination: Destination,
    before: Option<Endpoints>,
    now: Option<Endpoints>,
) -> Option<StaleFlows> {
    // A flow that goes to none of them may have begun whenever there was another list: before an
    // endpoint came as well as before one left.
    let same = before.zip(now.as_ref()).is_some_and(|(before, now)| {
        let (mut gone, mut come) = (FxHashSet::default(), FxHashSet::default());
        for (_, was, is) in before.differences(now) {
            gone.extend(was);
            come.extend(is);
        }
        gone == come
    });
    let keep = now.unwrap_or_default();
    (!same).then_some(StaleFlows {
        destination,
        keep,
        gone: Vec::new(),
    })
}

/// Connections that may have begun before a destination was served.
pub(super) fn unserved(change: &DestinationChange) -> Option<StaleFlows> {
    let after = change.after.as_ref()?;
    if change.before.is_some() {
        return None;
    }
    newly_served(change.destination, after)
}

/// The same of a destination that is served like this, and was not before.
pub(super) fn newly_served(destination: Destination, is: &Forwarding) -> Option<StaleFlows> {
    let serves = matches!(is.action, Action::Balance { .. });
    (serves && destination.protocol != Protocol::Udp).then(|| StaleFlows {
        destination,
        keep: Endpoints::default(),
        gone: Vec::new(),
    })
}

/// Connections that wait for an answer of an endpoint that a delta takes away: the client's next attempt is to reach
/// another one. In order, so that the same delta says the same.
///
/// Whoever leaves the list for sources outside alone goes on to serve others, and is left alone: to look whether the
/// other list has it would take time in proportion to the list.
pub(super) fn unanswered(delta: &Delta) -> Vec<StaleFlows> {
    let slot = |operation: &Operation| match &operation.entry {
        Entry::Slot {
            destination,
            list: List::Primary,
            endpoint,
            ..
        } if destination.protocol != Protocol::Udp => Some((*destination, *endpoint)),
        _ => None,
    };
    let sorted = |operations: &[Operation]| {
        let mut slots: Vec<(Destination, Endpoint)> = operations.iter().filter_map(slot).collect();
        slots.sort_unstable();
        slots
    };
    let mut gone = sorted(&delta.remove);
    if gone.is_empty() {
        return Vec::new();
    }
    // One that changes its place stays, and so does one that has others.
    let mut stays = sorted(&delta.add);
    let several = delta.destinations.iter().filter(|change| {
        let draws =
            [&change.before, &change.after].map(|one| one.as_ref().and_then(Forwarding::draw));
        draws.into_iter().flatten().any(Draw::repeats)
    });
    for change in several {
        let list = change
            .after
            .as_ref()
            .and_then(|after| after.list(List::Primary));
        let places = list.into_iter().flat_map(Endpoints::iter);
        stays.extend(places.map(|endpoint| (change.destination, *endpoint)));
    }
    stays.sort_unstable();
    gone.dedup();
    let mut all: Vec<StaleFlows> = Vec::new();
    for (destination, endpoint) in gone {
        if stays.binary_search(&(destination, endpoint)).is_ok() {
            continue;
        }
        match all.last_mut() {
            Some(last) if last.destination == destination => last.gone.push(endpoint),
            _ => all.push(StaleFlows {
                destination,
                keep: Endpoints::default(),
                gone: vec![endpoint],
            }),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ir::Host;
    use crate::core::model::Owner;

    #[test]
    fn h2_who_waits_for_an_endpoint_that_leaves_is_looked_for_and_one_that_changes_its_place_stays()
    {
        let to = |protocol| Destination {
            host: Host::Address([10, 96, 0, 10].into()),
            protocol,
            port: 80,
        };
        let in_list = |list, protocol, index, byte| Operation {
            owner: Owner::Cluster,
            entry: Entry::Slot {
                destination: to(protocol),
                list,
                index,
                remembered: false,
                endpoint: Endpoint::new([10, 244, 0, byte].into(), 80),
            },
        };
        let slot = |protocol, index, byte| in_list(List::Primary, protocol, index, byte);
        let delta = Delta {
            remove: vec![
                in_list(List::External, Protocol::Tcp, 0, 8),
                slot(Protocol::Tcp, 0, 1),
                slot(Protocol::Tcp, 2, 3),
                slot(Protocol::Udp, 0, 9),
                slot(Protocol::Sctp, 1, 5),
                slot(Protocol::Tcp, 3, 2),
            ],
            add: vec![slot(Protocol::Tcp, 0, 3), slot(Protocol::Tcp, 4, 7)],
            destinations: Vec::new(),
        };
        let stale = unanswered(&delta);
        let found: Vec<(Protocol, Vec<String>)> = stale
            .iter()
            .map(|one| {
                (
                    one.destination.protocol,
                    one.gone.iter().map(ToString::to_string).collect(),
                )
            })
            .collect();
        let expected = [
            (
                Protocol::Tcp,
                vec!["10.244.0.1:80".to_owned(), "10.244.0.2:80".to_owned()],
            ),
            (Protocol::Sctp, vec!["10.244.0.5:80".to_owned()]),
        ];
        assert_eq!(found, expected);
        assert_eq!(unanswered(&Delta::default()), []);
    }

    #[test]
    fn n_h1_n_h4_flows_are_looked_through_when_the_endpoints_are_others_and_when_the_service_goes()
    {
        let destination = Destination {
            host: Host::Address([10, 96, 0, 10].into()),
            protocol: Protocol::Udp,
            port: 53,
        };
        let endpoints = |bytes: &[u8]| -> Endpoints {
            bytes
                .iter()
                .map(|byte| Endpoint::new([10, 244, 0, *byte].into(), 53))
                .collect()
        };
        let cases: [(&str, Option<&[u8]>, Option<&[u8]>, bool); 10] = [
            ("an endpoint leaves", Some(&[1, 2]), Some(&[1]), true),
            ("one is replaced", Some(&[1]), Some(&[2]), true),
            ("the last one leaves", Some(&[1]), Some(&[]), true),
            ("the Service is deleted", Some(&[1]), None, true),
            ("the first one comes", Some(&[]), Some(&[1]), true),
            ("the Service is new, or we are", None, Some(&[1]), true),
            ("another one comes", Some(&[1]), Some(&[1, 2]), true),
            ("two change places", Some(&[1, 2]), Some(&[2, 1]), false),
            ("there are none and none come", Some(&[]), Some(&[]), false),
            ("nothing changes", Some(&[1]), Some(&[1]), false),
        ];
        for (what, before, now, expected) in cases {
            let found = stale(destination, before.map(endpoints), now.map(endpoints));
            let expected = expected.then(|| StaleFlows {
                destination,
                keep: endpoints(now.unwrap_or_default()),
                gone: Vec::new(),
            });
            assert_eq!(found, expected, "{what}");
        }
    }
}
