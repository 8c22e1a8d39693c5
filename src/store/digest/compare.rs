//! Whether a segment's bytes are those of its digest.

use super::{BlockDigests, BlockHasher, DigestFile, SegmentDigest, read, read_removed};
use crate::store::disk::run_ready;
use crate::store::layout::Layout;
use crate::store::plain_disk::PlainDisk;
use crate::wal::{Lsn, SegmentName};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes read at a time.
const PIECE: u64 = 256 << 10;

/// What a comparison has shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DigestComparison {
    /// There is no digest.
    Unknown,
    /// All bytes are as they were when this was written.
    Same(Box<SegmentDigest>),
    /// Some are not.
    Differs(DifferingBlocks),
}

/// Blocks whose bytes are not those of the digest, as positions: from and to. At least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DifferingBlocks(Vec<(Lsn, Lsn)>);

impl DifferingBlocks {
    /// Where the first one begins.
    pub fn from(&self) -> Lsn {
        self.0.first().map_or(Lsn::INVALID, |(from, _)| *from)
    }
}

impl fmt::Display for DifferingBlocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (from, to)) in self.0.iter().enumerate() {
            let comma = if n == 0 { "" } else { ", " };
            write!(f, "{comma}{from} to {to}")?;
        }
        f.write_str(" is not what it was when the segment was completed, by its digest")
    }
}

/// Reads a segment's file and computes what its digest would be. A file that is too short has fewer
/// blocks. `read` is told how many bytes each piece had.
///
/// # Errors
/// The operating system's error, or that of `read`.
pub fn hash_file(
    file: &File,
    name: SegmentName,
    mut read: impl FnMut(u64) -> io::Result<()>,
) -> io::Result<BlockDigests> {
    let mut hasher = BlockHasher::default();
    let mut piece = vec![0; PIECE as usize];
    while hasher.fed() < name.size.bytes() {
        match file.read_at(&mut piece, hasher.fed()) {
            Ok(0) => break,
            Ok(count) => {
                read(count as u64)?;
                hasher.feed(piece.get(..count).unwrap_or_default());
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(hasher.finish())
}

/// Compares what a segment's bytes are of with its digest.
///
/// # Errors
/// The digest's file cannot be read.
pub fn compare(
    layout: &Layout,
    name: SegmentName,
    found: &BlockDigests,
) -> io::Result<DigestComparison> {
    let known = run_ready(read(&PlainDisk, layout, name));
    let known = known.unwrap_or_else(|| Err(io::ErrorKind::WouldBlock.into()))?;
    let DigestFile::Known(digest) = known else { return Ok(DigestComparison::Unknown) };
    Ok(differing(digest, found))
}

/// Compares a file that came from the archive with the digest of the segment that was here under its
/// name. Without a digest the file is not read.
///
/// # Errors
/// The digest's file or the segment's cannot be read.
pub fn compare_restored(
    layout: &Layout,
    name: SegmentName,
    file: &File,
) -> io::Result<DigestComparison> {
    let known = run_ready(read_removed(&PlainDisk, layout, name));
    let known = known.unwrap_or_else(|| Err(io::ErrorKind::WouldBlock.into()))?;
    let DigestFile::Known(digest) = known else { return Ok(DigestComparison::Unknown) };
    let found = hash_file(file, name, |_| Ok(()))?;
    Ok(differing(digest, &found))
}

fn differing(digest: Box<SegmentDigest>, found: &BlockDigests) -> DigestComparison {
    let blocks = digest.differing(found);
    match blocks.is_empty() {
        true => DigestComparison::Same(digest),
        false => DigestComparison::Differs(DifferingBlocks(blocks)),
    }
}
