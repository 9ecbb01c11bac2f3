//! One family: its tools, what its tables are to be and what they hold, and how the one becomes the other.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::chain::Chain;
use super::fixed::{self, Hook};
use super::plan::{Program, Stage};
use super::record::{FILTER, Known, NAT, TABLES, lock};
use super::restore::{Restore, Text};
use super::saved::{self, Unlike};
use super::tool::{Tool, ToolError, Variant};
use crate::core::ir::Delta;
use crate::core::model::{Family, Owner};
use crate::dataplane::{Applied, ApplyError, Options, Refused};

/// How many rules the nft variant restores at once: it takes more than twice as long for twice as many. To the
/// other each piece is the whole table.
const RULES_AT_ONCE: usize = 1 << 14;

/// A chain that is there for a moment.
const PROBE: &str = "PTM-PROBE";

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
    /// Chains that were not as their marks say when they were read.
    suspects: Vec<(usize, Unlike)>,
    /// Whether there were chains of kube-proxy's when it was read.
    pub(super) has_kube_proxys: bool,
    /// Whether the kernel can remember clients, once that is known.
    remembers: Option<bool>,
}

impl FamilyTables {
    /// Finds a family's tools, and has them look at their tables, which loads what the kernel needs for them.
    pub(super) fn open(options: &Options, family: Family) -> Result<Self, ToolError> {
        let tool = Tool::find(family)?;
        for table in TABLES {
            match tool.save(table) {
                // What there is of ours is not known then, and everything else works.
                Ok(_) | Err(ToolError::Unreadable { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        tracing::debug!(%family, variant = ?tool.variant, "iptables");
        Ok(Self {
            tool,
            program: Program::new(options, family),
            known: Arc::default(),
            last: [0; 2],
            took: Duration::ZERO,
            suspects: Vec::new(),
            has_kube_proxys: false,
            remembers: None,
        })
    }

    /// What a table was found to hold.
    pub(super) fn held(&self, table: usize) -> saved::Held {
        lock(&self.known).tables[table].clone()
    }

    /// Whether the tool prints rules as they are written.
    pub(super) fn exact(&self) -> Option<bool> {
        lock(&self.known).exact
    }

    /// Reads what the tables hold. What they are to be is not known from then on.
    pub(super) fn read(&mut self, options: &Options) -> Result<(), ToolError> {
        let mut tables = [saved::Held::default(), saved::Held::default()];
        let mut exact = None;
        let mut remembering = HashSet::default();
        self.has_kube_proxys = false;
        self.suspects.clear();
        for (number, (table, name)) in tables.iter_mut().zip(TABLES).enumerate() {
            let saved = match self.tool.save(name) {
                Err(error @ ToolError::Unreadable { .. }) => {
                    tracing::warn!(%error, "all of it is written; chains of ours that are left over stay");
                    for hook in fixed::hooks(number, self.tool.family) {
                        if self.tool.has(name, &hook.listed())? {
                            table.hooks.push(hook.listed());
                        }
                    }
                    continue;
                }
                saved => saved?,
            };
            let listing = saved::read(&saved);
            let is_exact = listing.is_exact();
            self.has_kube_proxys |= !listing.kube_proxy.is_empty();
            *table = listing.held;
            exact = exact.or(is_exact);
            remembering.extend(listing.remembering);
            for unlike in listing
                .unlike
                .into_iter()
                .filter(|_| is_exact == Some(true))
            {
                if lock(&self.known).odd.contains(&unlike) {
                    continue;
                }
                let mark = table.chains.entry(unlike.chain.clone()).or_default();
                mark.digest.clear();
                self.suspects.push((number, unlike));
            }
        }
        let mut known = lock(&self.known);
        if std::mem::take(&mut known.doubtful) {
            let chains = tables
                .iter_mut()
                .flat_map(|table| table.chains.values_mut());
            chains.for_each(|mark| mark.digest.clear());
        }
        known.exact = known.exact.or(exact);
        known.tables = tables;
        known.changes += 1;
        drop(known);
        self.program = Program::new(options, self.tool.family);
        self.program.remembering = remembering;
        Ok(())
    }

    /// Chains that were not as their marks say have been written: whichever is listed as it was before is printed
    /// otherwise than it is written, and not somebody else's.
    fn look_at_suspects(&mut self) {
        let suspects = std::mem::take(&mut self.suspects);
        for (number, table) in TABLES.into_iter().enumerate() {
            if !suspects.iter().any(|(of, _)| *of == number) {
                continue;
            }
            let Ok(saved) = self.tool.save(table) else {
                continue;
            };
            let listing = saved::read(&saved);
            let again = listing.unlike.iter().filter(|unlike| {
                let mut same = suspects.iter().filter(|(of, _)| *of == number);
                same.any(|(_, suspect)| {
                    suspect.chain == unlike.chain && suspect.listed == unlike.listed
                })
            });
            let mut known = lock(&self.known);
            for unlike in again {
                tracing::warn!(
                    family = %self.tool.family, chain = unlike.chain,
                    "iptables-save prints a chain otherwise than it was written: what others do to it is not seen",
                );
                known.odd.insert(unlike.clone());
            }
        }
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
                let most = match self.tool.variant {
                    Variant::Nft => RULES_AT_ONCE,
                    Variant::Legacy => usize::MAX,
                };
                let is_full = pieces.last().is_none_or(|piece| piece.rules() >= most);
                if is_full {
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
            if let Some(piece) = pieces.last_mut() {
                let (missing, wrong) = self.unlike(table, held, known.exact);
                missing.into_iter().for_each(|hook| piece.hook(hook));
                wrong.into_iter().for_each(|listed| piece.unhook(listed));
                for name in gone {
                    if held.chains.contains_key(&name) {
                        piece.delete(name);
                    }
                }
            }
        }
        for piece in pieces {
            if !piece.is_empty() {
                self.restore_apart(table, piece, isolate, applied)?;
            }
        }
        Ok(())
    }

    /// The hooks that are missing, and the rules of the kernel's chains that lead to ours and should not.
    pub(super) fn unlike(
        &self,
        table: usize,
        held: &saved::Held,
        exact: Option<bool>,
    ) -> (Vec<Hook>, Vec<String>) {
        let wanted = fixed::hooks(table, self.tool.family);
        let is = |hook: &Hook, listed: &str| {
            if exact == Some(false) {
                hook.is_like(listed)
            } else {
                hook.listed() == listed
            }
        };
        let mut missing = wanted;
        let mut wrong = Vec::new();
        for listed in &held.hooks {
            match missing.iter().position(|hook| is(hook, listed)) {
                Some(at) => drop(missing.remove(at)),
                None => wrong.push(listed.clone()),
            }
        }
        (missing, wrong)
    }

    /// Restores a piece; if it is to be found out whose fault it is that it is refused, in halves, up to what
    /// is refused of it.
    fn restore_apart(
        &mut self,
        table: usize,
        mut piece: Restore,
        isolate: bool,
        applied: &mut Applied,
    ) -> Result<(), Failed> {
        let Err(failed) = self.restore(table, &mut piece, applied) else {
            return Ok(());
        };
        if !failed.is_refusal() {
            return Err(failed);
        }
        let kept = piece.keep().join(", ");
        if !kept.is_empty() && self.restore(table, &mut piece, applied).is_ok() {
            tracing::warn!(
                family = %self.tool.family, table = TABLES[table], chains = kept,
                error = %failed.error,
                "chains are kept, empty: rules of somebody else's lead to them; take those away",
            );
            return Ok(());
        }
        if !isolate || failed.is_exact() {
            return Err(failed);
        }
        match piece.halves() {
            Some((first, second)) => {
                self.restore_apart(table, first, isolate, applied)?;
                self.restore_apart(table, second, isolate, applied)
            }
            None => Err(failed),
        }
    }

    fn restore(
        &mut self,
        table: usize,
        piece: &mut Restore,
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
        std::mem::take(piece).outcome(&mut known.tables[table]);
        Ok(())
    }

    /// Whether the kernel can remember clients, which is found out when somebody asks for it.
    fn can_remember(&mut self) -> bool {
        if let Some(can) = self.remembers {
            return can;
        }
        let text = |rule: &str| format!("*nat\n:{PROBE} - [0:0]\n{rule}\nCOMMIT\n");
        lock(&self.known).changes += 1;
        let rule = format!("-A {PROBE} -m recent --rcheck --name {PROBE} -j RETURN");
        let tried = self.tool.restore(&text(&rule));
        let removed = self.tool.restore(&text(&format!("-X {PROBE}")));
        lock(&self.known).changes += 1;
        match tried {
            Err(error @ ToolError::Failed { .. }) if removed.is_ok() => {
                tracing::warn!(
                    family = %self.tool.family, %error,
                    "clients cannot be remembered: Services are served without session affinity; \
                     `modprobe xt_recent`, and a new start of this program, mend it",
                );
                self.remembers = Some(false);
                false
            }
            // That something else is wrong says nothing of it.
            Err(_) => true,
            Ok(()) => {
                self.remembers = Some(true);
                true
            }
        }
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
        if self.program.is_to_remember(delta) && !self.can_remember() {
            self.program.forget_clients();
        }
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
        self.look_at_suspects();
        Ok(())
    }

    /// That nothing of ours is left.
    pub(super) fn forget(&mut self, options: &Options) {
        let mut known = lock(&self.known);
        known.changes += 1;
        known.tables = Default::default();
        drop(known);
        self.program = Program::new(options, self.tool.family);
    }
}

/// A restore that was refused.
pub(super) struct Failed {
    family: Family,
    error: ToolError,
    text: Text,
}

impl Failed {
    fn is_refusal(&self) -> bool {
        matches!(self.error, ToolError::Failed { .. })
    }

    /// Whether it is known which chain is to blame.
    fn is_exact(&self) -> bool {
        let ToolError::Failed { line, .. } = &self.error else {
            return false;
        };
        line.is_some_and(|line| self.text.owner_of(line).is_some())
    }

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
