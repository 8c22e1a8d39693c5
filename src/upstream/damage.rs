//! Whose copy of a record is damaged, where an upstream's WAL and ours differ.
//!
//! Two histories differ in records that are whole on both sides. A disk that changed bytes leaves a
//! record whose checksum does not hold, and which is the other side's record all the same: the
//! checksum alone was hit, or everything but the checksum. Only that is called damage here. Where a
//! record and its checksum both differ, and in page headers, in padding and at the end of what both
//! have, nobody can say whether the two were ever the same.

use crate::wal::page::{PageHeader, PageRules};
use crate::wal::record::{RECORD_HEADER, RecordHeader};
use crate::wal::walk::Walker;
use crate::wal::{Lsn, SegmentSize};
use std::ops::Range;

/// How far from the difference a record may reach to be seen whole, in both directions.
pub const REACH: u64 = 1 << 20;

/// `xl_crc` within a record.
const CHECKSUM: Range<usize> = 20..RECORD_HEADER;

/// Records begin at multiples of this, so no two end within one.
const ALIGNMENT: usize = 8;

/// A record of which one side has a damaged copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damaged {
    /// Ours is. Theirs is whole, and is what ours was.
    Ours(WholeRecord),
    /// Theirs is.
    Theirs(WholeRecord),
}

/// Where a record lies whose checksum holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WholeRecord {
    /// Its first byte.
    pub from: Lsn,
    /// The first byte after it, aligned.
    pub to: Lsn,
}

/// Whose copy of the record at `at` is damaged. `ours` and `theirs` are the same WAL from the page
/// boundary `from` on, and `at` is the first position at which they differ. Returns `None` when
/// neither's is known to be.
pub fn damaged(
    rules: &PageRules,
    from: Lsn,
    at: Lsn,
    ours: &[u8],
    theirs: &[u8],
) -> Option<Damaged> {
    // What precedes the segment may be the unused end of the one before.
    let segment = at.segment_start(rules.size).max(from);
    [from, segment].into_iter().find_map(|start| {
        let skipped = start.bytes_since(from) as usize;
        let [ours, theirs] = [ours, theirs].map(|wal| wal.get(skipped..).unwrap_or_default());
        damaged_since(rules, start, at, ours, theirs)
    })
}

fn damaged_since(
    rules: &PageRules,
    from: Lsn,
    at: Lsn,
    ours: &[u8],
    theirs: &[u8],
) -> Option<Damaged> {
    let whole = |wal| whole_record(rules, from, at, wal);
    let one = |record, whole, other| are_one(rules.size, from, record, whole, other);
    match (whole(ours), whole(theirs)) {
        (None, Some(record)) => one(record, theirs, ours).then_some(Damaged::Ours(record)),
        (Some(record), None) => one(record, ours, theirs).then_some(Damaged::Theirs(record)),
        (None, None) | (Some(_), Some(_)) => None,
    }
}

/// The record that holds `at`, when all of it is there and its checksum holds.
fn whole_record(rules: &PageRules, from: Lsn, at: Lsn, wal: &[u8]) -> Option<WholeRecord> {
    let mut walker = Walker::new(rules.clone(), from);
    for step in wal.chunks(ALIGNMENT) {
        let fed = walker.feed(step);
        if walker.record_end() > at {
            let record = walker.last_record().filter(|record| *record <= at)?;
            return Some(WholeRecord { from: record, to: walker.record_end() });
        }
        fed.ok()?;
    }
    None
}

/// Is `other` a copy of the record of which `whole` has all? Its checksum is the same then, or all
/// the rest is.
fn are_one(size: SegmentSize, from: Lsn, record: WholeRecord, whole: &[u8], other: &[u8]) -> bool {
    let mut header = Vec::with_capacity(RECORD_HEADER);
    let (mut checksum_differs, mut rest_differs) = (false, false);
    let (mut at, mut within) = (record.from, 0);
    while at < record.to {
        let n = at.bytes_since(from) as usize;
        let (Some(byte), Some(other)) = (whole.get(n), other.get(n)) else { return false };
        let in_page_header = at.page_offset() < PageHeader::size_at(at.page_start(), size);
        if !in_page_header && within < RECORD_HEADER {
            header.push(*byte);
        }
        let length = header.first_chunk().map(|header| RecordHeader::parse(header).tot_len);
        let in_record = !in_page_header && length.is_none_or(|length| within < length as usize);
        if byte != other {
            match in_record {
                false => return false,
                true if CHECKSUM.contains(&within) => checksum_differs = true,
                true => rest_differs = true,
            }
        }
        within += usize::from(!in_page_header);
        at = at.saturating_add(1);
    }
    checksum_differs != rest_differs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::synth::Synth;
    use crate::wal::{SystemId, TimelineId};
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;
    const START: Lsn = Lsn::new(4 * MIB);

    fn size() -> SegmentSize {
        SegmentSize::new(MIB).unwrap()
    }

    fn rules() -> PageRules {
        let (system, tli) = (SystemId::new(7), TimelineId::FIRST);
        PageRules { system, size: size(), tli, magic: None, fork: None }
    }

    fn synth() -> Synth {
        Synth::new(SystemId::new(7), size(), TimelineId::FIRST, 0xD110, START)
    }

    /// WAL, and where its records begin.
    fn wal(lengths: &[usize]) -> (Vec<u8>, Vec<Lsn>) {
        let mut synth = synth();
        let records = lengths.iter().map(|length| synth.record(&vec![0x5A; *length])).collect();
        (synth.take_bytes().1, records)
    }

    fn first_difference(ours: &[u8], theirs: &[u8]) -> Lsn {
        let n = ours.iter().zip(theirs).position(|(ours, theirs)| ours != theirs).unwrap();
        START.saturating_add(n as u64)
    }

    fn found(ours: &[u8], theirs: &[u8]) -> Option<Damaged> {
        damaged(&rules(), START, first_difference(ours, theirs), ours, theirs)
    }

    /// Where byte `within` of a record lies.
    fn place(record: Lsn, within: u64) -> usize {
        let mut at = record;
        for _ in 0..within {
            at = at.saturating_add(1);
            while at.page_offset() < PageHeader::size_at(at.page_start(), size()) {
                at = at.saturating_add(1);
            }
        }
        at.bytes_since(START) as usize
    }

    proptest! {
        /// Whichever bit of a record flips, its length among them, the side is found.
        #[test]
        fn a_flipped_bit_is_damage_of_the_side_that_has_it(
            lengths in prop::collection::vec(0_usize..20_000, 3..12),
            which in 0_usize..2,
            within in any::<u64>(),
            bit in 0_u8..8,
        ) {
            let (whole, records) = wal(&lengths);
            let record = records[which];
            let length = match lengths[which] {
                0 => 24,
                n @ 1..256 => n as u64 + 26,
                n => n as u64 + 29,
            };
            let mut other = whole.clone();
            other[place(record, within % length)] ^= 1 << bit;
            let whole_record = WholeRecord { from: record, to: records[which + 1] };
            match (found(&other, &whole), found(&whole, &other)) {
                (Some(Damaged::Ours(ours)), Some(Damaged::Theirs(theirs))) => {
                    // The page's header may lie before the next record.
                    prop_assert!(ours.from == record && ours.to <= whole_record.to);
                    prop_assert_eq!(ours, theirs);
                }
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }

    #[test]
    fn two_histories_are_no_damage() {
        let (mut ours, mut theirs) = (synth(), synth());
        for synth in [&mut ours, &mut theirs] {
            synth.record(&[1; 100]);
        }
        ours.record(&[2; 100]);
        theirs.record(&[3; 100]);
        let (ours, theirs) = (ours.take_bytes().1, theirs.take_bytes().1);
        assert_eq!(found(&ours, &theirs), None);
        // A bit of ours flipped in the record that differs anyway.
        let mut damaged = ours.clone();
        damaged[place(first_difference(&ours, &theirs), 0)] ^= 0x80;
        assert_eq!(found(&damaged, &theirs), None);
    }

    #[test]
    fn what_no_checksum_covers_is_no_damage() {
        let (whole, records) = wal(&[100, 9000, 100]);
        let differs = |n: usize| {
            let mut other = whole.clone();
            other[n] ^= 1;
            found(&other, &whole)
        };
        assert!(differs(place(records[1], 5000)).is_some());
        assert_eq!(differs(8192 + 4), None, "a page header within the record");
        // The first record's 126 bytes are followed by two of padding.
        let padding = place(records[0], 125) + 1;
        assert_eq!(differs(padding), None);
        // A record of which the rest has not come yet.
        let cut = place(records[1], 6000);
        let mut other = whole.clone();
        other[place(records[1], 10)] ^= 1;
        assert_eq!(found(&other[..cut], &whole[..cut]), None);
    }

    #[test]
    fn bytes_behind_a_switch_are_no_damage() {
        let mut synth = synth();
        synth.record(&[1; 100]);
        synth.switch_segment();
        synth.record(&[1; 100]);
        let whole = synth.take_bytes().1;
        let mut other = whole.clone();
        other[500_000] = 1;
        assert_eq!(found(&other, &whole), None);
        assert_eq!(found(&whole, &other), None);
    }

    #[test]
    fn a_walk_that_begins_in_the_unused_end_of_a_segment_begins_with_the_next() {
        let mut synth = synth();
        synth.record(&[1; 100]);
        synth.switch_segment();
        let record = synth.record(&[1; 20_000]);
        synth.record(&[1; 100]);
        let whole = synth.take_bytes().1;
        let mut other = whole.clone();
        other[record.bytes_since(START) as usize + 500] ^= 1;
        let from = Lsn::new(5 * MIB - 8192 * 3);
        let cut = from.bytes_since(START) as usize;
        let at = first_difference(&other, &whole);
        let found = damaged(&rules(), from, at, &other[cut..], &whole[cut..]);
        assert!(matches!(found, Some(Damaged::Ours(ours)) if ours.from == record), "{found:?}");
    }

    /// As after a write that went astray: nothing says that the zeros were this record.
    #[test]
    fn zeros_are_no_damage_that_can_be_shown() {
        let (whole, records) = wal(&[100, 9000, 100]);
        let mut other = whole.clone();
        let from = records[1].bytes_since(START) as usize;
        other[from..from + 512].fill(0);
        assert_eq!(found(&other, &whole), None);
    }
}
