//! One Service port at one destination, for one source: what becomes of a connection, and how that is said.

use std::net::IpAddr;

use rustc_hash::FxHashSet;

use super::asked::{EndpointLine, From, Outcome};
use super::words;
use crate::core::ir::{Action, Draw, Forwarding, List, SourcePolicy, Sources};
use crate::core::model::{EndpointSlice, Endpoints, KnownService, Name, Service, ServicePort};
use crate::core::select::{Hints, Judged, Standing, serving};

/// What a source counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Pod,
    Host,
    Outside,
}

impl Class {
    pub(super) const fn words(self) -> &'static str {
        match self {
            Self::Pod => "a pod",
            Self::Host => "this node",
            Self::Outside => "outside",
        }
    }
}

/// A Service's port at a destination, and all that there is to say about it.
pub(super) struct Case<'a> {
    pub(super) service: &'a Service,
    pub(super) known: KnownService<'a>,
    pub(super) port: &'a ServicePort,
    pub(super) class: Class,
    pub(super) policy: SourcePolicy,
    pub(super) judged: Vec<Judged>,
    pub(super) hints: Hints,
    pub(super) zone: Option<&'a Name>,
    /// The node's own addresses: what goes there leaves the node no more, and is not masqueraded.
    pub(super) own: FxHashSet<IpAddr>,
}

impl Case<'_> {
    /// Every endpoint that takes connections has one of the node's own addresses.
    pub(super) fn all_are_own(&self) -> bool {
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

    pub(super) fn lines(&self, forwarding: &Forwarding) -> Vec<EndpointLine> {
        let mut lines: Vec<EndpointLine> = self
            .judged
            .iter()
            .map(|judged| {
                let standing = self.standing(judged);
                EndpointLine {
                    endpoint: judged.endpoint.to_string(),
                    used: standing.is_used(),
                    why: self.why(judged, standing, forwarding),
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

    fn why(&self, judged: &Judged, standing: &Standing, forwarding: &Forwarding) -> String {
        let mut why = words::standing(standing, self.policy_field(), self.zone);
        if standing.is_used() && forwarding.draw().is_some_and(Draw::repeats) {
            let external = self.policy == SourcePolicy::ExternalLocal && self.stays_here();
            let list = if external {
                List::External
            } else {
                List::Primary
            };
            let list = forwarding.list(list).into_iter().flat_map(Endpoints::iter);
            let of = list.clone().count();
            let places = list.filter(|one| **one == judged.endpoint).count();
            why = format!("{why}, at {places} of {of} places");
        }
        if standing.is_used() && self.own.contains(&judged.endpoint.address) {
            return format!("{why}; it is this node's own address, where nothing is masqueraded");
        }
        why
    }

    /// Slices of the Service that this port has nothing of.
    fn other_slices(&self) -> impl Iterator<Item = (&Name, &EndpointSlice)> {
        self.known.named_slices().filter(|(_, slice)| {
            let family = slice.family;
            self.service.cluster_ips.get(family).is_some()
                && serving(slice, family, &self.port.name, self.port.protocol)
                    .next()
                    .is_none()
        })
    }

    pub(super) fn outcome(
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
        let family_is =
            |slice: &EndpointSlice| self.service.cluster_ips.get(slice.family).is_some();
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
            all => {
                let draw = forwarding.draw().unwrap_or_default();
                format!(
                    "goes to one of {} endpoints, {}",
                    all.len(),
                    words::drawn(draw)
                )
            }
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
