//! One connection to the upstream, up to the moment its stream begins.

use super::super::socket::Socket;
use crate::upstream::credentials::{self, Credentials};
use crate::upstream::login::{Login, LoginFault, Progress, Welcome, startup};
use crate::upstream::stream::{Told, next_told};
use crate::wal::{Lsn, TimelineId};
use crate::wire::backend_read::{FromServer, ServerError};
use crate::wire::conninfo::{Conninfo, Host, HostAddr, Keepalives};
use crate::wire::frame::next_frame;
use crate::wire::frontend;
use bytes::{Buf as _, Bytes, BytesMut};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use tokio::net::{TcpSocket, UnixStream};

/// The longest message expected before the stream; history files are the largest.
const MAX_MESSAGE: usize = 1 << 20;

/// The most rows of any answer to our commands.
const MAX_ROWS: usize = 16;

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
    #[error("connection lost: {0}")]
    Io(io::Error),
    #[error("the server's messages make no sense: {0}")]
    Protocol(String),
}

/// The answer to one command: its last result set, values as bytes.
pub(super) type Rows = Vec<Vec<Option<Bytes>>>;

/// The answer to START_REPLICATION.
#[derive(Debug)]
pub(super) enum Started {
    /// CopyBothResponse.
    Stream,
    /// The timeline ends exactly there: the next one, and where it begins.
    TimelineEnded { next: TimelineId, at: Lsn },
}

/// An open connection, logged in.
#[derive(Debug)]
pub(super) struct Link {
    socket: Socket,
    unread: BytesMut,
    /// What the server reported about itself.
    pub(super) welcome: Welcome,
}

impl Link {
    /// Connects and logs in. It has no timeout: the caller sets one.
    pub(super) async fn open(
        conninfo: &Conninfo,
        host: &Host,
        own: crate::cluster::instance::InstanceId,
        cluster_name: &str,
    ) -> Result<Self, LinkFault> {
        let Credentials { user, password } =
            credentials::find(conninfo, host).ok_or(LinkFault::NoUser)?;
        let mut socket = connect(conninfo, host).await.map_err(LinkFault::Connect)?;
        let (mut unread, mut out) = (BytesMut::new(), BytesMut::new());
        startup(conninfo, &user, own, cluster_name, &mut out);
        let mut login = Login::new(&user, password);
        loop {
            socket.write(&mut out).await.map_err(LinkFault::Io)?;
            let message = read(&mut socket, &mut unread).await?;
            // Hashing a password takes milliseconds, and other tasks need this thread.
            let done = tokio::task::spawn_blocking(move || {
                let message = message.parse()?;
                let progress = login.take(&message, &mut out)?;
                Ok::<_, LinkFault>((login, out, progress))
            });
            let progress;
            (login, out, progress) = done.await.map_err(|e| LinkFault::Io(e.into()))??;
            if progress == Progress::Ready {
                return Ok(Self { socket, unread, welcome: login.finish()? });
            }
        }
    }

    /// Sets the TCP options from the flags.
    pub(super) fn set_options(&self, settings: &crate::config::TcpSettings) {
        if let Socket::Tcp(socket) = &self.socket {
            super::super::tcp::set_upstream(&socket2::SockRef::from(socket), settings);
        }
    }

    /// Sends one command and collects its answer, up to ReadyForQuery.
    pub(super) async fn query(&mut self, sql: &str) -> Result<Rows, LinkFault> {
        self.send(sql).await?;
        self.collect().await
    }

    async fn send(&mut self, sql: &str) -> Result<(), LinkFault> {
        let mut out = BytesMut::new();
        frontend::query(&mut out, sql);
        self.socket.write(&mut out).await.map_err(LinkFault::Io)
    }

    async fn collect(&mut self) -> Result<Rows, LinkFault> {
        let mut rows = Rows::new();
        let mut failed = None;
        loop {
            let message = read(&mut self.socket, &mut self.unread).await?;
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

    /// Asks for the stream.
    pub(super) async fn start(&mut self, sql: &str) -> Result<Started, LinkFault> {
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
                    return Ok(Started::Stream);
                }
                b'N' | b'S' => drop(read(&mut self.socket, &mut self.unread).await?),
                _ => break,
            }
        }
        let rows = self.collect().await?;
        let ended = rows.first().and_then(|row| {
            let next = TimelineId::new(text(row, 0)?.parse().ok()?)?;
            Some(Started::TimelineEnded { next, at: text(row, 1)?.parse().ok()? })
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
        let senseless = |what: &str| LinkFault::Protocol(what.to_owned());
        let mut wal = Vec::new();
        while wal.len() < len {
            let told = next_told(&self.unread).map_err(|e| LinkFault::Protocol(e.to_string()))?;
            let Some((told, taken)) = told else {
                fill(&mut self.socket, &mut self.unread).await?;
                continue;
            };
            match told {
                Told::Wal { start, wal: piece } => {
                    if start != from.saturating_add(wal.len() as u64) {
                        return Err(senseless("WAL from another place than was asked for"));
                    }
                    wal.extend_from_slice(piece.get(..len - wal.len()).unwrap_or(piece));
                }
                Told::ReplyWanted | Told::Nothing => {}
                Told::Error(error) => return Err(LinkFault::Server(error)),
                Told::CopyDone | Told::Next { .. } | Told::ShutDown => {
                    return Err(senseless("the stream ended before the WAL that was asked for"));
                }
            }
            self.unread.advance(taken);
        }
        Ok(wal)
    }

    /// Ends a stream; commands may follow.
    pub(super) async fn end_stream(&mut self) -> Result<(), LinkFault> {
        let mut out = BytesMut::new();
        frontend::copy_done(&mut out);
        self.socket.write(&mut out).await.map_err(LinkFault::Io)?;
        self.collect().await.map(drop)
    }

    /// Sends Terminate and closes.
    pub(super) async fn close(mut self) {
        let mut out = BytesMut::new();
        frontend::terminate(&mut out);
        // A server that does not get it sees the socket close.
        drop(self.socket.write(&mut out).await);
    }

    /// The socket and the bytes read after CopyBothResponse.
    pub(super) fn leave(self) -> io::Result<(OwnedFd, BytesMut)> {
        Ok((self.socket.leave()?, self.unread))
    }
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

async fn read(socket: &mut Socket, unread: &mut BytesMut) -> Result<Message, LinkFault> {
    loop {
        let framed =
            next_frame(unread, MAX_MESSAGE).map_err(|e| LinkFault::Protocol(e.to_string()))?;
        if let Some(len) = framed.map(|frame| frame.len) {
            return Ok(Message(unread.split_to(len).freeze()));
        }
        fill(socket, unread).await?;
    }
}

async fn fill(socket: &mut Socket, unread: &mut BytesMut) -> Result<(), LinkFault> {
    match socket.read(unread).await {
        Ok(0) => Err(LinkFault::Closed),
        Ok(_) => Ok(()),
        Err(error) => Err(LinkFault::Io(error)),
    }
}

/// Tries every address of a host, in order.
async fn connect(conninfo: &Conninfo, host: &Host) -> io::Result<Socket> {
    if let Some(path) = host.socket_path() {
        return UnixStream::connect(path).await.map(Socket::Unix);
    }
    let HostAddr::Tcp { name, hostaddr } = &host.addr else {
        return Err(io::ErrorKind::AddrNotAvailable.into());
    };
    let addresses: Vec<SocketAddr> = match hostaddr {
        Some(ip) => vec![SocketAddr::new(*ip, host.port)],
        None => tokio::net::lookup_host((name.as_str(), host.port)).await?.collect(),
    };
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("no address for \"{name}\""));
    for address in addresses {
        match connect_tcp(conninfo, address).await {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn connect_tcp(conninfo: &Conninfo, address: SocketAddr) -> io::Result<Socket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_nodelay(true)?;
    let options = socket2::SockRef::from(&socket);
    if let Keepalives::On { idle, interval, count } = conninfo.keepalives {
        let mut keepalive = socket2::TcpKeepalive::new();
        if let Some(idle) = idle {
            keepalive = keepalive.with_time(idle);
        }
        if let Some(interval) = interval {
            keepalive = keepalive.with_interval(interval);
        }
        if let Some(count) = count {
            keepalive = keepalive.with_retries(count);
        }
        options.set_keepalive(true)?;
        options.set_tcp_keepalive(&keepalive)?;
    }
    if let Some(limit) = conninfo.tcp_user_timeout {
        options.set_tcp_user_timeout(Some(limit))?;
    }
    socket.connect(address).await.map(Socket::Tcp)
}
