//! Counting connections by Service, and by endpoint: for who wants to know, in a table of its own.
//!
//! It serves both modes. Nobody's connection depends on it.

use super::wire::batch::Batch;
pub(super) use super::wire::counts_table::COUNTS as TABLE;

pub use super::wire::counters::Refusal;
use super::wire::counters::refusals;
pub use super::wire::counts_table::Counted;
use super::wire::counts_table::{
    CONNECTIONS, COUNTS, ENDPOINT_CONNECTIONS, read, removal, sets, table,
};
use super::wire::{presence, tables};
use crate::core::model::Family;
use crate::dataplane::CountingLevel;
use crate::host::netlink::socket::{Socket, SocketError};

/// How many elements a message takes away.
const AT_ONCE: usize = 500;

const fn sets_of(level: CountingLevel) -> &'static [&'static str] {
    match level {
        CountingLevel::Nothing => &[],
        CountingLevel::Services => &[CONNECTIONS],
        CountingLevel::Endpoints => &[CONNECTIONS, ENDPOINT_CONNECTIONS],
    }
}

/// Counts as wanted from now on. What is counted already goes on.
///
/// # Errors
///
/// If the kernel cannot be asked or refuses; it counts as before then.
pub fn set_level(level: CountingLevel) -> Result<(), SocketError> {
    let mut socket = Socket::open()?;
    let mut batch = Batch::new(false);
    for family in Family::BOTH {
        let exists = presence::named_table_exists(&mut socket, family, COUNTS)?;
        let mut there = if exists {
            sets(&mut socket, family)?
        } else {
            Vec::new()
        };
        there.sort_unstable();
        if there == sets_of(level) && (exists || level == CountingLevel::Nothing) {
            continue;
        }
        if exists {
            tables::put_delete_named_table(&mut batch, family, COUNTS);
        }
        if level > CountingLevel::Nothing {
            for (mut message, what) in table(family, level == CountingLevel::Endpoints) {
                number(&mut message, batch.next_sequence());
                batch.put_program(family, &message, what.to_owned());
            }
        }
    }
    send(&mut socket, batch)
}

/// What has been counted.
///
/// # Errors
///
/// If the kernel cannot be asked.
pub fn counted(level: CountingLevel) -> Result<Vec<Counted>, SocketError> {
    let mut socket = Socket::open()?;
    let mut all = Vec::new();
    for family in Family::BOTH {
        for set in sets_of(level) {
            match read(&mut socket, family, set) {
                Ok(counted) => all.extend(counted),
                // Somebody has flushed everything; who is asked next makes it anew.
                Err(SocketError::Dump(nix::errno::Errno::ENOENT)) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(all)
}

/// How many connections have been refused since our tables were made, by family and reason. In nftables mode.
///
/// # Errors
///
/// If the kernel cannot be asked.
pub fn refused() -> Result<Vec<(Family, Refusal, u64)>, SocketError> {
    let mut socket = Socket::open()?;
    let mut all = Vec::new();
    for family in Family::BOTH {
        let counts = refusals(&mut socket, family)?;
        all.extend(
            Refusal::ALL
                .into_iter()
                .zip(counts)
                .map(|(refusal, count)| (family, refusal, count)),
        );
    }
    Ok(all)
}

/// Forgets what has been counted of what is gone.
///
/// # Errors
///
/// If the kernel cannot be asked or refuses; it is all there still then.
pub fn forget(gone: &[Counted]) -> Result<(), SocketError> {
    let mut socket = Socket::open()?;
    let mut batch = Batch::new(false);
    for family in Family::BOTH {
        for set in [CONNECTIONS, ENDPOINT_CONNECTIONS] {
            let is_of_set = |counted: &&Counted| {
                counted.destination.family() == family
                    && counted.endpoint.is_some() == (set == ENDPOINT_CONNECTIONS)
            };
            let gone: Vec<Counted> = gone.iter().filter(is_of_set).copied().collect();
            for some in gone.chunks(AT_ONCE) {
                let mut message = removal(family, set, some);
                number(&mut message, batch.next_sequence());
                batch.put_program(family, &message, "counts of what is gone".to_owned());
            }
        }
    }
    send(&mut socket, batch)
}

fn send(socket: &mut Socket, batch: Batch) -> Result<(), SocketError> {
    if batch.is_empty() {
        return Ok(());
    }
    let batch = batch.finish();
    let refusals = socket.transact(batch.bytes(), batch.last())?;
    match refusals.into_iter().next() {
        None => Ok(()),
        Some(refusal) => Err(SocketError::Dump(refusal.errno)),
    }
}

/// Gives a message its number (`nlmsg_seq`).
fn number(message: &mut [u8], sequence: u32) {
    if let Some(field) = message.get_mut(8..12) {
        field.copy_from_slice(&sequence.to_ne_bytes());
    }
}
