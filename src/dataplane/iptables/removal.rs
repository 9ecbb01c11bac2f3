//! Taking chains away: ours, or another proxy's.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::record::TABLES;
use super::saved;
use super::tool::{Tool, ToolError};
use crate::dataplane::owners::{is_built_in, is_for_others_too, is_kube_proxys, is_ours};

/// Whose chains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    Ours,
    KubeProxys,
}

/// Takes chains away, and the rules that lead to them. Goes on with the other tables where one cannot be
/// changed. Returns how many chains there were.
pub(super) fn remove(tool: &Tool, what: What) -> Result<usize, ToolError> {
    // kube-proxy's canary is in the third.
    let more = (what == What::KubeProxys).then_some("mangle");
    let mut chains = 0;
    let mut failed = None;
    for table in TABLES.into_iter().chain(more) {
        let removed = tool.save(table).and_then(|saved| {
            let Some((text, count)) = removal(table, &saved, what) else {
                return Ok(0);
            };
            tool.restore(&text).map(|()| count)
        });
        match removed {
            Ok(count) => chains += count,
            // Another table has the same lock.
            Err(error @ ToolError::Locked { .. }) => return Err(error),
            Err(error) => failed = Some(error),
        }
    }
    failed.map_or(Ok(chains), Err)
}

/// What takes away chains, and how many they are; nothing if there are none.
fn removal(table: &str, saved: &str, what: What) -> Option<(String, usize)> {
    let listing = saved::read(saved);
    let mut chains: BTreeSet<&str> = match what {
        What::Ours => listing.held.chains.keys().map(String::as_str).collect(),
        What::KubeProxys => listing.kube_proxy.iter().map(String::as_str).collect(),
    };
    let is_theirs = |chain: &str| match what {
        What::Ours => is_ours(chain),
        What::KubeProxys => is_kube_proxys(chain),
    };
    let rules = saved.lines().filter_map(|line| line.strip_prefix("-A "));
    let mut leading = Vec::new();
    for line in rules {
        let Some((chain, rule)) = line.split_once(' ') else {
            continue;
        };
        let Some(target) = saved::target_of(rule).filter(|target| is_theirs(target)) else {
            continue;
        };
        if is_theirs(chain) {
            continue;
        }
        if is_for_others_too(target) && !is_built_in(chain) {
            chains.remove(target);
        } else {
            leading.push(line);
        }
    }
    if chains.is_empty() {
        return None;
    }
    let mut text = format!("*{table}\n");
    for chain in &chains {
        let _ = writeln!(text, ":{chain} - [0:0]");
    }
    for rule in leading {
        let _ = writeln!(text, "-D {rule}");
    }
    for chain in &chains {
        let _ = writeln!(text, "-X {chain}");
    }
    text.push_str("COMMIT\n");
    Some((text, chains.len()))
}
