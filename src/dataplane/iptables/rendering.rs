//! The same as text, for people.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::chain::Chain;
use super::fixed;
use super::plan::Program;
use super::record::TABLES;
use crate::core::ir::{Assembly, Delta, Destination, DestinationChange, Entry, Operation};
use crate::core::model::{Family, Owner};
use crate::dataplane::Options;

/// What `iptables-restore` and `ip6tables-restore` take: each leaves out the rules of the other, which begin
/// with `-6` or `-4`.
#[must_use]
pub fn render(options: &Options, entries: &[Entry]) -> String {
    let delta = whole(entries);
    let mut chains: [Vec<(Family, Chain)>; 2] = Default::default();
    for family in options.families.iter().copied() {
        let mut program = Program::new(options, family);
        let stages = program.plan(&delta);
        let nat = stages.nat.chains;
        let filter = stages.refuse.chains.into_iter().chain(stages.filter.chains);
        let of_family = |(_, chain)| (family, chain);
        chains[0].extend(nat.into_iter().map(of_family));
        chains[1].extend(filter.map(of_family));
    }
    let mut out = String::new();
    for (number, (table, chains)) in TABLES.iter().zip(&chains).enumerate() {
        let _ = writeln!(out, "*{table}");
        // One that is written twice is what it was last.
        let mut last: BTreeMap<(&str, Family), &Chain> = BTreeMap::new();
        for (family, chain) in chains {
            last.insert((&chain.name, *family), chain);
        }
        let mut declared = "";
        for (name, _) in last.keys() {
            if *name != declared {
                let _ = writeln!(out, ":{name} - [0:0]");
            }
            declared = name;
        }
        for ((name, family), chain) in &last {
            for rule in &chain.rules {
                let _ = writeln!(out, "{} -A {name} {rule}", option(*family));
            }
        }
        for family in &options.families {
            for hook in fixed::hooks(number, *family) {
                let _ = writeln!(out, "{} -I {}", option(*family), hook.first());
            }
        }
        out.push_str("COMMIT\n");
    }
    out
}

const fn option(family: Family) -> &'static str {
    match family {
        Family::V4 => "-4",
        Family::V6 => "-6",
    }
}

/// The delta from nothing.
fn whole(entries: &[Entry]) -> Delta {
    let mut delta = Delta::default();
    let mut found: BTreeMap<Destination, Assembly> = BTreeMap::new();
    for entry in entries {
        match entry.destination() {
            Some(destination) => found.entry(destination).or_default().put(entry.clone()),
            None => delta.add.push(Operation {
                owner: Owner::Cluster,
                entry: entry.clone(),
            }),
        }
    }
    for (destination, assembly) in found {
        delta.destinations.push(DestinationChange {
            owner: Owner::Cluster,
            destination,
            before: None,
            after: assembly.whole(),
        });
    }
    delta
}
