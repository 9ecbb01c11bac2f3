//! Which flows may be stale after a delta.
//!
//! A UDP client keeps sending to an endpoint that is gone for as long as its conntrack entry
//! lives, and to nobody at all if it began when there was no endpoint. TCP and SCTP notice, but for who
//! has begun while there were no rules: what is sent again then follows the first packet to nobody.

use rustc_hash::FxHashSet;

use crate::core::compile::Compiled;
use crate::core::ir::{Action, Destination, DestinationChange};
use crate::core::model::{Endpoints, Protocol};

/// A destination whose flows have to be looked through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaleFlows {
    /// What the clients connected to.
    pub destination: Destination,
    /// Flows that go here are well; all others to this destination are stale. With TCP and SCTP the list is
    /// empty, and stale is only what goes to the destination itself and was never answered.
    pub keep: Endpoints,
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
    (!same).then_some(StaleFlows { destination, keep })
}

/// Connections that may have begun before a destination was served.
pub(super) fn unserved(change: &DestinationChange) -> Option<StaleFlows> {
    let serves = |action: &Action| matches!(action, Action::Balance { .. });
    let after = change.after.as_ref()?;
    let is_new = change.before.is_none() && serves(&after.action);
    (is_new && change.destination.protocol != Protocol::Udp).then(|| StaleFlows {
        destination: change.destination,
        keep: Endpoints::default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ir::Host;
    use crate::core::model::Endpoint;

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
            });
            assert_eq!(found, expected, "{what}");
        }
    }
}
