//! Which sources a guarded VIP admits: one lookup for each length of prefix in use.
//!
//! A set of intervals takes time in proportion to its elements for each that comes or goes
//! (`nft_set_pipapo.c`: 10,000 of them hold the kernel's lock for seconds); a hash table does not, and
//! finds a network if the source is cut to its length first. Lengths are few, whatever Services say: 33
//! in IPv4, 129 in IPv6.

use std::collections::BTreeSet;

use super::base::DESTINATION;
use super::numbers;
use super::sets::SetId;
use super::statement::{Chain, Load, Priority, Rule, Statement};
use crate::core::model::Family;

/// The chain that lets the sources of a guarded VIP go on, and drops all others. Its rules come and go
/// with the lengths in use.
pub(crate) const CHECK_SOURCE: &str = "check-source";

/// The chain that counts and drops what no range admits: a rule that comes and goes with the ranges would forget
/// what it has counted.
pub(crate) const OUTSIDE_RANGES: &str = "outside-ranges";

/// Drops what no range admits.
pub(crate) fn outside_ranges() -> Chain {
    let rule = vec![Statement::Counter, Statement::Drop];
    Chain::regular(OUTSIDE_RANGES, vec![rule])
}

/// Drops what comes to a guarded VIP from a source that it does not admit.
pub(crate) fn source_ranges() -> Chain {
    let guarded = Statement::InSet {
        key: DESTINATION.to_vec(),
        set: SetId::GuardedIps,
        negate: false,
    };
    let rules = vec![vec![guarded, Statement::Goto(CHECK_SOURCE.to_owned())]];
    Chain::regular("source-ranges", rules)
}

/// The chain for some lengths of prefixes.
pub(crate) fn check_source(family: Family, lengths: &BTreeSet<u8>) -> Chain {
    let mut rules: Vec<Rule> = lengths
        .iter()
        .map(|length| admit(family, *length))
        .collect();
    rules.push(vec![Statement::Goto(OUTSIDE_RANGES.to_owned())]);
    Chain::regular(CHECK_SOURCE, rules)
}

/// Lets a source go on that is in a network of this length. The length is part of the key, and gets
/// there by the priority.
fn admit(family: Family, length: u8) -> Rule {
    let source = if length == family.address_bits() {
        Load::SourceAddress
    } else {
        Load::SourceNetwork { length }
    };
    let mut key = DESTINATION.to_vec();
    key.extend([source, Load::Priority]);
    vec![
        Statement::SetPriority(Priority::Number(numbers::prefix_length(length))),
        Statement::InSet {
            key,
            set: SetId::AllowedSources,
            negate: false,
        },
        Statement::Return,
    ]
}
