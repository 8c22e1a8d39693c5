//! The hub's directory: ours alone. It is checked as PostgreSQL checks its data directory,
//! because WAL at rest is the whole database.

use super::disk::parent;
use super::layout::Layout;
use super::plain_disk::PlainDisk;
use super::recover::looks_like_wal;
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A locked directory. Dropping it releases the locks.
#[derive(Debug)]
pub struct Directory {
    layout: Layout,
    _locks: Locks,
}

/// What keeps a second hub out.
#[derive(Debug)]
struct Locks {
    /// The lock file. It holds the process ID.
    _file: File,
    /// The directory itself: the lock file may be removed by whoever cleans up, and the next would
    /// be another file. `None` where the file system cannot lock a directory.
    _itself: Option<File>,
}

/// Why a directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryFault {
    /// A system call failed.
    #[error("could not {action} \"{}\": {error}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The path it was tried on.
        path: PathBuf,
        /// The operating system's error message.
        error: io::Error,
    },
    /// It is not a directory.
    #[error("\"{}\" is not a directory", .0.display())]
    NotADirectory(PathBuf),
    /// It belongs to another user.
    #[error(
        "data directory \"{}\" has wrong ownership: the server must be started by the user that \
         owns the data directory",
        .0.display()
    )]
    Ownership(PathBuf),
    /// Others may read or write it.
    #[error(
        "data directory \"{}\" has invalid permissions: permissions should be u=rwx (0700), \
         found {mode:04o}",
        path.display()
    )]
    Permissions {
        /// The directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// No hub ever started in it.
    #[error("\"{}\" is not a hub's directory: there is no pg_wal in it", .0.display())]
    NotAHubs(PathBuf),
    /// It belongs to PostgreSQL.
    #[error("directory \"{}\" is a PostgreSQL data directory; walhub needs one of its own", .0.display())]
    Postgres(PathBuf),
    /// It holds files that are not a hub's.
    #[error(
        "directory \"{}\" exists but is not empty, and is not a walhub directory: it contains \
         \"{found}\"",
        path.display()
    )]
    NotOurs {
        /// The directory.
        path: PathBuf,
        /// One of those files.
        found: String,
    },
    /// Another process is using it.
    #[error(
        "lock file \"{}\" already exists: is another walhub{} running in this directory?",
        path.display(),
        pid.map(|pid| format!(" (PID {pid})")).unwrap_or_default()
    )]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// The process that holds the lock.
        pid: Option<u32>,
    },
}

impl Directory {
    /// Creates the directory if it does not exist, checks it, and locks it.
    pub fn open(path: &Path) -> Result<Self, DirectoryFault> {
        let layout = Layout::new(path);
        let created = make_dir(path)?;
        check_access(path)?;
        check_content(&layout)?;
        let locks = lock(&layout)?;
        make_dir(layout.wal())?;
        check_access(layout.wal())?;
        sync(path)?;
        if created == Created::Now {
            sync(parent(path))?;
        }
        Ok(Self { layout, _locks: locks })
    }

    /// The names inside.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }
}

/// Is this the directory of a hub? For those that only read one: [`Directory::open`] would turn any
/// empty directory into a hub's.
///
/// # Errors
/// It is not, or cannot be looked at.
pub fn check_is_a_hubs(layout: &Layout) -> Result<(), DirectoryFault> {
    let root = layout.root();
    let meta = std::fs::metadata(root).map_err(failed("read", root))?;
    if !meta.is_dir() {
        return Err(DirectoryFault::NotADirectory(root.to_owned()));
    }
    if root.join("PG_VERSION").exists() {
        return Err(DirectoryFault::Postgres(root.to_owned()));
    }
    match std::fs::metadata(layout.wal()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(DirectoryFault::NotAHubs(root.to_owned()))
        }
        other => other.map(|_| ()).map_err(failed("read", layout.wal())),
    }
}

/// The holder of the directory's lock: `None` when nobody holds it, else the process ID in the
/// lock file, if there is one.
pub fn lock_holder(layout: &Layout) -> io::Result<Option<Option<u32>>> {
    let held_itself = is_held(&File::open(layout.root())?)?;
    let mut file = match PlainDisk::open_file(&layout.pid(), OFlags::RDONLY) {
        Ok(file) => File::from(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(held_itself.then_some(None));
        }
        Err(error) => return Err(error),
    };
    let held = held_itself || is_held(&file)?;
    Ok(held.then(|| read_pid(&mut file)))
}

/// Does somebody hold a file's lock? What cannot be locked nobody holds.
fn is_held(file: &File) -> io::Result<bool> {
    match file.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) if has_no_locks(&error) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn failed<'p>(
    action: &'static str,
    path: &'p Path,
) -> impl FnOnce(io::Error) -> DirectoryFault + 'p {
    move |error| DirectoryFault::Io { action, path: path.to_owned(), error }
}

#[derive(PartialEq, Eq)]
enum Created {
    Now,
    Before,
}

fn make_dir(path: &Path) -> Result<Created, DirectoryFault> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => Ok(Created::Now),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(Created::Before),
        Err(error) => Err(failed("create directory", path)(error)),
    }
}

fn check_access(path: &Path) -> Result<(), DirectoryFault> {
    let meta = std::fs::metadata(path).map_err(failed("read permissions of directory", path))?;
    if !meta.is_dir() {
        return Err(DirectoryFault::NotADirectory(path.to_owned()));
    }
    if meta.uid() != rustix::process::geteuid().as_raw() {
        return Err(DirectoryFault::Ownership(path.to_owned()));
    }
    let mode = meta.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(DirectoryFault::Permissions { path: path.to_owned(), mode });
    }
    Ok(())
}

/// A directory that was never ours must be empty, apart from dot files and a file system's own
/// `lost+found`.
fn check_content(layout: &Layout) -> Result<(), DirectoryFault> {
    let path = layout.root();
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path).map_err(failed("read directory", path))? {
        let entry = entry.map_err(failed("read directory", path))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    let has = |name: &str| names.iter().any(|found| found == name);
    if has("PG_VERSION") || has("global") {
        return Err(DirectoryFault::Postgres(path.to_owned()));
    }
    if has("walhub.control") || has("walhub.pid") {
        return Ok(());
    }
    let foreign = names.into_iter().find(|name| name != "lost+found" && !name.starts_with('.'));
    match foreign {
        Some(found) if found == "pg_wal" => check_empty_wal(layout),
        Some(found) => Err(DirectoryFault::NotOurs { path: path.to_owned(), found }),
        None => Ok(()),
    }
}

/// A first start that was killed early leaves an empty `pg_wal`.
fn check_empty_wal(layout: &Layout) -> Result<(), DirectoryFault> {
    let path = layout.wal();
    for entry in std::fs::read_dir(path).map_err(failed("read directory", path))? {
        let entry = entry.map_err(failed("read directory", path))?;
        let found = entry.file_name().to_string_lossy().into_owned();
        if looks_like_wal(&found) || !found.starts_with("spare.") {
            return Err(DirectoryFault::NotOurs { path: path.to_owned(), found });
        }
    }
    Ok(())
}

fn lock(layout: &Layout) -> Result<Locks, DirectoryFault> {
    let path = layout.pid();
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut file = options.open(&path).map_err(failed("open lock file", &path))?;
    let root = layout.root();
    let itself = File::open(root).map_err(failed("open directory", root))?;
    let itself = match try_lock(&itself) {
        Ok(()) => Some(itself),
        Err(TryLockError::WouldBlock) => {
            return Err(DirectoryFault::Locked { path, pid: read_pid(&mut file) });
        }
        Err(TryLockError::Error(error)) if has_no_locks(&error) => None,
        Err(TryLockError::Error(error)) => return Err(failed("lock directory", root)(error)),
    };
    match try_lock(&file) {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(DirectoryFault::Locked { path, pid: read_pid(&mut file) });
        }
        Err(TryLockError::Error(error)) => return Err(failed("lock file", &path)(error)),
    }
    let written = file.set_len(0).and_then(|()| file.rewind());
    let written = written.and_then(|()| writeln!(file, "{}", std::process::id()));
    match written {
        Ok(()) => {}
        // Only the lock matters; a full disk must not keep the hub from serving.
        Err(error) if super::append::is_no_space(&error) => {}
        Err(error) => return Err(failed("write lock file", &path)(error)),
    }
    Ok(Locks { _file: file, _itself: itself })
}

/// Locks a file. `inspect` takes its locks briefly to see whether somebody holds them.
fn try_lock(file: &File) -> Result<(), TryLockError> {
    let mut tries = 0;
    loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if tries < 10 => {
                tries += 1;
                std::thread::sleep(Duration::from_millis(20));
            }
            result => return result,
        }
    }
}

/// Does the error say that such a file cannot be locked? NFS locks only what is open for writing,
/// and a directory never is.
fn has_no_locks(error: &io::Error) -> bool {
    let code = Errno::from_io_error(error);
    code.is_some_and(|code| {
        [Errno::BADF, Errno::NOLCK, Errno::OPNOTSUPP, Errno::INVAL].contains(&code)
    })
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn sync(path: &Path) -> Result<(), DirectoryFault> {
    let dir = File::open(path).map_err(failed("open directory", path))?;
    dir.sync_all().map_err(failed("fsync directory", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn private() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        dir
    }

    #[test]
    fn creates_locks_and_opens_again() {
        let parent = private();
        let path = parent.path().join("hub");
        let first = Directory::open(&path).unwrap();
        let meta = std::fs::metadata(first.layout().wal()).unwrap();
        assert_eq!(meta.mode() & 0o777, 0o700);
        let own = std::process::id();
        assert_eq!(lock_holder(first.layout()).unwrap(), Some(Some(own)));
        let second = Directory::open(&path).unwrap_err();
        assert!(matches!(second, DirectoryFault::Locked { pid: Some(pid), .. } if pid == own));
        let layout = first.layout().clone();
        // Somebody cleans up what looks like a stale lock file.
        std::fs::remove_file(layout.pid()).unwrap();
        assert_eq!(lock_holder(&layout).unwrap(), Some(None));
        let third = Directory::open(&path).unwrap_err();
        assert!(matches!(third, DirectoryFault::Locked { pid: None, .. }), "{third}");
        drop(first);
        assert_eq!(lock_holder(&layout).unwrap(), None);
        Directory::open(&path).unwrap();
    }

    #[test]
    fn refuses_open_permissions() {
        for mode in [0o750, 0o701, 0o777] {
            let dir = private();
            std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(mode)).unwrap();
            let fault = Directory::open(dir.path()).unwrap_err();
            assert!(fault.to_string().contains("has invalid permissions"), "{fault}");
        }
    }

    #[test]
    fn who_only_reads_is_told_what_a_directory_is() {
        let dir = private();
        let said = |path: &Path| check_is_a_hubs(&Layout::new(path)).map_err(|e| e.to_string());
        let is = |path: &Path, words: &str| {
            let fault = said(path).unwrap_err();
            assert!(fault.contains(words), "{fault}");
        };
        is(dir.path(), "is not a hub's directory: there is no pg_wal in it");
        is(&dir.path().join("none"), "none\": No such file or directory");
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        is(&file, "is not a directory");
        std::fs::create_dir(dir.path().join("pg_wal")).unwrap();
        assert_eq!(said(dir.path()), Ok(()));
        std::fs::write(dir.path().join("PG_VERSION"), "15\n").unwrap();
        is(dir.path(), "is a PostgreSQL data directory");
    }

    #[test]
    fn refuses_what_is_not_ours() {
        let dir = private();
        std::fs::write(dir.path().join("PG_VERSION"), "15\n").unwrap();
        assert!(matches!(Directory::open(dir.path()), Err(DirectoryFault::Postgres(_))));
        let dir = private();
        std::fs::write(dir.path().join("thesis.tex"), "").unwrap();
        assert!(matches!(Directory::open(dir.path()), Err(DirectoryFault::NotOurs { .. })));
        let dir = private();
        std::fs::create_dir(dir.path().join("pg_wal")).unwrap();
        std::fs::write(dir.path().join("pg_wal/000000010000000000000001"), "").unwrap();
        assert!(matches!(Directory::open(dir.path()), Err(DirectoryFault::NotOurs { .. })));
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(matches!(Directory::open(&file), Err(DirectoryFault::NotADirectory(_))));
    }
}
