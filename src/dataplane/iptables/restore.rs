//! What `iptables-restore` is given.

use std::fmt::Write as _;

use super::chain::{Chain, Mark, line};
use super::fixed::Hook;
use crate::core::model::Owner;

/// One table's part of a change, all of which happens at once.
#[derive(Debug, Default)]
pub(super) struct Restore {
    chains: Vec<(Owner, Chain, Mark)>,
    gone: Vec<String>,
    hooks: Vec<Hook>,
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
        for name in &self.gone {
            line(&mut text, &[":", name, " - [0:0]"]);
        }
        let mut number = 2 + self.chains.len() + self.gone.len();
        for (owner, chain, mark) in &self.chains {
            owners.push((number, *owner, chain.name.clone()));
            chain.write(mark, &mut text);
            number += mark.rules;
        }
        owners.push((number, Owner::Cluster, String::new()));
        for hook in &self.hooks {
            let Hook {
                chain,
                matches,
                target,
            } = hook;
            let comment = super::chain::comment("kubernetes service portals, by pointsman");
            let _ = writeln!(text, "-I {chain} 1 {matches}{comment} -j {target}");
        }
        for name in &self.gone {
            line(&mut text, &["-X ", name]);
        }
        text.push_str("COMMIT\n");
        Text { text, owners }
    }

    /// The chains that are written, and those that go.
    pub(super) fn outcome(self) -> (impl Iterator<Item = (String, Mark)>, Vec<String>, Vec<Hook>) {
        let chains = self.chains.into_iter();
        let written = chains.map(|(_, chain, mark)| (chain.name, mark));
        (written, self.gone, self.hooks)
    }
}
