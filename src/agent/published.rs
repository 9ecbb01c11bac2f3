//! What others are told of what is programmed.

use std::time::Duration;

use super::reconciler::{Desired, Proxy, Synced};
use crate::core::ir::Action;
use crate::core::model::{Family, PerFamily, Protocol};
use crate::dataplane::Backend;
use crate::dataplane::conntrack::Work;
use crate::serve::health_checks::{Addresses, Table};
use crate::serve::loopback;

/// What load balancers may ask, and where.
pub(super) fn health_checks(desired: &Desired) -> Table {
    let addresses = desired.node_port_addresses();
    Table {
        checks: desired.health_checks().cloned().collect(),
        addresses: PerFamily::from_fn(|family| {
            if desired.node_ports().all(family) {
                Addresses::All
            } else {
                Addresses::Some(addresses.clone())
            }
        }),
    }
}

/// Where TCP `NodePort`s lead on loopback: under a Local policy only to endpoints on this node (KEP-6032). Those
/// of IPv4 may be the rules' business.
pub(super) fn on_loopback(desired: &Desired, routed: bool) -> loopback::Table {
    let addresses = desired.node_ports();
    let node_ports = desired.engine().wanted_node_ports();
    let served = node_ports
        .filter(|(to, _)| to.protocol == Protocol::Tcp && addresses.loopback(to.family()))
        .filter(|(to, _)| !routed || to.family() == Family::V6);
    let targets = served.filter_map(|(to, forwarding)| {
        let Action::Balance {
            primary,
            external,
            affinity,
            ..
        } = &forwarding.action
        else {
            return None;
        };
        let endpoints = external.as_ref().unwrap_or(primary);
        let target = loopback::Target {
            label: forwarding.label.as_str().to_owned(),
            endpoints: endpoints.clone(),
            affinity: affinity.map(|seconds| Duration::from_secs(u64::from(seconds))),
        };
        endpoints.iter().next()?;
        Some(((to.family(), to.port), target))
    });
    targets.collect()
}

/// One line per sync.
pub(crate) fn log_sync<B: Backend>(proxy: &Proxy<B>, synced: &Synced) {
    let applied = synced.applied;
    tracing::info!(
        services = proxy.desired().state().service_count(),
        operations = applied.operations,
        bytes = applied.bytes,
        transactions = applied.transactions,
        kernel = ?applied.kernel,
        "synced",
    );
}

/// The flows that the last sync may have left stale.
pub(crate) fn stale_flows<B: Backend>(proxy: &mut Proxy<B>) -> Work {
    Work {
        destinations: proxy.take_stale_flows(),
        node_addresses: proxy.desired().node_port_addresses(),
    }
}
