//! Tests that run the program, the kernel and real packets. One binary, a module per subject.

mod harness;
mod objects;
mod packets;
mod policies;
