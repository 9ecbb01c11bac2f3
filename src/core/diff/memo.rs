//! The places of a list, found once for all destinations that share it.

use super::placement;
use crate::core::ir::{Action, Draw, Forwarding};
use crate::core::model::Endpoints;

/// Places the endpoints of one Service port once, however many destinations share them.
#[derive(Default)]
pub(super) struct SlotMemo {
    last: Option<(Endpoints, Endpoints, Endpoints)>,
}

impl SlotMemo {
    /// The wanted forwarding with its lists in slot order.
    pub(super) fn place(
        &mut self,
        wanted: &Forwarding,
        applied: Option<&Forwarding>,
    ) -> Forwarding {
        let Action::Balance {
            policy,
            primary,
            external,
            draw,
            affinity,
        } = &wanted.action
        else {
            return wanted.clone();
        };
        if draw.is_ordered() {
            return wanted.clone();
        }
        let held = applied.and_then(|applied| match &applied.action {
            Action::Balance {
                primary, external, ..
            } => Some((primary, external.as_ref())),
            _ => None,
        });
        Forwarding {
            label: wanted.label.clone(),
            action: Action::Balance {
                policy: *policy,
                primary: self.slots(primary, held.map(|(primary, _)| primary), *draw),
                external: external.as_ref().map(|external| {
                    self.slots(external, held.and_then(|(_, external)| external), *draw)
                }),
                draw: *draw,
                affinity: *affinity,
            },
            sources: wanted.sources.clone(),
        }
    }

    fn slots(&mut self, wanted: &Endpoints, held: Option<&Endpoints>, draw: Draw) -> Endpoints {
        let Some(held) = held else {
            return wanted.clone();
        };
        if held == wanted {
            return wanted.clone();
        }
        if let Some((for_wanted, for_held, slots)) = &self.last
            && for_wanted.is(wanted)
            && for_held.is(held)
        {
            return slots.clone();
        }
        let slots = if draw.repeats() {
            placement::assign_repeated(held, wanted)
        } else {
            placement::assign(held, wanted)
        };
        self.last = Some((wanted.clone(), held.clone(), slots.clone()));
        slots
    }
}
