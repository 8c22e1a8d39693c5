//! The socket `walhub.ctl`. The directory is locked, so an existing socket belongs to a dead hub.

use crate::ctl::address::Address;
use crate::store::layout::{Layout, TEMPORARY};
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// A listening socket; dropping it removes its file.
#[derive(Debug)]
pub struct CtlSocket {
    listener: Option<UnixListener>,
    path: PathBuf,
}

impl CtlSocket {
    /// Listens. The socket gets its mode before it gets its name.
    ///
    /// # Errors
    /// The system's error, with the operation that failed.
    pub fn open(directory: &Path) -> io::Result<Self> {
        let path = Layout::new(directory).ctl();
        let temporary = Layout::temporary(&path);
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let address = Address::of(directory, &format!("walhub.ctl{TEMPORARY}"))?;
        let listener = UnixListener::bind(address.path())?;
        fs::set_permissions(&temporary, Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        fs::rename(&temporary, &path)?;
        Ok(Self { listener: Some(listener), path })
    }

    /// Puts the listener on the current runtime, once.
    pub(in super::super) fn enter(&mut self) -> io::Result<Option<tokio::net::UnixListener>> {
        self.listener.take().map(tokio::net::UnixListener::from_std).transpose()
    }
}

impl Drop for CtlSocket {
    fn drop(&mut self) {
        // A leftover is harmless: the next start replaces it.
        drop(fs::remove_file(&self.path));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_leftover_is_replaced_and_the_name_goes_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("walhub.ctl");
        // A killed hub leaves it like this.
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let socket = CtlSocket::open(dir.path()).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_long_path_is_no_obstacle() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(120));
        fs::create_dir(&deep).unwrap();
        let _socket = CtlSocket::open(&deep).unwrap();
        let address = Address::of(&deep, "walhub.ctl").unwrap();
        UnixStream::connect(address.path()).unwrap();
    }
}
