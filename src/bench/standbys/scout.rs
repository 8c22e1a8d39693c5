//! Identifies the target before the fleet connects: whether it answers, and which cluster it is.

use super::endpoint::{self, Endpoint};
use super::handshake::{identity, startup};
use crate::cluster::identity::server_version_num;
use crate::timeline::History;
use crate::upstream::login::{Login, LoginFault, Progress};
use crate::wal::page::PageRules;
use crate::wal::{Lsn, SegmentSize, SystemId, TimelineId};
use crate::wire::backend_read::FromServer;
use crate::wire::conninfo::Conninfo;
use crate::wire::frame::next_frame;
use crate::wire::frontend;
use crate::wire::sqlstate;
use crate::wire::units::{SizeUnit, parse_bytes};
use bytes::{Bytes, BytesMut};
use socket2::Socket;
use std::io::{self, Read, Write};
use std::thread;
use std::time::{Duration, Instant};

const MAX_MESSAGE: usize = 1 << 20;
/// How long a server that is starting up is polled.
const STARTUP: Duration = Duration::from_secs(30);
/// How often it is polled.
const STARTUP_POLL: Duration = Duration::from_millis(50);

/// What a server reported about itself.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Its cluster.
    pub system_id: SystemId,
    /// Its timeline.
    pub tli: TimelineId,
    /// Its flush position.
    pub xlogpos: Lsn,
    /// `wal_segment_size`
    pub segment_size: SegmentSize,
    /// 150018 for 15.18.
    pub server_version_num: u32,
    history: Option<History>,
}

impl Identity {
    /// The rules for its pages.
    pub(super) fn rules(&self) -> PageRules {
        PageRules {
            system: self.system_id,
            size: self.segment_size,
            tli: self.tli,
            magic: None,
            fork: self.history.as_ref().and_then(History::fork),
        }
    }
}

/// Asks the first of the targets' hosts that answers. It waits for a server that is starting up.
///
/// # Errors
/// No host can be reached or accepts the login. The message names the last one tried.
pub fn identify(target: &[Conninfo]) -> io::Result<Identity> {
    ask(&endpoint::resolve(target)?)
}

pub(super) fn ask(endpoints: &[Endpoint]) -> io::Result<Identity> {
    let deadline = Instant::now() + STARTUP;
    loop {
        match ask_once(endpoints) {
            Err(error)
                if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline =>
            {
                thread::sleep(STARTUP_POLL);
            }
            other => return other,
        }
    }
}

fn ask_once(endpoints: &[Endpoint]) -> io::Result<Identity> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the target has no address");
    for endpoint in endpoints {
        match Session::open(endpoint).and_then(|mut session| session.identity()) {
            Ok(identity) => return Ok(identity),
            Err(error) => {
                let text = format!("could not connect to {}: {error}", endpoint.name);
                last = io::Error::new(error.kind(), text);
            }
        }
    }
    Err(last)
}

struct Session {
    socket: Socket,
    unread: BytesMut,
    server_version_num: u32,
}

/// An answer's last row.
type Row = Vec<Option<Bytes>>;

impl Session {
    fn open(endpoint: &Endpoint) -> io::Result<Self> {
        let timeout = endpoint.timeout.unwrap_or(Duration::from_secs(30));
        let socket = endpoint.connect_and_wait(timeout)?;
        let mut session = Self { socket, unread: BytesMut::new(), server_version_num: 0 };
        let mut out = BytesMut::new();
        startup(endpoint, "walhub bench", &mut out);
        let mut login = Login::new(&endpoint.user, endpoint.password.clone());
        loop {
            session.socket.write_all(&out.split())?;
            let done = session.read(|message| match login.take(&message, &mut out) {
                Ok(progress) => Ok(progress == Progress::Ready),
                Err(fault) => Err(refused(fault)),
            })?;
            if done {
                let welcome = login.finish().map_err(io::Error::other)?;
                let version = welcome.parameters.iter().find(|(name, _)| name == "server_version");
                session.server_version_num =
                    version.map_or(0, |(_, text)| server_version_num(text));
                return Ok(session);
            }
        }
    }

    fn identity(&mut self) -> io::Result<Identity> {
        let row = self.query("IDENTIFY_SYSTEM")?;
        let fields: Vec<_> = row.iter().map(Option::as_deref).collect();
        let invalid = |what: &str| io::Error::other(format!("invalid {what}"));
        let seen = identity(&fields).ok_or_else(|| invalid("answer to IDENTIFY_SYSTEM"))?;
        let system_id = seen.system_id.parse().map(SystemId::new);
        let system_id = system_id.map_err(|_| invalid("system identifier"))?;
        let row = self.query("SHOW wal_segment_size")?;
        let size = row.first().and_then(Option::as_deref).and_then(segment_size);
        let segment_size = size.ok_or_else(|| invalid("answer to SHOW wal_segment_size"))?;
        let history = match seen.tli {
            TimelineId::FIRST => None,
            tli => {
                let row = self.query(&format!("TIMELINE_HISTORY {tli}"))?;
                let content = row.get(1).cloned().flatten();
                let content = content.ok_or_else(|| invalid("answer to TIMELINE_HISTORY"))?;
                Some(History::parse(tli, content).map_err(io::Error::other)?)
            }
        };
        let mut out = BytesMut::new();
        frontend::terminate(&mut out);
        // We know everything we need, so an error does not matter.
        drop(self.socket.write_all(&out));
        Ok(Identity {
            system_id,
            tli: seen.tli,
            xlogpos: seen.xlogpos,
            segment_size,
            server_version_num: self.server_version_num,
            history,
        })
    }

    fn query(&mut self, text: &str) -> io::Result<Row> {
        let mut out = BytesMut::new();
        frontend::query(&mut out, text);
        self.socket.write_all(&out)?;
        let (mut row, mut error) = (Row::new(), None);
        loop {
            let ready = self.read(|message| {
                match message {
                    FromServer::DataRow(values) => {
                        row = values.iter().map(|v| v.map(Bytes::copy_from_slice)).collect();
                    }
                    FromServer::Error(fault) => error = Some(fault),
                    FromServer::ReadyForQuery => return Ok(true),
                    _ => {}
                }
                Ok(false)
            })?;
            if ready {
                return error.map_or(Ok(row), |fault| Err(io::Error::other(fault)));
            }
        }
    }

    /// Reads one message.
    fn read<T>(&mut self, take: impl FnOnce(FromServer<'_>) -> io::Result<T>) -> io::Result<T> {
        loop {
            let framed = next_frame(&self.unread, MAX_MESSAGE).map_err(io::Error::other)?;
            if let Some(frame) = framed {
                let len = frame.len;
                let message = FromServer::parse(frame).map_err(io::Error::other)?;
                let taken = take(message);
                drop(self.unread.split_to(len));
                return taken;
            }
            let mut piece = [0; 4096];
            match self.socket.read(&mut piece)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => self.unread.extend_from_slice(piece.get(..n).unwrap_or_default()),
            }
        }
    }
}

fn refused(fault: LoginFault) -> io::Error {
    match fault {
        LoginFault::Server(error) if error.sqlstate == sqlstate::CANNOT_CONNECT_NOW => {
            io::Error::new(io::ErrorKind::ResourceBusy, error)
        }
        fault => io::Error::other(fault),
    }
}

fn segment_size(text: &[u8]) -> Option<SegmentSize> {
    let bytes = parse_bytes(std::str::from_utf8(text).ok()?, SizeUnit::Megabyte).ok()?;
    SegmentSize::new(bytes)
}
