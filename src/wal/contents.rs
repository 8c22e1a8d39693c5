//! What the WAL of a segment says of its place in the life of the cluster: from when to when it was
//! written, and which transaction ID comes next.
//!
//! Only records count that lie whole in the segment. So a segment may say less than a walk over
//! several would.

use super::Lsn;
use super::record::{NamedXid, RecordHeader, named_xid, written_at};
use super::walk::RecordNotes;
use std::fmt;

/// `FirstNormalTransactionId`; those before it are no transaction's.
const FIRST_NORMAL: u32 = 3;

/// What is known; by default nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentContents {
    /// The next transaction ID at the end, as far as the records name it.
    pub next_xid: Option<NextXid>,
    /// The first and the last record that says when it was written.
    pub stamps: Option<(Stamp, Stamp)>,
}

/// A record that says when it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Where it begins.
    pub at: Lsn,
    /// When that was, in microseconds since 2000.
    pub time: i64,
}

/// The next transaction ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextXid {
    /// How often the numbers have begun again. Only checkpoints say that.
    pub epoch: Option<u32>,
    /// The number.
    pub xid: u32,
}

/// As pg_controldata prints it.
impl fmt::Display for NextXid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.epoch {
            Some(epoch) => write!(f, "{epoch}:{}", self.xid),
            None => write!(f, "{} of an unknown epoch", self.xid),
        }
    }
}

impl NextXid {
    fn of_full(full: u64) -> Self {
        let [a, b, c, d, e, f, g, h] = full.to_le_bytes();
        Self {
            epoch: Some(u32::from_le_bytes([e, f, g, h])),
            xid: u32::from_le_bytes([a, b, c, d]),
        }
    }

    /// The later of the two, where `later` was named after this one: with an epoch if either has
    /// one.
    fn then(self, later: Self) -> Self {
        let (early, late) = match precedes(self.xid, later.xid) {
            true => (self, later),
            // A record may name one that others have passed.
            false => (later, self),
        };
        let wrapped = u32::from(late.xid < early.xid);
        let counted = || early.epoch.map(|epoch| epoch.wrapping_add(wrapped));
        Self { epoch: late.epoch.or_else(counted), xid: late.xid }
    }
}

/// `TransactionIdPrecedes`.
fn precedes(xid: u32, other: u32) -> bool {
    (1..0x8000_0000).contains(&other.wrapping_sub(xid))
}

impl SegmentContents {
    /// What both say, where `next` comes after this one.
    pub fn and(self, next: Self) -> Self {
        let stamps = match (self.stamps, next.stamps) {
            (Some((first, _)), Some((_, last))) => Some((first, last)),
            (one, other) => one.or(other),
        };
        let next_xid = match (self.next_xid, next.next_xid) {
            (Some(early), Some(late)) => Some(early.then(late)),
            (one, other) => one.or(other),
        };
        Self { next_xid, stamps }
    }
}

impl RecordNotes for SegmentContents {
    fn note(&mut self, at: Lsn, header: &RecordHeader, body: &[u8]) {
        if let Some(time) = written_at(header, body) {
            let stamp = Stamp { at, time };
            self.stamps = Some((self.stamps.map_or(stamp, |(first, _)| first), stamp));
        }
        let named = match named_xid(header, body) {
            Some(NamedXid::Full(full)) => NextXid::of_full(full),
            Some(NamedXid::Next(xid)) => NextXid { epoch: None, xid },
            Some(NamedXid::Given(xid)) if xid >= FIRST_NORMAL => {
                NextXid { epoch: None, xid: xid.checked_add(1).unwrap_or(FIRST_NORMAL) }
            }
            Some(NamedXid::Given(_)) | None => return,
        };
        self.next_xid = Some(self.next_xid.map_or(named, |known| known.then(named)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::page::PageRules;
    use crate::wal::record::{RECORD_HEADER, RM_STANDBY, RM_XACT, RM_XLOG};
    use crate::wal::synth::Synth;
    use crate::wal::walk::Walker;
    use crate::wal::{SegmentSize, SystemId, TimelineId};

    const START: Lsn = Lsn::new(5 << 20);

    fn note(contents: &mut SegmentContents, rmid: u8, info: u8, xid: u32, data: &[u8]) {
        let header = RecordHeader::parse(&[0; RECORD_HEADER]);
        let header = RecordHeader { rmid, info, xid, ..header };
        let mut body = vec![255, data.len() as u8];
        body.extend_from_slice(data);
        contents.note(START, &header, &body);
    }

    /// A CheckPoint of version 13 or newer.
    fn checkpoint(next: u64, seconds: i64) -> Vec<u8> {
        let mut data = vec![0; 88];
        data[24..32].copy_from_slice(&next.to_le_bytes());
        data[64..72].copy_from_slice(&seconds.to_le_bytes());
        data
    }

    #[test]
    fn the_next_xid_grows_over_the_end_of_the_numbers() {
        let mut contents = SegmentContents::default();
        let next = |epoch, xid| Some(NextXid { epoch, xid });
        note(&mut contents, 10, 0, 0xFFFF_FF00, &[]);
        assert_eq!(contents.next_xid, next(None, 0xFFFF_FF01));
        // Nothing of before: it was written by a transaction that began earlier.
        note(&mut contents, 10, 0, 0xFFFF_FE00, &[]);
        assert_eq!(contents.next_xid, next(None, 0xFFFF_FF01));
        // A checkpoint that others have passed says which epoch it is.
        note(&mut contents, RM_XLOG, 0x10, 0, &checkpoint((7 << 32) | 0xFFFF_FE80, 0));
        assert_eq!(contents.next_xid, next(Some(7), 0xFFFF_FF01));
        note(&mut contents, 10, 0, u32::MAX, &[]);
        assert_eq!(contents.next_xid, next(Some(8), 3));
        let mut running = vec![0; 24];
        running[12..16].copy_from_slice(&90_u32.to_le_bytes());
        note(&mut contents, RM_STANDBY, 0x10, 0, &running);
        assert_eq!(contents.next_xid, next(Some(8), 90));
        // Of bootstrap, and of none.
        note(&mut contents, 10, 0, 1, &[]);
        note(&mut contents, 10, 0, 0, &[]);
        assert_eq!(contents.next_xid, next(Some(8), 90));
        let after = SegmentContents { next_xid: next(None, 200), stamps: None };
        assert_eq!(contents.and(after).next_xid, next(Some(8), 200));
        assert_eq!(contents.and(SegmentContents::default()), contents);
        let early = SegmentContents { next_xid: next(Some(7), 0xFFFF_0000), stamps: None };
        assert_eq!(early.and(after).next_xid, next(Some(8), 200));
    }

    #[test]
    fn each_kind_of_record_says_when_it_was_written() {
        let time = 800_000_000_000_000_i64;
        let mut prepare = vec![0; 40];
        prepare[16..24].copy_from_slice(&time.to_le_bytes());
        let seconds = time / 1_000_000 + 946_684_800;
        for (rmid, info, data) in [
            (RM_XACT, 0x80, time.to_le_bytes().to_vec()),
            (RM_XACT, 0x20, time.to_le_bytes().to_vec()),
            (RM_XACT, 0x10, prepare),
            (RM_XLOG, 0x00, checkpoint(5, seconds)),
            (RM_XLOG, 0x90, time.to_le_bytes().to_vec()),
        ] {
            let mut contents = SegmentContents::default();
            note(&mut contents, rmid, info, 0, &data);
            let stamp = Stamp { at: START, time };
            assert_eq!(contents.stamps, Some((stamp, stamp)), "{rmid} {info:#x}");
        }
    }

    /// However the pages cut the records.
    #[test]
    fn a_walk_notes_the_first_and_the_last_time() {
        let (system, size) = (SystemId::new(7), SegmentSize::new(1 << 20).unwrap());
        let mut synth = Synth::new(system, size, TimelineId::FIRST, 0xD110, START);
        let mut commits = Vec::new();
        for n in 0..3000 {
            synth.record(&[7; 101]);
            commits.push(Stamp {
                at: synth.commit(100 + n, i64::from(n) * 1000),
                time: i64::from(n) * 1000,
            });
        }
        let bytes = synth.take_bytes().1;
        let rules = PageRules { system, size, tli: TimelineId::FIRST, magic: None, fork: None };
        let mut walker = Walker::noting(rules, START, SegmentContents::default());
        for piece in bytes.chunks(1000) {
            assert_eq!(walker.feed(piece), Ok(()));
        }
        let contents = walker.into_notes();
        assert_eq!(contents.stamps, Some((commits[0], commits[2999])));
        assert_eq!(contents.next_xid, Some(NextXid { epoch: None, xid: 3100 }));
    }
}
