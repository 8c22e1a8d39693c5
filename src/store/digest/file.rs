//! The files of digests: `pg_wal/digests/<segment>.digest`. They lie inside `pg_wal`, so they go
//! where it goes.
//!
//! No digest ever stands beside other bytes than those that it is of. It is written when its
//! segment is complete, and goes, durably, before a file of that name is written again: see
//! [`forget`]. When retention removes a segment, its digest moves to `removed/` ([`retire`]) and
//! says later whether a file of the archive is ours.
//!
//! Of the two folders `digests/` is synced first: a digest comes into it before it moves on, and a
//! move that is durable while its coming is not would leave it in both.

use super::SegmentDigest;
use crate::store::disk::{Disk, parent};
use crate::store::durable::{failed_sync, read_small, write_full};
use crate::store::layout::Layout;
use crate::store::sealed_text::Unreadable;
use crate::wal::{SegmentName, SegmentSize};
use std::io;
use std::path::Path;

/// What a digest's file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DigestFile {
    /// There is none.
    Missing,
    /// It cannot be used, which means as much.
    Unreadable(Unreadable),
    /// The digest.
    Known(Box<SegmentDigest>),
}

/// Reads the digest of a segment.
///
/// # Errors
/// The operating system's error.
pub async fn read<D: Disk>(disk: &D, layout: &Layout, name: SegmentName) -> io::Result<DigestFile> {
    let bytes = match read_small(disk, &layout.digest(name)).await {
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => None,
        read => read?,
    };
    Ok(match bytes.map(|bytes| SegmentDigest::decode(&bytes, name)) {
        None => DigestFile::Missing,
        Some(Err(fault)) => DigestFile::Unreadable(fault),
        Some(Ok(digest)) => DigestFile::Known(Box::new(digest)),
    })
}

/// Reads the digest of a segment that may have been removed.
///
/// # Errors
/// The operating system's error.
pub async fn read_removed<D: Disk>(
    disk: &D,
    layout: &Layout,
    name: SegmentName,
) -> io::Result<DigestFile> {
    let bytes = match read_small(disk, &layout.removed_digest(name)).await {
        Err(error) if is_missing(&error) => None,
        read => read?,
    };
    match bytes.map(|bytes| SegmentDigest::decode(&bytes, name)) {
        Some(Ok(digest)) => Ok(DigestFile::Known(Box::new(digest))),
        Some(Err(_)) | None => read(disk, layout, name).await,
    }
}

/// Writes a digest beside its complete segment. It is not synced.
///
/// # Errors
/// The operating system's error.
pub async fn store<D: Disk>(disk: &D, layout: &Layout, digest: &SegmentDigest) -> io::Result<()> {
    match disk.mkdir(&layout.digests()).await {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made?,
    }
    let path = layout.digest(digest.name);
    let temporary = Layout::temporary(&path);
    let file = disk.create(&temporary).await?;
    write_full(disk, &file, digest.encode(), 0).await?;
    drop(file);
    disk.rename(&temporary, &path).await
}

/// Other bytes are about to come under the segment's name. Afterwards there is no digest of it,
/// durably.
///
/// # Errors
/// The operating system's error. A failed sync never looks like a full disk.
pub async fn forget<D: Disk>(disk: &D, layout: &Layout, name: SegmentName) -> io::Result<()> {
    let is_beside = unlink(disk, &layout.digest(name)).await?;
    let is_kept = unlink(disk, &layout.removed_digest(name)).await?;
    if is_beside || is_kept {
        disk.sync_dir(&layout.digests()).await.map_err(failed_sync)?;
    }
    if is_kept {
        disk.sync_dir(&layout.removed_digests()).await.map_err(failed_sync)?;
    }
    Ok(())
}

/// Removes a file. Returns whether it was there.
async fn unlink<D: Disk>(disk: &D, path: &Path) -> io::Result<bool> {
    match disk.unlink(path).await {
        Ok(()) => Ok(true),
        Err(error) if is_missing(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Retention removes the segment: its digest goes among those of removed segments. Returns whether
/// there was one. That is durable after [`sync_names`].
///
/// # Errors
/// The operating system's error.
pub async fn retire<D: Disk>(disk: &D, layout: &Layout, name: SegmentName) -> io::Result<bool> {
    let (from, to) = (layout.digest(name), layout.removed_digest(name));
    match disk.rename(&from, &to).await {
        Err(error) if is_missing(&error) => {}
        renamed => return renamed.map(|()| true),
    }
    match disk.mkdir(&layout.removed_digests()).await {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists || is_missing(&error) => {
            return Ok(false);
        }
        Err(error) => return Err(error),
    }
    match disk.rename(&from, &to).await {
        Err(error) if is_missing(&error) => Ok(false),
        renamed => renamed.map(|()| true),
    }
}

/// A removed segment is here again, with the bytes that its digest is of: that goes back beside it.
///
/// # Errors
/// The operating system's error.
pub async fn bring_back<D: Disk>(disk: &D, layout: &Layout, name: SegmentName) -> io::Result<()> {
    match disk.rename(&layout.removed_digest(name), &layout.digest(name)).await {
        Err(error) if is_missing(&error) => Ok(()),
        renamed => renamed,
    }
}

/// The digest of a removed segment goes for good. That is durable after [`sync_names`].
///
/// # Errors
/// The operating system's error.
pub async fn drop_removed<D: Disk>(disk: &D, layout: &Layout, name: SegmentName) -> io::Result<()> {
    unlink(disk, &layout.removed_digest(name)).await.map(|_| ())
}

/// The removed segments of which there is a digest.
///
/// # Errors
/// The operating system's error.
pub async fn list_removed<D: Disk>(
    disk: &D,
    layout: &Layout,
    size: SegmentSize,
) -> io::Result<Vec<SegmentName>> {
    let names = match disk.list(&layout.removed_digests()).await {
        Err(error) if is_missing(&error) => return Ok(Vec::new()),
        listed => listed?,
    };
    let segment = |name: String| SegmentName::parse(name.strip_suffix(".digest")?, size);
    Ok(names.into_iter().filter_map(segment).collect())
}

/// Another history goes on inside or before `first`: from there on no digest of a removed segment of
/// its timeline is left, durably.
///
/// # Errors
/// The operating system's error.
pub async fn forget_removed_from<D: Disk>(
    disk: &D,
    layout: &Layout,
    first: SegmentName,
) -> io::Result<()> {
    let names = list_removed(disk, layout, first.size).await?;
    let past = |name: &&SegmentName| name.tli == first.tli && name.no >= first.no;
    let mut past = names.iter().filter(past).peekable();
    if past.peek().is_none() {
        return Ok(());
    }
    for name in past {
        drop_removed(disk, layout, *name).await?;
    }
    sync_names(disk, layout).await
}

/// The segment goes, and its digest with it. That is durable after [`sync_names`].
///
/// # Errors
/// The operating system's error.
pub async fn discard<D: Disk>(disk: &D, layout: &Layout, name: SegmentName) -> io::Result<()> {
    unlink(disk, &layout.digest(name)).await.map(|_| ())
}

/// Makes durable which digests there are not any more. A start does it, too: what an earlier run
/// has removed could otherwise come back after a loss of power.
///
/// # Errors
/// The operating system's error.
pub async fn sync_names<D: Disk>(disk: &D, layout: &Layout) -> io::Result<()> {
    for folder in [layout.digests(), layout.removed_digests()] {
        match disk.sync_dir(&folder).await {
            Err(error) if is_missing(&error) => {}
            synced => synced?,
        }
    }
    Ok(())
}

/// A segment's file is about to leave `pg_wal` for `to`: its digest goes first, beside that,
/// durably. A file without a digest is only unknown.
///
/// # Errors
/// The operating system's error.
pub async fn take_along<D: Disk>(disk: &D, path: &Path, to: &Path) -> io::Result<()> {
    let digest = Layout::digest_of(path);
    match disk.rename(&digest, &Layout::with_digest(to)).await {
        Err(error) if is_missing(&error) => Ok(()),
        Err(error) => Err(error),
        Ok(()) => disk.sync_dir(parent(&digest)).await,
    }
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}
