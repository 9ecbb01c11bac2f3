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
    given
        .into_iter()
        .map(|share| share.unwrap_or(mean))
        .collect()
}
