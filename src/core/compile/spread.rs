//! From the endpoints that take connections to the places of a list: who is passed over, how much each
//! weighs, and how one is drawn.

use crate::core::ir::Draw;
use crate::core::model::{Algorithm, Endpoint, Endpoints, Observed, Protocol, Service};
use crate::core::select::Selection;
use crate::core::select::places::{self, Table, Weighted};

/// The lists of a Service port, as places.
pub(super) struct Spread {
    pub(super) draw: Draw,
    pub(super) cluster: Endpoints,
    pub(super) local: Endpoints,
    /// All endpoints of a list weigh nothing, and are used all the same.
    pub(super) all_drained: bool,
}

/// Spreads a selection over the places of its lists.
pub(super) fn spread(
    service: &Service,
    protocol: Protocol,
    selection: &Selection,
    observed: Option<&Observed>,
) -> Spread {
    let algorithm = service.algorithm;
    let weighs = selection.weights.is_some();
    let shares = observed
        .is_some_and(|observed| algorithm.counts_connections() && !observed.shares.is_empty());
    let ejects = service.ejects && observed.is_some_and(|observed| !observed.ejected.is_empty());
    let draw = match algorithm {
        Algorithm::RoundRobin if weighs => Draw::WeightedTurn,
        Algorithm::RoundRobin => Draw::Turn,
        Algorithm::SourceHash | Algorithm::Maglev => Draw::Source,
        Algorithm::DestinationHash => Draw::Destination,
        _ if weighs || shares => Draw::Weighted,
        _ => Draw::Random,
    };
    let mut all_drained = false;
    let mut list = |endpoints: &Endpoints| {
        if !draw.repeats() && !ejects {
            return endpoints.clone();
        }
        let weight = |endpoint: &Endpoint| match &selection.weights {
            Some(weights) => weights.get(endpoint).copied().unwrap_or(1),
            None => 1,
        };
        let list = endpoints
            .iter()
            .map(|endpoint| (*endpoint, weight(endpoint)));
        let mut list: Vec<Weighted> = list.collect();
        all_drained |= drop_drained(&mut list);
        if let Some(observed) = observed.filter(|_| ejects) {
            drop_ejected(&mut list, protocol, observed);
        }
        placed(
            algorithm,
            draw,
            &list,
            protocol,
            observed.filter(|_| shares),
        )
    };
    Spread {
        draw,
        cluster: list(&selection.cluster),
        local: list(&selection.local),
        all_drained,
    }
}

/// Takes away who weighs nothing. Where that is everyone, all weigh the same.
fn drop_drained(list: &mut Vec<Weighted>) -> bool {
    let all = !list.is_empty() && list.iter().all(|(_, weight)| *weight == 0);
    if all {
        list.iter_mut().for_each(|(_, weight)| *weight = 1);
    }
    list.retain(|(_, weight)| *weight > 0);
    all
}

/// Takes away who does not answer, whoever was found first in front: as many as may be, and never all.
fn drop_ejected(list: &mut Vec<Weighted>, protocol: Protocol, observed: &Observed) {
    let mut left = observed.most_ejected(list.len());
    for (of, endpoint) in &observed.ejected {
        if left == 0 {
            return;
        }
        if *of == protocol
            && let Some(at) = list.iter().position(|(known, _)| known == endpoint)
        {
            list.remove(at);
            left -= 1;
        }
    }
}

fn placed(
    algorithm: Algorithm,
    draw: Draw,
    list: &[Weighted],
    protocol: Protocol,
    shares: Option<&Observed>,
) -> Endpoints {
    match draw {
        Draw::Random | Draw::Turn => list.iter().map(|(endpoint, _)| *endpoint).collect(),
        Draw::WeightedTurn => places::spread(list, &places::counts(list)),
        Draw::Source | Draw::Destination => {
            let table = match algorithm {
                Algorithm::Maglev => Table::Large,
                _ => Table::Small,
            };
            places::table(list, table)
        }
        Draw::Weighted => match shares {
            Some(observed) => places::repeated(list, &shared(list, protocol, observed)),
            None => places::repeated(list, &places::counts(list)),
        },
    }
}

/// The places that connections leave to each; whoever is new gets as many as the mean.
fn shared(list: &[Weighted], protocol: Protocol, observed: &Observed) -> Vec<u32> {
    let known = |endpoint: &Endpoint| observed.shares.get(&(protocol, *endpoint)).copied();
    let given: Vec<Option<u32>> = list.iter().map(|(endpoint, _)| known(endpoint)).collect();
    let count = given.iter().flatten().count();
    let sum: u64 = given.iter().flatten().map(|share| u64::from(*share)).sum();
    let mean = sum.checked_div(count as u64).unwrap_or(1).max(1);
    let mean = u32::try_from(mean).unwrap_or(u32::MAX);
    if sum == 0 {
        return vec![1; list.len()];
    }
    let shares = given.into_iter().map(|share| share.unwrap_or(mean));
    let shares: Vec<u64> = shares.map(u64::from).collect();
    let most = places::most(list.len());
    if shares.iter().sum::<u64>() > most {
        return places::apportion(&shares, most);
    }
    let narrow = |share: u64| u32::try_from(share).unwrap_or(u32::MAX);
    shares.into_iter().map(narrow).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::model::PerFamily;

    fn endpoint(number: u8) -> Endpoint {
        Endpoint::new([10, 244, 0, number].into(), 80)
    }

    fn service(algorithm: Algorithm, ejects: bool) -> Service {
        Service {
            created: 0,
            cluster_ips: PerFamily::default(),
            external_ips: Vec::new(),
            vips: Vec::new(),
            source_ranges: PerFamily::default(),
            ports: Vec::new(),
            affinity: None,
            algorithm,
            ejects,
            internal_local: false,
            external_local: false,
            health_check_node_port: 0,
        }
    }

    fn selection(weights: &[u32]) -> Selection {
        let all = || (1u8..).zip(weights);
        Selection {
            cluster: all().map(|(number, _)| endpoint(number)).collect(),
            weights: weights.iter().any(|weight| *weight != 1).then(|| {
                all()
                    .map(|(number, weight)| (endpoint(number), *weight))
                    .collect()
            }),
            ..Selection::default()
        }
    }

    fn numbers(list: &Endpoints) -> Vec<u8> {
        let number = |endpoint: &Endpoint| match endpoint.address {
            std::net::IpAddr::V4(address) => address.octets()[3],
            std::net::IpAddr::V6(_) => 0,
        };
        list.iter().map(number).collect()
    }

    #[test]
    fn p1_every_algorithm_has_its_draw_and_its_places() {
        let cases: [(Algorithm, &[u32], Draw, &[u8]); 7] = [
            (Algorithm::Random, &[1, 1], Draw::Random, &[1, 2]),
            (Algorithm::Random, &[4, 2], Draw::Weighted, &[1, 1, 2]),
            (Algorithm::RoundRobin, &[1, 1], Draw::Turn, &[1, 2]),
            (
                Algorithm::RoundRobin,
                &[2, 1, 1],
                Draw::WeightedTurn,
                &[1, 2, 1, 3],
            ),
            (Algorithm::LeastConnection, &[1, 1], Draw::Random, &[1, 2]),
            (Algorithm::NeverQueue, &[2, 1], Draw::Weighted, &[1, 1, 2]),
            (Algorithm::SourceHash, &[3], Draw::Source, &[1]),
        ];
        for (algorithm, weights, draw, places) in cases {
            let spread = spread(
                &service(algorithm, false),
                Protocol::Tcp,
                &selection(weights),
                None,
            );
            assert_eq!(spread.draw, draw, "{algorithm:?} {weights:?}");
            assert_eq!(
                numbers(&spread.cluster),
                places,
                "{algorithm:?} {weights:?}"
            );
        }
        for (algorithm, places) in [(Algorithm::SourceHash, 64), (Algorithm::Maglev, 1_024)] {
            let service = service(algorithm, false);
            let spread = spread(&service, Protocol::Tcp, &selection(&[1; 3]), None);
            assert_eq!(spread.cluster.len(), places);
        }
    }

    #[test]
    fn p6_whoever_weighs_nothing_is_left_out_unless_that_is_everyone() {
        let spread = |weights: &[u32]| {
            let service = service(Algorithm::Random, false);
            let spread = spread(&service, Protocol::Tcp, &selection(weights), None);
            (numbers(&spread.cluster), spread.all_drained)
        };
        assert_eq!(spread(&[0, 5, 5]), (vec![2, 3], false));
        assert_eq!(spread(&[0, 0]), (vec![1, 2], true));
        assert_eq!(spread(&[]), (vec![], false));
    }

    #[test]
    fn p7_whoever_was_found_first_not_to_answer_is_left_out_first_and_some_stay() {
        let observed = |ejected: &[u8]| Observed {
            ejected: ejected
                .iter()
                .map(|number| (Protocol::Tcp, endpoint(*number)))
                .collect(),
            most_percent: 50,
            ..Observed::default()
        };
        let spread = |ejects, weights: &[u32], ejected: &[u8]| {
            let service = service(Algorithm::Random, ejects);
            let spread = spread(
                &service,
                Protocol::Tcp,
                &selection(weights),
                Some(&observed(ejected)),
            );
            numbers(&spread.cluster)
        };
        assert_eq!(spread(true, &[1; 4], &[3]), [1, 2, 4]);
        assert_eq!(spread(true, &[1; 4], &[3, 1, 2]), [2, 4]);
        assert_eq!(spread(true, &[1], &[1]), [1]);
        assert_eq!(spread(true, &[1, 1], &[1, 2]), [2]);
        assert_eq!(
            spread(true, &[0, 1, 3], &[3]),
            [2],
            "of those that weigh something"
        );
        assert_eq!(
            spread(false, &[1; 4], &[3]),
            [1, 2, 3, 4],
            "nobody asked for it"
        );
    }

    #[test]
    fn p8_places_follow_connections_and_whoever_is_new_has_as_many_as_the_mean() {
        let observed = Observed {
            shares: [(1, 6), (2, 0), (3, 3)]
                .map(|(number, share)| ((Protocol::Tcp, endpoint(number)), share))
                .into(),
            ..Observed::default()
        };
        let service = service(Algorithm::LeastConnection, false);
        let spread = spread(
            &service,
            Protocol::Tcp,
            &selection(&[1; 4]),
            Some(&observed),
        );
        assert_eq!(
            numbers(&spread.cluster),
            [1, 1, 1, 1, 1, 1, 3, 3, 3, 4, 4, 4]
        );
    }
}
