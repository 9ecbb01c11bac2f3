//! A dispatch tree: a packet that begins a connection passes tens of rules, however many destinations there
//! are.
//!
//! Which chains there are and what is in them follows from the set of destinations alone, so that whoever
//! computes it again, after a restart too, comes to the same. A destination that comes or goes changes the
//! chains on the way to it, and those that divide or unite by it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use super::chain::Chain;
use super::chain_names;
use super::key::{Key, PROTOCOLS, Space};
use super::spelling;

/// The most destinations in one chain.
const LEAF: usize = 16;

/// What a tree has for a destination: how a rule ends.
pub(super) trait Leaf {
    /// The target, with a comment if it has one, and what else is compared.
    fn rule(&self, matches: &str) -> String;
}

/// Destinations, and the chains that lead to them.
#[derive(Debug)]
pub(super) struct Tree<L> {
    space: Space,
    /// Where packets come in.
    root: &'static str,
    /// What the names of the others begin with.
    prefix: &'static str,
    leaves: BTreeMap<Key, L>,
    /// The groups that have chains.
    groups: BTreeSet<Key>,
}

/// What has become of chains.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// What they are now, each before whichever leads to it.
    pub(super) chains: Vec<Chain>,
    pub(super) gone: Vec<String>,
}

impl<L: Leaf> Tree<L> {
    pub(super) const fn new(space: Space, root: &'static str, prefix: &'static str) -> Self {
        Self {
            space,
            root,
            prefix,
            leaves: BTreeMap::new(),
            groups: BTreeSet::new(),
        }
    }

    /// Sets destinations, or takes them away. Returns what that makes of the chains.
    pub(super) fn set(&mut self, changes: Vec<(Key, Option<L>)>) -> Changes {
        let mut dirty = BTreeSet::new();
        for (key, leaf) in changes {
            match leaf {
                Some(leaf) => self.leaves.insert(key.clone(), leaf),
                None => self.leaves.remove(&key),
            };
            dirty.insert(key);
        }
        let mut made = Changes::default();
        if !dirty.is_empty() {
            self.visit(&Key::default(), &dirty, &mut made);
        }
        made
    }

    /// All chains.
    pub(super) fn all(&mut self) -> Changes {
        let mut made = Changes::default();
        let dirty = self.leaves.keys().cloned().collect();
        self.visit(&Key::default(), &dirty, &mut made);
        made
    }

    /// The destinations that begin so.
    fn under<'a>(&'a self, group: &'a Key) -> impl DoubleEndedIterator<Item = (&'a Key, &'a L)> {
        range(&self.leaves, group)
    }

    /// The chain of a group, and what follows from it.
    fn visit(&mut self, group: &Key, dirty: &BTreeSet<Key>, made: &mut Changes) {
        let mut rules = Vec::new();
        let mut children: Vec<Key> = Vec::new();
        let few = self.under(group).take(LEAF + 1).count() <= LEAF;
        // What is shorter than others, an address without a port, comes after them.
        let mut last = Vec::new();
        if few {
            for (key, leaf) in self.under(group) {
                let is_short = key.nibbles().len() == self.space.before_protocol();
                let rules = if is_short { &mut last } else { &mut rules };
                rules.push(leaf.rule(&self.matches(key)));
            }
        } else if let Some(branch) = self.branch(group) {
            if let Some(leaf) = self.leaves.get(&branch) {
                last.push(leaf.rule(&self.matches(&branch)));
            }
            for nibble in 0..16 {
                let child = branch.followed_by(nibble);
                let mut under = self.under(&child);
                match (under.next(), under.next()) {
                    (Some((key, leaf)), None) => rules.push(leaf.rule(&self.matches(key))),
                    (Some(_), Some(_)) => {
                        let target = chain_names::group(self.prefix, self.space, &child);
                        rules.push(format!("{}-j {target}", self.matches(&child)));
                        drop(under);
                        children.push(child);
                    }
                    (None, _) => {}
                }
            }
        }
        rules.append(&mut last);

        // What was below and is below no child any more.
        let below = keys(&self.groups, group).filter(|old| *old != group);
        let stale: Vec<Key> = below
            .filter(|old| !children.iter().any(|child| old.starts_with(child)))
            .cloned()
            .collect();
        for old in stale {
            self.groups.remove(&old);
            made.gone
                .push(chain_names::group(self.prefix, self.space, &old));
        }
        for child in children {
            let is_new = self.groups.insert(child.clone());
            if is_new || keys(dirty, &child).next().is_some() {
                self.visit(&child, dirty, made);
            }
        }
        let name = if group.nibbles().is_empty() {
            self.root.to_owned()
        } else {
            chain_names::group(self.prefix, self.space, group)
        };
        made.chains.push(Chain { name, rules });
    }

    /// Where the destinations of a group part.
    fn branch(&self, group: &Key) -> Option<Key> {
        let mut under = self.under(group);
        let (first, _) = under.next()?;
        let (last, _) = under.next_back()?;
        Some(first.common(last))
    }

    /// What tells those who begin so from others, and a space.
    fn matches(&self, key: &Key) -> String {
        let before = self.space.before_protocol();
        let nibbles = key.nibbles();
        let (address, rest) = nibbles.split_at(nibbles.len().min(before));
        let mut matches = String::new();
        if let Space::Addresses(family) = self.space
            && !address.is_empty()
        {
            let bits = 4 * address.len();
            matches = format!(
                "-d {}/{bits} ",
                spelling::address(chain_names::address_of(family, address))
            );
        }
        let Some((protocol, port)) = rest.split_first() else {
            return matches;
        };
        let Some(protocol) = PROTOCOLS.get(usize::from(*protocol)) else {
            return matches;
        };
        matches += &format!("-p {protocol} ");
        if port.is_empty() {
            return matches;
        }
        let digits = u32::try_from(4 * (4 - port.len().min(4))).unwrap_or(0);
        let first = port
            .iter()
            .fold(0_u32, |bits, nibble| bits << 4 | u32::from(*nibble))
            << digits;
        let end = first + (1 << digits) - 1;
        matches += &if digits == 0 {
            format!("-m {protocol} --dport {first} ")
        } else {
            format!("-m {protocol} --dport {first}:{end} ")
        };
        matches
    }
}

fn range<'a, L>(
    leaves: &'a BTreeMap<Key, L>,
    group: &Key,
) -> impl DoubleEndedIterator<Item = (&'a Key, &'a L)> {
    let end = after(group).map_or(Bound::Unbounded, Bound::Excluded);
    leaves.range((Bound::Included(group.clone()), end))
}

fn keys<'a>(set: &'a BTreeSet<Key>, group: &Key) -> impl Iterator<Item = &'a Key> {
    let end = after(group).map_or(Bound::Unbounded, Bound::Excluded);
    set.range((Bound::Included(group.clone()), end))
}

/// The first key that does not begin so any more.
fn after(group: &Key) -> Option<Key> {
    let mut nibbles = group.nibbles().to_vec();
    // A digit beyond the last is no digit, and in order all the same.
    *nibbles.last_mut()? += 1;
    Some(Key::from_nibbles(nibbles))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;
    use crate::core::ir::{Destination, Host};
    use crate::core::model::{Family, Protocol};

    struct Named(String);

    impl Leaf for Named {
        fn rule(&self, matches: &str) -> String {
            format!("{matches}-j {}", self.0)
        }
    }

    const SPACE: Space = Space::Addresses(Family::V4);

    fn tree() -> Tree<Named> {
        Tree::new(SPACE, "ROOT", "G-")
    }

    fn named(to: Destination) -> (Key, Option<Named>) {
        (Key::of(to), Some(Named(format!("={to}"))))
    }

    type Chains = HashMap<String, Vec<String>>;

    fn apply(chains: &mut Chains, changes: Changes) {
        for name in changes.gone {
            assert!(chains.remove(&name).is_some(), "{name} was not there");
        }
        for chain in changes.chains {
            let targets = chain
                .rules
                .iter()
                .filter_map(|rule| rule.rsplit_once("-j G-"));
            for (_, target) in targets {
                assert!(
                    chains.contains_key(&format!("G-{target}")),
                    "{target} comes too late"
                );
            }
            chains.insert(chain.name, chain.rules);
        }
    }

    /// Whether a packet to there matches.
    fn matches(rule: &str, to: Destination) -> bool {
        let mut words = rule.split(' ');
        let mut all = true;
        while let Some(word) = words.next() {
            match word {
                "-d" => {
                    let network: ipnetwork::IpNetwork = words.next().unwrap().parse().unwrap();
                    let Host::Address(address) = to.host else {
                        return false;
                    };
                    all &= network.contains(address);
                }
                "-p" => all &= words.next() == Some(to.protocol.name()),
                "--dport" => {
                    let range = words.next().unwrap();
                    let (first, last) = range.split_once(':').unwrap_or((range, range));
                    let ports = first.parse::<u16>().unwrap()..=last.parse().unwrap();
                    all &= ports.contains(&to.port);
                }
                _ => {}
            }
        }
        all
    }

    /// Where a packet goes, and how many rules it passes.
    fn walk(chains: &Chains, name: &str, to: Destination, passed: &mut usize) -> Option<String> {
        for rule in &chains[name] {
            *passed += 1;
            if !matches(rule, to) {
                continue;
            }
            let (_, target) = rule.rsplit_once("-j ").unwrap();
            if target.starts_with('=') {
                return Some(target.to_owned());
            }
            if let Some(found) = walk(chains, target, to, passed) {
                return Some(found);
            }
        }
        None
    }

    fn destination(address: [u8; 4], protocol: u8, port: u16) -> Destination {
        Destination {
            host: Host::Address(IpAddr::from(address)),
            protocol: Protocol::ALL[usize::from(protocol)],
            port,
        }
    }

    prop_compose! {
        fn destinations()(
            close in prop::collection::vec((0_u8..4, any::<u8>(), 0_u8..3, 1_u16..200), 0..120),
            far in prop::collection::vec((any::<[u8; 4]>(), 0_u8..3, any::<u16>()), 0..20),
            one in prop::collection::vec((0_u8..3, any::<u16>()), 0..60),
        ) -> Vec<Destination> {
            let close = close.into_iter().map(|(c, d, protocol, port)| {
                destination([10, 96, c, d], protocol, port)
            });
            let far = far.into_iter().map(|(address, protocol, port)| {
                destination(address, protocol, port)
            });
            let one = one.into_iter().map(|(protocol, port)| {
                destination([203, 0, 113, 7], protocol, port)
            });
            close.chain(far).chain(one).collect()
        }
    }

    proptest! {
        #[test]
        fn however_a_tree_came_about_it_is_the_same_and_leads_to_every_destination(
            all in destinations(),
            steps in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 0..60),
        ) {
            let mut chains = Chains::new();
            let mut grown = tree();
            apply(&mut chains, grown.all());
            let mut there = BTreeSet::new();
            let (first, later) = all.split_at(all.len() / 2);
            apply(&mut chains, grown.set(first.iter().map(|to| named(*to)).collect()));
            there.extend(first);
            for to in later {
                apply(&mut chains, grown.set(vec![named(*to)]));
                there.insert(to);
            }
            for (index, comes) in steps {
                if all.is_empty() {
                    break;
                }
                let to = index.get(&all);
                if comes {
                    apply(&mut chains, grown.set(vec![named(*to)]));
                    there.insert(to);
                } else {
                    apply(&mut chains, grown.set(vec![(Key::of(*to), None)]));
                    there.remove(to);
                }
            }
            let mut fresh = tree();
            fresh.set(there.iter().map(|to| named(**to)).collect());
            let mut expected = Chains::new();
            apply(&mut expected, fresh.all());
            prop_assert_eq!(&chains, &expected);
            for to in all.iter() {
                let found = walk(&chains, "ROOT", *to, &mut 0);
                prop_assert_eq!(found, there.contains(to).then(|| format!("={to}")));
            }
        }
    }

    #[test]
    fn a_first_packet_passes_tens_of_rules_at_twenty_thousand_services() {
        let all: Vec<Destination> = (0..20_000_u32)
            .map(|number| {
                // Spread as the API server spreads them.
                let [_, b, c, d] = (number.wrapping_mul(2_654_435_761) >> 12).to_be_bytes();
                destination([10, 96 + (b & 0xf), c, d], 0, 80)
            })
            .collect();
        let mut tree = tree();
        tree.set(all.iter().map(|to| named(*to)).collect());
        let mut chains = Chains::new();
        apply(&mut chains, tree.all());
        let mut most = 0;
        for to in &all {
            let mut passed = 0;
            assert!(walk(&chains, "ROOT", *to, &mut passed).is_some());
            most = most.max(passed);
        }
        assert!(most <= 80, "{most}");
    }
}
