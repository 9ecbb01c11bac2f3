//! What rules are made of: statements, written once; `text` prints them and `netlink` encodes
//! them, and a test compares what the kernel makes of both.

use crate::core::model::Protocol;
use ipnetwork::IpNetwork;

use super::sets::SetId;

/// A value that a rule loads from the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Load {
    /// Its source address.
    SourceAddress,
    /// The first bits of its source address, and zeros.
    SourceNetwork {
        /// How many bits.
        length: u8,
    },
    /// Its destination address.
    DestinationAddress,
    /// The transport protocol.
    Protocol,
    /// Its destination port.
    DestinationPort,
    /// Its priority: a number of ours (see `numbers`).
    Priority,
    /// A hash of source address, destination address, protocol and port.
    ClientHash {
        /// Another one gives another hash.
        seed: u32,
    },
}

/// What a packet's priority is set to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Priority {
    /// What a map holds under a key. Without an element the rule ends, and nothing is set.
    Map {
        /// The key.
        key: Vec<Load>,
        /// The map.
        map: SetId,
    },
    /// A random number in `offset..offset + modulus`.
    Random {
        /// How many there are.
        modulus: u32,
        /// The smallest.
        offset: u32,
    },
    /// The number after the last one that this rule gave, in `offset..offset + modulus`.
    Turn {
        /// How many there are.
        modulus: u32,
        /// The smallest.
        offset: u32,
    },
    /// A hash of an address, in `offset..offset + modulus`: the same on every node.
    Hash {
        /// What is hashed.
        load: Load,
        /// How many there are.
        modulus: u32,
        /// The smallest.
        offset: u32,
    },
    /// What it is, without some bits.
    And(u32),
    /// What it is, with some bits more.
    Or(u32),
    /// A number.
    Number(u32),
}

/// A step of a rule. A match that fails ends the rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Statement {
    /// The connection's destination has been translated.
    DestinationTranslated,
    /// An address of the packet is inside a network, or is not.
    AddressIn {
        /// Source or destination.
        load: Load,
        /// The network.
        network: IpNetwork,
        /// Whether it must be outside.
        negate: bool,
    },
    /// An address of the packet is this node's, or is not.
    AddressIsLocal {
        /// Source or destination.
        load: Load,
        /// Whether it must be another's.
        negate: bool,
    },
    /// The packet came in by an interface, or did not.
    Interface {
        /// The name, or its first characters.
        name: String,
        /// Whether only the first characters count.
        prefix: bool,
        /// Whether it must be another one.
        negate: bool,
    },
    /// A set holds the key, or does not.
    InSet {
        /// The key.
        key: Vec<Load>,
        /// The set.
        set: SetId,
        /// Whether it must not.
        negate: bool,
    },
    /// The packet's mark has this bit.
    Marked(u32),
    /// Sets a bit of the packet's mark.
    Mark(u32),
    /// Flips a bit of the packet's mark.
    Unmark(u32),
    /// Sets the packet's priority.
    SetPriority(Priority),
    /// Some bits of the packet's priority have this value.
    PriorityIs {
        /// Which bits.
        mask: u32,
        /// Their value.
        value: u32,
    },
    /// Does what a verdict map holds under some bits of the packet's priority.
    PriorityVerdict {
        /// Which bits.
        mask: u32,
        /// The map.
        map: SetId,
    },
    /// Translates the destination to what a map holds under the key.
    TranslateTo {
        /// The key.
        key: Vec<Load>,
        /// The map.
        map: SetId,
    },
    /// Writes the packet's priority under the client's key into the map of clients, unless there
    /// is one, which is remembered for longer then.
    Remember {
        /// The client's key.
        key: Vec<Load>,
        /// For how long.
        timeout_seconds: u32,
    },
    /// Takes the client's key out of the map of clients.
    Forget {
        /// The client's key.
        key: Vec<Load>,
    },
    /// Translates the source to the outgoing interface's address, with a random port.
    Masquerade,
    /// The packet is of this protocol.
    ProtocolIs(Protocol),
    /// Counts the packet.
    Counter,
    /// Refuses with an ICMP port unreachable.
    Reject,
    /// Drops.
    Drop,
    /// Goes back to where the chain was jumped to from.
    Return,
    /// Goes on in another chain and comes back.
    Jump(String),
    /// Goes on in another chain for good.
    Goto(String),
}

/// A rule: statements from left to right.
pub(crate) type Rule = Vec<Statement>;

/// Where in the stack a base chain sits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    /// Packets from outside, before routing.
    Prerouting,
    /// Packets from this node.
    Output,
    /// Packets that leave, after routing.
    Postrouting,
}

impl Hook {
    /// Its name in nft.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
        }
    }
}

/// A chain that the kernel calls, of `type nat`: for the first packet of each connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Base {
    /// Where it is called.
    pub(crate) hook: Hook,
    /// In which order among others (`linux/netfilter_ipv4.h`, `enum nf_ip_hook_priorities`).
    pub(crate) priority: i32,
}

/// A chain and its rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chain {
    /// Its name.
    pub(crate) name: String,
    /// Where the kernel calls it, if it does.
    pub(crate) base: Option<Base>,
    /// Its rules.
    pub(crate) rules: Vec<Rule>,
}

impl Chain {
    /// A chain that others lead to.
    pub(crate) fn regular(name: impl Into<String>, rules: Vec<Rule>) -> Self {
        Self {
            name: name.into(),
            base: None,
            rules,
        }
    }
}
