//! From a question to its answer: which destinations it is about, and what is said first.

use super::asked::{Explanation, From, Outcome, Question, Route, To};
use super::surroundings::Surroundings;
use super::words::{self, NEAREST};
use crate::core::ir::{Destination, Host};
use crate::core::model::{Family, ObjectKey, Owner, Protocol, ServiceId};

/// How many destinations of a Service are told.
const MOST_ROUTES: usize = 32;

impl Surroundings<'_> {
    /// Says what will happen.
    #[must_use]
    pub fn explain(&self, question: &Question) -> Explanation {
        match &question.to {
            To::Service {
                service,
                port,
                protocol,
            } => self.service_routes(&question.from, service, port.as_deref(), *protocol),
            To::Address {
                address,
                port,
                protocol,
            } => {
                let accepts = self.accepts_node_ports(*address);
                let host = |protocol| {
                    let owned = self.owned(Host::Address(*address), *port, protocol);
                    owned.or_else(|| {
                        let node = Host::Node(Family::of(*address));
                        accepts.then(|| self.owned(node, *port, protocol)).flatten()
                    })
                };
                let destinations = one_protocol(*protocol, host);
                if destinations.is_empty() {
                    return self.nobody(*address, *port, *protocol, &question.from);
                }
                self.routes(&question.from, destinations, None)
            }
            To::NodePort { port, protocol } => {
                let families = self.families_of(&question.from);
                let destinations = families.into_iter().flat_map(|family| {
                    one_protocol(*protocol, |protocol| {
                        self.owned(Host::Node(family), *port, protocol)
                    })
                });
                let destinations: Vec<Destination> = destinations.collect();
                if destinations.is_empty() {
                    return self.no_node_port(*port, *protocol);
                }
                self.routes(&question.from, destinations, None)
            }
        }
    }

    fn families_of(&self, from: &From) -> Vec<Family> {
        match from {
            From::Address(address) => vec![Family::of(*address)],
            From::Anyone | From::Host => Family::BOTH.to_vec(),
        }
    }

    fn service_routes(
        &self,
        from: &From,
        name: &ObjectKey,
        port: Option<&str>,
        protocol: Option<Protocol>,
    ) -> Explanation {
        let known = self.state.id_of(name);
        let Some((id, known)) = known.and_then(|id| Some((id, self.state.service(id)?))) else {
            return self.no_service(name);
        };
        let families = self.families_of(from);
        let is_asked = |destination: &Destination| {
            let of_port = known.service.ports.iter().find(|candidate| {
                let number = match destination.host {
                    Host::Address(_) => candidate.port,
                    Host::Node(_) => candidate.node_port,
                };
                candidate.protocol == destination.protocol && number == destination.port
            });
            let of_port = of_port.is_some_and(|candidate| {
                port.is_none_or(|port| {
                    *candidate.name == *port || candidate.port.to_string() == port
                })
            });
            of_port
                && protocol.is_none_or(|protocol| protocol == destination.protocol)
                && families.contains(&destination.family())
        };
        let destinations = self.engine.destinations_of(Owner::Service(id));
        let mut destinations: Vec<Destination> = destinations.filter(is_asked).collect();
        if destinations.is_empty() {
            return self.no_such_port(known, port, protocol, from);
        }
        // ClusterIPs first, then as they come.
        let is_cluster_ip = |destination: &Destination| match destination.host {
            Host::Address(address) => {
                let mut cluster_ips = known.service.cluster_ips.iter();
                cluster_ips.any(|(_, ip)| *ip == Some(address))
            }
            Host::Node(_) => false,
        };
        destinations.sort_by_key(|destination| !is_cluster_ip(destination));
        let mut explanation = self.routes(from, destinations, Some(id));
        if let Some(left_out) = self.left_out.get(&id) {
            explanation.headline = format!(
                "{name} is too large, and {left_out} of its destinations are left out; {}",
                explanation.headline
            );
        }
        explanation
    }

    fn routes(
        &self,
        from: &From,
        destinations: Vec<Destination>,
        asked_for: Option<ServiceId>,
    ) -> Explanation {
        let more = destinations.len().saturating_sub(MOST_ROUTES);
        let routes = destinations.into_iter().take(MOST_ROUTES);
        let routes: Vec<Route> = routes
            .filter_map(|destination| self.route(from, destination, asked_for))
            .collect();
        // What somebody has to look at comes before what goes well.
        let first = routes
            .iter()
            .find(|route| route.lost_to.is_some() || route.outcome != Outcome::Connects)
            .or(routes.first());
        Explanation {
            headline: first.map_or_else(String::new, |first| words::headline(from, first)),
            more_routes: more,
            notes: self.relabelled(&routes).into_iter().collect(),
            routes,
        }
    }

    /// Slices that are called as if they were a Service's that has none, and are labelled for another.
    fn relabelled(&self, routes: &[Route]) -> Option<String> {
        let refused = routes
            .iter()
            .find(|route| route.outcome == Outcome::Refused)?;
        let (owner, _) = *self.engine.claims_to(refused.key?).first()?;
        let known = self.service(owner)?;
        if known.slices().next().is_some() {
            return None;
        }
        let ObjectKey { namespace, name } = known.key;
        let prefix = format!("{name}-");
        let others = self
            .state
            .all_slices()
            .filter(|(slice, _)| slice.namespace == *namespace && slice.name.starts_with(&prefix));
        let mut others: Vec<String> = others
            .filter_map(|(slice, id)| {
                let of = &self.state.name(id)?.name;
                Some(format!("EndpointSlice {} is labelled for {of}", slice.name))
            })
            .collect();
        others.sort_unstable();
        others.truncate(NEAREST);
        (!others.is_empty()).then(|| words::list(&others))
    }
}

/// The destination of a protocol, or of each that there is.
fn one_protocol(
    protocol: Option<Protocol>,
    find: impl Fn(Protocol) -> Option<Destination>,
) -> Vec<Destination> {
    let protocols = match protocol {
        Some(protocol) => vec![protocol],
        None => vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp],
    };
    protocols.into_iter().filter_map(find).collect()
}
