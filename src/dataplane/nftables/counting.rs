//! Counting connections by Service, and by endpoint: for who wants to know, in a table of its own.
//!
//! It serves both modes. Nobody's connection depends on it.

use super::wire::batch::Batch;
pub(super) use super::wire::counts_table::COUNTS as TABLE;

pub use super::wire::counters::Refusal;
use super::wire::counters::refusals;
pub use super::wire::counts_table::Counted;
use super::wire::counts_table::{
    CONNECTIONS, COUNTS, ENDPOINT_CONNECTIONS, chains, counting_in, read, removal, rule_count,
    rules, sets, table, without,
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

/// Counts as wanted from now on. What is counted already goes on; a table that somebody has taken apart is made anew.
///
/// # Errors
///
/// If the kernel cannot be asked or refuses; it counts as before then.
pub fn set_level(level: CountingLevel) -> Result<(), SocketError> {
    let mut socket = Socket::open()?;
    let mut batch = Batch::new(false);
    for family in Family::BOTH {
        let there = whole_sets(&mut socket, family)?;
        let wanted = sets_of(level);
        if there.as_deref() == Some(wanted) || (there.is_none() && wanted.is_empty()) {
            continue;
        }
        match there {
            Some(there) if !wanted.is_empty() => {
                // What both count goes on.
                if there.len() > wanted.len() {
                    for chain in chains() {
                        tables::put_flush_chain(&mut batch, family, COUNTS, chain);
                    }
                    wanted
                        .iter()
                        .flat_map(|set| rules(family, set))
                        .for_each(|message| put(&mut batch, family, message));
                    let gone = there.iter().filter(|set| !wanted.contains(set));
                    gone.map(|set| without(family, set))
                        .for_each(|message| put(&mut batch, family, message));
                } else {
                    let new = wanted.iter().filter(|set| !there.contains(set));
                    new.flat_map(|set| counting_in(family, set))
                        .for_each(|message| put(&mut batch, family, message));
                }
            }
            there => {
                if there.is_some() || presence::named_table_exists(&mut socket, family, COUNTS)? {
                    tables::put_delete_named_table(&mut batch, family, COUNTS);
                }
                if wanted.is_empty() {
                    continue;
                }
                table(family)
                    .into_iter()
                    .for_each(|message| put(&mut batch, family, message));
                wanted
                    .iter()
                    .flat_map(|set| counting_in(family, set))
                    .for_each(|message| put(&mut batch, family, message));
            }
        }
    }
    send(&mut socket, batch)
}

fn put(batch: &mut Batch, family: Family, mut message: Vec<u8>) {
    number(&mut message, batch.next_sequence());
    batch.put_program(family, &message, "counting".to_owned());
}

/// The sets of a table that counts as it should; `None` if there is none, or it does not.
fn whole_sets(
    socket: &mut Socket,
    family: Family,
) -> Result<Option<Vec<&'static str>>, SocketError> {
    if !presence::named_table_exists(socket, family, COUNTS)? {
        return Ok(None);
    }
    let there = sets(socket, family)?;
    let known: Vec<&'static str> = sets_of(CountingLevel::Endpoints)
        .iter()
        .copied()
        .filter(|set| there.iter().any(|name| name == set))
        .collect();
    let rules = rule_count(socket, family)?;
    let is_whole =
        known.len() == there.len() && !known.is_empty() && rules == known.len() * chains().len();
    Ok(is_whole.then_some(known))
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
                // Somebody has flushed everything; the next question has it made anew.
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
                put(&mut batch, family, removal(family, set, some));
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
