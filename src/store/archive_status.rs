//! Records which WAL is archived, in PostgreSQL's own form, so that programs that look there
//! find what they expect. Each complete segment and history file that waits for
//! `archive_command` has an empty file `archive_status/<name>.ready`. It is renamed to
//! `<name>.done` when the command has succeeded, and removed together with the file it stands
//! for.
//!
//! Source: `src/backend/access/transam/xlogarchive.c` (`XLogArchiveNotify`,
//! `XLogArchiveCheckDone`, `XLogArchiveCleanup`), `src/backend/postmaster/pgarch.c`.
//!
//! No mark is synced. A file without a mark counts as not archived, at a start and whenever its
//! turn comes, so after a crash a file may be archived twice but is never left out. Only a
//! `.done` that outlives its file could do harm, if the name is used again: a start removes
//! those, and syncs the removal.

mod backlog;

pub use backlog::{ArchiveStatus, Attempt, Backlog, Woken};

use super::disk::Disk;
use super::layout::{ArchiveFile, Layout, Mark};
use std::io;
use std::path::Path;

/// What to do about a file whose turn has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It has to be archived.
    Due,
    /// Somebody has marked it as archived by hand.
    Done,
    /// The file is gone.
    Orphan,
}

/// Decides what to do about a file whose turn has come.
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
            // If the file was moved away since, its mark must not remain.
            match exists(disk, &layout.archived(file)).await? {
                true => disk.create(&done).await.map(drop),
                false => Ok(()),
            }
        }
        other => other,
    }
}

/// Removes the marks of a file that is gone.
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
