//! What becomes of a destination that nobody has, and what is near.

use std::net::IpAddr;

use super::asked::{Explanation, From};
use super::surroundings::Surroundings;
use super::words::{self, NEAREST};
use crate::core::compile::accepted_node_port_addresses;
use crate::core::ir::{Destination, Host, Shared};
use crate::core::model::{Family, KnownService, ObjectKey, Owner, Protocol};

impl Surroundings<'_> {
    pub(super) fn nobody(
        &self,
        address: IpAddr,
        port: u16,
        protocol: Option<Protocol>,
        from: &From,
    ) -> Explanation {
        let at = words::at(address, port);
        let protocol = protocol.map_or_else(
            || "any protocol".to_owned(),
            |protocol| protocol.to_string(),
        );
        let near = self.ports_of(address);
        let is_forwarded = !matches!(from, From::Host);
        let is_local = self.state.interface_addresses().any(|own| own == address);
        let headline = if self.engine.states(&Shared::ClusterIp(address)) {
            if is_local && is_forwarded {
                format!(
                    "{at} ({protocol}): left alone: the address is a ClusterIP and this node's own"
                )
            } else {
                format!(
                    "{at} ({protocol}): refused: the address is a ClusterIP, and its Service has no such port"
                )
            }
        } else if let Some(range) =
            self.engine
                .wanted_shared()
                .iter()
                .find_map(|shared| match shared {
                    Shared::ServiceCidr(range) if range.contains(address) => Some(*range),
                    _ => None,
                })
        {
            format!(
                "{at} ({protocol}): dropped: no Service has the address, which is of ServiceCIDR {range}"
            )
        } else if let Some(services) = self.services_with_endpoint(address) {
            format!(
                "{at} ({protocol}): left alone: no Service has it; it is an endpoint of {}, and reached directly",
                words::list(&services)
            )
        } else if let Some(name) = self.left_out_at(address) {
            format!(
                "{at} ({protocol}): left alone: {name} claims the address and is too large: some of its destinations are left out"
            )
        } else if self.node_port_owner(address, port) {
            let accepted = accepted_node_port_addresses(self.state, self.node_ports);
            let accepted: Vec<String> = accepted.iter().take(8).map(ToString::to_string).collect();
            format!(
                "{at} ({protocol}): left alone: the port is a NodePort, and {address} is none of the addresses that \
                 accept them ({}; nodePortAddresses)",
                accepted.join(", ")
            )
        } else {
            format!("{at} ({protocol}): left alone: no Service has it")
        };
        let mut notes = Vec::new();
        if !near.is_empty() {
            notes.push(format!("at this address: {}", near.join(", ")));
        }
        let same_port = self.same_port(address, port);
        if near.is_empty() && !same_port.is_empty() {
            notes.push(format!("with this port: {}", same_port.join(", ")));
        }
        Explanation::unknown(headline, notes)
    }

    pub(super) fn no_node_port(&self, port: u16, protocol: Option<Protocol>) -> Explanation {
        let protocol = protocol.map_or_else(
            || "any protocol".to_owned(),
            |protocol| protocol.to_string(),
        );
        let mut near: Vec<Destination> = self
            .engine
            .claimed_destinations()
            .filter(|destination| matches!(destination.host, Host::Node(_)))
            .collect();
        near.sort_by_key(|destination| (destination.port.abs_diff(port), *destination));
        let near = near
            .into_iter()
            .take(NEAREST)
            .map(|destination| self.with_owner(destination));
        let near: Vec<String> = near.collect();
        let wanted = |known: &KnownService<'_>| {
            known
                .service
                .ports
                .iter()
                .any(|candidate| candidate.node_port == port)
        };
        let left_out = self
            .left_out
            .keys()
            .filter_map(|id| self.state.service(*id))
            .find(wanted);
        if let Some(known) = left_out {
            let name = known.key;
            return Explanation::unknown(
                format!(
                    "NodePort {port} ({protocol}): left alone: {name} has it and is too large: some of its destinations are left out"
                ),
                Vec::new(),
            );
        }
        let notes = match near.as_slice() {
            [] => vec!["no Service has a NodePort".to_owned()],
            near => vec![format!("near: {}", near.join(", "))],
        };
        let in_other = self.engine.claimed_destinations().find(|destination| {
            matches!(destination.host, Host::Node(_)) && destination.port == port
        });
        let who = match in_other {
            Some(other) => format!(
                "only {} has it, of the other IP family",
                self.with_owner(other)
            ),
            None => "no Service has it".to_owned(),
        };
        Explanation::unknown(
            format!("NodePort {port} ({protocol}): left alone: {who}"),
            notes,
        )
    }

    pub(super) fn no_service(&self, name: &ObjectKey) -> Explanation {
        let has_slices = self.state.id_of(name).is_some();
        let mut notes = Vec::new();
        if has_slices {
            notes.push(
                "there are EndpointSlices of that name; the Service is headless, of type ExternalName, labelled for \
                 another proxy, or gone"
                    .to_owned(),
            );
        }
        let wanted = name.to_string();
        let mut near: Vec<(usize, String)> = self
            .state
            .all_services()
            .map(|(_, known)| {
                let candidate = known.key.to_string();
                let is_elsewhere = known.key.name == name.name;
                let distance = if is_elsewhere {
                    1
                } else {
                    strsim::levenshtein(&candidate, &wanted)
                };
                (distance, candidate)
            })
            .collect();
        near.sort_unstable();
        let most = wanted.len() / 2 + 1;
        let near: Vec<String> = near
            .into_iter()
            .filter(|(distance, _)| *distance <= most)
            .take(NEAREST)
            .map(|(_, name)| name)
            .collect();
        if !near.is_empty() {
            notes.push(format!("near: {}", near.join(", ")));
        }
        Explanation::unknown(
            format!("{name}: there is no such Service that a proxy serves"),
            notes,
        )
    }

    pub(super) fn no_such_port(
        &self,
        known: KnownService<'_>,
        port: Option<&str>,
        protocol: Option<Protocol>,
        from: &From,
    ) -> Explanation {
        let ports: Vec<String> = known
            .service
            .ports
            .iter()
            .map(|port| {
                let name = if port.name.is_empty() {
                    String::new()
                } else {
                    format!(" ({})", port.name)
                };
                format!("{}/{}{name}", port.port, port.protocol)
            })
            .collect();
        let asked = match (port, protocol) {
            (None, None) => String::new(),
            (port, protocol) => format!(
                " {}{}",
                port.unwrap_or("any"),
                protocol.map_or_else(String::new, |protocol| format!("/{protocol}"))
            ),
        };
        let families: Vec<&str> = Family::BOTH
            .into_iter()
            .filter(|family| known.service.cluster_ips.get(*family).is_some())
            .map(Family::name)
            .collect();
        let why = match from {
            From::Address(address)
                if known
                    .service
                    .cluster_ips
                    .get(Family::of(*address))
                    .is_none() =>
            {
                format!(
                    "has no {} addresses, only {}",
                    Family::of(*address).name(),
                    families.join(" and ")
                )
            }
            _ if ports.is_empty() => "has no ports".to_owned(),
            _ => format!("has no port{asked}"),
        };
        let notes = if ports.is_empty() {
            Vec::new()
        } else {
            vec![format!("its ports: {}", ports.join(", "))]
        };
        Explanation::unknown(format!("{} {why}", known.key), notes)
    }

    /// What there is at an address.
    fn ports_of(&self, address: IpAddr) -> Vec<String> {
        let host = Host::Address(address);
        let mut there: Vec<Destination> = self
            .engine
            .claimed_destinations()
            .filter(|destination| destination.host == host)
            .collect();
        there.sort_unstable();
        let there = there.into_iter().take(NEAREST);
        there
            .map(|destination| self.with_owner(destination))
            .collect()
    }

    /// What there is with a port, at another address of the family.
    fn same_port(&self, address: IpAddr, port: u16) -> Vec<String> {
        let family = Family::of(address);
        let mut there: Vec<Destination> = self
            .engine
            .claimed_destinations()
            .filter(|destination| destination.port == port && destination.family() == family)
            .collect();
        let distance = |destination: &Destination| match (destination.host, address) {
            (Host::Address(IpAddr::V4(one)), IpAddr::V4(other)) => {
                u128::from(one.to_bits() ^ other.to_bits())
            }
            (Host::Address(IpAddr::V6(one)), IpAddr::V6(other)) => one.to_bits() ^ other.to_bits(),
            _ => u128::MAX,
        };
        there.sort_by_key(|destination| (distance(destination), *destination));
        let there = there.into_iter().take(NEAREST);
        there
            .map(|destination| self.with_owner(destination))
            .collect()
    }

    fn with_owner(&self, destination: Destination) -> String {
        let claims = self.engine.claims_to(destination);
        let owner = claims.first().map_or(Owner::Cluster, |(owner, _)| *owner);
        format!("{destination} ({})", self.name(owner))
    }

    /// Whose endpoint an address is, if it is one.
    fn services_with_endpoint(&self, address: IpAddr) -> Option<Vec<String>> {
        let mut names: Vec<String> = self
            .state
            .all_services()
            .filter(|(_, known)| {
                let mut slices = known.slices();
                slices.any(|slice| {
                    slice
                        .endpoints
                        .iter()
                        .any(|endpoint| endpoint.address == address)
                })
            })
            .map(|(_, known)| known.key.to_string())
            .collect();
        names.sort_unstable();
        names.truncate(NEAREST);
        (!names.is_empty()).then_some(names)
    }

    /// A Service that is too large to have all of its destinations, and claims an address.
    fn left_out_at(&self, address: IpAddr) -> Option<String> {
        let known = self
            .left_out
            .keys()
            .filter_map(|id| self.state.service(*id));
        let mut claiming = known.filter(|known| {
            known.service.vips.contains(&address) || known.service.external_ips.contains(&address)
        });
        claiming.next().map(|known| known.key.to_string())
    }

    /// Whether a port is a `NodePort`, and the address this node's.
    fn node_port_owner(&self, address: IpAddr, port: u16) -> bool {
        let family = Family::of(address);
        let is_own =
            address.is_loopback() || self.state.interface_addresses().any(|own| own == address);
        is_own
            && [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
                .into_iter()
                .any(|protocol| self.owned(Host::Node(family), port, protocol).is_some())
    }
}
