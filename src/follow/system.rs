//! The environment of a running hub: sockets and files of this machine.

use super::environment::{Environment, HandOverFault, Stream};
use crate::data::handoff::{Mailbox, ToCore, UpstreamHandoff};
use crate::hub::Hub;
use crate::net::{self, Socket};
use crate::store::layout::Layout;
use crate::store::plain_disk::PlainDisk;
use crate::upstream::place::Span;
use crate::wal::{SegmentName, SegmentSize};
use crate::wire::conninfo::{Conninfo, Host};
use rustix::fs::OFlags;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use tokio::net::UnixStream;

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

    async fn connect(&self, conninfo: &Conninfo, host: &Host) -> io::Result<Socket> {
        net::connect(conninfo, host, &self.hub.config.tcp).await
    }

    fn pair(&self) -> io::Result<(Socket, Socket)> {
        let (ours, theirs) = UnixStream::pair()?;
        Ok((Socket::Unix(ours), Socket::Unix(theirs)))
    }

    async fn hand_over(&self, stream: Stream<Socket>) -> Result<(), HandOverFault> {
        let Stream { socket, unread, start, tli, host } = stream;
        let socket = socket.leave().map_err(HandOverFault::Socket)?;
        let handoff = UpstreamHandoff { socket, unread, start, tli, host };
        let message = ToCore::Upstream(Box::new(handoff));
        self.receiver.deliver(message, || true).await.ok_or(HandOverFault::QueueFull)
    }

    async fn read_own_wal(&self, span: Span, size: SegmentSize) -> io::Result<Vec<u8>> {
        let layout = Layout::new(&self.hub.config.directory);
        let reading = tokio::task::spawn_blocking(move || read_own_wal(&layout, span, size));
        reading.await?
    }
}

fn read_own_wal(layout: &Layout, span: Span, size: SegmentSize) -> io::Result<Vec<u8>> {
    let name = SegmentName { tli: span.tli, no: span.from.segment(size), size };
    let file = open_own_segment(layout, name)?.ok_or(io::ErrorKind::NotFound)?;
    let mut wal = vec![0; span.to.bytes_since(span.from) as usize];
    file.read_exact_at(&mut wal, span.from.segment_offset(size))?;
    Ok(wal)
}

/// Opens our own file of a segment, complete or not; `None` when there is none.
///
/// # Errors
/// The operating system's error.
pub(super) fn open_own_segment(layout: &Layout, name: SegmentName) -> io::Result<Option<File>> {
    for path in [layout.segment(name), layout.partial(name)] {
        match PlainDisk::open_file(&path, OFlags::RDONLY) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            file => return file.map(|file| Some(file.into())),
        }
    }
    Ok(None)
}
