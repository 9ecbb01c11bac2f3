//! Which slices serve which ports of a Service, and how many of its ports are compiled.
//!
//! Who writes a Service and its slices multiplies ports by endpoints; what that comes to is bounded
//! before anything is worked out for them.

use rustc_hash::{FxHashMap, FxHashSet};

use super::compiled::MOST_ELEMENTS;
use crate::core::model::{EndpointSlice, Family, Protocol, Service, ServicePort};
use crate::core::select::{ServingSlice, serving};

/// Up to so many ports a look at each is faster than a table.
const FEW_PORTS: usize = 8;

/// The slices of a Service, by the ports that they serve.
pub struct ByPort<'a> {
    slices: &'a [&'a EndpointSlice],
    index: Option<Index<'a>>,
}

type Index<'a> = FxHashMap<(Family, &'a str, Protocol), Vec<ServingSlice<'a>>>;

impl<'a> ByPort<'a> {
    /// The slices of one Service, in the order of their names.
    #[must_use]
    pub fn new(service: &Service, slices: &'a [&'a EndpointSlice]) -> Self {
        let many = service.ports.len() > FEW_PORTS;
        let index = many.then(|| {
            let mut index: Index<'_> = FxHashMap::default();
            for slice in slices {
                for port in &*slice.ports {
                    let of_port = (slice.family, &*port.name, port.protocol);
                    index.entry(of_port).or_default().push((slice, port.port));
                }
            }
            index
        });
        Self { slices, index }
    }

    /// Those that serve a port in a family.
    pub fn of<'s>(
        &'s self,
        family: Family,
        port: &'s ServicePort,
    ) -> impl Iterator<Item = ServingSlice<'a>> + 's {
        let indexed = self.index.as_ref().map(|index| {
            let of_port = index.get(&(family, &*port.name, port.protocol));
            of_port.into_iter().flatten().copied()
        });
        let searched = self.index.is_none().then(|| {
            let slices = self.slices.iter().copied();
            slices.flat_map(move |slice| serving(slice, family, &port.name, port.protocol))
        });
        let indexed = indexed.into_iter().flatten();
        indexed.chain(searched.into_iter().flatten())
    }

    /// How many of the served ports are compiled, in their order: as long as they and their
    /// endpoints are not more than [`MOST_ELEMENTS`].
    pub(super) fn within_bounds(&self, service: &Service) -> usize {
        // A port of a slice serves one port of the Service at most.
        let at_most = |slice: &&EndpointSlice| slice.ports.len() * slice.endpoints.len();
        if self.slices.iter().map(at_most).sum::<usize>() <= MOST_ELEMENTS {
            return usize::MAX;
        }
        let mut endpoints = 0usize;
        let within = |(family, port): &(Family, &ServicePort)| {
            let of_port = self.of(*family, port);
            endpoints += of_port
                .map(|(slice, _)| slice.endpoints.len())
                .sum::<usize>();
            endpoints <= MOST_ELEMENTS
        };
        served_ports(service).take_while(within).count()
    }
}

/// The ports of a Service in each family that it has. Of two ports with one name and protocol the
/// last counts (docs/semantics.md, B1).
pub fn served_ports(service: &Service) -> impl Iterator<Item = (Family, &ServicePort)> {
    let last: Option<FxHashMap<(&str, Protocol), usize>> =
        (service.ports.len() > FEW_PORTS).then(|| {
            let ports = service.ports.iter().enumerate();
            ports
                .map(|(index, port)| ((&*port.name, port.protocol), index))
                .collect()
        });
    let counts = move |index: usize, port: &ServicePort| match &last {
        Some(last) => last.get(&(&*port.name, port.protocol)) == Some(&index),
        None => !service.ports[index + 1..]
            .iter()
            .any(|other| other.name == port.name && other.protocol == port.protocol),
    };
    Family::BOTH
        .into_iter()
        .filter(|family| service.cluster_ips.get(*family).is_some())
        .flat_map(|family| {
            let ports = service.ports.iter().enumerate();
            ports.map(move |(index, port)| (family, index, port))
        })
        .filter(move |(_, index, port)| counts(*index, port))
        .map(|(family, _, port)| (family, port))
}

/// Whether a slice serves one of a Service's ports.
pub struct Serves<'a> {
    service: &'a Service,
    index: Option<FxHashSet<(&'a str, Protocol)>>,
}

impl<'a> Serves<'a> {
    /// For the ports of a Service.
    #[must_use]
    pub fn any_of(service: &'a Service) -> Self {
        let many = service.ports.len() > FEW_PORTS;
        let ports = service.ports.iter();
        let index = many.then(|| ports.map(|port| (&*port.name, port.protocol)).collect());
        Self { service, index }
    }

    /// Whether it does.
    #[must_use]
    pub fn is_served_by(&self, slice: &EndpointSlice) -> bool {
        slice.ports.iter().any(|known| match &self.index {
            Some(index) => index.contains(&(&*known.name, known.protocol)),
            None => {
                let mut ports = self.service.ports.iter();
                ports.any(|port| port.name == known.name && port.protocol == known.protocol)
            }
        })
    }
}
