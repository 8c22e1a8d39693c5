//! A connection to a database that asks for one value at a time and waits for it.

use crate::upstream::credentials::{self, Credentials};
use crate::upstream::login::{Login, LoginFault, Progress};
use crate::wire::backend_read::{FromServer, ServerError};
use crate::wire::conninfo::{Conninfo, Host, HostAddr};
use crate::wire::frame::{Malformed, next_frame};
use crate::wire::frontend;
use bytes::{Buf, BytesMut};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// The longest answer; the expected ones are a single position.
const MAX_MESSAGE: usize = 1 << 20;

/// How often a wait checks whether it must continue.
const LOOK: Duration = Duration::from_millis(100);

/// Why there is no connection, or no answer.
#[derive(Debug, thiserror::Error)]
pub enum LinkFault {
    /// There is no user name.
    #[error("no user name: the connection string has none, nor has the operating system")]
    NoUser,
    /// No host could be reached.
    #[error("could not connect to {host}: {error}")]
    Connect {
        /// The last one tried.
        host: String,
        /// Why.
        error: io::Error,
    },
    /// The server refuses the login.
    #[error(transparent)]
    Login(#[from] LoginFault),
    /// The server refuses a query.
    #[error("{0}")]
    Server(ServerError),
    /// It is gone.
    #[error("server closed the connection unexpectedly")]
    Closed,
    /// It cannot be reached any more.
    #[error("connection lost: {0}")]
    Io(#[from] io::Error),
    /// It sent something that is not a valid message.
    #[error("invalid message from the server: {0}")]
    Protocol(#[from] Malformed),
    /// Its answer is not exactly one row.
    #[error("the server did not answer with one row")]
    NoRow,
    /// The answer took too long.
    #[error("the server did not answer in time")]
    TimedOut,
}

/// How long to wait for an answer.
#[derive(Debug, Clone, Copy)]
pub(super) enum Patience<'a> {
    /// Until this time.
    Until(Instant),
    /// For as long as this says to.
    While(&'a dyn Goes),
}

/// Says whether a wait must continue.
pub(super) trait Goes: std::fmt::Debug {
    fn goes(&self) -> bool;
}

impl Patience<'_> {
    fn is_left(self) -> bool {
        match self {
            Self::Until(deadline) => Instant::now() < deadline,
            Self::While(condition) => condition.goes(),
        }
    }
}

/// The connection.
#[derive(Debug)]
pub(super) struct Link {
    socket: Socket,
    unread: BytesMut,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// How long connecting and logging in may take when `connect_timeout` is not set.
const CONNECT: Duration = Duration::from_secs(30);

impl Link {
    /// Connects to the first host that accepts the login.
    pub(super) fn open(conninfo: &Conninfo, application_name: &str) -> Result<Self, LinkFault> {
        let mut last = LinkFault::NoUser;
        for host in &conninfo.hosts {
            match Self::open_host(conninfo, host, application_name) {
                Ok(link) => return Ok(link),
                Err(fault) => last = fault,
            }
        }
        Err(last)
    }

    fn open_host(conninfo: &Conninfo, host: &Host, name: &str) -> Result<Self, LinkFault> {
        let Credentials { user, password } =
            credentials::find(conninfo, host).ok_or(LinkFault::NoUser)?;
        let limit = conninfo.connect_timeout.filter(|limit| !limit.is_zero()).unwrap_or(CONNECT);
        let socket = Socket::connect(host, limit)
            .map_err(|error| LinkFault::Connect { host: host.to_string(), error })?;
        let mut link = Self { socket, unread: BytesMut::new() };
        let database = conninfo.dbname.as_deref().unwrap_or(&user);
        let mut params =
            vec![("user", user.as_str()), ("database", database), ("application_name", name)];
        if let Some(options) = conninfo.options.as_deref() {
            params.push(("options", options));
        }
        let mut out = BytesMut::new();
        frontend::startup(&mut out, &params);
        let (mut login, deadline) = (Login::new(&user, password), Instant::now() + limit);
        loop {
            link.socket.write_all(&out)?;
            out.clear();
            let taken =
                link.next(Patience::Until(deadline), |message| login.take(&message, &mut out))?;
            if taken? == Progress::Ready {
                return Ok(link);
            }
        }
    }

    /// Asks and waits for the one value of the one row.
    pub(super) fn value(
        &mut self,
        query: &str,
        patience: Patience<'_>,
    ) -> Result<String, LinkFault> {
        let mut out = BytesMut::new();
        frontend::query(&mut out, query);
        self.socket.write_all(&out)?;
        let (mut value, mut failed) = (None, None);
        loop {
            let ready = self.next(patience, |message| match message {
                FromServer::DataRow(row) => {
                    let text = row.first().copied().flatten();
                    value = text.map(|text| String::from_utf8_lossy(text).into_owned());
                    false
                }
                FromServer::Error(error) => {
                    failed = Some(error);
                    false
                }
                FromServer::ReadyForQuery => true,
                _ => false,
            })?;
            if ready {
                return match failed {
                    Some(error) => Err(LinkFault::Server(error)),
                    None => value.ok_or(LinkFault::NoRow),
                };
            }
        }
    }

    /// Takes the next message.
    fn next<T>(
        &mut self,
        patience: Patience<'_>,
        take: impl FnOnce(FromServer<'_>) -> T,
    ) -> Result<T, LinkFault> {
        loop {
            if let Some(frame) = next_frame(&self.unread, MAX_MESSAGE)? {
                let len = frame.len;
                let taken = take(FromServer::parse(frame)?);
                self.unread.advance(len);
                return Ok(taken);
            }
            self.fill(patience)?;
        }
    }

    fn fill(&mut self, patience: Patience<'_>) -> Result<(), LinkFault> {
        let mut buffer = [0; 4096];
        loop {
            match self.socket.read(&mut buffer) {
                Ok(0) => return Err(LinkFault::Closed),
                Ok(count) => {
                    self.unread.extend_from_slice(buffer.get(..count).unwrap_or_default());
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !patience.is_left() {
                        return Err(LinkFault::TimedOut);
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let mut out = BytesMut::new();
        frontend::terminate(&mut out);
        // A server that does not get it sees the socket close.
        drop(self.socket.write_all(&out));
    }
}

impl Socket {
    fn connect(host: &Host, limit: Duration) -> io::Result<Self> {
        if let Some(path) = host.socket_path() {
            let socket = UnixStream::connect(path)?;
            socket.set_read_timeout(Some(LOOK))?;
            return Ok(Self::Unix(socket));
        }
        let socket = Self::connect_tcp(host, limit)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(LOOK))?;
        Ok(Self::Tcp(socket))
    }

    fn connect_tcp(host: &Host, limit: Duration) -> io::Result<TcpStream> {
        use std::net::{SocketAddr, ToSocketAddrs};
        let HostAddr::Tcp { name, hostaddr } = &host.addr else {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        };
        let addresses: Vec<SocketAddr> = match hostaddr {
            Some(ip) => vec![SocketAddr::new(*ip, host.port)],
            None => (name.as_str(), host.port).to_socket_addrs()?.collect(),
        };
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in addresses {
            match TcpStream::connect_timeout(&address, limit) {
                Ok(socket) => return Ok(socket),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.read(buffer),
            Self::Unix(socket) => socket.read(buffer),
        }
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => socket.write_all(bytes),
            Self::Unix(socket) => socket.write_all(bytes),
        }
    }
}
