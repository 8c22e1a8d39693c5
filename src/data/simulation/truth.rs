//! The upstream's WAL, which is the truth. Generated once, shared by all worlds.

use super::random::Random;
use crate::wal::synth::Synth;
use crate::wal::{Lsn, SegmentSize, SystemId, TimelineId};
use std::sync::OnceLock;

pub(super) const MIB: u64 = 1 << 20;
pub(super) const SYSTEM: SystemId = SystemId::new(0x7777_0002);
const MAGIC: u16 = 0xD110;
const START: Lsn = Lsn::new(3 * MIB);
const SEGMENTS: u64 = 16;
/// The most WAL that PostgreSQL puts into one message.
const MAX_MESSAGE: u64 = 128 << 10;

/// One history.
#[derive(Debug)]
pub(super) struct Truth {
    bytes: Vec<u8>,
    starts: Vec<Lsn>,
    ends: Vec<Lsn>,
}

/// Small commits; the usual mixture; long records.
static HISTORIES: OnceLock<[Truth; 3]> = OnceLock::new();

impl Truth {
    pub(super) fn any(random: &mut Random) -> &'static Self {
        let histories = HISTORIES.get_or_init(|| [0, 1, 2].map(Self::write));
        &histories[random.below(3) as usize]
    }

    fn write(kind: u64) -> Self {
        let mut random = Random::new(0xC0FFEE + kind);
        let size = SegmentSize::new(MIB).unwrap();
        let mut synth = Synth::new(SYSTEM, size, TimelineId::FIRST, MAGIC, START);
        let mut truth = Self { bytes: Vec::new(), starts: Vec::new(), ends: Vec::new() };
        let target = START.saturating_add(SEGMENTS * MIB);
        while synth.position() < target {
            let payload = match (kind, random.below(40)) {
                (0, _) => 20 + random.below(300),
                (2, 0) => MIB + random.below(MIB),
                (_, 0..20) => 20 + random.below(300),
                (_, 20..34) => 1000 + random.below(9000),
                (_, _) => random.below(40_000),
            };
            let record = if random.chance(1) {
                synth.switch_segment()
            } else {
                synth.record(&vec![random.next() as u8; payload as usize])
            };
            truth.starts.push(record);
            truth.ends.push(synth.position());
            truth.bytes.extend_from_slice(&synth.take_bytes().1);
        }
        truth
    }

    pub(super) fn segment(&self, n: u64) -> Lsn {
        START.saturating_add(n * MIB)
    }

    /// The end of the WAL.
    pub(super) fn end(&self) -> Lsn {
        START.saturating_add(SEGMENTS * MIB)
    }

    /// The bytes from `at` on, at most `len`.
    pub(super) fn bytes(&self, at: Lsn, len: usize) -> &[u8] {
        let from = at.bytes_since(START) as usize;
        &self.bytes[from..(from + len).min(self.bytes.len())]
    }

    /// How many of `bytes`, at position `at`, match the truth.
    pub(super) fn matching(&self, at: Lsn, bytes: &[u8]) -> usize {
        let truth = self.bytes(at, bytes.len());
        if truth == bytes {
            return bytes.len();
        }
        truth.iter().zip(bytes).take_while(|(ours, theirs)| ours == theirs).count()
    }

    /// The end of the last record that ends at or before `at`.
    pub(super) fn record_end(&self, at: Lsn) -> Lsn {
        let n = self.ends.partition_point(|end| *end <= at);
        n.checked_sub(1).map_or(START, |n| self.ends[n])
    }

    /// The start of the first record at or past `at`.
    pub(super) fn record_start(&self, at: Lsn) -> Lsn {
        let n = self.starts.partition_point(|start| *start < at);
        self.starts.get(n).copied().unwrap_or(self.end())
    }

    /// Where a message from `from` of about `length` bytes ends: at a record's end, or
    /// at a page boundary inside a record.
    pub(super) fn message_end(&self, from: Lsn, length: u64, to: Lsn) -> Lsn {
        let about = from.saturating_add(length.clamp(1, MAX_MESSAGE)).min(to);
        let record = self.record_end(about);
        if record > from {
            record
        } else if about.page_start() > from {
            about.page_start()
        } else {
            let n = self.ends.partition_point(|end| *end <= from);
            let page = about.page_start().saturating_add(8192);
            self.ends.get(n).copied().unwrap_or(page).min(page).min(to)
        }
    }
}
