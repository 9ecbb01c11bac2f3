//! Services with many endpoints, compiled by what changes in their slices.
//!
//! An endpoint that comes or goes then costs what it costs in a small Service, and not a look at all
//! the others. Which endpoints are selected is kept up in [`Tracked`] lists; what they are used for is
//! `compile`'s business, as for any Service. Pure.

use std::net::IpAddr;

use rustc_hash::FxHashMap;

use crate::core::compile::{self, Compiled};
use crate::core::ir::{Destination, Host, List};
use crate::core::model::{
    ChangedSlices, EndpointSlice, Endpoints, Family, KnownService, Name, Node, PerFamily, Protocol,
    Service, ServicePort, SlicePort,
};
use crate::core::select::Tracked;

/// From how many endpoints on, in all its slices, a Service is compiled in this way: it takes a few
/// hundred bytes for each.
pub const MANY: usize = 128;
/// Up to how many endpoints, counted once for each port: it takes a hundred megabytes for them.
pub const MOST: usize = 1 << 19;

/// One port of a Service in one family, by name.
type PortKey = (Family, Name, Protocol);

/// The endpoints of one Service.
#[derive(Debug)]
pub struct Incremental {
    ports: FxHashMap<PortKey, Tracked>,
    /// How many ready endpoints on this node there are at each address, if anybody asks.
    here: Option<PerFamily<FxHashMap<IpAddr, usize>>>,
}

impl Incremental {
    /// Whether a Service has so many endpoints that it is worth it.
    #[must_use]
    pub fn suits(known: KnownService<'_>) -> bool {
        known.is_plain() && known.endpoints() > MANY && known.port_endpoints() <= MOST
    }

    /// The endpoints as they are. Those that `held` says are on a list keep their places there.
    #[must_use]
    pub fn new<'h>(
        known: KnownService<'_>,
        node: &Node,
        held: impl Fn(Destination, List) -> Option<&'h Endpoints>,
    ) -> Self {
        let service = known.service;
        let slices: Vec<&EndpointSlice> = known.slices().collect();
        let by_port = compile::ByPort::new(service, &slices);
        let ports = compile::served_ports(service).map(|(family, port)| {
            let held = held_lists(service, family, port, &held);
            let uses = compile::uses(service, family, port);
            let tracked = Tracked::new(by_port.of(family, port), uses, node, held);
            ((family, port.name.clone(), port.protocol), tracked)
        });
        let mut incremental = Self {
            ports: ports.collect(),
            here: (service.health_check_node_port != 0).then(PerFamily::default),
        };
        if incremental.here.is_some() {
            let serves = compile::Serves::any_of(service);
            for slice in &slices {
                incremental.count_here(&serves, slice, true);
            }
        }
        incremental
    }

    /// Takes in what some slices were, now that they are what is known.
    pub fn change(&mut self, known: KnownService<'_>, changes: &ChangedSlices) {
        let counted = self.here.is_some();
        let serves = counted.then(|| compile::Serves::any_of(known.service));
        for (name, was) in changes {
            let (was, is) = (was.as_deref(), known.slice(name));
            self.change_slice(was, is);
            if let Some(serves) = &serves {
                for (slice, comes) in [(was, false), (is, true)] {
                    if let Some(slice) = slice {
                        self.count_here(serves, slice, comes);
                    }
                }
            }
        }
    }

    /// Takes in one slice. A port that is where it was is compared with itself, any other goes or
    /// comes as a whole.
    fn change_slice(&mut self, was: Option<&EndpointSlice>, is: Option<&EndpointSlice>) {
        let port = |slice: Option<&EndpointSlice>, index: usize| {
            let slice = slice?;
            let port = slice.ports.get(index)?;
            Some((slice.family, port.clone()))
        };
        let ports = |slice: Option<&EndpointSlice>| slice.map_or(0, |slice| slice.ports.len());
        for index in 0..ports(was).max(ports(is)) {
            let (before, now) = (port(was, index), port(is, index));
            if before == now {
                self.change_port(before, was, is);
            } else {
                self.change_port(before, was, None);
                self.change_port(now, None, is);
            }
        }
    }

    fn change_port(
        &mut self,
        port: Option<(Family, SlicePort)>,
        was: Option<&EndpointSlice>,
        is: Option<&EndpointSlice>,
    ) {
        let Some((family, port)) = port else { return };
        if let Some(tracked) = self.ports.get_mut(&(family, port.name, port.protocol)) {
            let serving = |slice: Option<_>| slice.map(|slice| (slice, port.port));
            tracked.change(serving(was), serving(is));
        }
    }

    /// The Service, compiled.
    #[must_use]
    pub fn compile(&self, known: KnownService<'_>, node: &Node) -> Compiled {
        let KnownService { key, service, .. } = known;
        let select = |family, port: &ServicePort, _| {
            let tracked = self.ports.get(&(family, port.name.clone(), port.protocol));
            tracked.map(Tracked::selection).unwrap_or_default()
        };
        let health_check = compile::health_check(service, |family| {
            self.here.as_ref().map_or(0, |here| here.get(family).len())
        });
        compile::compile_selected(key, service, None, node, usize::MAX, select, health_check)
    }

    fn count_here(&mut self, serves: &compile::Serves<'_>, slice: &EndpointSlice, comes: bool) {
        let Some(here) = &mut self.here else {
            return;
        };
        if !serves.is_served_by(slice) {
            return;
        }
        let here = here.get_mut(slice.family);
        for endpoint in slice.endpoints.iter().filter(|e| e.local && e.ready) {
            let count = here.entry(endpoint.address).or_insert(0);
            if comes {
                *count += 1;
            } else {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    here.remove(&endpoint.address);
                }
            }
        }
    }
}

/// What is held of the lists of a Service port: that of the whole cluster, and that of this node.
fn held_lists<'h>(
    service: &Service,
    family: Family,
    port: &ServicePort,
    held: impl Fn(Destination, List) -> Option<&'h Endpoints>,
) -> [Option<&'h Endpoints>; 2] {
    let destination = |host, port: u16, protocol| Destination {
        host,
        protocol,
        port,
    };
    let inside = service
        .cluster_ips
        .get(family)
        .map(|address| destination(Host::Address(address), port.port, port.protocol));
    let outside = service.vips.iter().chain(&service.external_ips);
    let outside = outside
        .filter(|address| Family::of(**address) == family)
        .map(|address| destination(Host::Address(*address), port.port, port.protocol))
        .next();
    let outside = outside.or_else(|| {
        (port.node_port != 0)
            .then(|| destination(Host::Node(family), port.node_port, port.protocol))
    });
    let list = |destination: Option<Destination>, list| held(destination?, list);
    let primary = list(inside, List::Primary);
    if service.internal_local {
        [list(outside, List::Primary), primary]
    } else {
        let local = list(outside, List::External);
        [primary.or_else(|| list(outside, List::Primary)), local]
    }
}

#[cfg(test)]
#[path = "incremental_tests.rs"]
mod tests;
