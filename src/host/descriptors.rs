//! How many files and sockets this process may have open.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// More than the servers of a node with thousands of health checks take.
const ENOUGH: u64 = 65_536;
/// With fewer a thousand health checks, or their clients, do not find room.
const FEW: u64 = 4096;

/// Raises the soft limit towards the hard one, as far as that is of use. Returns what it is.
#[must_use]
pub fn raise_limit() -> usize {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return usize::MAX;
    };
    let wanted = hard.min(ENOUGH).max(soft);
    let limit = if wanted > soft && setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).is_ok() {
        wanted
    } else {
        soft
    };
    if limit < FEW {
        tracing::info!(
            limit,
            "few open files are allowed (RLIMIT_NOFILE): health checks of Services share what there is",
        );
    }
    usize::try_from(limit).unwrap_or(usize::MAX)
}
