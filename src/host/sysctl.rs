//! conntrack's limits and timeouts, and routing of 127.0.0.1, set once at the start (docs/semantics.md, H6, H7, O3).
//!
//! Written only where they differ, so that a host which has them already needs no privilege.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

/// A sysctl that cannot be set. Nothing has been programmed yet.
#[derive(Debug, Error)]
#[error("cannot set {path} to {value}: {source}; {}", advice(.path))]
pub struct SysctlError {
    path: PathBuf,
    value: u64,
    source: io::Error,
}

impl SysctlError {
    /// Whether the value could be set by who has the right to.
    #[must_use]
    pub fn is_a_matter_of_rights(&self) -> bool {
        let refused = [
            io::ErrorKind::PermissionDenied,
            io::ErrorKind::ReadOnlyFilesystem,
        ];
        refused.contains(&self.source.kind())
    }
}

/// How many processors the node has, whatever of them this process may use.
#[must_use]
pub fn processors() -> usize {
    let online = nix::unistd::sysconf(nix::unistd::SysconfVar::_NPROCESSORS_ONLN);
    let online = online
        .ok()
        .flatten()
        .and_then(|count| count.try_into().ok());
    online.unwrap_or(1)
}

fn advice(path: &Path) -> &'static str {
    if path.ends_with("nf_conntrack_max") || path.ends_with("hashsize") {
        "give 0 to --conntrack-max-per-core to leave it as it is"
    } else if path.ends_with("route_localnet") {
        "without --iptables-localhost-nodeports=false NodePorts on 127.0.0.1 need it"
    } else {
        "give 0 to its flag to leave it as it is"
    }
}

/// What conntrack should be like; `None` and zero leave the host's value alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conntrack {
    /// Entries per processor.
    pub max_per_core: u32,
    /// Entries at the least, if `max_per_core` is not 0.
    pub min: u32,
    /// How long an idle TCP connection is kept.
    pub tcp_established_timeout: Duration,
    /// How long one in `CLOSE_WAIT` is kept.
    pub tcp_close_wait_timeout: Duration,
    /// Whether packets outside the TCP window are let through.
    pub tcp_be_liberal: bool,
    /// How long a UDP flow that got no answer is kept.
    pub udp_timeout: Duration,
    /// How long one that got an answer is kept.
    pub udp_stream_timeout: Duration,
}

impl Default for Conntrack {
    /// kube-proxy's defaults.
    fn default() -> Self {
        Self {
            max_per_core: 32_768,
            min: 131_072,
            tcp_established_timeout: Duration::from_secs(24 * 3600),
            tcp_close_wait_timeout: Duration::from_secs(3600),
            tcp_be_liberal: false,
            udp_timeout: Duration::ZERO,
            udp_stream_timeout: Duration::ZERO,
        }
    }
}

/// More entries than this are asked for by no number of processors.
const MOST: u64 = 1_048_576;
/// A bucket of the hash table is meant for this many entries.
const ENTRIES_PER_BUCKET: u64 = 4;
const HASH_SIZE: &str = "/sys/module/nf_conntrack/parameters/hashsize";
const ROUTE_LOCALNET: &str = "/proc/sys/net/ipv4/conf/all/route_localnet";
const SYSCTLS: &str = "/proc/sys/net/netfilter";

impl Conntrack {
    /// How many entries the table should take; `None` to leave that alone.
    #[must_use]
    pub fn max(&self, processors: usize) -> Option<u64> {
        if self.max_per_core == 0 {
            return None;
        }
        let scaled = u64::from(self.max_per_core) * processors as u64;
        Some(if scaled > MOST {
            MOST
        } else {
            scaled.max(u64::from(self.min))
        })
    }

    /// Brings the host's values to these. Nothing is written unless all of it can be.
    ///
    /// # Errors
    ///
    /// The first value that cannot be set.
    pub fn apply(&self, processors: usize) -> Result<(), SysctlError> {
        let max = self.max(processors);
        let timeouts = [
            (
                "nf_conntrack_tcp_timeout_established",
                self.tcp_established_timeout,
            ),
            (
                "nf_conntrack_tcp_timeout_close_wait",
                self.tcp_close_wait_timeout,
            ),
            ("nf_conntrack_udp_timeout", self.udp_timeout),
            ("nf_conntrack_udp_timeout_stream", self.udp_stream_timeout),
        ];
        let timeouts = timeouts.into_iter().filter(|(_, time)| !time.is_zero());
        let wanted: Vec<(PathBuf, u64)> = max
            .map(|max| ("nf_conntrack_max", max))
            .into_iter()
            .chain(timeouts.map(|(name, time)| (name, time.as_secs())))
            .chain(
                self.tcp_be_liberal
                    .then_some(("nf_conntrack_tcp_be_liberal", 1)),
            )
            .map(|(name, value)| (Path::new(SYSCTLS).join(name), value))
            .collect();
        for (path, value) in &wanted {
            check(path, *value)?;
        }
        for (path, value) in &wanted {
            set(path, *value)?;
        }
        if let Some(max) = max {
            grow_hash_table(max);
        }
        Ok(())
    }
}

/// Has the kernel route packets of 127.0.0.0/8 (`route_localnet` in the kernel's
/// `Documentation/networking/ip-sysctl.rst`).
///
/// # Errors
///
/// If that cannot be set.
pub fn route_localnet() -> Result<(), SysctlError> {
    set(Path::new(ROUTE_LOCALNET), 1)
}

/// Says that the kernel does that, if it does, now that our rules against neighbours are gone.
pub fn warn_of_localnet() {
    if read(Path::new(ROUTE_LOCALNET)) == Some(1) {
        tracing::warn!(
            "{ROUTE_LOCALNET} is 1, and our rule that keeps neighbours from 127.0.0.0/8 is gone: unless another \
             proxy needs it, sysctl -w net.ipv4.conf.all.route_localnet=0",
        );
    }
}

/// A table that is too small for its entries is slow, not wrong, and `/sys` is read-only in many
/// containers: that is worth a word and no more.
fn grow_hash_table(max: u64) {
    let path = Path::new(HASH_SIZE);
    let wanted = max / ENTRIES_PER_BUCKET;
    if read(path).is_some_and(|size| size >= wanted) {
        return;
    }
    if let Err(error) = set(path, wanted) {
        tracing::warn!(%error, "the conntrack table is small for its entries");
    }
}

fn read(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Whether a value could be set.
fn check(path: &Path, value: u64) -> Result<(), SysctlError> {
    if read(path) == Some(value) {
        return Ok(());
    }
    let opened = fs::OpenOptions::new().write(true).open(path);
    opened.map(|_| ()).map_err(failed(path, value))
}

fn set(path: &Path, value: u64) -> Result<(), SysctlError> {
    if read(path) == Some(value) {
        return Ok(());
    }
    tracing::info!(path = %path.display(), value, "setting a sysctl");
    fs::write(path, value.to_string()).map_err(failed(path, value))
}

fn failed(path: &Path, value: u64) -> impl FnOnce(io::Error) -> SysctlError {
    move |source| SysctlError {
        path: path.to_owned(),
        value,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h7_the_table_grows_with_the_processors_within_bounds() {
        let cases = [
            ("off", 0, 131_072, 8, None),
            ("the minimum", 32_768, 131_072, 2, Some(131_072)),
            ("by processors", 32_768, 131_072, 8, Some(262_144)),
            ("the most", 32_768, 131_072, 64, Some(1_048_576)),
            ("just the most", 32_768, 131_072, 32, Some(1_048_576)),
            ("a large minimum", 32_768, 2_000_000, 2, Some(2_000_000)),
            ("but not then", 32_768, 2_000_000, 64, Some(1_048_576)),
            ("no minimum", 1, 0, 2, Some(2)),
        ];
        for (what, max_per_core, min, processors, expected) in cases {
            let conntrack = Conntrack {
                max_per_core,
                min,
                ..Conntrack::default()
            };
            assert_eq!(conntrack.max(processors), expected, "{what}");
        }
    }
}
