//! Reads a segment for its digest, in pieces.

use super::{BlockDigests, BlockHasher};
use crate::store::disk::Disk;
use crate::store::histories::read_fork;
use crate::store::layout::Layout;
use crate::wal::page::PageRules;
use crate::wal::{SegmentContents, SegmentName, SystemId, Walker};

/// A segment that is being read.
#[derive(Clone, Debug)]
pub struct SegmentScan {
    hasher: BlockHasher,
    walker: Walker<SegmentContents>,
}

impl SegmentScan {
    /// Nothing was read yet.
    pub async fn begin<D: Disk>(
        disk: &D,
        layout: &Layout,
        system: SystemId,
        name: SegmentName,
    ) -> Self {
        // Only the segment of a fork needs it, and without it that one says nothing.
        let fork = read_fork(disk, layout, name.tli).await.ok().flatten();
        let rules = PageRules { system, size: name.size, tli: name.tli, magic: None, fork };
        let start = name.no.start(name.size);
        let walker = Walker::noting(rules, start, SegmentContents::default());
        Self { hasher: BlockHasher::default(), walker }
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

    /// The digests of the whole blocks, and what the WAL says. That is nothing when it is damaged,
    /// or of a server that writes its records in an unknown way.
    pub fn finish(mut self) -> (BlockDigests, SegmentContents) {
        let is_known = self.walker.feed(&[]).is_ok() && self.walker.unknown_magic().is_none();
        let contents = self.walker.into_notes();
        (self.hasher.finish(), if is_known { contents } else { SegmentContents::default() })
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
    fn scanned(magic: u16, change: impl FnOnce(&mut Vec<u8>)) -> (SegmentContents, [Stamp; 2]) {
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
        let (contents, [first, last]) = scanned(0xD110, |_| {});
        assert_eq!(contents.stamps, Some((first, last)));
        assert_eq!(contents.next_xid, Some(NextXid { epoch: None, xid: 10 }));
        let damaged = scanned(0xD110, |wal| wal[200_000] ^= 1).0;
        assert_eq!(damaged, SegmentContents::default());
        assert_eq!(scanned(0xDFFF, |_| {}).0, SegmentContents::default());
    }
}
