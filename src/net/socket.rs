//! One connected socket, TCP or Unix, that can leave the runtime and come back.

use bytes::BytesMut;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// The size of one read.
const READ_SIZE: usize = 8192;

/// A stream socket on the control thread's runtime.
#[derive(Debug)]
pub enum Socket {
    /// TCP, IPv4 or IPv6.
    Tcp(TcpStream),
    /// A Unix socket.
    Unix(UnixStream),
}

/// What an [`OwnedFd`] was before it left the runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// TCP.
    Tcp,
    /// A Unix socket.
    Unix,
}

impl Socket {
    /// Appends available bytes to `into`; returns 0 at the end of the stream. Cancel-safe: bytes
    /// are in `into` or still in the kernel.
    ///
    /// # Errors
    /// The operating system's error.
    pub async fn read(&mut self, into: &mut BytesMut) -> io::Result<usize> {
        into.reserve(READ_SIZE);
        match self {
            Self::Tcp(socket) => socket.read_buf(into).await,
            Self::Unix(socket) => socket.read_buf(into).await,
        }
    }

    /// Writes all of `bytes` and empties it.
    ///
    /// # Errors
    /// The operating system's error.
    pub async fn write(&mut self, bytes: &mut BytesMut) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => socket.write_all_buf(bytes).await,
            Self::Unix(socket) => socket.write_all_buf(bytes).await,
        }
    }

    /// Shuts down the writing side.
    ///
    /// # Errors
    /// The operating system's error.
    pub async fn shutdown(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => socket.shutdown().await,
            Self::Unix(socket) => socket.shutdown().await,
        }
    }

    /// TCP or Unix.
    pub const fn family(&self) -> Family {
        match self {
            Self::Tcp(_) => Family::Tcp,
            Self::Unix(_) => Family::Unix,
        }
    }

    /// Takes the socket off the runtime, in blocking mode, as a ring requires.
    ///
    /// # Errors
    /// The operating system's error.
    pub fn leave(self) -> io::Result<OwnedFd> {
        match self {
            Self::Tcp(socket) => {
                let socket = socket.into_std()?;
                socket.set_nonblocking(false)?;
                Ok(socket.into())
            }
            Self::Unix(socket) => {
                let socket = socket.into_std()?;
                socket.set_nonblocking(false)?;
                Ok(socket.into())
            }
        }
    }

    /// Puts a socket back on the runtime.
    ///
    /// # Errors
    /// The operating system's error.
    pub fn enter(fd: OwnedFd, family: Family) -> io::Result<Self> {
        match family {
            Family::Tcp => {
                let socket = std::net::TcpStream::from(fd);
                socket.set_nonblocking(true)?;
                Ok(Self::Tcp(TcpStream::from_std(socket)?))
            }
            Family::Unix => {
                let socket = std::os::unix::net::UnixStream::from(fd);
                socket.set_nonblocking(true)?;
                Ok(Self::Unix(UnixStream::from_std(socket)?))
            }
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_read(context, into),
            Self::Unix(socket) => Pin::new(socket).poll_read(context, into),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_write(context, bytes),
            Self::Unix(socket) => Pin::new(socket).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_flush(context),
            Self::Unix(socket) => Pin::new(socket).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_shutdown(context),
            Self::Unix(socket) => Pin::new(socket).poll_shutdown(context),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        match self {
            Self::Tcp(socket) => socket.as_fd(),
            Self::Unix(socket) => socket.as_fd(),
        }
    }
}
