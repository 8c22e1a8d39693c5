//! The files of digests: `pg_wal/digests/<segment>.digest`. They lie inside `pg_wal`, so they go
//! where it goes.
//!
//! No digest ever stands beside other bytes than those that it is of. It is written when its
//! segment is complete, and goes, durably, before a file of that name is written again: see
//! [`forget`].

use super::SegmentDigest;
use crate::store::disk::{Disk, parent};
use crate::store::durable::{failed_sync, read_small, write_full};
use crate::store::layout::Layout;
use crate::store::sealed_text::Unreadable;
use crate::wal::SegmentName;
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
    let path = layout.digest(name);
    match disk.unlink(&path).await {
        Ok(()) => disk.sync_dir(parent(&path)).await.map_err(failed_sync),
        Err(error) if is_missing(&error) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The segment goes, and its digest with it. That is durable after [`sync_names`].
///
/// # Errors
/// The operating system's error.
pub async fn discard<D: Disk>(disk: &D, layout: &Layout, name: SegmentName) -> io::Result<()> {
    match disk.unlink(&layout.digest(name)).await {
        Err(error) if is_missing(&error) => Ok(()),
        removed => removed,
    }
}

/// Makes durable which digests there are not any more. A start does it, too: what an earlier run
/// has removed could otherwise come back after a loss of power.
///
/// # Errors
/// The operating system's error.
pub async fn sync_names<D: Disk>(disk: &D, layout: &Layout) -> io::Result<()> {
    match disk.sync_dir(&layout.digests()).await {
        Err(error) if is_missing(&error) => Ok(()),
        synced => synced,
    }
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
