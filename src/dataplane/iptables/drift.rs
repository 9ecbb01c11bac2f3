//! What others have done to our chains: noticed from time to time, since nobody tells.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::chain::Mark;
use super::record::{Known, TABLES, lock};
use super::saved;
use super::tool::Tool;
use crate::dataplane::Changed;

/// How many times as long as a look takes it is until the next one.
const REST: u32 = 50;
/// The same after changes of ours where the tool prints rules otherwise than they were written: what one is can be
/// told from what it was only after a look at it.
const SOON: u32 = 10;

/// The families that are looked at; more may come.
pub(super) type Watched = Arc<Mutex<Vec<(Tool, Known)>>>;

/// What the last look at a table came to.
#[derive(Debug, Default)]
struct Look {
    /// The number of our changes, and the listing's print.
    seen: Option<(u64, u64)>,
    /// It could not be listed.
    failed: bool,
}

/// Looks for changes by others in a thread of its own, for as long as the process lives.
pub(super) fn watch(families: Watched, every: Duration, changed: Changed) -> std::io::Result<()> {
    let look = move || {
        let mut looks: Vec<[Look; 2]> = Vec::new();
        let mut pause = every;
        loop {
            std::thread::sleep(pause);
            let started = Instant::now();
            let mut rest = REST;
            let families = families
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            looks.resize_with(families.len(), Default::default);
            for ((tool, known), looks) in families.iter().zip(&mut looks) {
                for (number, look) in looks.iter_mut().enumerate() {
                    let was = look.seen.map(|(changes, _)| changes);
                    if differs(tool, known, number, look) {
                        changed(None);
                    }
                    if was != look.seen.map(|(changes, _)| changes) {
                        rest = SOON;
                    }
                }
            }
            let took = started.elapsed();
            tracing::debug!(?took, "looked for changes of others");
            pause = every.max(rest * took);
        }
    };
    std::thread::Builder::new()
        .name("drift".to_owned())
        .spawn(look)?;
    Ok(())
}

/// Whether a table holds something else than what was written.
fn differs(tool: &Tool, known: &Known, number: usize, look: &mut Look) -> bool {
    let changes = lock(known).changes;
    let Some(table) = TABLES.get(number) else {
        return false;
    };
    let saved = match tool.save(table) {
        Ok(saved) => saved,
        Err(error) => {
            if !std::mem::replace(&mut look.failed, true) {
                tracing::warn!(%error, "what others do to our chains is not seen until that is over");
            }
            return false;
        }
    };
    look.failed = false;
    let listing = saved::read(&saved);
    drop(saved);
    let is_exact = listing.is_exact();
    let mut known = lock(known);
    known.exact = known.exact.or(is_exact);
    let exact = known.exact == Some(true);
    if exact
        && listing
            .unlike
            .iter()
            .any(|unlike| !known.odd.contains(unlike))
    {
        // A chain is written as a whole, with its mark: this was not us.
        return true;
    }
    let Some(expected) = known.tables.get(number) else {
        return false;
    };
    let is_emptied = |(name, mark): (&String, &Mark)| {
        let written = expected.chains.get(name);
        mark.digest.is_empty() && written.is_some_and(|written| !written.digest.is_empty())
    };
    if listing.held.chains.iter().any(is_emptied) {
        return true;
    }
    let sorted = |hooks: &[String]| {
        let mut hooks = hooks.to_vec();
        hooks.sort_unstable();
        hooks
    };
    let same_hooks = if exact {
        sorted(&listing.held.hooks) == sorted(&expected.hooks)
    } else {
        listing.held.hooks.len() == expected.hooks.len()
    };
    if !same_hooks {
        // They hardly ever change.
        return true;
    }
    if known.changes != changes {
        // It was in the middle of one of ours.
        return false;
    }
    if listing.held.chains != expected.chains {
        return true;
    }
    if exact {
        return false;
    }
    let was = look.seen.replace((changes, listing.print));
    let is_other = was.is_some_and(|(then, print)| then == changes && print != listing.print);
    known.doubtful |= is_other;
    is_other
}
