//! The environment of a running hub: sockets and files of this machine.

use super::environment::{Archive, Environment, HandOverFault, Stream};
use crate::data::handoff::{Mailbox, ToCore, UpstreamHandoff};
use crate::hub::Hub;
use crate::net::{self, Socket};
use crate::restorer::{RestoreResult, RestoredFile, Restorer};
use crate::store::layout::{ArchiveFile, Layout, Mark};
use crate::store::plain_disk::PlainDisk;
use crate::wal::{SegmentName, TimelineId};
use crate::wire::conninfo::{Conninfo, Host};
use bytes::Bytes;
use rustix::fs::OFlags;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::RecvError;

/// Sockets and files of this machine.
pub struct System {
    /// What the engines share.
    pub hub: Arc<Hub>,
    /// The core with the receive role.
    pub receiver: Mailbox,
}

impl Environment for System {
    type Socket = Socket;
    type File = Arc<OwnedFd>;
    type Wal = File;
    type Archive = Restorer;

    async fn connect(&self, conninfo: &Conninfo, host: &Host) -> io::Result<Socket> {
        net::connect(conninfo, host, &self.hub.config.tcp).await
    }

    fn pair(&self) -> io::Result<(Socket, Socket)> {
        let (ours, theirs) = UnixStream::pair()?;
        Ok((Socket::Unix(ours), Socket::Unix(theirs)))
    }

    async fn hand_over(&self, stream: Stream<Socket>) -> Result<(), HandOverFault> {
        let Stream { socket, unread, start, tli, source } = stream;
        let socket = socket.leave().map_err(HandOverFault::Socket)?;
        let handoff = UpstreamHandoff { socket, unread, start, tli, source };
        let message = ToCore::Upstream(Box::new(handoff));
        self.receiver.deliver(message, || true).await.ok_or(HandOverFault::QueueFull)
    }

    fn open_own_wal(&self, name: SegmentName) -> io::Result<Option<File>> {
        let layout = Layout::new(&self.hub.config.directory);
        for path in [layout.segment(name), layout.partial(name)] {
            match PlainDisk::open_file(&path, OFlags::RDONLY) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                file => return file.map(|file| Some(file.into())),
            }
        }
        Ok(None)
    }

    fn has_archived(&self, name: SegmentName) -> io::Result<bool> {
        let layout = Layout::new(&self.hub.config.directory);
        layout.mark(ArchiveFile::Segment(name), Mark::Done).try_exists()
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        Ok(tokio::task::spawn_blocking(work).await?)
    }
}

impl Archive for Restorer {
    type Wal = File;
    type Restored = RestoredFile;

    async fn history(&self, tli: TimelineId) -> Result<RestoreResult<Bytes>, RecvError> {
        Self::history(self, tli).await
    }

    fn segment(
        &self,
        names: Vec<SegmentName>,
    ) -> oneshot::Receiver<RestoreResult<(SegmentName, RestoredFile)>> {
        Self::segment(self, names)
    }

    fn ahead(&self) -> u64 {
        Self::ahead(self)
    }

    fn open(restored: &RestoredFile) -> io::Result<File> {
        File::open(restored.path())
    }
}
