//! What is seen, at which time, and who is passed over then.

use super::super::probes::MOST_PROBES;
use super::*;
use crate::core::model::{Algorithm, Family};

fn endpoint(number: u8) -> Endpoint {
    Endpoint::new([10, 244, 0, number].into(), 80)
}

fn watched(endpoints: u8) -> Watched {
    Watched {
        service: ObjectKey::new("shop", "web"),
        family: Family::V4,
        protocol: Protocol::Tcp,
        destinations: Vec::new(),
        endpoints: (1..=endpoints)
            .map(|number| (endpoint(number), 1))
            .collect(),
        here: BTreeSet::new(),
        algorithm: Algorithm::Random,
        ejects: true,
    }
}

/// A node whose clients connect 20 times between two looks to each endpoint, half a second apart.
struct Node {
    watched: Watched,
    ejections: Ejections,
    /// In half seconds.
    now: u32,
    dead: BTreeSet<u8>,
    /// No probe is answered, whoever lives.
    no_probes: bool,
    /// All connections are of one client.
    one_client: bool,
    /// Clients that nobody answers.
    refused_everywhere: bool,
    waiting: Vec<Waiting>,
    verdicts: Vec<String>,
}

impl Node {
    fn new(endpoints: u8) -> Self {
        let watched = watched(endpoints);
        let mut ejections = Ejections::default();
        ejections.meet(
            &watched
                .endpoints
                .iter()
                .map(|(endpoint, _)| *endpoint)
                .collect(),
        );
        Self {
            watched,
            ejections,
            now: 0,
            dead: BTreeSet::new(),
            no_probes: false,
            one_client: false,
            refused_everywhere: false,
            waiting: Vec::new(),
            verdicts: Vec::new(),
        }
    }

    fn time(&self) -> Duration {
        Duration::from_millis(500) * self.now
    }

    fn ejected(&self) -> Vec<Endpoint> {
        let observed = self.ejections.observed(&self.watched.service, 50);
        observed
            .ejected
            .into_iter()
            .map(|(_, endpoint)| endpoint)
            .collect()
    }

    fn look(&mut self, half_seconds: u32) {
        for _ in 0..half_seconds {
            self.now += 1;
            let ejected = self.ejected();
            // Clients of an endpoint that is passed over go elsewhere, and those of a dead one wait.
            self.waiting
                .retain(|waiting| !ejected.contains(&waiting.endpoint));
            for (endpoint, _) in &self.watched.endpoints {
                let number = match endpoint.address {
                    IpAddr::V4(address) => address.octets()[3],
                    IpAddr::V6(_) => 0,
                };
                let is_dead = self.dead.contains(&number);
                if ejected.contains(endpoint) || !(is_dead || self.refused_everywhere) {
                    self.waiting.retain(|waiting| waiting.endpoint != *endpoint);
                    continue;
                }
                let one_client = self.one_client;
                self.waiting.extend((0..20u8).map(|client| Waiting {
                    client: Endpoint::new(
                        [10, 1, 0, if one_client { 1 } else { client }].into(),
                        self.now as u16 * 32 + u16::from(client),
                    ),
                    endpoint: *endpoint,
                }));
            }
            let lives = |one: &Endpoint, dead: &BTreeSet<u8>| {
                !dead.iter().any(|number| endpoint(*number) == *one)
            };
            let all = self.watched.endpoints.iter().map(|(one, _)| *one);
            let sight = Sight {
                waiting: self.waiting.clone(),
                answered: all.filter(|one| lives(one, &self.dead)).collect(),
            };
            let now = self.time();
            let outcome = self.ejections.look(&[(&self.watched, sight)], 50, now);
            for probed in outcome.probes {
                if lives(&probed, &self.dead) && !self.no_probes {
                    self.ejections.probed(probed, true, now);
                }
            }
            self.verdicts
                .extend(outcome.verdicts.iter().map(|verdict| match verdict {
                    Verdict::Ejected {
                        endpoint, least, ..
                    } => format!(
                        "{} s: {endpoint} out, {} s",
                        self.now as f64 / 2.0,
                        least.as_secs()
                    ),
                    Verdict::Back {
                        endpoint, answered, ..
                    } => format!("{} s: {endpoint} back, {answered}", self.now as f64 / 2.0),
                }));
        }
    }
}

#[test]
fn one_that_dies_is_out_at_the_third_look_and_back_when_it_answers() {
    let mut node = Node::new(5);
    node.look(4);
    assert_eq!(node.verdicts, Vec::<String>::new());
    node.dead.insert(3);
    node.look(3);
    assert_eq!(node.verdicts, ["3.5 s: 10.244.0.3:80 out, 5 s"]);
    node.look(60);
    assert_eq!(
        node.ejected(),
        [endpoint(3)],
        "no client is made to try it meanwhile"
    );
    node.dead.clear();
    // The probe that was under way has to have ended first.
    node.ejections.probed(endpoint(3), false, node.time());
    node.look(3);
    assert_eq!(node.ejected(), [], "{:?}", node.verdicts);
    assert_eq!(node.verdicts[1], "34.5 s: 10.244.0.3:80 back, true");
}

#[test]
fn nobody_is_out_where_nobody_answers_and_where_it_is_the_clients_whom_nobody_answers() {
    let mut node = Node::new(3);
    node.dead = (1..=3).collect();
    node.look(40);
    assert_eq!(node.verdicts, Vec::<String>::new(), "all endpoints fail");
    let mut node = Node::new(3);
    node.refused_everywhere = true;
    node.look(40);
    assert_eq!(
        node.verdicts,
        Vec::<String>::new(),
        "all endpoints answer probes"
    );
}

#[test]
fn no_more_than_half_are_out_and_never_the_last() {
    let mut node = Node::new(4);
    node.dead = [1, 2, 3].into();
    node.look(20);
    assert_eq!(node.ejected().len(), 2, "{:?}", node.verdicts);
    let mut node = Node::new(1);
    node.dead = [1].into();
    node.look(20);
    assert_eq!(node.ejected(), []);
}

#[test]
fn where_probes_reach_nobody_time_runs_out_and_doubles() {
    let mut node = Node::new(5);
    node.no_probes = true;
    node.dead.insert(2);
    node.look(140);
    let outs: Vec<&String> = node
        .verdicts
        .iter()
        .filter(|verdict| verdict.contains("out"))
        .collect();
    assert!(
        outs[0].ends_with("out, 5 s") && outs[1].ends_with("out, 10 s"),
        "{outs:?}"
    );
    assert!(outs[2].ends_with("out, 20 s"), "{outs:?}");
    assert!(
        node.verdicts
            .iter()
            .any(|verdict| verdict.ends_with("back, false"))
    );
}

#[test]
fn what_is_kept_is_bounded_and_forgotten_with_the_service() {
    let mut node = Node::new(5);
    node.dead.insert(1);
    node.look(2);
    let flood = (0..100_000u32).map(|number| Waiting {
        client: Endpoint::new(std::net::Ipv4Addr::from(number).into(), 1),
        endpoint: endpoint(2),
    });
    let sight = Sight {
        waiting: flood.collect(),
        answered: BTreeSet::new(),
    };
    let now = node.time() + PATIENCE;
    let outcome = node.ejections.look(&[(&node.watched, sight)], 50, now);
    assert!(outcome.probes.len() <= MOST_PROBES);
    assert!(
        node.ejections
            .first_seen
            .values()
            .all(|flows| flows.len() <= MOST_FLOWS)
    );
    let later = now + Duration::from_secs(60);
    node.ejections.look(&[], 50, later);
    assert_eq!(node.ejections.count(), 0);
    assert!(node.ejections.probes.is_empty());
}

#[test]
fn a_client_that_a_policy_keeps_out_has_nobody_ejected_where_it_keeps_probes_out_too() {
    let mut node = Node::new(5);
    // Of this client's all go to one endpoint, which answers others.
    (node.no_probes, node.one_client) = (true, true);
    node.dead.insert(2);
    node.look(60);
    assert_eq!(node.verdicts, Vec::<String>::new());
    // Where probes have reached it before, their silence tells.
    let mut node = Node::new(5);
    node.one_client = true;
    node.look(4);
    node.dead.insert(2);
    node.look(4);
    assert_eq!(node.ejected(), [endpoint(2)]);
}

#[test]
fn many_that_are_dead_do_not_keep_others_from_being_found_out() {
    let mut ejections = Ejections::default();
    let mut large = watched(250);
    large.service = ObjectKey::new("shop", "large");
    let small = Watched {
        service: ObjectKey::new("shop", "small"),
        endpoints: (1..=3u8)
            .map(|number| (Endpoint::new([10, 245, 0, number].into(), 80), 1))
            .collect(),
        ..watched(0)
    };
    let waiting = |watched: &Watched, dead: usize| Sight {
        waiting: watched
            .endpoints
            .iter()
            .take(dead)
            .flat_map(|(endpoint, _)| {
                (0..4u8).map(|client| Waiting {
                    client: Endpoint::new([10, 1, 0, client].into(), 1),
                    endpoint: *endpoint,
                })
            })
            .collect(),
        answered: BTreeSet::new(),
    };
    let is_dead = |one: &Endpoint| {
        let of = |watched: &Watched, dead: usize| {
            watched
                .endpoints
                .iter()
                .take(dead)
                .any(|(known, _)| known == one)
        };
        of(&large, 120) || of(&small, 1)
    };
    let mut under_way: Vec<(Duration, Endpoint)> = Vec::new();
    for look in 0..40u32 {
        let now = Duration::from_millis(500) * look;
        under_way.retain(|(started, endpoint)| {
            let is_over = now.saturating_sub(*started) >= Duration::from_millis(600);
            if is_over {
                ejections.probed(*endpoint, false, now);
            }
            !is_over
        });
        let seen = [(&large, waiting(&large, 120)), (&small, waiting(&small, 1))];
        for probed in ejections.look(&seen, 50, now).probes {
            if is_dead(&probed) {
                under_way.push((now, probed));
            } else {
                ejections.probed(probed, true, now);
            }
        }
    }
    assert_eq!(ejections.observed(&small.service, 50).ejected.len(), 1);
    assert!(ejections.observed(&large.service, 50).ejected.len() >= 100);
}
