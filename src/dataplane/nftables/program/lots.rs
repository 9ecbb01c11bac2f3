//! What a place is drawn by: how, and of how many.
//!
//! A [`Lot`] is the lower half of a shape, and has a chain that draws. Chance and hashes need one chain
//! for each number of places. Whoever draws in turn needs a counter, which is in the chain's rule: it is
//! for one list alone as long as there are lanes left (`lanes` gives them).

use std::fmt;

use super::sizes::Size;
use crate::core::ir::Draw;

/// A counter of those who draw in turn, among those of one number of places.
pub(crate) type Lane = u8;

/// How many there are for one number of places.
pub(crate) const LANES: Lane = 30;

/// How one of so many places is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Lot {
    size: Size,
    draw: Draw,
    lane: Lane,
}

/// Where in a lot's code its way begins, above the size.
const WAY_SHIFT: u32 = 9;
const WAY_MASK: u16 = 0x3f << WAY_SHIFT;
/// The first of the ways that are lanes.
const TURNS: u16 = 4;
const WEIGHTED_TURNS: u16 = TURNS + LANES as u16;
const _: () = assert!(WEIGHTED_TURNS + LANES as u16 <= 64);

impl Lot {
    /// No place at all: connections are dropped.
    pub(crate) const NONE: Self = Self {
        size: Size::NONE,
        draw: Draw::Random,
        lane: 0,
    };

    /// A lot. Only those who draw in turn have a lane.
    pub(crate) const fn new(draw: Draw, size: Size, lane: Lane) -> Self {
        let lane = match draw {
            Draw::Turn | Draw::WeightedTurn => lane % LANES,
            _ => 0,
        };
        Self { size, draw, lane }
    }

    /// How many places there are.
    pub(crate) const fn size(self) -> Size {
        self.size
    }

    /// How one is drawn.
    pub(crate) const fn draw(self) -> Draw {
        self.draw
    }

    /// The counter, for those who draw in turn.
    pub(crate) const fn lane(self) -> Option<Lane> {
        match self.draw {
            Draw::Turn | Draw::WeightedTurn => Some(self.lane),
            _ => None,
        }
    }

    /// Its number in a shape.
    pub(crate) const fn code(self) -> u16 {
        let way = match self.draw {
            Draw::Random => 0,
            Draw::Weighted => 1,
            Draw::Source => 2,
            Draw::Destination => 3,
            Draw::Turn => TURNS + self.lane as u16,
            Draw::WeightedTurn => WEIGHTED_TURNS + self.lane as u16,
        };
        self.size.code() | way << WAY_SHIFT
    }

    /// The lot with this code; `None` if there is none.
    pub(crate) fn from_code(code: u16) -> Option<Self> {
        let way = (code & WAY_MASK) >> WAY_SHIFT;
        let (draw, lane) = match way {
            0 => (Draw::Random, 0),
            1 => (Draw::Weighted, 0),
            2 => (Draw::Source, 0),
            3 => (Draw::Destination, 0),
            TURNS..WEIGHTED_TURNS => (Draw::Turn, way - TURNS),
            _ => (Draw::WeightedTurn, way - WEIGHTED_TURNS),
        };
        let size = Size::from_code(code & !WAY_MASK)?;
        let lane = Lane::try_from(lane).ok().filter(|lane| *lane < LANES)?;
        Some(Self { size, draw, lane })
    }

    /// The next smaller one whose places are all filled, if some of this one's may be empty.
    pub(crate) fn below(self) -> Option<Self> {
        let size = self.size.below()?;
        Some(Self { size, ..self })
    }

    /// The one that is drawn by the same chain and stands for all of them: to a chain weights are nothing.
    pub(crate) const fn by_chain(self) -> Self {
        let draw = match self.draw {
            Draw::Weighted => Draw::Random,
            Draw::WeightedTurn => Draw::Turn,
            draw => draw,
        };
        Self { draw, ..self }
    }
}

impl fmt::Display for Lot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = self.size;
        match self.by_chain().draw {
            Draw::Source => write!(f, "source-{size}"),
            Draw::Destination => write!(f, "destination-{size}"),
            Draw::Turn => write!(f, "turn-{size}-{}", self.lane),
            _ => size.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_lot_has_one_code_and_no_other_number_is_one() {
        let mut codes = std::collections::BTreeSet::new();
        for draw in Draw::ALL {
            for places in [1, 10, 256, 257, 100_000, u32::MAX] {
                for lane in 0..LANES {
                    let lot = Lot::new(draw, Size::of(places), lane);
                    assert_eq!(Lot::from_code(lot.code()), Some(lot));
                    codes.insert(lot.code());
                    assert!(lot.below().is_none_or(|below| below.draw == draw
                        && below.lane == lot.lane
                        && below.size < lot.size));
                }
            }
        }
        assert_eq!(codes.len(), 6 * (4 + 2 * usize::from(LANES)));
        assert_eq!(Lot::from_code(0x0101), None, "257 places are no exact size");
    }
}
