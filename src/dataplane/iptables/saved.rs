//! What `iptables-save` prints, as far as it is ours.

use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};

use rustc_hash::{FxBuildHasher, FxHasher};

use super::chain::{Content, Mark, digest_in};
use super::chain_names::{FORWARD, POSTROUTING, SERVICES};
use crate::dataplane::owners::{is_built_in, is_kube_proxys, is_ours};

/// Our part of a table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Held {
    /// Our chains. One without a mark has an empty digest.
    pub(super) chains: HashMap<String, Mark, FxBuildHasher>,
    /// The rules of the kernel's chains that lead to ours, each after its chain's name, in their order.
    pub(super) hooks: Vec<String>,
}

/// A chain whose rules are not those of its mark.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Unlike {
    pub(super) chain: String,
    /// The digest that its mark has.
    pub(super) mark: String,
    /// That of its rules, as they are listed.
    pub(super) listed: String,
}

/// A listing of one table.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) held: Held,
    /// What all of it comes to: two that are equal are of the same rules.
    pub(super) print: u64,
    /// Our chains whose rules are not those of the mark that they have.
    pub(super) unlike: Vec<Unlike>,
    /// Our chains that remember clients.
    pub(super) remembering: HashSet<String, FxBuildHasher>,
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
                if rule.contains("-m recent --update") {
                    listing.remembering.insert(name.to_owned());
                }
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
        let listed = content.digest();
        if !mark.digest.is_empty() && listed != mark.digest {
            listing.unlike.push(Unlike {
                chain: name.clone(),
                mark: mark.digest.clone(),
                listed,
            });
        }
    }
    listing
}

impl Listing {
    /// Whether this tool prints rules as they were written, so that a chain can be held against its mark: told by
    /// chains that no Service has a part in. `None` if there is nothing to tell by.
    pub(super) fn is_exact(&self) -> Option<bool> {
        let fixed = [POSTROUTING, FORWARD, SERVICES];
        let mut found = fixed.into_iter().filter_map(|name| {
            let mark = self.held.chains.get(name)?;
            let is_unlike = self.unlike.iter().any(|unlike| unlike.chain == name);
            (!mark.digest.is_empty()).then_some(!is_unlike)
        });
        let first = found.next()?;
        Some(first || found.any(|is_like| is_like))
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
    let mut target = None;
    let (mut is_quoted, mut is_escaped) = (false, false);
    for (at, byte) in rule.bytes().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => is_quoted = !is_quoted,
            b'-' if !is_quoted && (at == 0 || rule.as_bytes().get(at - 1) == Some(&b' ')) => {
                let rest = rule.get(at..).unwrap_or_default();
                let found = rest
                    .strip_prefix("-j ")
                    .or_else(|| rest.strip_prefix("-g "));
                target = target.or(found);
            }
            _ => {}
        }
    }
    target?.split(' ').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_rule_leads_is_not_what_it_says_between_quotes() {
        let cases = [
            ("-s 1.2.3.4/32 -j POINTSMAN-INPUT", Some("POINTSMAN-INPUT")),
            ("-m comment --comment \"-j A\" -g B", Some("B")),
            ("-m comment --comment \"a \\\" -j A\" -j B", Some("B")),
            ("-j LOG --log-prefix \"-j POINTSMAN-INPUT \"", Some("LOG")),
            ("-p tcp", None),
        ];
        for (rule, target) in cases {
            assert_eq!(target_of(rule), target, "{rule}");
        }
    }
}
