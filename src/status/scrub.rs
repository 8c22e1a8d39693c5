//! What scrubs of the complete segments have found.

use super::form;
use crate::wal::Lsn;
use crate::wire::date::date_millis;
use serde::{Deserialize, Serialize};
use std::time::SystemTime;

/// What scrubs of the complete segments have found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ScrubStatus {
    /// When the last one ended that read all segments.
    #[serde(default, with = "form::optional")]
    pub last_ended: Option<SystemTime>,
    /// How many segments that one read.
    pub last_segments: Option<u64>,
    /// How many segments the one under way has read; null when none is.
    pub segments_read: Option<u64>,
    /// How many it reads in all.
    pub segments: Option<u64>,
    /// The damaged segments that were neither repaired nor removed.
    pub damaged: Vec<DamagedSegment>,
    /// Segments that were archived before they were mended here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stale_in_archive: Vec<String>,
}

/// A damaged segment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DamagedSegment {
    /// Its name.
    pub segment: String,
    /// WAL from here on is not served from it.
    #[serde(with = "form::plain")]
    pub from_lsn: Lsn,
    /// What is wrong.
    pub text: String,
    /// When it was found.
    #[serde(with = "form::plain")]
    pub since: SystemTime,
}

impl ScrubStatus {
    /// In one sentence.
    pub fn in_words(&self) -> String {
        let last = match (self.last_ended, self.last_segments) {
            (Some(ended), Some(segments)) => {
                let ended = date_millis(ended);
                format!("last completed {ended}, {}", counted(segments))
            }
            _ => "none completed yet".to_owned(),
        };
        let damaged = match self.damaged.len() as u64 {
            0 => String::new(),
            damaged => format!("; {} damaged", counted(damaged)),
        };
        let under_way = match (self.segments_read, self.segments) {
            (Some(read), Some(all)) => format!("; under way, {read} of {all} read"),
            _ => String::new(),
        };
        let stale = match self.stale_in_archive.as_slice() {
            [] => String::new(),
            stale => format!("; archived before they were mended: {}", stale.join(", ")),
        };
        format!("{last}{damaged}{stale}{under_way}")
    }
}

impl DamagedSegment {
    /// In one sentence.
    pub fn in_words(&self) -> String {
        let Self { segment, from_lsn, text, since } = self;
        format!("{segment} from {from_lsn} on, found at {}: {text}", date_millis(*since))
    }
}

fn counted(segments: u64) -> String {
    match segments {
        1 => "1 segment".to_owned(),
        _ => format!("{segments} segments"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_archive_has_to_get_is_named() {
        let name = "000000030000000100000002".to_owned();
        let status = ScrubStatus { stale_in_archive: vec![name.clone()], ..Default::default() };
        let words = format!("none completed yet; archived before they were mended: {name}");
        assert_eq!(status.in_words(), words);
        let json = serde_json::to_value(ScrubStatus::default()).unwrap();
        assert_eq!(json.get("stale_in_archive"), None, "as before where there is none");
    }
}
