//! The disk by plain system calls. `inspect` uses it because it must work where io_uring does
//! not; the keeper's disk uses it for operations that the ring lacks. Every future is ready at
//! once.

use super::disk::Disk;
use super::retention::Space;
use rustix::fs::{Advice, FileType, Mode, OFlags};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::SystemTime;

/// The disk by plain system calls.
#[derive(Clone, Copy, Debug, Default)]
pub struct PlainDisk;

impl PlainDisk {
    /// Opens a file. Anything else of that name is refused: a pipe or a device could make the
    /// caller wait for ever, and a link whose target is away, because a disk is not mounted, must
    /// not look as if there were no such file.
    pub fn open_file(path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        let at_once = OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(path, flags | at_once, Mode::RUSR | Mode::WUSR);
        let file = opened.map_err(|error| explain(error, path))?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode);
        if kind != FileType::RegularFile {
            return Err(io::Error::other(format!("it is {}, not a file", name_of(kind))));
        }
        // A ring does not wait for the disk on behalf of a file with this flag.
        rustix::fs::fcntl_setfl(&file, OFlags::empty())?;
        Ok(file)
    }

    /// Opens a directory.
    pub fn open_dir(path: &Path) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(rustix::fs::open(path, flags, Mode::empty())?)
    }
}

/// What `open` takes for a missing file may be a link that leads to one.
fn explain(error: rustix::io::Errno, path: &Path) -> io::Error {
    let is_link = || path.symlink_metadata().is_ok_and(|meta| meta.is_symlink());
    match error {
        rustix::io::Errno::NOENT if is_link() => {
            io::Error::other("it is a symbolic link, and where it leads to there is no file")
        }
        error => error.into(),
    }
}

const fn name_of(kind: FileType) -> &'static str {
    match kind {
        FileType::Directory => "a directory",
        FileType::Fifo => "a named pipe",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        _ => "something else",
    }
}

impl Disk for PlainDisk {
    type File = Arc<OwnedFd>;
    type Watch = Weak<OwnedFd>;

    async fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let dir = PlainDisk::open_dir(dir)?;
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
        PlainDisk::open_file(path, OFlags::RDONLY).map(Arc::new)
    }

    async fn open_write(&self, path: &Path) -> io::Result<Self::File> {
        PlainDisk::open_file(path, OFlags::RDWR).map(Arc::new)
    }

    async fn create(&self, path: &Path) -> io::Result<Self::File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC;
        PlainDisk::open_file(path, flags).map(Arc::new)
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
        Ok(rustix::fs::fsync(PlainDisk::open_dir(dir)?)?)
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        Ok(rustix::fs::rename(from, to)?)
    }

    async fn unlink(&self, path: &Path) -> io::Result<()> {
        Ok(rustix::fs::unlink(path)?)
    }

    async fn link(&self, path: &Path, name: &Path) -> io::Result<()> {
        std::fs::hard_link(path, name)
    }

    async fn has_other_names(&self, path: &Path) -> io::Result<bool> {
        let meta = path.symlink_metadata()?;
        Ok(meta.is_symlink() || meta.nlink() > 1)
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

    async fn apart<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<Option<T>> {
        Ok(Some(work()))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::disk::run_ready;

    #[test]
    fn a_link_that_leads_nowhere_is_no_missing_file() {
        let folder = tempfile::tempdir().unwrap();
        let (link, target) = (folder.path().join("link"), folder.path().join("target"));
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let opened = [PlainDisk.open_read(&link), PlainDisk.open_read(&target)]
            .map(|opening| run_ready(opening).unwrap().unwrap_err());
        assert_eq!(opened[1].kind(), io::ErrorKind::NotFound);
        assert!(opened[0].to_string().contains("a symbolic link"), "{}", opened[0]);
        std::fs::write(&target, "").unwrap();
        assert!(run_ready(PlainDisk.open_read(&link)).unwrap().is_ok());
    }

    #[test]
    fn only_files_are_opened() {
        let folder = tempfile::tempdir().unwrap();
        let (pipe, file) = (folder.path().join("pipe"), folder.path().join("file"));
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
            .unwrap();
        std::fs::write(&file, "content").unwrap();
        for (path, kind) in [
            (pipe.as_path(), "a named pipe"),
            (folder.path(), "directory"),
            (Path::new("/dev/zero"), "a device"),
        ] {
            let opened = run_ready(PlainDisk.open_read(path)).unwrap();
            let error = opened.unwrap_err().to_string();
            assert!(error.contains(kind), "{error}");
            let opened = run_ready(PlainDisk.open_write(path)).unwrap();
            let error = opened.unwrap_err().to_string();
            assert!(error.to_lowercase().contains(kind), "{error}");
        }
        let opened = run_ready(PlainDisk.open_read(&file)).unwrap().unwrap();
        let flags = rustix::fs::fcntl_getfl(&opened).unwrap();
        assert!(!flags.contains(OFlags::NONBLOCK), "a ring would not wait for the disk");
    }
}
