//! Options of TCP connections.

use crate::config::TcpSettings;
use socket2::{SockRef, TcpKeepalive};
use std::io;
use tracing::warn;

/// Bytes that the kernel may buffer for a standby before it sends them. Without a limit, a standby
/// that does not read takes 4 MB, and some hundred of them take the TCP memory of the whole host.
const NOTSENT_LOWAT: u32 = 128 << 10;

/// Why TCP options, such as `--tcp-congestion`, cannot be set.
#[derive(Debug, thiserror::Error)]
pub enum TcpFault {
    /// The kernel has no algorithm of that name.
    #[error(
        "--tcp-congestion: the kernel has no \"{name}\": load its module, or choose one that the \
         sysctl net.ipv4.tcp_available_congestion_control lists"
    )]
    Unknown {
        /// The name.
        name: String,
    },
    /// The algorithm is not permitted to an ordinary user.
    #[error(
        "--tcp-congestion: \"{name}\" is not permitted to this user: add it to the sysctl \
         net.ipv4.tcp_allowed_congestion_control"
    )]
    NotAllowed {
        /// The name.
        name: String,
    },
    /// Another option, or any other error.
    #[error("could not set options of a TCP socket: {0}")]
    Io(#[from] io::Error),
}

/// Sets up a listening socket; the connections that it accepts inherit the options.
///
/// # Errors
/// An option cannot be set.
pub fn set_listener(socket: &SockRef<'_>, settings: &TcpSettings) -> Result<(), TcpFault> {
    if let Some(name) = &settings.congestion {
        set_congestion(socket, name)?;
    }
    let mut probes = TcpKeepalive::new();
    if !settings.keepalives_idle.is_zero() {
        probes = probes.with_time(settings.keepalives_idle);
    }
    if !settings.keepalives_interval.is_zero() {
        probes = probes.with_interval(settings.keepalives_interval);
    }
    if settings.keepalives_count > 0 {
        probes = probes.with_retries(settings.keepalives_count);
    }
    // This also switches keepalive on, as PostgreSQL does.
    socket.set_tcp_keepalive(&probes)?;
    if !settings.user_timeout.is_zero() {
        socket.set_tcp_user_timeout(Some(settings.user_timeout))?;
    }
    Ok(())
}

/// Sets up an accepted socket: options that our guarantees depend on are set explicitly rather than
/// inherited.
///
/// # Errors
/// The operating system's error.
pub fn set_accepted(socket: &SockRef<'_>) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_notsent_lowat(NOTSENT_LOWAT)?;
    socket.set_keepalive(true)
}

/// Sets up the upstream's socket. Replication also works without these options.
pub(super) fn set_upstream(socket: &SockRef<'_>, settings: &TcpSettings) {
    if let Some(name) = &settings.congestion
        && let Err(fault) = set_congestion(socket, name)
    {
        warn!("connection to the upstream: {fault}");
    }
}

fn set_congestion(socket: &SockRef<'_>, name: &str) -> Result<(), TcpFault> {
    socket.set_tcp_congestion(name.as_bytes()).map_err(|error| match error.raw_os_error() {
        Some(libc::ENOENT) => TcpFault::Unknown { name: name.to_owned() },
        Some(libc::EPERM) => TcpFault::NotAllowed { name: name.to_owned() },
        _ => TcpFault::Io(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    #[test]
    fn accepted_connections_have_what_was_asked_for() {
        let settings = TcpSettings {
            // Every kernel has it, and every user may use it.
            congestion: Some("reno".to_owned()),
            keepalives_idle: Duration::from_secs(77),
            keepalives_interval: Duration::from_secs(7),
            keepalives_count: 5,
            user_timeout: Duration::from_millis(4321),
        };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        set_listener(&SockRef::from(&listener), &settings).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let accepted = listener.accept().unwrap().0;
        let socket = SockRef::from(&accepted);
        set_accepted(&socket).unwrap();
        let name = socket.tcp_congestion().unwrap();
        assert!(name.starts_with(b"reno\0"), "{name:?}");
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(77));
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(7));
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 5);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_millis(4321)));
        assert!(socket.keepalive().unwrap() && socket.tcp_nodelay().unwrap());
        assert_eq!(socket.tcp_notsent_lowat().unwrap(), NOTSENT_LOWAT);
    }

    #[test]
    fn without_settings_the_systems_stay() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = SockRef::from(&listener);
        let of = |socket: &SockRef<'_>| {
            (
                socket.tcp_congestion().unwrap(),
                socket.tcp_keepalive_time().unwrap(),
                socket.tcp_keepalive_retries().unwrap(),
                socket.tcp_user_timeout().unwrap(),
            )
        };
        let before = of(&socket);
        set_listener(&socket, &TcpSettings::default()).unwrap();
        assert_eq!(of(&socket), before);
    }

    #[test]
    fn an_unknown_congestion_control_names_the_sysctl() {
        let settings =
            TcpSettings { congestion: Some("nonesuch".to_owned()), ..TcpSettings::default() };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let fault = set_listener(&SockRef::from(&listener), &settings).unwrap_err();
        assert!(fault.to_string().contains("tcp_available_congestion_control"), "{fault}");
        let name = "cubic".to_owned();
        let denied = TcpFault::NotAllowed { name }.to_string();
        assert!(denied.contains("tcp_allowed_congestion_control"), "{denied}");
    }
}
