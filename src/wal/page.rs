//! WAL pages: 8 KiB blocks, each with a header, and what a page of one stream must look like.
//!
//! The walk, the check of what upstream sends and the check of pages read back from segment files
//! share [`PageRules`]. A foreign page is caught by its own header before any of its bytes are
//! passed on.

use super::fork::Fork;
use super::ids::{SystemId, TimelineId};
use super::lsn::Lsn;
use super::segment::SegmentSize;
use std::fmt;

/// `XLOG_BLCKSZ` of every supported server; checked in long headers.
pub const PAGE_SIZE: usize = 8192;
/// Bytes of a page header inside a segment (`SizeOfXLogShortPHD`).
pub const SHORT_HEADER: usize = 24;
/// Bytes of the page header that opens a segment (`SizeOfXLogLongPHD`).
pub const LONG_HEADER: usize = 40;

/// `XLOG_PAGE_MAGIC` of PostgreSQL 13, the oldest supported server.
const OLDEST_MAGIC: u16 = 0xD106;
/// Every magic so far is D0xx or D1xx. Anything beyond is no WAL page of a version we can prepare
/// for.
const NEWEST_MAGIC: u16 = 0xDFFF;

impl Lsn {
    /// Start of the 8 KiB page that holds this position.
    pub const fn page_start(self) -> Self {
        Self::new(self.raw() & !(PAGE_SIZE as u64 - 1))
    }

    /// The first page boundary at or after this position.
    pub const fn page_ceil(self) -> Self {
        Self::new(self.raw().saturating_add(PAGE_SIZE as u64 - 1) & !(PAGE_SIZE as u64 - 1))
    }

    /// Offset inside the page, 0..8192.
    pub const fn page_offset(self) -> usize {
        (self.raw() & (PAGE_SIZE as u64 - 1)) as usize
    }
}

/// The major version that writes pages with this magic; `None` for a development build or a server
/// newer than 18. Such pages are walked all the same: the layout has been stable since 9.3, so a
/// warning is enough.
pub const fn server_major_of_magic(magic: u16) -> Option<u16> {
    match magic {
        0xD106 => Some(13),
        0xD10D => Some(14),
        0xD110 => Some(15),
        0xD113 => Some(16),
        0xD116 => Some(17),
        0xD118 => Some(18),
        _ => None,
    }
}

/// `xlp_info`: the flags of a page header.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PageInfo(u16);

impl PageInfo {
    /// The page opens with the rest of an earlier record (`XLP_FIRST_IS_CONTRECORD`).
    pub const FIRST_IS_CONTRECORD: u16 = 1;
    /// The header is a long one (`XLP_LONG_HEADER`).
    pub const LONG_HEADER: u16 = 2;
    /// Full-page images of the page may be removed (`XLP_BKP_REMOVABLE`).
    pub const BKP_REMOVABLE: u16 = 4;
    /// The record that should continue here was abandoned after a crash
    /// (`XLP_FIRST_IS_OVERWRITE_CONTRECORD`).
    pub const FIRST_IS_OVERWRITE_CONTRECORD: u16 = 8;

    /// From the two bytes of the header.
    pub const fn new(raw: u16) -> Self {
        Self(raw)
    }

    /// The two bytes of the header.
    pub const fn raw(self) -> u16 {
        self.0
    }

    /// Whether the page opens with the rest of an earlier record.
    pub const fn first_is_contrecord(self) -> bool {
        self.0 & Self::FIRST_IS_CONTRECORD != 0
    }

    /// Whether the header is a long one.
    pub const fn long(self) -> bool {
        self.0 & Self::LONG_HEADER != 0
    }

    /// Whether the record that should continue here was abandoned after a crash.
    pub const fn overwrite_contrecord(self) -> bool {
        self.0 & Self::FIRST_IS_OVERWRITE_CONTRECORD != 0
    }

    /// Whether all flags are known (`XLP_ALL_FLAGS`).
    const fn known(self) -> bool {
        self.0 & !0x000F == 0
    }
}

impl fmt::Debug for PageInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04X}", self.0)
    }
}

/// What only the first page of a segment carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LongHeader {
    /// `xlp_sysid`: the cluster that wrote the segment.
    pub sysid: SystemId,
    /// `xlp_seg_size`, in bytes.
    pub seg_size: u32,
    /// `xlp_xlog_blcksz`, in bytes.
    pub blcksz: u32,
}

/// A page header as stored in the page; only the number of bytes is checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageHeader {
    /// `xlp_magic`: names the WAL format, and so the server's major version.
    pub magic: u16,
    /// `xlp_info`.
    pub info: PageInfo,
    /// `xlp_tli`, not yet known to be a timeline of ours (may be 0).
    pub tli: u32,
    /// `xlp_pageaddr`: the page's own position, which catches recycled files.
    pub addr: Lsn,
    /// `xlp_rem_len`: the missing bytes of the record that continues here, including those on this
    /// page.
    pub rem_len: u32,
    /// Present when the flags say so.
    pub long: Option<LongHeader>,
}

impl PageHeader {
    /// Reads the first 24 bytes, or 40 when the flags announce a long header. WAL is
    /// in the byte order of the server that wrote it; ours are little-endian.
    pub fn parse(bytes: &[u8]) -> Result<Self, PageFault> {
        let short: &[u8; SHORT_HEADER] = bytes.first_chunk().ok_or(PageFault::Truncated)?;
        let [m0, m1, i0, i1, t0, t1, t2, t3, a0, a1, a2, a3, a4, a5, a6, a7, r0, r1, r2, r3, ..] =
            *short;
        let info = PageInfo(u16::from_le_bytes([i0, i1]));
        let long = if info.long() { Some(LongHeader::parse(bytes)?) } else { None };
        Ok(Self {
            magic: u16::from_le_bytes([m0, m1]),
            info,
            tli: u32::from_le_bytes([t0, t1, t2, t3]),
            addr: Lsn::new(u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7])),
            rem_len: u32::from_le_bytes([r0, r1, r2, r3]),
            long,
        })
    }

    /// Bytes of this header; the page's content starts after them.
    pub const fn size(&self) -> usize {
        if self.long.is_some() { LONG_HEADER } else { SHORT_HEADER }
    }

    /// Bytes of the header that the page at `page` must have.
    pub const fn size_at(page: Lsn, size: SegmentSize) -> usize {
        if page.segment_offset(size) == 0 { LONG_HEADER } else { SHORT_HEADER }
    }

    /// Appends the header as PostgreSQL writes it.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.magic.to_le_bytes());
        out.extend_from_slice(&self.info.raw().to_le_bytes());
        out.extend_from_slice(&self.tli.to_le_bytes());
        out.extend_from_slice(&self.addr.raw().to_le_bytes());
        out.extend_from_slice(&self.rem_len.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        if let Some(long) = self.long {
            out.extend_from_slice(&long.sysid.raw().to_le_bytes());
            out.extend_from_slice(&long.seg_size.to_le_bytes());
            out.extend_from_slice(&long.blcksz.to_le_bytes());
        }
    }
}

impl LongHeader {
    fn parse(bytes: &[u8]) -> Result<Self, PageFault> {
        let whole: &[u8; LONG_HEADER] = bytes.first_chunk().ok_or(PageFault::Truncated)?;
        let tail: &[u8; 16] = whole.last_chunk().ok_or(PageFault::Truncated)?;
        let [s0, s1, s2, s3, s4, s5, s6, s7, g0, g1, g2, g3, b0, b1, b2, b3] = *tail;
        Ok(Self {
            sysid: SystemId::new(u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7])),
            seg_size: u32::from_le_bytes([g0, g1, g2, g3]),
            blcksz: u32::from_le_bytes([b0, b1, b2, b3]),
        })
    }
}

/// What a page of one stream, or of one timeline's segment files, must look like.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PageRules {
    /// The cluster; long headers name it.
    pub system: SystemId,
    /// The cluster's `wal_segment_size`; long headers name it.
    pub size: SegmentSize,
    /// The timeline that is streamed, or that the file name gives.
    pub tli: TimelineId,
    /// The magic of all pages; learned from the first page when not known before.
    pub magic: Option<u16>,
    /// Where `tli` left its ancestors; `None` for timeline 1, where every page must carry
    /// `tli` itself.
    pub fork: Option<Fork>,
}

impl PageRules {
    /// Checks the header of the page that starts at `at`, as `XLogReaderValidatePageHeader` does.
    /// Also checks the page's timeline against the history.
    pub fn check(&mut self, at: Lsn, header: &PageHeader) -> Result<(), PageFault> {
        self.check_magic(header.magic)?;
        let opens_segment = at.segment_offset(self.size) == 0;
        if !header.info.known() || header.info.long() != opens_segment {
            return Err(PageFault::InfoBits(header.info));
        }
        if let Some(long) = header.long {
            self.check_long(&long)?;
        }
        if header.addr != at {
            return Err(PageFault::PageAddr { found: header.addr });
        }
        self.check_timeline(at, header.tli)?;
        self.magic = Some(header.magic);
        Ok(())
    }

    /// The fork, when it lies inside the page that starts at `page`. Past the fork, this page's
    /// header does not tell parent from child.
    pub(super) fn fork_inside(&self, page: Lsn) -> Option<Lsn> {
        let start = self.fork.as_ref()?.start();
        (page < start && start < page.saturating_add(PAGE_SIZE as u64)).then_some(start)
    }

    fn check_magic(&self, found: u16) -> Result<(), PageFault> {
        let good = match self.magic {
            Some(known) => found == known,
            None => (OLDEST_MAGIC..=NEWEST_MAGIC).contains(&found),
        };
        if good { Ok(()) } else { Err(PageFault::Magic { found }) }
    }

    fn check_long(&self, long: &LongHeader) -> Result<(), PageFault> {
        if long.sysid != self.system {
            return Err(PageFault::OtherSystem { found: long.sysid, expected: self.system });
        }
        if u64::from(long.seg_size) != self.size.bytes() {
            return Err(PageFault::SegmentSize { found: long.seg_size });
        }
        if long.blcksz as usize != PAGE_SIZE {
            return Err(PageFault::BlockSize { found: long.blcksz });
        }
        Ok(())
    }

    fn check_timeline(&self, at: Lsn, found: u32) -> Result<(), PageFault> {
        let good = match &self.fork {
            Some(fork) if at < fork.start() => fork.allows(at, found),
            Some(_) | None => found == self.tli.raw(),
        };
        if good { Ok(()) } else { Err(PageFault::Timeline { found, walked: self.tli }) }
    }
}

/// A page header that is not of this stream, in PostgreSQL's words. The caller adds the position.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PageFault {
    /// Fewer bytes than a header has.
    #[error("page header is cut short")]
    Truncated,
    /// Not the magic of this cluster's pages; 0000 where nothing was written yet.
    #[error("invalid magic number {found:04X}")]
    Magic {
        /// `xlp_magic`.
        found: u16,
    },
    /// Unknown flags, a long header where a short one belongs, or the reverse.
    #[error("invalid info bits {0:?}")]
    InfoBits(PageInfo),
    /// The page belongs elsewhere: the file was recycled.
    #[error("unexpected pageaddr {found}")]
    PageAddr {
        /// `xlp_pageaddr`.
        found: Lsn,
    },
    /// Another cluster's segment.
    #[error(
        "WAL file is from different database system: WAL file database system identifier is \
         {found}, ours is {expected}"
    )]
    OtherSystem {
        /// `xlp_sysid`.
        found: SystemId,
        /// The system we follow.
        expected: SystemId,
    },
    /// Another `wal_segment_size`.
    #[error(
        "WAL file is from different database system: incorrect segment size {found} in page header"
    )]
    SegmentSize {
        /// `xlp_seg_size`.
        found: u32,
    },
    /// Another `XLOG_BLCKSZ`.
    #[error(
        "WAL file is from different database system: incorrect XLOG_BLCKSZ {found} in page header"
    )]
    BlockSize {
        /// `xlp_xlog_blcksz`.
        found: u32,
    },
    /// The page was begun on a timeline that our history does not have at this position.
    #[error("unexpected timeline ID {found} on timeline {walked}")]
    Timeline {
        /// `xlp_tli`.
        found: u32,
        /// The timeline that is streamed or walked.
        walked: TimelineId,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn first_bytes_of_a_segment_of_postgres_15() {
        // Segment 000000010000000000000006 of a cluster made with initdb --wal-segsize=1.
        let bytes = [
            0x10, 0xD1, 0x07, 0, 1, 0, 0, 0, 0, 0, 0x60, 0, 0, 0, 0, 0, 0xD9, 0, 0, 0, 0, 0, 0, 0,
            0xA2, 0x25, 0x45, 0xCD, 0xC1, 0x80, 0x03, 0x6B, 0, 0, 0x10, 0, 0, 0x20, 0, 0,
        ];
        let header = PageHeader::parse(&bytes).unwrap();
        assert_eq!(server_major_of_magic(header.magic), Some(15));
        assert_eq!((header.tli, header.addr), (1, Lsn::new(0x60_0000)));
        assert!(header.info.long() && header.info.first_is_contrecord());
        assert!(!header.info.overwrite_contrecord());
        assert_eq!(header.rem_len, 0xD9);
        let long = header.long.unwrap();
        assert_eq!(long.sysid, SystemId::new(7_711_148_556_849_325_474));
        assert_eq!((long.seg_size, long.blcksz), (1 << 20, 8192));
        let mut written = Vec::new();
        header.write(&mut written);
        assert_eq!(written, bytes);
    }

    #[test]
    fn cut_headers_are_told() {
        assert_eq!(PageHeader::parse(&[0; 23]), Err(PageFault::Truncated));
        let mut long = [0; 39];
        long[2] = 2;
        assert_eq!(PageHeader::parse(&long), Err(PageFault::Truncated));
    }

    #[test]
    fn magics_of_the_majors_and_beyond() {
        let majors: Vec<_> = (0..=u16::MAX).filter_map(server_major_of_magic).collect();
        assert_eq!(majors, [13, 14, 15, 16, 17, 18]);
        let rules = PageRules {
            system: SystemId::new(1),
            size: SegmentSize::new(1 << 20).unwrap(),
            tli: TimelineId::FIRST,
            magic: None,
            fork: None,
        };
        for (magic, good) in [(0, false), (0xD105, false), (0xD106, true), (0xD2FF, true)] {
            assert_eq!(rules.check_magic(magic).is_ok(), good, "{magic:04X}");
        }
        let learned = PageRules { magic: Some(0xD110), ..rules };
        assert!(learned.check_magic(0xD110).is_ok() && learned.check_magic(0xD113).is_err());
    }

    #[test]
    fn rounds_to_pages() {
        let lsn = Lsn::new(0x0060_2001);
        assert_eq!(lsn.page_start(), Lsn::new(0x0060_2000));
        assert_eq!(lsn.page_ceil(), Lsn::new(0x0060_4000));
        assert_eq!(lsn.page_start().page_ceil(), lsn.page_start());
        assert_eq!(Lsn::MAX.page_ceil().raw(), !8191);
    }

    proptest! {
        #[test]
        fn rounding_to_pages_brackets_the_position(raw: u64) {
            let lsn = Lsn::new(raw);
            prop_assert_eq!(lsn.page_start().raw() + lsn.page_offset() as u64, raw);
            if raw < u64::MAX - 8192 {
                prop_assert!(lsn.page_ceil() >= lsn && lsn.page_ceil().page_offset() == 0);
            }
        }

        #[test]
        fn headers_round_trip(
            magic: u16, info: u16, tli: u32, addr: u64, rem_len: u32, sysid: u64, sizes: (u32, u32),
        ) {
            let info = PageInfo::new(info);
            let (seg_size, blcksz) = sizes;
            let long = LongHeader { sysid: SystemId::new(sysid), seg_size, blcksz };
            let long = info.long().then_some(long);
            let header = PageHeader { magic, info, tli, addr: Lsn::new(addr), rem_len, long };
            let mut bytes = Vec::new();
            header.write(&mut bytes);
            prop_assert_eq!(bytes.len(), header.size());
            prop_assert_eq!(PageHeader::parse(&bytes), Ok(header));
        }
    }
}
