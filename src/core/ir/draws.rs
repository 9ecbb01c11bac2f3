//! How one of a list's places is drawn for a new connection.

/// What decides which place of a list a new connection is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Draw {
    /// Chance; every endpoint has one place.
    #[default]
    Random,
    /// Chance; an endpoint has as many places as it has weight.
    Weighted,
    /// The one after the last that was drawn; every endpoint has one place.
    Turn,
    /// The same in the order of the list; an endpoint has as many places as it has weight.
    WeightedTurn,
    /// A hash of the source's address; an endpoint has many places, and which those are is for every
    /// node the same.
    Source,
    /// A hash of the address that the client connects to; places as with [`Self::Source`].
    Destination,
}

impl Draw {
    /// All of them.
    #[cfg(any(test, feature = "internals"))]
    pub const ALL: [Self; 6] = [
        Self::Random,
        Self::Weighted,
        Self::Turn,
        Self::WeightedTurn,
        Self::Source,
        Self::Destination,
    ];

    /// Whether it matters which place an endpoint has: the list is programmed in its order. Otherwise
    /// endpoints keep the places that they have.
    #[must_use]
    pub const fn is_ordered(self) -> bool {
        matches!(self, Self::WeightedTurn | Self::Source | Self::Destination)
    }

    /// Whether an endpoint may have several places.
    #[must_use]
    pub const fn repeats(self) -> bool {
        !matches!(self, Self::Random | Self::Turn)
    }

    /// How connections are spread, to follow "to one of 3 places".
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Random => "at random",
            Self::Weighted => "at random by weight",
            Self::Turn => "in turn",
            Self::WeightedTurn => "in turn by weight",
            Self::Source => "by the source's address",
            Self::Destination => "by the destination's address",
        }
    }
}
