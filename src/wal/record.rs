//! WAL records: the 24-byte header and its CRC.

use super::lsn::Lsn;

/// Bytes of a record header (`SizeOfXLogRecord`), also the shortest record.
pub const RECORD_HEADER: usize = 24;

/// The longest record any server can read back: 13 to 15 allocate it in one piece (`MaxAllocSize`);
/// 16 and newer write no more than 1020 MiB.
pub const MAX_RECORD: u32 = 0x3FFF_FFFF;

/// `RM_XLOG_ID`: records about the log itself.
pub const RM_XLOG: u8 = 0;

/// `RM_XACT_ID`: ends of transactions.
pub const RM_XACT: u8 = 1;

/// `RM_STANDBY_ID`: what a hot standby needs to know.
pub const RM_STANDBY: u8 = 8;

/// `XLOG_RUNNING_XACTS`, an `xl_info` of [`RM_STANDBY`].
const RUNNING_XACTS: u8 = 0x10;

/// Where a record that names its timeline carries it: after the record header and the two bytes of
/// a short data header come a 64-bit field and `ThisTimeLineID`.
pub const TIMELINE_OFFSET: usize = RECORD_HEADER + 2 + 8;

/// `xl_info` of a record of [`RM_XLOG`], without the low four bits that belong to the
/// WAL machinery.
pub mod xlog_info {
    /// A checkpoint of a server that is stopping or ending recovery.
    pub const CHECKPOINT_SHUTDOWN: u8 = 0x00;
    /// A checkpoint of a server that goes on.
    pub const CHECKPOINT_ONLINE: u8 = 0x10;
    /// Does nothing.
    pub const NOOP: u8 = 0x20;
    /// The rest of the segment is unused.
    pub const SWITCH: u8 = 0x40;
    /// `full_page_writes` was changed.
    pub const FPW_CHANGE: u8 = 0x80;
    /// Page images.
    pub const FPI: u8 = 0xB0;
    /// Written at the end of recovery by a promoted server.
    pub const END_OF_RECOVERY: u8 = 0x90;
    /// Replaces the rest of a record that was lost in a crash.
    pub const OVERWRITE_CONTRECORD: u8 = 0xD0;
}

/// `xl_info` of a record of [`RM_XACT`], by `XLOG_XACT_OPMASK`.
mod xact_info {
    pub(super) const OPERATION: u8 = 0x70;
    pub(super) const COMMIT: u8 = 0x00;
    pub(super) const PREPARE: u8 = 0x10;
    pub(super) const ABORT: u8 = 0x20;
    pub(super) const COMMIT_PREPARED: u8 = 0x30;
    pub(super) const ABORT_PREPARED: u8 = 0x40;
}

/// Identifiers of the headers before a record's main data (`xlogrecord.h`).
mod block_id {
    pub(super) const DATA_SHORT: u8 = 255;
    pub(super) const DATA_LONG: u8 = 254;
    pub(super) const ORIGIN: u8 = 253;
    pub(super) const TOPLEVEL_XID: u8 = 252;
}

/// A record header as stored in the log; nothing is checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordHeader {
    /// `xl_tot_len`: bytes of the whole record, including its header but not page headers.
    pub tot_len: u32,
    /// `xl_xid`.
    pub xid: u32,
    /// `xl_prev`: start of the record before this one.
    pub prev: Lsn,
    /// `xl_info`.
    pub info: u8,
    /// `xl_rmid`; 128 and above are custom, and any number is relayed.
    pub rmid: u8,
    /// `xl_crc`.
    pub crc: u32,
}

impl RecordHeader {
    /// Reads a header.
    #[inline]
    pub fn parse(bytes: &[u8; RECORD_HEADER]) -> Self {
        let [t0, t1, t2, t3, x0, x1, x2, x3, p0, p1, p2, p3, p4, p5, p6, p7, rest @ ..] = *bytes;
        let [info, rmid, _, _, c0, c1, c2, c3] = rest;
        Self {
            tot_len: u32::from_le_bytes([t0, t1, t2, t3]),
            xid: u32::from_le_bytes([x0, x1, x2, x3]),
            prev: Lsn::new(u64::from_le_bytes([p0, p1, p2, p3, p4, p5, p6, p7])),
            info,
            rmid,
            crc: u32::from_le_bytes([c0, c1, c2, c3]),
        }
    }

    /// The header's bytes; padding is zero.
    pub fn to_bytes(self) -> [u8; RECORD_HEADER] {
        let [t0, t1, t2, t3] = self.tot_len.to_le_bytes();
        let [x0, x1, x2, x3] = self.xid.to_le_bytes();
        let [p0, p1, p2, p3, p4, p5, p6, p7] = self.prev.raw().to_le_bytes();
        let [c0, c1, c2, c3] = self.crc.to_le_bytes();
        [
            t0, t1, t2, t3, x0, x1, x2, x3, p0, p1, p2, p3, p4, p5, p6, p7, self.info, self.rmid,
            0, 0, c0, c1, c2, c3,
        ]
    }

    /// `xl_info` without the bits of the WAL machinery (`~XLR_INFO_MASK`).
    pub const fn rmgr_info(&self) -> u8 {
        self.info & 0xF0
    }

    /// Whether this is an `XLOG_SWITCH`: the rest of its segment is zeros.
    pub const fn is_switch(&self) -> bool {
        self.rmid == RM_XLOG && self.rmgr_info() == xlog_info::SWITCH
    }

    /// Whether the record says when it was written: the end of a transaction, to the microsecond, or
    /// a checkpoint, to the second. A server that writes the same again later writes another time.
    #[inline]
    pub const fn is_time_stamped(&self) -> bool {
        use xact_info::{ABORT, ABORT_PREPARED, COMMIT, COMMIT_PREPARED, OPERATION, PREPARE};
        use xlog_info::{CHECKPOINT_ONLINE, CHECKPOINT_SHUTDOWN, END_OF_RECOVERY};
        match self.rmid {
            RM_XACT => matches!(
                self.info & OPERATION,
                COMMIT | PREPARE | ABORT | COMMIT_PREPARED | ABORT_PREPARED
            ),
            RM_XLOG => matches!(
                self.rmgr_info(),
                CHECKPOINT_SHUTDOWN | CHECKPOINT_ONLINE | END_OF_RECOVERY
            ),
            _ => false,
        }
    }

    /// Whether the record carries the timeline on which it was written. A server that opens a
    /// timeline writes one of these before any record of its clients.
    pub const fn names_timeline(&self) -> bool {
        use xlog_info::{CHECKPOINT_SHUTDOWN, END_OF_RECOVERY};
        self.rmid == RM_XLOG && matches!(self.rmgr_info(), CHECKPOINT_SHUTDOWN | END_OF_RECOVERY)
    }

    /// Whether a transaction commits with this record, prepared or not.
    pub const fn is_commit(&self) -> bool {
        use xact_info::{COMMIT, COMMIT_PREPARED, OPERATION};
        self.rmid == RM_XACT && matches!(self.info & OPERATION, COMMIT | COMMIT_PREPARED)
    }

    /// Whether the record may stand on a new timeline before the one that names it.
    pub const fn may_precede_timeline(&self) -> bool {
        use xlog_info::{FPW_CHANGE, OVERWRITE_CONTRECORD};
        self.rmid == RM_XLOG && matches!(self.rmgr_info(), FPW_CHANGE | OVERWRITE_CONTRECORD)
    }
}

/// The first field of a transaction's end: when that was, in microseconds since 2000 (`xact_time`).
/// `body` is what follows the record header, or its first 32 bytes at least. Returns `None` when it
/// is not laid out like the end of a transaction.
pub fn transaction_time(body: &[u8]) -> Option<i64> {
    main_data(body)?.first_chunk().map(|bytes| i64::from_le_bytes(*bytes))
}

/// When a record was written, in microseconds since 2000, if it says so. `body` is what follows its
/// header, or the first 80 bytes of that.
pub fn written_at(header: &RecordHeader, body: &[u8]) -> Option<i64> {
    /// `xl_xact_prepare.prepared_at`
    const PREPARED_AT: usize = 16;
    /// `CheckPoint.time`
    const CHECKPOINT_TIME: usize = 64;
    if !header.is_time_stamped() {
        return None;
    }
    let number = |at| number_at(main_data(body)?, at).map(u64::cast_signed);
    if header.rmid == RM_XLOG && header.rmgr_info() != xlog_info::END_OF_RECOVERY {
        // The seconds of Unix.
        return number(CHECKPOINT_TIME)?.checked_sub(UNIX_TO_2000)?.checked_mul(1_000_000);
    }
    let is_prepare =
        header.rmid == RM_XACT && header.info & xact_info::OPERATION == xact_info::PREPARE;
    number(if is_prepare { PREPARED_AT } else { 0 })
}

/// What a record says of the next transaction ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamedXid {
    /// The next one, with its epoch (`FullTransactionId`).
    Full(u64),
    /// The next one, without its epoch.
    Next(u32),
    /// One that was given to a transaction.
    Given(u32),
}

/// What a record says of the next transaction ID, if anything. `body` is what follows its header, or
/// the first 80 bytes of that.
#[inline]
pub fn named_xid(header: &RecordHeader, body: &[u8]) -> Option<NamedXid> {
    use xlog_info::{CHECKPOINT_ONLINE, CHECKPOINT_SHUTDOWN};
    /// `CheckPoint.nextXid`
    const CHECKPOINT_NEXT: usize = 24;
    /// `xl_running_xacts.nextXid`
    const RUNNING_NEXT: usize = 12;
    match (header.rmid, header.rmgr_info()) {
        (RM_XLOG, CHECKPOINT_SHUTDOWN | CHECKPOINT_ONLINE) => {
            number_at(main_data(body)?, CHECKPOINT_NEXT).map(NamedXid::Full)
        }
        (RM_STANDBY, RUNNING_XACTS) => {
            let bytes = main_data(body)?.get(RUNNING_NEXT..)?.first_chunk()?;
            Some(NamedXid::Next(u32::from_le_bytes(*bytes)))
        }
        _ => (header.xid != 0).then_some(NamedXid::Given(header.xid)),
    }
}

/// Seconds from the Unix epoch to 2000-01-01 00:00:00 UTC.
const UNIX_TO_2000: i64 = 946_684_800;

fn number_at(data: &[u8], at: usize) -> Option<u64> {
    data.get(at..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}

/// A record's main data, of one that refers to no block. Returns `None` for others.
fn main_data(body: &[u8]) -> Option<&[u8]> {
    let mut rest = body;
    loop {
        let (id, after) = rest.split_first()?;
        rest = match *id {
            block_id::ORIGIN => after.get(2..)?,
            block_id::TOPLEVEL_XID => after.get(4..)?,
            block_id::DATA_SHORT => return after.get(1..),
            block_id::DATA_LONG => return after.get(4..),
            // It refers to a block.
            _ => return None,
        };
    }
}

/// Completes a record's CRC-32C. `body` covers bytes 24 to the end; the first 20 bytes of the
/// header come last.
#[inline]
pub fn finish_crc(body: u32, header: &[u8; RECORD_HEADER]) -> u32 {
    let covered: Option<&[u8; 20]> = header.first_chunk();
    covered.map_or(body, |covered| crc32c::crc32c_append(body, covered))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_round_trip() {
        let header = RecordHeader {
            tot_len: 0x0102_0304,
            xid: 0x0506_0708,
            prev: Lsn::new(0x1122_3344_5566_7788),
            info: 0x9A,
            rmid: 0xBC,
            crc: 0xDEAD_BEEF,
        };
        assert_eq!(RecordHeader::parse(&header.to_bytes()), header);
        assert_eq!(header.to_bytes()[16..20], [0x9A, 0xBC, 0, 0]);
    }

    #[test]
    fn commits_say_when() {
        let bytes = [0; RECORD_HEADER];
        let header = |info| RecordHeader { rmid: RM_XACT, info, ..RecordHeader::parse(&bytes) };
        // XLOG_XACT_HAS_INFO is no part of the operation.
        for (info, is_commit) in
            [(0x00, true), (0x80, true), (0x30, true), (0xB0, true), (0x10, false), (0x20, false)]
        {
            assert_eq!(header(info).is_commit(), is_commit, "{info:#x}");
        }
        assert!(!RecordHeader { rmid: RM_XLOG, ..header(0) }.is_commit());
        let time = 0x0102_0304_0506_0708_i64.to_le_bytes();
        for before in [
            &[255, 8][..],
            &[254, 8, 1, 0, 0],
            &[253, 1, 2, 255, 8],
            &[252, 1, 2, 3, 4, 253, 1, 2, 254, 8, 1, 0, 0],
        ] {
            let body = [before, &time].concat();
            assert_eq!(transaction_time(&body), Some(0x0102_0304_0506_0708), "{before:?}");
            assert_eq!(transaction_time(&body[..body.len() - 1]), None);
        }
        assert_eq!(transaction_time(&[0, 0x10, 0, 0]), None);
    }

    #[test]
    fn ends_of_transactions_and_checkpoints_carry_the_time() {
        let record = |rmid, info| {
            let header = RecordHeader::parse(&[0; RECORD_HEADER]);
            RecordHeader { rmid, info, ..header }.is_time_stamped()
        };
        // A commit, one with more information, a prepared one, an abort.
        for info in [0x00, 0x80, 0x10, 0x20, 0xA0, 0x30, 0x40] {
            assert!(record(RM_XACT, info), "{info:#x}");
        }
        // An assignment, and invalidations.
        assert!(!record(RM_XACT, 0x50) && !record(RM_XACT, 0x60));
        assert!(record(RM_XLOG, 0x00) && record(RM_XLOG, 0x10) && record(RM_XLOG, 0x90));
        assert!(!record(RM_XLOG, xlog_info::NOOP) && !record(RM_XLOG, xlog_info::SWITCH));
        // RUNNING_XACTS, which an idle server writes, too.
        assert!(!record(8, 0x10));
    }

    #[test]
    fn low_info_bits_do_not_hide_a_switch() {
        let bytes = [0; RECORD_HEADER];
        let header = RecordHeader { info: 0x42, ..RecordHeader::parse(&bytes) };
        assert!(header.is_switch());
        assert!(!RecordHeader { rmid: 1, ..header }.is_switch());
        assert!(!RecordHeader { info: 0x50, ..header }.is_switch());
    }
}
