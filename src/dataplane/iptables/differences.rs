//! In what that which is held differs from that which is wanted.

use std::collections::BTreeSet;

use super::chain::Chain;
use super::family_tables::FamilyTables;
use super::record::TABLES;
use crate::core::ir::Delta;
use crate::core::model::Owner;
use crate::dataplane::Difference;

impl FamilyTables {
    /// All differences, after [`Self::read`]. What would be written is not.
    pub(super) fn differences(&mut self, whole: &Delta) -> Vec<Difference> {
        let family = self.tool.family;
        let stages = self.program.plan(whole);
        let filter = [stages.filter.chains, stages.refuse.chains].concat();
        let wanted: [Vec<(Owner, Chain)>; 2] = [stages.nat.chains, filter];
        let mut differences = Vec::new();
        let mut differs = |owner, what| {
            differences.push(Difference {
                family,
                owner,
                what,
            });
        };
        let exact = self.exact();
        for (number, chains) in wanted.into_iter().enumerate() {
            let table = TABLES[number];
            let held = self.held(number);
            let names: BTreeSet<&str> = chains
                .iter()
                .map(|(_, chain)| chain.name.as_str())
                .collect();
            for (owner, chain) in &chains {
                match held.chains.get(&chain.name) {
                    None => differs(
                        *owner,
                        format!("missing: chain {} of table {table}", chain.name),
                    ),
                    Some(mark) if *mark != chain.mark() => {
                        differs(
                            *owner,
                            format!("chain {} of table {table} has other rules", chain.name),
                        );
                    }
                    Some(_) => {}
                }
            }
            for name in held
                .chains
                .keys()
                .filter(|name| !names.contains(name.as_str()))
            {
                differs(
                    Owner::Cluster,
                    format!("not wanted: chain {name} of table {table}"),
                );
            }
            let (missing, wrong) = self.unlike(number, &held, exact);
            for hook in missing {
                differs(
                    Owner::Cluster,
                    format!("missing in table {table}: {}", hook.listed()),
                );
            }
            for listed in wrong {
                differs(
                    Owner::Cluster,
                    format!("not wanted in table {table}: {listed}"),
                );
            }
        }
        differences
    }
}
