//! Whose counter is whose: lists whose places are drawn in turn, each by itself as long as there are
//! counters.
//!
//! A counter is a rule in a chain of its own, so there are so many at most; whoever comes when all are
//! taken shares one with lists of as many places. Two that share one skip places that the other was
//! given, and are drawn evenly all the same as long as nobody connects to both by turns. Pure bookkeeping.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;

use super::program::element::Element;
use super::program::lots::{LANES, Lane};
use super::program::sizes::Size;
use crate::core::ir::{Delta, Destination, Draw, Entry, List, Route};
use crate::core::model::{Family, PerFamily};

/// How many counters there are in a family, beside one for each number of places.
pub(super) const MOST_COUNTERS: usize = 256;

/// A list whose places are drawn in turn.
type Of = (Destination, List);
/// A counter: of so many places, and which one.
type Counter = (Size, Lane);

/// The counters in use.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Lanes {
    of: FxHashMap<Of, Counter>,
    /// How many lists each is for.
    users: PerFamily<BTreeMap<Counter, usize>>,
}

/// What a delta makes of them.
#[derive(Debug, Default)]
pub(super) struct Staged {
    /// Lists that come, or go.
    edits: FxHashMap<Of, Option<Counter>>,
}

impl Staged {
    /// The lane of a route that comes, if its places are drawn in turn.
    pub(super) fn of_entry(&self, entry: &Entry) -> Lane {
        in_turn(entry).map_or(0, |((destination, list), _)| self.lane(destination, list))
    }

    fn lane(&self, destination: Destination, list: List) -> Lane {
        let counter = self.edits.get(&(destination, list)).copied().flatten();
        counter.map_or(0, |(_, lane)| lane)
    }
}

/// The list that a route leads to and its places, if they are drawn in turn.
fn in_turn(entry: &Entry) -> Option<(Of, Size)> {
    let (of, route) = match entry {
        Entry::Route {
            destination, route, ..
        } => ((*destination, List::Primary), route),
        Entry::ExternalRoute { destination, route } => ((*destination, List::External), route),
        _ => return None,
    };
    match route {
        Route::Balance {
            draw: Draw::Turn | Draw::WeightedTurn,
            endpoints,
            ..
        } => Some((of, Size::of(*endpoints))),
        _ => None,
    }
}

impl Lanes {
    /// The lane of a route that is there, if its places are drawn in turn.
    pub(super) fn of_entry(&self, entry: &Entry) -> Lane {
        let counter = in_turn(entry).and_then(|(of, _)| self.of.get(&of));
        counter.map_or(0, |(_, lane)| *lane)
    }

    /// What a delta makes of them.
    pub(super) fn stage(&self, delta: &Delta) -> Staged {
        let mut staged = Staged::default();
        let gone = delta.remove.iter().filter_map(|one| in_turn(&one.entry));
        for (of, _) in gone {
            staged.edits.insert(of, None);
        }
        let come = delta.add.iter().filter_map(|one| in_turn(&one.entry));
        let come: Vec<(Of, Size)> = come.collect();
        if come.is_empty() {
            return staged;
        }
        // Who keeps its number of places keeps its counter: to the kernel nothing may have changed.
        let known = |of: &Of, size: Size| self.of.get(of).filter(|(known, _)| *known == size);
        for (of, size) in &come {
            staged.edits.insert(*of, known(of, *size).copied());
        }
        let mut users = self.users.clone();
        for (of, counter) in &staged.edits {
            if counter.is_none()
                && let Some(before) = self.of.get(of)
            {
                leave(&mut users, *of, *before);
            }
        }
        for (of, size) in come {
            if known(&of, size).is_none() {
                let users = users.get_mut(of.0.family());
                let counter = (size, free_lane(users, size));
                *users.entry(counter).or_insert(0) += 1;
                staged.edits.insert(of, Some(counter));
            }
        }
        staged
    }

    /// Takes in that the kernel has taken what was staged.
    pub(super) fn commit(&mut self, staged: Staged) {
        for (of, counter) in staged.edits {
            if let Some(known) = self.of.remove(&of) {
                leave(&mut self.users, of, known);
            }
            if let Some(counter) = counter {
                self.put(of, counter);
            }
        }
    }

    /// Takes in an element that was found in the kernel.
    pub(super) fn found(&mut self, element: &Element<'_>) {
        if let Element::Shape {
            destination,
            list,
            shape,
            ..
        } = element
            && let Some(lot) = shape.lot()
            && let Some(lane) = lot.lane()
        {
            self.put((*destination, *list), (lot.size(), lane));
        }
    }

    /// Takes in that an element that was found is of no use.
    pub(super) fn lost(&mut self, element: &Element<'_>) {
        if let Element::Shape {
            destination, list, ..
        } = element
            && let Some(known) = self.of.remove(&(*destination, *list))
        {
            leave(&mut self.users, (*destination, *list), known);
        }
    }

    /// Forgets a family: the kernel holds nothing of it that is of use.
    pub(super) fn forget(&mut self, family: Family) {
        self.of.retain(|(to, _), _| to.family() != family);
        self.users.get_mut(family).clear();
    }

    fn put(&mut self, of: Of, counter: Counter) {
        self.of.insert(of, counter);
        let users = self.users.get_mut(of.0.family());
        *users.entry(counter).or_insert(0) += 1;
    }
}

fn leave(users: &mut PerFamily<BTreeMap<Counter, usize>>, (to, _): Of, counter: Counter) {
    let users = users.get_mut(to.family());
    if let Some(count) = users.get_mut(&counter) {
        *count -= 1;
        if *count == 0 {
            users.remove(&counter);
        }
    }
}

/// A counter that nobody has, or if there is none, the one that fewest have.
fn free_lane(users: &BTreeMap<Counter, usize>, size: Size) -> Lane {
    let used = |lane: Lane| users.get(&(size, lane)).copied().unwrap_or(0);
    let mut lanes = 0..LANES;
    if users.len() < MOST_COUNTERS
        && let Some(free) = lanes.find(|lane| used(*lane) == 0)
    {
        return free;
    }
    let taken = (0..LANES).filter(|lane| used(*lane) > 0);
    taken.min_by_key(|lane| used(*lane)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ir::{Host, Label, Operation, SourcePolicy};
    use crate::core::model::{Owner, Protocol};

    fn to(number: u16) -> Destination {
        Destination {
            host: Host::Address([10, 96, (number >> 8) as u8, number as u8].into()),
            protocol: Protocol::Tcp,
            port: 80,
        }
    }

    fn route(number: u16, endpoints: u32, draw: Draw) -> Operation {
        Operation {
            owner: Owner::Cluster,
            entry: Entry::Route {
                destination: to(number),
                route: Route::Balance {
                    policy: SourcePolicy::ClusterIp,
                    endpoints,
                    draw,
                    affinity: None,
                },
                label: Label::new("shop/web"),
            },
        }
    }

    fn apply(lanes: &mut Lanes, remove: Vec<Operation>, add: Vec<Operation>) -> Vec<Lane> {
        let numbers: Vec<Destination> = add
            .iter()
            .filter_map(|one| one.entry.destination())
            .collect();
        let delta = Delta {
            remove,
            add,
            destinations: Vec::new(),
        };
        let staged = lanes.stage(&delta);
        let given = numbers
            .into_iter()
            .map(|to| staged.lane(to, List::Primary))
            .collect();
        lanes.commit(staged);
        given
    }

    #[test]
    fn every_list_has_a_counter_of_its_own_until_there_are_no_more() {
        let mut lanes = Lanes::default();
        let routes = |numbers: std::ops::Range<u16>| -> Vec<Operation> {
            numbers.map(|number| route(number, 3, Draw::Turn)).collect()
        };
        let lanes_of_first = apply(&mut lanes, Vec::new(), routes(0..u16::from(LANES)));
        assert_eq!(lanes_of_first, (0..LANES).collect::<Vec<_>>());
        let shared = apply(
            &mut lanes,
            Vec::new(),
            vec![route(100, 3, Draw::WeightedTurn)],
        );
        assert_eq!(shared, [0], "one of them is shared then");
        assert_eq!(
            apply(&mut lanes, Vec::new(), vec![route(101, 3, Draw::Turn)]),
            [1]
        );
        assert_eq!(
            apply(&mut lanes, Vec::new(), vec![route(200, 4, Draw::Turn)]),
            [0]
        );
        apply(&mut lanes, vec![route(7, 3, Draw::Turn)], Vec::new());
        assert_eq!(
            apply(&mut lanes, Vec::new(), vec![route(102, 3, Draw::Turn)]),
            [7]
        );
    }

    #[test]
    fn a_list_keeps_its_counter_while_it_keeps_its_places_and_others_take_none() {
        let mut lanes = Lanes::default();
        let all = vec![
            route(1, 3, Draw::Turn),
            route(2, 3, Draw::Turn),
            route(3, 3, Draw::Random),
        ];
        assert_eq!(apply(&mut lanes, Vec::new(), all), [0, 1, 0]);
        let change = |lanes: &mut Lanes, from, to| {
            apply(
                lanes,
                vec![route(2, from, Draw::Turn)],
                vec![route(2, to, Draw::Turn)],
            )
        };
        assert_eq!(change(&mut lanes, 3, 3), [1]);
        assert_eq!(change(&mut lanes, 3, 5), [0]);
        assert_eq!(change(&mut lanes, 5, 3), [1]);
        apply(
            &mut lanes,
            vec![route(1, 3, Draw::Turn), route(2, 3, Draw::Turn)],
            Vec::new(),
        );
        assert!(lanes.of.is_empty() && lanes.users.v4.is_empty());
    }

    #[test]
    fn there_are_so_many_counters_whatever_services_say() {
        let mut lanes = Lanes::default();
        for number in 0..2_000 {
            apply(
                &mut lanes,
                Vec::new(),
                vec![route(number, 1 + u32::from(number % 400), Draw::Turn)],
            );
        }
        // One for each of the sizes that came when all were taken.
        assert!(lanes.users.v4.len() <= MOST_COUNTERS + 449);
        assert_eq!(lanes.of.len(), 2_000);
    }
}
