//! Taking chains away: ours, or another proxy's.

use std::fmt::Write as _;

use super::saved::{self, Listing};
use crate::dataplane::owners::is_ours;

/// Whose chains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    Ours,
    KubeProxys,
}

/// What takes away chains, and the rules of the kernel's chains that lead to them; nothing if there are none.
pub(super) fn removal(table: &str, saved: &str, listing: &Listing, what: What) -> Option<String> {
    let chains: Vec<&str> = match what {
        What::Ours => listing.held.chains.keys().map(String::as_str).collect(),
        What::KubeProxys => listing.kube_proxy.iter().map(String::as_str).collect(),
    };
    if chains.is_empty() {
        return None;
    }
    let mut text = format!("*{table}\n");
    for chain in &chains {
        let _ = writeln!(text, ":{chain} - [0:0]");
    }
    let ours = saved.lines().filter(|line| {
        let rule = line
            .strip_prefix("-A ")
            .and_then(|line| line.split_once(' '));
        rule.is_some_and(|(chain, rule)| {
            let leads = saved::target_of(rule).is_some_and(is_ours);
            !is_ours(chain) && leads
        })
    });
    let leading: Vec<&str> = match what {
        What::Ours => ours.collect(),
        What::KubeProxys => listing
            .kube_proxy_hooks
            .iter()
            .map(String::as_str)
            .collect(),
    };
    for rule in leading.iter().filter_map(|line| line.strip_prefix("-A ")) {
        let _ = writeln!(text, "-D {rule}");
    }
    for chain in &chains {
        let _ = writeln!(text, "-X {chain}");
    }
    text.push_str("COMMIT\n");
    Some(text)
}
