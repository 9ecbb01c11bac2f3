//! What this machine is, and what it lets us do.

pub mod file_watch;
pub mod interfaces;
pub mod netlink;
pub mod oom;
pub mod sysctl;

use crate::core::model::Family;

/// The families that this kernel speaks.
#[must_use]
pub fn families() -> Vec<Family> {
    let off = "/proc/sys/net/ipv6/conf/all/disable_ipv6";
    let disabled = std::fs::read_to_string(off).is_ok_and(|value| value.trim() == "1");
    if std::path::Path::new("/proc/net/if_inet6").exists() && !disabled {
        Family::BOTH.to_vec()
    } else {
        vec![Family::V4]
    }
}
