//! What becomes of connections to a destination that somebody has.

use std::net::IpAddr;

use rustc_hash::FxHashSet;

use super::asked::{EndpointLine, From, Outcome, Route};
use super::surroundings::Surroundings;
use super::words;
use crate::core::compile::accepted_node_port_addresses;
use crate::core::ir::{Action, Destination, Forwarding, Host, SourcePolicy, Sources};
use crate::core::model::{
    Family, KnownService, LocalDetector, Name, Owner, Service, ServiceId, ServicePort,
};
use crate::core::select::{Hints, Judged, Standing, judge, serving};

/// How many others are told that have a `NodePort`'s number.
const MOST_OTHERS: usize = 4;
/// How many endpoints are told.
const MOST_ENDPOINTS: usize = 200;

/// What a source counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Pod,
    Host,
    Outside,
}

impl Class {
    const fn words(self) -> &'static str {
        match self {
            Self::Pod => "a pod",
            Self::Host => "this node",
            Self::Outside => "outside",
        }
    }
}

/// A Service's port at a destination, and all that there is to say about it.
struct Case<'a> {
    service: &'a Service,
    known: KnownService<'a>,
    port: &'a ServicePort,
    class: Class,
    policy: SourcePolicy,
    judged: Vec<Judged>,
    hints: Hints,
    zone: Option<&'a Name>,
    /// The node's own addresses: what goes there leaves the node no more, and is not masqueraded.
    own: FxHashSet<IpAddr>,
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
        let (judged, hints) = judge(of_port, node);
        let policy = match (is_cluster_ip, service.external_local) {
            (true, _) => SourcePolicy::ClusterIp,
            (false, true) => SourcePolicy::ExternalLocal,
            (false, false) => SourcePolicy::External,
        };
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
        let lines: Vec<EndpointLine> = case.lines();
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
        crate::core::ir::List::BOTH.map(|list| {
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

impl Case<'_> {
    /// Every endpoint that takes connections has one of the node's own addresses.
    fn all_are_own(&self) -> bool {
        let mut used = self
            .judged
            .iter()
            .filter(|judged| self.standing(judged).is_used())
            .peekable();
        used.peek().is_some() && used.all(|judged| self.own.contains(&judged.endpoint.address))
    }

    /// Connections must stay on this node.
    const fn stays_here(&self) -> bool {
        match self.policy {
            SourcePolicy::ClusterIp => self.service.internal_local,
            SourcePolicy::External => false,
            SourcePolicy::ExternalLocal => matches!(self.class, Class::Outside),
        }
    }

    /// The policy's field, as the Service has it.
    const fn policy_field(&self) -> &'static str {
        match self.policy {
            SourcePolicy::ClusterIp => "internalTrafficPolicy",
            _ => "externalTrafficPolicy",
        }
    }

    const fn standing<'j>(&self, judged: &'j Judged) -> &'j Standing {
        if self.stays_here() {
            &judged.here
        } else {
            &judged.anywhere
        }
    }

    fn lines(&self) -> Vec<EndpointLine> {
        let mut lines: Vec<EndpointLine> = self
            .judged
            .iter()
            .map(|judged| {
                let standing = self.standing(judged);
                EndpointLine {
                    endpoint: judged.endpoint.to_string(),
                    used: standing.is_used(),
                    why: self.why(judged, standing),
                    on_this_node: judged.on_this_node,
                    live_flows: None,
                }
            })
            .collect();
        // Those that take connections first.
        lines.sort_by_key(|line| !line.used);
        for (name, slice) in self.other_slices() {
            let ports = slice.ports.iter();
            let ports = ports
                .map(|port| format!("{:?} ({})", &*port.name, port.protocol))
                .collect::<Vec<_>>();
            let has = if ports.is_empty() {
                "none".to_owned()
            } else {
                words::list(&ports)
            };
            lines.push(EndpointLine {
                endpoint: format!("EndpointSlice {name}"),
                used: false,
                why: format!(
                    "has no port named {:?} ({}): it has {has}",
                    &*self.port.name, self.port.protocol
                ),
                on_this_node: false,
                live_flows: None,
            });
        }
        lines
    }

    fn why(&self, judged: &Judged, standing: &Standing) -> String {
        let why = words::standing(standing, self.policy_field(), self.zone);
        if standing.is_used() && self.own.contains(&judged.endpoint.address) {
            return format!("{why}; it is this node's own address, where nothing is masqueraded");
        }
        why
    }

    /// Slices of the Service that this port has nothing of.
    fn other_slices(&self) -> impl Iterator<Item = (&Name, &crate::core::model::EndpointSlice)> {
        self.known.named_slices().filter(|(_, slice)| {
            let family = slice.family;
            self.service.cluster_ips.get(family).is_some()
                && serving(slice, family, &self.port.name, self.port.protocol)
                    .next()
                    .is_none()
        })
    }

    fn outcome(
        &self,
        from: &From,
        sources: &[IpAddr],
        forwarding: &Forwarding,
        masqueraded: bool,
    ) -> (Outcome, String) {
        let is_admitted = |networks: &[ipnetwork::IpNetwork]| match sources {
            [] => !networks.is_empty(),
            some => some
                .iter()
                .any(|source| networks.iter().any(|network| network.contains(*source))),
        };
        if let Sources::Only(networks) = &forwarding.sources
            && !is_admitted(networks)
        {
            let ranges: Vec<String> = networks.iter().take(8).map(ToString::to_string).collect();
            let ranges = if ranges.is_empty() {
                "nobody".to_owned()
            } else {
                ranges.join(", ")
            };
            return (
                Outcome::Dropped,
                format!(
                    "dropped: spec.loadBalancerSourceRanges admits {ranges}, and this source is none of them"
                ),
            );
        }
        let nobody_here = || {
            let elsewhere = self
                .judged
                .iter()
                .filter(|one| one.anywhere.is_used())
                .count();
            let field = self.policy_field();
            let elsewhere = words::count(
                elsewhere,
                "endpoint that serves is",
                "endpoints that serve are",
            );
            (
                Outcome::Dropped,
                format!(
                    "dropped: {field} is Local, and no endpoint is on this node ({elsewhere} elsewhere)"
                ),
            )
        };
        match &forwarding.action {
            Action::Reject => (Outcome::Refused, self.why_nobody()),
            Action::Drop => nobody_here(),
            Action::Balance { external, .. }
                if self.stays_here()
                    && self.policy == SourcePolicy::ExternalLocal
                    && external
                        .as_ref()
                        .is_some_and(|list| list.iter().next().is_none()) =>
            {
                nobody_here()
            }
            Action::Balance { .. } => (
                Outcome::Connects,
                self.where_to(from, forwarding, masqueraded),
            ),
        }
    }

    /// Why a Service has no endpoint that takes connections.
    fn why_nobody(&self) -> String {
        if !self.judged.is_empty() {
            let mut kinds: Vec<(usize, &str, &str)> = Vec::new();
            let count = |wanted: Standing| {
                let judged = self.judged.iter();
                judged.filter(|one| one.anywhere == wanted).count()
            };
            kinds.push((count(Standing::NotReady), "is not ready", "are not ready"));
            kinds.push((
                count(Standing::Gone),
                "is terminating and serves no longer",
                "are terminating and serve no longer",
            ));
            let kinds: Vec<String> = kinds
                .into_iter()
                .filter(|(number, ..)| *number > 0)
                .map(|(number, one, many)| words::count(number, one, many))
                .collect();
            return format!("refused: no endpoint is ready ({})", words::list(&kinds));
        }
        let family_is = |slice: &crate::core::model::EndpointSlice| {
            self.service.cluster_ips.get(slice.family).is_some()
        };
        let others: Vec<_> = self
            .other_slices()
            .filter(|(_, slice)| family_is(slice))
            .collect();
        let port = format!("{:?} ({})", &*self.port.name, self.port.protocol);
        if others.iter().any(|(_, slice)| slice.endpoints.len() > 0) {
            let mut names: Vec<String> = others
                .iter()
                .flat_map(|(_, slice)| slice.ports.iter())
                .map(|port| format!("{:?} ({})", &*port.name, port.protocol))
                .collect();
            names.sort_unstable();
            names.dedup();
            names.truncate(8);
            let has = if names.is_empty() {
                "none".to_owned()
            } else {
                words::list(&names)
            };
            return format!("refused: no EndpointSlice has a port named {port}: they have {has}");
        }
        if self.known.slices().next().is_none() {
            return format!(
                "refused: it has no EndpointSlice (label kubernetes.io/service-name={})",
                self.known.key.name
            );
        }
        "refused: it has no endpoints".to_owned()
    }

    fn where_to(&self, from: &From, forwarding: &Forwarding, masqueraded: bool) -> String {
        let used: Vec<&Judged> = self
            .judged
            .iter()
            .filter(|judged| self.standing(judged).is_used())
            .collect();
        let mut words = match used.as_slice() {
            [only] => format!(
                "goes to {}, the only endpoint that takes them",
                only.endpoint
            ),
            all => format!("goes to one of {} endpoints, each as likely", all.len()),
        };
        if used
            .iter()
            .any(|judged| *self.standing(judged) == Standing::Fallback)
        {
            words = format!("{words}; all of them are terminating, and none is ready");
        }
        if self.stays_here() {
            words = format!(
                "{words}; only those on this node count ({} is Local)",
                self.policy_field()
            );
        } else {
            match &self.hints {
                Hints::None => {}
                Hints::ThisNode => {
                    words.push_str("; only those that are hinted to this node count");
                }
                Hints::Zone(zone) => {
                    words = format!("{words}; only those that are hinted to zone {zone} count");
                }
                Hints::Ignored(why) => {
                    words = format!(
                        "{words}; topology hints are not followed, because {}",
                        words::not_followed(why)
                    );
                }
            }
        }
        let itself = used.iter().find(
            |judged| matches!(from, From::Address(address) if judged.endpoint.address == *address),
        );
        match itself {
            _ if masqueraded => words.push_str("; masqueraded"),
            Some(judged) if judged.on_this_node => {
                words.push_str("; masqueraded if it goes to itself");
            }
            Some(_) => words.push_str(
                "; it would not reach itself, because the EndpointSlice does not say that it is on this node",
            ),
            None => {}
        }
        if let Action::Balance {
            affinity: Some(seconds),
            ..
        } = &forwarding.action
        {
            words = format!(
                "{words}; it comes back to the same for {}",
                words::seconds(*seconds)
            );
        }
        if let (Sources::Only(networks), From::Anyone | From::Host) = (&forwarding.sources, from) {
            let networks: Vec<String> = networks.iter().take(4).map(ToString::to_string).collect();
            words = format!("{words}; only from {}", networks.join(", "));
        }
        words
    }
}
