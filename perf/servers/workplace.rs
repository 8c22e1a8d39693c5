//! The folder of a run, its ports and logs.

use super::programs::{Account, Programs};
use crate::fault::{During, Outcome};
use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// A folder that is removed at the end, unless the run failed: then the logs are wanted.
#[derive(Debug)]
pub(crate) struct Workplace {
    path: PathBuf,
}

impl Workplace {
    pub(crate) fn new(directory: &Path) -> Outcome<Self> {
        let path = directory.join(format!("walhub-perf-{}", std::process::id()));
        fs::create_dir(&path).during(path.display())?;
        let place = Self { path };
        fs::set_permissions(&place.path, fs::Permissions::from_mode(0o755))
            .during(place.path.display())?;
        Ok(place)
    }

    /// A path in the folder; nothing is made.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// A new folder for programs that run as `account`.
    pub(crate) fn folder(&self, name: &str, account: Option<Account>) -> Outcome<PathBuf> {
        let path = self.path.join(name);
        fs::create_dir_all(&path).during(path.display())?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).during(path.display())?;
        if let Some(account) = account {
            chown(&path, Some(account.uid), Some(account.gid)).during(path.display())?;
        }
        Ok(path)
    }

    /// A new folder for PostgreSQL's programs.
    pub(crate) fn folder_for(&self, name: &str, programs: &Programs) -> Outcome<PathBuf> {
        self.folder(name, programs.account())
    }

    /// Where a program's output goes.
    pub(crate) fn log(&self, name: &str) -> Outcome<(Stdio, Stdio)> {
        let path = self.path.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&path).during(path.display())?;
        let second = file.try_clone().during(path.display())?;
        Ok((file.into(), second.into()))
    }

    /// Removes what one row made; the logs stay until the end.
    pub(crate) fn clear(&self, name: &str) -> Outcome {
        let path = self.path.join(name);
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).during(path.display())
            }
            _ => Ok(()),
        }
    }

    /// Leaves nothing behind.
    pub(crate) fn remove(self) -> Outcome {
        fs::remove_dir_all(&self.path).during(self.path.display())
    }

    /// Where the logs are.
    pub(crate) fn root(&self) -> &Path {
        &self.path
    }
}

/// A port of 127.0.0.1 that nobody uses. From below those that the kernel gives to
/// clients: a server that is started again must find its number free.
pub(super) fn free_port() -> Outcome<u16> {
    let first = 15_000 + u16::try_from(std::process::id() % 15_000).unwrap_or_default();
    (first..32_000)
        .find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .ok_or("none is free")
        .during("a port of 127.0.0.1")
}
