//! What the task reaches outside of the hub: servers, the socket of the receive role, our files. A
//! simulation has an environment of its own, and the task runs in it unchanged.

use crate::upstream::place::Span;
use crate::wal::{Lsn, SegmentSize, TimelineId};
use crate::wire::conninfo::{Conninfo, Host};
use bytes::BytesMut;
use std::io;
use tokio::io::{AsyncRead, AsyncWrite};

/// The outside world. Time is not part of it: the task has tokio's clock, which can be paused.
pub trait Environment: Send + Sync + 'static {
    /// A connection.
    type Socket: AsyncRead + AsyncWrite + Send + Unpin + 'static;
    /// An open file, as the keeper returns it.
    type File: Send + Sync + 'static;

    /// Connects to a host of a connection string. It has no timeout: the caller sets one.
    ///
    /// # Errors
    /// The operating system's error.
    fn connect(
        &self,
        conninfo: &Conninfo,
        host: &Host,
    ) -> impl Future<Output = io::Result<Self::Socket>> + Send;

    /// Two sockets that are connected to each other.
    ///
    /// # Errors
    /// The operating system's error.
    fn pair(&self) -> io::Result<(Self::Socket, Self::Socket)>;

    /// Gives the receive role a stream.
    ///
    /// # Errors
    /// The role does not get it, and the connection is closed.
    fn hand_over(
        &self,
        stream: Stream<Self::Socket>,
    ) -> impl Future<Output = Result<(), HandOverFault>> + Send;

    /// Reads our own WAL, which is in one segment.
    ///
    /// # Errors
    /// The operating system's error; [`io::ErrorKind::NotFound`] when the segment is not here.
    fn read_own_wal(
        &self,
        span: Span,
        size: SegmentSize,
    ) -> impl Future<Output = io::Result<Vec<u8>>> + Send;
}

/// A stream of WAL that has begun.
#[derive(Debug)]
pub struct Stream<S> {
    /// The connection.
    pub socket: S,
    /// Bytes read after the CopyBothResponse, in order.
    pub unread: BytesMut,
    /// Where the stream begins.
    pub start: Lsn,
    /// Its timeline.
    pub tli: TimelineId,
    /// The host, for the log.
    pub host: String,
}

/// Why the receive role did not get a stream.
#[derive(Debug, thiserror::Error)]
pub enum HandOverFault {
    /// The socket could not be passed on.
    #[error("{0}")]
    Socket(io::Error),
    /// The core does not empty its queue.
    #[error("the receiving core is not taking messages from its queue")]
    QueueFull,
}
