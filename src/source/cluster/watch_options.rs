//! How the cluster is watched.

use std::time::Duration;

use super::formats::Format;

/// What to watch, and how.
#[derive(Debug, Clone)]
pub struct WatchOptions {
    /// This node's name.
    pub node_name: String,
    /// The formats that answers may have, the preferred one first.
    pub formats: Vec<Format>,
    /// After how long the server is asked to end a watch, which then goes on in a new one: up to twice as long, so
    /// that nodes do not come together. Five seconds later a connection without a word is given up.
    pub watch_timeout: Duration,
    /// For so long a list may go no further.
    pub list_patience: Duration,
}

impl WatchOptions {
    /// The usual ones.
    #[must_use]
    pub fn new(node_name: &str) -> Self {
        Self {
            node_name: node_name.to_owned(),
            formats: Format::ALL.to_vec(),
            watch_timeout: Duration::from_secs(300),
            list_patience: Duration::from_secs(20),
        }
    }
}
