//! How full a disk is, and how full it may be.

use crate::wire::units::{SizeUnit, UnitFault, format_bytes, parse_bytes};
use std::fmt;
use std::str::FromStr;

/// A file system's size, and how much this process may still use, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// The total size.
    pub total: u64,
    /// Free for us.
    pub free: u64,
}

/// How full the disk may be before WAL is removed that only the retention rules keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HighWatermark {
    /// This much of it is used, in percent.
    Used(u8),
    /// This many bytes are left.
    Free(u64),
}

impl Space {
    /// How many bytes have to be freed for `more` bytes of room below the mark.
    pub fn shortage(self, mark: HighWatermark, more: u64) -> u64 {
        let wanted = match mark {
            HighWatermark::Used(percent) => {
                let left = u128::from(self.total) * u128::from(100 - percent.min(100)) / 100;
                u64::try_from(left).unwrap_or(u64::MAX)
            }
            HighWatermark::Free(bytes) => bytes,
        };
        wanted.saturating_add(more).saturating_sub(self.free)
    }
}

/// A disk that is above the watermark, with nothing left that may be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooFull {
    /// `--disk-high-watermark`.
    pub mark: HighWatermark,
    /// What was found.
    pub space: Space,
    /// How many bytes must become free before WAL comes in again.
    pub missing: u64,
}

impl fmt::Display for TooFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let megabytes = |bytes: u64| bytes.div_ceil(1 << 20);
        let Self { mark, space: Space { total, free }, missing } = *self;
        match mark {
            HighWatermark::Used(_) => {
                let used = u128::from(total.saturating_sub(free)) * 100;
                let percent = used.div_ceil(u128::from(total.max(1)));
                write!(f, "{percent}% of the disk is used")?;
            }
            HighWatermark::Free(_) => write!(f, "{}MB of the disk are free", megabytes(free))?,
        }
        write!(f, ", --disk-high-watermark is {mark}: {}MB must be freed", megabytes(missing))
    }
}

/// Why a value is not a watermark.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WatermarkFault {
    /// Percent, but not between 1 and 99.
    #[error("\"{0}\" is outside the valid range (1% .. 99%)")]
    Percent(String),
    /// Neither percent nor a size.
    #[error(transparent)]
    Size(#[from] UnitFault),
}

impl FromStr for HighWatermark {
    type Err = WatermarkFault;

    /// `90%` (used) or `20GB` (free).
    fn from_str(text: &str) -> Result<Self, WatermarkFault> {
        let Some(percent) = text.trim_end().strip_suffix('%') else {
            return Ok(Self::Free(parse_bytes(text, SizeUnit::Megabyte)?));
        };
        match percent.trim().parse() {
            Ok(percent @ 1..=99) => Ok(Self::Used(percent)),
            _ => Err(WatermarkFault::Percent(text.to_owned())),
        }
    }
}

impl fmt::Display for HighWatermark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Used(percent) => write!(f, "{percent}%"),
            Self::Free(bytes) => f.write_str(&format_bytes(*bytes)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing() {
        let space = Space { total: 1000, free: 150 };
        assert_eq!(space.shortage(HighWatermark::Used(80), 0), 50);
        assert_eq!(space.shortage(HighWatermark::Used(85), 0), 0);
        assert_eq!(space.shortage(HighWatermark::Used(85), 10), 10);
        assert_eq!(space.shortage(HighWatermark::Free(200), 7), 57);
        let huge = Space { total: u64::MAX, free: 0 };
        assert_eq!(huge.shortage(HighWatermark::Used(50), u64::MAX), u64::MAX);
    }

    #[test]
    fn a_full_disk_says_what_has_to_be_freed() {
        let space = Space { total: 1000 << 20, free: 859 << 20 };
        let too_full = |mark, missing| TooFull { mark, space, missing }.to_string();
        assert_eq!(
            too_full(HighWatermark::Used(5), (91 << 20) + 1),
            "15% of the disk is used, --disk-high-watermark is 5%: 92MB must be freed"
        );
        assert_eq!(
            too_full(HighWatermark::Free(1 << 30), 165 << 20),
            "859MB of the disk are free, --disk-high-watermark is 1GB: 165MB must be freed"
        );
    }

    #[test]
    fn percent_is_used_and_a_size_is_free() {
        assert_eq!("90%".parse(), Ok(HighWatermark::Used(90)));
        assert_eq!(" 5 %".parse(), Ok(HighWatermark::Used(5)));
        assert_eq!("20GB".parse(), Ok(HighWatermark::Free(20 << 30)));
        for bad in ["0%", "100%", "x%", "-1%", "GB", ""] {
            assert!(bad.parse::<HighWatermark>().is_err(), "{bad}");
        }
        assert_eq!(HighWatermark::Used(90).to_string(), "90%");
        assert_eq!(HighWatermark::Free(1 << 30).to_string(), "1GB");
    }
}
