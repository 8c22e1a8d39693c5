//! The Unix sockets `.s.PGSQL.<port>` and their lock files, handled as in PostgreSQL: a crashed
//! server's files are taken over, a live server's are not.

use crate::store::plain_disk::PlainDisk;
use rustix::fs::OFlags;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// A listening Unix socket; dropping it removes its files.
#[derive(Debug)]
pub struct ListeningPath {
    socket: PathBuf,
    lock: PathBuf,
}

/// Why a Unix socket could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum SocketFault {
    /// The lock file names a live process.
    #[error("lock file \"{}\" already exists: is another server (PID {pid}) using port {port}?", path.display())]
    InUse {
        /// The lock file.
        path: PathBuf,
        /// The process it names.
        pid: i32,
        /// Our port.
        port: u16,
    },
    /// The lock file names no process.
    #[error("lock file \"{}\" is empty or damaged: another server is starting, or it is a remnant to be removed by hand", .0.display())]
    Damaged(PathBuf),
    /// The path does not fit into a socket address.
    #[error("Unix socket path \"{}\" is too long (maximum 107 bytes)", .0.display())]
    TooLong(PathBuf),
    /// Anything else.
    #[error("could not create Unix socket \"{}\": {error}", path.display())]
    Io {
        /// The file concerned.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
}

/// Longest path in a `sockaddr_un`, without its final zero byte.
const PATH_MAX: usize = 107;

/// Takes the lock, removes a dead server's socket and listens.
pub fn listen(
    directory: &Path,
    port: u16,
    data_directory: &Path,
) -> Result<(UnixListener, ListeningPath), SocketFault> {
    let socket = directory.join(format!(".s.PGSQL.{port}"));
    let lock = directory.join(format!(".s.PGSQL.{port}.lock"));
    if socket.as_os_str().len() > PATH_MAX {
        return Err(SocketFault::TooLong(socket));
    }
    take_lock(&lock, directory, port, data_directory)?;
    // From here on a failure removes the lock file again.
    let path = ListeningPath { socket, lock };
    match fs::remove_file(&path.socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(SocketFault::Io { path: path.socket.clone(), error });
        }
        _ => {}
    }
    let fault = |error| SocketFault::Io { path: path.socket.clone(), error };
    let listener = UnixListener::bind(&path.socket).map_err(fault)?;
    // This is PostgreSQL's default for unix_socket_permissions: the directory decides who may
    // connect.
    fs::set_permissions(&path.socket, Permissions::from_mode(0o777)).map_err(fault)?;
    listener.set_nonblocking(true).map_err(fault)?;
    Ok((listener, path))
}

fn take_lock(
    lock: &Path,
    directory: &Path,
    port: u16,
    data_directory: &Path,
) -> Result<(), SocketFault> {
    let fault = |error| SocketFault::Io { path: lock.to_owned(), error };
    let own_pid = std::process::id();
    // Two attempts: the first may find a dead server's file, the second creates ours.
    for _ in 0..2 {
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(lock) {
            Ok(mut file) => {
                // The lines of PostgreSQL's lock files: pid, data directory, start
                // time, port, socket directory.
                let text = format!(
                    "{own_pid}\n{}\n{}\n{port}\n{}\n",
                    data_directory.display(),
                    start_time(),
                    directory.display()
                );
                return file.write_all(text.as_bytes()).map_err(fault);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(fault(error)),
        }
        let pid = match lock_holder(lock) {
            Ok(Some(pid)) => pid,
            Ok(None) => return Err(SocketFault::Damaged(lock.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(fault(error)),
        };
        if pid.unsigned_abs() != own_pid && is_alive(pid) {
            return Err(SocketFault::InUse { path: lock.to_owned(), pid, port });
        }
        fs::remove_file(lock).map_err(fault)?;
    }
    Err(SocketFault::Damaged(lock.to_owned()))
}

fn start_time() -> u64 {
    let now = std::time::SystemTime::now();
    now.duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn lock_holder(lock: &Path) -> io::Result<Option<i32>> {
    let mut text = String::new();
    // Others may have put something there: the directory is often /tmp.
    let file = File::from(PlainDisk::open_file(lock, OFlags::RDONLY)?);
    file.take(4096).read_to_string(&mut text)?;
    // A standalone backend writes its pid negative.
    let pid = text.lines().next().and_then(|line| line.trim().parse::<i32>().ok());
    Ok(pid.and_then(i32::checked_abs).filter(|pid| *pid > 0))
}

fn is_alive(pid: i32) -> bool {
    let Some(pid) = rustix::process::Pid::from_raw(pid) else { return false };
    // EPERM means a live process of another user. PostgreSQL assumes an unrelated process that got
    // a dead server's PID; here two servers of two users are more likely.
    !matches!(rustix::process::test_kill_process(pid), Err(rustix::io::Errno::SRCH))
}

impl Drop for ListeningPath {
    fn drop(&mut self) {
        // Leftovers are harmless: the next start removes them.
        drop(fs::remove_file(&self.socket));
        drop(fs::remove_file(&self.lock));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_over_from_the_dead_only() {
        let dir = tempfile::tempdir().unwrap();
        let lock = dir.path().join(".s.PGSQL.5433.lock");
        let start = || listen(dir.path(), 5433, Path::new("/data"));

        // Pid 1 is alive wherever this runs.
        fs::write(&lock, "1\n/elsewhere\n").unwrap();
        assert!(matches!(start(), Err(SocketFault::InUse { pid: 1, .. })));
        fs::write(&lock, "").unwrap();
        assert!(matches!(start(), Err(SocketFault::Damaged(_))));

        fs::write(&lock, format!("{}\n/data\n", i32::MAX)).unwrap();
        fs::write(dir.path().join(".s.PGSQL.5433"), "").unwrap();
        let (listener, path) = start().unwrap();
        let text = fs::read_to_string(&lock).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], std::process::id().to_string());
        assert_eq!((lines[1], lines[3]), ("/data", "5433"));
        drop((listener, path));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_pipe_in_the_place_of_the_lock_file_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let lock = dir.path().join(".s.PGSQL.5433.lock");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &lock, fifo, mode, 0).unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let listening = listen(dir.path(), 5433, Path::new("/data"));
            tell.send(listening.unwrap_err().to_string()).unwrap();
        });
        let error = told.recv_timeout(std::time::Duration::from_secs(20)).expect("it waits");
        assert!(error.ends_with("it is a named pipe, not a file"), "{error}");
    }

    #[test]
    fn refuses_a_path_that_does_not_fit() {
        let long = PathBuf::from(format!("/{}", "x".repeat(100)));
        assert!(matches!(listen(&long, 5433, Path::new("/d")), Err(SocketFault::TooLong(_))));
    }
}
