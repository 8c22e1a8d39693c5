//! Flags about reading old WAL again.

use super::values::{Mistake, size, time};
use crate::config::{SCRUB_RATES, ScrubSettings};
use crate::wire::units::{SizeUnit, TimeUnit};
use clap::Args;

/// How old WAL is read again.
#[derive(Debug, Args)]
pub struct ScrubFlags {
    /// Read all complete segments again this long after they were last read, and compare them with
    /// their digests; 0 for never, unless `walhub ctl verify` asks for it
    #[arg(long, value_name = "TIME", default_value = "7d", env = "WALHUB_SCRUB_INTERVAL")]
    pub scrub_interval: String,

    /// The most that a scrub reads in a second
    #[arg(long, value_name = "SIZE", default_value = "32MB", env = "WALHUB_SCRUB_RATE")]
    pub scrub_rate: String,
}

impl ScrubFlags {
    pub(super) fn resolve(&self) -> Result<ScrubSettings, Mistake> {
        Ok(ScrubSettings {
            interval: time("scrub-interval", &self.scrub_interval, TimeUnit::Second)?,
            rate: size("scrub-rate", &self.scrub_rate, SizeUnit::Megabyte, SCRUB_RATES)?,
        })
    }
}
