//! How many places lists have: few different numbers, whatever Services say.

use std::fmt;

/// How many places a list has.
///
/// As many as endpoints up to 256. Beyond that sizes are a sixteenth apart, so that no Service
/// decides how many chains there are: the last places are empty then, fewer than one in 17, and who
/// draws one draws again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Size(u16);

/// The largest size that is exact.
pub(crate) const EXACT: u32 = 256;
/// What the codes of larger ones begin with.
const CLASSED: u16 = 0x8000;
/// The places of the largest size: more than memory has room for.
const MOST_PLACES: u32 = 31 << 23;

impl Size {
    /// No place at all: connections are dropped.
    pub(crate) const NONE: Self = Self(0);

    /// The size of a list of so many endpoints.
    pub(crate) fn of(endpoints: u32) -> Self {
        if endpoints <= EXACT {
            return Self(u16::try_from(endpoints).unwrap_or(0));
        }
        let endpoints = endpoints.min(MOST_PLACES);
        // 16..=31 sixteenths of a power of two, rounded up.
        let exponent = (endpoints - 1).ilog2() - 4;
        let mantissa = ((endpoints - 1) >> exponent) + 1;
        let (exponent, mantissa) = if mantissa == 32 {
            (exponent + 1, 16)
        } else {
            (exponent, mantissa)
        };
        Self(CLASSED | u16::try_from(exponent << 4 | (mantissa - 16)).unwrap_or(0))
    }

    /// The size with this code; `None` if there is none.
    pub(crate) fn from_code(code: u16) -> Option<Self> {
        let size = Self(code);
        (Self::of(size.places()) == size).then_some(size)
    }

    /// Its number, in nine bits and the highest one.
    pub(crate) const fn code(self) -> u16 {
        self.0
    }

    /// How many places there are.
    pub(crate) const fn places(self) -> u32 {
        if self.0 & CLASSED == 0 {
            return self.0 as u32;
        }
        let (exponent, mantissa) = (self.0 >> 4 & 0x1f, self.0 & 0xf);
        (16 + mantissa as u32) << exponent
    }

    /// Whether all places are filled.
    pub(crate) const fn is_exact(self) -> bool {
        self.0 & CLASSED == 0
    }

    /// The next smaller size, whose places are all filled in a list of this one, if some places of
    /// this one may be empty.
    pub(crate) fn below(self) -> Option<Self> {
        if self.is_exact() {
            return None;
        }
        let (exponent, mantissa) = (u32::from(self.0 >> 4 & 0x1f), u32::from(self.0 & 0xf));
        let places = match mantissa {
            0 => 31 << (exponent - 1),
            _ => (15 + mantissa) << exponent,
        };
        Some(Self::of(places))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.places().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_list_has_a_size_that_holds_it_and_not_many_more() {
        let mut sizes = std::collections::BTreeSet::new();
        for endpoints in (0..70_000).chain([100_000, 1 << 24, u32::MAX]) {
            let size = Size::of(endpoints);
            sizes.insert(size);
            assert_eq!(Size::from_code(size.code()), Some(size), "{endpoints}");
            if endpoints <= EXACT {
                assert_eq!((size.places(), size.below()), (endpoints, None));
                continue;
            }
            let endpoints = endpoints.min(MOST_PLACES);
            assert!(size.places() >= endpoints, "{endpoints}: {size}");
            let empty = size.places() - endpoints;
            assert!(empty * 16 < size.places(), "{endpoints}: {size}");
            let below = size.below().unwrap();
            assert!(below < size && below.places() < endpoints, "{endpoints}");
            assert_eq!(Size::of(below.places() + 1), size, "{endpoints}");
        }
        assert!(sizes.len() < 450, "{}", sizes.len());
    }
}
