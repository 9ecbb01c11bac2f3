//! What becomes of connections to a destination that somebody has.

use std::net::IpAddr;

use rustc_hash::FxHashSet;

use super::asked::{EndpointLine, From, Route};
use super::case::{Case, Class};
use super::surroundings::Surroundings;
use super::words;
use crate::core::compile::accepted_node_port_addresses;
use crate::core::ir::{Destination, Forwarding, Host, List, SourcePolicy, Sources};
use crate::core::model::{
    Endpoint, Endpoints, Family, LocalDetector, Owner, Service, ServiceId, ServicePort,
};
use crate::core::select::{Judged, Standing, judge, serving};

/// How many others are told that have a `NodePort`'s number.
const MOST_OTHERS: usize = 4;
/// How many endpoints are told.
const MOST_ENDPOINTS: usize = 200;

/// Marks those that would take connections and have no place: their weight or their silence keeps them off.
fn pass_over(
    judged: &mut [Judged],
    forwarding: &Forwarding,
    policy: SourcePolicy,
    internal_local: bool,
    ejected: impl Fn(Endpoint) -> bool,
) {
    let places = |list| -> FxHashSet<Endpoint> {
        let list = forwarding.list(list).into_iter();
        list.flat_map(Endpoints::iter).copied().collect()
    };
    let primary = places(List::Primary);
    let local = match policy {
        SourcePolicy::ExternalLocal => Some(places(List::External)),
        SourcePolicy::ClusterIp if internal_local => Some(primary.clone()),
        _ => None,
    };
    for one in judged {
        let mark = |standing: &mut Standing, list: &FxHashSet<Endpoint>, weight, endpoint| {
            if standing.is_used() && !list.contains(&endpoint) && !list.is_empty() {
                *standing = match weight {
                    0 => Standing::Drained,
                    _ if ejected(endpoint) => Standing::Ejected,
                    _ => return,
                };
            }
        };
        if policy != SourcePolicy::ClusterIp || !internal_local {
            mark(&mut one.anywhere, &primary, one.weight, one.endpoint);
        }
        if let Some(local) = &local {
            mark(&mut one.here, local, one.weight, one.endpoint);
        }
    }
}

impl Surroundings<'_> {
    pub(super) fn route(
        &self,
        from: &From,
        destination: Destination,
        asked_for: Option<ServiceId>,
    ) -> Option<Route> {
        let claims = self.engine.claims_to(destination);
        let (owner, forwarding) = *claims.first()?;
        let known = self.service(owner)?;
        let service = known.service;
        let port = port_at(service, destination)?;
        let is_cluster_ip = matches!(destination.host, Host::Address(address)
            if service.cluster_ips.iter().any(|(_, ip)| *ip == Some(address)));
        let class = self.class(from, is_cluster_ip, destination.family());
        let family = destination.family();
        let node = self.state.node();
        let slices = known.slices();
        let of_port = slices.flat_map(|slice| serving(slice, family, &port.name, port.protocol));
        let (mut judged, hints) = judge(of_port, node);
        let policy = match (is_cluster_ip, service.external_local) {
            (true, _) => SourcePolicy::ClusterIp,
            (false, true) => SourcePolicy::ExternalLocal,
            (false, false) => SourcePolicy::External,
        };
        if !known.is_plain() {
            let ejected = |endpoint: Endpoint| {
                known.observed().is_some_and(|observed| {
                    observed.ejected.contains(&(destination.protocol, endpoint))
                })
            };
            pass_over(
                &mut judged,
                forwarding,
                policy,
                service.internal_local,
                ejected,
            );
        }
        let own: FxHashSet<IpAddr> = self.state.interface_addresses().collect();
        let case = Case {
            service,
            known,
            port,
            class,
            policy,
            judged,
            hints,
            zone: node.zone.as_ref(),
            own,
        };
        let sources: Vec<IpAddr> = match from {
            From::Address(address) => vec![*address],
            // Which of its own addresses a node takes is the routes' business; as a rule the first.
            From::Host => {
                let primary = *node.primary_addresses().get(family);
                primary
                    .or_else(|| {
                        case.own
                            .iter()
                            .copied()
                            .find(|own| Family::of(*own) == family)
                    })
                    .into_iter()
                    .collect()
            }
            From::Anyone => Vec::new(),
        };
        let masqueraded = self.masquerades(&case, family) && !case.all_are_own();
        let (outcome, mut sentence) = case.outcome(from, &sources, forwarding, masqueraded);
        let node_addresses = self.at_node_addresses(destination);
        if let Host::Node(_) = destination.host {
            sentence = self.with_others(sentence, destination);
        }
        let waiting: Vec<String> = claims[1..]
            .iter()
            .map(|(owner, _)| self.name(*owner))
            .collect();
        let lost_to = asked_for
            .filter(|id| owner != Owner::Service(*id))
            .map(|id| (self.name(Owner::Service(id)), self.name(owner)));
        if let Some((loser, winner)) = &lost_to {
            sentence = format!(
                "{loser} does not get them: {winner} claims the same and is older; the connection {sentence}"
            );
        } else if !waiting.is_empty() {
            let all: Vec<String> = waiting.iter().take(8).cloned().collect();
            let wait = if waiting.len() == 1 {
                "claims it too, and gets nothing"
            } else {
                "claim it too, and get nothing"
            };
            sentence = format!("{sentence}; {} {wait}", words::list(&all));
        }
        let in_effect = self.programs.then(|| {
            self.engine
                .applied(&destination)
                .is_some_and(|applied| is_same(applied, forwarding))
        });
        if in_effect == Some(false) {
            sentence = format!("{sentence} (once the kernel has it: it is not programmed yet)");
        }
        let lines: Vec<EndpointLine> = case.lines(forwarding);
        let more_endpoints = lines.len().saturating_sub(MOST_ENDPOINTS);
        Some(Route {
            key: Some(destination),
            node_addresses,
            destination: destination.to_string(),
            kind: kind(service, destination).to_owned(),
            service: forwarding.label.as_str().to_owned(),
            lost_to: lost_to.map(|(_, winner)| winner),
            waiting,
            source: class.words().to_owned(),
            outcome,
            sentence,
            allowed_sources: match &forwarding.sources {
                Sources::Any | Sources::Prepared(_) => None,
                Sources::Only(networks) => Some(networks.iter().map(ToString::to_string).collect()),
            },
            masqueraded,
            hints: words::hints(&case.hints),
            affinity_seconds: service.affinity.map(|affinity| affinity.timeout_seconds),
            endpoints: lines.into_iter().take(MOST_ENDPOINTS).collect(),
            more_endpoints,
            in_effect,
            programmed: None,
            remembered: None,
            live_flows: None,
        })
    }

    /// The node's addresses at which a `NodePort` is its Service's, and nobody else has the port.
    fn at_node_addresses(&self, destination: Destination) -> Vec<IpAddr> {
        let Host::Node(family) = destination.host else {
            return Vec::new();
        };
        let accepted = accepted_node_port_addresses(self.state, self.node_ports).into_iter();
        let of_family = accepted.filter(|address| Family::of(*address) == family);
        of_family
            .filter(|address| self.other_at(*address, destination).is_none())
            .collect()
    }

    /// Who has an address with a `NodePort`'s number for a port.
    fn other_at(&self, address: IpAddr, node_port: Destination) -> Option<String> {
        let host = Host::Address(address);
        let claims = self.engine.claims_to(Destination { host, ..node_port });
        claims.first().map(|(owner, _)| self.name(*owner))
    }

    /// What is said of a `NodePort`, with who has the port at some of the node's addresses instead.
    fn with_others(&self, sentence: String, destination: Destination) -> String {
        let accepted = accepted_node_port_addresses(self.state, self.node_ports).into_iter();
        let of_family = accepted.filter(|address| Family::of(*address) == destination.family());
        let others: Vec<String> = of_family
            .filter_map(|address| {
                Some(format!(
                    "{} has {address}",
                    self.other_at(address, destination)?
                ))
            })
            .take(MOST_OTHERS)
            .collect();
        let here = self.at_node_addresses(destination);
        match (others.is_empty(), here.is_empty()) {
            (true, _) => sentence,
            (false, true) => format!("does not get here: {} with this port", words::list(&others)),
            (false, false) => format!("{sentence}; but {} with this port", words::list(&others)),
        }
    }

    fn class(&self, from: &From, is_cluster_ip: bool, family: Family) -> Class {
        let address = match from {
            From::Host => return Class::Host,
            From::Anyone if is_cluster_ip => return Class::Pod,
            From::Anyone => return Class::Outside,
            From::Address(address) => *address,
        };
        let is_of_the_node = || self.state.interface_addresses().any(|own| own == address);
        let is_pod = match self.detector.get(family) {
            LocalDetector::None => false,
            LocalDetector::Network(network) => network.contains(address),
            // What comes in by which interface is not to be seen from here: pods of this node do.
            LocalDetector::Interface(_) | LocalDetector::InterfacePrefix(_) => {
                let mut ranges = self.state.node().pod_cidrs.iter();
                !is_of_the_node() && ranges.any(|range| range.contains(address))
            }
        };
        if is_pod {
            Class::Pod
        } else if is_of_the_node() {
            Class::Host
        } else {
            Class::Outside
        }
    }

    fn masquerades(&self, case: &Case<'_>, family: Family) -> bool {
        match (case.policy, case.class) {
            (SourcePolicy::ClusterIp, _) if self.masquerade_all => true,
            (SourcePolicy::ClusterIp, class) => {
                *self.detector.get(family) != LocalDetector::None && class != Class::Pod
            }
            (SourcePolicy::External, _) => true,
            (SourcePolicy::ExternalLocal, class) => class == Class::Host,
        }
    }
}

/// The same but for the order of endpoints, which is the backend's.
fn is_same(applied: &Forwarding, wanted: &Forwarding) -> bool {
    let sorted = |forwarding: &Forwarding| {
        List::BOTH.map(|list| {
            let mut all: Vec<_> = forwarding
                .list(list)
                .into_iter()
                .flat_map(|list| list.iter())
                .collect();
            all.sort_unstable();
            all.into_iter().copied().collect::<Vec<_>>()
        })
    };
    applied.has_facts_of(wanted) && sorted(applied) == sorted(wanted)
}

/// The port of a Service that a destination is of.
fn port_at(service: &Service, destination: Destination) -> Option<&ServicePort> {
    service.ports.iter().find(|port| {
        let number = match destination.host {
            Host::Address(_) => port.port,
            Host::Node(_) => port.node_port,
        };
        port.protocol == destination.protocol && number == destination.port
    })
}

/// What a destination is to its Service.
fn kind(service: &Service, destination: Destination) -> &'static str {
    match destination.host {
        Host::Node(_) => "NodePort",
        Host::Address(address) => {
            let mut cluster_ips = service.cluster_ips.iter();
            if cluster_ips.any(|(_, ip)| *ip == Some(address)) {
                "ClusterIP"
            } else if service.vips.contains(&address) {
                "load balancer"
            } else {
                "external IP"
            }
        }
    }
}
