//! The part of a slot that survives a restart: `slots/<name>`.

use super::SlotName;
use crate::store::sealed_text::{Unreadable, seal, unseal};
use crate::wal::Lsn;
use serde::{Deserialize, Serialize};
use std::fmt;

const KIND: &str = "slot";
const VERSION: u32 = 1;

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
pub struct SlotFile {
    /// Its name.
    pub name: SlotName,
    /// From where it keeps WAL; `None` before its first use, or after it lost its WAL.
    pub restart_lsn: Option<Lsn>,
    /// It lost its WAL at least once.
    pub invalidated: Option<Cause>,
    /// How it came to be created.
    pub origin: Origin,
}

#[derive(Serialize, Deserialize)]
struct SlotText {
    name: String,
    restart_lsn: Option<String>,
    invalidated: Option<Cause>,
    origin: Origin,
}

impl SlotFile {
    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let text = SlotText {
            name: self.name.to_string(),
            restart_lsn: self.restart_lsn.map(|lsn| lsn.to_string()),
            invalidated: self.invalidated,
            origin: self.origin,
        };
        seal(KIND, VERSION, &text)
    }

    /// Reads the file's bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        let text: SlotText = unseal(KIND, VERSION, bytes)?;
        let wrong = |field: &str| Unreadable::Content(format!("invalid {field}"));
        let restart_lsn = text.restart_lsn.map(|lsn| lsn.parse()).transpose();
        Ok(Self {
            name: SlotName::parse(&text.name).map_err(|_| wrong("name"))?,
            restart_lsn: restart_lsn.map_err(|_| wrong("restart_lsn"))?,
            invalidated: text.invalidated,
            origin: text.origin,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        for (restart_lsn, invalidated, origin) in [
            (None, None, Origin::Asked),
            (Some(Lsn::new(0x16_0000_0028)), None, Origin::AutoCreated),
            (None, Some(Cause::IdleTimeout), Origin::Asked),
            (Some(Lsn::new(u64::MAX)), Some(Cause::WalRemoved), Origin::Asked),
        ] {
            let name = SlotName::parse(&"n".repeat(63)).unwrap();
            let file = SlotFile { name, restart_lsn, invalidated, origin };
            let bytes = file.encode();
            // It fits into one sector: a slot's file is replaced often.
            assert!(bytes.len() <= 512, "{}", bytes.len());
            assert_eq!(SlotFile::decode(&bytes), Ok(file));
        }
        assert!(SlotFile::decode(b"").is_err());
    }
}
