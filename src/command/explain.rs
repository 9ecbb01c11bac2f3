//! What will happen to a connection: asked of the agent, or compiled here.

use std::fmt::Write;

use anyhow::Result;
use tokio::runtime::Runtime;

use super::ask::ask;
use super::common_flags::{Common, GOOD};
use super::output::microseconds;
use super::perform::load;
use crate::agent::question;
use crate::config::Config;
use crate::core::explain::{Explanation, Route, Surroundings};

pub(super) fn run(runtime: &Runtime, common: &Common, from: Option<&str>, to: &str) -> Result<u8> {
    // What makes no sense is said before anybody is asked.
    question::parse(from, to)?;
    let explanation = match common.without_agent()? {
        Some(config) => compile(&config, from, to)?,
        None => {
            let mut parameters = vec![("to", to)];
            parameters.extend(from.map(|from| ("from", from)));
            runtime.block_on(ask(&common.agent.socket, "/v1/explain", &parameters))?
        }
    };
    common.agent.output.print(&explanation, text)?;
    Ok(GOOD)
}

fn compile(config: &Config, from: Option<&str>, to: &str) -> Result<Explanation> {
    let question = question::parse(from, to)?;
    let desired = load(config)?;
    let detector = config.local_detector(desired.state().node())?;
    let surroundings = Surroundings {
        state: desired.state(),
        engine: desired.engine(),
        programs: false,
        node_ports: desired.node_ports(),
        left_out: desired.left_out(),
        detector: &detector,
        masquerade_all: config.masquerade_all,
    };
    Ok(surroundings.explain(&question))
}

/// All of it. Writing to a String cannot fail.
fn text(explanation: &Explanation) -> String {
    let mut out = format!("{}\n", explanation.headline);
    for note in &explanation.notes {
        let _ = writeln!(out, "  {note}");
    }
    for route in &explanation.routes {
        out.push('\n');
        put_route(&mut out, route);
    }
    if explanation.more_routes > 0 {
        let _ = writeln!(out, "\nand {} more destinations", explanation.more_routes);
    }
    out
}

fn put_route(out: &mut String, route: &Route) {
    let _ = writeln!(
        out,
        "{}  {} of {}",
        route.destination, route.kind, route.service
    );
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(out, "  {name:<12} {value}");
    };
    line("outcome", &route.sentence);
    if !route.waiting.is_empty() {
        line(
            "contested",
            &format!("{} claim it too, and wait", route.waiting.join(", ")),
        );
    }
    let masqueraded = if route.masqueraded {
        "endpoints see this node's address"
    } else {
        "endpoints see its own address"
    };
    line("source", &format!("{}; {masqueraded}", route.source));
    if let Some(sources) = &route.allowed_sources {
        line(
            "admitted",
            &if sources.is_empty() {
                "nobody".to_owned()
            } else {
                sources.join(", ")
            },
        );
    }
    line("hints", &route.hints);
    if let Some(seconds) = route.affinity_seconds {
        let remembered = route
            .remembered
            .as_ref()
            .map_or_else(String::new, |remembered| {
                format!(
                    "; this source comes back to {} for {} s more",
                    remembered.endpoint, remembered.seconds_left
                )
            });
        line("affinity", &format!("{seconds} s{remembered}"));
    }
    if let Some(flows) = route.live_flows {
        line("live flows", &flows.to_string());
    }
    if let Some(programmed) = &route.programmed {
        let after = match programmed.took_us {
            0 => "with".to_owned(),
            took => format!("{} after", microseconds(took)),
        };
        line(
            "programmed",
            &format!("{}, {after} {}", programmed.at, programmed.because_of),
        );
    }
    let _ = writeln!(
        out,
        "  endpoints    {}",
        if route.endpoints.is_empty() {
            "none"
        } else {
            ""
        }
    );
    let width = route
        .endpoints
        .iter()
        .map(|line| line.endpoint.len())
        .max()
        .unwrap_or(0);
    for endpoint in &route.endpoints {
        let sign = if endpoint.used { '+' } else { '-' };
        let here = if endpoint.on_this_node {
            ", on this node"
        } else {
            ""
        };
        let flows = endpoint
            .live_flows
            .map_or_else(String::new, |flows| format!(", {flows} live flows"));
        let (name, why) = (&endpoint.endpoint, &endpoint.why);
        let _ = writeln!(out, "    {sign} {name:<width$}  {why}{here}{flows}");
    }
    if route.more_endpoints > 0 {
        let _ = writeln!(out, "    and {} more", route.more_endpoints);
    }
}
