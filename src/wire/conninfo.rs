//! Connection strings as libpq understands them: both syntaxes, several hosts,
//! the PG* environment, the defaults.
//!
//! Every option of libpq 18 is known. An option that walhub cannot honour is refused by name, but
//! only when it would make a difference: what `pg_basebackup -R` writes is accepted.

mod fault;
mod keyword;
mod shown;
mod syntax;
mod target;
#[cfg(test)]
mod tests;
mod values;

use super::passfile;
use super::secret::Secret;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;
use values::Values;

pub use fault::ConninfoFault;
pub use target::{ServerNature, TargetSessionAttrs};

/// Where servers put their sockets: Debian's directory, then PostgreSQL's own.
const SOCKET_DIRECTORIES: [&str; 2] = ["/var/run/postgresql", "/tmp"];
/// A physical walsender has no database; this word stands for it in password files.
const PASSFILE_DATABASE: &str = "replication";

/// A parsed connection string.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Conninfo {
    /// At least one, in the order in which to try them.
    pub hosts: Vec<Host>,
    /// `None` is the name of the operating system's user.
    pub user: Option<String>,
    /// Meaningless to a physical walsender.
    pub dbname: Option<String>,
    /// For all hosts; without it the password file is consulted.
    pub password: Option<Secret>,
    /// `None` when none was given and there is no home directory.
    pub passfile: Option<PathBuf>,
    /// `application_name`, else `fallback_application_name`.
    pub application_name: Option<String>,
    /// Settings for the session, as on the `postgres` command line.
    pub options: Option<String>,
    /// Whether TLS is tried.
    pub sslmode: SslMode,
    /// For each host; `None` waits indefinitely.
    pub connect_timeout: Option<Duration>,
    /// TCP keepalive.
    pub keepalives: Keepalives,
    /// `TCP_USER_TIMEOUT`; `None` is the system's.
    pub tcp_user_timeout: Option<Duration>,
    /// Which kind of host is wanted.
    pub target_session_attrs: TargetSessionAttrs,
}

/// One server to try.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Host {
    /// How to get there.
    pub addr: HostAddr,
    /// TCP port, or the number in the socket's name.
    pub port: u16,
}

/// How to reach a server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HostAddr {
    /// By TCP: to `hostaddr` if it is known, else to what `name` resolves to.
    Tcp {
        /// A name or a numeric address.
        name: String,
        /// Saves the look-up.
        hostaddr: Option<IpAddr>,
    },
    /// By the Unix-domain socket in this directory.
    Unix(PathBuf),
}

/// `sslmode`, as far as it can be honoured without TLS.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SslMode {
    /// Never.
    Disable,
    /// When the server insists.
    Allow,
    /// When the server can.
    Prefer,
}

/// TCP keepalive; `None` is the system's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keepalives {
    /// `keepalives=0`
    Off,
    /// The default.
    On {
        /// Silence before the first probe.
        idle: Option<Duration>,
        /// Between probes.
        interval: Option<Duration>,
        /// Probes before the connection is abandoned.
        count: Option<u32>,
    },
}

impl Conninfo {
    /// Reads `text`, and the environment for what the text leaves out.
    pub fn parse(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConninfoFault> {
        let values = Values::gather(text, env)?;
        let hosts = values.hosts().map_err(|fault| match fault {
            ConninfoFault::InvalidPort(_) if syntax::after_scheme(text).is_some() => {
                ConninfoFault::InvalidUriPort
            }
            fault => fault,
        })?;
        let sslmode = values.sslmode(&hosts)?;
        values.refuse_unsupported(sslmode)?;
        Ok(Self {
            hosts,
            user: values.owned("user"),
            dbname: values.owned("dbname"),
            password: values.owned("password").map(Secret::new),
            passfile: values.owned("passfile").map(PathBuf::from).or_else(|| {
                let home = env("HOME").filter(|home| !home.is_empty())?;
                Some(PathBuf::from(home).join(".pgpass"))
            }),
            application_name: values
                .owned("application_name")
                .or_else(|| values.owned("fallback_application_name")),
            options: values.owned("options"),
            sslmode,
            connect_timeout: values.seconds("connect_timeout")?,
            keepalives: values.keepalives()?,
            tcp_user_timeout: values.milliseconds("tcp_user_timeout")?,
            target_session_attrs: values.target_session_attrs()?,
        })
    }

    /// The password for one of the hosts: the one given, or the one in `passfile` (the text of the
    /// password file, if there is one).
    pub fn password_for(&self, host: &Host, user: &str, passfile: Option<&str>) -> Option<Secret> {
        self.password.clone().or_else(|| {
            passfile::lookup(passfile?, &host.passfile_name(), host.port, PASSFILE_DATABASE, user)
        })
    }
}

impl Host {
    /// What stands for this host in a password file.
    fn passfile_name(&self) -> String {
        match &self.addr {
            HostAddr::Tcp { name, .. } => name.clone(),
            HostAddr::Unix(directory) => match directory.to_str() {
                Some(path) if !SOCKET_DIRECTORIES.contains(&path) => path.to_owned(),
                _ => "localhost".to_owned(),
            },
        }
    }

    /// The path of the socket, when the host is reached through one.
    pub fn socket_path(&self) -> Option<PathBuf> {
        match &self.addr {
            HostAddr::Unix(directory) => Some(directory.join(format!(".s.PGSQL.{}", self.port))),
            HostAddr::Tcp { .. } => None,
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.addr, self.socket_path()) {
            (HostAddr::Tcp { name, .. }, _) if name.contains(':') => {
                write!(f, "[{name}]:{}", self.port)
            }
            (HostAddr::Tcp { name, .. }, _) => write!(f, "{name}:{}", self.port),
            (HostAddr::Unix(_), path) => write!(f, "{}", path.unwrap_or_default().display()),
        }
    }
}
