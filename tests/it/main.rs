//! Tests that run the program, the kernel and real packets. One binary, a module per subject.

mod cli;
mod golden;
mod harness;
mod kernel;
mod layers;
mod objects;
mod packets;
mod policies;
