//! Writes valid WAL without a server, for tests and for the load generator's primary.
//!
//! The output is laid out and chained as PostgreSQL does it, and pg_waldump reads it. It cannot be
//! replayed: most records mean nothing (`XLOG_NOOP` with data), and the pages in the images belong
//! to no table.

use super::ids::{SystemId, TimelineId};
use super::lsn::Lsn;
use super::page::{LongHeader, PAGE_SIZE, PageHeader, PageInfo};
use super::record::{RECORD_HEADER, RM_XACT, RM_XLOG, RecordHeader, finish_crc, xlog_info};
use super::segment::SegmentSize;

/// Bytes of the WAL that [`Synth::commit`] writes, without page headers.
pub const COMMIT_RECORD: u64 = 40;

/// `XLR_BLOCK_ID_DATA_SHORT`
const DATA_SHORT: u8 = 255;

/// What a record is, without its payload.
#[derive(Clone, Copy, Debug)]
struct RecordId {
    rmid: u8,
    info: u8,
    xid: u32,
}

impl RecordId {
    const fn xlog(info: u8) -> Self {
        Self { rmid: RM_XLOG, info, xid: 0 }
    }
}

/// Writes WAL into memory, on one timeline after another.
#[derive(Clone, Debug)]
pub struct Synth {
    system: SystemId,
    size: SegmentSize,
    tli: TimelineId,
    magic: u16,
    at: Lsn,
    prev: Lsn,
    /// Flags for the next page header, besides those that the layout requires.
    flags: u16,
    taken: Lsn,
    bytes: Vec<u8>,
}

impl Synth {
    /// Starts at the page boundary `start`, as if the log began there.
    ///
    /// # Panics
    /// When `start` is not a page boundary.
    pub fn new(
        system: SystemId,
        size: SegmentSize,
        tli: TimelineId,
        magic: u16,
        start: Lsn,
    ) -> Self {
        assert!(start.page_offset() == 0, "WAL is written from a page boundary, not {start}");
        Self {
            system,
            size,
            tli,
            magic,
            at: start,
            prev: Lsn::INVALID,
            flags: 0,
            taken: start,
            bytes: Vec::new(),
        }
    }

    /// Writes a record that carries `payload`; returns its start. It is 26 or 29 bytes
    /// longer than the payload (24 when that is empty).
    pub fn record(&mut self, payload: &[u8]) -> Lsn {
        self.data_record(xlog_info::NOOP, payload)
    }

    /// Writes the commit of `xid` at `time` (microseconds since 2000); returns the record's start.
    /// It takes [`COMMIT_RECORD`] bytes, without page headers.
    pub fn commit(&mut self, xid: u32, time: i64) -> Lsn {
        /// `XLOG_XACT_COMMIT`
        const COMMIT: u8 = 0x00;
        let id = RecordId { rmid: RM_XACT, info: COMMIT, xid };
        self.write(id, [&[DATA_SHORT, 8], &time.to_le_bytes(), &[]])
    }

    /// Writes an `XLOG_FPI`, the image of one page of a table that does not exist;
    /// returns the record's start.
    ///
    /// # Panics
    /// When `image` is not a page of 8 KiB.
    pub fn image(&mut self, relation: u32, block: u32, image: &[u8]) -> Lsn {
        /// Block reference 0, main fork with an image, no data of its own. The image has 8192
        /// bytes, no hole and no flags (which differ between major versions).
        const BLOCK: [u8; 9] = [0, 0x10, 0, 0, 0, 0x20, 0, 0, 0];
        assert!(image.len() == PAGE_SIZE, "the image of a page has {PAGE_SIZE} bytes");
        let mut head = [0; BLOCK.len() + 16];
        let fields = [
            &BLOCK[..],
            // pg_default, and the database that initdb creates first.
            &1663u32.to_le_bytes(),
            &1u32.to_le_bytes(),
            &relation.to_le_bytes(),
            &block.to_le_bytes(),
        ];
        for (to, from) in head.iter_mut().zip(fields.into_iter().flatten()) {
            *to = *from;
        }
        self.write(RecordId::xlog(xlog_info::FPI), [&head, image, &[]])
    }

    /// Writes a record whose body is exactly `body`; returns its start. The record is
    /// 24 bytes longer.
    pub fn raw_record(&mut self, rmid: u8, info: u8, body: &[u8]) -> Lsn {
        self.write(RecordId { rmid, info, xid: 0 }, [body, &[], &[]])
    }

    /// Writes an XLOG_SWITCH and the zeros to the end of the segment (`pg_switch_wal`);
    /// returns the record's start.
    pub fn switch_segment(&mut self) -> Lsn {
        let start = self.raw_record(RM_XLOG, xlog_info::SWITCH, &[]);
        if self.at.segment_offset(self.size) != 0 {
            self.zeros_to(self.at.segment(self.size).end(self.size));
        }
        start
    }

    /// Crashes in the middle of a record that carries `payload`, after writing everything up to the
    /// `pages`-th page boundary, and recovers: the next page says that the record was abandoned.
    /// Returns the start of the lost record.
    ///
    /// # Panics
    /// When the record does not reach that far.
    pub fn lose_record(&mut self, payload: &[u8], pages: u64) -> Lsn {
        let prev = self.prev;
        let lost = self.record(payload);
        let cut = lost.page_start().saturating_add(pages.saturating_mul(PAGE_SIZE as u64));
        assert!(lost < cut && cut < self.at, "a record at {lost} does not reach beyond {cut}");
        self.bytes.truncate(self.offset_of(cut));
        self.at = cut;
        self.prev = prev;
        self.flags = PageInfo::FIRST_IS_OVERWRITE_CONTRECORD;
        let time = [0; 8];
        let body = [lost.raw().to_le_bytes(), time].concat();
        self.data_record(xlog_info::OVERWRITE_CONTRECORD, &body);
        lost
    }

    /// Promotes: what follows is on `tli`, which starts here. Returns the switchpoint.
    pub fn promote(&mut self, tli: TimelineId) -> Lsn {
        let switchpoint = self.at;
        let time = [0; 8];
        let (this, previous) = (tli.raw().to_le_bytes(), self.tli.raw().to_le_bytes());
        self.tli = tli;
        let body = [&time[..], &this[..], &previous[..]].concat();
        self.data_record(xlog_info::END_OF_RECOVERY, &body);
        switchpoint
    }

    /// Where the next record goes: the end of the last one.
    pub const fn position(&self) -> Lsn {
        self.at
    }

    /// Start of the last record; 0/0 before the first.
    pub const fn last_record(&self) -> Lsn {
        self.prev
    }

    /// Reserves room for `bytes` more, so that writing them does not reallocate.
    pub fn reserve(&mut self, bytes: usize) {
        self.bytes.reserve(bytes);
    }

    /// What was written since the last call, and where it begins.
    pub fn take_bytes(&mut self) -> (Lsn, Vec<u8>) {
        let start = std::mem::replace(&mut self.taken, self.at);
        (start, std::mem::take(&mut self.bytes))
    }

    fn data_record(&mut self, info: u8, payload: &[u8]) -> Lsn {
        /// `XLR_BLOCK_ID_DATA_LONG`
        const LONG: u8 = 254;
        let id = RecordId::xlog(info);
        match u8::try_from(payload.len()) {
            Ok(0) => self.write(id, [&[], &[], &[]]),
            Ok(len) => self.write(id, [&[DATA_SHORT, len], &[], payload]),
            Err(_) => {
                let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
                self.write(id, [&[LONG], &len.to_le_bytes(), payload])
            }
        }
    }

    /// Writes a record after the last. Its body comes in parts so that no caller has to join them
    /// first.
    fn write(&mut self, id: RecordId, body: [&[u8]; 3]) -> Lsn {
        let mut crc = 0;
        let mut len = RECORD_HEADER;
        for part in body.iter().filter(|part| !part.is_empty()) {
            crc = crc32c::crc32c_append(crc, part);
            len = len.saturating_add(part.len());
        }
        let tot_len = u32::try_from(len).unwrap_or(u32::MAX);
        let RecordId { rmid, info, xid } = id;
        let header = RecordHeader { tot_len, xid, prev: self.prev, info, rmid, crc: 0 };
        let header = RecordHeader { crc: finish_crc(crc, &header.to_bytes()), ..header }.to_bytes();
        if self.at.page_offset() == 0 {
            self.page_header(0);
        }
        let start = self.at;
        let mut left = len;
        for part in [&header[..]].into_iter().chain(body) {
            left = self.spread(part, left);
        }
        self.zeros_to(self.at.align8());
        self.prev = start;
        start
    }

    /// Lays a part of a record over as many pages as it takes. `left` bytes of the record are still
    /// to come, including this part; returns how many come after it.
    fn spread(&mut self, part: &[u8], mut left: usize) -> usize {
        let mut rest = part;
        while !rest.is_empty() {
            if self.at.page_offset() == 0 {
                self.page_header(left);
            }
            let room = PAGE_SIZE.saturating_sub(self.at.page_offset());
            let (piece, after) = rest.split_at(room.min(rest.len()));
            self.bytes.extend_from_slice(piece);
            self.at = self.at.saturating_add(piece.len() as u64);
            left = left.saturating_sub(piece.len());
            rest = after;
        }
        left
    }

    fn page_header(&mut self, rem_len: usize) {
        let mut info = std::mem::take(&mut self.flags);
        if rem_len > 0 {
            info |= PageInfo::FIRST_IS_CONTRECORD;
        }
        let long = (self.at.segment_offset(self.size) == 0).then(|| {
            info |= PageInfo::LONG_HEADER;
            let seg_size = u32::try_from(self.size.bytes()).unwrap_or(u32::MAX);
            LongHeader { sysid: self.system, seg_size, blcksz: PAGE_SIZE as u32 }
        });
        let header = PageHeader {
            magic: self.magic,
            info: PageInfo::new(info),
            tli: self.tli.raw(),
            addr: self.at,
            rem_len: u32::try_from(rem_len).unwrap_or(u32::MAX),
            long,
        };
        header.write(&mut self.bytes);
        self.at = self.at.saturating_add(header.size() as u64);
    }

    fn zeros_to(&mut self, end: Lsn) {
        self.bytes.resize(self.offset_of(end), 0);
        self.at = end;
    }

    /// Where `lsn` lies in what was not taken yet.
    fn offset_of(&self, lsn: Lsn) -> usize {
        usize::try_from(lsn.bytes_since(self.taken)).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::page::PageRules;
    use crate::wal::walk::Walker;

    fn synth() -> Synth {
        let size = SegmentSize::new(1 << 20).unwrap();
        Synth::new(SystemId::new(7), size, TimelineId::FIRST, 0xD110, Lsn::new(1 << 20))
    }

    #[test]
    fn lengths_are_those_promised() {
        let mut synth = synth();
        for (payload, record) in [(0, 24), (1, 27), (255, 281), (256, 285)] {
            let start = synth.record(&vec![1; payload]);
            let (_, bytes) = synth.take_bytes();
            let at = if start.raw() == (1 << 20) + 40 { 40 } else { 0 };
            assert_eq!(bytes[at..at + 4], u32::to_le_bytes(record), "{payload}");
        }
    }

    #[test]
    fn every_kind_of_record_is_walked() {
        let mut synth = synth();
        let rules = PageRules {
            system: synth.system,
            size: synth.size,
            tli: synth.tli,
            magic: Some(synth.magic),
            fork: None,
        };
        let mut walker = Walker::new(rules, synth.position());
        for n in 0..600u32 {
            let commit = synth.commit(n, 0);
            if commit.page_start() == synth.position().page_start() {
                assert_eq!(synth.position().bytes_since(commit), COMMIT_RECORD);
            }
            synth.image(16_384, n, &[n as u8; PAGE_SIZE]);
            synth.record(&vec![1; n as usize]);
            if n % 97 == 0 {
                synth.switch_segment();
            }
            walker.feed(&synth.take_bytes().1).unwrap();
            assert_eq!(walker.record_end(), synth.position());
        }
    }

    #[test]
    fn pieces_taken_join() {
        let mut synth = synth();
        let mut whole = synth.clone();
        let (mut joined, mut at) = (Vec::new(), synth.position());
        for len in [10, 9000, 300, 1_200_000] {
            synth.record(&vec![1; len]);
            whole.record(&vec![1; len]);
            let (start, bytes) = synth.take_bytes();
            assert_eq!(start, at);
            joined.extend_from_slice(&bytes);
            at = start.saturating_add(bytes.len() as u64);
            assert_eq!(at, synth.position());
        }
        assert_eq!(whole.take_bytes().1, joined);
    }
}
