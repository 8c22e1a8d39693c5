//! Where a fleet connects to, and how its sockets are created.

use crate::upstream::credentials;
use crate::wire::conninfo::{Conninfo, Host, HostAddr, Keepalives};
use crate::wire::secret::Secret;
use socket2::{Domain, SockAddr, SockRef, Socket, TcpKeepalive, Type};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, ToSocketAddrs};
use std::time::Duration;

/// Connections per source address: fewer than Linux has ephemeral ports, with room for recently
/// closed ones.
const CONNECTIONS_PER_SOURCE: u64 = 20_000;

/// One address of a server, and our user there.
#[derive(Debug, Clone)]
pub(super) struct Endpoint {
    pub(super) address: SockAddr,
    /// Its name in messages.
    pub(super) name: String,
    pub(super) user: String,
    pub(super) password: Option<Secret>,
    pub(super) options: Option<String>,
    /// The timeout for a connection and its login.
    pub(super) timeout: Option<Duration>,
    keepalives: Keepalives,
    tcp_user_timeout: Option<Duration>,
}

/// All addresses of the targets, in their order.
pub(super) fn resolve(target: &[Conninfo]) -> io::Result<Vec<Endpoint>> {
    let mut endpoints = Vec::new();
    for conninfo in target {
        for host in &conninfo.hosts {
            let found = credentials::find(conninfo, host);
            let who = found.ok_or_else(|| io::Error::other("no user name for the target"))?;
            for address in addresses(host)? {
                endpoints.push(Endpoint {
                    address,
                    name: host.to_string(),
                    user: who.user.clone(),
                    password: who.password.clone(),
                    options: conninfo.options.clone(),
                    timeout: conninfo.connect_timeout,
                    keepalives: conninfo.keepalives,
                    tcp_user_timeout: conninfo.tcp_user_timeout,
                });
            }
        }
    }
    if endpoints.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the target has no address"));
    }
    Ok(endpoints)
}

fn addresses(host: &Host) -> io::Result<Vec<SockAddr>> {
    if let Some(path) = host.socket_path() {
        return Ok(vec![SockAddr::unix(path)?]);
    }
    match &host.addr {
        HostAddr::Tcp { hostaddr: Some(ip), .. } => {
            Ok(vec![SocketAddr::new(*ip, host.port).into()])
        }
        HostAddr::Tcp { name, .. } => {
            let found = (name.as_str(), host.port).to_socket_addrs();
            let found = found.map_err(|error| {
                io::Error::new(error.kind(), format!("could not look up \"{name}\": {error}"))
            })?;
            Ok(found.map(SockAddr::from).collect())
        }
        HostAddr::Unix(_) => Ok(Vec::new()),
    }
}

impl Endpoint {
    /// A non-blocking socket that is connecting to the server. `ordinal` counts the connections of
    /// this process.
    pub(super) fn connect(&self, ordinal: u64) -> io::Result<Socket> {
        let socket = self.socket()?;
        socket.set_nonblocking(true)?;
        if let Some(source) = self.source(ordinal) {
            socket.bind(&source.into())?;
        }
        match socket.connect(&self.address) {
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(socket),
            Err(error) => Err(error),
            Ok(()) => Ok(socket),
        }
    }

    /// A connected, blocking socket.
    pub(super) fn connect_and_wait(&self, timeout: Duration) -> io::Result<Socket> {
        let socket = self.socket()?;
        socket.connect_timeout(&self.address, timeout)?;
        socket.set_read_timeout(Some(timeout))?;
        Ok(socket)
    }

    fn socket(&self) -> io::Result<Socket> {
        let socket =
            Socket::new(Domain::from(i32::from(self.address.family())), Type::STREAM, None)?;
        if !self.address.is_unix() {
            socket.set_tcp_nodelay(true)?;
            self.keep_alive(&SockRef::from(&socket))?;
        }
        Ok(socket)
    }

    fn keep_alive(&self, socket: &SockRef<'_>) -> io::Result<()> {
        if let Keepalives::On { idle, interval, count } = self.keepalives {
            let mut keepalive = TcpKeepalive::new();
            if let Some(idle) = idle {
                keepalive = keepalive.with_time(idle);
            }
            if let Some(interval) = interval {
                keepalive = keepalive.with_interval(interval);
            }
            if let Some(count) = count {
                keepalive = keepalive.with_retries(count);
            }
            socket.set_keepalive(true)?;
            if idle.is_some() || interval.is_some() || count.is_some() {
                socket.set_tcp_keepalive(&keepalive)?;
            }
        }
        match self.tcp_user_timeout {
            Some(limit) => socket.set_tcp_user_timeout(Some(limit)),
            None => Ok(()),
        }
    }

    /// A source address, for when the ports of one do not suffice. All of 127.0.0.0/8 is local; for
    /// other targets the system chooses.
    fn source(&self, ordinal: u64) -> Option<SocketAddr> {
        let target = self.address.as_socket_ipv4()?;
        let nth = u8::try_from(ordinal / CONNECTIONS_PER_SOURCE % 250).ok()?;
        if !target.ip().is_loopback() || nth == 0 {
            return None;
        }
        let ip = Ipv4Addr::new(127, 0, 0, nth.saturating_add(1));
        Some(SocketAddrV4::new(ip, 0).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_change_before_ports_run_out() {
        let conninfo = |text| Conninfo::parse(text, &|_| None).unwrap();
        let local = resolve(&[conninfo("host=127.0.0.1,/tmp port=5 user=u")]).unwrap();
        let ip = |n| local[0].source(n).map(|source| source.ip().to_string());
        assert_eq!(ip(0), None);
        assert_eq!(ip(19_999), None);
        assert_eq!(ip(20_000).as_deref(), Some("127.0.0.2"));
        assert_eq!(ip(20_000 * 250), None);
        assert_eq!(local[1].source(20_000), None);
        assert_eq!(local[1].name, "/tmp/.s.PGSQL.5");
        let far = resolve(&[conninfo("hostaddr=192.0.2.1 user=u")]).unwrap();
        assert_eq!(far[0].source(20_000), None);
    }
}
