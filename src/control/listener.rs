//! The listening sockets.

use super::ctl::CtlSocket;
use super::unix_socket::{self, ListeningPath, SocketFault};
use crate::config::Config;
use crate::net::Socket;
use crate::net::tcp::{self, TcpFault};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener};

/// Connections the kernel queues while we are busy. A whole fleet reconnects at once when its hub
/// restarts.
const BACKLOG: i32 = 4096;

/// Bound sockets that are not on a runtime yet. Binding them early lets `serve` fail before
/// anything else has started.
#[derive(Debug, Default)]
pub struct Bound {
    tcp: Vec<std::net::TcpListener>,
    unix: Vec<(std::os::unix::net::UnixListener, ListeningPath)>,
    ctl: Option<CtlSocket>,
}

/// Why a socket could not be listened on.
#[derive(Debug, thiserror::Error)]
pub enum BindFault {
    /// TCP.
    #[error("could not listen on {address}: {error}")]
    Tcp {
        /// Where.
        address: SocketAddr,
        /// What the kernel said.
        error: io::Error,
    },
    /// Unix.
    #[error(transparent)]
    Unix(#[from] SocketFault),
    /// The options of a TCP socket.
    #[error(transparent)]
    Options(#[from] TcpFault),
    /// Neither addresses nor directories.
    #[error("nothing to listen on: set --listen-addresses or --unix-socket-directories")]
    Nothing,
}

/// Binds everything that the settings name.
pub fn bind(config: &Config) -> Result<Bound, BindFault> {
    let mut bound = Bound::default();
    let mut last_failure = None;
    for ip in &config.listen_addresses {
        let address = SocketAddr::new(*ip, config.port);
        match bind_tcp(address) {
            Ok(listener) => {
                tcp::set_listener(&socket2::SockRef::from(&listener), &config.tcp)?;
                bound.tcp.push(listener);
            }
            // "localhost" names ::1 even where there is no IPv6.
            Err(error)
                if address.is_ipv6()
                    && matches!(
                        error.raw_os_error(),
                        Some(libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT)
                    ) =>
            {
                last_failure = Some(BindFault::Tcp { address, error });
            }
            Err(error) => return Err(BindFault::Tcp { address, error }),
        }
    }
    for directory in &config.unix_socket_directories {
        bound.unix.push(unix_socket::listen(directory, config.port, &config.directory)?);
    }
    if bound.tcp.is_empty() && bound.unix.is_empty() {
        return Err(last_failure.unwrap_or(BindFault::Nothing));
    }
    Ok(bound)
}

fn bind_tcp(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    use socket2::{Domain, Protocol, Type};
    let socket =
        socket2::Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

impl Bound {
    /// Adds the socket of `walhub ctl`.
    pub fn with_ctl(self, socket: CtlSocket) -> Self {
        Self { ctl: Some(socket), ..self }
    }

    /// Takes the socket of `walhub ctl`.
    pub(super) const fn take_ctl(&mut self) -> Option<CtlSocket> {
        self.ctl.take()
    }

    /// The TCP addresses, with the ports the kernel chose for port 0.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.tcp.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }

    /// Puts the sockets on the current runtime.
    pub(super) fn enter(self) -> io::Result<(Vec<Listener>, Vec<ListeningPath>)> {
        let mut listeners = Vec::new();
        for tcp in self.tcp {
            listeners.push(Listener::Tcp(TcpListener::from_std(tcp)?));
        }
        let mut paths = Vec::new();
        for (unix, path) in self.unix {
            listeners.push(Listener::Unix(UnixListener::from_std(unix)?));
            paths.push(path);
        }
        Ok((listeners, paths))
    }
}

/// One listening socket on the runtime.
#[derive(Debug)]
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// The next connection and where it comes from. It never fails: without descriptors it waits
    /// for some.
    pub(super) async fn accept(&self) -> (Socket, String) {
        loop {
            let accepted = match self {
                Self::Tcp(listener) => listener.accept().await.and_then(|(socket, peer)| {
                    // PostgreSQL sets up an accepted socket the same way.
                    tcp::set_accepted(&socket2::SockRef::from(&socket))?;
                    Ok((Socket::Tcp(socket), peer.to_string()))
                }),
                Self::Unix(listener) => listener
                    .accept()
                    .await
                    .map(|(socket, _)| (Socket::Unix(socket), "[local]".to_owned())),
            };
            match accepted {
                Ok(accepted) => return accepted,
                Err(error) if is_peers(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "could not accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

/// Did the client disconnect before we accepted it?
fn is_peers(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, InvalidInput, NotConnected};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | NotConnected | InvalidInput)
}
