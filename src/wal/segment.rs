//! Segment files: their size, number and name.

use super::ids::TimelineId;
use super::lsn::Lsn;
use std::fmt;

/// `wal_segment_size`: a power of two from 1 MiB to 1 GiB, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct SegmentSize(u32);

impl SegmentSize {
    /// Returns `None` unless `bytes` is a power of two between 1 MiB and 1 GiB
    /// (`IsValidWalSegSize`).
    pub const fn new(bytes: u64) -> Option<Self> {
        if bytes.is_power_of_two() && bytes >= 1 << 20 && bytes <= 1 << 30 {
            Some(Self(bytes as u32))
        } else {
            None
        }
    }

    /// Size in bytes.
    pub const fn bytes(self) -> u64 {
        self.0 as u64
    }
}

/// A segment's ordinal: LSN divided by the segment size (`XLogSegNo`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SegmentNo(u64);

impl SegmentNo {
    /// From the ordinal.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The ordinal.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The segment after this one; capped at the last number.
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The segment before this one; `None` for segment 0.
    pub const fn previous(self) -> Option<Self> {
        match self.0.checked_sub(1) {
            Some(raw) => Some(Self(raw)),
            None => None,
        }
    }

    /// First position of the segment, capped at [`Lsn::MAX`].
    pub const fn start(self, size: SegmentSize) -> Lsn {
        Lsn::new(self.0.saturating_mul(size.bytes()))
    }

    /// First position after the segment, capped at [`Lsn::MAX`].
    pub const fn end(self, size: SegmentSize) -> Lsn {
        self.next().start(size)
    }
}

impl Lsn {
    /// The segment that holds this position (`XLByteToSeg`).
    pub const fn segment(self, size: SegmentSize) -> SegmentNo {
        SegmentNo::new(self.raw() / size.bytes())
    }

    /// Start of the segment that holds this position.
    pub const fn segment_start(self, size: SegmentSize) -> Self {
        Self::new(self.raw() & !(size.bytes() - 1))
    }

    /// Offset inside the segment, in bytes (`XLogSegmentOffset`).
    pub const fn segment_offset(self, size: SegmentSize) -> u64 {
        self.raw() & (size.bytes() - 1)
    }
}

/// A segment of a timeline; prints as its 24 hex digit file name (`XLogFileName`). Segments of one
/// cluster sort as their names do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SegmentName {
    /// Timeline in the first eight digits.
    pub tli: TimelineId,
    /// Ordinal in the other sixteen.
    pub no: SegmentNo,
    /// Needed to split the ordinal into two groups of digits.
    pub size: SegmentSize,
}

impl SegmentName {
    /// Parses exactly 24 upper-case hex digits; returns `None` for anything else.
    pub fn parse(name: &str, size: SegmentSize) -> Option<Self> {
        let hex = |part: &str| u32::from_str_radix(part, 16).ok();
        let upper = |b: u8| b.is_ascii_digit() || (b'A'..=b'F').contains(&b);
        if name.len() != 24 || !name.bytes().all(upper) {
            return None;
        }
        let tli = TimelineId::new(hex(name.get(0..8)?)?)?;
        let high = u64::from(hex(name.get(8..16)?)?);
        let low = u64::from(hex(name.get(16..24)?)?);
        let per_id = (1u64 << 32) / size.bytes();
        (low < per_id).then_some(Self { tli, no: SegmentNo::new(high * per_id + low), size })
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let per_id = (1u64 << 32) / self.size.bytes();
        let (high, low) = (self.no.raw() / per_id, self.no.raw() % per_id);
        write!(f, "{:08X}{high:08X}{low:08X}", self.tli.raw())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_round_trip_for_every_size() {
        for shift in 20..=30 {
            let size = SegmentSize::new(1 << shift).unwrap();
            for raw in [0u64, 1, 255, 4095, 4096, 70_000, u64::from(u32::MAX)] {
                let name = SegmentName { tli: TimelineId::FIRST, no: SegmentNo::new(raw), size };
                assert_eq!(SegmentName::parse(&name.to_string(), size), Some(name));
            }
        }
    }

    #[test]
    fn refuses_what_is_no_name() {
        let size = SegmentSize::new(16 << 20).unwrap();
        assert!(SegmentName::parse("00000001000000000000002F", size).is_some());
        for bad in [
            "000000000000000000000001",
            "00000001000000000000002f",
            "0000000100000000000001FF1",
            "000000010000000000000100",
            "00000001000000000000002F.partial",
        ] {
            assert_eq!(SegmentName::parse(bad, size), None, "{bad}");
        }
        assert_eq!(SegmentSize::new(3 << 20), None);
        assert_eq!(SegmentSize::new(1 << 31), None);
    }

    #[test]
    fn rounds_to_segments() {
        let (lsn, size) = (Lsn::new(0x0060_2001), SegmentSize::new(1 << 20).unwrap());
        assert_eq!(lsn.segment(size), SegmentNo::new(6));
        assert_eq!(lsn.segment_start(size), Lsn::new(0x0060_0000));
        assert_eq!(lsn.segment_offset(size), 0x2001);
    }

    proptest! {
        #[test]
        fn rounding_to_segments_brackets_the_position(raw: u64, shift in 20u32..31) {
            let (lsn, size) = (Lsn::new(raw), SegmentSize::new(1 << shift).unwrap());
            prop_assert_eq!(lsn.segment_start(size).raw() + lsn.segment_offset(size), raw);
            prop_assert_eq!(lsn.segment(size).start(size), lsn.segment_start(size));
            prop_assert!(lsn.segment(size).end(size) > lsn || lsn == Lsn::MAX);
        }
    }
}
