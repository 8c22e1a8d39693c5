//! Evidence of two histories: a position at which an upstream or the archive had other bytes
//! than this hub. It is kept in `walhub.evidence`, beside the control file, so that neither the
//! next connection nor a restart forgets it. Bytes that were compared once are not necessarily
//! compared again, and from a later position on two histories can look the same.

use super::sealed_text::{Unreadable, seal, unseal};
use crate::wal::{Lsn, TimelineId};
use serde::{Deserialize, Serialize};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A position where another source had other bytes than this hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// The timeline.
    pub tli: TimelineId,
    /// The first position that was seen to differ. We hold WAL there.
    pub at: Lsn,
    /// The source of the other bytes.
    pub upstream: String,
    /// When that was found.
    pub since: SystemTime,
    /// What differed.
    pub detail: String,
}

#[derive(Serialize, Deserialize)]
struct Text {
    timeline: u32,
    at: String,
    upstream: String,
    since_unix_ms: u64,
    detail: String,
}

impl Evidence {
    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let since = self.since.duration_since(UNIX_EPOCH).unwrap_or_default();
        let text = Text {
            timeline: self.tli.raw(),
            at: self.at.to_string(),
            upstream: self.upstream.clone(),
            since_unix_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            detail: self.detail.clone(),
        };
        seal("evidence", 1, &text)
    }

    /// Reads the file's bytes.
    ///
    /// # Errors
    /// Fails when the bytes are not those of such a file.
    pub fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        let text: Text = unseal("evidence", 1, bytes)?;
        let wrong = |field: &str| Unreadable::Content(format!("invalid {field}"));
        let since = UNIX_EPOCH.checked_add(Duration::from_millis(text.since_unix_ms));
        Ok(Self {
            tli: TimelineId::new(text.timeline).ok_or_else(|| wrong("timeline"))?,
            at: text.at.parse().map_err(|_| wrong("at"))?,
            upstream: text.upstream,
            since: since.ok_or_else(|| wrong("since_unix_ms"))?,
            detail: text.detail,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let known = Evidence {
            tli: TimelineId::FIRST,
            at: Lsn::new(0x500_2345),
            upstream: "db1:5432".to_owned(),
            since: UNIX_EPOCH + Duration::from_millis(1_790_000_000_123),
            detail: "a \"b\"".to_owned(),
        };
        assert_eq!(Evidence::decode(&known.encode()), Ok(known.clone()));
        let mut bytes = known.encode();
        let last = bytes.len() - 3;
        bytes[last] ^= 1;
        assert!(Evidence::decode(&bytes).is_err());
        assert!(Evidence::decode(b"").is_err());
    }
}
