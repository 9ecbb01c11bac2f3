//! Every way to reach a Service, and what the manifests promise of it.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::cluster::{Destination, Endpoint, Service};
use crate::harness::{Failure, World};
use crate::requests::{Answers, Origin, send};

/// Enough that no endpoint is left out by chance.
const REQUESTS: usize = 60;
/// A refusal can take a second: an ICMPv6 error reaches a TCP client only on its second SYN.
const REFUSED_REQUESTS: usize = 2;
/// What the columns of [`Trip::row`] are.
pub const HEADER: [&str; 9] = [
    "SERVICE",
    "VIA",
    "DESTINATION",
    "FROM",
    "FAMILY",
    "REQUESTS",
    "FAILED",
    "SEEN AS",
    "REACHED",
];

/// A way through a Service: from somewhere to one of its addresses.
#[derive(Debug, Clone, Copy)]
pub struct Trip<'a> {
    pub service: &'a Service,
    pub destination: Destination,
    pub from: Origin,
}

/// Every way through Services.
pub fn trips(services: &[Service]) -> Vec<Trip<'_>> {
    let mut trips = Vec::new();
    for service in services {
        for destination in &service.destinations {
            for from in Origin::all(destination.via) {
                trips.push(Trip {
                    service,
                    destination: *destination,
                    from: *from,
                });
            }
        }
    }
    trips
}

impl Trip<'_> {
    /// Sends requests one after another.
    pub fn send(&self, world: &World, times: usize) -> Answers {
        send(world, self.service, self.destination, self.from, times)
    }

    fn endpoints(&self) -> BTreeMap<SocketAddr, &Endpoint> {
        self.service.endpoints_of(self.destination)
    }

    fn is_refused(&self) -> bool {
        self.endpoints().is_empty()
    }

    /// How many requests tell what there is to tell.
    pub fn requests(&self) -> usize {
        if self.is_refused() {
            REFUSED_REQUESTS
        } else {
            REQUESTS
        }
    }

    /// Whether the answers are what the manifests ask for.
    pub fn check(&self, answers: &Answers) -> Result<(), String> {
        let problem = |what: &str| {
            let Destination { via, address } = self.destination;
            let Answers {
                reached,
                sources,
                failures,
            } = answers;
            let failures = match failures.as_slice() {
                [] => "no failures".to_owned(),
                [first, ..] => format!("{} failures, the first {first:?}", failures.len()),
            };
            Err(format!(
                "{what}: {} by {via} {address} from {}: {reached:?} from {sources:?}, {failures}",
                self.service.name, self.from
            ))
        };
        if self.is_refused() {
            return if failures_are_refusals(answers) {
                Ok(())
            } else {
                problem("not refused")
            };
        }
        let endpoints = self.endpoints();
        let expected = if self.service.is_sticky {
            1
        } else {
            endpoints.len()
        };
        let reached = &answers.reached;
        if !answers.failures.is_empty() {
            problem("failed requests")
        } else if !reached.keys().all(|seen| endpoints.contains_key(seen)) {
            problem("wrong endpoints")
        } else if reached.len() != expected {
            problem("another number of endpoints than expected")
        } else if !answers.sources.is_subset(&self.from.sources()) {
            problem("unexpected source address")
        } else {
            Ok(())
        }
    }

    /// The answers as a line of the table.
    pub fn row(&self, answers: &Answers) -> [String; HEADER.len()] {
        let requests = answers.failures.len() + answers.reached.values().sum::<usize>();
        let is_refused = self.is_refused() && failures_are_refusals(answers);
        let failed = if is_refused {
            0
        } else {
            answers.failures.len()
        };
        [
            self.service.name.clone(),
            self.destination.via.to_string(),
            self.destination.address.to_string(),
            self.from.to_string(),
            if self.destination.address.is_ipv4() {
                "IPv4"
            } else {
                "IPv6"
            }
            .to_owned(),
            requests.to_string(),
            failed.to_string(),
            self.seen_as(answers),
            if is_refused {
                "refused, as it has no endpoints".to_owned()
            } else {
                self.counts(answers)
            },
        ]
    }

    /// Whose source address the endpoints saw.
    fn seen_as(&self, answers: &Answers) -> String {
        if answers.sources.is_empty() {
            String::new()
        } else if answers.sources.is_subset(&self.from.sources()) {
            if self.from == Origin::Pod {
                "pod"
            } else {
                "node"
            }
            .to_owned()
        } else {
            format!("{:?}", answers.sources)
        }
    }

    /// How often each endpoint was reached.
    fn counts(&self, answers: &Answers) -> String {
        let endpoints = self.endpoints();
        let counts: Vec<String> = answers
            .reached
            .iter()
            .map(|(address, count)| match endpoints.get(address) {
                Some(endpoint) => format!("{} {count:<2}", endpoint.short_name()),
                None => format!("{address}?! {count}"),
            })
            .collect();
        let mut text = counts.join("  ");
        if self.service.is_sticky {
            text.push_str(" (remembered)");
        }
        text
    }
}

fn failures_are_refusals(answers: &Answers) -> bool {
    let refused = |failure: &Failure| *failure == Failure::Refused;
    answers.reached.is_empty() && answers.failures.iter().all(refused)
}
