//! The report: tables for people, the same as JSON for machines.

use std::time::Duration;

use serde_json::{Map, Value, json};

/// A figure.
#[derive(Debug, Clone)]
pub enum Cell {
    /// A word.
    Text(String),
    /// So many.
    Count(usize),
    /// So many bytes.
    Bytes(usize),
    /// So long.
    Time(Duration),
    /// So many times as much.
    Ratio(f64),
    /// A share of one processor.
    Share(f64),
    /// Not measured, and why is said below the table.
    None,
}

impl Cell {
    fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Count(count) => thousands(*count),
            Self::Bytes(bytes) if *bytes < 10_000 => format!("{bytes} B"),
            Self::Bytes(bytes) if *bytes < 1_000_000 => format!("{:.1} kB", *bytes as f64 / 1e3),
            Self::Bytes(bytes) => format!("{:.1} MB", *bytes as f64 / 1e6),
            Self::Time(time) => duration(*time),
            Self::Ratio(ratio) => format!("{ratio:.2} x"),
            Self::Share(share) => format!("{:.1} %", share * 100.0),
            Self::None => "-".to_owned(),
        }
    }

    fn value(&self) -> Value {
        match self {
            Self::Text(text) => json!(text),
            Self::Count(count) | Self::Bytes(count) => json!(count),
            Self::Time(time) => json!(time.as_secs_f64()),
            Self::Ratio(number) | Self::Share(number) => json!(number),
            Self::None => Value::Null,
        }
    }
}

impl From<Duration> for Cell {
    fn from(time: Duration) -> Self {
        Self::Time(time)
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl<T: Into<Self>> From<Option<T>> for Cell {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::None, Into::into)
    }
}

fn thousands(count: usize) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn duration(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        0.0..1e-3 => format!("{:.1} µs", seconds * 1e6),
        1e-3..1.0 => format!("{:.1} ms", seconds * 1e3),
        _ => format!("{seconds:.2} s"),
    }
}

/// One table.
pub struct Table {
    title: &'static str,
    /// What it says, and how it was measured.
    about: &'static str,
    columns: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// An empty one.
    pub fn new(title: &'static str, about: &'static str, columns: &[&'static str]) -> Self {
        Self {
            title,
            about,
            columns: columns.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row, which is printed at once to the standard error: a report takes minutes.
    pub fn row(&mut self, cells: Vec<Cell>) {
        let line: Vec<String> = self
            .columns
            .iter()
            .zip(&cells)
            .map(|(column, cell)| format!("{column} {}", cell.text()))
            .collect();
        eprintln!("{}: {}", self.title, line.join(", "));
        self.rows.push(cells);
    }

    /// Whether anything was measured.
    pub const fn has_rows(&self) -> bool {
        !self.rows.is_empty()
    }

    fn text(&self) -> String {
        let rows: Vec<Vec<String>> = self
            .rows
            .iter()
            .map(|row| row.iter().map(Cell::text).collect())
            .collect();
        let width = |index: usize| {
            let cells = rows.iter().filter_map(|row| row.get(index));
            let name = self.columns.get(index).map_or("", |column| column);
            cells
                .map(String::as_str)
                .chain([name])
                .map(|text| text.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let line = |cells: &mut dyn Iterator<Item = &str>| {
            let cells: Vec<String> = cells
                .zip(&widths)
                .enumerate()
                .map(|(index, (cell, width))| {
                    if index == 0 {
                        format!("{cell:<width$}")
                    } else {
                        format!("{cell:>width$}")
                    }
                })
                .collect();
            cells.join("  ").trim_end().to_owned() + "\n"
        };
        let mut text = format!("\n{}\n{}\n\n", self.title, self.about);
        text += &line(&mut self.columns.iter().copied());
        for row in &rows {
            text += &line(&mut row.iter().map(String::as_str));
        }
        text
    }

    fn value(&self) -> Value {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                let pairs = self.columns.iter().zip(row);
                let object: Map<String, Value> = pairs
                    .map(|(column, cell)| ((*column).to_owned(), cell.value()))
                    .collect();
                Value::Object(object)
            })
            .collect();
        json!({"title": self.title, "about": self.about, "rows": rows})
    }
}

/// All tables, and the machine.
pub struct Report {
    machine: Vec<(&'static str, String)>,
    /// The tables.
    pub tables: Vec<Table>,
}

impl Report {
    /// A report of this machine.
    pub fn new() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cpus = read("/proc/cpuinfo");
        let field = |text: &str, name: &str| {
            text.lines()
                .find(|line| line.starts_with(name))
                .and_then(|line| line.split(':').nth(1))
                .map_or_else(String::new, |value| value.trim().to_owned())
        };
        let processors = cpus
            .lines()
            .filter(|line| line.starts_with("processor"))
            .count();
        Self {
            machine: vec![
                ("processor", field(&cpus, "model name")),
                ("processors", processors.to_string()),
                ("memory", field(&read("/proc/meminfo"), "MemTotal")),
                (
                    "kernel",
                    read("/proc/sys/kernel/osrelease").trim().to_owned(),
                ),
                ("pointsman", env!("CARGO_PKG_VERSION").to_owned()),
            ],
            tables: Vec::new(),
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (name, value) in &self.machine {
            text += &format!("{name:<12}{value}\n");
        }
        for table in &self.tables {
            text += &table.text();
        }
        text
    }

    /// For machines: times in seconds, sizes in bytes.
    pub fn json(&self) -> String {
        let machine: Map<String, Value> = self
            .machine
            .iter()
            .map(|(name, value)| ((*name).to_owned(), json!(value)))
            .collect();
        let tables: Vec<Value> = self.tables.iter().map(Table::value).collect();
        let document = json!({"machine": machine, "tables": tables});
        serde_json::to_string_pretty(&document).expect("JSON") + "\n"
    }
}

/// The time that half of them stay below, and that 99 of 100 do.
pub fn quantiles(times: Vec<Duration>) -> (Duration, Duration) {
    below(times, [50, 99]).into()
}

/// The times between which half of them lie.
pub fn quartiles(times: Vec<Duration>) -> (Duration, Duration) {
    below(times, [25, 75]).into()
}

/// The times that these parts of a hundred stay below.
fn below(mut times: Vec<Duration>, parts: [usize; 2]) -> [Duration; 2] {
    times.sort_unstable();
    parts.map(|part| {
        let index = (times.len() * part / 100).min(times.len().saturating_sub(1));
        times.get(index).copied().unwrap_or_default()
    })
}
