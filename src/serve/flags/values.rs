//! From what was typed after a flag to its value. An error names the flag.

use crate::archive::template::Template;
use crate::wire::units::{SizeUnit, TimeUnit, format_bytes, parse_bytes, parse_duration};
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

/// A flag whose value cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("--{flag}: {fault}")]
pub struct Mistake {
    flag: &'static str,
    fault: String,
}

pub(super) fn mistake(flag: &'static str, fault: impl Display) -> Mistake {
    Mistake { flag, fault: fault.to_string() }
}

fn outside(flag: &'static str, value: impl Display, range: impl Display) -> Mistake {
    mistake(flag, format!("{value} is outside the valid range ({range})"))
}

/// A value that reads itself.
pub(super) fn parsed<T: FromStr<Err: Display>>(
    flag: &'static str,
    text: &str,
) -> Result<T, Mistake> {
    text.parse().map_err(|e| mistake(flag, e))
}

/// A number that clap has read.
pub(super) fn number<T: PartialOrd + Display>(
    flag: &'static str,
    value: T,
    range: RangeInclusive<T>,
) -> Result<T, Mistake> {
    if range.contains(&value) {
        return Ok(value);
    }
    Err(outside(flag, value, format_args!("{} .. {}", range.start(), range.end())))
}

/// Bytes; a number without a unit counts `unit`s.
pub(super) fn size(
    flag: &'static str,
    text: &str,
    unit: SizeUnit,
    range: RangeInclusive<u64>,
) -> Result<u64, Mistake> {
    let value = parse_bytes(text, unit).map_err(|e| mistake(flag, e))?;
    if range.contains(&value) {
        return Ok(value);
    }
    let (min, max) = (format_bytes(*range.start()), format_bytes(*range.end()));
    Err(outside(flag, text, format_args!("{min} .. {max}")))
}

/// A number without a unit counts `unit`s.
pub(super) fn time(flag: &'static str, text: &str, unit: TimeUnit) -> Result<Duration, Mistake> {
    parse_duration(text, unit).map_err(|e| mistake(flag, e))
}

/// As [`time`], with an upper limit.
pub(super) fn time_at_most(
    flag: &'static str,
    text: &str,
    unit: TimeUnit,
    max: Duration,
) -> Result<Duration, Mistake> {
    let value = time(flag, text, unit)?;
    if value > max {
        return Err(outside(flag, text, format_args!("0 .. {max:?}")));
    }
    Ok(value)
}

/// As [`time`] in milliseconds, and not 0.
pub(super) fn positive_time(flag: &'static str, text: &str) -> Result<Duration, Mistake> {
    let value = time(flag, text, TimeUnit::Millisecond)?;
    if value.is_zero() {
        return Err(outside(flag, text, "1ms .."));
    }
    Ok(value)
}

/// A shell command with the placeholders `allowed`. As in PostgreSQL, an empty one means none.
pub(super) fn command(
    flag: &'static str,
    text: &str,
    allowed: &[char],
) -> Result<Option<Template>, Mistake> {
    if text.is_empty() {
        return Ok(None);
    }
    Template::parse(text, allowed).map(Some).map_err(|e| mistake(flag, e))
}
