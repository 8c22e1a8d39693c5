//! The keeper's disk. Reads, writes, syncs, renames and removals go through its ring. Only
//! operations that tokio-uring lacks block the thread (opening, listing, lengths, advice), and
//! they are short. Work on what was set aside need not be: another thread does that.

use crate::store::disk::Disk;
use crate::store::plain_disk::PlainDisk;
use crate::store::retention::Space;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::SystemTime;
use tokio_uring::buf::BoundedBuf;
use tokio_uring::fs::File;

/// The disk through io_uring; usable only inside the keeper's runtime.
#[derive(Clone, Copy, Debug, Default)]
pub struct UringDisk;

/// tokio-uring wants to own a descriptor, but ours are shared with the data cores. Each
/// operation gets a duplicate, closed after it.
fn file_of(shared: &Arc<OwnedFd>) -> io::Result<File> {
    Ok(File::from_std(shared.try_clone()?.into()))
}

impl Disk for UringDisk {
    type File = Arc<OwnedFd>;
    type Watch = Weak<OwnedFd>;

    async fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        PlainDisk.list(dir).await
    }

    async fn open_read(&self, path: &Path) -> io::Result<Self::File> {
        PlainDisk.open_read(path).await
    }

    async fn open_write(&self, path: &Path) -> io::Result<Self::File> {
        PlainDisk.open_write(path).await
    }

    async fn create(&self, path: &Path) -> io::Result<Self::File> {
        PlainDisk.create(path).await
    }

    async fn read_at(
        &self,
        file: &Self::File,
        buffer: Vec<u8>,
        offset: u64,
    ) -> (io::Result<usize>, Vec<u8>) {
        let file = match file_of(file) {
            Ok(file) => file,
            Err(error) => return (Err(error), buffer),
        };
        let len = buffer.len();
        let (result, buffer) = file.read_at(buffer.slice(..len), offset).await;
        (close(file, result).await, buffer.into_inner())
    }

    async fn write_at(
        &self,
        file: &Self::File,
        bytes: Vec<u8>,
        offset: u64,
    ) -> (io::Result<usize>, Vec<u8>) {
        let file = match file_of(file) {
            Ok(file) => file,
            Err(error) => return (Err(error), bytes),
        };
        let (result, bytes) = file.write_at(bytes, offset).submit().await;
        (close(file, result).await, bytes)
    }

    async fn sync_data(&self, file: &Self::File) -> io::Result<()> {
        let file = file_of(file)?;
        let result = file.sync_data().await;
        close(file, result).await
    }

    async fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let file = File::from_std(PlainDisk::open_dir(dir)?.into());
        let result = file.sync_all().await;
        close(file, result).await
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        tokio_uring::fs::rename(from, to).await
    }

    async fn unlink(&self, path: &Path) -> io::Result<()> {
        tokio_uring::fs::remove_file(path).await
    }

    async fn link(&self, path: &Path, name: &Path) -> io::Result<()> {
        PlainDisk.link(path, name).await
    }

    async fn has_other_names(&self, path: &Path) -> io::Result<bool> {
        PlainDisk.has_other_names(path).await
    }

    async fn mkdir(&self, path: &Path) -> io::Result<()> {
        PlainDisk.mkdir(path).await
    }

    async fn modified(&self, path: &Path) -> io::Result<SystemTime> {
        PlainDisk.modified(path).await
    }

    async fn space(&self, dir: &Path) -> io::Result<Space> {
        PlainDisk.space(dir).await
    }

    async fn apart<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<Option<T>> {
        tokio::task::spawn_blocking(work).await.map(Some).map_err(io::Error::other)
    }

    async fn len(&self, file: &Self::File) -> io::Result<u64> {
        PlainDisk.len(file).await
    }

    async fn drop_cache(&self, file: &Self::File) -> io::Result<()> {
        PlainDisk.drop_cache(file).await
    }

    async fn give_way(&self) {
        // Operations are submitted when the thread parks, and only one that has to be waited for
        // makes it park. A yield to the runtime does not.
        drop(tokio_uring::no_op().await);
    }

    fn watch(file: &Self::File) -> Self::Watch {
        Arc::downgrade(file)
    }

    fn held(watch: &Self::Watch) -> Option<Self::File> {
        watch.upgrade()
    }
}

/// Closes the duplicate before the answer goes out. An error of the close itself matters for
/// data only where the operation would have reported it too.
async fn close<T>(file: File, result: io::Result<T>) -> io::Result<T> {
    drop(file.close().await);
    result
}
