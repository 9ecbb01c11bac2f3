//! The command line and kube-proxy's configuration file: flags as typed (`args`), kube-proxy's in one
//! table (`table`), the file (`file`, `component_config`), flags as the same object (`flags`), what it
//! may say (`validate`), what it means (`settings`, `addresses`), and whether that has changed (`rereading`).

mod addresses;
mod args;
mod component_config;
mod durations;
mod errors;
mod file;
mod flags;
mod rereading;
mod settings;
mod table;
mod validate;

pub use args::{Args, DEFAULT_SOCKET, Output};
#[cfg(feature = "internals")]
pub use component_config::KubeProxyConfiguration;
pub use errors::{ConfigError, NoPodCidrs};
pub use file::write;
pub use settings::{Action, Config, ConfigFile, LogFormat, Origin};
