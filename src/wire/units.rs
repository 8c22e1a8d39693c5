//! Setting values as PostgreSQL reads and shows them: Booleans, sizes, durations
//! (`bool.c:parse_bool`, `guc.c:parse_int`).

use std::time::Duration;
use winnow::ascii::digit1;
use winnow::combinator::{alt, opt, preceded};
use winnow::error::EmptyError;
use winnow::prelude::*;
use winnow::token::{one_of, take_while};

/// PostgreSQL's Booleans: any unambiguous prefix of `true`, `false`, `yes`, `no`, `on`, `off`, or
/// `1`, `0`; in any case.
pub fn parse_bool(text: &str) -> Option<bool> {
    // "o" alone is ambiguous.
    const WORDS: [(&str, usize, bool); 8] = [
        ("true", 1, true),
        ("false", 1, false),
        ("yes", 1, true),
        ("no", 1, false),
        ("on", 2, true),
        ("off", 2, false),
        ("1", 1, true),
        ("0", 1, false),
    ];
    WORDS
        .iter()
        .find(|(word, shortest, _)| {
            text.len() >= *shortest
                && word.get(..text.len()).is_some_and(|start| start.eq_ignore_ascii_case(text))
        })
        .map(|&(_, _, value)| value)
}

/// The unit of a size setting: what a bare number means and what fractions are
/// rounded to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SizeUnit {
    /// B
    Byte,
    /// kB
    Kilobyte,
    /// MB
    Megabyte,
}

impl SizeUnit {
    const fn bytes(self) -> u64 {
        match self {
            Self::Byte => 1,
            Self::Kilobyte => 1 << 10,
            Self::Megabyte => 1 << 20,
        }
    }
}

/// The unit of a time setting: what a bare number means and what fractions are
/// rounded to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TimeUnit {
    /// ms
    Millisecond,
    /// s
    Second,
}

impl TimeUnit {
    const fn micros(self) -> u64 {
        match self {
            Self::Millisecond => 1_000,
            Self::Second => 1_000_000,
        }
    }
}

/// A value that is neither a size nor a duration.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UnitFault {
    /// No number at the front.
    #[error("invalid value: \"{0}\"")]
    NotANumber(String),
    /// An unknown unit, or one of the other kind.
    #[error("invalid value: \"{text}\". {hint}")]
    UnknownUnit {
        /// The whole value.
        text: String,
        /// PostgreSQL's hint with the units that are valid.
        hint: &'static str,
    },
    /// Negative, or above PostgreSQL's largest integer in the setting's unit.
    #[error("value \"{0}\" is out of range")]
    OutOfRange(String),
}

/// Units from large to small, in multiples of the smallest one.
type Units = [(&'static str, u64)];

const SIZES: &Units =
    &[("TB", 1 << 40), ("GB", 1 << 30), ("MB", 1 << 20), ("kB", 1 << 10), ("B", 1)];
const SIZE_HINT: &str =
    "Valid units for this parameter are \"B\", \"kB\", \"MB\", \"GB\", and \"TB\".";
const TIMES: &Units = &[
    ("d", 86_400_000_000),
    ("h", 3_600_000_000),
    ("min", 60_000_000),
    ("s", 1_000_000),
    ("ms", 1_000),
    ("us", 1),
];
const TIME_HINT: &str =
    "Valid units for this parameter are \"us\", \"ms\", \"s\", \"min\", \"h\", and \"d\".";

/// A size in bytes, such as `64MB`, `1.5 GB` or `0x10` (in `base` units).
pub fn parse_bytes(text: &str, base: SizeUnit) -> Result<u64, UnitFault> {
    parse(text, base.bytes(), SIZES, SIZE_HINT)
}

/// A duration, such as `5min`, `1.5 h` or `10` (in `base` units).
pub fn parse_duration(text: &str, base: TimeUnit) -> Result<Duration, UnitFault> {
    parse(text, base.micros(), TIMES, TIME_HINT).map(Duration::from_micros)
}

/// As SHOW prints a size: in the largest unit that divides it.
pub fn format_bytes(bytes: u64) -> String {
    format(bytes, SIZES)
}

/// As SHOW prints a time: in the largest unit that divides it.
pub fn format_duration(duration: Duration) -> String {
    format(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX), TIMES)
}

fn format(amount: u64, units: &Units) -> String {
    match units.iter().find(|(_, unit)| amount.is_multiple_of(*unit)) {
        Some((name, unit)) if amount != 0 => format!("{}{name}", amount / unit),
        _ => amount.to_string(),
    }
}

/// The amount in the smallest of `units`.
///
/// Arithmetic and rounding are PostgreSQL's: a fraction is rounded to the nearest multiple of the
/// next smaller unit, then the whole to the setting's unit, where it must fit an `int`.
fn parse(text: &str, base: u64, units: &Units, hint: &'static str) -> Result<u64, UnitFault> {
    let mut rest = text.trim_start_matches(is_space);
    let number = number(&mut rest).map_err(|_| UnitFault::NotANumber(text.to_owned()))?;
    let name = rest.trim_matches(is_space);
    let base = base as f64;
    let in_base = if name.is_empty() {
        number
    } else {
        let at = units.iter().position(|(unit, _)| *unit == name);
        let unknown = || UnitFault::UnknownUnit { text: text.to_owned(), hint };
        let mut from = units.iter().skip(at.ok_or_else(unknown)?).map(|(_, size)| *size as f64);
        let unit = from.next().unwrap_or(1.0);
        let amount = number * unit;
        match from.next() {
            Some(smaller) => (amount / smaller).round_ties_even() * smaller / base,
            None => amount / base,
        }
    };
    let rounded = in_base.round_ties_even();
    if (0.0..=f64::from(i32::MAX)).contains(&rounded) {
        Ok((rounded * base) as u64)
    } else {
        Err(UnitFault::OutOfRange(text.to_owned()))
    }
}

/// `isspace` of the C locale.
const fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c')
}

/// A number as C reads it: 0x is hexadecimal, a leading 0 octal, anything else decimal with an
/// optional fraction and exponent. (C also accepts hexadecimal fractions, which no setting uses.)
fn number(input: &mut &str) -> Result<f64, EmptyError> {
    let sign = opt(one_of(['+', '-'])).parse_next(input)?;
    let fraction = (
        alt(((digit1, opt(('.', take_while(0.., '0'..='9')))).void(), ('.', digit1).void())),
        opt((one_of(['e', 'E']), opt(one_of(['+', '-'])), digit1)),
    )
        .take();
    let magnitude = alt((
        preceded(
            alt(("0x", "0X")),
            take_while(1.., |c: char| c.is_ascii_hexdigit()).map(|digits| integer(digits, 16)),
        ),
        fraction.verify_map(decimal),
        preceded('0', take_while(0.., '0'..='7')).map(|digits| integer(digits, 8)),
    ))
    .parse_next(input)?;
    Ok(if sign == Some('-') { -magnitude } else { magnitude })
}

/// A decimal number, unless C would read its digits as octal. Those are left to the octal parser,
/// and octal digits count as decimal only with a fraction.
fn decimal(text: &str) -> Option<f64> {
    let whole = text.bytes().take_while(u8::is_ascii_digit);
    let leading_zero = text.starts_with('0') && whole.clone().count() > 1;
    let octal = leading_zero && text.bytes().all(|b| b.is_ascii_digit());
    let neither = leading_zero && whole.clone().any(|digit| digit > b'7');
    if octal || neither { None } else { text.parse().ok() }
}

fn integer(digits: &str, radix: u32) -> f64 {
    digits
        .chars()
        .filter_map(|c| c.to_digit(radix))
        .fold(0.0, |sum, digit| sum * f64::from(radix) + f64::from(digit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes() {
        let mb = |text| parse_bytes(text, SizeUnit::Megabyte);
        let kb = |text| parse_bytes(text, SizeUnit::Kilobyte);
        assert_eq!(mb("64"), Ok(64 << 20));
        assert_eq!(mb(" 64 MB "), Ok(64 << 20));
        assert_eq!(mb("1GB"), Ok(1 << 30));
        assert_eq!(mb("0x10"), Ok(16 << 20));
        assert_eq!(mb("010"), Ok(8 << 20));
        assert_eq!(mb("0"), Ok(0));
        assert_eq!(mb("1.5"), Ok(2 << 20), "rint: ties to even");
        assert_eq!(mb("2.5"), Ok(2 << 20));
        assert_eq!(mb("1kB"), Ok(0), "rounded to the setting's unit");
        assert_eq!(kb("1.5MB"), Ok(1536 << 10));
        assert_eq!(kb("30.1GB"), Ok(30822 << 20), "rounded to whole MB");
        assert_eq!(kb(".5MB"), Ok(512 << 10));
        assert_eq!(kb("1e3"), Ok(1000 << 10));
        assert_eq!(parse_bytes("1B", SizeUnit::Byte), Ok(1));
        for bad in ["", "MB", "x1", "e5", "-", "+", "0x"] {
            assert!(mb(bad).is_err(), "{bad:?}");
        }
        for unit in ["1mb", "1KB", "1M", "1 M B", "1s", "08", "1e", "1MB MB", "08.5"] {
            assert!(matches!(mb(unit), Err(UnitFault::UnknownUnit { .. })), "{unit:?}");
        }
        for far in ["-1", "2147483648", "1e300", "-1GB", "4194304GB"] {
            assert_eq!(mb(far), Err(UnitFault::OutOfRange(far.to_owned())));
        }
        assert_eq!(mb("2147483647"), Ok(2_147_483_647 << 20));
    }

    #[test]
    fn durations() {
        let ms = |text| parse_duration(text, TimeUnit::Millisecond);
        assert_eq!(ms("2000"), Ok(Duration::from_secs(2)));
        assert_eq!(ms("5min"), Ok(Duration::from_secs(300)));
        assert_eq!(ms("1.5 h"), Ok(Duration::from_secs(5400)));
        assert_eq!(ms("1d"), Ok(Duration::from_secs(86_400)));
        assert_eq!(ms("499us"), Ok(Duration::ZERO));
        assert_eq!(parse_duration("10", TimeUnit::Second), Ok(Duration::from_secs(10)));
        assert!(matches!(ms("1MB"), Err(UnitFault::UnknownUnit { hint: TIME_HINT, .. })));
    }

    #[test]
    fn shows_the_largest_unit_that_fits() {
        assert_eq!(format_bytes(16 << 20), "16MB");
        assert_eq!(format_bytes(1 << 30), "1GB");
        assert_eq!(format_bytes(1025), "1025B");
        assert_eq!(format_bytes(0), "0");
        assert_eq!(format_duration(Duration::from_secs(60)), "1min");
        assert_eq!(format_duration(Duration::from_millis(1500)), "1500ms");
    }

    #[test]
    fn booleans() {
        for (text, value) in [
            ("t", Some(true)),
            ("TrU", Some(true)),
            ("on", Some(true)),
            ("of", Some(false)),
            ("o", None),
            ("", None),
            ("truex", None),
            ("10", None),
            ("yes", Some(true)),
        ] {
            assert_eq!(parse_bool(text), value, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(mb in 0u64..=i32::MAX as u64, ms in 0u64..=i32::MAX as u64) {
            let bytes = mb << 20;
            prop_assert_eq!(parse_bytes(&format_bytes(bytes), SizeUnit::Megabyte), Ok(bytes));
            let span = Duration::from_millis(ms);
            prop_assert_eq!(parse_duration(&format_duration(span), TimeUnit::Millisecond), Ok(span));
        }

        #[test]
        fn garbage_never_panics(text in "[-+0-9a-zA-Z. ]{0,20}|.{0,20}") {
            std::hint::black_box(parse_bytes(&text, SizeUnit::Megabyte).is_ok());
            std::hint::black_box(parse_duration(&text, TimeUnit::Second).is_ok());
            std::hint::black_box(parse_bool(&text));
        }
    }
}
