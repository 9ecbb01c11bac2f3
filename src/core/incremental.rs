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
    ChangedSlice, EndpointSlice, Endpoints, Family, KnownService, Name, Node, PerFamily, Protocol,
    Service, ServicePort,
};
use crate::core::select::{ServingSlice, Tracked, serving};

/// From how many endpoints on, in all its slices, a Service is compiled in this way: it takes a few
/// hundred bytes for each.
pub const MANY: usize = 128;

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
    pub const fn suits(known: KnownService<'_>) -> bool {
        known.endpoints() > MANY
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
        let ports = compile::served_ports(service).map(|(family, port)| {
            let of_port = (family, port.name.clone(), port.protocol);
            let serving = slices.iter().flat_map(|slice| of_port_in(slice, &of_port));
            let held = held_lists(service, family, port, &held);
            let uses = compile::uses(service, family, port);
            let tracked = Tracked::new(serving, uses, node, held);
            (of_port, tracked)
        });
        let mut incremental = Self {
            ports: ports.collect(),
            here: (service.health_check_node_port != 0).then(PerFamily::default),
        };
        for slice in slices {
            incremental.count_here(service, None, Some(slice));
        }
        incremental
    }

    /// Takes in what some slices were, now that they are what is known.
    pub fn change(&mut self, known: KnownService<'_>, changes: &[ChangedSlice]) {
        for (name, was) in changes {
            let (was, is) = (was.as_deref(), known.slice(name));
            for (port, tracked) in &mut self.ports {
                // One each, unless a slice lists a port twice.
                let mut before = was.into_iter().flat_map(|slice| of_port_in(slice, port));
                let mut now = is.into_iter().flat_map(|slice| of_port_in(slice, port));
                loop {
                    match (before.next(), now.next()) {
                        (None, None) => break,
                        (was, is) => tracked.change(was, is),
                    }
                }
            }
            self.count_here(known.service, was, is);
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
        compile::compile_selected(key, service, node, select, health_check)
    }

    fn count_here(
        &mut self,
        service: &Service,
        was: Option<&EndpointSlice>,
        is: Option<&EndpointSlice>,
    ) {
        let Some(here) = &mut self.here else {
            return;
        };
        for (slice, comes) in [(was, false), (is, true)] {
            let Some(slice) = slice.filter(|slice| compile::serves(service, slice)) else {
                continue;
            };
            let here = here.get_mut(slice.family);
            for endpoint in slice.endpoints.iter().filter(|e| e.local && e.ready) {
                let count = here.entry(endpoint.address).or_insert(0);
                if comes {
                    *count += 1;
                } else {
                    *count -= 1;
                    if *count == 0 {
                        here.remove(&endpoint.address);
                    }
                }
            }
        }
    }
}

fn of_port_in<'a>(
    slice: &'a EndpointSlice,
    (family, name, protocol): &PortKey,
) -> impl Iterator<Item = ServingSlice<'a>> {
    serving(slice, *family, name, *protocol)
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
