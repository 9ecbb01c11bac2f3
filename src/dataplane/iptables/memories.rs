//! Whose clients are remembered: the kernel finds a list of `xt_recent` by walking past all others, for each rule
//! that is written and each packet that looks (`recent_table_lookup` in `net/netfilter/xt_recent.c`), so that
//! there are to be only so many.

use std::collections::HashMap;

use rustc_hash::FxBuildHasher;

use crate::core::ir::{Action, Destination, DestinationChange, Forwarding};

/// The most lists of a family, each destination's counted for itself: with so many a change takes the legacy
/// variant a second longer, and a first packet half a millisecond.
const MOST: usize = 8192;

/// The destinations with affinity.
#[derive(Debug, Clone)]
pub(super) struct Memories {
    /// How many lists each has; none if there are too many already.
    lists: HashMap<Destination, Option<usize>, FxBuildHasher>,
    total: usize,
    most: usize,
}

impl Default for Memories {
    fn default() -> Self {
        Self {
            lists: HashMap::default(),
            total: 0,
            most: MOST,
        }
    }
}

impl Memories {
    /// From now on nobody is remembered: the kernel has no means to.
    pub(super) const fn end(&mut self) {
        self.most = 0;
    }

    /// Whether clients of a destination are remembered, if it asks for that.
    pub(super) fn remembers(&self, destination: Destination) -> bool {
        !matches!(self.lists.get(&destination), Some(None))
    }

    /// What there is after these changes. Whoever is remembered already comes first, here or, before the first
    /// change, in the kernel.
    pub(super) fn with<'a, I>(
        &self,
        changes: impl Fn() -> I,
        in_kernel: impl Fn(Destination) -> bool,
    ) -> Self
    where
        I: Iterator<Item = &'a DestinationChange>,
    {
        let mut after = self.clone();
        for change in changes() {
            if let Some(Some(lists)) = after.lists.remove(&change.destination) {
                after.total -= lists;
            }
        }
        let was = |change: &DestinationChange| self.lists.get(&change.destination).copied();
        for first in [true, false] {
            for change in changes() {
                let wanted = change.after.as_ref().map_or(0, lists);
                let is_first =
                    matches!(was(change), Some(Some(_))) || in_kernel(change.destination);
                if wanted == 0 || is_first != first {
                    continue;
                }
                let fits = after.total + wanted <= after.most;
                let found = fits.then_some(wanted);
                after.total += found.unwrap_or(0);
                after.lists.insert(change.destination, found);
                if !fits && after.most > 0 && was(change) != Some(None) {
                    let label = change.after.as_ref().map(|after| after.label.as_str());
                    tracing::warn!(
                        service = label.unwrap_or_default(),
                        destination = %change.destination,
                        most = MOST,
                        "served without session affinity: iptables remembers the clients of so many endpoints, \
                         of all Services together; nftables mode has no such bound",
                    );
                }
            }
        }
        after
    }
}

/// How many lists a destination needs.
pub(super) fn lists(forwarding: &Forwarding) -> usize {
    match &forwarding.action {
        Action::Balance {
            affinity: Some(_),
            primary,
            external,
            ..
        } => primary.iter().count() + external.as_ref().map_or(0, |list| list.iter().count()),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::core::ir::{Host, Label, SourcePolicy, Sources};
    use crate::core::model::{Endpoint, Owner, Protocol};

    fn with_clients(number: u8, endpoints: u16) -> DestinationChange {
        let endpoint = |last: u16| Endpoint {
            address: IpAddr::V4(Ipv4Addr::from(0x0af4_0000 + u32::from(last))),
            port: 80,
        };
        DestinationChange {
            owner: Owner::Cluster,
            destination: Destination {
                host: Host::Address(IpAddr::V4(Ipv4Addr::new(10, 96, 0, number))),
                protocol: Protocol::Tcp,
                port: 80,
            },
            before: None,
            after: Some(Forwarding {
                label: Label::new("default/web:http"),
                sources: Sources::Any,
                action: Action::Balance {
                    policy: SourcePolicy::ClusterIp,
                    primary: (0..endpoints).map(endpoint).collect(),
                    external: None,
                    draw: crate::core::ir::Draw::Random,
                    affinity: Some(600),
                },
            }),
        }
    }

    fn gone(mut change: DestinationChange) -> DestinationChange {
        change.before = change.after.take();
        change
    }

    #[test]
    fn clients_of_so_many_endpoints_are_remembered_and_those_that_are_go_before_others() {
        let (first, second, third) = (
            with_clients(1, 5_000),
            with_clients(2, 4_000),
            with_clients(3, 3_000),
        );
        let remembers = |memories: &Memories| {
            [&first, &second, &third].map(|change| memories.remembers(change.destination))
        };
        let after = |before: &Memories, changes: &[DestinationChange]| {
            before.with(|| changes.iter(), |_| false)
        };
        let one = after(&Memories::default(), std::slice::from_ref(&first));
        let all = after(&one, &[second.clone(), third.clone()]);
        assert_eq!(remembers(&all), [true, false, true]);
        // Whoever is remembered changes, and somebody else asks at the same time.
        let changed = after(&all, &[second.clone(), with_clients(3, 3_100)]);
        assert_eq!(remembers(&changed), [true, false, true]);
        let less = after(&changed, &[second.clone(), gone(first.clone())]);
        assert_eq!(remembers(&less)[1..], [true, true]);
        // After a restart the one that was remembered is.
        let again = [first.clone(), second.clone()];
        let again = Memories::default().with(|| again.iter(), |to| to == second.destination);
        assert_eq!(remembers(&again)[..2], [false, true]);
        let mut none = Memories::default();
        none.end();
        let after_it = after(&none, std::slice::from_ref(&first));
        assert!(!after_it.remembers(first.destination));
    }
}
