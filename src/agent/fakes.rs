//! Backends in memory for tests, which refuse what they are told to refuse: one holds facts, as
//! nftables does, the other what each destination does as a whole, as a backend of chains would.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;

use crate::core::ir::{Delta, Destination, Entry, Forwarding, Operation, Shared};
use crate::core::model::{
    Change, Family, ObjectKey, Owner, PerFamily, Protocol, Service, ServicePort,
};
use crate::dataplane::{
    Applied, ApplyError, Backend, Changed, Difference, Mode, Options, Refused, Unavailable,
};

/// How a backend holds what it is told.
pub(crate) trait Holds: Clone + Default + Send + 'static {
    /// Takes a delta; returns on whose behalf something of it does not fit.
    fn take(&mut self, delta: &Delta) -> Vec<Owner>;

    fn entries(&self) -> BTreeSet<Entry>;

    /// Loses what a port does: somebody else has removed it.
    fn lose(&mut self, port: u16);
}

/// Facts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Facts(BTreeSet<Entry>);

impl Holds for Facts {
    fn take(&mut self, delta: &Delta) -> Vec<Owner> {
        let mut culprits = Vec::new();
        for operation in &delta.remove {
            if !self.0.remove(&operation.entry) {
                culprits.push(operation.owner);
            }
        }
        for operation in &delta.add {
            if !self.0.insert(operation.entry.clone()) {
                culprits.push(operation.owner);
            }
        }
        culprits
    }

    fn entries(&self) -> BTreeSet<Entry> {
        self.0.clone()
    }

    fn lose(&mut self, port: u16) {
        self.0.retain(|entry| port_of(entry) != Some(port));
    }
}

/// A chain for each destination.
#[derive(Debug, Clone, Default)]
pub(crate) struct Chains {
    chains: BTreeMap<Destination, Forwarding>,
    shared: BTreeSet<Shared>,
}

impl Holds for Chains {
    fn take(&mut self, delta: &Delta) -> Vec<Owner> {
        let mut culprits = Vec::new();
        for change in &delta.destinations {
            let held = match &change.after {
                Some(after) => self.chains.insert(change.destination, after.clone()),
                None => self.chains.remove(&change.destination),
            };
            if held != change.before {
                culprits.push(change.owner);
            }
        }
        for operation in &delta.remove {
            if let Entry::Shared(shared) = operation.entry
                && !self.shared.remove(&shared)
            {
                culprits.push(operation.owner);
            }
        }
        for operation in &delta.add {
            if let Entry::Shared(shared) = operation.entry
                && !self.shared.insert(shared)
            {
                culprits.push(operation.owner);
            }
        }
        culprits
    }

    fn entries(&self) -> BTreeSet<Entry> {
        let mut entries: BTreeSet<Entry> = self.shared.iter().copied().map(Entry::Shared).collect();
        for (destination, forwarding) in &self.chains {
            forwarding.for_each_entry(*destination, |entry| {
                entries.insert(entry);
            });
        }
        entries
    }

    fn lose(&mut self, port: u16) {
        self.chains
            .retain(|destination, _| destination.port != port);
    }
}

/// A backend, and what it has been told to do.
#[derive(Default)]
pub(crate) struct Fake<H> {
    pub(crate) held: H,
    /// Destinations whose port it refuses.
    pub(crate) hates: BTreeSet<u16>,
    /// In this family only, if it is said.
    pub(crate) hates_in: Option<Family>,
    /// What it says then; otherwise that it is invalid.
    pub(crate) says: Option<Errno>,
    /// Whether refusals name only the culprit, as they do when Services are kept apart.
    pub(crate) isolated: bool,
    /// How many transactions it has been sent, and how often somebody has tried.
    pub(crate) transactions: usize,
    pub(crate) attempts: usize,
    /// How often it has been read.
    pub(crate) readings: usize,
    /// How many operations it wants in a transaction; 0 for no limit.
    pub(crate) most: usize,
    /// It cannot be asked.
    pub(crate) down: bool,
    /// How often another proxy's leftovers cannot be removed before they can, and whether they are.
    pub(crate) stubborn: usize,
    pub(crate) taken_over: bool,
    /// Families that it has not, that it refuses whatever is in them, and that are withheld.
    pub(crate) lacks: Vec<Family>,
    pub(crate) hates_family: Option<Family>,
    pub(crate) withheld: Vec<Family>,
    /// A family that it has when it is asked again.
    pub(crate) found: Option<Family>,
    /// How often it cannot be watched before it can.
    pub(crate) unwatchable: usize,
    /// Hears that somebody else has changed something.
    pub(crate) changed: Option<Changed>,
}

impl<H: Holds> Fake<H> {
    /// The ports that are served.
    pub(crate) fn served(&self) -> Vec<u16> {
        let entries = self.held.entries();
        let ports: BTreeSet<u16> = entries.iter().filter_map(port_of).collect();
        ports.into_iter().collect()
    }

    /// The ports that are served in a family.
    pub(crate) fn served_in(&self, family: Family) -> Vec<u16> {
        let entries = self.held.entries();
        let of_family = entries.iter().filter(|entry| entry.family() == family);
        let ports: BTreeSet<u16> = of_family.filter_map(port_of).collect();
        ports.into_iter().collect()
    }

    /// The shared facts that there are.
    pub(crate) fn shared(&self) -> usize {
        let entries = self.held.entries();
        let is_shared = |entry: &&Entry| matches!(entry, Entry::Shared(_));
        entries.iter().filter(is_shared).count()
    }
}

/// The port of the fact that stands for a destination.
fn port_of(entry: &Entry) -> Option<u16> {
    match entry {
        Entry::NoEndpoints { destination, .. } => Some(destination.port),
        _ => None,
    }
}

/// A backend that others have a hand on, too.
pub(crate) struct Handle<H>(Arc<Mutex<Fake<H>>>);

impl<H> Clone for Handle<H> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<H: Holds> Handle<H> {
    pub(crate) fn new(fake: Fake<H>) -> Self {
        Self(Arc::new(Mutex::new(fake)))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Fake<H>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody else removes what a port does, and the one who watches hears of it.
    pub(crate) fn interfere(&self, port: u16) {
        let mut fake = self.lock();
        fake.held.lose(port);
        if let Some(changed) = &fake.changed {
            changed(None);
        }
    }
}

impl<H: Holds> Backend for Handle<H> {
    const MODE: Mode = Mode::Either;

    fn open(_: Options) -> Result<Self, Unavailable> {
        Ok(Self::new(Fake::default()))
    }

    fn render(_: &Options, entries: &[Entry]) -> String {
        format!("{entries:?}")
    }

    fn reconfigure(&mut self, _: Options) {}

    fn families(&self) -> Vec<Family> {
        let fake = self.lock();
        let serves =
            |family: &Family| !fake.lacks.contains(family) && !fake.withheld.contains(family);
        Family::BOTH.into_iter().filter(serves).collect()
    }

    fn withhold(&mut self, family: Family, withhold: bool) {
        let withheld = &mut self.lock().withheld;
        withheld.retain(|other| *other != family);
        if withhold {
            withheld.push(family);
        }
    }

    fn look_for_families(&mut self) -> bool {
        let mut fake = self.lock();
        let found = fake.found.take();
        fake.lacks.retain(|family| Some(*family) != found);
        found.is_some()
    }

    fn take_over(&mut self) -> Result<(), Unavailable> {
        Ok(())
    }

    fn remove_leftovers(&mut self) -> Result<usize, ApplyError> {
        let mut fake = self.lock();
        if let Some(left) = fake.stubborn.checked_sub(1) {
            fake.stubborn = left;
            return Err(Unavailable(Box::new(Errno::EBUSY)).into());
        }
        fake.taken_over = true;
        Ok(3)
    }

    fn clean_up(&mut self) -> Result<(), ApplyError> {
        self.lock().held = H::default();
        Ok(())
    }

    fn watch(&mut self, changed: Changed) -> Result<bool, Unavailable> {
        let mut fake = self.lock();
        if let Some(left) = fake.unwatchable.checked_sub(1) {
            fake.unwatchable = left;
            return Err(Unavailable(Box::new(Errno::ENOBUFS)));
        }
        fake.changed = Some(changed);
        Ok(true)
    }

    fn counts(&self) -> Vec<(Family, &'static str, usize)> {
        vec![(Family::V4, "entries", self.lock().held.entries().len())]
    }

    fn refused_on_loopback(&mut self) -> Result<Vec<(Family, Protocol, u64)>, Unavailable> {
        Ok(Vec::new())
    }

    fn differences(&mut self, whole: &Delta) -> Result<Vec<Difference>, Unavailable> {
        let held = self.lock().held.entries();
        let missing = whole
            .add
            .iter()
            .filter(|operation| !held.contains(&operation.entry));
        let difference = |operation: &Operation| Difference {
            family: operation.entry.family(),
            owner: operation.owner,
            what: format!("missing: {:?}", operation.entry),
        };
        Ok(missing.map(difference).collect())
    }

    fn read(&mut self) -> Result<Vec<Entry>, Unavailable> {
        let mut fake = self.lock();
        fake.readings += 1;
        Ok(fake.held.entries().into_iter().collect())
    }

    fn apply(&mut self, delta: &Delta) -> Result<Applied, ApplyError> {
        let mut fake = self.lock();
        fake.attempts += 1;
        if fake.down {
            return Err(Unavailable(Box::new(Errno::ENOBUFS)).into());
        }
        fake.transactions += 1;
        let mut next = fake.held.clone();
        let mut culprits = next.take(delta);
        let hated = delta.destinations.iter().filter(|change| {
            let to = change.destination;
            let hates_family = fake.hates_family == Some(to.family());
            change.after.is_some() && {
                let hates_port = fake.hates.contains(&to.port)
                    && fake.hates_in.is_none_or(|family| family == to.family());
                hates_family || hates_port
            }
        });
        let hated: Vec<_> = hated.collect();
        let family = hated.first().map(|change| change.destination.family());
        culprits.extend(hated.iter().map(|change| change.owner));
        if culprits.is_empty() {
            fake.held = next;
            return Ok(Applied {
                operations: delta.len(),
                transactions: 1,
                ..Applied::default()
            });
        }
        let owners = if fake.hates_family.is_some() {
            Vec::new()
        } else if fake.isolated {
            culprits
        } else {
            delta.add.iter().map(|operation| operation.owner).collect()
        };
        Err(ApplyError::Refused(vec![Refused {
            what: "elements".to_owned(),
            family: family.or(Some(Family::V4)),
            owners,
            errno: fake.says.unwrap_or(Errno::EINVAL),
            message: None,
        }]))
    }

    fn most_operations(&self) -> usize {
        match self.lock().most {
            0 => usize::MAX,
            most => most,
        }
    }

    fn isolate_services(&mut self, isolate: bool) {
        self.lock().isolated = isolate;
    }

    fn has_garbage(&self) -> bool {
        false
    }

    fn tidy(&mut self) -> Result<(), ApplyError> {
        Ok(())
    }
}

/// The name of the Service on a port.
pub(crate) fn key(port: u16) -> ObjectKey {
    ObjectKey::new("default", format!("svc-{port}"))
}

/// A Service without endpoints on a port of its own.
pub(crate) fn service(port: u16) -> Box<Service> {
    let [high, low] = port.to_be_bytes();
    Box::new(Service {
        created: 1,
        cluster_ips: PerFamily {
            v4: Some([10, 96, high, low].into()),
            v6: None,
        },
        external_ips: Vec::new(),
        vips: Vec::new(),
        source_ranges: PerFamily::default(),
        ports: vec![ServicePort {
            name: "main".into(),
            protocol: Protocol::Tcp,
            port,
            node_port: 0,
        }],
        affinity: None,
        algorithm: crate::core::model::Algorithm::Random,
        ejects: false,
        internal_local: false,
        external_local: false,
        health_check_node_port: 0,
    })
}

/// That there is a Service of both families on a port.
pub(crate) fn there_is_dual_stack(port: u16) -> Change {
    let mut service = service(port);
    let [high, low] = port.to_be_bytes();
    let v6 = [
        0xfd00,
        0x10,
        0x96,
        0,
        0,
        0,
        0,
        u16::from_be_bytes([high, low]),
    ];
    service.cluster_ips.v6 = Some(std::net::Ipv6Addr::from(v6).into());
    Change::Service(key(port), Some(service))
}

/// That there is the Service on a port.
pub(crate) fn there_is(port: u16) -> Change {
    Change::Service(key(port), Some(service(port)))
}

/// That the Service on a port is gone.
pub(crate) fn there_is_no(port: u16) -> Change {
    Change::Service(key(port), None)
}

/// That the Service on a port is now on another.
pub(crate) fn moved(port: u16, to: u16) -> Change {
    let mut service = service(port);
    service.ports[0].port = to;
    Change::Service(key(port), Some(service))
}

/// Runs each test with both backends.
macro_rules! with_both_backends {
    ($($test:ident,)*) => {
        mod facts {
            $(#[test] fn $test() { super::$test::<crate::agent::fakes::Facts>(); })*
        }
        mod chains {
            $(#[test] fn $test() { super::$test::<crate::agent::fakes::Chains>(); })*
        }
    };
}
pub(crate) use with_both_backends;
