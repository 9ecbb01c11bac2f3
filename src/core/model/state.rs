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
    key: ObjectKey,
    /// Its slices are kept as they were until the change has been taken.
    tracked: bool,
    service: Option<Box<Service>>,
    /// Its slices, in the order of their names so that compiling does not depend on arrival. They
    /// are of its namespace.
    slices: Vec<(Name, Box<EndpointSlice>)>,
    /// Endpoints in all of them.
    endpoints: usize,
}

impl ServiceRecord {
    fn find(&self, slice: &Name) -> Result<usize, usize> {
        self.slices.binary_search_by(|(name, _)| name.cmp(slice))
    }

    const fn is_empty(&self) -> bool {
        self.service.is_none() && self.slices.is_empty()
    }
}

/// A Service that a proxy serves, and what there is of it.
#[derive(Debug, Clone, Copy)]
pub struct KnownService<'a> {
    /// Its name.
    pub key: &'a ObjectKey,
    /// Itself.
    pub service: &'a Service,
    record: &'a ServiceRecord,
}

impl<'a> KnownService<'a> {
    /// Its slices, in the order of their names.
    pub fn slices(self) -> impl Iterator<Item = &'a EndpointSlice> {
        self.record.slices.iter().map(|(_, slice)| &**slice)
    }

    /// One of its slices.
    #[must_use]
    pub fn slice(self, name: &Name) -> Option<&'a EndpointSlice> {
        let place = self.record.find(name).ok()?;
        self.record.slices.get(place).map(|(_, slice)| &**slice)
    }

    /// How many endpoints its slices have.
    #[must_use]
    pub const fn endpoints(self) -> usize {
        self.record.endpoints
    }
}

/// The cluster's objects as last seen.
#[derive(Debug)]
pub struct State {
    ids: HashMap<ObjectKey, ServiceId, FxBuildHasher>,
    services: HashMap<ServiceId, ServiceRecord, FxBuildHasher>,
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
            ids: HashMap::default(),
            services: HashMap::default(),
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
        if !self.services.get(&id).is_some_and(|record| record.tracked) {
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

    /// From now on, [`Self::take_dirty`] says which slices of a Service have changed, or no longer.
    pub fn track(&mut self, id: ServiceId, tracked: bool) {
        if let Some(record) = self.services.get_mut(&id) {
            record.tracked = tracked;
        }
    }

    fn set_service(&mut self, key: &ObjectKey, service: Option<Box<Service>>) {
        if service.is_none() && !self.ids.contains_key(key) {
            return;
        }
        let (id, record) = self.record(key);
        if record.service == service {
            return;
        }
        let (before, now) = (record.service.is_some(), service.is_some());
        record.service = service;
        self.touch(id);
        self.served = self.served + usize::from(now) - usize::from(before);
        self.forget_if_empty(id);
    }

    fn set_slice(&mut self, key: ObjectKey, slice: Option<Box<EndpointSlice>>) {
        if let Some(id) = self.slices.get(&key).copied()
            && let Some(record) = self.services.get_mut(&id)
            && let Ok(place) = record.find(&key.name)
        {
            let known = &mut record.slices[place].1;
            let count = known.endpoints.len();
            match slice {
                Some(slice) if slice.service == record.key => {
                    if *known != slice {
                        record.endpoints = record.endpoints + slice.endpoints.len() - count;
                        let was = std::mem::replace(known, slice);
                        self.touch_slice(id, &key.name, Some(was));
                    }
                    return;
                }
                // A relabelled slice leaves its old Service at once.
                _ => {
                    let (_, was) = record.slices.remove(place);
                    record.endpoints -= count;
                    self.touch_slice(id, &key.name, Some(was));
                    self.slices.remove(&key);
                    self.forget_if_empty(id);
                }
            }
        }
        if let Some(slice) = slice {
            let (id, record) = self.record(&slice.service);
            let place = record.find(&key.name).unwrap_or_else(|place| place);
            // Most Services have one slice and will never have another.
            if record.slices.is_empty() {
                record.slices.reserve_exact(1);
            }
            record.endpoints += slice.endpoints.len();
            record.slices.insert(place, (Arc::clone(&key.name), slice));
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
            let all = self.services.keys().map(|id| (*id, None));
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

    fn record(&mut self, key: &ObjectKey) -> (ServiceId, &mut ServiceRecord) {
        let next_id = &mut self.next_id;
        let id = *self.ids.entry(key.clone()).or_insert_with(|| {
            let id = ServiceId(*next_id);
            *next_id = next_id.wrapping_add(1).max(1);
            id
        });
        let record = self.services.entry(id).or_insert_with(|| ServiceRecord {
            key: key.clone(),
            tracked: false,
            service: None,
            slices: Vec::new(),
            endpoints: 0,
        });
        (id, record)
    }

    fn forget_if_empty(&mut self, id: ServiceId) {
        if self.services.get(&id).is_some_and(ServiceRecord::is_empty)
            && let Some(record) = self.services.remove(&id)
        {
            self.ids.remove(&record.key);
        }
    }

    /// The Services touched since the last call, oldest name first.
    pub fn take_dirty(&mut self) -> Vec<Dirty> {
        let dirty = self.dirty.drain();
        let mut dirty: Vec<Dirty> = dirty.map(|(id, slices)| Dirty { id, slices }).collect();
        dirty.sort_unstable_by_key(|dirty| dirty.id);
        dirty
    }

    /// A Service, if it still exists.
    #[must_use]
    pub fn service(&self, id: ServiceId) -> Option<KnownService<'_>> {
        let record = self.services.get(&id)?;
        Some(KnownService {
            key: &record.key,
            service: record.service.as_deref()?,
            record,
        })
    }

    /// The name of a Service that has, or had, this id.
    #[must_use]
    pub fn name(&self, id: ServiceId) -> Option<&ObjectKey> {
        self.services.get(&id).map(|record| &record.key)
    }

    /// The slices of a Service, served or not, in the order of their names.
    pub fn slices(&self, key: &ObjectKey) -> impl Iterator<Item = &EndpointSlice> {
        let record = self.ids.get(key).and_then(|id| self.services.get(id));
        let slices = record.into_iter().flat_map(|record| record.slices.iter());
        slices.map(|(_, slice)| &**slice)
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
