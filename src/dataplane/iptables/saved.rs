//! What `iptables-save` prints, as far as it is ours.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};

use rustc_hash::{FxBuildHasher, FxHasher};

use super::chain::{Content, Mark, digest_in};
use crate::dataplane::owners::{is_built_in, is_kube_proxys, is_ours};

/// Our part of a table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Held {
    /// Our chains. One without a mark has an empty digest.
    pub(super) chains: HashMap<String, Mark, FxBuildHasher>,
    /// The rules of the kernel's chains that lead to ours, each after its chain's name, in their order.
    pub(super) hooks: Vec<String>,
}

/// A listing of one table.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) held: Held,
    /// What all of it comes to: two that are equal are of the same rules.
    pub(super) print: u64,
    /// Our chains whose rules are not those that their mark is of.
    pub(super) unlike: Vec<String>,
    /// Chains of another proxy.
    pub(super) kube_proxy: Vec<String>,
}

/// Reads what `iptables-save -t TABLE` has printed.
pub(super) fn read(text: &str) -> Listing {
    let mut listing = Listing::default();
    let mut print = FxHasher::default();
    let mut contents: HashMap<&str, Content, FxBuildHasher> = HashMap::default();
    for line in text.lines() {
        if let Some(declared) = line.strip_prefix(':') {
            let name = declared.split(' ').next().unwrap_or_default();
            if is_ours(name) {
                name.hash(&mut print);
                listing.chain(name);
            } else if is_kube_proxys(name) {
                listing.kube_proxy.push(name.to_owned());
            }
            continue;
        }
        let Some((name, rule)) = line
            .strip_prefix("-A ")
            .and_then(|line| line.split_once(' '))
        else {
            continue;
        };
        if is_ours(name) {
            line.hash(&mut print);
            let mark = listing.chain(name);
            mark.rules += 1;
            if let Some(digest) = digest_in(rule) {
                digest.clone_into(&mut mark.digest);
            } else {
                contents.entry(name).or_default().rule(rule);
            }
            continue;
        }
        let Some(target) = target_of(rule) else {
            continue;
        };
        if is_ours(target) && is_built_in(name) {
            line.hash(&mut print);
            listing.held.hooks.push(format!("{name} {rule}"));
        }
    }
    listing.print = print.finish();
    for (name, mark) in &listing.held.chains {
        let content = contents.remove(name.as_str()).unwrap_or_default();
        if content.digest() != mark.digest {
            listing.unlike.push(name.clone());
        }
    }
    listing
}

impl Listing {
    /// Whether this tool prints rules as they were written, so that a chain can be held against its mark: not
    /// if most of those that have one differ. `None` if there is nothing to tell by.
    pub(super) fn is_exact(&self) -> Option<bool> {
        let marks = self.held.chains.values();
        let marked = marks.filter(|mark| !mark.digest.is_empty()).count();
        (marked > 0).then(|| 2 * self.forged().count() < marked)
    }

    /// Our chains whose rules are not those of the mark that they have.
    pub(super) fn forged(&self) -> impl Iterator<Item = &str> {
        let marked = |name: &&String| {
            let mark = self.held.chains.get(*name);
            mark.is_some_and(|mark| !mark.digest.is_empty())
        };
        self.unlike.iter().filter(marked).map(String::as_str)
    }

    fn chain(&mut self, name: &str) -> &mut Mark {
        self.held
            .chains
            .entry(name.to_owned())
            .or_insert_with(|| Mark {
                digest: String::new(),
                rules: 0,
            })
    }
}

/// Where a rule leads.
pub(super) fn target_of(rule: &str) -> Option<&str> {
    let (_, target) = rule
        .rsplit_once("-j ")
        .or_else(|| rule.rsplit_once("-g "))?;
    target.split(' ').next()
}
