//! The cluster's objects as last seen, and which Services a change touches.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use rustc_hash::{FxBuildHasher, FxHashSet};

use super::{EndpointSlice, Name, Node, ObjectKey, Service};

/// A Service's short name inside this process. Never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceId(pub u32);

impl ServiceId {
    /// The owner of what belongs to no Service: the node's and the cluster's own entries.
    pub const CLUSTER: Self = Self(0);
}

/// Something that happened in the cluster.
#[derive(Debug, Clone)]
pub enum Change {
    /// A Service as it is now, or that it is gone.
    Service(ObjectKey, Option<Box<Service>>),
    /// An `EndpointSlice` as it is now, or that it is gone.
    EndpointSlice(ObjectKey, Option<Box<EndpointSlice>>),
    /// This Node as it is now, or that it is gone.
    Node(Option<Box<Node>>),
    /// A `ServiceCIDR`'s ranges as they are now, or that it is gone.
    ServiceCidr(String, Option<Vec<IpNetwork>>),
    /// The addresses of the node's interfaces as they are now, loopback included.
    InterfaceAddresses(Vec<IpAddr>),
}

/// Everything known about one Service.
#[derive(Debug)]
struct ServiceRecord {
    id: ServiceId,
    service: Option<Box<Service>>,
    /// Its slices, in the order of their names so that compiling does not depend on arrival. They
    /// are of its namespace.
    slices: Vec<(Name, Box<EndpointSlice>)>,
}

impl ServiceRecord {
    fn find(&self, slice: &Name) -> Result<usize, usize> {
        self.slices.binary_search_by(|(name, _)| name.cmp(slice))
    }
}

/// The cluster's objects as last seen.
#[derive(Debug)]
pub struct State {
    services: HashMap<ObjectKey, ServiceRecord, FxBuildHasher>,
    keys: HashMap<ServiceId, ObjectKey, FxBuildHasher>,
    /// Which Service each slice belongs to.
    slices: HashMap<ObjectKey, ServiceId, FxBuildHasher>,
    service_cidrs: BTreeMap<String, Vec<IpNetwork>>,
    interface_addresses: BTreeSet<IpAddr>,
    node: Node,
    dirty: FxHashSet<ServiceId>,
    next_id: u32,
    /// How many Services a proxy serves.
    served: usize,
}

impl State {
    /// An empty cluster around a node.
    #[must_use]
    pub fn new(node: Node) -> Self {
        Self {
            services: HashMap::default(),
            keys: HashMap::default(),
            slices: HashMap::default(),
            service_cidrs: BTreeMap::new(),
            interface_addresses: BTreeSet::new(),
            node,
            dirty: std::iter::once(ServiceId::CLUSTER).collect(),
            next_id: 1,
            served: 0,
        }
    }

    /// Takes in one change and notes which Services it touches.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Service(key, service) => self.set_service(&key, service),
            Change::EndpointSlice(key, slice) => self.set_slice(key, slice),
            Change::Node(node) => self.set_node(node.map(|n| *n)),
            Change::ServiceCidr(name, ranges) => self.set_service_cidr(name, ranges),
            Change::InterfaceAddresses(addresses) => {
                self.interface_addresses = addresses.into_iter().collect();
                self.dirty.insert(ServiceId::CLUSTER);
            }
        }
    }

    fn set_service(&mut self, key: &ObjectKey, service: Option<Box<Service>>) {
        if service.is_none() && !self.services.contains_key(key) {
            return;
        }
        let record = self.record(key);
        if record.service == service {
            return;
        }
        let (before, now) = (record.service.is_some(), service.is_some());
        record.service = service;
        let id = record.id;
        self.dirty.insert(id);
        self.served = self.served + usize::from(now) - usize::from(before);
        self.forget_if_empty(key);
    }

    fn set_slice(&mut self, key: ObjectKey, slice: Option<Box<EndpointSlice>>) {
        let owner = self.slices.get(&key).and_then(|id| self.keys.get(id));
        if let Some(owner) = owner.cloned()
            && let Some(record) = self.services.get_mut(&owner)
            && let Ok(place) = record.find(&key.name)
        {
            let known = &mut record.slices[place].1;
            match slice {
                Some(slice) if slice.service == owner => {
                    if *known != slice {
                        *known = slice;
                        self.dirty.insert(record.id);
                    }
                    return;
                }
                // A relabelled slice leaves its old Service at once.
                _ => {
                    record.slices.remove(place);
                    self.dirty.insert(record.id);
                    self.slices.remove(&key);
                    self.forget_if_empty(&owner);
                }
            }
        }
        if let Some(slice) = slice {
            let record = self.record(&slice.service);
            let place = record.find(&key.name).unwrap_or_else(|place| place);
            // Most Services have one slice and will never have another.
            if record.slices.is_empty() {
                record.slices.reserve_exact(1);
            }
            record.slices.insert(place, (Arc::clone(&key.name), slice));
            let id = record.id;
            self.dirty.insert(id);
            self.slices.insert(key, id);
        }
    }

    fn set_node(&mut self, node: Option<Node>) {
        // A deleted Node leaves its last zone and addresses in force.
        let Some(node) = node else {
            self.node.eligible = false;
            return;
        };
        if node == self.node {
            return;
        }
        self.dirty.insert(ServiceId::CLUSTER);
        if node.zone != self.node.zone || node.addresses != self.node.addresses {
            self.dirty
                .extend(self.services.values().map(|record| record.id));
        }
        self.node = node;
    }

    fn set_service_cidr(&mut self, name: String, ranges: Option<Vec<IpNetwork>>) {
        match ranges {
            Some(ranges) => self.service_cidrs.insert(name, ranges),
            None => self.service_cidrs.remove(&name),
        };
        self.dirty.insert(ServiceId::CLUSTER);
    }

    fn record(&mut self, key: &ObjectKey) -> &mut ServiceRecord {
        self.services.entry(key.clone()).or_insert_with(|| {
            let id = ServiceId(self.next_id);
            self.next_id = self.next_id.wrapping_add(1).max(1);
            self.keys.insert(id, key.clone());
            ServiceRecord {
                id,
                service: None,
                slices: Vec::new(),
            }
        })
    }

    fn forget_if_empty(&mut self, key: &ObjectKey) {
        if let Some(record) = self.services.get(key)
            && record.service.is_none()
            && record.slices.is_empty()
        {
            self.keys.remove(&record.id);
            self.services.remove(key);
        }
    }

    /// The Services touched since the last call, oldest name first.
    pub fn take_dirty(&mut self) -> Vec<ServiceId> {
        let mut dirty: Vec<_> = self.dirty.drain().collect();
        dirty.sort_unstable();
        dirty
    }

    /// A Service and its name, if it still exists.
    #[must_use]
    pub fn service(&self, id: ServiceId) -> Option<(&ObjectKey, &Service)> {
        let key = self.keys.get(&id)?;
        Some((key, self.services.get(key)?.service.as_deref()?))
    }

    /// The name of a Service that has, or had, this id.
    #[must_use]
    pub fn name(&self, id: ServiceId) -> Option<&ObjectKey> {
        self.keys.get(&id)
    }

    /// The slices of a Service, in the order of their names.
    pub fn slices(&self, key: &ObjectKey) -> impl Iterator<Item = &EndpointSlice> {
        self.services
            .get(key)
            .into_iter()
            .flat_map(|record| record.slices.iter())
            .map(|(_, slice)| &**slice)
    }

    /// This node.
    #[must_use]
    pub const fn node(&self) -> &Node {
        &self.node
    }

    /// The ranges of all `ServiceCIDR`s, as their objects list them.
    pub fn service_cidrs(&self) -> impl Iterator<Item = IpNetwork> {
        self.service_cidrs.values().flatten().copied()
    }

    /// The addresses of the node's interfaces.
    pub fn interface_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.interface_addresses.iter().copied()
    }

    /// Number of Services that a proxy serves.
    #[must_use]
    pub const fn service_count(&self) -> usize {
        self.served
    }
}
