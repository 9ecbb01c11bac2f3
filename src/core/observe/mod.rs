//! What this node sees of a Service's connections, and what it makes of it: which endpoints have too many
//! (`levels`), and which do not answer
//! (`ejection`, by `probes` of them).
//!
//! Pure: what is seen and what time it is are told, and what comes of it is a value.

pub mod ejection;
pub mod levels;
mod probes;
mod watched;

pub use watched::{Watched, watched};
