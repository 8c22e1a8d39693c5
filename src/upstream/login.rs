//! Logging in at the upstream: authentication, what it says of itself, and the
//! commands a walreceiver sends. Messages in, messages out, no I/O.

use crate::cluster::identity::server_version_num;
use crate::cluster::instance::{
    INSTANCE_ID, INSTANCE_PATH, InstanceId, InstancePath, InvalidInstance,
};
use crate::wire::backend_read::{AuthRequest, FromServer, ServerError};
use crate::wire::conninfo::Conninfo;
use crate::wire::frontend;
use crate::wire::secret::Secret;
use bytes::BytesMut;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};

/// The most parameter statuses kept of one server; PostgreSQL sends some fifteen.
const MAX_PARAMETERS: usize = 64;

/// The longest name or value kept. All of them go into the control file, whose length
/// is bounded (JSON may write a byte as six), and to every client.
const MAX_PARAMETER: usize = 1280;

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum LoginFault {
    /// The server refused.
    #[error("{0}")]
    Server(ServerError),
    /// The server wants a password, and there is none.
    #[error(
        "the server asks for a password, and none is given (primary_conninfo, PGPASSWORD or passfile)"
    )]
    NoPassword,
    /// The authentication method is not supported.
    #[error("the server asks for an authentication method that walhub does not know ({0})")]
    UnknownMethod(String),
    /// SCRAM failed: the server does not know the password, or the exchange is not valid.
    #[error("SCRAM authentication failed: {0}")]
    Scram(std::io::Error),
    /// The server let us in without proving that it knows the password.
    #[error("the server ended SCRAM authentication before it proved who it is")]
    Unproven,
    /// A message that does not belong here.
    #[error("unexpected message from the server while logging in")]
    Unexpected,
    /// More parameter statuses than any server sends.
    #[error("the server sends too many parameters")]
    TooManyParameters,
    /// A parameter status longer than any server's.
    #[error("the server sends a parameter that is too long")]
    LongParameter,
    /// `walhub.instance_path` is damaged.
    #[error("the upstream hub's path of instances: {0}")]
    Path(#[from] InvalidInstance),
}

/// The progress of the login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Write what is pending, continue reading.
    Underway,
    /// ReadyForQuery: commands may follow.
    Ready,
}

/// The login.
pub struct Login {
    user: String,
    password: Option<Secret>,
    scram: Scram,
    parameters: Vec<(String, String)>,
}

enum Scram {
    Idle,
    Underway(ScramSha256),
    Proven,
}

/// The startup packet for a host.
pub fn startup(
    conninfo: &Conninfo,
    user: &str,
    own: InstanceId,
    cluster_name: &str,
    out: &mut BytesMut,
) {
    let option = format!("-c {INSTANCE_ID}={own}");
    let options = match conninfo.options.as_deref() {
        Some(given) if !given.is_empty() => format!("{given} {option}"),
        _ => option,
    };
    let application_name = conninfo.application_name.as_deref().unwrap_or(cluster_name);
    let params = [
        ("user", user),
        ("database", "replication"),
        ("replication", "true"),
        ("application_name", application_name),
        ("options", options.as_str()),
    ];
    frontend::startup(out, &params);
}

impl Login {
    /// The state before the first answer.
    pub fn new(user: &str, password: Option<Secret>) -> Self {
        Self { user: user.to_owned(), password, scram: Scram::Idle, parameters: Vec::new() }
    }

    /// Takes one message; an answer goes into `out`. May take milliseconds at a SASLContinue, as
    /// SCRAM intends.
    pub fn take(
        &mut self,
        message: &FromServer<'_>,
        out: &mut BytesMut,
    ) -> Result<Progress, LoginFault> {
        match message {
            FromServer::Auth(request) => self.authenticate(request, out)?,
            FromServer::ParameterStatus { name, value } => self.parameter(name, value)?,
            FromServer::BackendKeyData { .. } | FromServer::Notice(_) => {}
            // We requested 3.0 and no options.
            FromServer::NegotiateProtocol { .. } => return Err(LoginFault::Unexpected),
            FromServer::ReadyForQuery => return Ok(Progress::Ready),
            FromServer::Error(error) => return Err(LoginFault::Server(error.clone())),
            _ => return Err(LoginFault::Unexpected),
        }
        Ok(Progress::Underway)
    }

    /// A parameter status, which may come again at any time.
    pub fn parameter(&mut self, name: &str, value: &str) -> Result<(), LoginFault> {
        if name.len() > MAX_PARAMETER || value.len() > MAX_PARAMETER {
            return Err(LoginFault::LongParameter);
        }
        if let Some((_, old)) = self.parameters.iter_mut().find(|(known, _)| known == name) {
            value.clone_into(old);
            return Ok(());
        }
        if self.parameters.len() == MAX_PARAMETERS {
            return Err(LoginFault::TooManyParameters);
        }
        self.parameters.push((name.to_owned(), value.to_owned()));
        Ok(())
    }

    fn authenticate(
        &mut self,
        request: &AuthRequest<'_>,
        out: &mut BytesMut,
    ) -> Result<(), LoginFault> {
        match request {
            AuthRequest::Ok => {
                if matches!(self.scram, Scram::Underway(_)) {
                    return Err(LoginFault::Unproven);
                }
            }
            AuthRequest::Cleartext => frontend::password(out, self.password()?),
            AuthRequest::Md5 { salt } => {
                let hash = md5_hash(self.user.as_bytes(), self.password()?.as_bytes(), *salt);
                frontend::password(out, &hash);
            }
            AuthRequest::Sasl(mechanisms) => {
                if !mechanisms.iter().any(|name| name == SCRAM_SHA_256) {
                    return Err(LoginFault::UnknownMethod(mechanisms.join(", ")));
                }
                // There is no TLS here, so nothing to bind to.
                let scram =
                    ScramSha256::new(self.password()?.as_bytes(), ChannelBinding::unsupported());
                frontend::sasl_initial(out, SCRAM_SHA_256, scram.message());
                self.scram = Scram::Underway(scram);
            }
            AuthRequest::SaslContinue(data) => {
                let Scram::Underway(scram) = &mut self.scram else {
                    return Err(LoginFault::Unexpected);
                };
                scram.update(data).map_err(LoginFault::Scram)?;
                frontend::sasl_response(out, scram.message());
            }
            AuthRequest::SaslFinal(data) => {
                let Scram::Underway(scram) = &mut self.scram else {
                    return Err(LoginFault::Unexpected);
                };
                scram.finish(data).map_err(LoginFault::Scram)?;
                self.scram = Scram::Proven;
            }
            AuthRequest::Other(code) => {
                return Err(LoginFault::UnknownMethod(format!("authentication request {code}")));
            }
        }
        Ok(())
    }

    fn password(&self) -> Result<&str, LoginFault> {
        let given = self.password.as_ref().map(Secret::reveal);
        given.filter(|text| !text.is_empty()).ok_or(LoginFault::NoPassword)
    }

    /// Ends the login; returns what the server said of itself, and the hubs from it upwards.
    pub fn finish(self) -> Result<Welcome, LoginFault> {
        let mut parameters = self.parameters;
        let path = match parameters.iter().position(|(name, _)| name == INSTANCE_PATH) {
            Some(place) => parameters.remove(place).1.parse()?,
            None => InstancePath::empty(),
        };
        parameters.retain(|(name, _)| !name.starts_with("walhub."));
        Ok(Welcome { parameters, path })
    }
}

/// What a server says before the first command.
#[derive(Debug, Clone)]
pub struct Welcome {
    /// Its parameter statuses, in its order.
    pub parameters: Vec<(String, String)>,
    /// The path from it upwards, when it is a hub.
    pub path: InstancePath,
}

impl Welcome {
    /// 150018 for 15.18.
    pub fn server_version_num(&self) -> u32 {
        let version = self.parameters.iter().find(|(name, _)| name == "server_version");
        version.map_or(0, |(_, text)| server_version_num(text))
    }
}

/// CREATE_REPLICATION_SLOT in the server's own syntax.
pub fn create_slot(name: &str, server_version_num: u32) -> String {
    let name = quote(name);
    if server_version_num >= 150_000 {
        format!("CREATE_REPLICATION_SLOT {name} PHYSICAL ( RESERVE_WAL )")
    } else {
        format!("CREATE_REPLICATION_SLOT {name} PHYSICAL RESERVE_WAL")
    }
}

/// START_REPLICATION as walreceivers send it.
pub fn start_replication(
    slot: Option<&str>,
    start: crate::wal::Lsn,
    tli: crate::wal::TimelineId,
) -> String {
    let slot = slot.map(|name| format!("SLOT {} ", quote(name))).unwrap_or_default();
    format!("START_REPLICATION {slot}{start} TIMELINE {tli}")
}

fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::{Lsn, TimelineId};
    use crate::wire::startup::{FirstPacket, next_first_packet};

    fn login(password: Option<&str>) -> Login {
        Login::new("me", password.map(Secret::new))
    }

    fn take(login: &mut Login, request: AuthRequest<'_>) -> Result<BytesMut, LoginFault> {
        let mut out = BytesMut::new();
        login.take(&FromServer::Auth(request), &mut out)?;
        Ok(out)
    }

    #[test]
    fn says_who_it_is_and_keeps_the_options_given() {
        let mut out = BytesMut::new();
        let text = "host=db1 options='-c search_path=a' application_name=hub1";
        let conninfo = Conninfo::parse(text, &|_| None).unwrap();
        startup(&conninfo, "me", InstanceId::new(0xAB), "walhub", &mut out);
        let Ok(Some((FirstPacket::Startup(startup), _))) = next_first_packet(&out) else {
            panic!("no startup packet")
        };
        assert_eq!(startup.param("application_name"), Some("hub1"));
        let settings = startup.settings().unwrap();
        let id = ("walhub.instance_id".to_owned(), InstanceId::new(0xAB).to_string());
        assert!(settings.contains(&id) && settings.iter().any(|(name, _)| name == "search_path"));
    }

    #[test]
    fn passwords_are_sent_as_they_are_asked_for() {
        let clear = take(&mut login(Some("pw")), AuthRequest::Cleartext).unwrap();
        assert_eq!(&clear[..], b"p\0\0\0\x07pw\0");
        let md5 = take(&mut login(Some("pw")), AuthRequest::Md5 { salt: [1, 2, 3, 4] }).unwrap();
        assert!(md5[5..].starts_with(b"md5") && md5.len() == 5 + 35 + 1);
        for given in [None, Some("")] {
            let fault = take(&mut login(given), AuthRequest::Cleartext).unwrap_err();
            assert!(matches!(fault, LoginFault::NoPassword));
        }
    }

    #[test]
    fn a_server_must_prove_itself_once_scram_has_begun() {
        let mut login = login(Some("pw"));
        let both = vec!["SCRAM-SHA-256-PLUS".to_owned(), SCRAM_SHA_256.to_owned()];
        let first = take(&mut login, AuthRequest::Sasl(both)).unwrap();
        assert!(first[5..].starts_with(b"SCRAM-SHA-256\0"));
        assert!(matches!(take(&mut login, AuthRequest::Ok), Err(LoginFault::Unproven)));
        let junk = take(&mut login, AuthRequest::SaslContinue(b"junk"));
        assert!(matches!(junk, Err(LoginFault::Scram(_))));
    }

    #[test]
    fn what_has_no_place_is_refused() {
        let unknown = |request| take(&mut login(Some("pw")), request).unwrap_err();
        assert!(matches!(unknown(AuthRequest::Other(7)), LoginFault::UnknownMethod(_)));
        assert!(matches!(unknown(AuthRequest::Sasl(vec![])), LoginFault::UnknownMethod(_)));
        assert!(matches!(unknown(AuthRequest::SaslFinal(b"")), LoginFault::Unexpected));
        let mut out = BytesMut::new();
        let fault = login(None).take(&FromServer::CopyDone, &mut out).unwrap_err();
        assert!(matches!(fault, LoginFault::Unexpected));
    }

    #[test]
    fn parameters_are_bounded_and_the_path_is_taken_out() {
        let mut login = login(None);
        let path = InstancePath::empty().announced_by(InstanceId::new(1));
        login.parameter("server_version", "14.1").unwrap();
        login.parameter(INSTANCE_PATH, &path.to_string()).unwrap();
        login.parameter("server_version", "15.18").unwrap();
        let welcome = login.finish().unwrap();
        assert_eq!(welcome.path, path);
        assert_eq!(welcome.server_version_num(), 150_018);
        assert_eq!(welcome.parameters.len(), 1);

        let mut login = Login::new("me", None);
        login.parameter(INSTANCE_PATH, "junk").unwrap();
        for n in 1..MAX_PARAMETERS {
            login.parameter(&n.to_string(), "").unwrap();
        }
        let more = login.parameter("more", "");
        assert!(matches!(more, Err(LoginFault::TooManyParameters)));
        assert!(matches!(login.finish(), Err(LoginFault::Path(_))));
    }

    #[test]
    fn commands_in_the_servers_syntax() {
        assert_eq!(
            create_slot("a\"b", 140_000),
            "CREATE_REPLICATION_SLOT \"a\"\"b\" PHYSICAL RESERVE_WAL"
        );
        assert_eq!(
            create_slot("s", 150_000),
            "CREATE_REPLICATION_SLOT \"s\" PHYSICAL ( RESERVE_WAL )"
        );
        let (start, tli) = (Lsn::new(0x60_0000), TimelineId::FIRST);
        assert_eq!(
            start_replication(Some("s"), start, tli),
            "START_REPLICATION SLOT \"s\" 0/600000 TIMELINE 1"
        );
        assert_eq!(start_replication(None, start, tli), "START_REPLICATION 0/600000 TIMELINE 1");
    }
}
