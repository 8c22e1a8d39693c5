//! One connection to the upstream, up to the moment its stream begins.

use super::environment::Environment;
use crate::cluster::instance::InstanceId;
use crate::upstream::credentials::{self, Credentials};
use crate::upstream::login::{Login, LoginFault, Progress, Welcome, startup};
use crate::upstream::stream::{StreamMessage, next_message};
use crate::wal::{Lsn, TimelineId};
use crate::wire::backend_read::{FromServer, ServerError};
use crate::wire::conninfo::{Conninfo, Host};
use crate::wire::copy::{ReplyRequest, StatusReply};
use crate::wire::frame::next_frame;
use crate::wire::frontend;
use crate::wire::time::PgTime;
use bytes::{Buf as _, Bytes, BytesMut};
use std::io;
use std::time::SystemTime;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// The size of one read.
const READ_SIZE: usize = 8192;

/// The longest message expected before the stream; history files are the largest.
const MAX_MESSAGE: usize = 1 << 20;

/// The most rows of any answer to our commands.
const MAX_ROWS: usize = 16;

/// The most that may come in a stream beside the WAL that is wanted: keepalives, and WAL that was on its
/// way when the stream was ended. What the sockets of both sides hold is far less.
const MOST_UNWANTED: usize = 64 << 20;

/// What can go wrong before the stream.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkFault {
    #[error("no user name: primary_conninfo has none, nor has the operating system for this user")]
    NoUser,
    #[error("could not connect: {0}")]
    Connect(io::Error),
    #[error(transparent)]
    Login(#[from] LoginFault),
    #[error("{0}")]
    Server(ServerError),
    #[error("server closed the connection unexpectedly")]
    Closed,
    #[error("no answer within wal_receiver_timeout")]
    Silent,
    #[error("connection lost: {0}")]
    Io(io::Error),
    #[error("invalid message from the server: {0}")]
    Protocol(String),
}

/// The answer to one command: its last result set, values as bytes.
pub(super) type Rows = Vec<Vec<Option<Bytes>>>;

/// The answer to START_REPLICATION.
#[derive(Debug)]
pub(super) enum StartReply {
    /// CopyBothResponse.
    Stream,
    /// The timeline ends exactly there: the next one, and where it begins.
    TimelineEnded { next: TimelineId, at: Lsn },
}

/// An open connection, logged in.
#[derive(Debug)]
pub(super) struct Link<S> {
    socket: S,
    unread: BytesMut,
    /// Bytes that came beside the WAL that is wanted since the last command.
    unwanted: usize,
    /// What the server reported about itself.
    pub(super) welcome: Welcome,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Link<S> {
    /// Connects and logs in. It has no timeout: the caller sets one.
    pub(super) async fn open<E: Environment<Socket = S>>(
        environment: &E,
        conninfo: &Conninfo,
        host: &Host,
        own: InstanceId,
        cluster_name: &str,
    ) -> Result<Self, LinkFault> {
        let Credentials { user, password } =
            credentials::find(conninfo, host).ok_or(LinkFault::NoUser)?;
        let socket = environment.connect(conninfo, host).await.map_err(LinkFault::Connect)?;
        let (mut unread, mut out) = (BytesMut::new(), BytesMut::new());
        startup(conninfo, &user, own, cluster_name, &mut out);
        let hashing = if password.is_some() { Hashing::Aside } else { Hashing::None };
        let (mut socket, mut login) = (socket, Login::new(&user, password));
        loop {
            socket.write_all_buf(&mut out).await.map_err(LinkFault::Io)?;
            let message = read(&mut socket, &mut unread).await?;
            let step = move || {
                let progress = login.take(&message.parse()?, &mut out)?;
                Ok::<_, LinkFault>((login, out, progress))
            };
            let progress;
            (login, out, progress) = match hashing {
                Hashing::None => step()?,
                // Hashing a password takes milliseconds, and other tasks need this thread.
                Hashing::Aside => tokio::task::spawn_blocking(step)
                    .await
                    .map_err(|e| LinkFault::Io(e.into()))??,
            };
            if progress == Progress::Ready {
                let (unwanted, welcome) = (0, login.finish()?);
                return Ok(Self { socket, unread, unwanted, welcome });
            }
        }
    }

    /// Sends one command and collects its answer, up to ReadyForQuery.
    pub(super) async fn query(&mut self, sql: &str) -> Result<Rows, LinkFault> {
        self.send(sql).await?;
        self.collect().await
    }

    async fn send(&mut self, sql: &str) -> Result<(), LinkFault> {
        self.unwanted = 0;
        let mut out = BytesMut::new();
        frontend::query(&mut out, sql);
        self.socket.write_all_buf(&mut out).await.map_err(LinkFault::Io)
    }

    async fn collect(&mut self) -> Result<Rows, LinkFault> {
        let mut rows = Rows::new();
        let mut failed = None;
        loop {
            let message = read(&mut self.socket, &mut self.unread).await?;
            self.skip(message.0.len())?;
            match message.parse()? {
                FromServer::RowDescription(_) => rows.clear(),
                FromServer::DataRow(row) => {
                    if rows.len() == MAX_ROWS {
                        return Err(LinkFault::Protocol("too many rows".to_owned()));
                    }
                    rows.push(row.into_iter().map(|v| v.map(Bytes::copy_from_slice)).collect());
                }
                FromServer::Error(error) => failed = Some(error),
                FromServer::ReadyForQuery => {
                    return failed.map_or(Ok(rows), |error| Err(LinkFault::Server(error)));
                }
                FromServer::CommandComplete(_)
                | FromServer::Notice(_)
                | FromServer::ParameterStatus { .. } => {}
                // The rest of a stream that has ended.
                FromServer::CopyData(_) | FromServer::CopyDone => {}
                _ => return Err(LinkFault::Protocol("unexpected message".to_owned())),
            }
        }
    }

    /// Something came that is not wanted. A server that goes on and on sends no answer.
    fn skip(&mut self, len: usize) -> Result<(), LinkFault> {
        self.unwanted = self.unwanted.saturating_add(len);
        match self.unwanted > MOST_UNWANTED {
            true => Err(LinkFault::Protocol("too much beside the answer".to_owned())),
            false => Ok(()),
        }
    }

    /// Asks for the stream.
    pub(super) async fn start(&mut self, sql: &str) -> Result<StartReply, LinkFault> {
        self.send(sql).await?;
        // Either CopyBothResponse comes first, or the answer is an ordinary one.
        loop {
            let tag = loop {
                match self.unread.first() {
                    Some(tag) => break *tag,
                    None => fill(&mut self.socket, &mut self.unread).await?,
                }
            };
            match tag {
                b'W' => {
                    drop(read(&mut self.socket, &mut self.unread).await?);
                    return Ok(StartReply::Stream);
                }
                b'N' | b'S' => drop(read(&mut self.socket, &mut self.unread).await?),
                _ => break,
            }
        }
        let rows = self.collect().await?;
        let ended = rows.first().and_then(|row| {
            let next = TimelineId::new(text(row, 0)?.parse().ok()?)?;
            Some(StartReply::TimelineEnded { next, at: text(row, 1)?.parse().ok()? })
        });
        ended.ok_or_else(|| {
            LinkFault::Protocol(
                "START_REPLICATION was answered with neither stream nor timeline".to_owned(),
            )
        })
    }

    /// After CopyBothResponse: waits for the first message of the stream. Fails if it is an error,
    /// for example because the WAL has been removed.
    pub(super) async fn first_message(&mut self) -> Result<(), LinkFault> {
        loop {
            match self.unread.first() {
                Some(b'E') => return self.collect().await.map(drop),
                Some(b'N' | b'S') => drop(read(&mut self.socket, &mut self.unread).await?),
                Some(_) => return Ok(()),
                None => fill(&mut self.socket, &mut self.unread).await?,
            }
        }
    }

    /// After CopyBothResponse: the WAL of the stream, which begins at `from`, up to `to`.
    pub(super) async fn wal(&mut self, from: Lsn, to: Lsn) -> Result<Vec<u8>, LinkFault> {
        let len = usize::try_from(to.bytes_since(from)).unwrap_or(usize::MAX);
        let mut wal = Vec::new();
        while wal.len() < len {
            wal.extend(self.more_wal(from.saturating_add(wal.len() as u64)).await?);
        }
        wal.truncate(len);
        Ok(wal)
    }

    /// After CopyBothResponse: the next WAL of the stream, which begins at `from`.
    pub(super) async fn more_wal(&mut self, from: Lsn) -> Result<Vec<u8>, LinkFault> {
        let senseless = |what: &str| LinkFault::Protocol(what.to_owned());
        loop {
            let next = next_message(&self.unread);
            let next = next.map_err(|e| LinkFault::Protocol(e.to_string()))?;
            let Some((message, taken)) = next else {
                fill(&mut self.socket, &mut self.unread).await?;
                continue;
            };
            let is_asked = matches!(message, StreamMessage::ReplyWanted);
            let wal = match message {
                StreamMessage::Wal { start, .. } if start != from => {
                    return Err(senseless("WAL from another position than requested"));
                }
                StreamMessage::Wal { wal, .. } => wal.to_vec(),
                StreamMessage::ReplyWanted | StreamMessage::Nothing => Vec::new(),
                // Commands may follow.
                StreamMessage::Error(_) => {
                    let failed = self.collect().await.err();
                    return Err(failed.unwrap_or_else(|| senseless("the stream ended")));
                }
                StreamMessage::CopyDone | StreamMessage::Next { .. } | StreamMessage::ShutDown => {
                    return Err(senseless("the stream ended before the requested WAL"));
                }
            };
            self.unread.advance(taken);
            if wal.is_empty() {
                self.skip(taken)?;
            }
            if is_asked {
                self.say_nothing_is_kept().await?;
            }
            if !wal.is_empty() {
                return Ok(wal);
            }
        }
    }

    /// Answers a request for a reply in a stream that is only a question: nothing of it is kept, so it
    /// has no position. That also shows a slow comparison to be alive.
    async fn say_nothing_is_kept(&mut self) -> Result<(), LinkFault> {
        let nothing = Lsn::INVALID;
        let client_time = PgTime::from(SystemTime::now());
        let reply = ReplyRequest::No;
        let status =
            StatusReply { write: nothing, flush: nothing, apply: nothing, client_time, reply };
        self.socket.write_all(&status.encode()).await.map_err(LinkFault::Io)
    }

    /// ShuttingDown a stream; commands may follow.
    pub(super) async fn end_stream(&mut self) -> Result<(), LinkFault> {
        let mut out = BytesMut::new();
        frontend::copy_done(&mut out);
        self.socket.write_all_buf(&mut out).await.map_err(LinkFault::Io)?;
        self.collect().await.map(drop)
    }

    /// Sends Terminate and closes.
    pub(super) async fn close(mut self) {
        let mut out = BytesMut::new();
        frontend::terminate(&mut out);
        // A server that does not get it sees the socket close.
        drop(self.socket.write_all_buf(&mut out).await);
    }

    /// The socket and the bytes read after CopyBothResponse.
    pub(super) fn leave(self) -> (S, BytesMut) {
        (self.socket, self.unread)
    }
}

/// Where a login hashes a password.
#[derive(Clone, Copy)]
enum Hashing {
    /// There is no password.
    None,
    /// On another thread.
    Aside,
}

/// The text of a column.
pub(super) fn text(row: &[Option<Bytes>], column: usize) -> Option<&str> {
    std::str::from_utf8(row.get(column)?.as_deref()?).ok()
}

/// A whole message, independent of the buffer it came in.
struct Message(Bytes);

impl Message {
    fn parse(&self) -> Result<FromServer<'_>, LinkFault> {
        let senseless = |error: &dyn std::fmt::Display| LinkFault::Protocol(error.to_string());
        let frame = next_frame(&self.0, MAX_MESSAGE).map_err(|e| senseless(&e))?;
        let frame = frame.ok_or_else(|| senseless(&"message cut short"))?;
        FromServer::parse(frame).map_err(|e| senseless(&e))
    }
}

async fn read<S: AsyncRead + Unpin>(
    socket: &mut S,
    unread: &mut BytesMut,
) -> Result<Message, LinkFault> {
    loop {
        let framed =
            next_frame(unread, MAX_MESSAGE).map_err(|e| LinkFault::Protocol(e.to_string()))?;
        if let Some(len) = framed.map(|frame| frame.len) {
            return Ok(Message(unread.split_to(len).freeze()));
        }
        fill(socket, unread).await?;
    }
}

async fn fill<S: AsyncRead + Unpin>(
    socket: &mut S,
    unread: &mut BytesMut,
) -> Result<(), LinkFault> {
    unread.reserve(READ_SIZE);
    match socket.read_buf(unread).await {
        Ok(0) => Err(LinkFault::Closed),
        Ok(_) => Ok(()),
        Err(error) => Err(LinkFault::Io(error)),
    }
}
