//! What the task reaches outside of the hub: servers, the socket of the receive role, our files, the
//! archive. A simulation has an environment of its own, and the task runs in it unchanged.

use crate::archive::check::ReadAt;
use crate::restorer::RestoreResult;
use crate::store::evidence::WalSource;
use crate::wal::{Lsn, SegmentName, TimelineId};
use crate::wire::conninfo::{Conninfo, Host};
use bytes::{Bytes, BytesMut};
use std::io;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::RecvError;

/// The outside world. Time is not part of it: the task has tokio's clock, which can be paused.
pub trait Environment: Send + Sync + 'static {
    /// A connection.
    type Socket: AsyncRead + AsyncWrite + Send + Unpin + 'static;
    /// An open file, as the keeper returns it.
    type File: Send + Sync + 'static;
    /// An open file of WAL, ours or the archive's.
    type Wal: ReadAt + Send + Sync + 'static;
    /// The archive.
    type Archive: Archive<Wal = Self::Wal>;

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

    /// Opens our own file of a segment, complete or not; `None` when there is none. It may wait for
    /// the disk.
    ///
    /// # Errors
    /// The operating system's error.
    fn open_own_wal(&self, name: SegmentName) -> io::Result<Option<Self::Wal>>;

    /// Has this hub archived the segment, as far as its marks say? It may wait for the disk.
    ///
    /// # Errors
    /// The operating system's error.
    fn has_archived(&self, name: SegmentName) -> io::Result<bool>;

    /// Runs work that may wait for the disk, while other tasks go on.
    ///
    /// # Errors
    /// The work was not done.
    fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> impl Future<Output = io::Result<T>> + Send;
}

/// The archive as a source of WAL.
pub trait Archive: Send + Sync + 'static {
    /// An open file of WAL.
    type Wal: ReadAt;
    /// A segment that was fetched; it goes when this is dropped.
    type Restored: Send + Sync + 'static;

    /// Fetches a history file. The inner `None` means that the archive has none.
    ///
    /// # Errors
    /// The hub is shutting down.
    fn history(
        &self,
        tli: TimelineId,
    ) -> impl Future<Output = Result<RestoreResult<Bytes>, RecvError>> + Send;

    /// Fetches a segment under the first of these names that the archive has.
    fn segment(
        &self,
        names: Vec<SegmentName>,
    ) -> oneshot::Receiver<RestoreResult<(SegmentName, Self::Restored)>>;

    /// How many segments are to be fetched ahead of need.
    fn ahead(&self) -> u64;

    /// Opens a fetched segment. It may wait for the disk.
    ///
    /// # Errors
    /// The operating system's error.
    fn open(restored: &Self::Restored) -> io::Result<Self::Wal>;
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
    /// Whose it is.
    pub source: WalSource,
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
