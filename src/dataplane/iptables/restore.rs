//! What `iptables-restore` is given.

use std::fmt::Write as _;

use super::chain::{Chain, Mark, line};
use super::fixed::Hook;
use super::saved::Held;
use crate::core::model::Owner;

/// One table's part of a change, all of which happens at once.
#[derive(Debug, Default)]
pub(super) struct Restore {
    chains: Vec<(Owner, Chain, Mark)>,
    gone: Vec<String>,
    /// Those of them that cannot be deleted, since somebody else's rules lead to them.
    emptied: Vec<String>,
    hooks: Vec<Hook>,
    unhooked: Vec<String>,
    rules: usize,
}

/// The text, and who each line is for.
pub(super) struct Text {
    pub(super) text: String,
    /// The number of the first line of each chain's rules, from 1.
    owners: Vec<(usize, Owner, String)>,
}

impl Text {
    /// Who a line is for, and its chain.
    pub(super) fn owner_of(&self, line: usize) -> Option<(Owner, &str)> {
        let after = self.owners.partition_point(|(first, ..)| *first <= line);
        let (_, owner, chain) = self.owners.get(after.checked_sub(1)?)?;
        // Beyond the last chain's rules nobody is to blame.
        (line < self.owners.last()?.0).then_some((*owner, chain))
    }

    /// Everybody in it.
    pub(super) fn owners(&self) -> Vec<Owner> {
        let mut owners: Vec<Owner> = self.owners.iter().map(|(_, owner, _)| *owner).collect();
        owners.sort_unstable();
        owners.dedup();
        owners
    }
}

impl Restore {
    pub(super) fn write(&mut self, owner: Owner, chain: Chain, mark: Mark) {
        self.rules += mark.rules;
        self.chains.push((owner, chain, mark));
    }

    pub(super) fn delete(&mut self, name: String) {
        self.rules += 1;
        self.gone.push(name);
    }

    pub(super) fn hook(&mut self, hook: Hook) {
        self.rules += 1;
        self.hooks.push(hook);
    }

    /// Takes a rule out of a chain of the kernel's.
    pub(super) fn unhook(&mut self, listed: String) {
        self.rules += 1;
        self.unhooked.push(listed);
    }

    /// Has chains emptied that were to be deleted. Returns which; none if that is what it does already.
    pub(super) fn keep(&mut self) -> &[String] {
        let gone = std::mem::take(&mut self.gone);
        self.rules -= gone.len();
        let first = self.emptied.len();
        self.emptied.extend(gone);
        &self.emptied[first..]
    }

    /// Two halves of it, by their owners, the second after the first; `None` if it has but one owner.
    pub(super) fn halves(self) -> Option<(Self, Self)> {
        let middle = self.chains.len() / 2;
        let changes = |at: &usize| self.chains[*at].0 != self.chains[at - 1].0;
        let after = (middle.max(1)..self.chains.len()).find(changes);
        let at = after.or_else(|| (1..middle).rev().find(changes))?;
        let Self { mut chains, .. } = self;
        let later = chains.split_off(at);
        let rules = chains.iter().map(|(.., mark)| mark.rules).sum();
        let first = Self {
            chains,
            rules,
            ..Self::default()
        };
        let second = Self {
            chains: later,
            rules: self.rules - rules,
            ..self
        };
        Some((first, second))
    }

    /// How many lines it is about.
    pub(super) const fn rules(&self) -> usize {
        self.rules
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.rules == 0
    }

    /// The text for a table.
    pub(super) fn text(&self, table: &str) -> Text {
        let mut text = String::with_capacity(128 * self.rules);
        let mut owners = Vec::with_capacity(self.chains.len() + 1);
        let _ = writeln!(text, "*{table}");
        // A chain that is named is emptied, or made.
        for (_, chain, _) in &self.chains {
            line(&mut text, &[":", &chain.name, " - [0:0]"]);
        }
        for name in self.gone.iter().chain(&self.emptied) {
            line(&mut text, &[":", name, " - [0:0]"]);
        }
        let mut number = 2 + self.chains.len() + self.gone.len() + self.emptied.len();
        for (owner, chain, mark) in &self.chains {
            owners.push((number, *owner, chain.name.clone()));
            chain.write(mark, &mut text);
            number += mark.rules;
        }
        owners.push((number, Owner::Cluster, String::new()));
        for listed in &self.unhooked {
            line(&mut text, &["-D ", listed]);
        }
        for hook in &self.hooks {
            line(&mut text, &["-I ", &hook.first()]);
        }
        for name in &self.gone {
            line(&mut text, &["-X ", name]);
        }
        text.push_str("COMMIT\n");
        Text { text, owners }
    }

    /// What a table is after it.
    pub(super) fn outcome(self, held: &mut Held) {
        let chains = self.chains.into_iter();
        let written = chains.map(|(_, chain, mark)| (chain.name, mark));
        held.chains.extend(written);
        for name in self.gone {
            held.chains.remove(&name);
        }
        for name in self.emptied {
            held.chains.insert(name, Mark::default());
        }
        for listed in self.unhooked {
            let at = held.hooks.iter().position(|hook| *hook == listed);
            at.map(|at| held.hooks.remove(at));
        }
        let hooks = self.hooks.into_iter();
        held.hooks.extend(hooks.map(|hook| hook.listed()));
    }
}
