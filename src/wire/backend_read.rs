//! Reads a server's messages, as a client: walhub's view of its upstream.

use super::frame::{Frame, Malformed};
use super::reader::{Reader, Short};
use std::fmt;

/// A message from a server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FromServer<'a> {
    /// A step of authentication.
    Auth(AuthRequest<'a>),
    /// ParameterStatus; may come at any time, even inside a stream.
    ParameterStatus {
        /// The setting.
        name: String,
        /// Its current value.
        value: String,
    },
    /// BackendKeyData.
    BackendKeyData {
        /// The server's process.
        pid: u32,
        /// For cancel requests; four bytes in protocol 3.0.
        key: &'a [u8],
    },
    /// NegotiateProtocolVersion.
    NegotiateProtocol {
        /// The minor version with which the server continues.
        minor: u16,
        /// Protocol options that it does not know.
        unknown: Vec<String>,
    },
    /// ReadyForQuery.
    ReadyForQuery,
    /// RowDescription: the columns' names.
    RowDescription(Vec<String>),
    /// DataRow; no value is NULL.
    DataRow(Vec<Option<&'a [u8]>>),
    /// CommandComplete with its tag.
    CommandComplete(String),
    /// EmptyQueryResponse.
    EmptyQuery,
    /// ErrorResponse.
    Error(ServerError),
    /// NoticeResponse; may come at any time.
    Notice(ServerError),
    /// CopyBothResponse: the stream begins.
    CopyBoth,
    /// CopyInResponse.
    CopyIn,
    /// CopyOutResponse.
    CopyOut,
    /// CopyData's payload.
    CopyData(&'a [u8]),
    /// CopyDone.
    CopyDone,
    /// NotificationResponse; walhub never asks for one.
    Notification,
}

/// What the server wants for authentication.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AuthRequest<'a> {
    /// Nothing more.
    Ok,
    /// The password itself.
    Cleartext,
    /// The password, hashed with this.
    Md5 {
        /// Four random bytes.
        salt: [u8; 4],
    },
    /// One of these SASL mechanisms.
    Sasl(Vec<String>),
    /// The exchange continues with this.
    SaslContinue(&'a [u8]),
    /// The exchange ends with this.
    SaslFinal(&'a [u8]),
    /// A method that walhub does not support: Kerberos, GSSAPI, SSPI, ...
    Other(u32),
}

impl AuthRequest<'_> {
    /// The method's name for messages.
    pub const fn method(&self) -> &'static str {
        match self {
            Self::Ok => "trust",
            Self::Cleartext => "password",
            Self::Md5 { .. } => "md5",
            Self::Sasl(_) | Self::SaslContinue(_) | Self::SaslFinal(_) => "SASL",
            Self::Other(2) => "Kerberos V5",
            Self::Other(7 | 8) => "GSSAPI",
            Self::Other(9) => "SSPI",
            Self::Other(_) => "unknown",
        }
    }
}

/// An error or notice of the server.
#[derive(Clone, PartialEq, Eq, Debug, Default, thiserror::Error)]
pub struct ServerError {
    /// Severity, untranslated where the server sends it so.
    pub severity: String,
    /// SQLSTATE, five characters.
    pub sqlstate: String,
    /// The primary message.
    pub message: String,
    /// The detail.
    pub detail: Option<String>,
    /// The hint.
    pub hint: Option<String>,
}

impl fmt::Display for ServerError {
    /// One line: `ERROR: 58P01: requested WAL segment ... (detail; hint)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.severity, self.sqlstate, self.message)?;
        match (&self.detail, &self.hint) {
            (Some(detail), Some(hint)) => write!(f, " ({detail} {hint})"),
            (Some(more), None) | (None, Some(more)) => write!(f, " ({more})"),
            (None, None) => Ok(()),
        }
    }
}

impl<'a> FromServer<'a> {
    /// Parses a message.
    pub fn parse(frame: Frame<'a>) -> Result<Self, Malformed> {
        let mut reader = Reader::new(frame.body);
        let name = name_of(frame.tag).ok_or(Malformed::Type { tag: frame.tag })?;
        Self::parse_body(frame.tag, &mut reader).map_err(|Short| Malformed::body(name))
    }

    fn parse_body(tag: u8, body: &mut Reader<'a>) -> Result<Self, Short> {
        Ok(match tag {
            b'R' => Self::Auth(auth_request(body)?),
            b'S' => Self::ParameterStatus { name: body.text()?, value: body.text()? },
            b'K' => Self::BackendKeyData { pid: body.u32()?, key: body.rest() },
            b'v' => {
                // Major and minor; the major is 3, as requested.
                body.u16()?;
                let minor = body.u16()?;
                let names = body.u32()?;
                // Each takes at least one byte, so the end of the body bounds the loop.
                let unknown = (0..names).map(|_| body.text()).collect::<Result<_, _>>()?;
                Self::NegotiateProtocol { minor, unknown }
            }
            b'T' => {
                let columns = body.u16()?;
                Self::RowDescription((0..columns).map(|_| column(body)).collect::<Result<_, _>>()?)
            }
            b'D' => {
                let values = body.u16()?;
                Self::DataRow((0..values).map(|_| value(body)).collect::<Result<_, _>>()?)
            }
            b'C' => Self::CommandComplete(body.text()?),
            b'E' => Self::Error(server_error(body)?),
            b'N' => Self::Notice(server_error(body)?),
            b'd' => Self::CopyData(body.rest()),
            b'I' => Self::EmptyQuery,
            b'Z' => Self::ReadyForQuery,
            b'W' => Self::CopyBoth,
            b'G' => Self::CopyIn,
            b'H' => Self::CopyOut,
            b'c' => Self::CopyDone,
            _ => Self::Notification,
        })
    }
}

/// The message's name in the protocol's documentation.
const fn name_of(tag: u8) -> Option<&'static str> {
    Some(match tag {
        b'R' => "Authentication",
        b'S' => "ParameterStatus",
        b'K' => "BackendKeyData",
        b'v' => "NegotiateProtocolVersion",
        b'T' => "RowDescription",
        b'D' => "DataRow",
        b'C' => "CommandComplete",
        b'E' => "ErrorResponse",
        b'N' => "NoticeResponse",
        b'd' => "CopyData",
        b'I' => "EmptyQueryResponse",
        b'Z' => "ReadyForQuery",
        b'W' => "CopyBothResponse",
        b'G' => "CopyInResponse",
        b'H' => "CopyOutResponse",
        b'c' => "CopyDone",
        b'A' => "NotificationResponse",
        _ => return None,
    })
}

fn auth_request<'a>(body: &mut Reader<'a>) -> Result<AuthRequest<'a>, Short> {
    Ok(match body.u32()? {
        0 => AuthRequest::Ok,
        3 => AuthRequest::Cleartext,
        5 => AuthRequest::Md5 { salt: body.u32()?.to_be_bytes() },
        10 => {
            let mut mechanisms = Vec::new();
            loop {
                let mechanism = body.text()?;
                if mechanism.is_empty() {
                    break AuthRequest::Sasl(mechanisms);
                }
                mechanisms.push(mechanism);
            }
        }
        11 => AuthRequest::SaslContinue(body.rest()),
        12 => AuthRequest::SaslFinal(body.rest()),
        code => AuthRequest::Other(code),
    })
}

/// The column's name; its type is not used here.
fn column(body: &mut Reader<'_>) -> Result<String, Short> {
    const TABLE_TYPE_FORMAT: usize = 18;
    let name = body.text()?;
    body.bytes(TABLE_TYPE_FORMAT)?;
    Ok(name)
}

fn value<'a>(body: &mut Reader<'a>) -> Result<Option<&'a [u8]>, Short> {
    match body.i32()? {
        -1 => Ok(None),
        len => body.bytes(usize::try_from(len).map_err(|_| Short)?).map(Some),
    }
}

fn server_error(body: &mut Reader<'_>) -> Result<ServerError, Short> {
    let mut error = ServerError::default();
    let mut translated = String::new();
    loop {
        match body.u8()? {
            0 => break,
            b'S' => translated = body.text()?,
            b'V' => error.severity = body.text()?,
            b'C' => error.sqlstate = body.text()?,
            b'M' => error.message = body.text()?,
            b'D' => error.detail = Some(body.text()?),
            b'H' => error.hint = Some(body.text()?),
            _ => drop(body.zero_terminated()?),
        }
    }
    if error.severity.is_empty() {
        error.severity = translated;
    }
    Ok(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::backend::{self, Column};
    use crate::wire::frame::next_frame;
    use crate::wire::refusal::Refusal;
    use bytes::BytesMut;
    use proptest::prelude::*;

    fn written(write: impl FnOnce(&mut BytesMut)) -> Vec<u8> {
        let mut out = BytesMut::new();
        write(&mut out);
        out.to_vec()
    }

    fn read(bytes: &[u8]) -> Result<FromServer<'_>, Malformed> {
        let frame = next_frame(bytes, 1 << 20).unwrap().unwrap();
        assert_eq!(frame.len, bytes.len());
        FromServer::parse(frame)
    }

    #[test]
    fn reads_what_the_backend_side_writes() {
        assert_eq!(read(&written(backend::auth_ok)), Ok(FromServer::Auth(AuthRequest::Ok)));
        assert_eq!(read(&written(backend::ready_for_query)), Ok(FromServer::ReadyForQuery));
        assert_eq!(read(&written(backend::copy_both)), Ok(FromServer::CopyBoth));
        assert_eq!(read(&written(backend::copy_done)), Ok(FromServer::CopyDone));
        assert_eq!(
            read(&written(|out| backend::backend_key_data(out, 3, 4))),
            Ok(FromServer::BackendKeyData { pid: 3, key: &[0, 0, 0, 4] })
        );
        assert_eq!(
            read(&written(|out| backend::negotiate_protocol_version(out, 2, &["_pq_.x"]))),
            Ok(FromServer::NegotiateProtocol { minor: 2, unknown: vec!["_pq_.x".to_owned()] })
        );
        let columns = [Column::text("filename"), Column::int8("n")];
        assert_eq!(
            read(&written(|out| backend::row_description(out, &columns))),
            Ok(FromServer::RowDescription(vec!["filename".to_owned(), "n".to_owned()]))
        );
    }

    #[test]
    fn authentication_requests() {
        let request = |body: &[u8]| {
            let mut bytes = vec![b'R'];
            bytes.extend((body.len() as u32 + 4).to_be_bytes());
            bytes.extend(body);
            match read(&bytes) {
                Ok(FromServer::Auth(request)) => Ok(format!("{request:?}")),
                Ok(other) => panic!("{other:?}"),
                Err(fault) => Err(fault),
            }
        };
        assert_eq!(request(b"\0\0\0\x05abcd").unwrap(), "Md5 { salt: [97, 98, 99, 100] }");
        assert_eq!(
            request(b"\0\0\0\x0aSCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0").unwrap(),
            "Sasl([\"SCRAM-SHA-256-PLUS\", \"SCRAM-SHA-256\"])"
        );
        assert_eq!(request(b"\0\0\0\x07").unwrap(), "Other(7)");
        for bad in [&b"\0\0\0\x05abc"[..], b"\0\0\0\x0aSCRAM-SHA-256\0", b"\0\0\0"] {
            assert_eq!(request(bad), Err(Malformed::body("Authentication")), "{bad:?}");
        }
    }

    #[test]
    fn errors_prefer_the_untranslated_severity() {
        let fields = |tag: u8, body: &[u8]| match FromServer::parse(Frame { tag, body, len: 0 }) {
            Ok(FromServer::Error(error) | FromServer::Notice(error)) => error,
            other => panic!("{other:?}"),
        };
        let error = fields(b'E', b"SFEHLER\0VERROR\0C58P01\0Mweg\0Dd\0Hh\0Fx.c\0L1\0\0");
        assert_eq!(error.to_string(), "ERROR: 58P01: weg (d h)");
        let notice = fields(b'N', b"SHINT\0Mm\0\0");
        assert_eq!(notice.severity, "HINT");
    }

    #[test]
    fn foreign_types_and_short_bodies_are_refused() {
        assert_eq!(read(b"?\0\0\0\x04"), Err(Malformed::Type { tag: b'?' }));
        assert_eq!(read(b"D\0\0\0\x06\xff\xff"), Err(Malformed::body("DataRow")));
        assert_eq!(
            read(b"D\0\0\0\x0a\0\x01\xff\xff\xff\xfe"),
            Err(Malformed::body("DataRow")),
            "no length but -1 is negative"
        );
        assert_eq!(
            read(b"v\0\0\0\x0c\0\x03\0\0\xff\xff\xff\xff"),
            Err(Malformed::body("NegotiateProtocolVersion"))
        );
    }

    proptest! {
        #[test]
        fn rows_round_trip(
            values in proptest::collection::vec(
                proptest::option::of(proptest::collection::vec(any::<u8>(), 0..9)), 0..6),
        ) {
            let row: Vec<Option<&[u8]>> = values.iter().map(Option::as_deref).collect();
            let bytes = written(|out| backend::data_row(out, &row));
            prop_assert_eq!(read(&bytes), Ok(FromServer::DataRow(row)));
        }

        #[test]
        fn texts_round_trip(a in "[^\0]{0,9}", b in "[^\0]{0,9}") {
            let bytes = written(|out| backend::parameter_status(out, &a, &b));
            prop_assert_eq!(
                read(&bytes),
                Ok(FromServer::ParameterStatus { name: a.clone(), value: b.clone() })
            );
            let bytes = written(|out| backend::command_complete(out, &a));
            prop_assert_eq!(read(&bytes), Ok(FromServer::CommandComplete(a.clone())));
            let refusal = Refusal::error("XX000", a.clone()).with_detail(b.clone());
            let bytes = written(|out| backend::error(out, &refusal));
            let error = ServerError {
                severity: "ERROR".to_owned(),
                sqlstate: "XX000".to_owned(),
                message: a,
                detail: Some(b),
                hint: None,
            };
            prop_assert_eq!(read(&bytes), Ok(FromServer::Error(error)));
        }

        #[test]
        fn garbage_never_panics(
            tag in proptest::sample::select(b"RSKvTDCENdIZWGHcA?".to_vec()),
            body in proptest::collection::vec(any::<u8>(), 0..60),
        ) {
            let frame = Frame { tag, body: &body, len: body.len() + 5 };
            std::hint::black_box(FromServer::parse(frame).is_ok());
        }
    }
}
