//! Reading what the kernel holds of us: whether it is this program, and which entries are in it.

use super::contents::Contents;
use super::program::Program;
use super::program::element::Element;
use super::transaction::Programmed;
use super::wire::dump::{self, Found, Lister};
use crate::core::ir::Entry;
use crate::core::model::{Family, PerFamily};
use crate::dataplane::Options;
use crate::host::netlink::socket::{Socket, SocketError};

/// Something that is there and not as we program it.
#[derive(Debug)]
pub(super) struct Odd {
    pub(super) family: Family,
    /// What it is, and what becomes of it.
    pub(super) what: String,
}

/// What is found in the kernel.
pub(super) struct Reading {
    pub(super) programmed: Programmed,
    pub(super) entries: Vec<Entry>,
    /// There is a table, whatever is in it.
    pub(super) existed: PerFamily<bool>,
    /// Somebody has changed the ruleset meanwhile, not necessarily our part of it.
    pub(super) disturbed: bool,
    pub(super) odd: Vec<Odd>,
}

impl Reading {
    pub(super) fn of(config: &Options) -> Self {
        Self {
            programmed: Programmed::new(config.clone()),
            entries: Vec::new(),
            existed: PerFamily::default(),
            disturbed: false,
            odd: Vec::new(),
        }
    }

    pub(super) fn read(
        &mut self,
        socket: &mut Socket,
        family: Family,
        thorough: bool,
    ) -> Result<(), SocketError> {
        let config = self.programmed.config.clone();
        let program = Program::new(&config, family);
        let mut lister = Lister {
            socket,
            family,
            disturbed: false,
        };
        let installed = match dump::program(&mut lister, &program)? {
            Found::Ours(installed) => installed,
            Found::Nothing => return Ok(()),
            Found::Another(why) => {
                *self.existed.get_mut(family) = true;
                let what = format!("the table is not this program, and will be replaced: {why}");
                self.odd.push(Odd { family, what });
                return Ok(());
            }
        };
        *self.existed.get_mut(family) = true;
        let programmed = &mut self.programmed;
        let each = |element: &Element<'_>| programmed.found(family, element);
        let assembly = dump::contents(&mut lister, &installed, thorough, each)?;
        self.disturbed |= lister.disturbed;
        let Some(assembly) = assembly else {
            let what =
                "the table holds elements that are not ours, and will be replaced".to_owned();
            self.odd.push(Odd { family, what });
            programmed.start_over(family);
            return Ok(());
        };
        let Contents {
            mut entries,
            remembering,
            debris,
        } = assembly.finish(&installed.parts.timeouts);
        if !debris.is_empty() {
            let what = format!(
                "{} elements belong to nothing, and will be removed",
                debris.len()
            );
            self.odd.push(Odd { family, what });
        }
        self.entries.append(&mut entries);
        for element in debris {
            programmed.belongs_to_nothing(family, element);
        }
        for found in remembering {
            programmed.affinity.found(found);
        }
        *programmed.parts.get_mut(family) = installed.parts;
        if let Some(lacking) = programmed.lacking(family) {
            let what = format!("the table is not this program, and will be replaced: {lacking}");
            self.odd.push(Odd { family, what });
            self.entries.retain(|entry| entry.family() != family);
            programmed.start_over(family);
            return Ok(());
        }
        *programmed.replace.get_mut(family) = false;
        Ok(())
    }
}
