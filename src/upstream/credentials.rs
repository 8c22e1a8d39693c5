//! Our identity at the upstream: the user's name and password, from the conninfo or from the files
//! that replace it. They are read anew for each connection, so that a changed password is found.

use crate::wire::conninfo::{Conninfo, Host};
use crate::wire::secret::Secret;
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// No password file or list of local users is longer.
const MAX_FILE: u64 = 1 << 20;

/// A user name, and a password if there is one.
#[derive(Debug)]
pub(crate) struct Credentials {
    pub(crate) user: String,
    pub(crate) password: Option<Secret>,
}

/// `None` when the user's name is unknown.
pub(crate) fn find(conninfo: &Conninfo, host: &Host) -> Option<Credentials> {
    let user = conninfo.user.clone().or_else(operating_system_user)?;
    let passfile = match (&conninfo.password, &conninfo.passfile) {
        (None, Some(path)) => read_passfile(path).unwrap_or_else(|ignored| {
            tracing::warn!("{ignored}");
            None
        }),
        _ => None,
    };
    let password = conninfo.password_for(host, &user, passfile.as_deref());
    Some(Credentials { user, password })
}

/// The name in the list of local users.
fn operating_system_user() -> Option<String> {
    let uid = rustix::process::geteuid().as_raw().to_string();
    let list = read(&File::open("/etc/passwd").ok()?).ok()?;
    list.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid).then(|| name.to_owned())
    })
}

/// Why a password file is ignored, as in libpq.
#[derive(Debug, thiserror::Error)]
enum PassfileIgnored {
    /// It is a pipe, a device or a directory.
    #[error("password file \"{}\" is not a plain file", .0.display())]
    NotPlain(PathBuf),
    /// Others can read it.
    #[error(
        "password file \"{}\" has group or world access; permissions should be u=rw (0600) or less",
        .0.display()
    )]
    Access(PathBuf),
    /// It cannot be read.
    #[error("could not read password file \"{}\": {}", .0.display(), .1)]
    Io(PathBuf, io::Error),
}

/// Returns `None` when there is no such file, or none that we may open.
fn read_passfile(path: &Path) -> Result<Option<String>, PassfileIgnored> {
    let Ok(metadata) = std::fs::metadata(path) else { return Ok(None) };
    if !metadata.is_file() {
        return Err(PassfileIgnored::NotPlain(path.to_owned()));
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(PassfileIgnored::Access(path.to_owned()));
    }
    let Ok(file) = open_at_once(path) else { return Ok(None) };
    read(&file).map(Some).map_err(|error| PassfileIgnored::Io(path.to_owned(), error))
}

/// Does not wait, as a plain open does for the other end of a pipe.
fn open_at_once(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?.into())
}

fn read(file: &File) -> io::Result<String> {
    let mut text = String::new();
    file.take(MAX_FILE).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::FileType;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::mpsc;
    use std::time::Duration;

    #[test]
    fn a_password_file_must_be_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pass");
        std::fs::write(&path, "*:*:replication:me:secret\n").unwrap();
        let text = format!("host=db1,/tmp user=me passfile={}", path.display());
        let conninfo = Conninfo::parse(&text, &|_| None).unwrap();
        for (mode, password) in [(0o640, None), (0o600, Some("secret"))] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            for host in &conninfo.hosts {
                let found = find(&conninfo, host).unwrap();
                assert_eq!(found.user, "me");
                assert_eq!(found.password.as_ref().map(Secret::reveal), password);
            }
        }
    }

    #[test]
    fn a_password_file_that_is_a_pipe_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pass");
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, mode, 0).unwrap();
        let (tell, told) = mpsc::channel();
        let pipe = path.clone();
        std::thread::spawn(move || {
            // The second is about a pipe that comes between the look and the open.
            tell.send((read_passfile(&pipe), open_at_once(&pipe).map(|_| ()))).unwrap();
        });
        let (found, opened) = told.recv_timeout(Duration::from_secs(20)).expect("it waits");
        let ignored = found.unwrap_err().to_string();
        assert_eq!(ignored, format!("password file \"{}\" is not a plain file", path.display()));
        assert!(opened.is_ok(), "{opened:?}");
    }

    #[test]
    fn without_a_name_it_is_the_operating_systems() {
        let conninfo = Conninfo::parse("host=db1 password=x", &|_| None).unwrap();
        assert!(find(&conninfo, &conninfo.hosts[0]).is_none_or(|found| !found.user.is_empty()));
    }
}
