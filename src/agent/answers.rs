//! What the sync loop answers who asks.

use jiff::Timestamp;

use super::inquiries::{Asked, Wanted};
use super::status::{Loop, Repaired};
use super::sync_loop::SyncLoop;
use crate::core::explain::{Explanation, Question, Surroundings};
use crate::core::ir::{Destination, Host};
use crate::core::model::{Family, Owner, PerFamily};
use crate::dataplane::Backend;

/// How many warnings a status has.
const MOST_WARNINGS: usize = 100;

impl<B: Backend> SyncLoop<B> {
    /// Answers. Whoever has gone needs no answer.
    pub(super) fn answer(&mut self, question: Asked) {
        match question {
            Asked::Explain(question, told) => {
                let _ = told.send(self.explain(&question));
            }
            Asked::Status(told) => {
                let _ = told.send(self.status());
            }
            Asked::History(most, told) => {
                let _ = told.send(self.journal.entries(most));
            }
            Asked::Wanted(told) => {
                let _ = told.send(self.wanted());
            }
            Asked::Number(told) => {
                let _ = told.send((self.journal.number(), self.is_pending()));
            }
            Asked::Names(owners, told) => {
                let state = self.proxy.desired().state();
                let name = |owner: &Owner| Some(state.name(owner.service()?)?.to_string());
                let _ = told.send(owners.iter().map(name).collect());
            }
            Asked::Owners(destinations, told) => {
                let owners = || destinations.iter().map(|to| self.owner(*to)).collect();
                let _ = told.send(self.settled.is_some().then(owners));
            }
            Asked::LogHistory => self.journal.log(),
        }
    }

    fn explain(&self, question: &Question) -> Explanation {
        let desired = self.proxy.desired();
        let state = desired.state();
        let detector = self.config.local_detector(state.node());
        // Nobody is recognised as a pod where nothing says how.
        let detector = detector.unwrap_or_default();
        let surroundings = Surroundings {
            state,
            engine: desired.engine(),
            programs: true,
            node_ports: desired.node_ports(),
            left_out: desired.left_out(),
            detector: &detector,
            masquerade_all: self.config.masquerade_all,
        };
        let mut explanation = surroundings.explain(question);
        for route in &mut explanation.routes {
            let key = route.key;
            let owner = key.and_then(|key| {
                desired
                    .engine()
                    .claims_to(key)
                    .first()
                    .map(|(owner, _)| *owner)
            });
            let id = owner.and_then(Owner::service);
            route.programmed = id.and_then(|id| self.journal.programmed(id));
            if let Some(key) = id.and_then(|id| state.name(id)) {
                let object = format!("Service {key}");
                explanation.notes.extend(self.noted.about(&object));
            }
            if let Some(owner) = owner
                && let Some((_, family)) = self
                    .proxy
                    .left_out()
                    .find(|(left_out, _)| *left_out == owner)
            {
                explanation.notes.push(format!(
                    "the kernel refuses this Service: it is left out of {family}"
                ));
            }
        }
        explanation.notes.sort_unstable();
        explanation.notes.dedup();
        explanation
    }

    /// Whose a destination is: a `NodePort` is asked for by an address of the node.
    fn owner(&self, destination: Destination) -> Option<String> {
        let engine = self.proxy.desired().engine();
        let label = |destination| {
            let claims = engine.claims_to(destination);
            claims
                .first()
                .map(|(_, forwarding)| forwarding.label.as_str().to_owned())
        };
        label(destination).or_else(|| {
            let host = Host::Node(destination.family());
            label(Destination {
                host,
                ..destination
            })
        })
    }

    /// Something is wanted that is not in the kernel.
    fn is_pending(&self) -> bool {
        !self.proxy.desired().engine().is_settled() || self.journal.pending() > 0
    }

    fn wanted(&self) -> Result<Wanted, String> {
        let desired = self.proxy.desired();
        let options = super::options(&self.config, desired.state().node());
        let mut options = options.map_err(|error| error.to_string())?;
        options.families = self.proxy.backend().families();
        Ok(Wanted {
            whole: desired.engine().whole(),
            number: self.journal.number(),
            pending: self.is_pending(),
            options,
        })
    }

    fn status(&self) -> Loop {
        let desired = self.proxy.desired();
        let backend = self.proxy.backend();
        let names = |families: Vec<Family>| {
            families
                .into_iter()
                .map(|family| family.name().to_owned())
                .collect()
        };
        let resting = self.proxy.resting();
        let name = |(owner, family): (Owner, Family)| format!("{} ({family})", desired.name(owner));
        let warnings: Vec<String> = self.noted.all().collect();
        Loop {
            services: desired.state().service_count(),
            families: names(backend.families()),
            resting: names(resting),
            programmed: self.settled.is_some(),
            settled: self.settled.map(|at| at.to_string()),
            failing: self.failing.as_ref().map(|(since, why)| {
                let seconds = Timestamp::now().as_second() - since.as_second();
                (seconds, why.clone())
            }),
            pending: self.journal.pending(),
            repairs: Repaired {
                lately: self.repairs.lately(std::time::Instant::now()),
                by: self.repairs.last_by(),
            },
            refused: self.proxy.left_out().map(name).collect(),
            too_large: desired.too_large(),
            contested: desired.engine().contested_claims(),
            without_local: {
                let PerFamily { v4, v6 } = desired.without_local();
                v4.internal + v4.external + v6.internal + v6.external
            },
            more_warnings: warnings.len().saturating_sub(MOST_WARNINGS) + self.noted.beyond(),
            warnings: warnings.into_iter().take(MOST_WARNINGS).collect(),
            last: self.journal.entries(1).pop(),
            elements: backend.counts().iter().map(|(_, _, count)| count).sum(),
        }
    }
}
