//! Which Services have how many new connections: live in a terminal, or once.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Row, Table};
use ratatui::{DefaultTerminal, Frame};
use serde::Serialize;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use tokio::runtime::Runtime;

use super::ask::{AskError, ask};
use super::common_flags::{Agent, GOOD};
use super::output::Format;
use crate::agent::connection_counts::Counts;

/// The shortest time that says something of a rate, and the longest that somebody waits for.
const INTERVALS: std::ops::RangeInclusive<f64> = 0.05..=3600.0;
/// How often keys are looked for.
const KEYS: Duration = Duration::from_millis(50);
/// The width from which on there is room for bars.
const WIDE: u16 = 70;
/// The width of a number of connections.
const NUMBER: u16 = 10;

/// What happened between two moments.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Measured {
    /// For how long it was measured.
    seconds: f64,
    /// Busiest first.
    services: Vec<Rate>,
    /// Refused connections a second, by reason.
    refusals: BTreeMap<String, f64>,
}

/// How busy one is.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Rate {
    service: String,
    /// New connections a second.
    per_second: f64,
    /// New connections since counting began.
    total: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    endpoints: Vec<EndpointRate>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct EndpointRate {
    endpoint: String,
    per_second: f64,
    total: u64,
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a rate is not exact beyond 2^53 connections"
)]
fn measure(before: &Counts, now: &Counts) -> Measured {
    let seconds = (now.at_ms - before.at_ms).max(1) as f64 / 1000.0;
    // Counters that began anew have counted what they say.
    let rate = |before: Option<u64>, now: u64| {
        now.checked_sub(before.unwrap_or(0)).unwrap_or(now) as f64 / seconds
    };
    let known: BTreeMap<&str, _> = before
        .services
        .iter()
        .map(|count| (count.service.as_str(), count))
        .collect();
    let mut services: Vec<Rate> = now
        .services
        .iter()
        .map(|count| {
            let known = known.get(count.service.as_str());
            let mut endpoints: Vec<EndpointRate> = count
                .endpoints
                .iter()
                .map(|(endpoint, total)| {
                    let known = known.and_then(|known| known.endpoints.get(endpoint).copied());
                    EndpointRate {
                        endpoint: endpoint.clone(),
                        per_second: rate(known, *total),
                        total: *total,
                    }
                })
                .collect();
            endpoints.sort_by(|a, b| {
                b.per_second
                    .total_cmp(&a.per_second)
                    .then(a.endpoint.cmp(&b.endpoint))
            });
            Rate {
                service: count.service.clone(),
                per_second: rate(known.map(|known| known.connections), count.connections),
                total: count.connections,
                endpoints,
            }
        })
        .collect();
    services.sort_by(|a, b| {
        let busier = b.per_second.total_cmp(&a.per_second);
        busier
            .then(b.total.cmp(&a.total))
            .then(a.service.cmp(&b.service))
    });
    let refusals = now.refusals.iter().map(|(reason, count)| {
        let known = before.refusals.get(reason).copied();
        (reason.clone(), rate(known, *count))
    });
    Measured {
        seconds,
        services,
        refusals: refusals.collect(),
    }
}

pub(super) fn run(
    runtime: &Runtime,
    agent: &Agent,
    once: bool,
    interval: f64,
    endpoints: bool,
) -> Result<u8> {
    ensure!(
        INTERVALS.contains(&interval),
        "--interval is between {} and {} seconds",
        INTERVALS.start(),
        INTERVALS.end()
    );
    let interval = Duration::from_secs_f64(interval);
    let asked = |endpoints: bool| -> Result<Counts, AskError> {
        let endpoints = if endpoints { "true" } else { "false" };
        runtime.block_on(ask(&agent.socket, "/v1/top", &[("endpoints", endpoints)]))
    };
    let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    let is_live =
        !once && !is_dumb && std::io::stdout().is_terminal() && agent.output == Format::Text;
    if is_live {
        // Whoever ends it finds the terminal as it was.
        let ended = Arc::new(AtomicBool::new(false));
        for signal in [SIGHUP, SIGINT, SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&ended))
                .context("cannot wait for signals")?;
        }
        // What cannot be asked is said before the terminal is taken.
        let first = asked(endpoints)?;
        let mut terminal = ratatui::try_init().context("the terminal cannot be used")?;
        let result = live(&mut terminal, &asked, first, interval, endpoints, &ended);
        ratatui::restore();
        result?;
        return Ok(GOOD);
    }
    let before = asked(endpoints)?;
    std::thread::sleep(interval);
    let measured = measure(&before, &asked(endpoints)?);
    agent.output.print(&measured, text)?;
    Ok(GOOD)
}

/// For a script. Writing to a String cannot fail.
fn text(measured: &Measured) -> String {
    let mut out = format!("{:>10}  {:>10}  SERVICE\n", "CONN/S", "TOTAL");
    for rate in &measured.services {
        let _ = writeln!(
            out,
            "{:>10.1}  {:>10}  {}",
            rate.per_second, rate.total, rate.service
        );
        for endpoint in &rate.endpoints {
            let EndpointRate {
                endpoint,
                per_second,
                total,
            } = endpoint;
            let _ = writeln!(out, "{per_second:>10.1}  {total:>10}    {endpoint}");
        }
    }
    for (reason, per_second) in &measured.refusals {
        let _ = writeln!(out, "{per_second:>10.1}  {:>10}  refused: {reason}", "");
    }
    out
}

type Asking<'a> = dyn Fn(bool) -> Result<Counts, AskError> + 'a;

fn live(
    terminal: &mut DefaultTerminal,
    asked: &Asking<'_>,
    first: Counts,
    interval: Duration,
    mut endpoints: bool,
    ended: &AtomicBool,
) -> Result<()> {
    let mut before = first;
    let mut shown: Option<Measured> = None;
    let mut trouble: Option<String> = None;
    let mut skip = 0;
    loop {
        terminal.draw(|frame| draw(frame, shown.as_ref(), trouble.as_deref(), skip))?;
        let next = std::time::Instant::now() + interval;
        while let Some(left) = next.checked_duration_since(std::time::Instant::now()) {
            let pressed = event::poll(left.min(KEYS));
            if ended.load(Ordering::Relaxed) {
                return Ok(());
            }
            match pressed {
                Ok(true) => {}
                Ok(false) => continue,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            }
            match key()? {
                Some(Key::Quit) => return Ok(()),
                Some(Key::Endpoints) => endpoints = !endpoints,
                Some(Key::Down) => skip += 1,
                Some(Key::Up) => skip = skip.saturating_sub(1),
                Some(Key::Redraw) => {}
                None => continue,
            }
            terminal.draw(|frame| draw(frame, shown.as_ref(), trouble.as_deref(), skip))?;
        }
        match asked(endpoints) {
            Ok(now) => {
                shown = Some(measure(&before, &now));
                (before, trouble) = (now, None);
            }
            // It may be starting again.
            Err(error) => trouble = Some(error.to_string()),
        }
    }
}

enum Key {
    Quit,
    Endpoints,
    Down,
    Up,
    Redraw,
}

fn key() -> Result<Option<Key>> {
    Ok(match event::read()? {
        Event::Key(key) if key.kind != KeyEventKind::Release => match key.code {
            KeyCode::Char('q') | KeyCode::Esc => Some(Key::Quit),
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(Key::Quit),
            KeyCode::Char('e') => Some(Key::Endpoints),
            KeyCode::Down | KeyCode::Char('j') => Some(Key::Down),
            KeyCode::Up | KeyCode::Char('k') => Some(Key::Up),
            _ => None,
        },
        Event::Resize(..) => Some(Key::Redraw),
        _ => None,
    })
}

fn draw(frame: &mut Frame<'_>, shown: Option<&Measured>, trouble: Option<&str>, skip: usize) {
    let refusals = shown.map_or(0, |measured| measured.refusals.len());
    let refusals = u16::try_from(refusals).unwrap_or(0);
    let [head, table, foot, keys] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Min(1),
        Constraint::Length(if refusals > 0 { refusals + 1 } else { 0 }),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let all: f64 = shown.map_or(0.0, |measured| {
        measured.services.iter().map(|rate| rate.per_second).sum()
    });
    let title = Line::from(vec![
        "pointsman top".bold(),
        Span::raw(format!("  {all:.1} new connections/s")),
    ]);
    frame.render_widget(Paragraph::new(title), head);
    match (trouble, shown) {
        (Some(trouble), _) => frame.render_widget(Paragraph::new(trouble.red()), table),
        (None, None) => frame.render_widget(Paragraph::new("measuring …".dim()), table),
        (None, Some(measured)) => {
            draw_services(frame, table, measured, skip);
            draw_refusals(frame, foot, measured);
        }
    }
    let help = "q quit  e endpoints  ↑↓ scroll".dim();
    frame.render_widget(Paragraph::new(help), keys);
}

fn draw_services(frame: &mut Frame<'_>, area: Rect, measured: &Measured, skip: usize) {
    let busiest = measured
        .services
        .first()
        .map_or(0.0, |rate| rate.per_second);
    let is_wide = area.width >= WIDE;
    let row = |name: String, per_second: f64, total: u64, style: Style| {
        let mut cells = vec![format!("{per_second:>9.1}"), format!("{total:>9}"), name];
        if is_wide {
            cells.push(bar(per_second, busiest));
        }
        Row::new(cells).style(style)
    };
    let rows = measured.services.iter().flat_map(|rate| {
        let endpoints = rate.endpoints.iter().map(|one| {
            let name = format!("  {}", one.endpoint);
            row(name, one.per_second, one.total, Style::new().dim())
        });
        std::iter::once(row(
            rate.service.clone(),
            rate.per_second,
            rate.total,
            Style::new(),
        ))
        .chain(endpoints)
    });
    let mut widths = vec![
        Constraint::Length(NUMBER),
        Constraint::Length(NUMBER),
        Constraint::Fill(2),
    ];
    let mut names = vec!["   CONN/S", "    TOTAL", "SERVICE"];
    if is_wide {
        widths.push(Constraint::Fill(1));
        names.push("");
    }
    let table = Table::new(rows.skip(skip), widths).header(Row::new(names).bold());
    frame.render_widget(table, area);
}

/// A share of twenty blocks.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "between 0 and 20"
)]
fn bar(per_second: f64, busiest: f64) -> String {
    if busiest <= 0.0 {
        return String::new();
    }
    "█".repeat((per_second / busiest * 20.0).clamp(0.0, 20.0).round() as usize)
}

fn draw_refusals(frame: &mut Frame<'_>, area: Rect, measured: &Measured) {
    let rows = measured.refusals.iter().map(|(reason, per_second)| {
        let style = if *per_second > 0.0 {
            Style::new().red()
        } else {
            Style::new().dim()
        };
        Row::new(vec![format!("{per_second:>9.1}"), reason.replace('_', " ")]).style(style)
    });
    let widths = [Constraint::Length(NUMBER), Constraint::Fill(1)];
    let header = Row::new(vec!["     /S", "REFUSED"]).bold();
    frame.render_widget(Table::new(rows, widths).header(header), area);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::connection_counts::ServiceCount;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn counts(at_ms: i64, services: &[(&str, u64)], refused: u64) -> Counts {
        let service = |(service, connections): &(&str, u64)| ServiceCount {
            service: (*service).to_owned(),
            connections: *connections,
            endpoints: BTreeMap::from([("10.244.1.5:8080".to_owned(), *connections)]),
        };
        Counts {
            at_ms,
            services: services.iter().map(service).collect(),
            refusals: BTreeMap::from([("no_endpoints".to_owned(), refused)]),
        }
    }

    fn measured() -> Measured {
        measure(
            &counts(1000, &[("shop/web:http", 100), ("shop/idle", 7)], 3),
            &counts(
                3000,
                &[("shop/api", 50), ("shop/idle", 7), ("shop/web:http", 300)],
                9,
            ),
        )
    }

    #[test]
    fn the_busiest_come_first_by_what_is_new() {
        let rates: Vec<(String, f64)> = measured()
            .services
            .into_iter()
            .map(|rate| (rate.service, rate.per_second))
            .collect();
        let expected = [
            ("shop/web:http", 100.0),
            ("shop/api", 25.0),
            ("shop/idle", 0.0),
        ];
        assert_eq!(rates, expected.map(|(name, rate)| (name.to_owned(), rate)));
        assert_eq!(measured().refusals["no_endpoints"], 3.0);
    }

    #[test]
    fn counters_that_begin_anew_are_no_negative_rate() {
        let restarted = measure(
            &counts(0, &[("shop/web", 900)], 9),
            &counts(1000, &[("shop/web", 5)], 0),
        );
        assert_eq!(restarted.services[0].per_second, 5.0);
    }

    #[test]
    fn a_terminal_of_any_width_shows_names_and_rates() {
        for width in [200, 80, 40, 12, 1] {
            let mut terminal = Terminal::new(TestBackend::new(width, 12)).unwrap();
            terminal
                .draw(|frame| draw(frame, Some(&measured()), None, 0))
                .unwrap();
            let shown = terminal.backend().to_string();
            if width >= 40 {
                assert!(
                    shown.contains("100.0") && shown.contains("shop/web:http"),
                    "{shown}"
                );
                assert!(shown.contains("no endpoints"), "{shown}");
            }
        }
        let mut terminal = Terminal::new(TestBackend::new(40, 5)).unwrap();
        terminal
            .draw(|frame| draw(frame, Some(&measured()), Some("no agent"), 0))
            .unwrap();
        assert!(terminal.backend().to_string().contains("no agent"));
    }
}
