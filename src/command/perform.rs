//! Does what was asked.

use anyhow::{Context, Result};
use backon::{BlockingRetryable, ExponentialBuilder};

use super::dry_run;
use super::output::print_whole;
use crate::agent::reconciler::{Desired, Proxy};
use crate::agent::{self, TakenOver, cluster, files};
use crate::config::{self, Action, Config, Origin, Output};
use crate::core::model::{Algorithm, PerFamily};
use crate::dataplane::conntrack;
use crate::dataplane::iptables::Iptables;
use crate::dataplane::nftables::{Nftables, counting};
use crate::dataplane::{Backend, CountingLevel, Mode, Options};
use crate::host;
use crate::source::balancing::is_said_by_iptables;
use crate::source::tally::{Tally, Unserved};

/// Does what was asked.
///
/// # Errors
///
/// If it cannot be done; the message says what to do about it.
pub fn perform(config: &Config) -> Result<()> {
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    match &config.action {
        Action::WriteConfig(path) => return Ok(config::write(path, &config.effective)?),
        Action::Cleanup => return cleanup(),
        _ => {}
    }
    match config.mode {
        Mode::Nftables => perform_by::<Nftables>(config),
        Mode::Iptables => match Iptables::open(Options::default()) {
            Ok(_) => perform_by::<Iptables>(config),
            Err(_) if matches!(config.action, Action::DryRun(_)) => perform_by::<Iptables>(config),
            Err(error) => {
                tracing::warn!(%error, "iptables mode is not to be had here: nftables is programmed");
                perform_by::<Nftables>(config)
            }
        },
        Mode::Either => match Nftables::open(Options::default()) {
            Ok(_) => perform_by::<Nftables>(config),
            Err(error) if matches!(config.action, Action::DryRun(_)) => {
                tracing::debug!(%error, "this kernel has no nf_tables");
                perform_by::<Nftables>(config)
            }
            Err(error) => {
                tracing::warn!(%error, "nftables cannot be programmed here: iptables mode");
                perform_by::<Iptables>(config)
            }
        },
    }
}

fn perform_by<B: Backend + Send + 'static>(config: &Config) -> Result<()> {
    let config = &programmed_by(config, B::MODE);
    match &config.action {
        Action::WriteConfig(_) | Action::Cleanup => Ok(()),
        Action::Init => {
            // The kernel loads conntrack for our rules, and with it what is set here.
            B::open(Options::default())?;
            Ok(agent::apply_sysctls(config, B::MODE)?)
        }
        Action::DryRun(output) => {
            let desired = load(config)?;
            let program = agent::options(config, desired.state().node())?;
            print_whole(&match output {
                Output::Nft => dry_run::rules::<B>(&program, &desired),
                Output::Json => dry_run::json(&desired)?,
            })
        }
        Action::Once => {
            let desired = load(config)?;
            let backend = B::open(Options::default())?;
            agent::apply_sysctls(config, B::MODE)?;
            once(config, desired, backend)
        }
        Action::Run => {
            host::oom::adjust(config.oom_score_adj);
            let runtime = runtime()?;
            let result = runtime.block_on(agent::run::<B>(config));
            // A file that is still being read does not matter any more.
            runtime.shutdown_background();
            result
        }
    }
}

/// The configuration, as far as this mode can have it.
pub(super) fn programmed_by(config: &Config, mode: Mode) -> Config {
    let mut config = config.clone();
    config.mode = mode;
    if mode == Mode::Iptables && !is_said_by_iptables(config.algorithm) {
        tracing::warn!(
            algorithm = config.algorithm.name(),
            "the algorithm is not to be had in iptables mode: random counts, where a Service does not say otherwise",
        );
        config.algorithm = Algorithm::Random;
    }
    config
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")
}

fn cleanup() -> Result<()> {
    // Whatever has been programmed here, by either.
    let nftables = Nftables::open(Options::default()).map(|mut backend| backend.clean_up());
    let iptables = Iptables::open(Options::default()).map(|mut backend| backend.clean_up());
    if let Err(error) = counting::set_level(CountingLevel::Nothing) {
        tracing::debug!(%error, "nothing counts here");
    }
    let (nftables, iptables) = match (nftables, iptables) {
        (Err(error), Err(_)) => return Err(error.into()),
        // What a host does not have holds nothing of ours.
        (nftables, iptables) => (nftables.unwrap_or(Ok(())), iptables.unwrap_or(Ok(()))),
    };
    let nftables = nftables.context("cannot remove what nftables mode has programmed");
    let iptables = iptables.context("cannot remove what iptables mode has programmed");
    match (nftables, iptables) {
        (Err(error), Err(other)) => {
            tracing::error!("{error:#}");
            Err(other)
        }
        (nftables, iptables) => nftables.and(iptables),
    }
}

/// The cluster as it is now.
pub(super) fn load(config: &Config) -> Result<Desired> {
    let mut desired = agent::new_desired(config)?;
    match &config.origin {
        Origin::Manifests(path) => {
            let mut manifests = files::manifests(config, path);
            desired.take(files::load_strictly(&mut manifests)?.changes);
            say_what_was_read(manifests.tally());
        }
        Origin::Cluster { .. } => {
            runtime()?.block_on(async {
                let mut cluster = cluster::connect(config).await?;
                cluster::fill(config, &mut cluster, &mut desired, |_| ()).await
            })?;
        }
    }
    desired.compile();
    Ok(desired)
}

/// A ruleset that is empty has a reason.
fn say_what_was_read(tally: &Tally) {
    let Tally {
        services,
        slices,
        nodes,
        ..
    } = *tally;
    tracing::info!(services, slices, nodes, "read");
    for (why, (count, first)) in &tally.unserved {
        let why = why.words();
        tracing::info!(services = count, %first, why, "not served");
    }
    if tally.useless_slices > 0 {
        let slices = tally.useless_slices;
        tracing::info!(slices, "left out: no Service can use them");
    }
    if let Some((services, first)) = tally.unserved.get(&Unserved::NoClusterIp) {
        tracing::warn!(
            services, %first,
            "Services have no address: the API server gives it to them, and files that were written for it \
             do not have it; kubectl get services,endpointslices,nodes,servicecidrs -A -o yaml prints objects that do",
        );
    }
    if nodes == 0 {
        tracing::warn!(
            others = tally.other_nodes,
            "there is no Node of this name (--hostname-override): its zone and addresses are unknown",
        );
    }
}

fn once<B: Backend>(config: &Config, desired: Desired, backend: B) -> Result<()> {
    let mut proxy: Proxy<B> = agent::start(config, desired, backend)?;
    // Another program that changes nftables at the same time may be in the way.
    (|| proxy.read_again())
        .retry(ExponentialBuilder::new())
        .sleep(std::thread::sleep)
        .call()?;
    let synced = proxy.sync()?;
    anyhow::ensure!(
        synced.resting == PerFamily::default(),
        "the kernel refuses the rules of a family; those of the other are committed"
    );
    anyhow::ensure!(
        synced.left_out == 0,
        "the kernel refused {} Services; everything else was committed",
        synced.left_out
    );
    agent::remove_other_mode(&mut proxy);
    if config.takeover {
        let taken_over = agent::take_over_leftovers(&mut proxy).context(
            "kube-proxy's iptables chains could not be removed; everything else is done",
        )?;
        if taken_over == TakenOver::NotYet {
            agent::warn_of_ipvs();
        }
    } else {
        agent::warn_of_leftovers(&mut proxy);
    }
    conntrack::clean(&agent::stale_flows(&mut proxy))?;
    // There is no later for what is left to do.
    proxy.tidy();
    agent::log_sync(&proxy, &synced);
    Ok(())
}
