//! A test's own folder, ports and logs.
#![expect(clippy::print_stderr, reason = "a failed test says where its logs are")]

use super::programs::Account;
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

/// What stays of each log of a failed test, from its end.
const KEPT_LOG: u64 = 1 << 20;

/// Where one test plays. Dropped last: then the folder goes. After a failure the ends of
/// the logs are printed, and only logs stay.
#[derive(Debug)]
pub(crate) struct Scene {
    path: PathBuf,
    logs: Mutex<Vec<PathBuf>>,
    failed: AtomicBool,
}

impl Scene {
    /// A fresh folder. Its path is short, for it also holds Unix sockets (107 bytes).
    pub(crate) fn new() -> Self {
        Self::within(&std::env::temp_dir(), "walhub-test")
    }

    /// A fresh folder in another one.
    pub(crate) fn within(parent: &Path, prefix: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("{prefix}-{}-{number}", std::process::id()));
        // A leftover of an earlier process with our number.
        drop(fs::remove_dir_all(&path));
        fs::create_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Self { path, logs: Mutex::default(), failed: AtomicBool::new(false) }
    }

    /// The folder.
    pub(crate) fn root(&self) -> &Path {
        &self.path
    }

    /// What it was for has failed, without a panic.
    pub(crate) fn fail(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }

    /// Removes a folder of this one, which may be missing.
    pub(crate) fn clear(&self, name: &str) {
        let path = self.path.join(name);
        if path.exists() {
            fs::remove_dir_all(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
    }

    /// A path in the folder; nothing is made.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// A folder for programs that run as `account`; there already is no error.
    pub(crate) fn folder(&self, name: &str, account: Option<Account>) -> PathBuf {
        let path = self.path.join(name);
        fs::create_dir_all(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        if let Some(account) = account {
            chown(&path, Some(account.uid), Some(account.gid)).unwrap();
        }
        path
    }

    /// A file that takes a program's output, and is printed should the test fail.
    pub(crate) fn log(&self, name: &str) -> (PathBuf, Stdio, Stdio) {
        let path = self.path.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&path).unwrap();
        let mut logs = self.logs.lock().unwrap_or_else(PoisonError::into_inner);
        if !logs.contains(&path) {
            logs.push(path.clone());
        }
        (path, file.try_clone().unwrap().into(), file.into())
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if !thread::panicking() && !self.failed.load(Ordering::Relaxed) {
            drop(fs::remove_dir_all(&self.path));
            return;
        }
        let logs = self.logs.lock().unwrap_or_else(PoisonError::into_inner);
        for log in logs.iter() {
            eprintln!("---- the end of {}", log.display());
            for line in last_lines(log, 40) {
                eprintln!("{line}");
            }
        }
        keep_logs(&self.path);
        eprintln!("---- the logs are left in {}", self.path.display());
    }
}

/// Leaves the ends of the logs that lie in `folder`, and nothing else.
pub(crate) fn keep_logs(folder: &Path) {
    // What cannot be removed stays: the failure that led here is what matters.
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            drop(fs::remove_dir_all(&path));
        } else if path.extension().is_some_and(|end| end == "log") {
            drop(shorten(&path));
        } else {
            drop(fs::remove_file(&path));
        }
    }
}

/// Leaves the last [`KEPT_LOG`] bytes of a file.
fn shorten(path: &Path) -> std::io::Result<()> {
    let mut file = File::open(path)?;
    let len = file.metadata()?.len();
    if len <= KEPT_LOG {
        return Ok(());
    }
    let mut end = Vec::new();
    file.seek(SeekFrom::Start(len - KEPT_LOG))?;
    file.read_to_end(&mut end)?;
    fs::write(path, end)
}

fn last_lines(path: &Path, count: usize) -> VecDeque<String> {
    let mut lines = VecDeque::new();
    for line in String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).lines() {
        if lines.len() == count {
            lines.pop_front();
        }
        lines.push_back(line.to_owned());
    }
    lines
}

/// A TCP port of 127.0.0.1 that is ours as long as this lives.
///
/// Ports that the kernel gives to clients (32768 and up) are useless for a server that
/// is killed and started again: a client's socket may sit on its number meanwhile. So
/// the numbers come from below, and a locked file keeps other tests off each.
#[derive(Debug)]
pub(crate) struct Port {
    number: u16,
    _lock: File,
}

const FIRST_PORT: u16 = 15_000;
const PORTS: u16 = 15_000;

impl Port {
    /// A port that nobody listens on and no other test holds.
    pub(crate) fn reserve() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let folder = std::env::temp_dir()
            .join(format!("walhub-test-ports-{}", rustix::process::geteuid().as_raw()));
        fs::create_dir_all(&folder).unwrap();
        // Processes begin at different numbers, so that they seldom meet.
        let offset = std::process::id().wrapping_mul(37);
        for _ in 0..PORTS {
            let step = offset.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
            let number = FIRST_PORT + u16::try_from(step % u32::from(PORTS)).unwrap();
            let lock = File::create(folder.join(number.to_string())).unwrap();
            let free = || TcpListener::bind((Ipv4Addr::LOCALHOST, number)).is_ok();
            if lock.try_lock().is_ok() && free() {
                return Self { number, _lock: lock };
            }
        }
        panic!("no free port from {FIRST_PORT} on");
    }

    pub(crate) fn number(&self) -> u16 {
        self.number
    }
}
