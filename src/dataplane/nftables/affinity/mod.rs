//! Endpoints that clients come back to (`memory`), and for how long (`classes`).

mod classes;
mod memory;

pub(crate) use memory::{Affinity, Found, How, Rounded, Staged};
