//! The cluster's objects as last seen, and which Services a change touches.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use rustc_hash::FxBuildHasher;

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

/// A Service that changes have touched, and how.
#[derive(Debug)]
pub struct Dirty {
    /// Which Service.
    pub id: ServiceId,
    /// If only some of its slices have changed: their names, and what they were. `None` if more has
    /// changed, or nobody asked ([`State::track`]).
    pub slices: Option<Vec<ChangedSlice>>,
}

/// A slice that has changed: its name, and what it was.
pub type ChangedSlice = (Name, Option<Box<EndpointSlice>>);

/// Everything known about one Service.
#[derive(Debug)]
struct ServiceRecord {
    id: ServiceId,
    /// Its slices are kept as they were until the change has been taken.
    tracked: bool,
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
    /// With what is kept of the slices that have changed, if nothing else has.
    dirty: HashMap<ServiceId, Option<Vec<ChangedSlice>>, FxBuildHasher>,
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
            dirty: std::iter::once((ServiceId::CLUSTER, None)).collect(),
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
                self.touch(ServiceId::CLUSTER);
            }
        }
    }

    /// More than slices has changed.
    fn touch(&mut self, id: ServiceId) {
        self.dirty.insert(id, None);
    }

    /// A slice has changed.
    fn touch_slice(&mut self, id: ServiceId, name: &Name, was: Option<Box<EndpointSlice>>) {
        let tracked = self
            .keys
            .get(&id)
            .and_then(|key| self.services.get(key))
            .is_some_and(|record| record.tracked);
        if !tracked {
            self.touch(id);
            return;
        }
        let kept = self.dirty.entry(id).or_insert_with(|| Some(Vec::new()));
        if let Some(kept) = kept
            && !kept.iter().any(|(known, _)| known == name)
        {
            kept.push((Arc::clone(name), was));
        }
    }

    /// From now on, [`Self::take_dirty`] says which slices of a Service have changed.
    pub fn track(&mut self, key: &ObjectKey, tracked: bool) {
        if let Some(record) = self.services.get_mut(key) {
            record.tracked = tracked;
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
        self.touch(id);
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
                        let was = std::mem::replace(known, slice);
                        let id = record.id;
                        self.touch_slice(id, &key.name, Some(was));
                    }
                    return;
                }
                // A relabelled slice leaves its old Service at once.
                _ => {
                    let (_, was) = record.slices.remove(place);
                    let id = record.id;
                    self.touch_slice(id, &key.name, Some(was));
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
            self.touch_slice(id, &key.name, None);
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
        self.touch(ServiceId::CLUSTER);
        if node.zone != self.node.zone || node.addresses != self.node.addresses {
            let all = self.services.values().map(|record| (record.id, None));
            self.dirty.extend(all);
        }
        self.node = node;
    }

    fn set_service_cidr(&mut self, name: String, ranges: Option<Vec<IpNetwork>>) {
        match ranges {
            Some(ranges) => self.service_cidrs.insert(name, ranges),
            None => self.service_cidrs.remove(&name),
        };
        self.touch(ServiceId::CLUSTER);
    }

    fn record(&mut self, key: &ObjectKey) -> &mut ServiceRecord {
        self.services.entry(key.clone()).or_insert_with(|| {
            let id = ServiceId(self.next_id);
            self.next_id = self.next_id.wrapping_add(1).max(1);
            self.keys.insert(id, key.clone());
            ServiceRecord {
                id,
                tracked: false,
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
    pub fn take_dirty(&mut self) -> Vec<Dirty> {
        let dirty = self.dirty.drain();
        let mut dirty: Vec<Dirty> = dirty.map(|(id, slices)| Dirty { id, slices }).collect();
        dirty.sort_unstable_by_key(|dirty| dirty.id);
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

    /// A slice of a Service.
    #[must_use]
    pub fn slice(&self, key: &ObjectKey, name: &Name) -> Option<&EndpointSlice> {
        let record = self.services.get(key)?;
        let (_, slice) = record.slices.get(record.find(name).ok()?)?;
        Some(slice)
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
