//! The disk by plain system calls. `inspect` uses it because it must work where io_uring does
//! not; the keeper's disk uses it for operations that the ring lacks. Every future is ready at
//! once.

use super::disk::Disk;
use super::retention::Space;
use rustix::fs::{Advice, Mode, OFlags};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::SystemTime;

/// The disk by plain system calls.
#[derive(Clone, Copy, Debug, Default)]
pub struct PlainDisk;

impl PlainDisk {
    /// Opens a file or directory.
    pub fn open(path: &Path, flags: OFlags) -> io::Result<Arc<OwnedFd>> {
        let mode = Mode::RUSR | Mode::WUSR;
        Ok(Arc::new(rustix::fs::open(path, flags | OFlags::CLOEXEC, mode)?))
    }
}

impl Disk for PlainDisk {
    type File = Arc<OwnedFd>;
    type Watch = Weak<OwnedFd>;

    async fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let dir = PlainDisk::open(dir, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&dir)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name != "." && name != ".." {
                names.push(name);
            }
        }
        Ok(names)
    }

    async fn open_read(&self, path: &Path) -> io::Result<Self::File> {
        PlainDisk::open(path, OFlags::RDONLY)
    }

    async fn open_write(&self, path: &Path) -> io::Result<Self::File> {
        PlainDisk::open(path, OFlags::RDWR)
    }

    async fn create(&self, path: &Path) -> io::Result<Self::File> {
        PlainDisk::open(path, OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC)
    }

    async fn read_at(
        &self,
        file: &Self::File,
        mut buffer: Vec<u8>,
        offset: u64,
    ) -> (io::Result<usize>, Vec<u8>) {
        let result = rustix::io::pread(file, buffer.as_mut_slice(), offset);
        (result.map_err(io::Error::from), buffer)
    }

    async fn write_at(
        &self,
        file: &Self::File,
        bytes: Vec<u8>,
        offset: u64,
    ) -> (io::Result<usize>, Vec<u8>) {
        let result = rustix::io::pwrite(file, &bytes, offset);
        (result.map_err(io::Error::from), bytes)
    }

    async fn sync_data(&self, file: &Self::File) -> io::Result<()> {
        Ok(rustix::fs::fdatasync(file)?)
    }

    async fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let dir = PlainDisk::open(dir, OFlags::RDONLY | OFlags::DIRECTORY)?;
        Ok(rustix::fs::fsync(dir)?)
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        Ok(rustix::fs::rename(from, to)?)
    }

    async fn unlink(&self, path: &Path) -> io::Result<()> {
        Ok(rustix::fs::unlink(path)?)
    }

    async fn mkdir(&self, path: &Path) -> io::Result<()> {
        Ok(rustix::fs::mkdir(path, Mode::RWXU)?)
    }

    async fn modified(&self, path: &Path) -> io::Result<SystemTime> {
        std::fs::metadata(path)?.modified()
    }

    async fn space(&self, dir: &Path) -> io::Result<Space> {
        let disk = rustix::fs::statvfs(dir)?;
        let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
        Ok(Space { total: bytes(disk.f_blocks), free: bytes(disk.f_bavail) })
    }

    async fn len(&self, file: &Self::File) -> io::Result<u64> {
        Ok(u64::try_from(rustix::fs::fstat(file)?.st_size).unwrap_or(0))
    }

    async fn drop_cache(&self, file: &Self::File) -> io::Result<()> {
        Ok(rustix::fs::fadvise(file, 0, None, Advice::DontNeed)?)
    }

    fn watch(file: &Self::File) -> Self::Watch {
        Arc::downgrade(file)
    }

    fn held(watch: &Self::Watch) -> Option<Self::File> {
        watch.upgrade()
    }
}
