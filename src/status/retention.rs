//! What would be removed next, and who keeps what.

use super::form;
use super::hub::SetAsideStatus;
use crate::wal::Lsn;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What retention would do now. Nothing was changed to find it out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RetentionStatus {
    /// Where the oldest segment begins.
    #[serde(with = "form::plain")]
    pub oldest_lsn: Lsn,
    /// Where the WAL ends.
    #[serde(with = "form::plain")]
    pub durable_lsn: Lsn,
    /// WAL before this would be removed now; it is `oldest_lsn` when none would.
    #[serde(with = "form::plain")]
    pub removable_lsn: Lsn,
    /// So many segments would be removed now, if all are here.
    pub removable_segments: u64,
    /// The slots that would lose their WAL now.
    pub losing_slots: Vec<LosingSlot>,
    /// The slot that is the next to lose its WAL if the disk stays above `--disk-high-watermark`.
    pub next_slot: Option<String>,
    /// Whether WAL may come in: `open`, `paused`.
    pub receiving: String,
    /// The newest of what was set aside, what goes first before the others.
    #[serde(default)]
    pub set_aside: Vec<SetAsideStatus>,
    /// Who keeps WAL, the one that keeps most first.
    pub kept_by: Vec<KeptBy>,
}

/// A slot that would lose its WAL.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LosingSlot {
    /// Its name.
    pub slot_name: String,
    /// `wal_removed`, `idle_timeout`.
    pub reason: String,
}

/// Somebody, or something, that keeps WAL.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeptBy {
    /// What it is, such as `slot_in_use`, `standby_that_left`, `wal_keep_size`.
    pub reason: String,
    /// The slot or the standby.
    pub name: Option<String>,
    /// The start of the first segment that it keeps.
    #[serde(with = "form::plain")]
    pub from_lsn: Lsn,
    /// How much that is.
    pub bytes: u64,
    /// When that ends by itself; null when it does not.
    #[serde(default, rename = "ends_in_seconds", with = "form::optional_seconds")]
    pub ends_in: Option<Duration>,
}
