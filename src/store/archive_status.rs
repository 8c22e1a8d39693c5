//! What of the WAL is archived, noted as PostgreSQL notes it, so that programs which look
//! there find what they know: an empty file `archive_status/<name>.ready` for each complete
//! segment and history file that waits for `archive_command`, renamed to `<name>.done` when
//! the command has succeeded, removed with the file it speaks of.
//!
//! Source: `src/backend/access/transam/xlogarchive.c` (`XLogArchiveNotify`,
//! `XLogArchiveCheckDone`, `XLogArchiveCleanup`), `src/backend/postmaster/pgarch.c`.
//!
//! No mark is synced. A file without one counts as not archived, at a start and whenever its
//! turn comes, so a crash may have a file archived twice, and never left out. Only a `.done`
//! that outlives its file could do harm, should the name come again: a start removes those,
//! and syncs that.

mod backlog;

pub use backlog::{ArchiveStatus, Attempt, Backlog, Woken};

use super::disk::Disk;
use super::layout::{FileKind, Layout};
use crate::wal::{SegmentName, SegmentSize, TimelineId};
use std::fmt;
use std::io;
use std::path::Path;

/// A file that is archived. The order is that of archiving (`ready_file_comparator`): history
/// files first, then by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ArchiveFile {
    /// A timeline's history.
    History(TimelineId),
    /// A complete segment.
    Segment(SegmentName),
}

impl ArchiveFile {
    /// Reads a name in `pg_wal`; none for what is not archived.
    pub fn parse(name: &str, size: SegmentSize) -> Option<Self> {
        match FileKind::of(name, size) {
            FileKind::Segment(segment) => Some(Self::Segment(segment)),
            FileKind::History(tli) => Some(Self::History(tli)),
            _ => None,
        }
    }
}

impl fmt::Display for ArchiveFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::History(tli) => write!(f, "{:08X}.history", tli.raw()),
            Self::Segment(name) => name.fmt(f),
        }
    }
}

/// What a file in `archive_status` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// The file waits for the archive.
    Ready,
    /// The archive has it.
    Done,
}

impl Mark {
    /// Reads a name in `archive_status`.
    pub fn parse(name: &str, size: SegmentSize) -> Option<(ArchiveFile, Self)> {
        let marks = [Self::Ready, Self::Done].into_iter();
        let mut read = marks.filter_map(|mark| {
            let file = name.strip_suffix(mark.ending())?;
            Some((ArchiveFile::parse(file, size)?, mark))
        });
        read.next()
    }

    const fn ending(self) -> &'static str {
        match self {
            Self::Ready => ".ready",
            Self::Done => ".done",
        }
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.ending())
    }
}

/// What is to be done about a file whose turn has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It has to be archived.
    Due,
    /// Somebody has marked it as archived by hand.
    Done,
    /// It has gone.
    Orphan,
}

/// Looks at a file whose turn has come.
pub async fn turn<D: Disk>(disk: &D, layout: &Layout, file: ArchiveFile) -> io::Result<Turn> {
    if !exists(disk, &layout.archived(file)).await? {
        return Ok(Turn::Orphan);
    }
    if exists(disk, &layout.mark(file, Mark::Ready)).await? {
        return Ok(Turn::Due);
    }
    match exists(disk, &layout.mark(file, Mark::Done)).await? {
        true => Ok(Turn::Done),
        // The mark was lost, or there was no space for it.
        false => Ok(Turn::Due),
    }
}

/// Marks a file as waiting.
pub async fn mark_ready<D: Disk>(disk: &D, layout: &Layout, file: ArchiveFile) -> io::Result<()> {
    disk.create(&layout.mark(file, Mark::Ready)).await.map(drop)
}

/// Marks a file as archived.
pub async fn mark_done<D: Disk>(disk: &D, layout: &Layout, file: ArchiveFile) -> io::Result<()> {
    let done = layout.mark(file, Mark::Done);
    match disk.rename(&layout.mark(file, Mark::Ready), &done).await {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // A mark must not stay behind when the file was moved away meanwhile.
            match exists(disk, &layout.archived(file)).await? {
                true => disk.create(&done).await.map(drop),
                false => Ok(()),
            }
        }
        other => other,
    }
}

/// Removes the marks of a file that has gone.
pub async fn unmark<D: Disk>(disk: &D, layout: &Layout, file: ArchiveFile) -> io::Result<()> {
    for mark in [Mark::Done, Mark::Ready] {
        match disk.unlink(&layout.mark(file, mark)).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(())
}

/// Is there a file of this name?
pub async fn exists<D: Disk>(disk: &D, path: &Path) -> io::Result<bool> {
    match disk.open_read(path).await {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_their_order() {
        let size = SegmentSize::new(16 << 20).unwrap();
        let names = [
            "00000002.history",
            "00000003.history",
            "00000001000000000000000A",
            "000000010000000100000000",
            "000000020000000000000001",
        ];
        let files: Vec<_> =
            names.iter().map(|name| ArchiveFile::parse(name, size).unwrap()).collect();
        assert!(files.is_sorted());
        for (file, name) in files.iter().zip(names) {
            assert_eq!(file.to_string(), name);
            for mark in [Mark::Ready, Mark::Done] {
                assert_eq!(Mark::parse(&format!("{name}{mark}"), size), Some((*file, mark)));
            }
        }
        for other in ["spare.1.ready", "00000001000000000000000A", "x.done", "1.history.ready"] {
            assert_eq!(Mark::parse(other, size), None, "{other}");
        }
        assert_eq!(ArchiveFile::parse("00000001000000000000000A.partial", size), None);
    }
}
