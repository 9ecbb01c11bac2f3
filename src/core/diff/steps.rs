//! From one forwarding to another in steps, where that takes more operations than one transaction
//! should have.
//!
//! Every step is a forwarding in its own right, which serves: a long list grows or shrinks by some
//! endpoints at a time, and turns into one of another kind only while it is short.

use ipnetwork::IpNetwork;
use rustc_hash::FxHashSet;

use super::difference::{changes, order};
use crate::core::ir::{Action, Forwarding, List, REMEMBERED_WEIGHT, Sources};
use crate::core::model::{Endpoint, Endpoints};

/// The next step from `applied` towards `wanted`, in about so many operations. It may be all the
/// way, and is some of it always.
pub(super) fn toward(
    applied: Option<&Forwarding>,
    wanted: Option<&Forwarding>,
    operations: usize,
) -> Option<Forwarding> {
    let places = places_in([applied, wanted], operations);
    match (applied, wanted) {
        (None, None) => None,
        // Whom it does not admit yet it has not served before.
        (None, Some(wanted)) => Some(cut(wanted, places)),
        (Some(applied), None) => {
            let longest = longest(applied);
            (longest > places).then(|| cut(applied, fewer(longest, places)))
        }
        (Some(applied), Some(wanted)) => Some(between(applied, wanted, places)),
    }
}

/// The next step from one to the other. Where more sources are let in, that is when the endpoints are
/// those that they are let in to; where fewer are, that comes first.
fn between(applied: &Forwarding, wanted: &Forwarding, places: usize) -> Forwarding {
    let sources = sources_toward(&applied.sources, &wanted.sources, places);
    if let Some(sources) = &sources
        && !widens(&applied.sources, &wanted.sources)
    {
        return Forwarding {
            sources: sources.clone(),
            ..applied.clone()
        };
    }
    let lists = lists_toward(applied, wanted, places);
    let as_wanted = lists.action == wanted.action && lists.label == wanted.label;
    let with = |sources: &Sources, lists: Forwarding| Forwarding {
        sources: sources.clone(),
        ..lists
    };
    match sources {
        // Few networks change, beside the lists.
        None if as_wanted || !widens(&applied.sources, &wanted.sources) => {
            with(&wanted.sources, lists)
        }
        None => with(&applied.sources, lists),
        Some(sources) => {
            let lists = with(&applied.sources, lists);
            if lists == *applied {
                with(&sources, lists)
            } else {
                lists
            }
        }
    }
}

/// Whether somebody is let in whom it has not let in before.
fn widens(applied: &Sources, wanted: &Sources) -> bool {
    match (applied, wanted) {
        (Sources::Only(_), Sources::Any | Sources::Prepared(_)) => true,
        (Sources::Only(was), Sources::Only(is)) => changes(was, is).any(|(_, comes)| comes),
        _ => false,
    }
}

/// The next step of what it does, whoever may connect.
fn lists_toward(applied: &Forwarding, wanted: &Forwarding, places: usize) -> Forwarding {
    if is_same_kind(applied, wanted) {
        some_of(applied, wanted, places)
    } else if longest_list(applied) > places {
        cut_lists(applied, fewer(longest_list(applied), places))
    } else {
        cut_lists(wanted, places)
    }
}

/// How many networks may change beside the lists.
const BESIDE: usize = 4;

/// What is left of so many.
fn fewer(length: usize, places: usize) -> usize {
    length.saturating_sub(places).max(places)
}

/// The next step of who may connect; `None` if it can be taken at once. Nobody is refused on the way
/// whom both admit: networks come before others go, and are complete before anybody is asked for them.
fn sources_toward(applied: &Sources, wanted: &Sources, places: usize) -> Option<Sources> {
    let (was, is) = (applied.networks(), wanted.networks());
    // The lists take all that there is room for.
    if changes(was, is).take(BESIDE + 1).count() <= BESIDE {
        return None;
    }
    if changes(was, is).take(places + 1).count() <= places {
        return Some(wanted.clone());
    }
    let come = changes(was, is).filter(|(_, comes)| *comes).take(places);
    let come: Vec<IpNetwork> = come.map(|(network, _)| *network).collect();
    let gone = changes(was, is).filter(|(_, comes)| !comes);
    let gone: FxHashSet<&IpNetwork> = gone
        .take(places - come.len())
        .map(|(network, _)| network)
        .collect();
    let stays = was.iter().filter(|network| !gone.contains(network));
    let mut networks: Vec<IpNetwork> = stays.copied().chain(come).collect();
    networks.sort_unstable_by_key(order);
    let networks = networks.into();
    Some(match (applied, wanted) {
        (Sources::Only(_), Sources::Only(_)) => Sources::Only(networks),
        _ => Sources::Prepared(networks),
    })
}

/// At least so many operations it takes from one to the other, by the lengths of their lists.
pub(super) fn at_least(applied: Option<&Forwarding>, wanted: Option<&Forwarding>) -> usize {
    let length = |forwarding: Option<&Forwarding>| forwarding.map_or(0, longest);
    let weight = |forwarding: Option<&Forwarding>| forwarding.map_or(1, weight);
    length(applied).abs_diff(length(wanted)) * weight(applied).min(weight(wanted))
}

/// How many operations an endpoint is to a backend.
const fn weight(forwarding: &Forwarding) -> usize {
    if forwarding.remembers() {
        REMEMBERED_WEIGHT
    } else {
        1
    }
}

/// How many places of each list may change in so many operations.
fn places_in(both: [Option<&Forwarding>; 2], operations: usize) -> usize {
    let lists = |forwarding: &Forwarding| match forwarding.action {
        Action::Balance {
            external: Some(_), ..
        } => 2,
        _ => 1,
    };
    let weight = |forwarding: &Forwarding| lists(forwarding) * weight(forwarding);
    let most = both.into_iter().flatten().map(weight).max();
    // A changed endpoint is a removal and an addition, and there are other facts than endpoints.
    (operations.saturating_sub(8 + BESIDE) / (2 * most.unwrap_or(1))).max(1)
}

/// Whether only endpoints and sources differ.
fn is_same_kind(one: &Forwarding, other: &Forwarding) -> bool {
    let kind = |forwarding: &Forwarding| match &forwarding.action {
        Action::Balance {
            policy,
            external,
            draw,
            affinity,
            ..
        } => Some((*policy, external.is_some(), *draw, *affinity)),
        Action::Reject | Action::Drop => None,
    };
    kind(one).is_some() && kind(one) == kind(other) && one.label == other.label
}

/// The length of the longest of its lists, that of its sources included.
fn longest(forwarding: &Forwarding) -> usize {
    longest_list(forwarding).max(forwarding.sources.networks().len())
}

fn longest_list(forwarding: &Forwarding) -> usize {
    let lists = List::BOTH
        .into_iter()
        .filter_map(|list| forwarding.list(list));
    lists.map(Endpoints::len).max().unwrap_or(0)
}

/// The same with lists of so many endpoints.
fn cut_lists(forwarding: &Forwarding, places: usize) -> Forwarding {
    Forwarding {
        action: map_lists(&forwarding.action, |list, _| {
            list.with(&[], list.len().min(places))
        }),
        sources: forwarding.sources.clone(),
        label: forwarding.label.clone(),
    }
}

/// The same with lists of so many endpoints, and of so many sources.
fn cut(forwarding: &Forwarding, places: usize) -> Forwarding {
    let few = |networks: &[IpNetwork]| networks.iter().take(places).copied().collect();
    Forwarding {
        sources: match &forwarding.sources {
            Sources::Any => Sources::Any,
            Sources::Prepared(networks) => Sources::Prepared(few(networks)),
            Sources::Only(networks) => Sources::Only(few(networks)),
        },
        ..cut_lists(forwarding, places)
    }
}

/// Which of the two lists it is.
#[derive(Clone, Copy)]
enum Which {
    Primary,
    External,
}

fn map_lists(action: &Action, map: impl Fn(&Endpoints, Which) -> Endpoints) -> Action {
    match action {
        Action::Balance {
            policy,
            primary,
            external,
            draw,
            affinity,
        } => Action::Balance {
            policy: *policy,
            primary: map(primary, Which::Primary),
            external: external.as_ref().map(|list| map(list, Which::External)),
            draw: *draw,
            affinity: *affinity,
        },
        action => action.clone(),
    }
}

/// Some of the differences between two of one kind, at so many places of each list.
fn some_of(applied: &Forwarding, wanted: &Forwarding, places: usize) -> Forwarding {
    let list = |wanted: &Endpoints, which| {
        let Action::Balance {
            primary, external, ..
        } = &applied.action
        else {
            return wanted.clone();
        };
        match (which, external) {
            (Which::Primary, _) => some_places(primary, wanted, places),
            (Which::External, Some(external)) => some_places(external, wanted, places),
            (Which::External, None) => wanted.clone(),
        }
    };
    Forwarding {
        action: map_lists(&wanted.action, list),
        sources: wanted.sources.clone(),
        label: wanted.label.clone(),
    }
}

/// A list on its way to another one: first without those behind the other's end, then with the
/// other's endpoints in the places of both, then longer. No endpoint has two places meanwhile.
fn some_places(applied: &Endpoints, wanted: &Endpoints, places: usize) -> Endpoints {
    if applied.len() > wanted.len() {
        let left = applied.len().saturating_sub(places).max(wanted.len());
        return applied.with(&[], left);
    }
    let changes: Vec<(usize, Endpoint)> = applied
        .differences(wanted)
        .take(places)
        .filter_map(|(place, _, endpoint)| Some((place, endpoint?)))
        .collect();
    let length = changes
        .last()
        .map_or(applied.len(), |(place, _)| applied.len().max(place + 1));
    applied.with(&changes, length)
}
