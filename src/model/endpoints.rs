//! Lists of endpoints that many hold and few change: cheap to share, to change in one place and to
//! compare with what they were.
//!
//! A long list is made of chunks. A changed list shares the chunks that have not changed with the
//! one that it was made from, so that both are told apart by looking at the others.

use std::fmt;
use std::sync::Arc;

use super::Endpoint;

/// Endpoints in a chunk of a long list; shorter lists are one piece.
const CHUNK: usize = 256;

/// A list of endpoints. Cloning shares it.
#[derive(Clone)]
pub struct Endpoints(Pieces);

#[derive(Clone)]
enum Pieces {
    One(Arc<[Endpoint]>),
    /// Two or more; all but the last are full, and none is empty.
    Many(Arc<[Arc<[Endpoint]>]>),
}

impl Default for Endpoints {
    fn default() -> Self {
        Self(Pieces::One(Arc::default()))
    }
}

impl Endpoints {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.0 {
            Pieces::One(list) => list.len(),
            Pieces::Many(chunks) => {
                let last = chunks.last().map_or(0, |chunk| chunk.len());
                chunks.len().saturating_sub(1) * CHUNK + last
            }
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The endpoint at a place.
    #[must_use]
    pub fn get(&self, place: usize) -> Option<Endpoint> {
        match &self.0 {
            Pieces::One(list) => list.get(place).copied(),
            Pieces::Many(chunks) => chunks.get(place / CHUNK)?.get(place % CHUNK).copied(),
        }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Endpoint> + Clone {
        (0..self.chunk_count())
            .filter_map(|index| self.chunk(index))
            .flatten()
    }

    fn chunk_count(&self) -> usize {
        match &self.0 {
            Pieces::One(_) => 1,
            Pieces::Many(chunks) => chunks.len(),
        }
    }

    /// The endpoints of one chunk.
    fn chunk(&self, index: usize) -> Option<&[Endpoint]> {
        match &self.0 {
            Pieces::One(list) => (index == 0).then_some(&**list),
            Pieces::Many(chunks) => chunks.get(index).map(|chunk| &**chunk),
        }
    }

    /// Whether another one is the very same list, not just an equal one.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Pieces::One(mine), Pieces::One(others)) => Arc::ptr_eq(mine, others),
            (Pieces::Many(mine), Pieces::Many(others)) => Arc::ptr_eq(mine, others),
            _ => false,
        }
    }

    /// The places at which another list has something else, with what is there in this one and in
    /// the other. Takes time in proportion to the chunks that the two do not share.
    pub fn differences<'a>(
        &'a self,
        other: &'a Self,
    ) -> impl Iterator<Item = (usize, Option<Endpoint>, Option<Endpoint>)> + 'a {
        let most = self.chunk_count().max(other.chunk_count());
        (0..most)
            .map(move |index| {
                let of = |list: &'a Self| list.chunk(index).unwrap_or(&[]);
                (index, of(self), of(other))
            })
            .filter(|(_, mine, others)| !std::ptr::eq(*mine, *others))
            .flat_map(|(index, mine, others)| {
                (0..mine.len().max(others.len())).filter_map(move |at| {
                    let (mine, others) = (mine.get(at), others.get(at));
                    let place = index * CHUNK + at;
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
        sorted.sort_by_key(|(place, _)| *place);
        let chunks = match &self.0 {
            Pieces::Many(chunks) if length > CHUNK => chunks,
            _ => {
                let mut list: Vec<Endpoint> = self.iter().take(length).copied().collect();
                for (place, endpoint) in sorted {
                    match list.get_mut(place) {
                        Some(known) => *known = endpoint,
                        None => list.push(endpoint),
                    }
                }
                return list.into();
            }
        };
        let mut changed = sorted.into_iter().peekable();
        let mut new: Vec<Arc<[Endpoint]>> = Vec::with_capacity(length.div_ceil(CHUNK));
        for index in 0..length.div_ceil(CHUNK) {
            let end = ((index + 1) * CHUNK).min(length);
            let size = end - index * CHUNK;
            let known = chunks.get(index);
            let is_changed = changed.peek().is_some_and(|(place, _)| *place < end);
            if let Some(known) = known
                && known.len() == size
                && !is_changed
            {
                new.push(Arc::clone(known));
                continue;
            }
            let mut list: Vec<Endpoint> = known.map_or(&[][..], |known| known).to_vec();
            list.truncate(size);
            while let Some((place, endpoint)) = changed.next_if(|(place, _)| *place < end) {
                match list.get_mut(place - index * CHUNK) {
                    Some(known) => *known = endpoint,
                    None => list.push(endpoint),
                }
            }
            new.push(list.into());
        }
        Self(Pieces::Many(new.into()))
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
        if list.len() <= CHUNK {
            return Self(Pieces::One(list.into()));
        }
        Self(Pieces::Many(list.chunks(CHUNK).map(Arc::from).collect()))
    }
}

impl FromIterator<Endpoint> for Endpoints {
    fn from_iter<I: IntoIterator<Item = Endpoint>>(endpoints: I) -> Self {
        Vec::from_iter(endpoints).into()
    }
}

impl PartialEq for Endpoints {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Pieces::One(mine), Pieces::One(others)) => Arc::ptr_eq(mine, others) || mine == others,
            (Pieces::Many(mine), Pieces::Many(others)) => {
                let same = |(mine, others): (&Arc<[Endpoint]>, &Arc<[Endpoint]>)| {
                    Arc::ptr_eq(mine, others) || mine == others
                };
                Arc::ptr_eq(mine, others)
                    || (mine.len() == others.len() && mine.iter().zip(&**others).all(same))
            }
            _ => false,
        }
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
            mut numbers in proptest::collection::vec(0u32..50, 0..1200),
            steps in proptest::collection::vec((0usize..1300, proptest::collection::vec((0usize..1300, 50u32..60), 0..5)), 1..6),
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
    fn one_change_leaves_all_other_chunks_shared() {
        let numbers: Vec<u32> = (0..10_000).collect();
        let before = list(&numbers);
        let after = before.with(&[(5_000, endpoint(99_999))], 10_000);
        let (Pieces::Many(before), Pieces::Many(after)) = (&before.0, &after.0) else {
            panic!("a long list is made of chunks");
        };
        let shared = before
            .iter()
            .zip(&**after)
            .filter(|(a, b)| Arc::ptr_eq(a, b));
        assert_eq!(shared.count(), before.len() - 1);
    }
}
