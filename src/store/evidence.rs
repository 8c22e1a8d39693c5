//! Evidence of two histories: a position at which an upstream or the archive had other bytes
//! than this hub. It is kept in `walhub.evidence`, beside the control file, so that neither the
//! next connection nor a restart forgets it. Bytes that were compared once are not necessarily
//! compared again, and from a later position on two histories can look the same.

use super::sealed_text::{Unreadable, seal, unseal};
use crate::wal::{Lsn, TimelineId};
use serde::{Deserialize, Serialize};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The archive as a source, whichever of its files had the other bytes.
pub const ARCHIVE: &str = "archive";

/// What the name of an archive's file as a source begins with.
const ARCHIVE_FILE: &str = "archive file ";

/// Where another source had other bytes than we.
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
    /// Another source was seen to have our bytes there: this stands against `upstream` alone.
    pub cleared: bool,
}

#[derive(Serialize, Deserialize)]
struct Text {
    timeline: u32,
    at: String,
    upstream: String,
    since_unix_ms: u64,
    detail: String,
    #[serde(default)]
    cleared: bool,
}

/// A file of the archive as a source.
pub fn in_archive(file: &str) -> String {
    format!("{ARCHIVE_FILE}\"{file}\"")
}

/// The source itself: the archive is one, whichever file is named.
fn origin(source: &str) -> &str {
    if source.starts_with(ARCHIVE_FILE) { ARCHIVE } else { source }
}

impl Evidence {
    /// Is nothing received from `source`, a host as in the log, or the archive, before it has
    /// shown our bytes at the place?
    pub fn bars(&self, source: &str) -> bool {
        !self.cleared || self.is_of(source)
    }

    /// Was it `source` that had the other bytes?
    pub fn is_of(&self, source: &str) -> bool {
        origin(&self.upstream) == origin(source)
    }

    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let since = self.since.duration_since(UNIX_EPOCH).unwrap_or_default();
        let text = Text {
            timeline: self.tli.raw(),
            at: self.at.to_string(),
            upstream: self.upstream.clone(),
            since_unix_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            detail: self.detail.clone(),
            cleared: self.cleared,
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
            cleared: text.cleared,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence(upstream: &str, cleared: bool) -> Evidence {
        Evidence {
            tli: TimelineId::FIRST,
            at: Lsn::new(0x500_2345),
            upstream: upstream.to_owned(),
            since: UNIX_EPOCH + Duration::from_millis(1_790_000_000_123),
            detail: "a \"b\"".to_owned(),
            cleared,
        }
    }

    #[test]
    fn cleared_evidence_bars_its_author_alone() {
        let of_db1 = |cleared| evidence("db1:5432", cleared);
        for source in ["db1:5432", "db2:5432", ARCHIVE] {
            assert!(of_db1(false).bars(source), "{source}");
            assert_eq!(of_db1(true).bars(source), source == "db1:5432", "{source}");
        }
        // The archive is one source, whichever file it was.
        let of_archive = evidence(&in_archive("000000010000000000000005"), true);
        assert!(of_archive.bars(ARCHIVE));
        assert!(of_archive.bars(&in_archive("000000010000000000000006")));
        assert!(!of_archive.bars("db1:5432"));
    }

    #[test]
    fn evidence_without_the_field_stands_against_everybody() {
        let text = Text {
            timeline: 1,
            at: "0/5002345".to_owned(),
            upstream: "db1:5432".to_owned(),
            since_unix_ms: 1,
            detail: String::new(),
            cleared: false,
        };
        let mut text = serde_json::to_value(text).unwrap();
        text.as_object_mut().unwrap().remove("cleared");
        assert!(!Evidence::decode(&seal("evidence", 1, &text)).unwrap().cleared);
    }

    #[test]
    fn round_trip() {
        let known = evidence("db1:5432", true);
        assert_eq!(Evidence::decode(&known.encode()), Ok(known.clone()));
        let mut bytes = known.encode();
        let last = bytes.len() - 3;
        bytes[last] ^= 1;
        assert!(Evidence::decode(&bytes).is_err());
        assert!(Evidence::decode(b"").is_err());
    }
}
