//! From one forwarding to another in steps, where that takes more operations than one transaction
//! should have.
//!
//! Every step is a forwarding in its own right, which serves: a long list grows or shrinks by some
//! endpoints at a time, and turns into one of another kind only while it is short.

use rustc_hash::FxHashSet;

use crate::core::ir::{Action, Forwarding, REMEMBERED_WEIGHT};
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
        (None, Some(wanted)) => Some(cut(wanted, places)),
        (Some(applied), Some(wanted)) if is_same_kind(applied, wanted) => {
            Some(some_of(applied, wanted, places))
        }
        (Some(applied), wanted) => {
            if longest(applied) > places {
                let left = longest(applied).saturating_sub(places).max(places);
                return Some(cut(applied, left));
            }
            wanted.map(|wanted| cut(wanted, places))
        }
    }
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
    (operations.saturating_sub(8) / (2 * most.unwrap_or(1))).max(1)
}

/// Whether only endpoints and sources differ.
fn is_same_kind(one: &Forwarding, other: &Forwarding) -> bool {
    let kind = |forwarding: &Forwarding| match &forwarding.action {
        Action::Balance {
            policy,
            external,
            affinity,
            ..
        } => Some((*policy, external.is_some(), *affinity)),
        Action::Reject | Action::Drop => None,
    };
    let guarded = |forwarding: &Forwarding| forwarding.allowed_sources.is_some();
    kind(one).is_some()
        && kind(one) == kind(other)
        && guarded(one) == guarded(other)
        && one.label == other.label
}

/// The length of the longest of its lists.
fn longest(forwarding: &Forwarding) -> usize {
    let sources = forwarding.allowed_sources.as_ref().map_or(0, |s| s.len());
    let lists = match &forwarding.action {
        Action::Balance {
            primary, external, ..
        } => primary
            .len()
            .max(external.as_ref().map_or(0, Endpoints::len)),
        Action::Reject | Action::Drop => 0,
    };
    lists.max(sources)
}

/// The same with lists of so many endpoints, and of so many sources.
fn cut(forwarding: &Forwarding, places: usize) -> Forwarding {
    let sources = forwarding.allowed_sources.as_ref();
    Forwarding {
        action: map_lists(&forwarding.action, |list, _| {
            list.with(&[], list.len().min(places))
        }),
        allowed_sources: sources.map(|sources| sources.iter().take(places).copied().collect()),
        label: forwarding.label.clone(),
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
            affinity,
        } => Action::Balance {
            policy: *policy,
            primary: map(primary, Which::Primary),
            external: external.as_ref().map(|list| map(list, Which::External)),
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
    let sources = match (&applied.allowed_sources, &wanted.allowed_sources) {
        (Some(known), Some(wanted)) => {
            // What is no longer allowed goes before anything is allowed.
            let known_ones: FxHashSet<_> = known.iter().collect();
            let wanted_ones: FxHashSet<_> = wanted.iter().collect();
            let gone = known.iter().filter(|source| !wanted_ones.contains(source));
            let gone: FxHashSet<_> = gone.take(places).copied().collect();
            let mut sources: Vec<_> = known
                .iter()
                .filter(|source| !gone.contains(source))
                .copied()
                .collect();
            let come = wanted.iter().filter(|source| !known_ones.contains(source));
            sources.extend(come.take(places - gone.len()).copied());
            sources.sort_unstable_by_key(|network| (network.ip(), network.prefix()));
            Some(sources.into())
        }
        (_, wanted) => wanted.clone(),
    };
    Forwarding {
        action: map_lists(&wanted.action, list),
        allowed_sources: sources,
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
