//! The disk: which bytes of which segment are written, and which would survive a crash. Contents
//! are not kept: everything written must be the truth.

use super::truth::{MIB, Truth};
use crate::wal::{Lsn, SegmentNo, SegmentSize};
use std::collections::BTreeMap;

/// What a file holds where no WAL was written.
pub(super) const JUNK: u8 = 0xE7;

/// Disjoint ranges of a segment, in order.
#[derive(Clone, Debug, Default)]
struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    fn remove(&mut self, from: u64, to: u64) {
        let cut = |(a, b): (u64, u64)| [(a, b.min(from)), (a.max(to), b)];
        self.0 = self.0.iter().flat_map(|range| cut(*range)).filter(|(a, b)| a < b).collect();
    }

    fn add(&mut self, from: u64, to: u64) {
        self.remove(from, to);
        self.0.push((from, to));
        self.0.sort_unstable();
        self.0.dedup_by(|next, last| {
            let joined = last.1 == next.0;
            if joined {
                last.1 = next.1;
            }
            joined
        });
        self.0.retain(|(a, b)| a < b);
    }

    /// Where the range that holds `at` ends.
    fn end_from(&self, at: u64) -> Option<u64> {
        self.0.iter().find(|(a, b)| *a <= at && at < *b).map(|(_, b)| *b)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Name {
    Partial,
    Final,
    Removed,
}

#[derive(Debug)]
struct File {
    written: Ranges,
    synced: Ranges,
    name: Name,
}

/// What an fdatasync that begins now will make durable.
#[derive(Debug)]
pub(super) struct Sync {
    segment: SegmentNo,
    covered: Ranges,
}

pub(super) struct Disk {
    truth: &'static Truth,
    size: SegmentSize,
    files: BTreeMap<SegmentNo, File>,
    oldest: Lsn,
    /// Everything from the beginning of the store to here survives a crash.
    durable: Lsn,
    /// In a new store, only what the note of its beginning covers, until that covers a whole
    /// record.
    noted: Option<Lsn>,
}

impl Disk {
    /// A disk with complete segments from `from` to `durable`, and a partial one.
    pub(super) fn new(truth: &'static Truth, from: Lsn, durable: Lsn) -> Self {
        let size = SegmentSize::new(MIB).unwrap();
        let mut files = BTreeMap::new();
        let mut at = from;
        while at < durable {
            let end = at.saturating_add(MIB).min(durable);
            let mut written = Ranges::default();
            written.add(0, end.bytes_since(at));
            let name = if end.bytes_since(at) == MIB { Name::Final } else { Name::Partial };
            files.insert(at.segment(size), File { synced: written.clone(), written, name });
            at = end;
        }
        let noted = (from == durable).then_some(from);
        Self { truth, size, files, oldest: from, durable, noted }
    }

    /// What survives a crash, and may be served.
    pub(super) fn durable(&self) -> Lsn {
        self.noted.map_or(self.durable, |noted| noted.min(self.durable))
    }

    /// What may be reported upstream as flushed.
    pub(super) fn flushed(&self) -> Lsn {
        let open = self.files.iter().find(|(_, file)| file.name == Name::Partial);
        let end = open.map_or(Lsn::MAX, |(no, _)| no.end(self.size).saturating_sub(1));
        self.durable().min(end)
    }

    pub(super) fn prepare(&mut self, no: SegmentNo, keep: Lsn) {
        let start = no.start(self.size);
        // WAL that was synced and never published is cleared.
        self.durable = self.durable.min(keep.max(start));
        let keep = keep.bytes_since(start).min(MIB);
        let new =
            || File { written: Ranges::default(), synced: Ranges::default(), name: Name::Partial };
        let file = self.files.entry(no).or_insert_with(new);
        assert_eq!(file.name, Name::Partial, "segment {} is prepared again", no.raw());
        file.written.remove(keep, MIB);
        file.synced = file.written.clone();
        // What an earlier attempt left after it.
        for (_, later) in self.files.range_mut(no.next()..) {
            later.written = Ranges::default();
            later.synced = Ranges::default();
        }
        self.look();
    }

    pub(super) fn finalize(&mut self, no: SegmentNo) {
        let file = self.files.get_mut(&no).expect("a segment that was prepared");
        assert_eq!(file.synced.end_from(0), Some(MIB), "I12: a final name for what is not durable");
        file.name = Name::Final;
    }

    pub(super) fn name(&self, no: SegmentNo) -> Name {
        self.files.get(&no).map_or(Name::Removed, |file| file.name)
    }

    /// Removes what lies before `horizon`.
    pub(super) fn remove_before(&mut self, horizon: SegmentNo) {
        for (no, file) in self.files.range_mut(..horizon) {
            if file.name == Name::Final {
                file.name = Name::Removed;
                self.oldest = no.end(self.size);
            }
        }
    }

    /// The oldest position that can be read.
    pub(super) fn oldest(&self) -> Lsn {
        self.oldest
    }

    /// Notes the beginning up to `upto`. Returns whether that covers a whole record's start.
    pub(super) fn note(&mut self, start: Lsn, upto: Lsn) -> bool {
        assert!(upto <= self.durable, "a note of what is not durable");
        let whole = self.truth.record_start(start) <= upto;
        self.noted = (!whole).then_some(upto);
        whole
    }

    /// A write took place. Its first bytes are the truth, the rest are zeros.
    pub(super) fn write(&mut self, no: SegmentNo, offset: u64, bytes: &[u8], count: usize) {
        let at = no.start(self.size).saturating_add(offset);
        let good = self.truth.matching(at, bytes);
        assert!(
            bytes[good..].iter().all(|byte| *byte == 0),
            "I4: false bytes past {at} are written"
        );
        let file = self.files.get_mut(&no).expect("a segment that was prepared");
        assert_eq!(file.name, Name::Partial, "I12: segment {} is written after its end", no.raw());
        let (good, end) = (offset + good.min(count) as u64, offset + count as u64);
        file.written.add(offset, good);
        file.written.remove(good, end);
        file.synced.remove(good, end);
        let here = self.durable.bytes_since(no.start(self.size));
        let overwritten = self.durable >= no.start(self.size) && good < here && here <= end;
        assert!(!overwritten, "I7: durable WAL before {} is overwritten", self.durable);
    }

    pub(super) fn begin_sync(&self, no: SegmentNo) -> Sync {
        Sync { segment: no, covered: self.files[&no].written.clone() }
    }

    pub(super) fn end_sync(&mut self, sync: &Sync) {
        let file = self.files.get_mut(&sync.segment).expect("a segment that was prepared");
        for (from, to) in &sync.covered.0 {
            file.synced.add(*from, *to);
        }
        self.look();
    }

    fn look(&mut self) {
        loop {
            let no = self.durable.segment(self.size);
            let start = no.start(self.size);
            let at = self.durable.bytes_since(start);
            match self.files.get(&no).and_then(|file| file.synced.end_from(at)) {
                Some(end) => self.durable = start.saturating_add(end),
                None => return,
            }
        }
    }

    /// What a read returns.
    pub(super) fn read(&self, no: SegmentNo, offset: u64, len: usize) -> Vec<u8> {
        let len = len.min((MIB - offset) as usize);
        let at = no.start(self.size).saturating_add(offset);
        let mut bytes = vec![JUNK; len];
        for (from, to) in self.files.get(&no).map_or(&[][..], |file| &file.written.0) {
            let (from, to) = ((*from).max(offset), (*to).min(offset + len as u64));
            if from < to {
                let (a, b) = ((from - offset) as usize, (to - offset) as usize);
                let truth = self.truth.bytes(at.saturating_add(from - offset), b - a);
                bytes[a..b].copy_from_slice(truth);
            }
        }
        bytes
    }
}
