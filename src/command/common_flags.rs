//! Flags that commands have in common, and how they end.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;

use super::output::Format;
use crate::config::{Args, Config, DEFAULT_SOCKET};

/// All is as it should be.
pub(super) const GOOD: u8 = 0;
/// What was asked about is not as it should be.
pub(super) const BAD: u8 = 1;
/// There is no answer.
pub(super) const TROUBLE: u8 = 2;

/// Where the agent is, and how its answer is printed.
#[derive(Debug, clap::Args)]
pub(super) struct Agent {
    /// How to print the answer
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "text")]
    pub(super) output: Format,
    /// Where the agent answers
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub(super) socket: PathBuf,
}

/// The same, or how to do without an agent.
#[derive(Debug, clap::Args)]
pub(super) struct Common {
    #[command(flatten)]
    pub(super) agent: Agent,
    /// Ask no agent: take the objects from files
    #[arg(long, value_name = "PATH", help_heading = "Without an agent")]
    manifests: Option<PathBuf>,
    /// Ask no agent: take the objects from the API server
    #[arg(long, value_name = "PATH", help_heading = "Without an agent")]
    kubeconfig: Option<PathBuf>,
    /// Ask no agent: as the agent with this configuration
    #[arg(long, value_name = "PATH", help_heading = "Without an agent")]
    config: Option<PathBuf>,
    /// For the node of this name
    #[arg(long, value_name = "NAME", help_heading = "Without an agent")]
    hostname_override: Option<String>,
    /// More flags of the agent's, after --
    #[arg(last = true, value_name = "FLAGS", help_heading = "Without an agent")]
    flags: Vec<OsString>,
}

impl Common {
    /// The configuration of an agent that there is not, if none is to be asked.
    pub(super) fn without_agent(&self) -> Result<Option<Config>> {
        let Self {
            manifests,
            kubeconfig,
            config,
            hostname_override,
            flags,
            ..
        } = self;
        if manifests.is_none() && kubeconfig.is_none() && config.is_none() {
            anyhow::ensure!(
                hostname_override.is_none() && flags.is_empty(),
                "the agent is asked, which knows its node and its flags: --hostname-override and what stands after -- go \
                 with --manifests, --kubeconfig or --config"
            );
            return Ok(None);
        }
        let mut arguments = vec![OsString::from("pointsman")];
        let mut put = |flag: &str, value: Option<OsString>| {
            if let Some(value) = value {
                let mut argument = OsString::from(flag);
                argument.push(value);
                arguments.push(argument);
            }
        };
        put(
            "--manifests=",
            manifests.clone().map(PathBuf::into_os_string),
        );
        put(
            "--kubeconfig=",
            kubeconfig.clone().map(PathBuf::into_os_string),
        );
        put("--config=", config.clone().map(PathBuf::into_os_string));
        put(
            "--hostname-override=",
            hostname_override.clone().map(OsString::from),
        );
        arguments.extend(flags.iter().cloned());
        let args = Args::try_parse_from(arguments)?;
        let hostname = nix::unistd::gethostname()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        Ok(Some(Config::from_args(&args, &hostname)?))
    }
}
