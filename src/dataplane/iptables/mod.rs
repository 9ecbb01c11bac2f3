//! The iptables backend: a chain for each destination, and trees of chains that lead to them.
//!
//! Everything goes through `iptables-restore`, as with kube-proxy: the tool is the interface that stays.
//! Only chains that change are written. Each carries a mark of its content, so that a start finds out what is
//! there already. What is to be refused keeps its destination in the nat table, and is known by it in the
//! filter table.

mod chain;
mod chain_names;
mod differences;
mod dispatch;
mod draw;
mod drift;
mod family_tables;
mod fixed;
mod key;
mod memories;
mod origin;
mod plan;
mod record;
mod removal;
mod rendering;
mod restore;
mod saved;
mod served;
mod spelling;
mod tool;

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crate::core::ir::{Delta, Entry};
use crate::core::model::{Family, Protocol};
use crate::dataplane::nftables::Nftables;
use crate::dataplane::owners;
use crate::dataplane::{
    Applied, ApplyError, Backend, Changed, Difference, Dropping, Mode, Options, Unavailable,
};

use drift::Watched;
use family_tables::FamilyTables;
use plan::Program;
use record::TABLES;
use removal::What;
use tool::{Tool, ToolError, Variant};

pub use rendering::render;

impl From<ToolError> for Unavailable {
    fn from(error: ToolError) -> Self {
        Self(Box::new(error))
    }
}

/// The programs in the kernel's tables.
pub struct Iptables {
    options: Options,
    missing: Vec<Family>,
    withheld: Vec<Family>,
    families: Vec<FamilyTables>,
    /// Those whose tables are looked at for changes of others.
    watched: Watched,
    /// It is to be found out which Service is to blame.
    isolate: bool,
    /// What nftables mode has left is gone.
    alone: bool,
}

impl Iptables {
    fn find_families(&mut self) -> Vec<(Family, ToolError)> {
        let mut lacking = Vec::new();
        for family in std::mem::take(&mut self.missing) {
            match FamilyTables::open(&self.options, family) {
                Ok(tables) => {
                    let watched = (tables.tool.clone(), Arc::clone(&tables.known));
                    let mut all = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
                    all.push(watched);
                    self.families.push(tables);
                }
                Err(error) => {
                    self.missing.push(family);
                    lacking.push((family, error));
                }
            }
        }
        self.families.sort_by_key(|held| held.tool.family);
        lacking
    }

    /// Takes away what has been programmed by the variant that the host does not use any more.
    fn remove_others(&self) -> Result<(), ApplyError> {
        let used = self.families.iter().map(|held| held.tool.variant);
        let used: Vec<Variant> = used.collect();
        if !used.contains(&Variant::Legacy) {
            remove_legacy()?;
        }
        if !used.contains(&Variant::Nft)
            && let Ok(mut other) = Nftables::open(Options::default())
        {
            other.remove_other_mode()?;
        }
        Ok(())
    }

    fn programmed(&mut self) -> impl Iterator<Item = &mut FamilyTables> {
        let withheld = self.withheld.clone();
        let held = self.families.iter_mut();
        held.filter(move |held| !withheld.contains(&held.tool.family))
    }
}

/// Takes away what of ours is in the tables of the legacy variant, if the kernel has any and we its tools. Returns
/// how many chains.
///
/// # Errors
///
/// If that does not work.
pub fn remove_legacy() -> Result<usize, Unavailable> {
    let mut chains = 0;
    for family in Family::BOTH {
        let [_, legacy] = Tool::variants(family);
        if let Some(tool) = legacy.filter(Tool::is_used) {
            chains += removal::remove(&tool, What::Ours)?;
        }
    }
    owners::told(chains);
    Ok(chains)
}

/// Chains of iptables-legacy, where it is in use, that drop what is forwarded by their policy. What the nft variant
/// has is among nftables' chains.
#[must_use]
pub fn legacy_dropping() -> Vec<Dropping> {
    let mut all = Vec::new();
    for (family, command) in [
        (Family::V4, "iptables-legacy"),
        (Family::V6, "ip6tables-legacy"),
    ] {
        let [_, legacy] = Tool::variants(family);
        let saved = legacy
            .filter(Tool::is_used)
            .and_then(|tool| tool.save("filter").ok());
        if saved.is_some_and(|saved| saved.contains("\n:FORWARD DROP ")) {
            all.push(Dropping {
                table: format!("filter of {command}"),
                chain: "FORWARD".to_owned(),
                how: "drops",
            });
        }
    }
    all
}

impl Backend for Iptables {
    const MODE: Mode = Mode::Iptables;

    fn open(options: Options) -> Result<Self, Unavailable> {
        let mut backend = Self {
            missing: options.families.clone(),
            withheld: Vec::new(),
            families: Vec::new(),
            watched: Watched::default(),
            isolate: false,
            alone: false,
            options,
        };
        let mut lacking = backend.find_families();
        if backend.families.is_empty()
            && let Some((_, error)) = lacking.pop()
        {
            return Err(error.into());
        }
        for (family, error) in lacking {
            tracing::warn!(
                %error,
                "rules of {family} cannot be programmed: only the other family is served until they can",
            );
        }
        Ok(backend)
    }

    fn render(options: &Options, entries: &[Entry]) -> String {
        render(options, entries)
    }

    fn reconfigure(&mut self, options: Options) {
        self.options = options;
        for held in &mut self.families {
            held.program = Program::new(&self.options, held.tool.family);
        }
    }

    fn families(&self) -> Vec<Family> {
        let families = self.families.iter().map(|held| held.tool.family);
        families
            .filter(|family| !self.withheld.contains(family))
            .collect()
    }

    fn withhold(&mut self, family: Family, withhold: bool) {
        self.withheld.retain(|other| *other != family);
        if withhold {
            self.withheld.push(family);
        }
    }

    fn look_for_families(&mut self) -> bool {
        let before = self.families.len();
        for (family, error) in self.find_families() {
            tracing::debug!(%family, %error, "still cannot be programmed");
        }
        self.families.len() > before
    }

    fn take_over(&mut self) -> Result<(), Unavailable> {
        // Nothing of another proxy is in a transaction of ours.
        Ok(())
    }

    fn remove_leftovers(&mut self) -> Result<usize, ApplyError> {
        let mut chains = 0;
        for held in self.programmed() {
            chains += removal::remove(&held.tool, What::KubeProxys).map_err(Unavailable::from)?;
        }
        if let Ok(mut other) = Nftables::open(Options::default()) {
            chains += other.remove_kube_proxys()?;
        }
        Ok(chains)
    }

    fn has_leftovers(&mut self) -> Result<bool, Unavailable> {
        if self.families.iter().any(|held| held.has_kube_proxys) {
            return Ok(true);
        }
        // Where there is no nf_tables, there is nothing.
        let other = Nftables::open(Options::default());
        other.map_or(Ok(false), |mut other| other.has_leftovers())
    }

    fn clean_up(&mut self) -> Result<(), ApplyError> {
        let (mut chains, mut failed) = (0, None);
        for held in &mut self.families {
            match removal::remove(&held.tool, What::Ours) {
                Ok(removed) => {
                    chains += removed;
                    held.forget(&self.options);
                }
                Err(error) => failed = Some(error),
            }
        }
        owners::told(chains);
        self.remove_others()?;
        match failed {
            Some(error) => Err(Unavailable::from(error).into()),
            None => Ok(()),
        }
    }

    fn watch(&mut self, changed: Changed) -> Result<bool, Unavailable> {
        drift::watch(Arc::clone(&self.watched), self.options.look_every, changed)
            .map_err(|error| Unavailable(Box::new(error)))?;
        Ok(true)
    }

    fn counts(&self) -> Vec<(Family, &'static str, usize)> {
        let families = self.families.iter();
        let counts = families.flat_map(|held| {
            let of_table = |(table, rules)| (held.tool.family, table, rules);
            TABLES.into_iter().zip(held.rules()).map(of_table)
        });
        counts.collect()
    }

    fn written(&self) -> Vec<(Family, &'static str, usize)> {
        let families = self.families.iter();
        let written = families.flat_map(|held| {
            let of_table = |(table, rules)| (held.tool.family, table, rules);
            TABLES.into_iter().zip(held.last).map(of_table)
        });
        written.collect()
    }

    fn refused_on_loopback(&mut self) -> Result<Vec<(Family, Protocol, u64)>, Unavailable> {
        Ok(Vec::new())
    }

    fn differences(&mut self, whole: &Delta) -> Result<Vec<Difference>, Unavailable> {
        let options = self.options.clone();
        let mut all = Vec::new();
        for held in self.programmed() {
            held.read(&options)?;
            all.extend(held.differences(whole));
        }
        Ok(all)
    }

    fn read(&mut self) -> Result<Vec<Entry>, Unavailable> {
        let options = self.options.clone();
        for held in self.programmed() {
            held.read(&options)?;
        }
        // What is there is compared chain by chain when all is known that is to be there.
        Ok(Vec::new())
    }

    fn apply(&mut self, delta: &Delta) -> Result<Applied, ApplyError> {
        let mut applied = Applied::default();
        let isolate = self.isolate;
        for held in self.programmed() {
            if !held.program.begins && delta.is_empty() {
                continue;
            }
            if let Err(failed) = held.apply(delta, isolate, &mut applied) {
                return Err(failed.into_error(applied.transactions > 0));
            }
        }
        Ok(applied)
    }

    fn most_operations(&self) -> usize {
        // What a table is to be has to be known as a whole; it is written in pieces.
        usize::MAX
    }

    fn rest(&self) -> Duration {
        let families = self.families.iter();
        let costly = families.filter(|held| held.tool.variant == Variant::Legacy);
        costly.map(|held| held.took).sum()
    }

    fn isolate_services(&mut self, isolate: bool) {
        self.isolate = isolate;
    }

    fn has_garbage(&self) -> bool {
        !self.alone
    }

    fn tidy(&mut self) -> Result<(), ApplyError> {
        // Of nftables mode, which has served until now; where there is no nf_tables it has left nothing.
        if let Ok(mut other) = Nftables::open(Options::default()) {
            other.clean_up()?;
        }
        self.remove_others()?;
        self.alone = true;
        Ok(())
    }
}
