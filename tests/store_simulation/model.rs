//! The upstream's WAL: what the truth is.

use crate::random::Random;
use walhub::wal::synth::Synth;
use walhub::wal::{Lsn, SegmentSize, SystemId, TimelineId};

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const SYSTEM: SystemId = SystemId::new(0x7777_0001);
const MAGIC: u16 = 0xD110;

/// One history, which may be rewound to a record's end and go on in other words.
pub(crate) struct Model {
    /// The store begins here: a segment's start.
    pub(crate) start: Lsn,
    pub(crate) size: SegmentSize,
    bytes: Vec<u8>,
    /// After each record: its end, and the writer as it was.
    ends: Vec<(Lsn, Synth)>,
    sizes: Random,
    version: u8,
    target: Lsn,
    begins_inside: bool,
}

impl Model {
    pub(crate) fn new(mut random: Random, mib: u64) -> Self {
        let size = SegmentSize::new(MIB).unwrap();
        let start = Lsn::new((5 + random.below(3)) * MIB);
        // Half of the stores begin in the middle of a record, some of a long one.
        let before = match random.below(4) {
            0 | 1 => start,
            _ => start.saturating_sub(8192 * (1 + random.below(20))),
        };
        let mut synth = Synth::new(SYSTEM, size, TimelineId::FIRST, MAGIC, before);
        if before < start {
            let length = start.bytes_since(before) + random.below(3 * 8192) + 1;
            let extra = if random.chance(100) { MIB + random.below(MIB) } else { 0 };
            synth.record(&vec![3; (length + extra) as usize]);
        }
        let (_, mut bytes) = synth.take_bytes();
        bytes.drain(..start.bytes_since(before) as usize);
        let target = start.saturating_add(mib * MIB);
        let mut model = Self {
            start,
            size,
            bytes,
            ends: Vec::new(),
            sizes: random,
            version: 1,
            target,
            begins_inside: before < start,
        };
        if before < start {
            model.ends.push((synth.position(), synth.clone()));
        }
        model.write(synth);
        model
    }

    fn write(&mut self, mut synth: Synth) {
        let mut sizes = self.sizes.clone();
        while synth.position() < self.target {
            let payload = match sizes.below(40) {
                0..20 => 20 + sizes.below(300),
                20..34 => 1000 + sizes.below(9000),
                34..39 => sizes.below(40_000),
                _ if sizes.chance(60) => MIB + sizes.below(MIB / 2),
                _ => 8192,
            };
            if sizes.chance(5) {
                let start = synth.switch_segment();
                // The record ends before the zeros do; a start may find no more of it.
                let end = start.saturating_add(24);
                if end < synth.position() && end.page_start() == start.page_start() {
                    self.ends.push((end, synth.clone()));
                }
            } else {
                synth.record(&vec![self.version; payload as usize]);
            }
            let (_, bytes) = synth.take_bytes();
            self.bytes.extend_from_slice(&bytes);
            self.ends.push((synth.position(), synth.clone()));
        }
    }

    /// Does the store begin in the middle of a record?
    pub(crate) fn begins_inside(&self) -> bool {
        self.begins_inside
    }

    /// The end of everything.
    pub(crate) fn end(&self) -> Lsn {
        self.start.saturating_add(self.bytes.len() as u64)
    }

    /// The bytes `[from, to)`; zeros past the end.
    pub(crate) fn bytes(&self, from: Lsn, to: Lsn) -> Vec<u8> {
        let offset = |lsn: Lsn| (lsn.bytes_since(self.start) as usize).min(self.bytes.len());
        let mut bytes = self.bytes[offset(from)..offset(to)].to_vec();
        bytes.resize(to.bytes_since(from) as usize, 0);
        bytes
    }

    /// Where a message of about `length` bytes from `from` ends: at a record's end, or
    /// at a page boundary inside a record.
    pub(crate) fn message_end(&self, from: Lsn, length: u64, random: &mut Random) -> Lsn {
        let about = from.saturating_add(length).min(self.end());
        if random.chance(300) && about.page_start() > from {
            return about.page_start();
        }
        let index = self.ends.partition_point(|(end, _)| *end < about.max(from.saturating_add(1)));
        let end = self.ends.get(index).map_or(self.end(), |(end, _)| *end);
        // A message is 128 KiB at most; a long record comes in several.
        if end.bytes_since(from) <= 128 << 10 {
            end
        } else {
            from.saturating_add(128 << 10).page_start()
        }
    }

    /// The end of the last record that ends at or before `lsn`.
    pub(crate) fn last_end(&self, lsn: Lsn) -> Lsn {
        let index = self.ends.partition_point(|(end, _)| *end <= lsn);
        index.checked_sub(1).and_then(|i| self.ends.get(i)).map_or(self.start, |(end, _)| *end)
    }

    /// The start of the record that ends at `last_end(lsn)`, if it is ours.
    pub(crate) fn last_start(&self, lsn: Lsn) -> Option<Lsn> {
        let index = self.ends.partition_point(|(end, _)| *end <= lsn);
        let (_, synth) = self.ends.get(index.checked_sub(1)?)?;
        Some(synth.last_record()).filter(|start| *start >= self.start)
    }

    /// The history goes on in other words, laid out the same, past `lsn`, if that is
    /// a record's end. (A primary restored from a backup; nobody has seen what was
    /// there before.)
    pub(crate) fn rewind(&mut self, lsn: Lsn, random: &mut Random) {
        let Ok(index) = self.ends.binary_search_by_key(&lsn, |(end, _)| *end) else { return };
        let synth = self.ends[index].1.clone();
        if synth.position() != lsn {
            return;
        }
        let old: Vec<Lsn> = self.ends[index..].iter().map(|(end, _)| *end).collect();
        self.ends.truncate(index + 1);
        self.bytes.truncate(lsn.bytes_since(self.start) as usize);
        self.version = self.version.wrapping_add(1);
        let mut synth = synth;
        if random.chance(700) {
            // The same lengths again: every prev-link fits the old pages.
            for pair in old.windows(2).take(200) {
                let Some(again) = record_between(&synth, pair[0], pair[1], self.version) else {
                    break;
                };
                synth = again;
                let (_, bytes) = synth.take_bytes();
                self.bytes.extend_from_slice(&bytes);
                self.ends.push((synth.position(), synth.clone()));
            }
        }
        self.sizes = random.fork();
        self.write(synth);
    }
}

/// The writer behind a record of other content that lies exactly where the old one lay.
fn record_between(synth: &Synth, from: Lsn, to: Lsn, content: u8) -> Option<Synth> {
    if synth.position() != from {
        return None;
    }
    let pages = to.page_start().bytes_since(from.page_start()) / 8192;
    let most = to.bytes_since(from).checked_sub(24 * pages + 26)?;
    (0..16u64).filter_map(|less| most.checked_sub(less)).find_map(|length| {
        let mut again = synth.clone();
        again.record(&vec![content; length as usize]);
        (again.position() == to).then_some(again)
    })
}
