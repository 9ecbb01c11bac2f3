//! The cluster's objects as last seen, and which Services a change touches.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use rustc_hash::FxBuildHasher;

use super::{Algorithm, EndpointSlice, Name, Node, ObjectKey, Observed, Service};

/// A Service's short name inside this process. Never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceId(NonZeroU32);

impl ServiceId {
    /// The first one.
    pub const FIRST: Self = Self::nth(0);

    /// The one that is given after so many others.
    #[must_use]
    pub const fn nth(others: u32) -> Self {
        Self(NonZeroU32::MIN.saturating_add(others))
    }

    /// The one that is given after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.checked_add(1).unwrap_or(NonZeroU32::MIN))
    }
}

/// On whose behalf something is programmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Owner {
    /// Nobody's in particular: the node's and the cluster's own.
    Cluster,
    /// A Service's.
    Service(ServiceId),
}

impl Owner {
    /// The Service, if it is one.
    #[must_use]
    pub const fn service(self) -> Option<ServiceId> {
        match self {
            Self::Cluster => None,
            Self::Service(id) => Some(id),
        }
    }
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
    /// What this node has seen of a Service's endpoints, or that there is nothing to say any more.
    Observed(ObjectKey, Option<Box<Observed>>),
}

/// Whom changes have touched, and how.
#[derive(Debug)]
pub struct Dirty {
    /// Whom.
    pub owner: Owner,
    /// If only some of its slices have changed: their names, and what they were. `None` if more has
    /// changed, or nobody asked ([`State::track`]).
    pub slices: Option<ChangedSlices>,
}

/// The slices that have changed, by name, and what each was.
pub type ChangedSlices = BTreeMap<Name, Option<Box<EndpointSlice>>>;

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
    /// The same, each counted once for each port of its slice.
    port_endpoints: usize,
    /// How many of its slices have endpoints of different weights.
    weighted_slices: usize,
    /// What this node has seen of its endpoints.
    observed: Option<Box<Observed>>,
}

impl ServiceRecord {
    fn find(&self, slice: &Name) -> Result<usize, usize> {
        self.slices.binary_search_by(|(name, _)| name.cmp(slice))
    }

    const fn is_empty(&self) -> bool {
        self.service.is_none() && self.slices.is_empty()
    }

    fn count(&mut self, slice: &EndpointSlice) {
        self.endpoints += slice.endpoints.len();
        self.port_endpoints += slice.endpoints.len() * slice.ports.len();
        self.weighted_slices += usize::from(slice.endpoints.has_weights());
    }

    fn uncount(&mut self, slice: &EndpointSlice) {
        self.endpoints -= slice.endpoints.len();
        self.port_endpoints -= slice.endpoints.len() * slice.ports.len();
        self.weighted_slices -= usize::from(slice.endpoints.has_weights());
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

    /// The same with their names.
    pub fn named_slices(self) -> impl Iterator<Item = (&'a Name, &'a EndpointSlice)> {
        let slices = self.record.slices.iter();
        slices.map(|(name, slice)| (name, &**slice))
    }

    /// One of its slices.
    #[must_use]
    pub fn slice(self, name: &Name) -> Option<&'a EndpointSlice> {
        let place = self.record.find(name).ok()?;
        self.record.slices.get(place).map(|(_, slice)| &**slice)
    }

    /// What this node has seen of its endpoints.
    #[must_use]
    pub fn observed(self) -> Option<&'a Observed> {
        self.record.observed.as_deref()
    }

    /// Whether its endpoints are all alike: none weighs more, and which of them is next is left to
    /// chance or the order.
    #[must_use]
    pub fn is_plain(self) -> bool {
        matches!(
            self.service.algorithm,
            Algorithm::Random | Algorithm::RoundRobin
        ) && self.record.weighted_slices == 0
            && self.record.observed.is_none()
    }

    /// Whether its endpoints weigh differently.
    #[must_use]
    pub const fn is_weighted(self) -> bool {
        self.record.weighted_slices > 0
    }

    /// How many endpoints its slices have.
    #[must_use]
    pub const fn endpoints(self) -> usize {
        self.record.endpoints
    }

    /// How many that is, each counted once for each port of its slice.
    #[must_use]
    pub const fn port_endpoints(self) -> usize {
        self.record.port_endpoints
    }
}

/// The cluster's objects as last seen.
#[derive(Debug)]
pub struct State {
    ids: HashMap<ObjectKey, ServiceId, FxBuildHasher>,
    services: HashMap<ServiceId, Box<ServiceRecord>, FxBuildHasher>,
    /// Which Service each slice belongs to.
    slices: HashMap<ObjectKey, ServiceId, FxBuildHasher>,
    service_cidrs: BTreeMap<String, Vec<IpNetwork>>,
    interface_addresses: BTreeSet<IpAddr>,
    node: Node,
    /// With what is kept of the slices that have changed, if nothing else has.
    dirty: HashMap<Owner, Option<ChangedSlices>, FxBuildHasher>,
    next_id: ServiceId,
    /// All Services are among the dirty ones, whatever they did.
    all_dirty: bool,
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
            dirty: std::iter::once((Owner::Cluster, None)).collect(),
            next_id: ServiceId::FIRST,
            all_dirty: false,
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
                self.touch(Owner::Cluster);
            }
            Change::Observed(key, observed) => self.set_observed(&key, observed),
        }
    }

    /// More than slices has changed.
    fn touch(&mut self, owner: Owner) {
        self.dirty.insert(owner, None);
    }

    /// A slice has changed.
    fn touch_slice(&mut self, id: ServiceId, name: &Name, was: Option<Box<EndpointSlice>>) {
        if !self.services.get(&id).is_some_and(|record| record.tracked) {
            self.touch(Owner::Service(id));
            return;
        }
        let kept = self.dirty.entry(Owner::Service(id));
        if let Some(kept) = kept.or_insert_with(|| Some(ChangedSlices::new())) {
            // What it was first counts.
            kept.entry(Arc::clone(name)).or_insert(was);
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
        self.touch(Owner::Service(id));
        self.served = self.served + usize::from(now) - usize::from(before);
        self.forget_if_empty(id);
    }

    fn set_observed(&mut self, key: &ObjectKey, observed: Option<Box<Observed>>) {
        let Some(id) = self.ids.get(key).copied() else {
            return;
        };
        if let Some(record) = self.services.get_mut(&id)
            && record.observed != observed
        {
            record.observed = observed;
            self.touch(Owner::Service(id));
        }
    }

    fn set_slice(&mut self, key: ObjectKey, slice: Option<Box<EndpointSlice>>) {
        if let Some(id) = self.slices.get(&key).copied()
            && let Some(record) = self.services.get_mut(&id)
            && let Ok(place) = record.find(&key.name)
        {
            match slice {
                Some(slice) if slice.service == record.key => {
                    if record.slices[place].1 != slice {
                        record.count(&slice);
                        let was = std::mem::replace(&mut record.slices[place].1, slice);
                        record.uncount(&was);
                        self.touch_slice(id, &key.name, Some(was));
                    }
                    return;
                }
                // A relabelled slice leaves its old Service at once.
                _ => {
                    let (_, was) = record.slices.remove(place);
                    record.uncount(&was);
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
            record.count(&slice);
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
        self.touch(Owner::Cluster);
        if node.zone != self.node.zone || node.addresses != self.node.addresses {
            let all = self.services.keys().map(|id| (Owner::Service(*id), None));
            self.dirty.extend(all);
            self.all_dirty = true;
        }
        self.node = node;
    }

    fn set_service_cidr(&mut self, name: String, ranges: Option<Vec<IpNetwork>>) {
        match ranges {
            Some(ranges) => self.service_cidrs.insert(name, ranges),
            None => self.service_cidrs.remove(&name),
        };
        self.touch(Owner::Cluster);
    }

    fn record(&mut self, key: &ObjectKey) -> (ServiceId, &mut ServiceRecord) {
        let next_id = &mut self.next_id;
        let id = *self.ids.entry(key.clone()).or_insert_with(|| {
            let id = *next_id;
            *next_id = id.next();
            id
        });
        let record = self.services.entry(id).or_insert_with(|| {
            Box::new(ServiceRecord {
                key: key.clone(),
                tracked: false,
                service: None,
                slices: Vec::new(),
                endpoints: 0,
                port_endpoints: 0,
                weighted_slices: 0,
                observed: None,
            })
        });
        (id, record)
    }

    fn forget_if_empty(&mut self, id: ServiceId) {
        if self
            .services
            .get(&id)
            .is_some_and(|record| record.is_empty())
            && let Some(record) = self.services.remove(&id)
        {
            self.ids.remove(&record.key);
        }
    }

    /// Whom changes have touched since they were last taken.
    pub fn dirty(&self) -> impl Iterator<Item = Owner> {
        self.dirty.keys().copied()
    }

    /// Whom changes have touched since the last call, oldest name first.
    pub fn take_dirty(&mut self) -> Vec<Dirty> {
        // Of a first sync's room, for all that there is, nothing stays behind.
        Self::in_order(std::mem::take(&mut self.dirty).into_iter())
    }

    /// Those of them that are to be taken now; the others come with a later call.
    pub fn take_dirty_if(&mut self, mut now: impl FnMut(Owner) -> bool) -> Vec<Dirty> {
        Self::in_order(self.dirty.extract_if(|owner, _| now(*owner)))
    }

    fn in_order(dirty: impl Iterator<Item = (Owner, Option<ChangedSlices>)>) -> Vec<Dirty> {
        let mut dirty: Vec<Dirty> = dirty
            .map(|(owner, slices)| Dirty { owner, slices })
            .collect();
        dirty.sort_unstable_by_key(|dirty| dirty.owner);
        dirty
    }

    /// Whether all Services have been touched since the last call, through no doing of theirs.
    pub fn take_all_dirty(&mut self) -> bool {
        std::mem::take(&mut self.all_dirty)
    }

    /// Whether changes have touched somebody who has not been taken yet.
    #[must_use]
    pub fn is_dirty(&self, owner: Owner) -> bool {
        self.dirty.contains_key(&owner)
    }

    /// The id of a Service that is known, or of whose slices some are.
    #[must_use]
    pub fn id_of(&self, service: &ObjectKey) -> Option<ServiceId> {
        self.ids.get(service).copied()
    }

    /// The Service that a slice belongs to.
    #[must_use]
    pub fn owner_of(&self, slice: &ObjectKey) -> Option<ServiceId> {
        self.slices.get(slice).copied()
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
    #[cfg(any(test, feature = "internals"))]
    pub fn slices(&self, key: &ObjectKey) -> impl Iterator<Item = &EndpointSlice> {
        let record = self.ids.get(key).and_then(|id| self.services.get(id));
        let slices = record.into_iter().flat_map(|record| record.slices.iter());
        slices.map(|(_, slice)| &**slice)
    }

    /// All Services that a proxy serves, in no order.
    pub fn all_services(&self) -> impl Iterator<Item = (ServiceId, KnownService<'_>)> {
        let ids = self.services.keys();
        ids.filter_map(|id| Some((*id, self.service(*id)?)))
    }

    /// All slices and whose they are, in no order.
    pub fn all_slices(&self) -> impl Iterator<Item = (&ObjectKey, ServiceId)> {
        self.slices.iter().map(|(slice, id)| (slice, *id))
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
