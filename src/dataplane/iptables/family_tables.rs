//! One family: its tools, what its tables are to be and what they hold, and how the one becomes the other.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::chain::Chain;
use super::fixed::{self, Hook};
use super::plan::{Program, Stage};
use super::record::{FILTER, Known, NAT, TABLES, lock};
use super::removal::{self, What};
use super::restore::{Restore, Text};
use super::saved;
use super::tool::{Tool, ToolError, Variant};
use crate::core::ir::Delta;
use crate::core::model::{Family, Owner};
use crate::dataplane::{Applied, ApplyError, Options, Refused};

/// How many rules the nft variant restores at once: it takes more than twice as long for twice as many. To the
/// other each piece is the whole table.
const RULES_AT_ONCE: usize = 1 << 14;

/// One family that is programmed.
pub(super) struct FamilyTables {
    pub(super) tool: Tool,
    pub(super) program: Program,
    /// What each table holds, as far as it is ours.
    pub(super) known: Known,
    /// How many rules of each table the last change wrote.
    pub(super) last: [usize; 2],
    /// How long the last change took.
    pub(super) took: Duration,
}

impl FamilyTables {
    /// Finds a family's tools, and has them look at their tables, which loads what the kernel needs for them.
    pub(super) fn open(options: &Options, family: Family) -> Result<Self, ToolError> {
        let tool = Tool::find(family)?;
        for table in TABLES {
            tool.save(table)?;
        }
        tracing::debug!(%family, variant = ?tool.variant, "iptables");
        Ok(Self {
            tool,
            program: Program::new(options, family),
            known: Arc::default(),
            last: [0; 2],
            took: Duration::ZERO,
        })
    }

    /// Reads what the tables hold. What they are to be is not known from then on.
    pub(super) fn read(&mut self, options: &Options) -> Result<(), ToolError> {
        let mut tables = [saved::Held::default(), saved::Held::default()];
        for (table, name) in tables.iter_mut().zip(TABLES) {
            *table = saved::read(&self.tool.save(name)?).held;
        }
        let mut known = lock(&self.known);
        if std::mem::take(&mut known.doubtful) {
            let chains = tables
                .iter_mut()
                .flat_map(|table| table.chains.values_mut());
            chains.for_each(|mark| mark.digest.clear());
        }
        known.tables = tables;
        known.changes += 1;
        drop(known);
        self.program = Program::new(options, self.tool.family);
        Ok(())
    }

    /// How many rules each table has.
    pub(super) fn rules(&self) -> [usize; 2] {
        let known = lock(&self.known);
        known.tables.each_ref().map(|table| {
            let rules: usize = table.chains.values().map(|mark| mark.rules).sum();
            rules + table.hooks.len()
        })
    }

    /// Writes what differs of one stage. Returns what it took.
    fn write(
        &mut self,
        table: usize,
        stage: Stage,
        all: Option<&BTreeSet<String>>,
        isolate: bool,
        applied: &mut Applied,
    ) -> Result<(), Failed> {
        let mut pieces = vec![Restore::default()];
        let mut last_owner = None;
        {
            let known = lock(&self.known);
            let held = &known.tables[table];
            let mut gone: BTreeSet<String> = stage.gone.into_iter().collect();
            for (owner, chain) in stage.chains {
                let mark = chain.mark();
                gone.remove(&chain.name);
                if held.chains.get(&chain.name) == Some(&mark) {
                    continue;
                }
                let apart = isolate && last_owner.is_some_and(|last| last != owner);
                last_owner = Some(owner);
                let most = match self.tool.variant {
                    Variant::Nft => RULES_AT_ONCE,
                    Variant::Legacy => usize::MAX,
                };
                let is_full = pieces.last().is_none_or(|piece| piece.rules() >= most);
                if apart || is_full {
                    pieces.push(Restore::default());
                }
                if let Some(piece) = pieces.last_mut() {
                    piece.write(owner, chain, mark);
                }
            }
            if let Some(all) = all {
                let strangers = held.chains.keys().filter(|name| !all.contains(*name));
                gone.extend(strangers.cloned());
            }
            let hooks = if table == NAT {
                fixed::NAT_HOOKS
            } else {
                fixed::FILTER_HOOKS
            };
            if let Some(piece) = pieces.last_mut() {
                for hook in hooks.iter().filter(|hook| !leads(held, hook)) {
                    piece.hook(*hook);
                }
                for name in gone {
                    if held.chains.contains_key(&name) {
                        piece.delete(name);
                    }
                }
            }
        }
        for piece in pieces {
            if !piece.is_empty() {
                self.restore(table, piece, applied)?;
            }
        }
        Ok(())
    }

    fn restore(
        &mut self,
        table: usize,
        piece: Restore,
        applied: &mut Applied,
    ) -> Result<(), Failed> {
        let text = piece.text(TABLES[table]);
        let started = Instant::now();
        // Who looks for drift meanwhile sees neither the one nor the other.
        let mut known = lock(&self.known);
        known.changes += 1;
        drop(known);
        if let Err(error) = self.tool.restore(&text.text) {
            return Err(Failed {
                family: self.tool.family,
                error,
                text,
            });
        }
        let took = started.elapsed();
        self.last[table] += piece.rules();
        self.took += took;
        *applied += Applied {
            operations: piece.rules(),
            messages: 1,
            bytes: text.text.len(),
            kernel: took,
            transactions: 1,
            longest: took,
            largest: piece.rules(),
            ..Applied::default()
        };
        known = lock(&self.known);
        known.changes += 1;
        let held = &mut known.tables[table];
        let (written, gone, hooks) = piece.outcome();
        held.chains.extend(written);
        for name in gone {
            held.chains.remove(&name);
        }
        for hook in hooks {
            held.hooks
                .push((hook.chain.to_owned(), hook.target.to_owned()));
        }
        Ok(())
    }

    /// Applies what a delta means for this family.
    pub(super) fn apply(
        &mut self,
        delta: &Delta,
        isolate: bool,
        applied: &mut Applied,
    ) -> Result<(), Failed> {
        let begins = self.program.begins;
        self.last = [0; 2];
        self.took = Duration::ZERO;
        let stages = self.program.plan(delta);
        let names = |chains: &[(Owner, Chain)]| -> Vec<String> {
            chains.iter().map(|(_, chain)| chain.name.clone()).collect()
        };
        // All that is to be there is written when it begins, so that all else is to go.
        let nat: Option<BTreeSet<String>> =
            begins.then(|| names(&stages.nat.chains).into_iter().collect());
        let filter: Option<BTreeSet<String>> = begins.then(|| {
            let mut all = names(&stages.filter.chains);
            all.extend(names(&stages.refuse.chains));
            all.into_iter().collect()
        });
        if !stages.refuse.chains.is_empty() {
            self.write(FILTER, stages.refuse, None, isolate, applied)?;
        }
        self.write(NAT, stages.nat, nat.as_ref(), isolate, applied)?;
        self.write(FILTER, stages.filter, filter.as_ref(), isolate, applied)?;
        self.program.done(delta);
        Ok(())
    }

    /// Takes away all that is ours, or another proxy's chains and what leads to them.
    pub(super) fn remove(&mut self, which: What) -> Result<usize, ToolError> {
        let mut chains = 0;
        for (number, table) in TABLES.into_iter().enumerate() {
            let saved = self.tool.save(table)?;
            let listing = saved::read(&saved);
            let text = removal::removal(table, &saved, &listing, which);
            if let Some(text) = text {
                self.tool.restore(&text)?;
                chains += match which {
                    What::Ours => listing.held.chains.len(),
                    What::KubeProxys => listing.kube_proxy.len(),
                };
            }
            if which == What::Ours {
                let mut known = lock(&self.known);
                known.changes += 1;
                known.tables[number] = saved::Held::default();
            }
        }
        Ok(chains)
    }
}

fn leads(held: &saved::Held, hook: &Hook) -> bool {
    held.hooks
        .iter()
        .any(|(chain, target)| chain == hook.chain && target == hook.target)
}

/// A restore that was refused.
pub(super) struct Failed {
    family: Family,
    error: ToolError,
    text: Text,
}

impl Failed {
    /// What the reconciler is told. `begun` says whether something else has been applied already: then what
    /// is there has to be read again.
    pub(super) fn into_error(self, begun: bool) -> ApplyError {
        let Self {
            family,
            error,
            text,
        } = self;
        let (what, line) = match &error {
            ToolError::Failed { line, .. } => (error.to_string(), *line),
            _ if begun => (error.to_string(), None),
            _ => return ApplyError::Unavailable(error.into()),
        };
        let is_failure = matches!(error, ToolError::Failed { .. });
        let (owners, chain) = match line.and_then(|line| text.owner_of(line)) {
            Some((owner, chain)) => (vec![owner], format!(" (chain {chain})")),
            None if is_failure => (text.owners(), String::new()),
            None => (Vec::new(), String::new()),
        };
        ApplyError::Refused(vec![Refused {
            what: format!("{what}{chain}"),
            // That a tool could not do its work says nothing of a family.
            family: is_failure.then_some(family),
            owners,
            errno: if is_failure {
                Errno::EINVAL
            } else {
                Errno::EAGAIN
            },
            message: None,
        }])
    }
}
