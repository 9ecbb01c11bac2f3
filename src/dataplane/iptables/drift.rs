//! What others have done to our chains: noticed from time to time, since nobody tells.

use std::time::{Duration, Instant};

use super::record::{Known, TABLES, lock};
use super::saved::{self, Listing};
use super::tool::Tool;
use crate::dataplane::Changed;

/// How many times as long as a look takes it is until the next one.
const REST: u32 = 50;
/// The same after changes of ours: what a rule is can be told from what it was only after a look at it.
const SOON: u32 = 10;

/// Looks for changes by others in a thread of its own, for as long as the process lives.
pub(super) fn watch(
    families: Vec<(Tool, Known)>,
    every: Duration,
    changed: Changed,
) -> std::io::Result<()> {
    let look = move || {
        // Of each family and table: the number of our changes, and what the listing came to.
        let mut before: Vec<[Option<(u64, u64)>; 2]> = vec![[None; 2]; families.len()];
        let mut pause = every;
        loop {
            std::thread::sleep(pause);
            let started = Instant::now();
            let mut rest = REST;
            for ((tool, known), before) in families.iter().zip(&mut before) {
                for (number, before) in before.iter_mut().enumerate() {
                    let was = before.map(|(changes, _)| changes);
                    if differs(tool, known, number, before) {
                        changed(None);
                    }
                    if was != before.map(|(changes, _)| changes) {
                        rest = SOON;
                    }
                }
            }
            let took = started.elapsed();
            tracing::debug!(
                ?took,
                settled = rest == REST,
                "looked for changes of others"
            );
            pause = every.max(rest * took);
        }
    };
    std::thread::Builder::new()
        .name("drift".to_owned())
        .spawn(look)?;
    Ok(())
}

/// Whether a table holds something else than what was written.
fn differs(tool: &Tool, known: &Known, number: usize, before: &mut Option<(u64, u64)>) -> bool {
    let changes = lock(known).changes;
    let Some(saved) = TABLES.get(number).and_then(|table| tool.save(table).ok()) else {
        return false;
    };
    let Listing {
        mut held, print, ..
    } = saved::read(&saved);
    drop(saved);
    let mut known = lock(known);
    if known.changes != changes {
        // It was in the middle of one of ours.
        return false;
    }
    let Some(expected) = known.tables.get(number) else {
        return false;
    };
    let mut hooks = expected.hooks.clone();
    hooks.sort_unstable();
    held.hooks.sort_unstable();
    let same = held.chains == expected.chains && held.hooks == hooks;
    let was = before.replace((changes, print));
    let is_other = was.is_some_and(|(then, printed)| then == changes && printed != print);
    known.doubtful |= same && is_other;
    !same || is_other
}
