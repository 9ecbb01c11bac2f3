//! Which endpoints do not answer, and for how long they are passed over.
//!
//! An endpoint is ejected when connections to it stay unanswered from one look to another, a probe of ours
//! is not answered either, and others of its list answer. That is enough if it has answered a probe before, or others
//! in its position do; if a policy of the network's keeps probes from it, it takes more than one client that it does not
//! answer. It comes back at once when it answers a probe.
//! Where no probe of ours reaches anybody (a policy of the network's may forbid it), its time runs out:
//! a few seconds at first, twice as long each time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use rustc_hash::FxHashMap;

use super::Watched;
use super::probes::{PATIENCE, Probes};
use crate::core::model::{Endpoint, ObjectKey, Observed, Protocol};

/// So many connections have to be unanswered.
const UNANSWERED: usize = 3;
/// So many looks may follow each other fast because of suspicions, and then one in so much time.
const HURRIED: u32 = 12;
const CALM: Duration = Duration::from_secs(10);
/// Of older ones the client may have given up.
const OLD: Duration = Duration::from_secs(20);
/// For how long an endpoint is ejected at first, and at most.
const FIRST: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(300);
/// Connections of one Service that are remembered to be unanswered; further ones say nothing new.
const MOST_FLOWS: usize = 16_384;
/// Endpoints of one Service that are ejected at a time.
const MOST_EJECTED: usize = 256;
/// How often the kernel is asked who answers, where probes do not tell.
const ASKED: Duration = Duration::from_secs(5);

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
        /// For so long at least, unless it answers a probe before.
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

/// By Service and endpoint.
type Records = BTreeMap<ObjectKey, BTreeMap<Endpoint, Record>>;

/// What is known of all endpoints that are watched.
#[derive(Debug, Default)]
pub struct Ejections {
    /// When each connection was first seen without an answer.
    first_seen: FxHashMap<ObjectKey, FxHashMap<Waiting, Duration>>,
    records: Records,
    probes: Probes,
    /// How many looks have followed each other fast, less those that are long ago, as of when.
    hurried: (u32, Duration),
    /// When the kernel was asked last who answers.
    asked: Option<Duration>,
}

impl Ejections {
    /// These are all endpoints that are watched from now on.
    pub fn meet(&mut self, watched: &BTreeSet<Endpoint>) {
        self.probes.meet(watched);
    }

    /// Takes in that a probe was answered, by an acceptance or a refusal, or was not.
    pub fn probed(&mut self, endpoint: Endpoint, answered: bool, now: Duration) {
        self.probes.ended(endpoint, answered, now);
    }

    /// Looks at what is seen of each Service port that somebody waits for, or of which something is known;
    /// `most_percent` of a list may be ejected.
    pub fn look(&mut self, seen: &[(&Watched, Sight)], most_percent: u8, now: Duration) -> Outcome {
        let mut outcome = Outcome::default();
        self.forget(seen, now);
        let mut wishes = Vec::new();
        for (watched, sight) in seen.iter().filter(|(watched, _)| watched.ejects) {
            let mut look = Look {
                watched,
                now,
                wishes: Vec::new(),
            };
            self.look_at(&mut look, sight, most_percent, &mut outcome);
            wishes.extend((0..).zip(look.wishes));
        }
        outcome.probes = self.probes.choose(wishes, now);
        if outcome.ask_answered {
            let is_due = self
                .asked
                .is_none_or(|asked| now.saturating_sub(asked) >= ASKED);
            outcome.ask_answered = is_due;
            self.asked = if is_due { Some(now) } else { self.asked };
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

    fn is_ejected(&self, service: &ObjectKey, endpoint: &Endpoint) -> bool {
        let records = self.records.get(service);
        let record = records.and_then(|records| records.get(endpoint));
        record.is_some_and(Record::is_ejected)
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
        self.probes.forget(now);
    }

    fn look_at(
        &mut self,
        look: &mut Look<'_>,
        sight: &Sight,
        most_percent: u8,
        outcome: &mut Outcome,
    ) {
        let (watched, now) = (look.watched, look.now);
        let counts = self.count_waiting(watched, sight, now);
        self.bring_back(look, outcome);
        let in_use: Vec<Endpoint> = watched
            .endpoints
            .iter()
            .filter(|(one, weight)| *weight > 0 && !self.is_ejected(&watched.service, one))
            .map(|(endpoint, _)| *endpoint)
            .collect();
        outcome.hurry |= in_use.iter().any(|one| counts.young(one) >= UNANSWERED);
        let mut suspects: Vec<(usize, Endpoint)> = in_use
            .iter()
            .map(|one| (counts.stuck(one), *one))
            .filter(|(stuck, _)| *stuck >= UNANSWERED)
            .collect();
        if suspects.is_empty() {
            return;
        }
        suspects.sort_unstable_by(|one, other| other.cmp(one));
        let worst = suspects.first().map_or(0, |(stuck, _)| *stuck);
        // As many at another endpoint would say that it is the client's fault.
        let above = |stuck: usize, one: &Endpoint| counts.stuck(one) * 4 <= stuck;
        let others: Vec<Endpoint> = in_use
            .iter()
            .filter(|one| above(worst, one))
            .copied()
            .collect();
        // Whoever is above suspicion shows what a probe is worth, on this node and elsewhere: policies differ in that.
        let controls = [true, false].map(|here| {
            let of_kind = others
                .iter()
                .filter(|one| watched.here.contains(one) == here);
            of_kind.copied().take(3).collect::<Vec<Endpoint>>()
        });
        look.wishes.extend(controls.iter().flatten());
        look.wishes.extend(suspects.iter().map(|(_, one)| *one));
        let says = |one: &Endpoint, what| self.probes.say(one, now) == Some(what);
        let bound = Observed {
            most_percent,
            ..Observed::default()
        };
        let weigh = watched
            .endpoints
            .iter()
            .filter(|(_, weight)| *weight > 0)
            .count();
        let of_service = self.records.get(&watched.service).into_iter().flatten();
        let of_service = of_service.filter(|(_, record)| record.is_ejected()).count();
        let left = bound
            .most_ejected(weigh)
            .saturating_sub(weigh - in_use.len())
            .min(MOST_EJECTED.saturating_sub(of_service));
        let mut ejected: Vec<(usize, Endpoint)> = Vec::new();
        for (unanswered, endpoint) in suspects {
            let [here, elsewhere] = &controls;
            let alike = if watched.here.contains(&endpoint) {
                here
            } else {
                elsewhere
            };
            let probes_reach = self.probes.reach(&endpoint)
                || alike.iter().any(|one| *one != endpoint && says(one, true));
            let probes_do_not = !probes_reach && alike.iter().all(|one| says(one, false));
            outcome.ask_answered |= probes_do_not;
            let others_answer = || {
                let mut others = others
                    .iter()
                    .filter(|one| **one != endpoint && above(unanswered, one));
                others.any(|one| sight.answered.contains(one) || says(one, true))
            };
            let several = counts
                .clients
                .get(&endpoint)
                .is_some_and(|clients| clients.len() > 1);
            let is_to_blame = others_answer() && (probes_reach || (probes_do_not && several));
            if ejected.len() < left && is_to_blame && says(&endpoint, false) {
                ejected.push((unanswered, endpoint));
            }
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
        if sight.waiting.is_empty() {
            return Counts::default();
        }
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
                let clients = counts.clients.entry(waiting.endpoint).or_default();
                clients.insert(waiting.client.address);
                *counts.stuck.entry(waiting.endpoint).or_insert(0) += 1;
            }
        }
        counts
    }

    /// Those that answer come back, and those whose time is over.
    fn bring_back(&mut self, look: &mut Look<'_>, outcome: &mut Outcome) {
        let (watched, now) = (look.watched, look.now);
        let list: Vec<Endpoint> = watched.endpoints.iter().map(|(one, _)| *one).collect();
        let ejected: Vec<Endpoint> = list
            .iter()
            .filter(|one| self.is_ejected(&watched.service, one))
            .copied()
            .collect();
        if ejected.is_empty() {
            return;
        }
        // As long as others of its kind answer probes, one that does not is not to be tried with a client's connection.
        let controls = |here: bool| {
            let others = list.iter().filter(|one| !ejected.contains(one));
            let of_kind = others.filter(move |one| watched.here.contains(one) == here);
            of_kind.copied().take(2)
        };
        look.wishes
            .extend([true, false].into_iter().flat_map(controls));
        look.wishes.extend(&ejected);
        let answers = |one: &Endpoint| self.probes.say(one, now) == Some(true);
        let reached = [true, false].map(|here| controls(here).any(|one| answers(&one)));
        for endpoint in ejected {
            let is_here = watched.here.contains(&endpoint);
            let probes_count = reached[usize::from(!is_here)] || self.probes.reach(&endpoint);
            let answered = self.probes.say(&endpoint, now) == Some(true);
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
}

/// One look at one Service port.
struct Look<'a> {
    watched: &'a Watched,
    now: Duration,
    /// Endpoints that had better be probed, the most useful first.
    wishes: Vec<Endpoint>,
}

/// Connections without an answer, by endpoint: all of them, and those that have waited for long, with whose they
/// are.
#[derive(Default)]
struct Counts {
    young: FxHashMap<Endpoint, usize>,
    stuck: FxHashMap<Endpoint, usize>,
    clients: FxHashMap<Endpoint, BTreeSet<IpAddr>>,
}

impl Counts {
    fn young(&self, endpoint: &Endpoint) -> usize {
        self.young.get(endpoint).copied().unwrap_or(0)
    }

    fn stuck(&self, endpoint: &Endpoint) -> usize {
        self.stuck.get(endpoint).copied().unwrap_or(0)
    }
}

#[cfg(test)]
#[path = "ejection_tests.rs"]
mod tests;
