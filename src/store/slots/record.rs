//! The part of a slot that survives a restart.

use super::SlotName;
use crate::store::sealed_text::Unreadable;
use crate::wal::Lsn;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Why a slot was invalidated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Its WAL exceeded what it may keep, or the disk was too full.
    WalRemoved,
    /// Nobody used it for `--idle-replication-slot-timeout`.
    IdleTimeout,
}

impl fmt::Display for Cause {
    /// The text of `pg_replication_slots.invalidation_reason`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WalRemoved => "wal_removed",
            Self::IdleTimeout => "idle_timeout",
        })
    }
}

/// How a slot came to be created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// CREATE_REPLICATION_SLOT.
    Asked,
    /// START_REPLICATION with a name that matches `--auto-create-slots`.
    AutoCreated,
}

/// A slot as it is on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotRecord {
    /// Its name.
    pub name: SlotName,
    /// From where it keeps WAL; `None` before its first use, or after it lost its WAL.
    pub restart_lsn: Option<Lsn>,
    /// It lost its WAL at least once.
    pub invalidated: Option<Cause>,
    /// How it came to be created.
    pub origin: Origin,
}

/// The text of a record. Fields that this version does not know are ignored, so that a later one
/// can add some.
#[derive(Serialize, Deserialize)]
pub(super) struct SlotText {
    name: String,
    restart_lsn: Option<String>,
    invalidated: Option<Cause>,
    origin: Origin,
}

impl SlotText {
    pub(super) fn of(record: &SlotRecord) -> Self {
        Self {
            name: record.name.to_string(),
            restart_lsn: record.restart_lsn.map(|lsn| lsn.to_string()),
            invalidated: record.invalidated,
            origin: record.origin,
        }
    }

    pub(super) fn parse(self) -> Result<SlotRecord, Unreadable> {
        let wrong = |field: &str| Unreadable::Content(format!("invalid {field}"));
        let restart_lsn = self.restart_lsn.map(|lsn| lsn.parse()).transpose();
        Ok(SlotRecord {
            name: SlotName::parse(&self.name).map_err(|_| wrong("name"))?,
            restart_lsn: restart_lsn.map_err(|_| wrong("restart_lsn"))?,
            invalidated: self.invalidated,
            origin: self.origin,
        })
    }
}
