//! What a walk keeps of a record that it has not fully seen.

use crate::wal::lsn::Lsn;
use crate::wal::record::{RECORD_HEADER, RecordHeader, TIMELINE_OFFSET, finish_crc};

/// Bytes of a record's body that are kept: enough for a timeline that it may name, for the time of a
/// commit, and for what a checkpoint says.
const OPENING: usize = 80;

/// A record of which some bytes are here: its header, the first bytes of its body, and the running
/// CRC of the body.
#[derive(Clone, Debug)]
pub(super) struct Partial {
    pub(super) start: Lsn,
    head: [u8; RECORD_HEADER],
    opening: [u8; OPENING],
    have: u32,
    crc: u32,
}

impl Partial {
    /// Records are 8-byte aligned, so the length lies on the page where they start.
    pub(super) const LENGTH_KNOWN: u32 = 8;

    pub(super) const fn start(start: Lsn) -> Self {
        Self { start, head: [0; RECORD_HEADER], opening: [0; OPENING], have: 0, crc: 0 }
    }

    /// Takes bytes that do not reach past [`Partial::next_check`].
    pub(super) fn take(&mut self, piece: &[u8]) {
        let have = self.have as usize;
        if have < RECORD_HEADER {
            lay(&mut self.head, have, piece);
        } else if self.have < self.tot_len() {
            self.crc = crc32c::crc32c_append(self.crc, piece);
            // Nothing is laid where there is no room.
            lay(&mut self.opening, have.saturating_sub(RECORD_HEADER), piece);
        }
        self.have = self.have.saturating_add(u32::try_from(piece.len()).unwrap_or(u32::MAX));
    }

    /// Bytes of the record at which the walk must check next.
    pub(super) fn next_check(&self) -> u32 {
        let marks = [Self::LENGTH_KNOWN, RECORD_HEADER as u32, self.tot_len()];
        marks.into_iter().find(|mark| self.have < *mark).unwrap_or(self.padded_len())
    }

    pub(super) const fn have(&self) -> u32 {
        self.have
    }

    /// What `xlp_rem_len` of the next page must say.
    pub(super) fn left(&self) -> u32 {
        self.tot_len().saturating_sub(self.have)
    }

    pub(super) fn padded_len(&self) -> u32 {
        self.tot_len().saturating_add(7) & !7
    }

    /// Fields are zero where the header is not here yet.
    pub(super) fn header(&self) -> RecordHeader {
        RecordHeader::parse(&self.head)
    }

    pub(super) fn is_zero(&self) -> bool {
        self.head == [0; RECORD_HEADER]
    }

    pub(super) fn crc(&self) -> u32 {
        finish_crc(self.crc, &self.head)
    }

    /// The first bytes of the body; zeros where it is shorter, or not here yet.
    pub(super) const fn opening(&self) -> &[u8] {
        &self.opening
    }

    /// The timeline that the record names, if it names one.
    pub(super) fn timeline(&self) -> u32 {
        let bytes = self.opening.get(TIMELINE_OFFSET - RECORD_HEADER..);
        bytes.and_then(|bytes| bytes.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes))
    }

    fn tot_len(&self) -> u32 {
        self.header().tot_len
    }
}

/// A record that begins before the walk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Skipped {
    whole: u32,
    left: u32,
    tail: [u8; 8],
}

impl Skipped {
    pub(super) const fn new(rem_len: u32) -> Self {
        Self { whole: rem_len, left: rem_len, tail: [0; 8] }
    }

    pub(super) const fn left(&self) -> u32 {
        self.left
    }

    /// Takes bytes, at most as many as are left.
    pub(super) fn take(&mut self, piece: &[u8]) {
        if let Some(at) = 8usize.checked_sub(self.left as usize) {
            lay(&mut self.tail, at, piece);
        } else if let Some(ahead) = (self.left as usize).checked_sub(8) {
            lay(&mut self.tail, 0, piece.get(ahead..).unwrap_or_default());
        }
        self.left = self.left.saturating_sub(u32::try_from(piece.len()).unwrap_or(u32::MAX));
    }

    /// Whether this was the end of a bare record header, and that of an XLOG_SWITCH. The last eight
    /// bytes of a header are info, rmid, padding and CRC.
    pub(super) fn may_be_switch(&self) -> bool {
        let [info, rmid, pad0, pad1, ..] = self.tail;
        let mut head = [0; RECORD_HEADER];
        lay(&mut head, 16, &[info, rmid]);
        matches!(self.whole, 8 | 16)
            && [pad0, pad1] == [0, 0]
            && RecordHeader::parse(&head).is_switch()
    }
}

/// Copies `piece` into `into` from `at` on, as far as there is room.
fn lay(into: &mut [u8], at: usize, piece: &[u8]) {
    for (to, from) in into.iter_mut().skip(at).zip(piece) {
        *to = *from;
    }
}
