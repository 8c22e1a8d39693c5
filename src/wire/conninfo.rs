//! Connection strings as libpq understands them: both syntaxes, several hosts,
//! the PG* environment, the defaults.
//!
//! Every option of libpq 18 is known. An option that walhub cannot honour is refused by name, but
//! only when it would make a difference: what `pg_basebackup -R` writes is accepted.

mod keyword;
mod shown;
mod syntax;
mod target;

use super::passfile;
use super::secret::Secret;
use keyword::{KEYWORDS, Stance};
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;
pub use target::{ServerNature, TargetSessionAttrs};

/// Where servers put their sockets: Debian's directory, then PostgreSQL's own.
const SOCKET_DIRECTORIES: [&str; 2] = ["/var/run/postgresql", "/tmp"];
const NEEDS_TLS: &str = "is for TLS, which walhub does not speak yet (sslmode=disable says that \
                         none is wanted)";
const DEFAULT_PORT: u16 = 5432;
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

/// Why walhub cannot use a connection string.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConninfoFault {
    /// A word without `=`.
    #[error("missing \"=\" after a word in the connection string (quote values with spaces)")]
    MissingEquals,
    /// A quote without its end.
    #[error("unterminated quoted string in connection string")]
    UnterminatedQuote,
    /// An IPv6 address that is not `[address]`.
    #[error("malformed IPv6 host address in URI: expected \"[address]\"")]
    Bracket,
    /// Not `name=value`.
    #[error("URI query parameters must have the form name=value")]
    Parameter,
    /// `%` without two hexadecimal digits, or bytes that are not valid text.
    #[error("invalid percent-encoded token in URI")]
    PercentEncoding,
    /// Not an option of libpq.
    #[error("invalid connection option \"{0}\"")]
    UnknownOption(String),
    /// A value that the option does not allow.
    #[error("invalid {option} value: \"{value}\"")]
    InvalidValue {
        /// The option.
        option: &'static str,
        /// The value given.
        value: String,
    },
    /// Not a number.
    #[error("invalid integer value \"{value}\" for connection option \"{option}\"")]
    InvalidInteger {
        /// The option.
        option: &'static str,
        /// The value given.
        value: String,
    },
    /// Not from 1 to 65535.
    #[error(
        "invalid port number (a password with \"/\" or \"@\" must be percent-encoded in a URI)"
    )]
    InvalidPort,
    /// Lists of different lengths.
    #[error("could not match {given} {what} to {hosts} hosts")]
    HostCount {
        /// What the shorter or longer list holds.
        what: &'static str,
        /// Its length.
        given: usize,
        /// How many hosts there are.
        hosts: usize,
    },
    /// An option that walhub cannot honour with any value (the value may be a secret).
    #[error("connection option \"{option}\" {why}")]
    UnsupportedOption {
        /// The option.
        option: &'static str,
        /// Why not.
        why: &'static str,
    },
    /// A value that walhub cannot honour.
    #[error("{option} \"{value}\" {why}")]
    Unsupported {
        /// The option.
        option: &'static str,
        /// The value given.
        value: String,
        /// Why not.
        why: &'static str,
    },
}

impl Conninfo {
    /// Reads `text`, and the environment for what the text leaves out.
    pub fn parse(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConninfoFault> {
        let values = Values::gather(text, env)?;
        let hosts = values.hosts()?;
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
            connect_timeout: values.positive("connect_timeout")?.map(seconds),
            keepalives: values.keepalives()?,
            tcp_user_timeout: values
                .positive("tcp_user_timeout")?
                .map(|ms| Duration::from_millis(u64::from(ms))),
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

/// What the string and the environment give, by option.
struct Values(BTreeMap<&'static str, String>);

impl Values {
    fn gather(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConninfoFault> {
        let mut values = BTreeMap::new();
        for (name, value) in syntax::pairs(text)? {
            match keyword::find(&name) {
                Some(keyword) => values.insert(keyword.name, value),
                None => return Err(ConninfoFault::UnknownOption(name)),
            };
        }
        // An option that is empty in the string still hides the environment.
        for keyword in KEYWORDS {
            if let Some(value) = keyword.env.and_then(env) {
                values.entry(keyword.name).or_insert(value);
            }
        }
        Ok(Self(values))
    }

    /// `None` when it is missing or empty.
    fn given(&self, option: &str) -> Option<&str> {
        self.0.get(option).map(String::as_str).filter(|value| !value.is_empty())
    }

    fn owned(&self, option: &str) -> Option<String> {
        self.given(option).map(str::to_owned)
    }

    fn sslmode(&self, hosts: &[Host]) -> Result<SslMode, ConninfoFault> {
        let value = self.given("sslmode").unwrap_or("prefer");
        let by_tcp = hosts.iter().any(|host| matches!(host.addr, HostAddr::Tcp { .. }));
        match value {
            "disable" => Ok(SslMode::Disable),
            "allow" => Ok(SslMode::Allow),
            "prefer" => Ok(SslMode::Prefer),
            "require" | "verify-ca" | "verify-full" if by_tcp => Err(ConninfoFault::Unsupported {
                option: "sslmode",
                value: value.to_owned(),
                why: "demands TLS, which walhub does not speak yet",
            }),
            // Unix-domain sockets have no TLS; libpq ignores the option there, too.
            "require" | "verify-ca" | "verify-full" => Ok(SslMode::Disable),
            _ => Err(ConninfoFault::InvalidValue { option: "sslmode", value: value.to_owned() }),
        }
    }

    fn target_session_attrs(&self) -> Result<TargetSessionAttrs, ConninfoFault> {
        const OPTION: &str = "target_session_attrs";
        let Some(value) = self.given(OPTION) else { return Ok(TargetSessionAttrs::default()) };
        let invalid = |_| ConninfoFault::InvalidValue { option: OPTION, value: value.to_owned() };
        value.parse().map_err(invalid)
    }

    fn refuse_unsupported(&self, sslmode: SslMode) -> Result<(), ConninfoFault> {
        for keyword in KEYWORDS {
            let Some(value) = self.given(keyword.name) else { continue };
            let option = keyword.name;
            let owned = || value.to_owned();
            match keyword.stance {
                Stance::Honoured | Stance::Harmless => {}
                Stance::Choice { fine, .. } if fine.contains(&value) => {}
                Stance::Choice { refused, why, .. } if refused.contains(&value) => {
                    return Err(ConninfoFault::Unsupported { option, value: owned(), why });
                }
                Stance::Choice { .. } => {
                    return Err(ConninfoFault::InvalidValue { option, value: owned() });
                }
                Stance::Refused { why } => {
                    return Err(ConninfoFault::UnsupportedOption { option, why });
                }
                Stance::Tls if sslmode == SslMode::Disable => {}
                Stance::Tls => {
                    return Err(ConninfoFault::UnsupportedOption { option, why: NEEDS_TLS });
                }
            }
        }
        Ok(())
    }

    fn hosts(&self) -> Result<Vec<Host>, ConninfoFault> {
        let list = |option: &str| -> Vec<&str> {
            self.given(option).map(|list| list.split(',').collect()).unwrap_or_default()
        };
        let (names, addresses, ports) = (list("host"), list("hostaddr"), list("port"));
        if !names.is_empty() && !addresses.is_empty() && names.len() != addresses.len() {
            return Err(ConninfoFault::HostCount {
                what: "hostaddr values",
                given: addresses.len(),
                hosts: names.len(),
            });
        }
        let count = names.len().max(addresses.len()).max(1);
        if ports.len() > 1 && ports.len() != count {
            return Err(ConninfoFault::HostCount {
                what: "port numbers",
                given: ports.len(),
                hosts: count,
            });
        }
        let item = |list: &[&str], at: usize| -> String {
            list.get(at).map(|item| (*item).to_owned()).unwrap_or_default()
        };
        let mut hosts = Vec::new();
        for at in 0..count {
            let text = item(&ports, if ports.len() == 1 { 0 } else { at });
            let port = port(&text)?;
            let addrs = addresses_of(item(&names, at), &item(&addresses, at))?;
            hosts.extend(addrs.into_iter().map(|addr| Host { addr, port }));
        }
        Ok(hosts)
    }

    fn keepalives(&self) -> Result<Keepalives, ConninfoFault> {
        let idle = self.positive("keepalives_idle")?.map(seconds);
        let interval = self.positive("keepalives_interval")?.map(seconds);
        let count = self.positive("keepalives_count")?;
        Ok(match self.integer("keepalives")? {
            Some(0) => Keepalives::Off,
            _ => Keepalives::On { idle, interval, count },
        })
    }

    /// A number above zero; zero and below mean "not set".
    fn positive(&self, option: &'static str) -> Result<Option<u32>, ConninfoFault> {
        Ok(self.integer(option)?.and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0))
    }

    fn integer(&self, option: &'static str) -> Result<Option<i32>, ConninfoFault> {
        let Some(value) = self.given(option) else { return Ok(None) };
        match value.trim_ascii().parse() {
            Ok(n) => Ok(Some(n)),
            Err(_) => Err(ConninfoFault::InvalidInteger { option, value: value.to_owned() }),
        }
    }
}

/// The addresses of one entry of the host list.
fn addresses_of(name: String, hostaddr: &str) -> Result<Vec<HostAddr>, ConninfoFault> {
    if !hostaddr.is_empty() {
        let address = hostaddr.parse().map_err(|_| ConninfoFault::InvalidValue {
            option: "hostaddr",
            value: hostaddr.to_owned(),
        })?;
        let name = if name.is_empty() { hostaddr.to_owned() } else { name };
        return Ok(vec![HostAddr::Tcp { name, hostaddr: Some(address) }]);
    }
    match name.chars().next() {
        None => Ok(SOCKET_DIRECTORIES.iter().map(|dir| HostAddr::Unix(dir.into())).collect()),
        Some('/') => Ok(vec![HostAddr::Unix(name.into())]),
        Some('@') => Err(ConninfoFault::Unsupported {
            option: "host",
            value: name,
            why: "is a socket in the abstract namespace, which walhub does not use",
        }),
        Some(_) => Ok(vec![HostAddr::Tcp { name, hostaddr: None }]),
    }
}

fn port(text: &str) -> Result<u16, ConninfoFault> {
    match text.trim_ascii() {
        "" => Ok(DEFAULT_PORT),
        digits => digits.parse().ok().filter(|port| *port != 0).ok_or(ConninfoFault::InvalidPort),
    }
}

fn seconds(n: u32) -> Duration {
    Duration::from_secs(u64::from(n))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Conninfo, ConninfoFault> {
        Conninfo::parse(text, &|_| None)
    }

    fn fault(text: &str) -> String {
        parse(text).map_err(|fault| fault.to_string()).unwrap_err()
    }

    fn with_env(text: &str, env: &[(&str, &str)]) -> Conninfo {
        let look =
            |name: &str| env.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        Conninfo::parse(text, &look).unwrap()
    }

    fn hosts(text: &str) -> Vec<String> {
        parse(text).unwrap().hosts.iter().map(Host::to_string).collect()
    }

    #[test]
    fn what_basebackup_writes() {
        let conninfo = parse(
            "user=rep passfile='/home/p g/.pgpass' channel_binding=prefer host=10.0.0.1 port=5433 \
             sslmode=prefer sslnegotiation=postgres sslcompression=0 sslcertmode=allow sslsni=1 \
             ssl_min_protocol_version=TLSv1.2 gssencmode=prefer krbsrvname=postgres \
             gssdelegation=0 target_session_attrs=any load_balance_hosts=disable \
             application_name=s1",
        )
        .unwrap();
        assert_eq!(conninfo.user.as_deref(), Some("rep"));
        assert_eq!(conninfo.passfile, Some("/home/p g/.pgpass".into()));
        assert_eq!(conninfo.application_name.as_deref(), Some("s1"));
        assert_eq!(
            conninfo.hosts.iter().map(Host::to_string).collect::<Vec<_>>(),
            ["10.0.0.1:5433"]
        );
    }

    #[test]
    fn quotes_and_backslashes() {
        let conninfo =
            parse(r"password = 'it\'s \\ secret'user=a\ b\\  host=h dbname='' options=-c\ x=1\")
                .unwrap();
        assert_eq!(conninfo.password, Some(Secret::new(r"it's \ secret")));
        assert_eq!(conninfo.user.as_deref(), Some(r"a b\"));
        assert_eq!(conninfo.options.as_deref(), Some("-c x=1"));
        assert_eq!(conninfo.dbname, None);
        assert_eq!(parse("user=a user=b").unwrap().user.as_deref(), Some("b"));
        assert_eq!(parse("host"), Err(ConninfoFault::MissingEquals));
        assert_eq!(parse("user=a b"), Err(ConninfoFault::MissingEquals));
        assert_eq!(parse("user='a"), Err(ConninfoFault::UnterminatedQuote));
        assert_eq!(parse(r"user='a\'"), Err(ConninfoFault::UnterminatedQuote));
        assert_eq!(fault("=x"), "invalid connection option \"\"");
        assert_eq!(fault("Host=x"), "invalid connection option \"Host\"");
    }

    #[test]
    fn uris() {
        let conninfo = parse(
            "postgresql://re%70:p%40ss%2F@[2001:db8::1]:5433,db2,:5434/da%20ta?connect_timeout=5&\
             application_name=a%26b&",
        )
        .unwrap();
        assert_eq!(conninfo.user.as_deref(), Some("rep"));
        assert_eq!(conninfo.password, Some(Secret::new("p@ss/")));
        assert_eq!(conninfo.dbname.as_deref(), Some("da ta"));
        assert_eq!(conninfo.application_name.as_deref(), Some("a&b"));
        assert_eq!(conninfo.connect_timeout, Some(Duration::from_secs(5)));
        assert_eq!(
            conninfo.hosts.iter().map(Host::to_string).collect::<Vec<_>>(),
            [
                "[2001:db8::1]:5433",
                "db2:5432",
                "/var/run/postgresql/.s.PGSQL.5434",
                "/tmp/.s.PGSQL.5434"
            ]
        );
        assert_eq!(hosts("postgres://%2Ftmp%2Fx?port=7"), ["/tmp/x/.s.PGSQL.7"]);
        assert_eq!(hosts("postgres://u@h/db?host=other"), ["other:5432"]);
        assert_eq!(parse("postgres:///d").unwrap().dbname.as_deref(), Some("d"));
        for (bad, expected) in [
            ("postgres://[::1", ConninfoFault::Bracket),
            ("postgres://[]", ConninfoFault::Bracket),
            ("postgres://[::1]x", ConninfoFault::Bracket),
            ("postgres://h%2", ConninfoFault::PercentEncoding),
            ("postgres://h%zz", ConninfoFault::PercentEncoding),
            ("postgres://h%00", ConninfoFault::PercentEncoding),
            ("postgres://h%ff", ConninfoFault::PercentEncoding),
            ("postgres://h?x", ConninfoFault::Parameter),
            ("postgres://h?user=a=b", ConninfoFault::Parameter),
            ("postgres://h?&user=a", ConninfoFault::Parameter),
            ("postgres://h?nonsense=1", ConninfoFault::UnknownOption("nonsense".to_owned())),
            ("postgres://u:pa/ss@h", ConninfoFault::InvalidPort),
        ] {
            assert_eq!(parse(bad), Err(expected), "{bad}");
        }
        assert!(fault("postgres://h?ssl=true").starts_with("sslmode \"require\" demands TLS"));
    }

    #[test]
    fn lists_of_hosts() {
        assert_eq!(hosts("host=a,b port=1,"), ["a:1", "b:5432"]);
        assert_eq!(hosts("host=a,b port=7"), ["a:7", "b:7"]);
        let conninfo = parse("host=a,b hostaddr=::1,").unwrap();
        let known = HostAddr::Tcp { name: "a".to_owned(), hostaddr: Some("::1".parse().unwrap()) };
        assert_eq!(conninfo.hosts[0].addr, known);
        assert_eq!(conninfo.hosts[1].addr, HostAddr::Tcp { name: "b".to_owned(), hostaddr: None });
        assert_eq!(fault("host=a,b port=1,2,3"), "could not match 3 port numbers to 2 hosts");
        assert_eq!(
            fault("host=a hostaddr=::1,::2"),
            "could not match 2 hostaddr values to 1 hosts"
        );
        for port in ["0", "65536", "x", "-1", "5 4"] {
            assert_eq!(parse(&format!("host=a port='{port}'")), Err(ConninfoFault::InvalidPort));
        }
        assert!(fault("host=@abstract").contains("abstract namespace"));
        assert_eq!(fault("hostaddr=db"), "invalid hostaddr value: \"db\"");
    }

    #[test]
    fn the_environment_fills_gaps_only() {
        let env = [
            ("PGHOST", "envhost"),
            ("PGPORT", "6000"),
            ("PGUSER", "envuser"),
            ("PGPASSWORD", "pw"),
            ("PGAPPNAME", "app"),
            ("PGSSLMODE", "disable"),
            ("PGOPTIONS", "-c a=b"),
            ("PGCONNECT_TIMEOUT", "3"),
            ("HOME", "/home/x"),
        ];
        let conninfo = with_env("user=me fallback_application_name=walhub", &env);
        assert_eq!(conninfo.hosts[0].to_string(), "envhost:6000");
        assert_eq!(conninfo.user.as_deref(), Some("me"));
        assert_eq!(conninfo.password, Some(Secret::new("pw")));
        assert_eq!(conninfo.application_name.as_deref(), Some("app"));
        assert_eq!(conninfo.sslmode, SslMode::Disable);
        assert_eq!(conninfo.passfile, Some("/home/x/.pgpass".into()));
        assert_eq!(conninfo.connect_timeout, Some(Duration::from_secs(3)));
        let conninfo = with_env("host='' fallback_application_name=walhub", &env[..1]);
        assert!(matches!(conninfo.hosts[0].addr, HostAddr::Unix(_)), "set to nothing is set");
        assert_eq!(conninfo.application_name.as_deref(), Some("walhub"));
        let refused = Conninfo::parse("host=a", &|name| {
            (name == "PGTARGETSESSIONATTRS").then(|| "master".to_owned())
        });
        assert!(matches!(
            refused,
            Err(ConninfoFault::InvalidValue { option: "target_session_attrs", .. })
        ));
    }

    #[test]
    fn refused_only_when_it_matters() {
        for text in [
            "sslmode=require",
            "sslmode=verify-full sslrootcert=system",
            "sslcert=/x",
            "sslrootcert=/x sslmode=prefer",
            "sslpassword=hunter2",
            "channel_binding=require",
            "gssencmode=require",
            "service=x",
            "requirepeer=postgres",
            "require_auth=scram-sha-256",
            "load_balance_hosts=random",
            "min_protocol_version=3.2",
            "scram_client_key=hunter2",
        ] {
            let message = fault(&format!("host=a {text}"));
            let option = text.split('=').next().unwrap();
            assert!(message.contains(option) && !message.contains("hunter2"), "{message}");
        }
        for text in [
            "host=a sslmode=disable sslcert=/x sslrootcert=/y",
            "host=/tmp sslmode=require",
            "host=a sslmode=allow requirepeer='' service=",
            "host=a max_protocol_version=latest replication=database client_encoding=auto",
        ] {
            assert!(parse(text).is_ok(), "{text}");
        }
        assert_eq!(fault("host=a gssencmode=maybe"), "invalid gssencmode value: \"maybe\"");
        assert_eq!(fault("host=a sslmode=Require"), "invalid sslmode value: \"Require\"");
        assert_eq!(
            fault("host=a sslmode=require"),
            "sslmode \"require\" demands TLS, which walhub does not speak yet"
        );
    }

    #[test]
    fn numbers() {
        let conninfo = parse(
            "host=a connect_timeout=-1 keepalives_idle=' 30 ' keepalives_count=0 tcp_user_timeout=1500",
        )
        .unwrap();
        assert_eq!(conninfo.connect_timeout, None);
        let idle = Some(Duration::from_secs(30));
        assert_eq!(conninfo.keepalives, Keepalives::On { idle, interval: None, count: None });
        assert_eq!(conninfo.tcp_user_timeout, Some(Duration::from_millis(1500)));
        assert_eq!(parse("keepalives=0").unwrap().keepalives, Keepalives::Off);
        assert_eq!(
            fault("connect_timeout=1s"),
            "invalid integer value \"1s\" for connection option \"connect_timeout\""
        );
    }

    #[test]
    fn passwords() {
        let conninfo = parse("host=a,/var/run/postgresql password=''").unwrap();
        let file = "localhost:5432:replication:u:socket\na:5432:replication:u:tcp";
        let found = |at: usize| conninfo.password_for(&conninfo.hosts[at], "u", Some(file));
        assert_eq!(found(0), Some(Secret::new("tcp")));
        assert_eq!(found(1), Some(Secret::new("socket")));
        assert_eq!(conninfo.password_for(&conninfo.hosts[0], "u", None), None);
        let given = parse("host=a password=hunter2").unwrap();
        assert_eq!(given.password_for(&given.hosts[0], "u", Some(file)), given.password);
        assert!(!format!("{given:?}").contains("hunter2"));
    }

    proptest! {
        #[test]
        fn both_syntaxes_say_the_same(
            user in "[^\0]{1,9}", password in "[^\0]{1,9}", name in "[a-z0-9.-]{1,9}", port in 1u16..,
        ) {
            let quote = |text: &str| format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"));
            let pairs = format!(
                "user={} password = {} host={name} port={port}", quote(&user), quote(&password));
            let percent = |text: &str| text.bytes().map(|b| format!("%{b:02x}")).collect::<String>();
            let uri = format!("postgres://{}:{}@{name}:{port}", percent(&user), percent(&password));
            let parsed = parse(&pairs).unwrap();
            prop_assert_eq!(parsed.user.as_deref(), Some(user.as_str()));
            prop_assert_eq!(parsed.password.clone(), Some(Secret::new(password)));
            prop_assert_eq!(parse(&uri), Ok(parsed));
        }

        #[test]
        fn garbage_never_panics(
            text in ".{0,40}",
            pieces in proptest::collection::vec(proptest::sample::select(vec![
                "postgres://", "user", "host", "port", "=", "'", "\\", " ", "@", ":", "/", "?", "&",
                "[", "]", "::1", "%", "%41", "a", "5", ",", "sslmode", "disable",
            ]), 0..14),
        ) {
            std::hint::black_box(parse(&text).is_ok());
            std::hint::black_box(parse(&pieces.concat()).is_ok());
            std::hint::black_box(parse(&format!("postgres://{text}")).is_ok());
        }
    }
}
