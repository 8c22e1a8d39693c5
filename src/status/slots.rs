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
    /// Does it go with its session?
    pub temporary: bool,
    /// Does somebody use it?
    pub active: bool,
    /// Who.
    pub active_pid: Option<u32>,
    /// From where on it keeps WAL.
    #[serde(default, with = "form::optional")]
    pub restart_lsn: Option<Lsn>,
    /// `reserved`, `extended`, `unreserved`, `lost`.
    pub wal_status: Option<String>,
    /// How much may still come until it is in danger; null without a limit.
    pub safe_wal_size: Option<i64>,
    /// `wal_removed`, `idle_timeout`.
    pub invalidation_reason: Option<String>,
    /// Unused since.
    #[serde(default, with = "form::optional")]
    pub inactive_since: Option<SystemTime>,
    /// Did `--auto-create-slots` make it?
    pub auto_created: bool,
}
