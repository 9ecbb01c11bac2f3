//! Which endpoints are probed, and what probes have said.
//!
//! So many are under way at a time, whatever Services there are: whoever has waited for longest has its turn.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use rustc_hash::{FxHashMap, FxHashSet};

use crate::core::model::Endpoint;

/// Probes under way at a time.
pub(super) const MOST_PROBES: usize = 128;
/// How many endpoints are probed at a look to know whether probes reach them while all is well.
const MET: usize = 20;
/// How often an endpoint is probed at most.
const PROBED: Duration = Duration::from_millis(500);
/// For how long a probe, or a connection, may be under way before it counts as one without an answer.
pub(super) const PATIENCE: Duration = Duration::from_millis(200);
/// For how long what a probe has said counts.
const FRESH: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy)]
struct Probe {
    /// When the last one was sent, and whether it is under way.
    started: Duration,
    under_way: bool,
    /// What the last one that ended has said, and when.
    answered: Option<(bool, Duration)>,
}

/// The probes.
#[derive(Debug, Default)]
pub(super) struct Probes {
    sent: FxHashMap<Endpoint, Probe>,
    /// Endpoints that have answered one, those that have had one, and those that have had none.
    reached: FxHashSet<Endpoint>,
    met: FxHashSet<Endpoint>,
    unmet: VecDeque<Endpoint>,
}

impl Probes {
    /// These are all endpoints that there may be a reason to probe.
    pub(super) fn meet(&mut self, watched: &BTreeSet<Endpoint>) {
        self.reached.retain(|endpoint| watched.contains(endpoint));
        self.met.retain(|endpoint| watched.contains(endpoint));
        let unmet = watched.iter().filter(|one| !self.met.contains(*one));
        self.unmet = unmet.copied().collect();
    }

    /// Takes in that one was answered, or was not.
    pub(super) fn ended(&mut self, endpoint: Endpoint, answered: bool, now: Duration) {
        if let Some(probe) = self.sent.get_mut(&endpoint) {
            probe.answered = Some((answered, now));
            probe.under_way = false;
            if answered {
                self.reached.insert(endpoint);
            }
        }
    }

    /// Forgets what is of no use any more.
    pub(super) fn forget(&mut self, now: Duration) {
        self.sent.retain(|_, probe| {
            let ended = probe.answered.map_or(probe.started, |(_, at)| at);
            now.saturating_sub(ended.max(probe.started)) < 2 * FRESH
        });
    }

    /// Which of those who are to be probed are: whoever has waited for longest, and of each Service those first
    /// that it wants first, unless a probe is under way or has just been. Those that nobody has asked for yet come
    /// last.
    pub(super) fn choose(
        &mut self,
        wishes: Vec<(usize, Endpoint)>,
        now: Duration,
    ) -> Vec<Endpoint> {
        let under_way = self.sent.values().filter(|probe| probe.under_way);
        let free = MOST_PROBES.saturating_sub(under_way.count());
        let mut due: BTreeMap<Endpoint, (Option<Duration>, usize)> = BTreeMap::new();
        for (rank, endpoint) in wishes {
            let known = self.sent.get(&endpoint);
            let rests = known
                .is_some_and(|probe| probe.under_way || now.saturating_sub(probe.started) < PROBED);
            if !rests {
                let last = known.map(|probe| probe.started);
                let order = due.entry(endpoint).or_insert((last, rank));
                order.1 = order.1.min(rank);
            }
        }
        let mut due: Vec<_> = due
            .into_iter()
            .map(|(endpoint, order)| (order, endpoint))
            .collect();
        due.sort_unstable();
        let due = due.into_iter().take(free).map(|(_, endpoint)| endpoint);
        let mut chosen: Vec<Endpoint> = due.collect();
        let few = MET.min(free - chosen.len());
        let unmet = std::iter::from_fn(|| self.unmet.pop_front());
        let unmet = unmet.filter(|one| !self.met.contains(one) && !chosen.contains(one));
        let unmet: Vec<Endpoint> = unmet.take(few).collect();
        chosen.extend(unmet);
        self.met.extend(&chosen);
        for endpoint in &chosen {
            let probe = Probe {
                started: now,
                under_way: true,
                answered: self.sent.get(endpoint).and_then(|probe| probe.answered),
            };
            self.sent.insert(*endpoint, probe);
        }
        chosen
    }

    /// Whether an endpoint answers, as far as a probe has said it lately.
    pub(super) fn say(&self, endpoint: &Endpoint, now: Duration) -> Option<bool> {
        let probe = self.sent.get(endpoint)?;
        if probe.under_way && now.saturating_sub(probe.started) >= PATIENCE {
            return Some(false);
        }
        let (answered, at) = probe.answered?;
        (now.saturating_sub(at) < FRESH).then_some(answered)
    }

    /// Whether an endpoint has answered one.
    pub(super) fn reach(&self, endpoint: &Endpoint) -> bool {
        self.reached.contains(endpoint)
    }

    /// Whether nothing is known.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }
}
