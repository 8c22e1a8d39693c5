//! How old WAL is read again.

use std::ops::RangeInclusive;
use std::time::Duration;

/// Bytes in a second. Less would never come to an end, and more than this no disk reads.
pub const SCRUB_RATES: RangeInclusive<u64> = 1 << 20..=1 << 40;

/// `--scrub-interval` and `--scrub-rate`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScrubSettings {
    /// From the end of one scrub to the next; zero for none but those that are asked for.
    pub interval: Duration,
    /// The most bytes that are read in a second.
    pub rate: u64,
}
