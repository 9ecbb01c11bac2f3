//! From one Service and its endpoints to what packets must experience.
//!
//! Pure, and one Service at a time: its result depends on the Service, its slices and the node,
//! and on nothing else, so a change costs what its Service costs. Who owns a destination that
//! two Services claim is not decided here.

mod compiled;
mod draft;
mod ports;
mod spread;
mod unowned;

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use crate::core::ir::{
    Action, Destination, Draw, Forwarding, Host, Label, Shared, SourcePolicy, Sources,
};
use crate::core::model::{
    EndpointSlice, Endpoints, Family, KnownService, Name, Node, ObjectKey, Observed, PerFamily,
    Protocol, Service, ServicePort, SourceRanges,
};
use crate::core::networks;
use crate::core::select::{Selection, Uses, select};
use ipnetwork::IpNetwork;

use draft::{Claimed, Draft};
use spread::{Spread, spread};

pub use compiled::{Compiled, HealthCheck, MOST_ELEMENTS, WithoutLocal};
pub use ports::{ByPort, Serves, served_ports};
pub use unowned::{NodePortAddresses, accepted_node_port_addresses, compile_cluster};

/// Compiles one Service, with its slices in the order of their names, and what this node has seen of its
/// endpoints.
#[must_use]
pub fn compile(
    key: &ObjectKey,
    service: &Service,
    slices: &[&EndpointSlice],
    observed: Option<&Observed>,
    node: &Node,
) -> Compiled {
    let by_port = ByPort::new(service, slices);
    let most_ports = by_port.within_bounds(service);
    let select = |family, port: &ServicePort, uses| select(by_port.of(family, port), uses, node);
    let health_check = health_check(service, |family| {
        local_endpoints(service, slices, family).len()
    });
    compile_selected(
        key,
        service,
        observed,
        node,
        most_ports,
        select,
        health_check,
    )
}

/// Compiles one Service as it is known.
#[must_use]
pub fn compile_known(known: KnownService<'_>, node: &Node) -> Compiled {
    let slices: Vec<&EndpointSlice> = known.slices().collect();
    compile(known.key, known.service, &slices, known.observed(), node)
}

/// Compiles so many ports of one Service whose endpoints are selected already.
#[must_use]
pub fn compile_selected(
    key: &ObjectKey,
    service: &Service,
    observed: Option<&Observed>,
    node: &Node,
    most_ports: usize,
    mut select: impl FnMut(Family, &ServicePort, Uses) -> Selection,
    health_check: Option<HealthCheck>,
) -> Compiled {
    let mut draft = Draft::with_room_for(service);
    let allowed: PerFamily<OnceCell<Sources>> = PerFamily::default();
    for (index, (family, port)) in served_ports(service).enumerate() {
        let Some(cluster_ip) = *service.cluster_ips.get(family) else {
            continue;
        };
        let compiler = PortCompiler {
            key,
            service,
            family,
            port,
            observed,
            node,
            allowed: allowed.get(family),
        };
        if index >= most_ports || draft.is_full() {
            draft.leave_out(compiler.destinations());
            continue;
        }
        let selection = select(family, port, uses(service, family, port));
        compiler.compile(cluster_ip, &selection, &mut draft);
    }
    if !service.ports.is_empty() {
        let cluster_ips = service.cluster_ips.iter().filter_map(|(_, ip)| *ip);
        draft.shared.extend(cluster_ips.map(Shared::ClusterIp));
    }
    draft.shared.sort_unstable();
    draft.shared.dedup();
    draft
        .flows
        .sort_unstable_by_key(|(destination, _)| *destination);
    Compiled {
        created: service.created,
        key: Some(key.clone()),
        destinations: draft.destinations.into(),
        flows: draft.flows.into(),
        shared: draft.shared.into(),
        health_check: health_check.map(Box::new),
        without_local: draft.without_local,
        left_out: draft.left_out,
        all_drained: draft.all_drained,
    }
}

/// Which lists a Service port has a use for.
#[must_use]
pub fn uses(service: &Service, family: Family, port: &ServicePort) -> Uses {
    let external = service.externally_accessible(family, port);
    Uses {
        cluster: !service.internal_local || external,
        local: service.internal_local || (service.external_local && external),
        flows: port.protocol == Protocol::Udp,
    }
}

/// The addresses of ready endpoints on this node that serve one of a Service's ports.
fn local_endpoints(
    service: &Service,
    slices: &[&EndpointSlice],
    family: Family,
) -> BTreeSet<IpAddr> {
    let serves = Serves::any_of(service);
    slices
        .iter()
        .filter(|slice| slice.family == family && serves.is_served_by(slice))
        .flat_map(|slice| slice.endpoints.iter())
        .filter(|endpoint| endpoint.local && endpoint.ready)
        .map(|endpoint| endpoint.address)
        .collect()
}

/// A Service's health check, if it has one; `count` is how many endpoints are here in a family.
pub fn health_check(service: &Service, count: impl Fn(Family) -> usize) -> Option<HealthCheck> {
    if service.health_check_node_port == 0 {
        return None;
    }
    Some(HealthCheck {
        port: service.health_check_node_port,
        local_endpoints: PerFamily::from_fn(|family| {
            (*service.cluster_ips.get(family)).map(|_| count(family))
        }),
    })
}

/// One Service port in one family: kube-proxy's "service port" (docs/semantics.md, terms).
struct PortCompiler<'a> {
    key: &'a ObjectKey,
    service: &'a Service,
    family: Family,
    port: &'a ServicePort,
    observed: Option<&'a Observed>,
    node: &'a Node,
    /// The same for all ports: worked out for the first that asks.
    allowed: &'a OnceCell<Sources>,
}

impl PortCompiler<'_> {
    /// How many destinations it claims.
    fn destinations(&self) -> usize {
        let addresses = |list| in_family(list, self.family).count();
        let Service {
            vips, external_ips, ..
        } = self.service;
        1 + addresses(vips) + addresses(external_ips) + usize::from(self.port.node_port != 0)
    }

    fn compile(&self, cluster_ip: IpAddr, selection: &Selection, draft: &mut Draft) {
        let Self {
            service,
            family,
            port,
            ..
        } = *self;
        let external = service.externally_accessible(family, port);
        let uses = uses(service, family, port);
        if uses.local && selection.has_any && selection.local.is_empty() {
            let without = draft.without_local.get_mut(family);
            without.internal += u32::from(service.internal_local);
            without.external += u32::from(service.external_local && external);
        }
        if !draft.reserve(selection.on_this_node.len()) {
            draft.leave_out(self.destinations());
            return;
        }
        let spread = spread(service, port.protocol, selection, self.observed);
        draft.all_drained |= spread.all_drained;
        let mut claimer = Claimer {
            label: label(self.key, &port.name),
            port,
            selection,
            draft,
        };
        let host = Host::Address(cluster_ip);
        claimer.claim(host, self.internal_action(selection, &spread), Sources::Any);
        let mut vips = in_family(&service.vips, family).peekable();
        if vips.peek().is_some() {
            let allowed = self.allowed.get_or_init(|| self.allowed_sources());
            let action = self.external_action(selection, &spread);
            claimer.claim_all(vips, &action, allowed);
        }
        let external_ips = in_family(&service.external_ips, family);
        claimer.claim_all(
            external_ips,
            &self.external_action(selection, &spread),
            &Sources::Any,
        );
        if port.node_port != 0 {
            claimer.claim(
                Host::Node(family),
                self.external_action(selection, &spread),
                Sources::Any,
            );
        }
        let hairpins = selection.on_this_node.iter();
        draft
            .shared
            .extend(hairpins.map(|endpoint| Shared::Hairpin {
                protocol: port.protocol,
                endpoint: *endpoint,
            }));
    }

    fn internal_action(&self, selection: &Selection, spread: &Spread) -> Action {
        let list = if self.service.internal_local {
            &spread.local
        } else {
            &spread.cluster
        };
        self.action(selection, SourcePolicy::ClusterIp, spread.draw, list, None)
    }

    fn external_action(&self, selection: &Selection, spread: &Spread) -> Action {
        if self.service.external_local {
            self.action(
                selection,
                SourcePolicy::ExternalLocal,
                spread.draw,
                &spread.cluster,
                Some(&spread.local),
            )
        } else {
            let (policy, list) = (SourcePolicy::External, &spread.cluster);
            self.action(selection, policy, spread.draw, list, None)
        }
    }

    fn action(
        &self,
        selection: &Selection,
        policy: SourcePolicy,
        draw: Draw,
        primary: &Endpoints,
        external: Option<&Endpoints>,
    ) -> Action {
        if !selection.has_any {
            Action::Reject
        } else if primary.is_empty() {
            Action::Drop
        } else {
            Action::Balance {
                policy,
                primary: primary.clone(),
                external: external.cloned(),
                draw,
                affinity: self.service.affinity.map(|a| a.timeout_seconds),
            }
        }
    }

    /// Who may reach the VIPs. A range that holds the node's own address admits the VIPs as
    /// sources too: some balancers deliver with their own address (docs/semantics.md, E10).
    fn allowed_sources(&self) -> Sources {
        let SourceRanges::Only(ranges) = self.service.source_ranges.get(self.family) else {
            return Sources::Any;
        };
        let holds_node = self
            .node
            .primary_addresses()
            .get(self.family)
            .is_some_and(|address| ranges.iter().any(|range| range.contains(address)));
        if !holds_node && networks::is_merged(ranges) {
            return Sources::Only(Arc::clone(ranges));
        }
        if !holds_node {
            return Sources::Only(networks::merge(ranges.iter().copied()).into());
        }
        let vips = in_family(&self.service.vips, self.family).map(IpNetwork::from);
        Sources::Only(networks::merge(ranges.iter().copied().chain(vips)).into())
    }
}

/// Claims the destinations of one Service port.
struct Claimer<'a> {
    label: Label,
    port: &'a ServicePort,
    selection: &'a Selection,
    draft: &'a mut Draft,
}

impl Claimer<'_> {
    /// Claims one, if it fits. One Service may list an address twice, or have two ports that differ
    /// in name only: the first claim stands.
    fn claim(&mut self, host: Host, action: Action, sources: Sources) -> bool {
        let Self { port, draft, .. } = self;
        let destination = Destination {
            host,
            protocol: port.protocol,
            port: if matches!(host, Host::Node(_)) {
                port.node_port
            } else {
                port.port
            },
        };
        let forwarding = Forwarding {
            label: self.label.clone(),
            action,
            sources,
        };
        match draft.claim(destination, forwarding) {
            Claimed::Before => true,
            Claimed::TooMuch => {
                draft.leave_out(1);
                false
            }
            Claimed::Now => {
                if port.protocol == Protocol::Udp {
                    let serving = self.selection.serving.clone();
                    draft.flows.push((destination, serving));
                }
                true
            }
        }
    }

    /// Claims those of several addresses that fit: if one does not, its like do not either.
    fn claim_all(
        &mut self,
        mut addresses: impl Iterator<Item = IpAddr>,
        action: &Action,
        sources: &Sources,
    ) {
        while let Some(address) = addresses.next() {
            if !self.claim(Host::Address(address), action.clone(), sources.clone()) {
                self.draft.leave_out(addresses.count());
                return;
            }
        }
    }
}

fn in_family(addresses: &[IpAddr], family: Family) -> impl Iterator<Item = IpAddr> {
    addresses
        .iter()
        .copied()
        .filter(move |address| Family::of(*address) == family)
}

fn label(key: &ObjectKey, port_name: &Name) -> Label {
    let ObjectKey { namespace, name } = key;
    let colon = if port_name.is_empty() { "" } else { ":" };
    Label::new(&[namespace, "/", name, colon, port_name].concat())
}

#[cfg(test)]
mod tests;
