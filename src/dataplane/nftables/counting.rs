//! Counting connections by Service, and by endpoint: for who wants to know, in a table of its own.
//!
//! It serves both modes. Nobody's connection depends on it.

use std::sync::{Mutex, PoisonError};

use super::wire::batch::Batch;
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
    // Of two who look and change at once, one would make what the other has made.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    each_family(|socket, family| {
        let mut batch = Batch::new(false);
        put_level(socket, &mut batch, family, level)?;
        send(socket, batch)
    })
}

/// Does something for both families; an error is one only if it is both families'.
fn each_family(
    mut act: impl FnMut(&mut Socket, Family) -> Result<(), SocketError>,
) -> Result<(), SocketError> {
    let mut socket = Socket::open()?;
    let [v4, v6] = Family::BOTH.map(|family| act(&mut socket, family));
    v4.or(v6)
}

fn put_level(
    socket: &mut Socket,
    batch: &mut Batch,
    family: Family,
    level: CountingLevel,
) -> Result<(), SocketError> {
    let exists = presence::named_table_exists(socket, family, COUNTS)?;
    let there = if exists {
        whole_sets(socket, family)?
    } else {
        None
    };
    let wanted = sets_of(level);
    match there {
        Some(there) if there == wanted => {}
        // What both count goes on.
        Some(there) if !wanted.is_empty() && there.len() > wanted.len() => {
            for chain in chains() {
                tables::put_flush_chain(batch, family, COUNTS, chain);
            }
            let kept = wanted.iter().flat_map(|set| rules(family, set));
            let gone = there.iter().filter(|set| !wanted.contains(set));
            let gone = gone.map(|set| without(family, set));
            kept.chain(gone)
                .for_each(|message| put(batch, family, message));
        }
        Some(there) if !wanted.is_empty() => {
            let new = wanted.iter().filter(|set| !there.contains(set));
            new.flat_map(|set| counting_in(family, set))
                .for_each(|message| put(batch, family, message));
        }
        // There is none, or it is not to be there, or somebody has taken it apart.
        _ => {
            if exists {
                tables::put_delete_named_table(batch, family, COUNTS);
            }
            if !wanted.is_empty() {
                let sets = wanted.iter().flat_map(|set| counting_in(family, set));
                let all = table(family).into_iter().chain(sets);
                all.for_each(|message| put(batch, family, message));
            }
        }
    }
    Ok(())
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
    let mut all = Vec::new();
    each_family(|socket, family| {
        for set in sets_of(level) {
            match read(socket, family, set) {
                Ok(counted) => all.extend(counted),
                // Somebody has flushed everything; the next question has it made anew.
                Err(SocketError::Dump(nix::errno::Errno::ENOENT)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    })?;
    Ok(all)
}

/// How many connections have been refused since our tables were made, by family and reason. In nftables mode.
///
/// # Errors
///
/// If the kernel cannot be asked.
pub fn refused() -> Result<Vec<(Family, Refusal, u64)>, SocketError> {
    let mut all = Vec::new();
    each_family(|socket, family| {
        let counts = refusals(socket, family)?;
        let counts = Refusal::ALL.into_iter().zip(counts);
        all.extend(counts.map(|(refusal, count)| (family, refusal, count)));
        Ok(())
    })?;
    Ok(all)
}

/// Forgets what has been counted of what is gone.
///
/// # Errors
///
/// If the kernel cannot be asked or refuses; it is all there still then.
pub fn forget(gone: &[Counted]) -> Result<(), SocketError> {
    each_family(|socket, family| {
        let mut batch = Batch::new(false);
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
        send(socket, batch)
    })
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
