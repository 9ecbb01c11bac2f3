//! What `iptables-save` prints, as far as it is ours.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};

use rustc_hash::{FxBuildHasher, FxHasher};

use super::chain::{Mark, digest_in};
use crate::dataplane::owners::{is_kube_proxys, is_ours};

/// Our part of a table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Held {
    /// Our chains. One without a mark has an empty digest.
    pub(super) chains: HashMap<String, Mark, FxBuildHasher>,
    /// Which of the kernel's chains lead to which of ours, in the order of their rules.
    pub(super) hooks: Vec<(String, String)>,
}

/// A listing of one table.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) held: Held,
    /// What all of it comes to: two that are equal are of the same rules.
    pub(super) print: u64,
    /// Chains of another proxy.
    pub(super) kube_proxy: Vec<String>,
    /// Rules of the kernel's chains that lead to those.
    pub(super) kube_proxy_hooks: Vec<String>,
}

/// Reads what `iptables-save -t TABLE` has printed.
pub(super) fn read(text: &str) -> Listing {
    let mut listing = Listing::default();
    let mut print = FxHasher::default();
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
            }
            continue;
        }
        let Some(target) = target_of(rule) else {
            continue;
        };
        if is_ours(target) {
            line.hash(&mut print);
            listing
                .held
                .hooks
                .push((name.to_owned(), target.to_owned()));
        } else if is_kube_proxys(target) && !is_kube_proxys(name) {
            listing.kube_proxy_hooks.push(line.to_owned());
        }
    }
    listing.print = print.finish();
    listing
}

impl Listing {
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
