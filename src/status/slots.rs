//! The replication slots.

use super::form;
use crate::wal::Lsn;
use serde::{Deserialize, Serialize};
use std::time::SystemTime;

/// A replication slot, as in `pg_replication_slots`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SlotStatus {
    /// Its name.
    pub slot_name: String,
    /// Whether it is dropped when its session ends.
    pub temporary: bool,
    /// Whether it is in use.
    pub active: bool,
    /// The process that uses it.
    pub active_pid: Option<u32>,
    /// The position from which it keeps WAL.
    #[serde(default, with = "form::optional")]
    pub restart_lsn: Option<Lsn>,
    /// `reserved`, `extended`, `unreserved`, `lost`.
    pub wal_status: Option<String>,
    /// How much more WAL may come before it is in danger; null without a limit.
    pub safe_wal_size: Option<i64>,
    /// `wal_removed`, `idle_timeout`.
    pub invalidation_reason: Option<String>,
    /// Since when it has been unused.
    #[serde(default, with = "form::optional")]
    pub inactive_since: Option<SystemTime>,
    /// Whether `--auto-create-slots` created it.
    pub auto_created: bool,
}
