//! What makes the intermediate representation real on a node.
//!
//! A backend holds entries, takes deltas, and can say what it holds. It decides nothing about
//! Services: everything that it is told to do is in the delta.

pub mod nftables;
