//! Reads a segment for its digest, in pieces.

use super::{BlockDigests, BlockHasher};
use crate::store::disk::Disk;
use crate::store::histories::read_fork;
use crate::store::layout::Layout;
use crate::wal::page::PageRules;
use crate::wal::walk::WalkFault;
use crate::wal::{SegmentContents, SegmentName, SystemId, Walker};

/// A segment that is being read.
#[derive(Clone, Debug)]
pub struct SegmentScan {
    hasher: BlockHasher,
    walker: Walker<SegmentContents>,
    /// Is it known where the timeline left its parent?
    knows_fork: bool,
}

/// What the walk over a segment has found.
#[derive(Debug, PartialEq, Eq)]
pub enum ScannedWal {
    /// All of it is whole, as far as that shows without the segments before and after it.
    Whole(SegmentContents),
    /// It cannot be judged: its server writes records in an unknown way, or it is not known where its
    /// timeline left the parent.
    Unknown,
    /// It is no whole WAL.
    Damaged(WalkFault),
}

impl SegmentScan {
    /// Nothing was read yet.
    pub async fn begin<D: Disk>(
        disk: &D,
        layout: &Layout,
        system: SystemId,
        name: SegmentName,
    ) -> Self {
        let read = read_fork(disk, layout, name.tli).await;
        let knows_fork = read.is_ok();
        let fork = read.ok().flatten();
        let rules = PageRules { system, size: name.size, tli: name.tli, magic: None, fork };
        let start = name.no.start(name.size);
        let walker = Walker::noting(rules, start, SegmentContents::default());
        Self { hasher: BlockHasher::default(), walker, knows_fork }
    }

    /// The bytes that come next.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.hasher.feed(bytes);
        // After a fault it takes nothing more.
        self.walker.feed(bytes).ok();
    }

    /// How many bytes were fed.
    pub fn fed(&self) -> u64 {
        self.hasher.fed()
    }

    /// The digests of the whole blocks, and what the walk has found.
    pub fn finish(mut self) -> (BlockDigests, ScannedWal) {
        let is_known = self.walker.unknown_magic().is_none();
        let wal = match self.walker.feed(&[]) {
            Err(fault) if is_known && self.knows_fork => ScannedWal::Damaged(fault),
            Ok(()) if is_known => ScannedWal::Whole(self.walker.into_notes()),
            Ok(()) | Err(_) => ScannedWal::Unknown,
        };
        (self.hasher.finish(), wal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::directory::Directory;
    use crate::store::disk::run_ready;
    use crate::store::plain_disk::PlainDisk;
    use crate::wal::synth::Synth;
    use crate::wal::{Lsn, NextXid, SegmentNo, SegmentSize, Stamp, TimelineId};

    const MIB: u64 = 1 << 20;

    /// What a scan of a segment of WAL with this magic says, in which a byte is changed.
    fn scanned(magic: u16, change: impl FnOnce(&mut Vec<u8>)) -> (ScannedWal, [Stamp; 2]) {
        let (system, size) = (SystemId::new(7), SegmentSize::new(MIB).unwrap());
        let name = SegmentName { tli: TimelineId::FIRST, no: SegmentNo::new(5), size };
        let mut synth = Synth::new(system, size, name.tli, magic, Lsn::new(5 * MIB));
        let first = Stamp { at: synth.commit(8, 1000), time: 1000 };
        synth.record(&[7; 300_000]);
        let last = Stamp { at: synth.commit(9, 2000), time: 2000 };
        // It goes on in the next segment.
        synth.record(&[7; 900_000]);
        let mut wal = synth.take_bytes().1;
        wal.truncate(MIB as usize);
        change(&mut wal);
        let folder = tempfile::tempdir().unwrap();
        let directory = Directory::open(&folder.path().join("hub")).unwrap();
        let layout = directory.layout();
        let mut scan = run_ready(SegmentScan::begin(&PlainDisk, layout, system, name)).unwrap();
        wal.chunks(256 << 10).for_each(|piece| scan.feed(piece));
        assert_eq!(scan.fed(), MIB);
        (scan.finish().1, [first, last])
    }

    #[test]
    fn what_a_segment_says_is_known_when_all_of_it_is_whole() {
        let (found, [first, last]) = scanned(0xD110, |_| {});
        let ScannedWal::Whole(contents) = found else { panic!("{found:?}") };
        assert_eq!(contents.stamps, Some((first, last)));
        assert_eq!(contents.next_xid, Some(NextXid { epoch: None, xid: 10 }));
        let damaged = scanned(0xD110, |wal| wal[200_000] ^= 1).0;
        assert!(matches!(damaged, ScannedWal::Damaged(_)), "{damaged:?}");
        let lost = scanned(0xD110, |wal| wal[200_000..].fill(0)).0;
        assert!(matches!(lost, ScannedWal::Damaged(_)), "{lost:?}");
        assert_eq!(scanned(0xDFFF, |_| {}).0, ScannedWal::Unknown);
    }

    /// Its first segment begins with the parent's pages.
    #[test]
    fn a_timeline_whose_fork_is_unknown_is_not_called_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let directory = Directory::open(&folder.path().join("hub")).unwrap();
        let (system, size) = (SystemId::new(7), SegmentSize::new(MIB).unwrap());
        let tli = TimelineId::new(2).unwrap();
        let name = SegmentName { tli, no: SegmentNo::new(5), size };
        let layout = directory.layout();
        let mut scan = run_ready(SegmentScan::begin(&PlainDisk, layout, system, name)).unwrap();
        scan.feed(&vec![7; MIB as usize]);
        assert_eq!(scan.finish().1, ScannedWal::Unknown);
    }
}
