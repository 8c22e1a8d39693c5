//! The server's side of the first packets of a connection: encryption requests, cancel requests,
//! and the startup packet with its parameters.

use super::backend;
use super::reader::{Reader, Short};
use super::refusal::Refusal;
use super::sqlstate;
use super::units::parse_bool;
use bytes::BytesMut;
use std::collections::VecDeque;

/// Bounds of a first packet's length, without the length word itself.
const PACKET_BYTES: std::ops::RangeInclusive<usize> = 4..=10_000;
/// The major "version" of the requests that are not startup packets.
const REQUEST_MAJOR: u16 = 1234;
const CANCEL_MINOR: u16 = 5678;
const SSL_MINOR: u16 = 5679;
const GSS_MINOR: u16 = 5680;
/// The protocol we speak is 3.0.
const MAJOR: u16 = 3;
const MINOR: u16 = 0;
/// `NAMEDATALEN - 1`: longer user names are cut, as role names are.
const NAME_BYTES: usize = 63;
/// Prefix of protocol options.
const PROTOCOL_OPTION: &str = "_pq_.";

/// What may come before the first typed message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FirstPacket {
    /// SSLRequest: answered with one byte, then another first packet follows.
    Ssl,
    /// GSSENCRequest: likewise.
    Gss,
    /// CancelRequest: never answered.
    Cancel {
        /// The backend to cancel.
        pid: u32,
        /// The key it was given.
        key: u32,
    },
    /// StartupMessage of protocol 3.x.
    Startup(Startup),
}

/// A StartupMessage's content.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Startup {
    /// The minor version requested.
    pub minor: u16,
    /// Names and values in the order sent; bytes that are not UTF-8 became U+FFFD.
    pub params: Vec<(String, String)>,
}

/// Which kind of session the client wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReplicationMode {
    /// A physical walsender.
    Physical,
    /// A walsender bound to a database.
    Database,
    /// An ordinary backend.
    None,
}

/// What NegotiateProtocolVersion must say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Negotiation<'a> {
    /// The minor version with which the session continues.
    pub minor: u16,
    /// Protocol options that are unknown here.
    pub unknown: Vec<&'a str>,
}

/// Why a connection ends before the session begins.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StartupFault {
    /// HTTP, TLS, port scanners, nonsense: closed without an answer.
    #[error("invalid length of startup packet")]
    Length,
    /// Likewise.
    #[error("invalid length of cancel request packet")]
    CancelLength,
    /// A protocol other than 3.x.
    #[error("unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.0")]
    Protocol {
        /// The major version requested.
        major: u16,
        /// The minor version requested.
        minor: u16,
    },
    /// The parameters do not end where the packet does.
    #[error("invalid startup packet layout: expected terminator as last byte")]
    Layout,
    /// There is no user name.
    #[error("no PostgreSQL user name specified in startup packet")]
    NoUser,
    /// `replication` is neither a Boolean nor `database`.
    #[error("invalid value for parameter \"replication\": \"{0}\"")]
    Replication(String),
    /// `options` has something that is not `-c name=value`.
    #[error("invalid command-line argument for server process: {0}")]
    Argument(String),
    /// A setting in `options` has a name only.
    #[error("{0} requires a value")]
    NoValue(String),
}

impl StartupFault {
    /// A second SSLRequest is not a request but an unsupported protocol.
    pub const SECOND_SSL: Self = Self::Protocol { major: REQUEST_MAJOR, minor: SSL_MINOR };
    /// Likewise a second GSSENCRequest.
    pub const SECOND_GSS: Self = Self::Protocol { major: REQUEST_MAJOR, minor: GSS_MINOR };

    /// What the client is told. `None`: the connection closes without a message.
    pub fn refusal(&self) -> Option<Refusal> {
        let state = match self {
            Self::Length | Self::CancelLength => return None,
            Self::Protocol { .. } => sqlstate::FEATURE_NOT_SUPPORTED,
            Self::Layout => sqlstate::PROTOCOL_VIOLATION,
            Self::NoUser => sqlstate::INVALID_AUTHORIZATION_SPECIFICATION,
            Self::Replication(_) => sqlstate::INVALID_PARAMETER_VALUE,
            Self::Argument(_) | Self::NoValue(_) => sqlstate::SYNTAX_ERROR,
        };
        let refusal = Refusal::fatal(state, self.to_string());
        Some(match self {
            Self::Replication(_) => {
                refusal.with_hint("Valid values are: \"false\", 0, \"true\", 1, \"database\".")
            }
            Self::Argument(_) => {
                refusal.with_hint("Settings are given as \"-c name=value\" or \"--name=value\".")
            }
            _ => refusal,
        })
    }

    /// Writes the answer in the form that the client reads: protocol 2 and older use a different
    /// one.
    pub fn answer(&self, out: &mut BytesMut) {
        let Some(refusal) = self.refusal() else { return };
        match self {
            Self::Protocol { major, .. } if *major < MAJOR => backend::ancient_error(out, &refusal),
            _ => backend::error(out, &refusal),
        }
    }
}

/// The packet at the front of `buf` and its size; `None` until it has fully arrived. An impossible
/// length is refused as soon as it is here.
pub fn next_first_packet(buf: &[u8]) -> Result<Option<(FirstPacket, usize)>, StartupFault> {
    let mut reader = Reader::new(buf);
    let Ok(length) = reader.u32() else { return Ok(None) };
    let packet_len = usize::try_from(length)
        .ok()
        .and_then(|length| length.checked_sub(4))
        .filter(|len| PACKET_BYTES.contains(len))
        .ok_or(StartupFault::Length)?;
    let Ok(packet) = reader.bytes(packet_len) else { return Ok(None) };
    let parsed = FirstPacket::parse(packet)?;
    Ok(Some((parsed, 4 + packet_len)))
}

impl FirstPacket {
    fn parse(packet: &[u8]) -> Result<Self, StartupFault> {
        let mut reader = Reader::new(packet);
        let version = |reader: &mut Reader<'_>| Ok((reader.u16()?, reader.u16()?));
        match version(&mut reader).map_err(|Short| StartupFault::Length)? {
            (REQUEST_MAJOR, SSL_MINOR) => Ok(Self::Ssl),
            (REQUEST_MAJOR, GSS_MINOR) => Ok(Self::Gss),
            (REQUEST_MAJOR, CANCEL_MINOR) => match (reader.u32(), reader.u32()) {
                // Only four-byte keys are ever issued here.
                (Ok(pid), Ok(key)) if reader.is_empty() => Ok(Self::Cancel { pid, key }),
                _ => Err(StartupFault::CancelLength),
            },
            (MAJOR, minor) => Startup::parse(minor, reader).map(Self::Startup),
            (major, minor) => Err(StartupFault::Protocol { major, minor }),
        }
    }
}

impl Startup {
    fn parse(minor: u16, mut reader: Reader<'_>) -> Result<Self, StartupFault> {
        let mut params = Vec::new();
        loop {
            let name = reader.text().map_err(|Short| StartupFault::Layout)?;
            if name.is_empty() {
                break;
            }
            let value = reader.text().map_err(|Short| StartupFault::Layout)?;
            params.push((name, value));
        }
        if reader.is_empty() { Ok(Self { minor, params }) } else { Err(StartupFault::Layout) }
    }

    /// The last value given for a parameter, as in PostgreSQL.
    pub fn param(&self, name: &str) -> Option<&str> {
        self.params.iter().rev().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The user, cut to the length of a role name.
    pub fn user(&self) -> Result<&str, StartupFault> {
        match self.param("user") {
            Some(user) if !user.is_empty() => {
                Ok(user.get(..user.floor_char_boundary(NAME_BYTES)).unwrap_or(user))
            }
            _ => Err(StartupFault::NoUser),
        }
    }

    /// The kind of session. `database` is recognized in lower case only.
    pub fn replication(&self) -> Result<ReplicationMode, StartupFault> {
        match self.param("replication") {
            None => Ok(ReplicationMode::None),
            Some("database") => Ok(ReplicationMode::Database),
            Some(value) => match parse_bool(value) {
                Some(true) => Ok(ReplicationMode::Physical),
                Some(false) => Ok(ReplicationMode::None),
                None => Err(StartupFault::Replication(value.to_owned())),
            },
        }
    }

    /// What must be negotiated; `None` when the client asked for nothing unsupported. Nothing may
    /// be sent then: libpq ends a connection whose server negotiates nothing.
    pub fn negotiation(&self) -> Option<Negotiation<'_>> {
        let unknown: Vec<&str> = self
            .params
            .iter()
            .map(|(name, _)| name.as_str())
            .filter(|name| name.starts_with(PROTOCOL_OPTION))
            .collect();
        (self.minor > MINOR || !unknown.is_empty()).then_some(Negotiation { minor: MINOR, unknown })
    }

    /// Settings that the client wants for its session, in the order in which they take effect:
    /// those in `options`, then parameters that are settings. Their names are case-insensitive.
    pub fn settings(&self) -> Result<Vec<(String, String)>, StartupFault> {
        let mut settings = parse_options(self.param("options").unwrap_or_default())?;
        settings.extend(
            self.params
                .iter()
                .filter(|(name, _)| {
                    !matches!(name.as_str(), "user" | "database" | "options" | "replication")
                        && !name.starts_with(PROTOCOL_OPTION)
                })
                .cloned(),
        );
        Ok(settings)
    }
}

/// Switches of the `postgres` command line that a client may send: those without an argument, and
/// those with one. Both are ignored: they tune query execution.
const FLAGS: &str = "bEeFijlnOPsT";
const FLAGS_WITH_VALUE: &str = "BCDdfhkNprStvW";

/// The settings in a command line in the form of `options`: `-c name=value`, `-cname=value`,
/// `--name=value`.
pub fn parse_options(options: &str) -> Result<Vec<(String, String)>, StartupFault> {
    let mut arguments = VecDeque::from(split_options(options));
    let mut settings = Vec::new();
    while let Some(argument) = arguments.pop_front() {
        let bad = || StartupFault::Argument(argument.clone());
        let mut switches = argument.strip_prefix('-').ok_or_else(bad)?.chars();
        if switches.as_str().is_empty() {
            return Err(bad());
        }
        if argument == "--" {
            // Ends the switches; any argument after it is one too many.
            return match arguments.pop_front() {
                Some(surplus) => Err(StartupFault::Argument(surplus)),
                None => Ok(settings),
            };
        }
        while let Some(switch) = switches.next() {
            if FLAGS.contains(switch) {
                continue;
            }
            // The value is the rest of this argument, or the next one.
            let value = match switches.as_str() {
                "" => arguments.pop_front(),
                rest => Some(rest.to_owned()),
            };
            let value = value.ok_or_else(bad)?;
            switches = "".chars();
            if switch == 'c' || switch == '-' {
                settings.push(long_option(switch, &value)?);
            } else if !FLAGS_WITH_VALUE.contains(switch) {
                return Err(bad());
            }
        }
    }
    Ok(settings)
}

/// `name=value`, where dashes in the name mean underscores (`ParseLongOption`).
fn long_option(switch: char, text: &str) -> Result<(String, String), StartupFault> {
    match text.split_once('=') {
        Some((name, value)) => Ok((name.replace('-', "_"), value.to_owned())),
        None if switch == 'c' => Err(StartupFault::NoValue(format!("-c {text}"))),
        None => Err(StartupFault::NoValue(format!("--{text}"))),
    }
}

/// Splits at white space; a backslash takes the next character literally (`pg_split_opts`).
fn split_options(options: &str) -> Vec<String> {
    let mut arguments = Vec::new();
    let mut current: Option<String> = None;
    let mut chars = options.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c' => arguments.extend(current.take()),
            // A lone backslash at the end stands for nothing.
            '\\' => current.get_or_insert_default().extend(chars.next()),
            c => current.get_or_insert_default().push(c),
        }
    }
    arguments.extend(current);
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A first packet: length word, then these bytes.
    fn packet(body: &[u8]) -> Vec<u8> {
        let mut bytes = (body.len() as u32 + 4).to_be_bytes().to_vec();
        bytes.extend(body);
        bytes
    }

    fn startup(params: &str) -> Result<Startup, StartupFault> {
        let mut body = b"\0\x03\0\0".to_vec();
        body.extend(params.as_bytes());
        match next_first_packet(&packet(&body))? {
            Some((FirstPacket::Startup(startup), _)) => Ok(startup),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn knows_the_requests() {
        let ssl = b"\0\0\0\x08\x04\xd2\x16\x2fmore";
        assert_eq!(next_first_packet(ssl), Ok(Some((FirstPacket::Ssl, 8))));
        let gss = b"\0\0\0\x08\x04\xd2\x16\x30";
        assert_eq!(next_first_packet(gss), Ok(Some((FirstPacket::Gss, 8))));
        let cancel = b"\0\0\0\x10\x04\xd2\x16\x2e\0\0\0\x01\0\0\0\x02";
        assert_eq!(
            next_first_packet(cancel),
            Ok(Some((FirstPacket::Cancel { pid: 1, key: 2 }, 16)))
        );
        assert_eq!(next_first_packet(&cancel[..15]), Ok(None));
        assert_eq!(
            next_first_packet(&packet(b"\x04\xd2\x16\x2e\0\0\0\x01")),
            Err(StartupFault::CancelLength)
        );
    }

    #[test]
    fn what_a_standby_sends() {
        let startup = startup(
            "user\0rep\0database\0replication\0replication\0true\0application_name\0walreceiver\0\0",
        )
        .unwrap();
        assert_eq!(startup.user(), Ok("rep"));
        assert_eq!(startup.replication(), Ok(ReplicationMode::Physical));
        assert_eq!(startup.negotiation(), None);
        assert_eq!(
            startup.settings(),
            Ok(vec![("application_name".to_owned(), "walreceiver".to_owned())])
        );
    }

    #[test]
    fn bounds_of_the_packet() {
        for bad in [
            &b"GET / HTTP/1.0"[..],
            b"\0\0\0\0",
            b"\0\0\0\x07",
            b"\0\0\x27\x15",
            b"\x16\x03\x01\x02",
        ] {
            assert_eq!(next_first_packet(bad), Err(StartupFault::Length), "{bad:?}");
        }
        assert_eq!(next_first_packet(b"\0\0\x27\x14"), Ok(None));
        assert_eq!(next_first_packet(b"\0\0\0"), Ok(None));
        assert_eq!(
            next_first_packet(&packet(b"\0\x03\0\0")),
            Err(StartupFault::Layout),
            "no terminator at all"
        );
        for bad in ["user\0u\0", "user\0u", "user\0u\0\0\0", "user\0\0", "user\0u\0\0x"] {
            // `user\0\0` ends with an empty value and lacks the terminator.
            assert_eq!(startup(bad), Err(StartupFault::Layout), "{bad:?}");
        }
        assert_eq!(startup("\0").unwrap().user(), Err(StartupFault::NoUser));
        assert_eq!(startup("user\0\0\0").unwrap().user(), Err(StartupFault::NoUser));
    }

    #[test]
    fn other_protocols_get_an_answer_they_can_read() {
        let fault = |body: &[u8]| next_first_packet(&packet(body)).unwrap_err();
        let answer = |fault: &StartupFault| {
            let mut out = BytesMut::new();
            fault.answer(&mut out);
            out.to_vec()
        };
        let old = fault(b"\0\x02\0\0");
        assert_eq!(old, StartupFault::Protocol { major: 2, minor: 0 });
        assert_eq!(
            answer(&old),
            b"EFATAL:  unsupported frontend protocol 2.0: server supports 3.0 to 3.0\n\0"
        );
        let new = fault(b"\0\x04\0\0\0");
        assert!(answer(&new).starts_with(b"E\0\0\0"));
        assert!(answer(&StartupFault::Length).is_empty());
        assert_eq!(
            StartupFault::SECOND_SSL.refusal().unwrap().message,
            "unsupported frontend protocol 1234.5679: server supports 3.0 to 3.0"
        );
    }

    #[test]
    fn negotiates_only_what_is_asked() {
        let mut asked = startup("user\0u\0_pq_.foo\0\0\0").unwrap();
        assert_eq!(asked.negotiation(), Some(Negotiation { minor: 0, unknown: vec!["_pq_.foo"] }));
        asked.params.pop();
        asked.minor = 9999;
        assert_eq!(asked.negotiation(), Some(Negotiation { minor: 0, unknown: vec![] }));
        assert_eq!(asked.settings(), Ok(vec![]));
    }

    #[test]
    fn replication_values() {
        let mode = |value: &str| {
            startup(&format!("user\0u\0replication\0{value}\0\0")).unwrap().replication()
        };
        for yes in ["true", "t", "TRUE", "on", "yes", "Y", "1"] {
            assert_eq!(mode(yes), Ok(ReplicationMode::Physical), "{yes}");
        }
        for no in ["false", "F", "off", "of", "no", "0"] {
            assert_eq!(mode(no), Ok(ReplicationMode::None), "{no}");
        }
        assert_eq!(mode("database"), Ok(ReplicationMode::Database));
        for bad in ["Database", "o", "", "2", "truely"] {
            let fault = mode(bad).unwrap_err();
            assert_eq!(fault, StartupFault::Replication(bad.to_owned()));
            assert_eq!(fault.refusal().unwrap().sqlstate, "22023");
        }
    }

    #[test]
    fn long_user_names_are_cut_between_characters() {
        let name = format!("{}é", "u".repeat(62));
        let startup = startup(&format!("user\0{name}\0\0")).unwrap();
        assert_eq!(startup.user().unwrap(), "u".repeat(62));
    }

    #[test]
    fn options_as_the_postgres_command_line_reads_them() {
        let pairs = |text: &str| parse_options(text);
        let ok = |list: &[(&str, &str)]| -> Result<Vec<(String, String)>, StartupFault> {
            Ok(list.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect())
        };
        assert_eq!(
            pairs("-c wal_sender_timeout=4s -cdatestyle=iso --statement-timeout=2000"),
            ok(&[
                ("wal_sender_timeout", "4s"),
                ("datestyle", "iso"),
                ("statement_timeout", "2000")
            ])
        );
        assert_eq!(pairs(r"-c search_path=a\ b\\c -e"), ok(&[("search_path", r"a b\c")]));
        assert_eq!(pairs("-S 4096 -ec x=1 -d5 --"), ok(&[("x", "1")]));
        assert_eq!(pairs("-c x=a=b"), ok(&[("x", "a=b")]));
        assert_eq!(pairs("  \t "), ok(&[]));
        assert_eq!(pairs(r"-cx=1\"), ok(&[("x", "1")]));
        let bad = |arg: &str| Err(StartupFault::Argument(arg.to_owned()));
        assert_eq!(pairs("junk"), bad("junk"));
        assert_eq!(pairs("-"), bad("-"));
        assert_eq!(pairs("-- junk"), bad("junk"));
        assert_eq!(pairs("-q 1"), bad("-q"));
        assert_eq!(pairs("-c"), bad("-c"));
        assert_eq!(pairs("-c work_mem"), Err(StartupFault::NoValue("-c work_mem".to_owned())));
        assert_eq!(pairs("--fsync"), Err(StartupFault::NoValue("--fsync".to_owned())));
    }

    proptest! {
        #[test]
        fn escaped_options_come_back(values in proptest::collection::vec("[a-z \\\\\t=]{0,12}", 0..5)) {
            let text: String = values
                .iter()
                .map(|v| format!(" -c x={} ", v.replace('\\', "\\\\").replace(' ', "\\ ").replace('\t', "\\\t")))
                .collect();
            let expected: Vec<_> = values.into_iter().map(|v| ("x".to_owned(), v)).collect();
            prop_assert_eq!(parse_options(&text), Ok(expected));
        }

        #[test]
        fn garbage_never_panics(body in proptest::collection::vec(any::<u8>(), 0..200), text in ".{0,60}") {
            std::hint::black_box(next_first_packet(&body).is_ok());
            let mut with_version = b"\0\x03\0\0".to_vec();
            with_version.extend(&body);
            if let Ok(Some((FirstPacket::Startup(startup), len))) = next_first_packet(&packet(&with_version)) {
                prop_assert_eq!(len, with_version.len() + 4);
                std::hint::black_box(startup.user().is_ok());
                std::hint::black_box(startup.settings().is_ok());
                std::hint::black_box(startup.replication().is_ok());
            }
            std::hint::black_box(parse_options(&text).is_ok());
        }
    }
}
