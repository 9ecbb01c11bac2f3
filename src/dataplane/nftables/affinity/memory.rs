//! Endpoints that clients come back to: their ids, and what a change of them is in the kernel.
//!
//! The kernel remembers for each client the id of an endpoint, and looks the id up when the client
//! comes again. An endpoint that leaves takes its id with it, so its clients are forgotten in that
//! very transaction, however many they are, and nobody has to look for them; one that only changes
//! its place keeps it. An id that was taken back is given again only when all others have been. Pure bookkeeping: which ids there are, and which elements a delta is.

use std::collections::BTreeMap;

use rustc_hash::{FxHashMap, FxHashSet};

use super::classes::Classes;
use crate::core::ir::{Delta, Destination, Entry, List, Operation, Route, SourcePolicy};
use crate::core::model::{Endpoint, Family, Owner, PerFamily};
use crate::dataplane::nftables::program::element::Element;
use crate::dataplane::nftables::program::numbers::{self, Class};

/// The ids of one list, without their class, and in how many places each endpoint is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Ids {
    of: FxHashMap<Endpoint, (u32, u32)>,
    taken: FxHashSet<u32>,
    /// The number of the id that is given next, if it is free.
    next: u32,
}

/// How far behind the ids that were found the next one is given: those in between may have been given
/// and taken back before.
const FORGOTTEN: u32 = 1 << 12;
/// Where ids begin is another place for each destination, so that one that is gone and comes back does
/// not remember: an odd number, by which all of them are passed.
const STRIDE: u32 = 0x9_e377;

/// Gives one list's ids, one after the other.
struct Giver<'a> {
    list: List,
    taken: Option<&'a FxHashSet<u32>>,
    next: u32,
}

impl Giver<'_> {
    /// An id that is free. A list is shorter than there are ids, by far.
    fn give(&mut self) -> u32 {
        loop {
            let bare = numbers::bare_id(self.list, self.next);
            self.next = (self.next + 1) % numbers::IDS;
            if !self.taken.is_some_and(|taken| taken.contains(&bare)) {
                return bare;
            }
        }
    }
}

/// A destination whose clients are remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Remembering {
    /// For how long its Service wants them remembered, and the class and seconds that it got.
    wanted_seconds: u32,
    class: Class,
    seconds: u32,
    policy: SourcePolicy,
    lists: [Ids; 2],
}

/// What the kernel holds about clients that are remembered.
#[derive(Debug, Default)]
pub(crate) struct Affinity {
    destinations: FxHashMap<Destination, Remembering>,
    /// How many destinations have begun to remember.
    begun: PerFamily<u32>,
    pub(crate) classes: PerFamily<Classes>,
}

/// A destination that remembers, as found in the kernel.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) destination: Destination,
    pub(crate) how: How,
    /// The ids of its endpoints, without their class.
    pub(crate) ids: Vec<(List, Endpoint, u32)>,
}

/// A route that remembers, rounded up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rounded {
    pub(crate) owner: Owner,
    pub(crate) destination: Destination,
    pub(crate) wanted_seconds: u32,
    pub(crate) seconds: u32,
}

/// What a delta is, as far as clients are remembered.
#[derive(Debug, Default)]
pub(crate) struct Staged {
    /// Elements to take away.
    pub(crate) remove: Vec<(Owner, Element<'static>)>,
    /// Elements to put in place.
    pub(crate) add: Vec<(Owner, Element<'static>)>,
    /// Timeouts that could not be honoured to the second.
    pub(crate) rounded: Vec<Rounded>,
    /// The class of each destination that remembers from now on.
    classes_of: FxHashMap<Destination, (Class, Option<u32>)>,
    /// The classes as they will be, if they change.
    classes: Option<PerFamily<Classes>>,
    edits: Vec<(Destination, Edit)>,
}

impl Staged {
    /// The timeouts that there have to be rules for, if a delta has to do with them.
    pub(crate) fn timeouts(&self, family: Family) -> Option<BTreeMap<Class, u32>> {
        let classes = self.classes.as_ref()?;
        Some(classes.get(family).timeouts())
    }

    /// The class of a destination's route, and the timeout that it wanted if that is another.
    pub(crate) fn class_of(&self, destination: &Destination) -> (Class, Option<u32>) {
        self.classes_of
            .get(destination)
            .copied()
            .unwrap_or_default()
    }
}

#[derive(Debug)]
enum Edit {
    /// It remembers from now on, in this way; the lists stay.
    Begin(How),
    /// The number of the id that a list gives next.
    Next(List, u32),
    /// It does not remember any more.
    End,
    /// An endpoint has this id, and is in so many places.
    Set(List, Endpoint, u32, u32),
    /// An endpoint has left.
    Leave(List, Endpoint),
}

/// For how long a destination remembers, and whom it sends to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct How {
    /// What its Service wants.
    pub(crate) wanted_seconds: u32,
    /// What it got.
    pub(crate) class: Class,
    /// How long that is.
    pub(crate) seconds: u32,
    /// Whom it sends to.
    pub(crate) policy: SourcePolicy,
}

impl How {
    const fn of(self, lists: [Ids; 2]) -> Remembering {
        Remembering {
            wanted_seconds: self.wanted_seconds,
            class: self.class,
            seconds: self.seconds,
            policy: self.policy,
            lists,
        }
    }
}

impl Remembering {
    const fn how(&self) -> How {
        How {
            wanted_seconds: self.wanted_seconds,
            class: self.class,
            seconds: self.seconds,
            policy: self.policy,
        }
    }

    /// Whether a route that comes is of the same class without asking. One that was rounded
    /// stays rounded: the delta does not have all of its places.
    fn stays(&self, touched: &Touched) -> bool {
        touched
            .route_comes
            .is_some_and(|(wanted_seconds, _)| wanted_seconds == self.wanted_seconds)
    }
}

/// What a delta says about one destination that remembers, before or after.
#[derive(Default)]
struct Touched {
    owner: Option<Owner>,
    removed: Vec<(List, u32, Endpoint)>,
    added: Vec<(List, u32, Endpoint)>,
    /// Its route goes, or comes.
    route_goes: bool,
    route_comes: Option<(u32, SourcePolicy)>,
}

/// The timeout and policy of a route that remembers.
const fn remembering(route: &Route) -> Option<(u32, SourcePolicy)> {
    match route {
        Route::Balance {
            policy,
            affinity: Some(seconds),
            ..
        } => Some((*seconds, *policy)),
        _ => None,
    }
}

fn touched(delta: &Delta) -> FxHashMap<Destination, Touched> {
    let mut all: FxHashMap<Destination, Touched> = FxHashMap::default();
    let mut note = |operation: &Operation, is_added: bool| match &operation.entry {
        Entry::Route {
            destination, route, ..
        } => {
            if let Some(how) = remembering(route) {
                let touched = all.entry(*destination).or_default();
                touched.owner.get_or_insert(operation.owner);
                if is_added {
                    touched.route_comes = Some(how);
                } else {
                    touched.route_goes = true;
                }
            }
        }
        Entry::Slot {
            destination,
            list,
            index,
            remembered: true,
            endpoint,
        } => {
            let touched = all.entry(*destination).or_default();
            touched.owner.get_or_insert(operation.owner);
            let places = if is_added {
                &mut touched.added
            } else {
                &mut touched.removed
            };
            places.push((*list, *index, *endpoint));
        }
        _ => {}
    };
    for operation in &delta.remove {
        note(operation, false);
    }
    for operation in &delta.add {
        note(operation, true);
    }
    all
}

impl Affinity {
    /// What a delta is.
    pub(crate) fn stage(&self, delta: &Delta) -> Staged {
        let mut staged = Staged::default();
        let mut touched: Vec<(Destination, Touched)> = touched(delta).into_iter().collect();
        if touched.is_empty() {
            return staged;
        }
        touched.sort_unstable_by_key(|(destination, _)| *destination);
        let mut classes = self.classes.clone();
        // Those that leave a class make room for those that come.
        for (destination, touched) in &touched {
            if touched.route_goes
                && let Some(was) = self.destinations.get(destination)
                && !was.stays(touched)
            {
                classes.get_mut(destination.family()).leave(was.class);
            }
        }
        for (destination, touched) in &touched {
            self.stage_destination(*destination, touched, &mut classes, &mut staged);
        }
        staged.classes = Some(classes);
        staged
    }

    fn stage_destination(
        &self,
        destination: Destination,
        touched: &Touched,
        classes: &mut PerFamily<Classes>,
        staged: &mut Staged,
    ) {
        let owner = touched.owner.unwrap_or(Owner::Cluster);
        let was = self.destinations.get(&destination);
        let before = was.map(Remembering::how);
        let is = match (touched.route_comes, was) {
            (Some((_, policy)), Some(was)) if was.stays(touched) => Some(How {
                policy,
                ..was.how()
            }),
            (Some((wanted_seconds, policy)), _) => {
                let (class, seconds) = classes.get_mut(destination.family()).enter(wanted_seconds);
                if seconds != wanted_seconds {
                    staged.rounded.push(Rounded {
                        owner,
                        destination,
                        wanted_seconds,
                        seconds,
                    });
                }
                Some(How {
                    wanted_seconds,
                    class,
                    seconds,
                    policy,
                })
            }
            (None, _) if touched.route_goes => None,
            (None, _) => before,
        };
        if let Some(how) = is {
            let wanted = (how.seconds != how.wanted_seconds).then_some(how.wanted_seconds);
            staged.classes_of.insert(destination, (how.class, wanted));
        }
        if is != before {
            staged
                .edits
                .push((destination, is.map_or(Edit::End, Edit::Begin)));
        }
        let stays =
            is.map(|how| (how.class, how.policy)) == before.map(|how| (how.class, how.policy));
        let same_policy = is.map(|how| how.policy) == before.map(|how| how.policy);
        let known = |list: List, endpoint: &Endpoint| {
            was.and_then(|was| was.lists[list as usize].of.get(endpoint).copied())
        };
        // In how many places each endpoint is from now on.
        let mut places: BTreeMap<(List, Endpoint), u32> = BTreeMap::new();
        let count = |list, endpoint| known(list, &endpoint).map_or(0, |(_, places)| places);
        for (list, index, endpoint) in &touched.removed {
            let place = numbers::place(*list, *index);
            staged
                .remove
                .push((owner, id_element(destination, place, 0)));
            let places = places.entry((*list, *endpoint));
            let places = places.or_insert_with(|| count(*list, *endpoint));
            *places = places.saturating_sub(1);
        }
        for (list, _, endpoint) in &touched.added {
            let places = places.entry((*list, *endpoint));
            *places.or_insert_with(|| count(*list, *endpoint)) += 1;
        }
        // Ids of this very change.
        let mut bares: FxHashMap<(List, Endpoint), u32> = FxHashMap::default();
        let begun = *self.begun.get(destination.family());
        let begin = begun.wrapping_mul(STRIDE) % numbers::IDS;
        let mut givers = List::BOTH.map(|list| {
            let ids = was.map(|was| &was.lists[list as usize]);
            Giver {
                list,
                taken: ids.map(|ids| &ids.taken),
                next: ids.map_or(begin, |ids| ids.next),
            }
        });
        for ((list, endpoint), places) in places {
            let before = known(list, &endpoint);
            if let (Some((bare, _)), Some(was)) = (before, was)
                && (places == 0 || !stays)
            {
                let id = numbers::full_id(bare, was.class);
                let remove = &mut staged.remove;
                remove.push((owner, id_element(destination, bare, 0)));
                remove.push((owner, endpoint_element(destination, id, endpoint)));
            }
            let Some(How { class, .. }) = is.filter(|_| places > 0) else {
                staged
                    .edits
                    .push((destination, Edit::Leave(list, endpoint)));
                continue;
            };
            let bare = match before {
                // Another policy sends to other endpoints, so a client's choice does not outlive it.
                Some((bare, _)) if same_policy => bare,
                _ => givers[list as usize].give(),
            };
            bares.insert((list, endpoint), bare);
            if before.is_none() || !stays {
                let id = numbers::full_id(bare, class);
                let add = &mut staged.add;
                add.push((owner, id_element(destination, bare, id)));
                add.push((owner, endpoint_element(destination, id, endpoint)));
            }
            let edit = Edit::Set(list, endpoint, bare, places);
            staged.edits.push((destination, edit));
        }
        if is.is_some() {
            let next = givers.map(|giver| Edit::Next(giver.list, giver.next));
            staged.edits.extend(next.map(|edit| (destination, edit)));
        }
        let class = is.map_or(0, |how| how.class);
        for (list, index, endpoint) in &touched.added {
            if let Some(bare) = bares.get(&(*list, *endpoint)) {
                let place = numbers::place(*list, *index);
                let id = numbers::full_id(*bare, class);
                staged.add.push((owner, id_element(destination, place, id)));
            }
        }
    }

    /// Takes in that the kernel has taken what was staged.
    pub(crate) fn commit(&mut self, staged: Staged) {
        if let Some(classes) = staged.classes {
            self.classes = classes;
        }
        for (destination, edit) in staged.edits {
            match edit {
                Edit::Begin(how) => {
                    let known = self.destinations.remove(&destination);
                    let begun = self.begun.get_mut(destination.family());
                    *begun = begun.wrapping_add(u32::from(known.is_none()));
                    let lists = known.map(|known| known.lists).unwrap_or_default();
                    self.destinations.insert(destination, how.of(lists));
                }
                Edit::Next(list, next) => {
                    if let Some(known) = self.destinations.get_mut(&destination) {
                        known.lists[list as usize].next = next;
                    }
                }
                Edit::End => {
                    self.destinations.remove(&destination);
                }
                Edit::Set(list, endpoint, bare, places) => {
                    if let Some(known) = self.destinations.get_mut(&destination) {
                        let ids = &mut known.lists[list as usize];
                        if let Some((old, _)) = ids.of.insert(endpoint, (bare, places))
                            && old != bare
                        {
                            ids.taken.remove(&old);
                        }
                        ids.taken.insert(bare);
                    }
                }
                Edit::Leave(list, endpoint) => {
                    if let Some(known) = self.destinations.get_mut(&destination) {
                        let ids = &mut known.lists[list as usize];
                        if let Some((bare, _)) = ids.of.remove(&endpoint) {
                            ids.taken.remove(&bare);
                        }
                    }
                }
            }
        }
    }

    /// Forgets a family: the kernel holds nothing of it that is of use.
    pub(crate) fn forget(&mut self, family: Family) {
        self.destinations
            .retain(|destination, _| destination.family() != family);
        *self.classes.get_mut(family) = Classes::default();
        *self.begun.get_mut(family) = 0;
    }

    /// Takes in a destination that was found in the kernel.
    pub(crate) fn found(&mut self, found: Found) {
        let Found {
            destination,
            how,
            ids,
        } = found;
        let classes = self.classes.get_mut(destination.family());
        classes.found(how.class, how.seconds);
        let mut lists: [Ids; 2] = Default::default();
        for (list, endpoint, bare) in ids {
            let ids = &mut lists[list as usize];
            ids.of.entry(endpoint).or_insert((bare, 0)).1 += 1;
            ids.taken.insert(bare);
        }
        for ids in &mut lists {
            let last = ids.taken.iter().copied().map(numbers::id_number).max();
            ids.next = last.map_or(0, |last| (last + FORGOTTEN) % numbers::IDS);
        }
        let begun = self.begun.get_mut(destination.family());
        *begun = begun.wrapping_add(1);
        self.destinations.insert(destination, how.of(lists));
    }
}

const fn id_element(destination: Destination, number: u32, id: u32) -> Element<'static> {
    Element::Id {
        destination,
        number,
        id,
    }
}

const fn endpoint_element(
    destination: Destination,
    number: u32,
    endpoint: Endpoint,
) -> Element<'static> {
    Element::Endpoint {
        destination,
        number,
        endpoint,
    }
}
