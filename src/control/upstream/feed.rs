//! A stream of WAL from the archive to the receive role: the server's side of a CopyBoth over a
//! socket pair. The core cannot distinguish it from an upstream, and makes the same checks.

use super::super::Shared;
use crate::data::handoff::{ToCore, UpstreamHandoff};
use crate::store::evidence::ARCHIVE;
use crate::wal::{Lsn, TimelineId};
use crate::wire::copy::{ReplyRequest, keepalive, xlog_data_header};
use crate::wire::time::PgTime;
use bytes::BytesMut;
use std::future::Future;
use std::io;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::pin::pin;
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::JoinHandle;

/// The most WAL in one message.
const MESSAGE: usize = 128 << 10;

/// The longest interval between signs of life to the core while a file is fetched.
const SIGN_OF_LIFE: Duration = Duration::from_millis(500);

/// The stream. Dropping it ends it; what was sent before still counts.
pub(super) struct Feed {
    to_core: OwnedWriteHalf,
    /// Reads what the core reports; ends with the stream.
    reports: JoinHandle<()>,
    /// The time between two signs of life.
    pause: Duration,
    at: Lsn,
}

impl Feed {
    /// Hands the other end to the core. Returns `None` when the core is not taking messages from
    /// its queue.
    pub(super) async fn open(
        shared: &Shared,
        tli: TimelineId,
        start: Lsn,
    ) -> io::Result<Option<Self>> {
        let (ours, theirs) = StdUnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let (from_core, to_core) = UnixStream::from_std(ours)?.into_split();
        let handoff = UpstreamHandoff {
            socket: theirs.into(),
            unread: BytesMut::new(),
            start,
            tli,
            host: ARCHIVE.to_owned(),
        };
        let message = ToCore::Upstream(Box::new(handoff));
        if super::super::connection::post(shared, 0, message, || true).await.is_none() {
            return Ok(None);
        }
        let reports = tokio::spawn(pass_over(from_core));
        let timeout = shared.hub.config.wal_receiver_timeout;
        let pause = match timeout.is_zero() {
            true => SIGN_OF_LIFE,
            false => SIGN_OF_LIFE.min(timeout / 4),
        };
        Ok(Some(Self { to_core, reports, pause, at: start }))
    }

    /// Sends the next WAL.
    pub(super) async fn send(&mut self, wal: &[u8], end_of_wal: Lsn) -> io::Result<()> {
        for piece in wal.chunks(MESSAGE) {
            let header = xlog_data_header(self.at, end_of_wal, now(), piece.len());
            self.to_core.write_all(&header).await?;
            self.to_core.write_all(piece).await?;
            self.at = self.at.saturating_add(piece.len() as u64);
        }
        Ok(())
    }

    /// Has the core ended it?
    pub(super) fn was_ended(&self) -> bool {
        self.reports.is_finished()
    }

    /// Runs `work`, and keeps the stream alive meanwhile.
    pub(super) async fn during<T>(&mut self, work: impl Future<Output = T>) -> io::Result<T> {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Ok(done),
                () = tokio::time::sleep(self.pause) => {
                    if self.was_ended() {
                        return Err(io::ErrorKind::BrokenPipe.into());
                    }
                    let sign = keepalive(self.at, now(), ReplyRequest::No);
                    self.to_core.write_all(&sign).await?;
                }
            }
        }
    }
}

/// Reads and drops the core's status reports: they are not needed here, but a full socket would
/// block the core.
async fn pass_over(mut from_core: OwnedReadHalf) {
    let mut bytes = [0; 4096];
    while let Ok(read) = from_core.read(&mut bytes).await
        && read > 0
    {}
}

fn now() -> PgTime {
    PgTime::from(SystemTime::now())
}
