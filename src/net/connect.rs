//! Connections to the servers that a connection string names.

use super::socket::Socket;
use super::tcp;
use crate::config::TcpSettings;
use crate::wire::conninfo::{Conninfo, Host, HostAddr, Keepalives};
use std::io;
use std::net::SocketAddr;
use tokio::net::{TcpSocket, UnixStream};

/// Connects to a host of the connection string: tries every address of it, in order.
///
/// # Errors
/// The operating system's error for the last address.
pub async fn connect(
    conninfo: &Conninfo,
    host: &Host,
    settings: &TcpSettings,
) -> io::Result<Socket> {
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
        match connect_tcp(conninfo, address, settings).await {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn connect_tcp(
    conninfo: &Conninfo,
    address: SocketAddr,
    settings: &TcpSettings,
) -> io::Result<Socket> {
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
    let socket = socket.connect(address).await?;
    tcp::set_upstream(&socket2::SockRef::from(&socket), settings);
    Ok(Socket::Tcp(socket))
}
