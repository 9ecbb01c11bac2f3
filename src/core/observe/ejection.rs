//! Which endpoints do not answer, and for how long they are passed over.
//!
//! An endpoint is ejected when connections to it stay unanswered from one look to another, a probe of ours
//! is not answered either, and others of its list answer. It comes back at once when it answers a probe.
//! Where no probe of ours reaches anybody (a policy of the network's may forbid it), its time runs out:
//! a few seconds at first, twice as long each time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rustc_hash::FxHashMap;

use super::Watched;
use crate::core::model::{Endpoint, ObjectKey, Observed, Protocol};

/// So many connections have to be unanswered.
const UNANSWERED: usize = 3;
/// For so long a connection has to be unanswered before it says anything.
pub const PATIENCE: Duration = Duration::from_millis(200);
/// So many looks may follow each other fast because of suspicions, and then one in so much time.
const HURRIED: u32 = 12;
const CALM: Duration = Duration::from_secs(10);
/// Of older ones the client may have given up.
const OLD: Duration = Duration::from_secs(20);
/// How often an endpoint that is ejected is probed.
const PROBED: Duration = Duration::from_millis(500);
/// For how long what a probe has said counts.
const FRESH: Duration = Duration::from_secs(2);
/// For how long an endpoint is ejected at first, and at most.
const FIRST: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(300);
/// Connections of one Service that are remembered to be unanswered; further ones say nothing new.
const MOST_FLOWS: usize = 4_096;
/// Endpoints of one Service that are ejected at a time.
const MOST_EJECTED: usize = 256;
/// Probes under way at a time.
const MOST_PROBES: usize = 64;

/// A connection that waits for its first answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Waiting {
    /// Who waits.
    pub client: Endpoint,
    /// The endpoint that it waits for.
    pub endpoint: Endpoint,
}

/// What is seen of a Service port at one look.
#[derive(Debug, Clone, Default)]
pub struct Sight {
    /// Connections without an answer.
    pub waiting: Vec<Waiting>,
    /// Endpoints of which some connection has been answered; nobody, unless that was asked for.
    pub answered: BTreeSet<Endpoint>,
}

/// Something that an operator should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is passed over from now on.
    Ejected {
        /// Whose it is.
        service: ObjectKey,
        /// Which.
        endpoint: Endpoint,
        /// So many connections have had no answer.
        unanswered: usize,
        /// For so long, unless it answers a probe before.
        least: Duration,
    },
    /// It is used again.
    Back {
        /// Whose it is.
        service: ObjectKey,
        /// Which.
        endpoint: Endpoint,
        /// It has answered; or else its time is over.
        answered: bool,
    },
}

/// What a look leads to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What has changed.
    pub verdicts: Vec<Verdict>,
    /// Endpoints to be probed now.
    pub probes: Vec<Endpoint>,
    /// Whether the next look is to tell who answers.
    pub ask_answered: bool,
    /// Whether the next look had better be soon.
    pub hurry: bool,
}

/// What is known of an endpoint that is ejected, or was.
#[derive(Debug, Clone, Copy)]
struct Record {
    /// When it was ejected last.
    since: Duration,
    /// Until when, if probes say nothing.
    until: Duration,
    /// For how long.
    time: Duration,
    /// It came back then.
    back: Option<Duration>,
}

impl Record {
    const fn is_ejected(&self) -> bool {
        self.back.is_none()
    }
}

#[derive(Debug, Clone, Copy)]
struct Probe {
    /// When the last one was sent, and whether it is under way.
    started: Duration,
    under_way: bool,
    /// What the last one that ended has said, and when.
    answered: Option<(bool, Duration)>,
}

/// What is known of all endpoints that are watched.
#[derive(Debug, Default)]
pub struct Ejections {
    /// When each connection was first seen without an answer.
    first_seen: FxHashMap<ObjectKey, FxHashMap<Waiting, Duration>>,
    records: BTreeMap<ObjectKey, BTreeMap<Endpoint, Record>>,
    probes: FxHashMap<Endpoint, Probe>,
    /// How many looks have followed each other fast, less those that are long ago, as of when.
    hurried: (u32, Duration),
}

impl Ejections {
    /// Takes in that a probe was answered, by an acceptance or a refusal, or was not.
    pub fn probed(&mut self, endpoint: Endpoint, answered: bool, now: Duration) {
        if let Some(probe) = self.probes.get_mut(&endpoint) {
            probe.answered = Some((answered, now));
            probe.under_way = false;
        }
    }

    /// Looks at what is seen of each Service port that somebody waits for, or of which something is known;
    /// `most_percent` of a list may be ejected.
    pub fn look(&mut self, seen: &[(&Watched, Sight)], most_percent: u8, now: Duration) -> Outcome {
        let mut outcome = Outcome::default();
        self.forget(seen, now);
        for (watched, sight) in seen.iter().filter(|(watched, _)| watched.ejects) {
            self.look_at(watched, sight, most_percent, now, &mut outcome);
        }
        outcome.hurry = outcome.hurry && self.may_hurry(now);
        outcome
    }

    /// Who is ejected of a Service, those first who were found first.
    #[must_use]
    pub fn observed(&self, service: &ObjectKey, most_percent: u8) -> Observed {
        let records = self.records.get(service).into_iter().flatten();
        let mut ejected: Vec<(Duration, Endpoint)> = records
            .filter(|(_, record)| record.is_ejected())
            .map(|(endpoint, record)| (record.since, *endpoint))
            .collect();
        ejected.sort_unstable();
        let ejected = ejected.into_iter();
        Observed {
            ejected: ejected
                .map(|(_, endpoint)| (Protocol::Tcp, endpoint))
                .collect(),
            most_percent,
            ..Observed::default()
        }
    }

    /// Whether something is known of a Service: it has to be looked at even if nobody waits for it.
    #[must_use]
    pub fn knows(&self, service: &ObjectKey) -> bool {
        self.records.contains_key(service) || self.first_seen.contains_key(service)
    }

    /// How many endpoints are ejected.
    #[must_use]
    pub fn count(&self) -> usize {
        let records = self.records.values().flat_map(BTreeMap::values);
        records.filter(|record| record.is_ejected()).count()
    }

    /// Whoever always looks suspicious does not have us look all the time.
    fn may_hurry(&mut self, now: Duration) -> bool {
        let (looks, since) = self.hurried;
        let past = now.saturating_sub(since).as_millis() / CALM.as_millis();
        let looks = looks.saturating_sub(u32::try_from(past).unwrap_or(u32::MAX));
        if looks >= HURRIED {
            return false;
        }
        self.hurried = (looks + 1, if past > 0 { now } else { since });
        true
    }

    fn forget(&mut self, seen: &[(&Watched, Sight)], now: Duration) {
        let mut known: FxHashMap<&ObjectKey, BTreeSet<Endpoint>> = FxHashMap::default();
        for (watched, _) in seen.iter().filter(|(watched, _)| watched.ejects) {
            let endpoints = watched.endpoints.iter().map(|(endpoint, _)| *endpoint);
            known.entry(&watched.service).or_default().extend(endpoints);
        }
        self.records.retain(|service, records| {
            let endpoints = known.get(service);
            records.retain(|endpoint, record| {
                let is_old = |back: Duration| now.saturating_sub(back) > record.time * 4;
                endpoints.is_some_and(|known| known.contains(endpoint))
                    && !record.back.is_some_and(is_old)
            });
            !records.is_empty()
        });
        let waiting: FxHashMap<&ObjectKey, BTreeSet<&Waiting>> =
            seen.iter()
                .fold(FxHashMap::default(), |mut all, (watched, sight)| {
                    let of: &mut BTreeSet<&Waiting> = all.entry(&watched.service).or_default();
                    of.extend(&sight.waiting);
                    all
                });
        self.first_seen.retain(|service, flows| {
            let still = waiting.get(service);
            flows.retain(|flow, _| still.is_some_and(|still| still.contains(flow)));
            !flows.is_empty()
        });
        self.probes.retain(|_, probe| {
            let ended = probe.answered.map_or(probe.started, |(_, at)| at);
            now.saturating_sub(ended.max(probe.started)) < 2 * FRESH
        });
    }

    fn look_at(
        &mut self,
        watched: &Watched,
        sight: &Sight,
        most_percent: u8,
        now: Duration,
        outcome: &mut Outcome,
    ) {
        let Counts { young, stuck } = self.count_waiting(watched, sight, now);
        self.bring_back(watched, now, outcome);
        let is_ejected = |records: &BTreeMap<ObjectKey, BTreeMap<Endpoint, Record>>,
                          one: &Endpoint| {
            let record = records
                .get(&watched.service)
                .and_then(|records| records.get(one));
            record.is_some_and(Record::is_ejected)
        };
        let endpoints = || watched.endpoints.iter().map(|(endpoint, _)| endpoint);
        let of = |counts: &FxHashMap<Endpoint, usize>, one: &Endpoint| {
            counts.get(one).copied().unwrap_or(0)
        };
        outcome.hurry |=
            endpoints().any(|one| of(&young, one) >= UNANSWERED && !is_ejected(&self.records, one));
        let suspects: Vec<Endpoint> = endpoints()
            .filter(|one| of(&stuck, one) >= UNANSWERED && !is_ejected(&self.records, one))
            .copied()
            .collect();
        if suspects.is_empty() {
            return;
        }
        // Whoever is above suspicion shows what a probe is worth.
        let others: Vec<Endpoint> = endpoints()
            .filter(|one| of(&stuck, one) == 0 && !is_ejected(&self.records, one))
            .take(3)
            .copied()
            .collect();
        for endpoint in suspects.iter().chain(&others) {
            self.probe(*endpoint, now, outcome);
        }
        // Where probes reach nobody, connections have to tell.
        let probes_say = |said| {
            others
                .iter()
                .any(|one| self.probe_says(one, now) == Some(said))
        };
        outcome.ask_answered |= probes_say(false) && !probes_say(true);
        let answers = |one: &Endpoint| {
            sight.answered.contains(one) || self.probe_says(one, now) == Some(true)
        };
        let mut left = Observed {
            most_percent,
            ..Observed::default()
        }
        .most_ejected(watched.endpoints.len())
        .min(MOST_EJECTED)
        .saturating_sub(
            endpoints()
                .filter(|one| is_ejected(&self.records, one))
                .count(),
        );
        let mut worst: Vec<(usize, Endpoint)> =
            suspects.iter().map(|one| (of(&stuck, one), *one)).collect();
        worst.sort_unstable_by(|one, other| other.cmp(one));
        let mut ejected = Vec::new();
        for (unanswered, endpoint) in worst {
            // As many at another endpoint that nobody suspects would say that it is the client's fault.
            let others_answer = endpoints()
                .any(|one| *one != endpoint && of(&stuck, one) * 4 <= unanswered && answers(one));
            if left == 0 || !others_answer || self.probe_says(&endpoint, now) != Some(false) {
                continue;
            }
            left -= 1;
            ejected.push((unanswered, endpoint));
        }
        for (unanswered, endpoint) in ejected {
            let least = self.eject(watched, endpoint, now);
            outcome.verdicts.push(Verdict::Ejected {
                service: watched.service.clone(),
                endpoint,
                unanswered,
                least,
            });
        }
    }

    fn count_waiting(&mut self, watched: &Watched, sight: &Sight, now: Duration) -> Counts {
        let known = self.first_seen.entry(watched.service.clone()).or_default();
        let records = self.records.get(&watched.service);
        let mut counts = Counts::default();
        for waiting in &sight.waiting {
            let first = match known.get(waiting) {
                Some(first) => *first,
                None if known.len() >= MOST_FLOWS => continue,
                None => {
                    known.insert(*waiting, now);
                    now
                }
            };
            let back = records.and_then(|records| records.get(&waiting.endpoint)?.back);
            let age = now.saturating_sub(first);
            if age > OLD || back.is_some_and(|back| first < back) {
                continue;
            }
            *counts.young.entry(waiting.endpoint).or_insert(0) += 1;
            if age >= PATIENCE {
                *counts.stuck.entry(waiting.endpoint).or_insert(0) += 1;
            }
        }
        counts
    }

    /// Those that answer come back, and those whose time is over.
    fn bring_back(&mut self, watched: &Watched, now: Duration, outcome: &mut Outcome) {
        let list: Vec<Endpoint> = watched.endpoints.iter().map(|(one, _)| *one).collect();
        let ejected: Vec<Endpoint> = list
            .iter()
            .filter(|one| {
                let records = self.records.get(&watched.service);
                let record = records.and_then(|records| records.get(one));
                record.is_some_and(Record::is_ejected)
            })
            .copied()
            .collect();
        if ejected.is_empty() {
            return;
        }
        // As long as others answer probes, one that does not is not to be tried with a client's connection.
        let mut control = list.iter().filter(|one| !ejected.contains(one)).take(2);
        for one in control.clone() {
            self.probe(*one, now, outcome);
        }
        let probes_count = control.any(|one| self.probe_says(one, now) == Some(true));
        for endpoint in ejected {
            self.probe(endpoint, now, outcome);
            let answered = self.probe_says(&endpoint, now) == Some(true);
            let records = self.records.get_mut(&watched.service);
            let Some(record) = records.and_then(|records| records.get_mut(&endpoint)) else {
                continue;
            };
            let is_over = now >= record.until && !probes_count;
            if answered || is_over || now >= record.since + LONGEST {
                record.back = Some(now);
                outcome.verdicts.push(Verdict::Back {
                    service: watched.service.clone(),
                    endpoint,
                    answered,
                });
            }
        }
    }

    fn eject(&mut self, watched: &Watched, endpoint: Endpoint, now: Duration) -> Duration {
        let records = self.records.entry(watched.service.clone()).or_default();
        let before = records.get(&endpoint).map(|record| record.time);
        let time = before.map_or(FIRST, |time| (time * 2).min(LONGEST));
        let record = Record {
            since: now,
            until: now + time,
            time,
            back: None,
        };
        records.insert(endpoint, record);
        time
    }

    /// Has an endpoint probed, unless a probe is under way or has just been answered.
    fn probe(&mut self, endpoint: Endpoint, now: Duration, outcome: &mut Outcome) {
        let under_way = self.probes.values().filter(|probe| probe.under_way);
        let is_due = match self.probes.get(&endpoint) {
            Some(probe) if probe.under_way => false,
            Some(probe) if now.saturating_sub(probe.started) < PROBED => false,
            _ => under_way.count() < MOST_PROBES,
        };
        if is_due {
            let probe = Probe {
                started: now,
                under_way: true,
                answered: self.probes.get(&endpoint).and_then(|probe| probe.answered),
            };
            self.probes.insert(endpoint, probe);
            outcome.probes.push(endpoint);
        }
    }

    /// Whether an endpoint answers, as far as a probe has said it lately.
    fn probe_says(&self, endpoint: &Endpoint, now: Duration) -> Option<bool> {
        let probe = self.probes.get(endpoint)?;
        if probe.under_way && now.saturating_sub(probe.started) >= PATIENCE {
            return Some(false);
        }
        let (answered, at) = probe.answered?;
        (now.saturating_sub(at) < FRESH).then_some(answered)
    }
}

/// Connections without an answer, by endpoint: all of them, and those that have waited for long.
#[derive(Default)]
struct Counts {
    young: FxHashMap<Endpoint, usize>,
    stuck: FxHashMap<Endpoint, usize>,
}

#[cfg(test)]
#[path = "ejection_tests.rs"]
mod tests;
