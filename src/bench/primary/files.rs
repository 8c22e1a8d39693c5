//! The WAL as segment files, for pg_waldump.

use crate::wal::{Lsn, SegmentName, SegmentSize, TimelineId};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;

/// A folder with segments. They have their final names and their full size from the
/// start, as in a primary's `pg_wal`.
#[derive(Debug)]
pub(super) struct SegmentFiles {
    folder: PathBuf,
    tli: TimelineId,
    size: SegmentSize,
    open: Option<(SegmentName, File)>,
}

impl SegmentFiles {
    pub(super) fn create(folder: PathBuf, tli: TimelineId, size: SegmentSize) -> io::Result<Self> {
        fs::create_dir_all(&folder)?;
        Ok(Self { folder, tli, size, open: None })
    }

    /// Writes `bytes` at `at`, which is where the last call ended, or the start of a segment.
    pub(super) fn append(&mut self, mut at: Lsn, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let no = at.segment(self.size);
            let room = no.end(self.size).bytes_since(at);
            let here = usize::try_from(room).unwrap_or(usize::MAX).min(bytes.len());
            let (piece, rest) = bytes.split_at(here);
            let name = SegmentName { tli: self.tli, no, size: self.size };
            self.segment(name)?.write_all(piece)?;
            at = at.saturating_add(piece.len() as u64);
            bytes = rest;
        }
        Ok(())
    }

    fn segment(&mut self, name: SegmentName) -> io::Result<&mut File> {
        let open = match self.open.take() {
            Some((open, file)) if open == name => (open, file),
            _ => {
                let file = File::create(self.folder.join(name.to_string()))?;
                file.set_len(self.size.bytes())?;
                (name, file)
            }
        };
        Ok(&mut self.open.insert(open).1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_go_to_their_segments() {
        let dir = tempfile::tempdir().unwrap();
        let size = SegmentSize::new(1 << 20).unwrap();
        let folder = dir.path().join("wal");
        let mut files = SegmentFiles::create(folder.clone(), TimelineId::FIRST, size).unwrap();
        let mut at = Lsn::new(3 << 20);
        for n in 1..=5u8 {
            let bytes = vec![n; 400_000];
            files.append(at, &bytes).unwrap();
            at = at.saturating_add(400_000);
        }
        let read = |name: &str| fs::read(folder.join(name)).unwrap();
        let (first, second) = (read("000000010000000000000003"), read("000000010000000000000004"));
        assert_eq!((first.len(), second.len()), (1 << 20, 1 << 20));
        assert_eq!((first[0], first[1_048_575], second[0]), (1, 3, 3));
        assert_eq!((second[2_000_000 - 1_048_577], second[2_000_000 - 1_048_576]), (5, 0));
    }
}
