//! In what that which is held differs from that which is wanted.

use std::collections::BTreeMap;

use super::reading::{Odd, Reading};
use crate::core::ir::{
    Delta, Destination, Draw, Entry, Label, List, Operation, Route, Shared, SourcePolicy,
};
use crate::core::model::{Family, Owner};
use crate::dataplane::Difference;

/// All differences. Where an endpoint stands in its list is nobody's business, as long as the list has no gap.
pub(super) fn between(whole: &Delta, found: Reading) -> Vec<Difference> {
    let mut differences: Vec<Difference> = Vec::new();
    let replaced = |family| *found.programmed.replace.get(family);
    for family in &found.programmed.config.families {
        if replaced(*family) && !*found.existed.get(*family) {
            differences.push(of_the_program(*family, "there is no table pointsman"));
        }
    }
    for Odd { family, what, .. } in &found.odd {
        differences.push(of_the_program(*family, what));
    }
    let families = &found.programmed.config.families;
    let of_family = |family| families.contains(&family) && !replaced(family);
    let mut wanted: Vec<(Entry, Owner)> = whole
        .add
        .iter()
        .filter(|operation| of_family(operation.entry.family()))
        .map(|Operation { owner, entry }| (without_place(entry), *owner))
        .collect();
    let gaps = gaps(&found.entries);
    let mut held: Vec<Entry> = found.entries.iter().map(without_place).collect();
    wanted.sort_unstable();
    held.sort_unstable();
    let owners: BTreeMap<Destination, Owner> = whole
        .destinations
        .iter()
        .map(|change| (change.destination, change.owner))
        .collect();
    let owner_of = |entry: &Entry| {
        let owner = entry.destination().and_then(|to| owners.get(&to));
        owner.copied().unwrap_or(Owner::Cluster)
    };
    let (mut wanted, mut held) = (wanted.into_iter().peekable(), held.into_iter().peekable());
    loop {
        match (wanted.peek(), held.peek()) {
            (None, None) => break,
            (Some((want, _)), Some(have)) if want == have => {
                wanted.next();
                held.next();
            }
            (Some((want, _)), have) if have.is_none_or(|have| want < have) => {
                if let Some((want, owner)) = wanted.next() {
                    differences.push(Difference {
                        family: want.family(),
                        owner,
                        what: format!("missing: {}", describe(&want)),
                    });
                }
            }
            _ => {
                if let Some(have) = held.next() {
                    differences.push(Difference {
                        family: have.family(),
                        owner: owner_of(&have),
                        what: format!("not wanted: {}", describe(&have)),
                    });
                }
            }
        }
    }
    for (destination, _) in gaps {
        differences.push(Difference {
            family: destination.family(),
            owner: owners.get(&destination).copied().unwrap_or(Owner::Cluster),
            what: format!("a place that is drawn at {destination} has no endpoint"),
        });
    }
    differences
}

fn of_the_program(family: Family, what: &str) -> Difference {
    Difference {
        family,
        owner: Owner::Cluster,
        what: what.to_owned(),
    }
}

fn without_place(entry: &Entry) -> Entry {
    let mut entry = entry.clone();
    if let Entry::Slot { index, .. } = &mut entry {
        *index = 0;
    }
    entry
}

/// Lists whose places are not the first ones, each taken once.
fn gaps(entries: &[Entry]) -> Vec<(Destination, List)> {
    let mut lists: BTreeMap<(Destination, List), (u32, u32)> = BTreeMap::new();
    for entry in entries {
        if let Entry::Slot {
            destination,
            list,
            index,
            ..
        } = entry
        {
            let (count, last) = lists.entry((*destination, *list)).or_default();
            *count += 1;
            *last = (*last).max(*index);
        }
    }
    lists.retain(|_, (count, last)| *count != *last + 1);
    lists.into_keys().collect()
}

fn describe(entry: &Entry) -> String {
    let list = |list: &List| match list {
        List::Primary => "",
        List::External => " (for sources outside)",
    };
    match entry {
        Entry::Route {
            destination,
            route,
            label,
        } => format!("{destination}{}, {}", of_service(label), way(*route)),
        Entry::ExternalRoute { destination, route } => {
            format!("{destination} for sources outside, {}", way(*route))
        }
        Entry::Slot {
            destination,
            endpoint,
            list: of,
            ..
        } => format!("endpoint {endpoint} at {destination}{}", list(of)),
        Entry::NoEndpoints { destination, label } => {
            format!("{destination}{}, without endpoints", of_service(label))
        }
        Entry::Guarded { destination } => format!("{destination} admits only some sources"),
        Entry::AllowedSource {
            destination,
            network,
        } => format!("{destination} admits {network}"),
        Entry::Shared(Shared::ClusterIp(address)) => {
            format!("{address} as a ClusterIP, of which other ports are refused")
        }
        Entry::Shared(Shared::ServiceCidr(network)) => {
            format!("{network} as a range of Services, of which unused addresses are dropped")
        }
        Entry::Shared(Shared::Hairpin { protocol, endpoint }) => {
            format!("endpoint {endpoint}/{protocol} as one that may reach itself")
        }
        Entry::Shared(Shared::NodePortAddress(address)) => {
            format!("{address} as an address that accepts NodePorts")
        }
    }
}

fn of_service(label: &Label) -> String {
    match label.as_str() {
        "" => String::new(),
        label => format!(" of {label}"),
    }
}

fn way(route: Route) -> String {
    match route {
        Route::Drop => "dropped".to_owned(),
        Route::Balance {
            policy,
            endpoints,
            draw,
            affinity,
        } => {
            let policy = match policy {
                SourcePolicy::ClusterIp => "as a ClusterIP",
                SourcePolicy::External => "as an external address",
                SourcePolicy::ExternalLocal => "as an external address with policy Local",
            };
            let affinity = affinity.map_or_else(String::new, |seconds| {
                format!(", with affinity for {seconds} s")
            });
            let one = match draw {
                Draw::Random => format!("to one of {endpoints} endpoints"),
                draw => format!("to one of {endpoints} places {}", draw.words()),
            };
            format!("{one}, {policy}{affinity}")
        }
    }
}
