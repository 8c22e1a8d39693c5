//! How old WAL is read again.

use std::time::Duration;

/// `--scrub-interval` and `--scrub-rate`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScrubSettings {
    /// From the end of one scrub to the next; zero for none but those that are asked for.
    pub interval: Duration,
    /// The most bytes that are read in a second.
    pub rate: u64,
}
