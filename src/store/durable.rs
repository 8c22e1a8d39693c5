//! Reading and writing whole files over a [`Disk`].

use super::append::is_no_space;
use super::disk::{Disk, parent, run_ready};
use super::fault::{StoreFault, failed};
use super::layout::Layout;
use super::plain_disk::PlainDisk;
use super::sealed_text::{MAX_LEN, Unreadable};
use std::io;
use std::path::Path;

/// Reads until the buffer is full or the file ends; the buffer is truncated to what was read.
pub async fn read_full<D: Disk>(
    disk: &D,
    file: &D::File,
    len: usize,
    offset: u64,
) -> io::Result<Vec<u8>> {
    let mut whole = Vec::new();
    while whole.len() < len {
        let buffer = vec![0; len - whole.len()];
        let (result, mut buffer) = disk.read_at(file, buffer, offset + whole.len() as u64).await;
        match result {
            Ok(0) => break,
            Ok(count) => {
                buffer.truncate(count);
                if whole.is_empty() {
                    whole = buffer;
                } else {
                    whole.extend_from_slice(&buffer);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(whole)
}

/// Writes everything. A write that takes nothing counts as a full disk.
pub async fn write_full<D: Disk>(
    disk: &D,
    file: &D::File,
    bytes: Vec<u8>,
    offset: u64,
) -> io::Result<()> {
    let (mut rest, mut at) = (bytes, offset);
    while !rest.is_empty() {
        let (result, mut bytes) = disk.write_at(file, rest, at).await;
        match result {
            Ok(0) => return Err(io::ErrorKind::StorageFull.into()),
            Ok(count) => {
                bytes.drain(..count);
                at += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        rest = bytes;
    }
    Ok(())
}

/// Replaces a small file: after a crash it is the old one or the new one, and after success it
/// is the new one.
pub async fn replace_durably<D: Disk>(disk: &D, path: &Path, bytes: Vec<u8>) -> io::Result<()> {
    let temporary = Layout::temporary(path);
    let file = disk.create(&temporary).await?;
    write_full(disk, &file, bytes, 0).await?;
    disk.sync_data(&file).await?;
    drop(file);
    disk.rename(&temporary, path).await?;
    disk.sync_dir(parent(path)).await
}

/// Removes a file, if it is there. That is durable after a sync of the directory.
pub async fn remove<D: Disk>(disk: &D, path: &Path) -> io::Result<()> {
    match disk.unlink(path).await {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Reads a small file whole; returns `None` when it does not exist.
pub async fn read_small<D: Disk>(disk: &D, path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match disk.open_read(path).await {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    read_full(disk, &file, MAX_LEN, 0).await.map(Some)
}

/// Reads a small file whole by plain system calls; returns `None` when it does not exist.
pub fn read_small_now(path: &Path) -> io::Result<Option<Vec<u8>>> {
    run_ready(read_small(&PlainDisk, path)).unwrap_or_else(|| Err(io::ErrorKind::WouldBlock.into()))
}

/// Reads and decodes a small file; returns `None` when it does not exist.
pub(super) async fn read_note<D: Disk, T>(
    disk: &D,
    path: &Path,
    decode: impl FnOnce(&[u8]) -> Result<T, Unreadable>,
) -> Result<Option<T>, StoreFault> {
    let bytes = read_small(disk, path).await.map_err(failed("read file", path))?;
    let note = bytes.map(|bytes| decode(&bytes)).transpose();
    note.map_err(|fault| StoreFault::Unreadable { path: path.to_owned(), fault })
}

/// A failed sync is never retried, whatever the reason: it must not look like a disk that is
/// full for a while.
pub fn failed_sync(error: io::Error) -> io::Error {
    if is_no_space(&error) { io::Error::other(format!("fsync failed: {error}")) } else { error }
}
