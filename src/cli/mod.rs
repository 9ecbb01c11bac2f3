//! The command line and kube-proxy's configuration file: flags as typed (`args`), the file
//! (`file`, `component_config`), flags as the same object (`flags`), what it may say
//! (`validate`), and what it means (`config`).

mod args;
mod component_config;
mod config;
mod durations;
mod file;
mod flags;
mod validate;

pub use args::Args;
pub use component_config::KubeProxyConfiguration;
pub use config::{
    Action, Config, ConfigError, ConfigFile, LogFormat, NoPodCidrs, Origin, Output, UsageError,
};
pub use file::{FileError, write};
