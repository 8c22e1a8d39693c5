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
use super::layout::{ArchiveFile, Layout, Mark};
use std::io;
use std::path::Path;

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
