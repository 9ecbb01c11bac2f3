//! What may differ between what is applied and what is wanted, by whose it is.
//!
//! Where there is more to do than one transaction takes, owners have turns: whoever changes a great
//! deal does not keep the others waiting. Of one owner, what lets traffic in comes before the
//! destinations, and what refuses it behind them, so that no part refuses what the whole would serve.

use std::collections::{BTreeSet, VecDeque, btree_set};
use std::iter::{Chain, Peekable};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Bound;

use crate::core::ir::{Destination, Shared};
use crate::core::model::{Family, Owner};

/// What may differ, in the order in which it is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Suspect {
    /// A fact that admits traffic, and is wanted.
    Admitting(Shared),
    Destination(Destination),
    /// A fact that refuses traffic.
    Refusing(Shared),
    /// A fact that admits traffic, and is not wanted.
    Withdrawn(Shared),
}

impl Suspect {
    const FIRST: Self = Self::Admitting(Shared::ClusterIp(IpAddr::V4(Ipv4Addr::UNSPECIFIED)));
    const LAST: Self = Self::Withdrawn(Shared::NodePortAddress(IpAddr::V6(Ipv6Addr::from_bits(
        u128::MAX,
    ))));

    /// Whose tables it is in.
    pub(super) const fn family(&self) -> Family {
        match self {
            Self::Destination(destination) => destination.family(),
            Self::Admitting(shared) | Self::Refusing(shared) | Self::Withdrawn(shared) => {
                shared.family()
            }
        }
    }

    /// A shared fact.
    pub(super) const fn shared(shared: Shared, is_wanted: bool) -> Self {
        match (shared.admits(), is_wanted) {
            (false, _) => Self::Refusing(shared),
            (true, true) => Self::Admitting(shared),
            (true, false) => Self::Withdrawn(shared),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: BTreeSet<(Owner, Suspect)>,
    /// Whose turn is next, and what of it is looked at first.
    turn: Option<Turn>,
}

/// An owner, and what of it could not be looked at any more.
pub(super) type Turn = (Owner, Suspect);

impl Queue {
    /// Puts in what is to be looked at on an owner's behalf. It may be in on another's, too: it counts
    /// for who has it when it is looked at.
    pub(super) fn put(&mut self, owner: Owner, suspect: Suspect) {
        self.waiting.insert((owner, suspect));
    }

    pub(super) fn done(&mut self, turn: &Turn) {
        self.waiting.remove(turn);
    }

    pub(super) fn clear(&mut self) {
        self.waiting.clear();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether something of an owner's is to be looked at.
    pub(super) fn holds(&self, owner: Owner) -> bool {
        self.of(owner).next().is_some()
    }

    /// What there is of an owner's.
    pub(super) fn of(&self, owner: Owner) -> btree_set::Range<'_, (Owner, Suspect)> {
        self.waiting
            .range((owner, Suspect::FIRST)..=(owner, Suspect::LAST))
    }

    /// The same with one first.
    fn of_first(&self, (owner, first): Turn) -> Own<'_> {
        let (begin, end) = ((owner, Suspect::FIRST), (owner, Suspect::LAST));
        let range = |from, to| self.waiting.range((from, to));
        if first == Suspect::FIRST {
            let all = range(Bound::Included(begin), Bound::Included(end));
            return all.chain(Of::default()).chain(Of::default()).peekable();
        }
        let first = (owner, first);
        let this = range(Bound::Included(first), Bound::Included(first));
        let before = range(Bound::Included(begin), Bound::Excluded(first));
        let behind = range(Bound::Excluded(first), Bound::Included(end));
        this.chain(before).chain(behind).peekable()
    }

    pub(super) const fn set_turn(&mut self, turn: Option<Turn>) {
        self.turn = turn;
    }

    /// The turn of an owner of whom something could not be looked at any more. A destination, which may
    /// need a transaction for itself, comes first then; what refuses stays behind the others.
    pub(super) const fn turn_at(owner: Owner, suspect: Suspect) -> Turn {
        match suspect {
            Suspect::Destination(_) => (owner, suspect),
            _ => (owner, Suspect::FIRST),
        }
    }

    /// The turn of the first Service that waits behind an owner.
    pub(super) fn turn_after(&self, owner: Owner) -> Option<Turn> {
        let next = self.after(owner)?;
        Some((next, Suspect::FIRST))
    }

    /// What there is of all Services, a piece of `quantum` at a time.
    pub(super) const fn turns(&self, quantum: usize) -> Turns<'_> {
        Turns {
            queue: self,
            quantum,
            used: 0,
            current: None,
            begun: false,
            wrapped: false,
            owner: Owner::Cluster,
            rest: VecDeque::new(),
        }
    }

    /// The first Service that waits behind an owner.
    pub(super) fn after(&self, owner: Owner) -> Option<Owner> {
        let behind = (Bound::Excluded((owner, Suspect::LAST)), Bound::Unbounded);
        self.waiting.range(behind).next().map(|(owner, _)| *owner)
    }
}

/// What there is of one owner's.
type Own<'a> = Peekable<Chain<Chain<Of<'a>, Of<'a>>, Of<'a>>>;
type Of<'a> = btree_set::Range<'a, (Owner, Suspect)>;

/// Who is looked at next.
pub(super) struct Turns<'a> {
    queue: &'a Queue,
    quantum: usize,
    used: usize,
    current: Option<Own<'a>>,
    begun: bool,
    /// It has come past the last Service.
    wrapped: bool,
    /// Whose turn was given last.
    owner: Owner,
    /// Those that have more than they could take in their first turn.
    rest: VecDeque<Own<'a>>,
}

impl Turns<'_> {
    /// What was given last has taken so much.
    pub(super) const fn charge(&mut self, weight: usize) {
        self.used += weight;
    }

    /// The next Service that has had no turn yet.
    fn next_owner(&mut self) -> Option<Owner> {
        let first = self.queue.turn.map(|(owner, _)| owner);
        let first = first.filter(|first| *first != Owner::Cluster);
        if !std::mem::replace(&mut self.begun, true)
            && let Some(first) = first
            && self.queue.holds(first)
        {
            return Some(first);
        }
        let end = first.unwrap_or(Owner::Cluster);
        if !self.wrapped {
            let from = if self.owner == Owner::Cluster {
                end
            } else {
                self.owner
            };
            if let Some(owner) = self.queue.after(from) {
                return Some(owner);
            }
            self.wrapped = true;
            self.owner = Owner::Cluster;
        }
        self.queue.after(self.owner).filter(|owner| *owner < end)
    }
}

impl Iterator for Turns<'_> {
    type Item = (Owner, Suspect);

    fn next(&mut self) -> Option<(Owner, Suspect)> {
        loop {
            if let Some(mut current) = self.current.take()
                && current.peek().is_some()
            {
                if self.used < self.quantum {
                    let next = current.next().copied();
                    self.current = Some(current);
                    return next;
                }
                self.rest.push_back(current);
            }
            self.used = 0;
            let resumes = !self.begun;
            if let Some(owner) = self.next_owner() {
                self.owner = owner;
                let first = self.queue.turn.filter(|turn| resumes && turn.0 == owner);
                let first = first.unwrap_or((owner, Suspect::FIRST));
                self.current = Some(self.queue.of_first(first));
            } else if let Some(rest) = self.rest.pop_front() {
                self.current = Some(rest);
            } else {
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ir::Host;
    use crate::core::model::{Protocol, ServiceId};

    fn destination(number: u8) -> Suspect {
        Suspect::Destination(Destination {
            host: Host::Address([10, 0, 0, number].into()),
            protocol: Protocol::Tcp,
            port: 80,
        })
    }

    /// So many Services, each with so many destinations.
    fn queue(destinations: &[u8]) -> (Queue, Vec<Owner>) {
        let mut queue = Queue::default();
        let ids = std::iter::successors(Some(ServiceId::FIRST), |id| Some(id.next()));
        let owners: Vec<Owner> = ids.map(Owner::Service).take(destinations.len()).collect();
        let mut number = 0;
        for (owner, count) in owners.iter().zip(destinations) {
            for _ in 0..*count {
                queue.put(*owner, destination(number));
                number += 1;
            }
        }
        (queue, owners)
    }

    fn order(queue: &Queue, owners: &[Owner], quantum: usize) -> String {
        let mut turns = queue.turns(quantum);
        let mut order = String::new();
        while let Some((owner, _)) = turns.next() {
            turns.charge(1);
            let place = owners.iter().position(|known| *known == owner).unwrap();
            order.push_str(&place.to_string());
        }
        order
    }

    #[test]
    fn owners_have_turns_and_go_on_where_they_had_to_stop() {
        let (mut queue, owners) = queue(&[5, 1, 3]);
        assert_eq!(order(&queue, &owners, 2), "001220020");
        queue.set_turn(Some((owners[2], Suspect::FIRST)));
        assert_eq!(order(&queue, &owners, 9), "222000001");
        queue.set_turn(Some((owners[1], Suspect::FIRST)));
        assert_eq!(order(&queue, &owners, 1), "120202000");
        queue.done(&(owners[1], destination(5)));
        assert_eq!(
            order(&queue, &owners, 1),
            "20202000",
            "its turn was, and it has nothing"
        );
        queue.set_turn(Some((owners[2], destination(8))));
        assert_eq!(
            order(&queue, &owners, 1),
            "20202000",
            "first where it had to stop, then what comes before"
        );
        let first = queue.turns(9).next();
        assert_eq!(first, Some((owners[2], destination(8))));
    }
}
