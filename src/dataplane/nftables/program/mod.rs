//! The program: chains, sets and elements as values, before anybody has written them as text or bytes.
//!
//! `chains` has the fixed ones around the choice of an endpoint, `choice` the choice itself, `sources` who
//! may connect; all are made of `statement`s. `sets` and `element` are the data, `numbers` what a packet's
//! priority carries, `parts` what comes and goes.

pub(crate) mod base;
pub(crate) mod chains;
pub(crate) mod choice;
pub(crate) mod element;
pub(crate) mod lots;
pub(crate) mod numbers;
pub(crate) mod parts;
pub(crate) mod sets;
pub(crate) mod sizes;
pub(crate) mod sources;
pub(crate) mod statement;

pub(crate) use base::{KUBE_PROXY_TABLE, Program, TABLE};
