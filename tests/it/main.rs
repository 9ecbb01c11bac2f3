//! Tests that run the program, the kernel and real packets. One binary, a module per subject.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that panics is a test that fails"
)]

mod api;
mod api_server;
mod attacks;
mod chart;
mod cli;
mod daemonset;
mod differential;
mod flows;
mod golden;
mod harness;
mod health_checks;
mod hostile;
mod image;
mod incidents;
mod iptables;
mod kernel;
mod layers;
mod monitoring;
mod objects;
mod observed;
mod packets;
mod policies;
mod programmed;
mod restless;
mod services;
