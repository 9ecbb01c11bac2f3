//! The intermediate representation: what a node's packets must experience, independent of the
//! backend that makes it so.
//!
//! A [`Forwarding`] says everything about one [`Destination`]. It flattens into [`Entry`]s, the
//! unit in which a backend is changed: each is one fact with one key, and two facts never share
//! a key. Nothing here knows nftables, and nothing here decides what a Service means.

mod assembly;
mod delta;
mod destination;
mod draws;
mod entry;
mod forwarding;

pub use assembly::Assembly;
pub use delta::{Delta, DestinationChange, Operation};
pub use destination::{Destination, Host, LABEL_MAX, Label};
pub use draws::Draw;
pub use entry::{Entry, List, REMEMBERED_WEIGHT, Route, Shared, SourcePolicy};
pub use forwarding::{Action, Forwarding, Sources};
