//! Our identity at the upstream: the user's name and password, from the conninfo or from the files
//! that replace it. They are read anew for each connection, so that a changed password is found.

use crate::wire::conninfo::{Conninfo, Host};
use crate::wire::secret::Secret;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

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
        (None, Some(path)) => read_passfile(path),
        _ => None,
    };
    let password = conninfo.password_for(host, &user, passfile.as_deref());
    Some(Credentials { user, password })
}

/// The name in the list of local users.
fn operating_system_user() -> Option<String> {
    let uid = rustix::process::geteuid().as_raw().to_string();
    let list = read(&std::fs::File::open("/etc/passwd").ok()?).ok()?;
    list.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid).then(|| name.to_owned())
    })
}

/// A file that others can read is ignored, as in libpq.
fn read_passfile(path: &Path) -> Option<String> {
    let shown = path.display();
    let file = std::fs::File::open(path).ok()?;
    let metadata = file.metadata().ok()?;
    if !metadata.is_file() {
        tracing::warn!("password file \"{shown}\" is not a plain file");
        return None;
    }
    if metadata.mode() & 0o077 != 0 {
        tracing::warn!(
            "password file \"{shown}\" has group or world access; permissions should be u=rw \
             (0600) or less"
        );
        return None;
    }
    match read(&file) {
        Ok(text) => Some(text),
        Err(error) => {
            tracing::warn!("could not read password file \"{shown}\": {error}");
            None
        }
    }
}

fn read(file: &std::fs::File) -> io::Result<String> {
    let mut text = String::new();
    file.take(MAX_FILE).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

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
    fn without_a_name_it_is_the_operating_systems() {
        let conninfo = Conninfo::parse("host=db1 password=x", &|_| None).unwrap();
        assert!(find(&conninfo, &conninfo.hosts[0]).is_none_or(|found| !found.user.is_empty()));
    }
}
