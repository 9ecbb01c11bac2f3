//! What a configuration file that has changed would make of this process.

use super::{Config, ConfigError};

impl Config {
    /// Whether the file says something else now: what has another order or another comment has not changed.
    ///
    /// # Errors
    ///
    /// If a process that starts now would end with an error.
    pub fn has_changed(&self) -> Result<bool, ConfigError> {
        let (args, hostname) = &*self.given;
        let now = Self::from_args(args, hostname)?;
        // What the text says besides, and what follows from the rest and from the node, is no change.
        let as_before = Self {
            file: self.file.clone(),
            given: self.given.clone(),
            warnings: self.warnings.clone(),
            mode: self.mode,
            algorithm: self.algorithm,
            ..now
        };
        Ok(as_before != *self)
    }
}
