//! What will happen to a connection, and why: what a person asks a node.
//!
//! The same state and the same decisions as everything that is programmed, told for one source and one
//! destination. `asked` has what can be asked and what is answered, `surroundings` what that is taken from,
//! `answering` which destinations it is about, `route` one that somebody has and `case` what
//! becomes of a connection to it, `nobody` what becomes of one that nobody has, `words` how it is said.

mod answering;
mod asked;
mod case;
mod nobody;
mod route;
mod surroundings;
mod words;

pub use asked::{Explanation, From, Programmed, Question, Remembered, Route, To};
pub use surroundings::Surroundings;

#[cfg(test)]
mod tests;
