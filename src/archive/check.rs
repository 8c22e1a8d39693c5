//! How far a segment from the archive is WAL. A file of full size may be only partly valid: it may
//! have been archived before it was full, or prepared and never filled.

use crate::wal::walk::{WalkFault, Walker};
use crate::wal::{Lsn, SegmentName};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes read at a time.
const PIECE: usize = 1 << 20;

/// A file of WAL that is read at positions.
pub trait ReadAt {
    /// Reads some bytes at `offset`; returns 0 at the end of the file.
    ///
    /// # Errors
    /// The operating system's error.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Fills the buffer.
    ///
    /// # Errors
    /// The operating system's error; [`io::ErrorKind::UnexpectedEof`] when the file is too short.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>
    where
        Self: Sized,
    {
        let len = buffer.len();
        match read_some(self, buffer, offset)?.len() {
            read if read < len => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

impl ReadAt for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, buffer, offset)
    }
}

/// Feeds the segment's file from the walk's position to `upto` or the segment's end. Returns the
/// fault that ended the walk before that, if any. A file that is too short counts as zeros from
/// there on.
///
/// # Errors
/// The operating system's error.
pub fn walk_on(
    walker: &mut Walker,
    file: &impl ReadAt,
    name: SegmentName,
    upto: Lsn,
) -> io::Result<Option<WalkFault>> {
    let end = name.no.end(name.size).min(upto);
    let mut piece = vec![0; PIECE];
    while walker.position() < end {
        let at = walker.position();
        let want = (end.bytes_since(at) as usize).min(PIECE);
        let buffer = piece.get_mut(..want).unwrap_or_default();
        let read = read_some(file, buffer, at.segment_offset(name.size))?.len();
        buffer.get_mut(read..).unwrap_or_default().fill(0);
        if let Err(fault) = walker.feed(buffer) {
            return Ok(Some(fault));
        }
    }
    Ok(None)
}

/// The first position below `upto` at which two files of a segment differ. A shorter file differs
/// where it ends.
///
/// # Errors
/// The operating system's error.
pub fn first_difference(
    theirs: &impl ReadAt,
    ours: &impl ReadAt,
    name: SegmentName,
    upto: Lsn,
) -> io::Result<Option<Lsn>> {
    first_difference_within(theirs, ours, name, (name.no.start(name.size), upto))
}

/// The same from a position of the segment on.
///
/// # Errors
/// The operating system's error.
pub fn first_difference_within(
    theirs: &impl ReadAt,
    ours: &impl ReadAt,
    name: SegmentName,
    (from, upto): (Lsn, Lsn),
) -> io::Result<Option<Lsn>> {
    let (mut at, end) = (from, name.no.end(name.size).min(upto));
    let (mut left, mut right) = (vec![0; PIECE], vec![0; PIECE]);
    while at < end {
        let want = (end.bytes_since(at) as usize).min(PIECE);
        let offset = at.segment_offset(name.size);
        let left = read_some(theirs, left.get_mut(..want).unwrap_or_default(), offset)?;
        let right = read_some(ours, right.get_mut(..want).unwrap_or_default(), offset)?;
        let differs = left.iter().zip(right).position(|(left, right)| left != right);
        let same = left.len().min(right.len());
        if let Some(n) = differs.or((same < want).then_some(same)) {
            return Ok(Some(at.saturating_add(n as u64)));
        }
        at = at.saturating_add(want as u64);
    }
    Ok(None)
}

/// The WAL of a segment's file from `from` to `to`, both in that segment, or as much of it as the file
/// has.
///
/// # Errors
/// The operating system's error.
pub fn read_from(file: &impl ReadAt, name: SegmentName, from: Lsn, to: Lsn) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; to.bytes_since(from) as usize];
    let read = read_some(file, &mut buffer, from.segment_offset(name.size))?.len();
    buffer.truncate(read);
    Ok(buffer)
}

/// Fills the buffer, or as much of it as the file has.
pub(super) fn read_some<'b>(
    file: &impl ReadAt,
    buffer: &'b mut [u8],
    offset: u64,
) -> io::Result<&'b [u8]> {
    let mut read = 0;
    while read < buffer.len() {
        let rest = buffer.get_mut(read..).unwrap_or_default();
        match file.read_at(rest, offset + read as u64) {
            Ok(0) => break,
            Ok(count) => read += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(buffer.get(..read).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::synth::Synth;
    use crate::wal::{SegmentNo, SegmentSize, SystemId, TimelineId};

    const MIB: u64 = 1 << 20;
    const SYSTEM: SystemId = SystemId::new(7);

    fn name() -> SegmentName {
        let size = SegmentSize::new(MIB).unwrap();
        SegmentName { tli: TimelineId::FIRST, no: SegmentNo::new(5), size }
    }

    /// A segment in the middle of the WAL: it begins and ends inside a record.
    fn segment() -> Vec<u8> {
        let name = name();
        let begin = Lsn::new(4 * MIB);
        let mut synth = Synth::new(SYSTEM, name.size, TimelineId::FIRST, 0xD110, begin);
        while synth.position() < Lsn::new(6 * MIB) {
            synth.record(&[7; 5000]);
        }
        let (_, bytes) = synth.take_bytes();
        bytes[MIB as usize..2 * MIB as usize].to_vec()
    }

    #[test]
    fn differences() {
        let name = name();
        let file = |bytes: &[u8]| {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(bytes, 0).unwrap();
            file
        };
        let (start, good) = (name.no.start(name.size), segment());
        let mut other = good.clone();
        other[700_000] ^= 1;
        let differs = |bytes: &[u8], upto: u64| {
            let found =
                first_difference(&file(bytes), &file(&good), name, start.saturating_add(upto));
            found.unwrap().map(|at| at.bytes_since(start))
        };
        assert_eq!(differs(&good, MIB), None);
        assert_eq!(differs(&other, MIB), Some(700_000));
        assert_eq!(differs(&other, 700_001), Some(700_000));
        assert_eq!(differs(&other, 700_000), None);
        assert_eq!(differs(&good[..5000], MIB), Some(5000));
    }
}
