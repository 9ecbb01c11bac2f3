//! Durations as Go writes them: `24h0m0s`, `1.5s`, `-1s`.

use std::fmt::{self, Write};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

/// A text that is no duration.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is not a duration, like 24h, 90s or 1h30m")]
pub struct NotADuration(String);

/// A duration in nanoseconds, which may be negative, as Go's `time.Duration`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoDuration(i64);

impl GoDuration {
    /// Whole seconds.
    #[must_use]
    pub const fn seconds(seconds: i64) -> Self {
        Self(seconds.saturating_mul(1_000_000_000))
    }

    /// Whether it is 0, which mostly means the default.
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// Whether it is less than 0.
    #[must_use]
    pub const fn is_negative(self) -> bool {
        self.0 < 0
    }

    /// As a `Duration`; what is negative counts as 0.
    #[must_use]
    pub fn to_std(self) -> Duration {
        Duration::from_nanos(u64::try_from(self.0).unwrap_or(0))
    }
}

impl FromStr for GoDuration {
    type Err = NotADuration;

    /// Reads what `time.ParseDuration` reads.
    fn from_str(text: &str) -> Result<Self, NotADuration> {
        let wrong = || NotADuration(text.to_owned());
        let (negative, unsigned) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        if unsigned == "0" {
            return Ok(Self(0));
        }
        if unsigned.is_empty() {
            return Err(wrong());
        }
        let mut rest = unsigned;
        let mut total = 0.0;
        while !rest.is_empty() {
            let digits = rest
                .find(|c: char| !c.is_ascii_digit() && c != '.')
                .ok_or_else(wrong)?;
            let (amount, after) = rest.split_at(digits);
            let unit = after
                .find(|c: char| c.is_ascii_digit() || c == '.')
                .unwrap_or(after.len());
            let (unit, after) = after.split_at(unit);
            let scale = match unit {
                "h" => 3_600e9,
                "m" => 60e9,
                "s" => 1e9,
                "ms" => 1e6,
                "us" | "µs" | "μs" => 1e3,
                "ns" => 1.0,
                _ => return Err(wrong()),
            };
            let amount: f64 = amount.parse().map_err(|_| wrong())?;
            total += amount * scale;
            rest = after;
        }
        #[allow(
            clippy::cast_possible_truncation,
            reason = "the range is checked, and a fraction of a nanosecond means nothing"
        )]
        // As far as an f64 counts: i64::MAX itself is not among its numbers.
        if total < 9.2e18 {
            let nanoseconds = total.round() as i64;
            Ok(Self(if negative { -nanoseconds } else { nanoseconds }))
        } else {
            Err(wrong())
        }
    }
}

impl fmt::Display for GoDuration {
    /// Writes what `time.Duration.String` writes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("0s");
        }
        if self.0 < 0 {
            f.write_char('-')?;
        }
        let all = self.0.unsigned_abs();
        let with_fraction = |f: &mut fmt::Formatter<'_>, whole: u64, part: u64, digits: usize| {
            write!(f, "{whole}")?;
            if part != 0 {
                let text = format!("{part:0digits$}");
                write!(f, ".{}", text.trim_end_matches('0'))?;
            }
            Ok(())
        };
        match all {
            1..1_000 => return write!(f, "{all}ns"),
            1_000..1_000_000 => {
                with_fraction(f, all / 1_000, all % 1_000, 3)?;
                return f.write_str("µs");
            }
            1_000_000..1_000_000_000 => {
                with_fraction(f, all / 1_000_000, all % 1_000_000, 6)?;
                return f.write_str("ms");
            }
            _ => {}
        }
        let (seconds, part) = (all / 1_000_000_000, all % 1_000_000_000);
        let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
        if hours > 0 {
            write!(f, "{hours}h")?;
        }
        if hours > 0 || minutes > 0 {
            write!(f, "{minutes}m")?;
        }
        with_fraction(f, seconds % 60, part, 9)?;
        f.write_char('s')
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        let cases = [
            ("24h", Some("24h0m0s")),
            ("1h30m", Some("1h30m0s")),
            ("0s", Some("0s")),
            ("0", Some("0s")),
            ("1.5s", Some("1.5s")),
            ("250ms", Some("250ms")),
            ("90s", Some("1m30s")),
            ("-1s", Some("-1s")),
            ("+2m", Some("2m0s")),
            ("1500us", Some("1.5ms")),
            ("1µs", Some("1µs")),
            ("7ns", Some("7ns")),
            ("", None),
            ("-", None),
            ("10", None),
            ("1 h", None),
            ("h", None),
            ("1d", None),
            ("1.2.3s", None),
            ("9999999999h", None),
        ];
        for (text, expected) in cases {
            let found = text.parse::<GoDuration>().ok().map(|d| d.to_string());
            assert_eq!(found.as_deref(), expected, "{text:?}");
        }
    }
}
