//! The progress of archiving.

use super::form;
use serde::{Deserialize, Serialize};
use std::time::SystemTime;

/// The progress of archiving since the hub's start, as in `pg_stat_archiver`, and the backlog.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ArchiverStatus {
    /// Files that were archived.
    pub archived_count: u64,
    /// The last of them.
    pub last_archived_wal: Option<String>,
    /// When that was.
    #[serde(default, with = "form::optional")]
    pub last_archived_time: Option<SystemTime>,
    /// Attempts that failed.
    pub failed_count: u64,
    /// What the last of them was for.
    pub last_failed_wal: Option<String>,
    /// When that was.
    #[serde(default, with = "form::optional")]
    pub last_failed_time: Option<SystemTime>,
    /// Complete segments still to be archived.
    pub waiting_segments: usize,
    /// History files still to be archived.
    pub waiting_histories: usize,
    /// The next file.
    pub next_wal: Option<String>,
}
