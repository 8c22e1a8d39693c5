//! Whether a copy of a damaged segment is of our history.
//!
//! All records of the copy may be whole, and those of another history under the same numbers. Where
//! the two differ, ours is damaged if the copy is one: none of its records there is whole. A whole
//! record of ours that the copy does not have shows another history.

use super::check::{ReadAt, read_from};
use crate::wal::page::{PAGE_SIZE, PageRules};
use crate::wal::walk::Walker;
use crate::wal::{Lsn, SegmentName};
use std::io;

/// Records begin at multiples of this.
const ALIGNMENT: usize = 8;

/// A segment of ours and its copy.
#[derive(Debug)]
pub struct CopyComparison<'a, O, C> {
    /// The segment.
    pub name: SegmentName,
    /// What its pages have to look like.
    pub rules: &'a PageRules,
    /// Our file.
    pub ours: &'a O,
    /// The copy's.
    pub copy: &'a C,
}

impl<O: ReadAt, C: ReadAt> CopyComparison<'_, O, C> {
    /// The first record that is whole in ours and another one in the copy. Returns `None` when the
    /// copy differs only where ours is damaged. What a record has in other segments is not looked
    /// at, so one that reaches into another counts as damaged.
    ///
    /// # Errors
    /// The operating system's, when it cannot read the copy.
    pub fn other_record(&self) -> io::Result<Option<Lsn>> {
        let (mut page, end) = (self.name.no.start(self.name.size), self.end());
        while page < end {
            let to = page.saturating_add(PAGE_SIZE as u64);
            let ours = self.read_ours(page, to);
            let copy = read_from(self.copy, self.name, page, to)?;
            if ours != copy
                && let Some(at) = self.other_record_from(page, &copy)?
            {
                return Ok(Some(at));
            }
            page = to;
        }
        Ok(None)
    }

    /// What cannot be read is damaged.
    fn read_ours(&self, from: Lsn, to: Lsn) -> Vec<u8> {
        read_from(self.ours, self.name, from, to).unwrap_or_default()
    }

    fn end(&self) -> Lsn {
        self.name.no.end(self.name.size)
    }

    /// The same among the records that begin in one page. `copy` is that page of the copy.
    fn other_record_from(&self, page: Lsn, copy: &[u8]) -> io::Result<Option<Lsn>> {
        let to = page.saturating_add(PAGE_SIZE as u64);
        let mut ours = Walker::new(self.rules.clone(), page);
        while ours.position() < to && self.walk_one(&mut ours) {
            if let Some(at) = self.difference(&ours)? {
                return Ok(Some(at));
            }
        }
        // After a damaged one our walk does not know where the next begins. The copy does.
        let mut theirs = Walker::new(self.rules.clone(), page);
        for step in copy.chunks(ALIGNMENT) {
            let before = theirs.record_end();
            if theirs.feed(step).is_err() {
                break;
            }
            let mut ours = theirs.clone();
            if theirs.record_end() > before
                && self.walk_one(&mut ours)
                && let Some(at) = self.difference(&ours)?
            {
                return Ok(Some(at));
            }
        }
        Ok(None)
    }

    /// Walks our WAL to the end of the next record. Returns `false` when that is not whole here.
    fn walk_one(&self, walker: &mut Walker) -> bool {
        let before = walker.last_record();
        while walker.position() < self.end() {
            let from = walker.position();
            let to = from.page_start().saturating_add(PAGE_SIZE as u64);
            for step in self.read_ours(from, to).chunks(ALIGNMENT) {
                if walker.feed(step).is_err() {
                    return false;
                }
                if walker.last_record() != before {
                    return true;
                }
            }
            if walker.position() < to {
                return false;
            }
        }
        false
    }

    /// The last record of a walk over ours, if the copy has other bytes there.
    fn difference(&self, ours: &Walker) -> io::Result<Option<Lsn>> {
        let Some(from) = ours.last_record() else { return Ok(None) };
        let to = ours.record_end().min(self.end());
        let same = self.read_ours(from, to) == read_from(self.copy, self.name, from, to)?;
        Ok((!same).then_some(from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::synth::Synth;
    use crate::wal::{SegmentNo, SegmentSize, SystemId, TimelineId};
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn name() -> SegmentName {
        let size = SegmentSize::new(MIB).unwrap();
        SegmentName { tli: TimelineId::FIRST, no: SegmentNo::new(5), size }
    }

    /// A segment, and where its records begin. From record `other` on they have another content.
    fn segment(lengths: &[usize], other: usize) -> (Vec<u8>, Vec<Lsn>) {
        let name = name();
        let start = name.no.start(name.size);
        let mut synth = Synth::new(SystemId::new(7), name.size, name.tli, 0xD110, start);
        let mut records = Vec::new();
        for n in 0.. {
            let content = if n < other { 0x5A } else { 0xA5 };
            let length = lengths[n % lengths.len()];
            let at = synth.record(&vec![content; length]);
            if at >= name.no.end(name.size) {
                break;
            }
            records.push(at);
        }
        let mut wal = synth.take_bytes().1;
        wal.truncate(MIB as usize);
        (wal, records)
    }

    fn other_record(ours: &Vec<u8>, copy: &Vec<u8>) -> Option<Lsn> {
        let name = name();
        let rules = PageRules {
            system: SystemId::new(7),
            size: name.size,
            tli: name.tli,
            magic: None,
            fork: None,
        };
        CopyComparison { name, rules: &rules, ours, copy }.other_record().unwrap()
    }

    fn offset(at: Lsn) -> usize {
        at.segment_offset(name().size) as usize
    }

    #[test]
    fn a_damaged_record_is_no_other_one() {
        let (copy, records) = segment(&[100, 9000, 40], usize::MAX);
        let mut ours = copy.clone();
        for n in [3, 4, 9] {
            ours[offset(records[n]) + 40] ^= 1;
        }
        ours[300_000..330_000].fill(0);
        assert_eq!(other_record(&ours, &copy), None);
        ours.truncate(500_000);
        assert_eq!(other_record(&ours, &copy), None);
        assert_eq!(other_record(&copy, &copy), None);
    }

    #[test]
    fn a_whole_record_behind_the_damage_shows_another_history() {
        let lengths = [100, 9000, 40];
        let (copy, _) = segment(&lengths, 6);
        let (mut ours, records) = segment(&lengths, usize::MAX);
        assert_eq!(other_record(&ours, &copy), Some(records[6]));
        ours[offset(records[6]) + 40] ^= 1;
        ours[offset(records[7]) + 40] ^= 1;
        assert_eq!(other_record(&ours, &copy), Some(records[8]), "in the same page");
    }

    /// Its records lie elsewhere.
    #[test]
    fn other_places_show_it_too() {
        let (copy, _) = segment(&[100, 200, 300], usize::MAX);
        let (mut ours, records) = segment(&[100, 200, 304], usize::MAX);
        ours[offset(records[2])..offset(records[40])].fill(0);
        assert!(other_record(&ours, &copy).is_some());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

        #[test]
        fn whatever_is_damaged(
            lengths in prop::collection::vec(1_usize..20_000, 1..20),
            at in 0..MIB as usize,
            length in 1_usize..5000,
            other in 0_usize..60,
        ) {
            let (copy, _) = segment(&lengths, usize::MAX);
            let mut ours = copy.clone();
            let to = (at + length).min(ours.len());
            ours[at..to].fill(0xE7);
            prop_assert_eq!(other_record(&ours, &copy), None);
            let (mut others, records) = segment(&lengths, other);
            prop_assume!(other + 1 < records.len());
            others[at..to].fill(0xE7);
            let is_hit = |n: usize| offset(records[n]) < to && at < offset(records[n + 1]);
            let shows = (other..records.len() - 1).find(|n| !is_hit(*n));
            let found = other_record(&others, &copy);
            prop_assert!(found.is_some() || shows.is_none(), "record {shows:?} is whole");
            prop_assert!(found.is_none_or(|found| found >= records[other]), "{found:?}");
        }
    }
}
