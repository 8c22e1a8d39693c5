//! What the store asks of a disk, as a trait. The keeper's disk is asynchronous, `inspect` uses
//! plain system calls, and the simulation's disk tears, loses and fails.
//!
//! Assumptions about the medium: a 512-byte sector is written whole or not at all; a sync that
//! succeeded is true; names are durable after an fsync of their directory, and not before; a
//! rename has either happened or not.

use super::retention::Space;
use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::SystemTime;

/// A disk.
#[expect(async_fn_in_trait, reason = "used by generic code on one thread; no Send bound is needed")]
pub trait Disk {
    /// An open file; a clone is the same open file.
    type File: Clone;

    /// The names in a directory, without `.` and `..`, in no order.
    async fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Opens a file for reading.
    async fn open_read(&self, path: &Path) -> io::Result<Self::File>;

    /// Opens a file for reading and writing.
    async fn open_write(&self, path: &Path) -> io::Result<Self::File>;

    /// Creates a file with mode 0600 for reading and writing. An existing file is truncated.
    async fn create(&self, path: &Path) -> io::Result<Self::File>;

    /// Reads up to the buffer's length, or less at the end of the file.
    async fn read_at(
        &self,
        file: &Self::File,
        buffer: Vec<u8>,
        offset: u64,
    ) -> (io::Result<usize>, Vec<u8>);

    /// Writes the buffer, or the first part of it.
    async fn write_at(
        &self,
        file: &Self::File,
        bytes: Vec<u8>,
        offset: u64,
    ) -> (io::Result<usize>, Vec<u8>);

    /// fdatasync: content and length are durable.
    async fn sync_data(&self, file: &Self::File) -> io::Result<()>;

    /// fsync of a directory: the names in it are durable.
    async fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Renames within a directory, replacing any file that has the new name.
    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a name; open files keep their bytes.
    async fn unlink(&self, path: &Path) -> io::Result<()>;

    /// Gives a file a second name. One that there is already is not replaced.
    async fn link(&self, path: &Path, name: &Path) -> io::Result<()> {
        let pair = format!("{} as {}", path.display(), name.display());
        Err(io::Error::new(io::ErrorKind::Unsupported, pair))
    }

    /// Is a file there under other names, too, or is this name a link? A disk without links has none.
    async fn has_other_names(&self, _: &Path) -> io::Result<bool> {
        Ok(false)
    }

    /// Makes a directory with mode 0700. A disk that keeps only files has none to make.
    async fn mkdir(&self, path: &Path) -> io::Result<()> {
        Err(io::Error::new(io::ErrorKind::Unsupported, path.display().to_string()))
    }

    /// When a file was last written. Unknown on a disk without a clock.
    async fn modified(&self, path: &Path) -> io::Result<SystemTime> {
        Err(io::Error::new(io::ErrorKind::Unsupported, path.display().to_string()))
    }

    /// How full the file system of a directory is. Unknown on a disk without a limit.
    async fn space(&self, dir: &Path) -> io::Result<Space> {
        Err(io::Error::new(io::ErrorKind::Unsupported, dir.display().to_string()))
    }

    /// Does work on what was set aside, by plain system calls. However long that takes, other
    /// operations go on meanwhile. A disk that keeps only files has no such thing, and does not do it.
    async fn apart<T: Send + 'static>(
        &self,
        _: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<Option<T>> {
        Ok(None)
    }

    /// The file's length.
    async fn len(&self, file: &Self::File) -> io::Result<u64>;

    /// Asks the system to forget cached pages that are not dirty, so that the next
    /// read comes from the disk (`POSIX_FADV_DONTNEED`).
    async fn drop_cache(&self, file: &Self::File) -> io::Result<()>;

    /// Lets other operations on this thread begin. On a disk whose operations begin when they are
    /// asked for, nothing has to be done for that.
    async fn give_way(&self) {}

    /// A reference that does not keep the file open.
    type Watch;

    /// Watches an open file.
    fn watch(file: &Self::File) -> Self::Watch;

    /// The open file, if somebody still holds it.
    fn held(watch: &Self::Watch) -> Option<Self::File>;
}

/// The directory of a file's name.
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Runs work over a disk whose futures are always ready, such as
/// [`PlainDisk`](super::plain_disk::PlainDisk).
pub fn run_ready<T>(work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    match work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}
