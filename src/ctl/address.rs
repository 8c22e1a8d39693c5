//! The path of a Unix socket, which may be too long for a socket's address.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// Longest path in a `sockaddr_un`, without its final zero byte.
const PATH_MAX: usize = 107;

/// A path that fits while this value lives: a long one leads through the open directory.
#[derive(Debug)]
pub struct Address {
    path: PathBuf,
    _directory: Option<File>,
}

impl Address {
    /// The socket `name` in `directory`.
    ///
    /// # Errors
    /// The directory cannot be opened, when that is needed.
    pub fn of(directory: &Path, name: &str) -> io::Result<Self> {
        let path = directory.join(name);
        if path.as_os_str().len() <= PATH_MAX {
            return Ok(Self { path, _directory: None });
        }
        let directory = File::open(directory)?;
        let path = format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()).into();
        Ok(Self { path, _directory: Some(directory) })
    }

    /// The path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}
