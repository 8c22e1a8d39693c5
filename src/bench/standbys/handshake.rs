//! From a connection to a stream, with a walreceiver's steps. Bytes in, bytes out.

use super::endpoint::Endpoint;
use crate::upstream::login::{Login, LoginFault, Progress, create_slot, start_replication};
use crate::wal::{Lsn, TimelineId};
use crate::wire::backend_read::{FromServer, ServerError};
use crate::wire::frame::{Malformed, next_frame};
use crate::wire::frontend;
use crate::wire::sqlstate;
use bytes::BytesMut;

/// The longest message expected before the stream.
const MAX_MESSAGE: usize = 1 << 20;

/// A handshake in progress.
pub(super) struct Handshake {
    step: Step,
    unread: BytesMut,
    error: Option<ServerError>,
    seen: Option<Seen>,
}

enum Step {
    Login(Box<Login>),
    Identify,
    CreateSlot,
    Start,
}

/// The answer to IDENTIFY_SYSTEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) system_id: String,
    pub(super) tli: TimelineId,
    pub(super) xlogpos: Lsn,
}

/// What the standby wants.
pub(super) struct Wish {
    pub(super) start: Lsn,
    pub(super) tli: TimelineId,
    pub(super) slot: Option<String>,
    /// The server's version, when the slot must be created first.
    pub(super) create_slot: Option<u32>,
}

/// The progress of a handshake.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Write the output and continue to read.
    Underway,
    /// CopyBothResponse came, followed by these bytes.
    Streaming(BytesMut),
}

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoStream {
    #[error("{0}")]
    Refused(ServerError),
    #[error(transparent)]
    Login(#[from] LoginFault),
    #[error("invalid message from the server: {0}")]
    Malformed(#[from] Malformed),
    #[error("unexpected answer to {0}")]
    Unexpected(&'static str),
    #[error("{0}")]
    Other(String),
}

/// The startup packet of a standby.
pub(super) fn startup(endpoint: &Endpoint, application_name: &str, out: &mut BytesMut) {
    let mut params = vec![
        ("user", endpoint.user.as_str()),
        ("database", "replication"),
        ("replication", "true"),
        ("application_name", application_name),
    ];
    if let Some(options) = endpoint.options.as_deref().filter(|options| !options.is_empty()) {
        params.push(("options", options));
    }
    frontend::startup(out, &params);
}

impl Handshake {
    /// Begins a handshake; puts the first packet into `out`.
    pub(super) fn begin(endpoint: &Endpoint, application_name: &str, out: &mut BytesMut) -> Self {
        startup(endpoint, application_name, out);
        let login = Login::new(&endpoint.user, endpoint.password.clone());
        let step = Step::Login(Box::new(login));
        Self { step, unread: BytesMut::new(), error: None, seen: None }
    }

    /// Takes received bytes. `wish` is called once the server has reported its position.
    pub(super) fn take(
        &mut self,
        bytes: &[u8],
        out: &mut BytesMut,
        wish: &mut dyn FnMut(&Seen) -> Result<Wish, String>,
    ) -> Result<Stage, NoStream> {
        self.unread.extend_from_slice(bytes);
        loop {
            let Some(frame) = next_frame(&self.unread, MAX_MESSAGE)? else {
                return Ok(Stage::Underway);
            };
            let whole = self.unread.split_to(frame.len);
            let Some(frame) = next_frame(&whole, MAX_MESSAGE)? else {
                return Err(NoStream::Unexpected("a message"));
            };
            let message = FromServer::parse(frame)?;
            if self.message(&message, out, wish)? {
                return Ok(Stage::Streaming(std::mem::take(&mut self.unread)));
            }
        }
    }

    /// Returns `true` when the stream begins.
    fn message(
        &mut self,
        message: &FromServer<'_>,
        out: &mut BytesMut,
        wish: &mut dyn FnMut(&Seen) -> Result<Wish, String>,
    ) -> Result<bool, NoStream> {
        if let Step::Login(login) = &mut self.step {
            if login.take(message, out)? == Progress::Ready {
                self.step = Step::Identify;
                frontend::query(out, "IDENTIFY_SYSTEM");
            }
            return Ok(false);
        }
        match message {
            FromServer::Error(error) => self.error = Some(error.clone()),
            FromServer::CopyBoth if matches!(self.step, Step::Start) => return Ok(true),
            FromServer::DataRow(row) if matches!(self.step, Step::Identify) => {
                self.seen = Some(identity(row).ok_or(NoStream::Unexpected("IDENTIFY_SYSTEM"))?);
            }
            FromServer::ReadyForQuery => self.ready(out, wish)?,
            _ => {}
        }
        Ok(false)
    }

    fn ready(
        &mut self,
        out: &mut BytesMut,
        wish: &mut dyn FnMut(&Seen) -> Result<Wish, String>,
    ) -> Result<(), NoStream> {
        let error = self.error.take();
        let exists = |error: &ServerError| error.sqlstate == sqlstate::DUPLICATE_OBJECT;
        match (&self.step, error) {
            (Step::CreateSlot, Some(error)) if exists(&error) => {}
            (_, Some(error)) => return Err(NoStream::Refused(error)),
            (Step::Start, None) => return Err(NoStream::Unexpected("START_REPLICATION")),
            (_, None) => {}
        }
        let seen = self.seen.as_ref().ok_or(NoStream::Unexpected("IDENTIFY_SYSTEM"))?;
        let wish = wish(seen).map_err(NoStream::Other)?;
        let slot = wish.slot.as_deref();
        match (&self.step, slot, wish.create_slot) {
            (Step::Identify, Some(name), Some(version)) => {
                frontend::query(out, &create_slot(name, version));
                self.step = Step::CreateSlot;
            }
            _ => {
                frontend::query(out, &start_replication(slot, wish.start, wish.tli));
                self.step = Step::Start;
            }
        }
        Ok(())
    }
}

/// IDENTIFY_SYSTEM's row.
pub(super) fn identity(row: &[Option<&[u8]>]) -> Option<Seen> {
    let text = |n: usize| std::str::from_utf8((*row.get(n)?)?).ok();
    Some(Seen {
        system_id: text(0)?.to_owned(),
        tli: text(1)?.parse().ok().and_then(TimelineId::new)?,
        xlogpos: text(2)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::endpoint;
    use super::*;
    use crate::wire::backend;
    use crate::wire::conninfo::Conninfo;
    use crate::wire::frontend_read::FromClient;
    use crate::wire::refusal::Refusal;
    use crate::wire::startup::{FirstPacket, next_first_packet};

    fn begun() -> (Handshake, BytesMut) {
        let conninfo = Conninfo::parse("host=127.0.0.1 user=u options='-c a=b'", &|_| None);
        let endpoints = endpoint::resolve(&[conninfo.unwrap()]).unwrap();
        let mut out = BytesMut::new();
        let handshake = Handshake::begin(&endpoints[0], "standby_1", &mut out);
        (handshake, out)
    }

    fn query(out: &mut BytesMut) -> String {
        let bytes = out.split();
        let frame = next_frame(&bytes, 1000).unwrap().unwrap();
        assert_eq!(frame.len, bytes.len());
        match FromClient::parse(frame).unwrap() {
            FromClient::Query(text) => String::from_utf8(text.to_vec()).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    /// Raw messages: a tag and a body each.
    fn messages(list: &[(u8, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (tag, body) in list {
            bytes.push(*tag);
            bytes.extend((body.len() as u32 + 4).to_be_bytes());
            bytes.extend_from_slice(body);
        }
        bytes
    }

    const ROW: &[u8] = b"\0\x04\0\0\0\x017\0\0\0\x013\0\0\0\x060/5000\xff\xff\xff\xff";

    #[test]
    fn asks_as_a_walreceiver_does() {
        let (mut handshake, mut out) = begun();
        let Ok(Some((FirstPacket::Startup(startup), _))) = next_first_packet(&out.split()) else {
            panic!()
        };
        assert_eq!(startup.param("application_name"), Some("standby_1"));
        assert_eq!(startup.param("replication"), Some("true"));
        assert_eq!(startup.param("options"), Some("-c a=b"));

        let mut wish = |seen: &Seen| {
            assert_eq!(seen.system_id, "7");
            Ok(Wish {
                start: seen.xlogpos.page_start(),
                tli: seen.tli,
                slot: Some("s".to_owned()),
                create_slot: Some(150_000),
            })
        };
        let login = messages(&[(b'R', b"\0\0\0\0"), (b'Z', b"I")]);
        assert_eq!(handshake.take(&login, &mut out, &mut wish).unwrap(), Stage::Underway);
        assert_eq!(query(&mut out), "IDENTIFY_SYSTEM");
        let answer = messages(&[(b'D', ROW), (b'C', b"IDENTIFY_SYSTEM\0"), (b'Z', b"I")]);
        assert_eq!(handshake.take(&answer, &mut out, &mut wish).unwrap(), Stage::Underway);
        assert!(query(&mut out).starts_with("CREATE_REPLICATION_SLOT \"s\" PHYSICAL"));
        let mut exists = BytesMut::new();
        let refusal = Refusal::error(sqlstate::DUPLICATE_OBJECT, "it exists");
        backend::error(&mut exists, &refusal);
        exists.extend_from_slice(&messages(&[(b'Z', b"I")]));
        assert_eq!(handshake.take(&exists, &mut out, &mut wish).unwrap(), Stage::Underway);
        assert_eq!(query(&mut out), "START_REPLICATION SLOT \"s\" 0/4000 TIMELINE 3");
        let started = messages(&[(b'W', b"\0\0\0"), (b'd', b"abc")]);
        let stage = handshake.take(&started, &mut out, &mut wish).unwrap();
        let Stage::Streaming(after) = stage else { panic!() };
        assert_eq!(&after[..], messages(&[(b'd', b"abc")]));
    }

    #[test]
    fn what_is_refused_is_told() {
        let (mut handshake, mut out) = begun();
        let mut wish = |_: &Seen| Err("no wish".to_owned());
        let login = messages(&[(b'R', b"\0\0\0\0"), (b'Z', b"I")]);
        handshake.take(&login, &mut out, &mut wish).unwrap();
        let answer = messages(&[(b'D', ROW), (b'Z', b"I")]);
        let error = handshake.take(&answer, &mut out, &mut wish).unwrap_err();
        assert_eq!(error.to_string(), "no wish");

        let (mut handshake, mut out) = begun();
        let mut full = BytesMut::new();
        backend::error(&mut full, &Refusal::fatal("53300", "sorry, too many clients already"));
        let error = handshake.take(&full, &mut out, &mut wish).unwrap_err();
        assert!(error.to_string().contains("sorry, too many clients already"), "{error}");
    }
}
