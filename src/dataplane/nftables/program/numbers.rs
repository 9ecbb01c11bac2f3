//! The numbers that a packet's priority carries from one rule to the next.
//!
//! A rule cannot hand a value to another one but in the packet. `skb->priority` is 32 bits that
//! nobody else has a use for between a hook and the next; our chains set it back before the packet
//! leaves (see ARCHITECTURE.md). nft prints it as `major:minor`, 16 bits each in hexadecimal:
//!
//! | number | is |
//! | --- | --- |
//! | `8PCC:SSSS` | a shape: policy P, affinity class CC, lot SSSS |
//! | `8f00:00LL` | the length of a source's prefix |
//! | `cNNN:NNNN`, `dNNN:NNNN` | place N of the primary list, of the local list |
//! | `eNNN:NNNN`, `fNNN:NNNN` | the id of an endpoint of the primary list, of the local list: a class (6 bits) and a number (22 bits) |
//!
//! Places are drawn, ids are remembered: an endpoint's place changes when another one leaves, its
//! id does not.

use super::lots::Lot;
use super::sizes::Size;
use crate::core::ir::{List, SourcePolicy};
use std::fmt;

/// The bits of a place and of an id, one of which a packet that has been translated carries. What a
/// socket, a cgroup or `tc` sets has them not, unless somebody numbers traffic classes from `c000:0` on.
pub(crate) const LEFT_BEHIND: u32 = 0xc000_0000;
/// The part of a shape that says which chain it goes to.
pub(crate) const ROUTE_MASK: u32 = 0xff00_0000;
/// The part of a shape that says how one of how many places is drawn.
pub(crate) const LOT_MASK: u32 = 0x0000_ffff;
/// The part of an id that says which list it is of.
pub(crate) const KIND_MASK: u32 = 0xf000_0000;
/// The part of an id that says for how long it is remembered.
pub(crate) const CLASS_MASK: u32 = 0x0fc0_0000;
/// An id without its class: what stays when the timeout changes.
pub(crate) const BARE_MASK: u32 = !CLASS_MASK;
/// What makes a place of the primary list one of the local list.
pub(crate) const LOCAL_BIT: u32 = 0x1000_0000;

/// What hashes of addresses begin with: one number on all nodes, so that they agree.
pub(crate) const ADDRESS_SEED: u32 = 0x706f_696e;

const SHAPE: u32 = 0x8000_0000;
const LENGTH: u32 = 0x8f00_0000;
const PLACE: u32 = 0xc000_0000;
const ID: u32 = 0xe000_0000;
const NUMBER_MASK: u32 = 0x003f_ffff;
const INDEX_MASK: u32 = 0x0fff_ffff;

/// How long a class of clients is remembered is written in one rule; this is its number, 1 to 63.
pub(crate) type Class = u8;

/// How many classes there are, without 0, which remembers nobody.
pub(crate) const CLASSES: Class = 63;

/// The number of a length of prefix. No shape begins like it.
pub(crate) const fn prefix_length(length: u8) -> u32 {
    LENGTH | length as u32
}

/// The length of prefix with a number; `None` if it is none.
pub(crate) fn length_of(number: u32) -> Option<u8> {
    u8::try_from(number ^ LENGTH).ok()
}

/// The list bit of a place or an id.
const fn list_bit(list: List) -> u32 {
    match list {
        List::Primary => 0,
        List::External => LOCAL_BIT,
    }
}

/// The number of a place.
pub(crate) const fn place(list: List, index: u32) -> u32 {
    PLACE | list_bit(list) | (index & INDEX_MASK)
}

/// The list and index of a place; `None` if it is another number.
pub(crate) const fn place_of(number: u32) -> Option<(List, u32)> {
    let list = match number & KIND_MASK {
        PLACE => List::Primary,
        0xd000_0000 => List::External,
        _ => return None,
    };
    Some((list, number & INDEX_MASK))
}

/// What all ids of a list begin with.
pub(crate) const fn id_kind(list: List) -> u32 {
    ID | list_bit(list)
}

/// How many ids a list has.
pub(crate) const IDS: u32 = NUMBER_MASK + 1;

/// The id, without a class, with a number below [`IDS`].
pub(crate) const fn bare_id(list: List, number: u32) -> u32 {
    id_kind(list) | (number & NUMBER_MASK)
}

/// The number of an id.
pub(crate) const fn id_number(id: u32) -> u32 {
    id & NUMBER_MASK
}

/// The part of an id that says for how long it is remembered.
pub(crate) const fn class_bits(class: Class) -> u32 {
    ((class as u32) << 22) & CLASS_MASK
}

/// The id with a class.
pub(crate) const fn full_id(bare: u32, class: Class) -> u32 {
    (bare & BARE_MASK) | class_bits(class)
}

/// The list of an id; `None` if the number is none.
pub(crate) const fn id_list(number: u32) -> Option<List> {
    match number & KIND_MASK {
        ID => Some(List::Primary),
        0xf000_0000 => Some(List::External),
        _ => None,
    }
}

const fn policy_code(policy: SourcePolicy) -> u8 {
    match policy {
        SourcePolicy::ClusterIp => 0,
        SourcePolicy::External => 1,
        SourcePolicy::ExternalLocal => 2,
    }
}

/// What a destination does, in one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Shape {
    /// Connections are dropped.
    Drop,
    /// Connections go to an endpoint.
    Balance {
        /// For `NodePort`s, whose endpoints have a map of their own.
        node_port: bool,
        /// How sources are told apart.
        policy: SourcePolicy,
        /// For how long clients are remembered; 0 for not at all.
        class: Class,
        /// How one of the list's places is drawn.
        lot: Lot,
    },
}

/// Policies take three bits of the shape's second digit; the fourth says whether clients are
/// remembered.
const DROP: u32 = 0x0600_0000;
const NODE_PORT: u32 = 0x0800_0000;
const REMEMBERED: u32 = 0x0100_0000;

impl Shape {
    /// Its number.
    pub(crate) const fn number(self) -> u32 {
        match self {
            Self::Drop => SHAPE | DROP,
            Self::Balance {
                node_port,
                policy,
                class,
                lot,
            } => {
                let node_port = if node_port { NODE_PORT } else { 0 };
                let remembered = if class == 0 { 0 } else { REMEMBERED };
                let policy = (policy_code(policy) as u32) << 25;
                SHAPE | node_port | policy | remembered | ((class as u32) << 16) | lot.code() as u32
            }
        }
    }

    /// The shape with a number; `None` if it is not one that we write.
    pub(crate) fn from_number(number: u32) -> Option<Self> {
        if number == Self::Drop.number() {
            return Some(Self::Drop);
        }
        let policy = [
            SourcePolicy::ClusterIp,
            SourcePolicy::External,
            SourcePolicy::ExternalLocal,
        ]
        .into_iter()
        .find(|policy| u32::from(policy_code(*policy)) == number >> 25 & 3)?;
        let [_, class, high, low] = number.to_be_bytes();
        let shape = Self::Balance {
            node_port: number & NODE_PORT != 0,
            policy,
            class,
            lot: Lot::from_code(u16::from_be_bytes([high, low]))?,
        };
        // One number for each shape.
        (shape.number() == number && class <= CLASSES).then_some(shape)
    }

    /// What its chain is found under: all but class and lot.
    pub(crate) const fn route(self) -> u32 {
        self.number() & ROUTE_MASK
    }

    /// How one of its list's places is drawn, if it has a list.
    pub(crate) const fn lot(self) -> Option<Lot> {
        match self {
            Self::Drop => None,
            Self::Balance { lot, .. } => Some(lot),
        }
    }

    /// How many places its list has, if it has one.
    pub(crate) fn size(self) -> Option<Size> {
        self.lot().map(Lot::size)
    }
}

/// A number as nft prints a packet's priority.
pub(crate) struct Printed(pub(crate) u32);

impl fmt::Display for Printed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}:{:x}", self.0 >> 16, self.0 & 0xffff)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ir::Draw;

    #[test]
    fn a_shape_is_its_number_and_no_other_number_is_one() {
        let mut numbers = std::collections::BTreeSet::from([Shape::Drop.number()]);
        for node_port in [false, true] {
            for policy in [
                SourcePolicy::ClusterIp,
                SourcePolicy::External,
                SourcePolicy::ExternalLocal,
            ] {
                for class in [0, 1, CLASSES] {
                    let sizes = [0, 1, 10, 256, 257, 100_000].map(Size::of).into_iter();
                    let lots = sizes.flat_map(|size| Draw::ALL.map(|draw| Lot::new(draw, size, 3)));
                    for lot in lots {
                        let shape = Shape::Balance {
                            node_port,
                            policy,
                            class,
                            lot,
                        };
                        assert_eq!(Shape::from_number(shape.number()), Some(shape));
                        assert_eq!(shape.number() & KIND_MASK & !NODE_PORT, SHAPE);
                        assert!(numbers.insert(shape.number()));
                    }
                }
            }
        }
        for number in [0, 5, 0x8000_0101, 0x8040_0001, 0x8100_0001, 0xc000_0000] {
            assert_eq!(Shape::from_number(number), None, "{number:x}");
        }
    }

    #[test]
    fn places_and_ids_of_the_two_lists_never_meet() {
        for list in List::BOTH {
            assert_eq!(place_of(place(list, 7)), Some((list, 7)));
            assert_eq!(id_list(place(list, 7)), None);
            let bare = bare_id(list, IDS - 1);
            assert_eq!(bare & BARE_MASK, bare);
            let full = full_id(bare, CLASSES);
            assert_eq!((id_list(full), place_of(full)), (Some(list), None));
            assert_eq!(full & BARE_MASK, bare);
            assert_eq!(full & CLASS_MASK, class_bits(CLASSES));
            assert_eq!(id_number(full), IDS - 1);
        }
    }
}
