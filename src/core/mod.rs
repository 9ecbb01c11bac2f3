//! What Services mean and what differs from what is applied: pure, and cannot fail.
//!
//! Nothing in here does I/O, reads a clock, starts anything or returns a `Result`.

pub mod compile;
pub mod diff;
pub mod explain;
pub mod incremental;
pub mod ir;
pub mod model;
pub mod networks;
pub mod observe;
pub mod select;
