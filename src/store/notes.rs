//! Two small notes beside the control file.
//!
//! `walhub.begun`: how far the first bytes of this directory's WAL were durable before they were
//! served. The stream begins with the rest of a record whose checksum we can never verify;
//! recovery trusts that rest as far as the note says.
//!
//! `halted`: a sync failed. Linux has marked the pages clean, so what is cached may never have
//! reached the disk; the next start believes nothing past the mark.

use super::sealed_text::{Unreadable, seal, unseal};
use crate::wal::{Lsn, TimelineId};
use serde::{Deserialize, Serialize};

/// How far the first bytes were durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BegunNote {
    /// The timeline.
    pub tli: TimelineId,
    /// Where the directory's WAL of it begins.
    pub start: Lsn,
    /// Everything from `start` up to here was durable when this was written.
    pub upto: Lsn,
}

/// A sync failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HaltedNote {
    /// Everything below was durable before the failure.
    pub durable: Lsn,
    /// What happened.
    pub reason: String,
}

#[derive(Serialize, Deserialize)]
struct BegunText {
    timeline: u32,
    start: String,
    upto: String,
}

#[derive(Serialize, Deserialize)]
struct HaltedText {
    durable: String,
    reason: String,
}

impl BegunNote {
    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let (start, upto) = (self.start.to_string(), self.upto.to_string());
        seal("begun", 1, &BegunText { timeline: self.tli.raw(), start, upto })
    }

    /// Reads the file's bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        let text: BegunText = unseal("begun", 1, bytes)?;
        let wrong = |field: &str| Unreadable::Content(format!("invalid {field}"));
        Ok(Self {
            tli: TimelineId::new(text.timeline).ok_or_else(|| wrong("timeline"))?,
            start: text.start.parse().map_err(|_| wrong("start"))?,
            upto: text.upto.parse().map_err(|_| wrong("upto"))?,
        })
    }
}

impl HaltedNote {
    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let durable = self.durable.to_string();
        seal("halted", 1, &HaltedText { durable, reason: self.reason.clone() })
    }

    /// Reads the file's bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        let text: HaltedText = unseal("halted", 1, bytes)?;
        let durable = text.durable.parse();
        let durable = durable.map_err(|_| Unreadable::Content("invalid durable".to_owned()))?;
        Ok(Self { durable, reason: text.reason })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let begun = BegunNote {
            tli: TimelineId::FIRST,
            start: Lsn::new(1 << 24),
            upto: Lsn::new((1 << 24) + 77),
        };
        assert_eq!(BegunNote::decode(&begun.encode()), Ok(begun));
        let halted = HaltedNote { durable: begun.upto, reason: "fdatasync: EIO \"x\"".to_owned() };
        assert_eq!(HaltedNote::decode(&halted.encode()), Ok(halted.clone()));
        assert!(HaltedNote::decode(&begun.encode()).is_err());
        assert!(HaltedNote::decode(b"").is_err());
    }
}
