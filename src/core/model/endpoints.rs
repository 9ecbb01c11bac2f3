//! Lists of endpoints that many hold and few change: cheap to share, to change in one place and to
//! compare with what they were.
//!
//! A long list is a tree of pieces. A changed list shares the pieces that have not changed with the
//! one that it was made from, so that both are told apart by looking at the others.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::Endpoint;

/// Endpoints in a leaf of a long list; shorter lists are one piece.
const LEAF: usize = 64;
/// Pieces in a branch.
const FAN: usize = 8;

/// A list of endpoints. Cloning shares it.
#[derive(Clone, Default)]
pub struct Endpoints {
    tree: Tree,
    len: usize,
}

/// A piece of a list. All pieces of a branch but the last one are full, and all leaves are at one
/// depth.
#[derive(Clone)]
enum Tree {
    Leaf(Arc<[Endpoint]>),
    Branch(Arc<[Tree]>),
}

impl Default for Tree {
    fn default() -> Self {
        Self::Leaf(Arc::default())
    }
}

/// Endpoints in full pieces of a height, 0 being a leaf.
const fn capacity(height: u32) -> usize {
    LEAF.saturating_mul(FAN.saturating_pow(height))
}

/// The height of a tree of so many endpoints.
fn height(len: usize) -> u32 {
    let mut height = 0;
    while capacity(height) < len {
        height += 1;
    }
    height
}

/// A place, what was there and what is.
type Difference = (usize, Option<Endpoint>, Option<Endpoint>);

impl Tree {
    fn height(&self) -> u32 {
        let mut height = 0;
        let mut tree = self;
        // The height of the first piece is that of all.
        while let Self::Branch(pieces) = tree {
            height += 1;
            match &**pieces {
                [first, ..] => tree = first,
                [] => break,
            }
        }
        height
    }

    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Leaf(mine), Self::Leaf(others)) => Arc::ptr_eq(mine, others),
            (Self::Branch(mine), Self::Branch(others)) => Arc::ptr_eq(mine, others),
            _ => false,
        }
    }

    fn get(&self, place: usize) -> Option<Endpoint> {
        match self {
            Self::Leaf(leaf) => leaf.get(place).copied(),
            Self::Branch(pieces) => {
                let each = capacity(self.height() - 1);
                pieces.get(place / each)?.get(place % each)
            }
        }
    }

    fn leaves<'a>(&'a self, out: &mut Vec<&'a [Endpoint]>) {
        match self {
            Self::Leaf(leaf) => out.push(leaf),
            Self::Branch(pieces) => pieces.iter().for_each(|piece| piece.leaves(out)),
        }
    }

    fn equals(&self, other: &Self) -> bool {
        self.is(other)
            || match (self, other) {
                (Self::Leaf(mine), Self::Leaf(others)) => mine == others,
                (Self::Branch(mine), Self::Branch(others)) => {
                    let mut pairs = mine.iter().zip(&**others);
                    mine.len() == others.len() && pairs.all(|(mine, other)| mine.equals(other))
                }
                _ => false,
            }
    }

    /// A tree from a list that fits into this height.
    fn build(list: &[Endpoint], height: u32) -> Self {
        if height == 0 {
            return Self::Leaf(list.into());
        }
        let pieces = list.chunks(capacity(height - 1));
        Self::Branch(pieces.map(|piece| Self::build(piece, height - 1)).collect())
    }

    /// The same with other endpoints at some places, sorted, of another length that fits into this
    /// height. What is new is among the changes.
    fn with(
        known: Option<&Self>,
        height: u32,
        start: usize,
        changes: &[(usize, Endpoint)],
        len: usize,
    ) -> Self {
        if height == 0 {
            let known = match known {
                Some(Self::Leaf(leaf)) => &leaf[..leaf.len().min(len)],
                _ => &[],
            };
            let mut list: Vec<Endpoint> = Vec::with_capacity(len);
            list.extend_from_slice(known);
            for (place, endpoint) in changes {
                match list.get_mut(place - start) {
                    Some(known) => *known = *endpoint,
                    None => list.push(*endpoint),
                }
            }
            return Self::Leaf(list.into());
        }
        let each = capacity(height - 1);
        let known = match known {
            Some(Self::Branch(pieces)) => &**pieces,
            _ => &[],
        };
        let mut changes = changes;
        let pieces = (0..len.div_ceil(each)).map(|index| {
            let first = start + index * each;
            let size = each.min(len - index * each);
            let count = changes.partition_point(|(place, _)| *place < first + size);
            let (mine, rest) = changes.split_at(count);
            changes = rest;
            match known.get(index) {
                // A full piece stays full, and only the last one is looked at to know whether it is:
                // the others may be far away in memory.
                Some(piece)
                    if mine.is_empty()
                        && (if index + 1 < known.len() {
                            each
                        } else {
                            piece.len()
                        }) == size =>
                {
                    piece.clone()
                }
                piece => Self::with(piece, height - 1, first, mine, size),
            }
        });
        Self::Branch(pieces.collect())
    }

    fn len(&self) -> usize {
        match self {
            Self::Leaf(leaf) => leaf.len(),
            Self::Branch(pieces) => {
                let each = capacity(self.height() - 1);
                let last = pieces.last().map_or(0, Self::len);
                pieces.len().saturating_sub(1) * each + last
            }
        }
    }
}

impl Endpoints {
    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The endpoint at a place.
    #[must_use]
    pub fn get(&self, place: usize) -> Option<Endpoint> {
        self.tree.get(place)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Endpoint> + Clone {
        let (one, many) = match &self.tree {
            Tree::Leaf(leaf) => (&**leaf, Vec::new()),
            tree @ Tree::Branch(_) => {
                let mut leaves = Vec::new();
                tree.leaves(&mut leaves);
                (&[][..], leaves)
            }
        };
        one.iter().chain(many.into_iter().flatten())
    }

    /// Whether another one is the very same list, not just an equal one.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        self.tree.is(&other.tree)
    }

    /// The places at which another list has something else, in their order, with what is there in
    /// this one and in the other. Takes time in proportion to the pieces that the two do not share.
    pub fn differences<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = Difference> + 'a {
        let most = self.len.max(other.len);
        let mut ranges: Vec<(Range<usize>, &'a [Endpoint], &'a [Endpoint])> = Vec::new();
        let mut only = None;
        match (&self.tree, &other.tree) {
            (mine, others) if mine.is(others) => {}
            (Tree::Leaf(mine), Tree::Leaf(others)) => only = Some((0..most, &**mine, &**others)),
            (mine, others) => collect(Some(mine), Some(others), height(most), 0, &mut ranges),
        }
        only.into_iter()
            .chain(ranges)
            .flat_map(|(range, mine, others)| {
                let start = range.start;
                range.filter_map(move |place| {
                    let (mine, others) = (mine.get(place - start), others.get(place - start));
                    (mine != others).then(|| (place, mine.copied(), others.copied()))
                })
            })
    }

    /// The same list with other endpoints at some places, and of another length. Every place that
    /// is new has to be among them.
    #[must_use]
    pub fn with(&self, changes: &[(usize, Endpoint)], length: usize) -> Self {
        let mut sorted: Vec<(usize, Endpoint)> = changes
            .iter()
            .filter(|(place, _)| *place < length)
            .copied()
            .collect();
        // The last word about a place counts.
        sorted.sort_by_key(|(place, _)| *place);
        let height = height(length);
        let mut known = self.tree.clone();
        while known.height() > height {
            known = match &known {
                Tree::Branch(pieces) => pieces.first().cloned().unwrap_or_default(),
                Tree::Leaf(_) => break,
            };
        }
        while known.height() < height {
            known = Tree::Branch([known].into());
        }
        Self {
            tree: Tree::with(Some(&known), height, 0, &sorted, length),
            len: length,
        }
    }
}

/// The leaves that two trees do not share, with their places. `height` is that of a tree that would
/// hold either.
fn collect<'a>(
    mine: Option<&'a Tree>,
    others: Option<&'a Tree>,
    height: u32,
    start: usize,
    out: &mut Vec<(Range<usize>, &'a [Endpoint], &'a [Endpoint])>,
) {
    match (mine, others) {
        (Some(mine), Some(others)) if mine.is(others) => return,
        (None, None) => return,
        _ => {}
    }
    if height == 0 {
        let leaf = |tree: Option<&'a Tree>| match tree {
            Some(Tree::Leaf(leaf)) => &**leaf,
            _ => &[],
        };
        let (mine, others) = (leaf(mine), leaf(others));
        out.push((start..start + mine.len().max(others.len()), mine, others));
        return;
    }
    // A tree of less height is the first piece of one that is higher.
    let piece = |tree: Option<&'a Tree>, index: usize| match tree {
        Some(tree) if tree.height() < height => (index == 0).then_some(tree),
        Some(Tree::Branch(pieces)) => pieces.get(index),
        _ => None,
    };
    for index in 0..FAN {
        let first = start + index * capacity(height - 1);
        let (mine, others) = (piece(mine, index), piece(others, index));
        if mine.is_none() && others.is_none() {
            return;
        }
        collect(mine, others, height - 1, first, out);
    }
}

impl<'a> IntoIterator for &'a Endpoints {
    type Item = &'a Endpoint;
    type IntoIter = Box<dyn Iterator<Item = &'a Endpoint> + 'a>;

    fn into_iter(self) -> Self::IntoIter {
        Box::new(self.iter())
    }
}

impl From<Vec<Endpoint>> for Endpoints {
    fn from(list: Vec<Endpoint>) -> Self {
        if list.is_empty() {
            return Self::default();
        }
        Self {
            tree: Tree::build(&list, height(list.len())),
            len: list.len(),
        }
    }
}

impl FromIterator<Endpoint> for Endpoints {
    fn from_iter<I: IntoIterator<Item = Endpoint>>(endpoints: I) -> Self {
        Vec::from_iter(endpoints).into()
    }
}

impl PartialEq for Endpoints {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.tree.equals(&other.tree)
    }
}

impl Eq for Endpoints {}

impl fmt::Debug for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn endpoint(number: u32) -> Endpoint {
        Endpoint::new(std::net::Ipv4Addr::from(number).into(), 80)
    }

    fn list(numbers: &[u32]) -> Endpoints {
        numbers.iter().copied().map(endpoint).collect()
    }

    proptest! {
        #[test]
        fn a_changed_list_is_as_if_written_anew_and_differs_where_it_was_changed(
            mut numbers in proptest::collection::vec(0u32..50, 0..5000),
            steps in proptest::collection::vec((0usize..5300, proptest::collection::vec((0usize..5300, 50u32..60), 0..5)), 1..6),
        ) {
            let mut changed = list(&numbers);
            for (length, changes) in steps {
                let before = (numbers.clone(), changed.clone());
                let mut all: Vec<(usize, u32)> = (numbers.len()..length).map(|place| (place, 99)).collect();
                numbers.resize(length, 99);
                for (place, number) in changes {
                    if let Some(known) = numbers.get_mut(place) {
                        *known = number;
                        all.push((place, number));
                    }
                }
                let all: Vec<(usize, Endpoint)> =
                    all.into_iter().map(|(place, number)| (place, endpoint(number))).collect();
                changed = changed.with(&all, length);
                prop_assert_eq!(&changed, &list(&numbers));
                prop_assert_eq!(changed.len(), length);
                prop_assert!(changed.iter().copied().eq(numbers.iter().copied().map(endpoint)));
                let differences: Vec<_> = before.1.differences(&changed).collect();
                let expected: Vec<_> = (0..length.max(before.0.len()))
                    .map(|place| (place, before.0.get(place).copied().map(endpoint), numbers.get(place).copied().map(endpoint)))
                    .filter(|(_, was, is)| was != is)
                    .collect();
                prop_assert_eq!(differences, expected);
            }
        }
    }

    #[test]
    fn one_change_leaves_all_other_pieces_shared() {
        let numbers: Vec<u32> = (0..100_000).collect();
        let before = list(&numbers);
        let after = before.with(&[(50_000, endpoint(999_999))], 100_000);
        let leaves = |list: &Endpoints| -> Vec<*const Endpoint> {
            let mut leaves = Vec::new();
            list.tree.leaves(&mut leaves);
            leaves.into_iter().map(<[Endpoint]>::as_ptr).collect()
        };
        let (before, after) = (leaves(&before), leaves(&after));
        let shared = before.iter().zip(&after).filter(|(a, b)| a == b);
        assert_eq!(shared.count(), before.len() - 1);
        assert_eq!(before.len(), after.len());
    }

    #[test]
    fn lists_of_any_length_come_out_as_they_went_in() {
        for len in [0, 1, LEAF, LEAF + 1, LEAF * FAN, LEAF * FAN + 1, 200_000] {
            let numbers: Vec<u32> = (0..len as u32).collect();
            let whole = list(&numbers);
            assert_eq!(whole.len(), len);
            assert!(
                whole
                    .iter()
                    .copied()
                    .eq(numbers.iter().copied().map(endpoint))
            );
            for place in [0, len / 2, len.saturating_sub(1), len] {
                let expected = numbers.get(place).copied().map(endpoint);
                assert_eq!(whole.get(place), expected, "{place} of {len}");
            }
            for other in [0, 1, len / 2, len].map(|other| other.min(len)) {
                let shorter = whole.with(&[], other);
                assert_eq!(shorter, list(&numbers[..other]), "{other} of {len}");
                assert_eq!(whole.differences(&shorter).count(), len - other);
            }
        }
    }
}
