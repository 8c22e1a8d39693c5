//! `walhub.scrub`: when all complete segments were read last, and which of them are damaged.
//!
//! Nothing depends on it but what is reported and when the next scrub is due. One that cannot be
//! read counts as missing: the next scrub finds the same again.

mod board;

pub use board::{ScrubBoard, ScrubCall, ScrubProgress};

use super::sealed_text::{Unreadable, seal, unseal};
use crate::wal::{Lsn, SegmentName, SegmentSize};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The most damaged segments that are remembered.
const MOST: usize = 1000;

/// What scrubs have found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScrubNote {
    /// The last one that read all segments.
    pub last: Option<LastScrub>,
    /// Damaged segments that were neither repaired nor removed, in the order in which they were
    /// found.
    damage: Vec<SegmentDamage>,
    /// Segments that were archived before they were mended here.
    stale: BTreeSet<SegmentName>,
    /// The first segment that a scrub under way, or cut short, has not read.
    unfinished: Option<SegmentName>,
}

/// A scrub that read all segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastScrub {
    /// When it had read them.
    pub ended: SystemTime,
    /// How many there were.
    pub segments: u64,
}

/// Damage in a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentDamage {
    /// The segment.
    pub name: SegmentName,
    /// Where the WAL begins that is not to be used.
    pub from: Lsn,
    /// What is wrong.
    pub what: String,
    /// When it was found.
    pub since: SystemTime,
}

impl ScrubNote {
    /// The damaged segments.
    pub fn damage(&self) -> &[SegmentDamage] {
        &self.damage
    }

    /// Adds damage, in the place of what was known of the segment. Returns whether nothing was.
    pub fn find(&mut self, damage: SegmentDamage) -> bool {
        match self.damage.iter_mut().find(|known| known.name == damage.name) {
            Some(known) => {
                known.from = damage.from;
                known.what = damage.what;
                false
            }
            None => {
                if self.damage.len() < MOST {
                    self.damage.push(damage);
                }
                true
            }
        }
    }

    /// The first segment that a scrub under way, or cut short by a restart, has not read.
    pub const fn unfinished(&self) -> Option<SegmentName> {
        self.unfinished
    }

    /// The segments that were archived before they were mended here.
    pub const fn stale(&self) -> &BTreeSet<SegmentName> {
        &self.stale
    }

    /// The archive has, or may have, the damaged bytes of a segment that was mended.
    pub fn is_stale(&mut self, name: SegmentName) {
        if self.stale.len() < MOST {
            self.stale.insert(name);
        }
    }

    /// Keeps only those that are still `stale`. Returns whether any went.
    pub fn retain_stale(&mut self, stale: impl Fn(SegmentName) -> bool) -> bool {
        let before = self.stale.len();
        self.stale.retain(|name| stale(*name));
        self.stale.len() < before
    }

    /// Removes the damage of segments that are not `damaged` any more. Returns whether there was
    /// any.
    pub fn mend(&mut self, damaged: impl Fn(SegmentName) -> bool) -> bool {
        let before = self.damage.len();
        self.damage.retain(|damage| damaged(damage.name));
        self.damage.len() < before
    }

    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let text = ScrubText {
            last: self.last.map(|last| LastText {
                ended_unix_ms: millis(last.ended),
                segments: last.segments,
            }),
            damage: self.damage.iter().map(DamageText::of).collect(),
            stale_in_archive: self.stale.iter().map(NameText::of).collect(),
            unfinished: self.unfinished.as_ref().map(NameText::of),
        };
        seal("scrub", 1, &text)
    }

    /// Reads the file's bytes.
    ///
    /// # Errors
    /// They are not those that were written.
    pub fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        let text: ScrubText = unseal("scrub", 1, bytes)?;
        let last = text.last.map(|last| {
            let ended = time(last.ended_unix_ms)?;
            Ok(LastScrub { ended, segments: last.segments })
        });
        let damage = text.damage.into_iter().map(DamageText::read);
        let stale = text.stale_in_archive.into_iter().map(NameText::read);
        Ok(Self {
            last: last.transpose()?,
            damage: damage.collect::<Result<_, _>>()?,
            stale: stale.collect::<Result<_, _>>()?,
            unfinished: text.unfinished.map(NameText::read).transpose()?,
        })
    }
}

#[derive(Serialize, Deserialize)]
struct ScrubText {
    last: Option<LastText>,
    damage: Vec<DamageText>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    stale_in_archive: Vec<NameText>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unfinished: Option<NameText>,
}

#[derive(Serialize, Deserialize)]
struct NameText {
    segment: String,
    wal_segment_size: u64,
}

impl NameText {
    fn of(name: &SegmentName) -> Self {
        Self { segment: name.to_string(), wal_segment_size: name.size.bytes() }
    }

    fn read(self) -> Result<SegmentName, Unreadable> {
        let size = SegmentSize::new(self.wal_segment_size);
        let name = size.and_then(|size| SegmentName::parse(&self.segment, size));
        name.ok_or_else(|| wrong("segment"))
    }
}

#[derive(Serialize, Deserialize)]
struct LastText {
    ended_unix_ms: u64,
    segments: u64,
}

#[derive(Serialize, Deserialize)]
struct DamageText {
    segment: String,
    wal_segment_size: u64,
    from: String,
    what: String,
    since_unix_ms: u64,
}

impl DamageText {
    fn of(damage: &SegmentDamage) -> Self {
        Self {
            segment: damage.name.to_string(),
            wal_segment_size: damage.name.size.bytes(),
            from: damage.from.to_string(),
            what: damage.what.clone(),
            since_unix_ms: millis(damage.since),
        }
    }

    fn read(self) -> Result<SegmentDamage, Unreadable> {
        let size = SegmentSize::new(self.wal_segment_size);
        let name = size.and_then(|size| SegmentName::parse(&self.segment, size));
        Ok(SegmentDamage {
            name: name.ok_or_else(|| wrong("segment"))?,
            from: self.from.parse().map_err(|_| wrong("from"))?,
            what: self.what,
            since: time(self.since_unix_ms)?,
        })
    }
}

fn wrong(field: &str) -> Unreadable {
    Unreadable::Content(format!("invalid {field}"))
}

fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn time(millis: u64) -> Result<SystemTime, Unreadable> {
    UNIX_EPOCH.checked_add(Duration::from_millis(millis)).ok_or_else(|| wrong("time"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::{SegmentNo, TimelineId};

    fn damage(no: u64, what: &str) -> SegmentDamage {
        let size = SegmentSize::new(1 << 20).unwrap();
        SegmentDamage {
            name: SegmentName { tli: TimelineId::FIRST, no: SegmentNo::new(no), size },
            from: Lsn::new(no << 20),
            what: what.to_owned(),
            since: UNIX_EPOCH + Duration::from_millis(1_790_000_000_123),
        }
    }

    #[test]
    fn a_segment_stands_once_until_it_is_mended() {
        let mut note = ScrubNote::default();
        assert!(note.find(damage(5, "a")) && note.find(damage(6, "b")));
        assert!(!note.find(damage(5, "c")));
        assert_eq!(note.damage(), [damage(5, "c"), damage(6, "b")]);
        assert!(!note.mend(|_| true));
        assert!(note.mend(|name| name.no.raw() == 6));
        assert_eq!(note.damage(), [damage(6, "b")]);
        for no in 0..2 * MOST as u64 {
            note.find(damage(no, "d"));
        }
        assert_eq!(note.damage().len(), MOST);
    }

    #[test]
    fn round_trip() {
        let ended = UNIX_EPOCH + Duration::from_millis(1_790_000_000_000);
        let last = Some(LastScrub { ended, segments: 7 });
        let mut note = ScrubNote { last, ..ScrubNote::default() };
        note.find(damage(5, "a \"quoted\" word"));
        note.is_stale(damage(6, "").name);
        note.unfinished = Some(damage(7, "").name);
        for note in [note, ScrubNote::default()] {
            assert_eq!(ScrubNote::decode(&note.encode()), Ok(note));
        }
        assert!(ScrubNote::decode(b"").is_err());
    }
}
