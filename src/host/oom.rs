//! How readily the kernel ends this process when memory runs out.

/// Only a wish: a container may lack the capability.
pub fn adjust(adjustment: i16) {
    let path = "/proc/self/oom_score_adj";
    let wanted = adjustment.to_string();
    let current = std::fs::read_to_string(path).unwrap_or_default();
    if current.trim() != wanted
        && let Err(error) = std::fs::write(path, &wanted)
    {
        tracing::info!(%error, adjustment, "oom_score_adj stays as it is");
    }
}
