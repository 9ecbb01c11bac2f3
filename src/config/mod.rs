//! The command line and kube-proxy's configuration file: flags as typed (`args`), the file
//! (`file`, `component_config`), flags as the same object (`flags`), what it may say
//! (`validate`), and what it means (`settings`).

mod args;
mod component_config;
mod durations;
mod file;
mod flags;
mod settings;
mod validate;

pub use args::Args;
pub use component_config::KubeProxyConfiguration;
pub use file::{FileError, write};
pub use settings::{
    Action, Config, ConfigError, ConfigFile, LogFormat, NoPodCidrs, Origin, Output, UsageError,
};
