//! Puts WAL out of the way without losing it. What is set aside has a name that is no WAL name:
//! nothing reads it, nothing removes it before an operator has confirmed it, and no later file takes
//! its name.

use super::clean::PIECE;
use super::digest::take_along;
use super::disk::{Disk, parent};
use super::durable::{read_full, write_full};
use super::fault::{StoreFault, failed};
use super::layout::Layout;
use crate::wal::page::{PAGE_SIZE, PageHeader};
use crate::wal::{Lsn, SegmentName};
use std::path::Path;

/// Renames an open segment so that nothing reads it, and says so. The caller syncs the directory.
pub async fn set_aside<D: Disk>(disk: &D, path: &Path, reason: &str) -> Result<(), StoreFault> {
    let stray = free_name(disk, &Layout::stray(path)).await?;
    disk.rename(path, &stray).await.map_err(failed("rename file", path))?;
    say(path, &stray, reason);
    Ok(())
}

/// Moves a file of `pg_wal` into another directory, with its digest, and says so. The caller syncs
/// both directories.
pub async fn move_aside<D: Disk>(
    disk: &D,
    path: &Path,
    to: &Path,
    reason: &str,
) -> Result<(), StoreFault> {
    let to = free_name(disk, to).await?;
    take_along(disk, path, &to).await.map_err(failed("move the digest of", path))?;
    disk.rename(path, &to).await.map_err(failed("rename file", path))?;
    say(path, &to, reason);
    Ok(())
}

/// Copies an open segment that is about to be cleared past a position. The copy is durable.
pub async fn keep_copy<D: Disk>(
    disk: &D,
    path: &Path,
    name: SegmentName,
    reason: &str,
) -> Result<(), StoreFault> {
    let stray = free_name(disk, &Layout::stray(path)).await?;
    let temporary = Layout::temporary(path);
    let original = disk.open_read(path).await.map_err(failed("open file", path))?;
    let copy = disk.create(&temporary).await.map_err(failed("create file", &temporary))?;
    let mut at = 0;
    while at < name.size.bytes() {
        let read = read_full(disk, &original, PIECE as usize, at).await;
        let bytes = read.map_err(failed("read file", path))?;
        if bytes.is_empty() {
            break;
        }
        let written = write_full(disk, &copy, bytes, at).await;
        written.map_err(failed("write file", &temporary))?;
        at += PIECE;
    }
    let synced = disk.sync_data(&copy).await;
    synced.map_err(|error| StoreFault::Sync { path: temporary.clone(), error })?;
    disk.rename(&temporary, &stray).await.map_err(failed("rename file", &temporary))?;
    let dir = parent(path);
    let synced = disk.sync_dir(dir).await;
    synced.map_err(|error| StoreFault::Sync { path: dir.to_owned(), error })?;
    say(path, &stray, reason);
    Ok(())
}

/// Whether an open segment holds WAL at or past `from`, judged by the page there.
pub async fn holds_wal_past<D: Disk>(
    disk: &D,
    path: &Path,
    name: SegmentName,
    from: Lsn,
) -> Result<bool, StoreFault> {
    let at = from.max(name.no.start(name.size));
    if at >= name.no.end(name.size) {
        return Ok(false);
    }
    let file = disk.open_read(path).await.map_err(failed("open file", path))?;
    let len = PAGE_SIZE.saturating_sub(at.page_offset());
    let read = read_full(disk, &file, len, at.segment_offset(name.size)).await;
    let bytes = read.map_err(failed("read file", path))?;
    if at.page_offset() > 0 {
        // Past the end of what was received, a page is zero.
        return Ok(bytes.iter().any(|byte| *byte != 0));
    }
    Ok(PageHeader::parse(&bytes).is_ok_and(|header| header.addr == at))
}

/// Whether the file at `path` adds nothing to the one at `whole`: it holds the same bytes up to
/// some position, and zeros from there on.
pub async fn adds_nothing<D: Disk>(
    disk: &D,
    path: &Path,
    whole: &Path,
    name: SegmentName,
) -> Result<bool, StoreFault> {
    let copy = disk.open_read(path).await.map_err(failed("open file", path))?;
    let original = disk.open_read(whole).await.map_err(failed("open file", whole))?;
    let mut at = 0;
    while at < name.size.bytes() {
        let copied = read_full(disk, &copy, PIECE as usize, at).await;
        let copied = copied.map_err(failed("read file", path))?;
        let ours = read_full(disk, &original, PIECE as usize, at).await;
        let ours = ours.map_err(failed("read file", whole))?;
        let same = copied.iter().zip(&ours).take_while(|(copied, ours)| copied == ours).count();
        if copied.iter().skip(same).any(|byte| *byte != 0) {
            return Ok(false);
        }
        at += PIECE;
    }
    Ok(true)
}

/// `wanted`, or the first of `wanted.1`, `wanted.2`, ... that no file has.
async fn free_name<D: Disk>(disk: &D, wanted: &Path) -> Result<std::path::PathBuf, StoreFault> {
    let dir = parent(wanted);
    let taken = disk.list(dir).await.map_err(failed("list directory", dir))?;
    let is_taken = |path: &Path| taken.iter().any(|name| path.ends_with(name));
    let numbered = (1u32..).map(|number| Layout::numbered(wanted, number));
    let mut names = std::iter::once(wanted.to_owned()).chain(numbered);
    let free = names.find(|path| !is_taken(path));
    free.ok_or_else(|| {
        failed("find a name beside", wanted)(std::io::ErrorKind::AlreadyExists.into())
    })
}

fn say(from: &Path, to: &Path, reason: &str) {
    let (from, to) = (from.display(), to.display());
    tracing::warn!(
        "\"{from}\" was set aside as \"{to}\": {reason}; nothing reads it, and it stays until it is \
         confirmed"
    );
}
