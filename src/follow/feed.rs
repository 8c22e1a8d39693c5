//! A stream of WAL from the archive to the receive role: the server's side of a CopyBoth over a
//! socket pair. The core cannot distinguish it from an upstream, and makes the same checks.

use super::environment::{Environment, HandOverFault, Stream};
use crate::store::evidence::WalSource;
use crate::wal::{Lsn, TimelineId};
use crate::wire::copy::{ReplyRequest, keepalive, xlog_data_header};
use crate::wire::time::PgTime;
use bytes::BytesMut;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, WriteHalf};
use tokio::task::JoinHandle;

/// The most WAL in one message.
const MESSAGE: usize = 128 << 10;

/// The longest interval between signs of life to the core while a file is fetched.
const SIGN_OF_LIFE: Duration = Duration::from_millis(500);

/// The stream, whose other end the receive role has.
pub(super) struct Feed<S> {
    to_core: WriteHalf<S>,
    /// Reads what the core reports; ends with the stream.
    reports: JoinHandle<()>,
    /// The time between two signs of life.
    pause: Duration,
    at: Lsn,
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Feed<S> {
    /// Begins a stream at `start`. The role gives up one that is silent for `receiver_timeout`;
    /// zero means never.
    pub(super) async fn open<E: Environment<Socket = S>>(
        environment: &E,
        receiver_timeout: Duration,
        tli: TimelineId,
        start: Lsn,
    ) -> Result<Self, HandOverFault> {
        let (ours, theirs) = environment.pair().map_err(HandOverFault::Socket)?;
        let (from_core, to_core) = tokio::io::split(ours);
        let source = WalSource::archive();
        let stream = Stream { socket: theirs, unread: BytesMut::new(), start, tli, source };
        environment.hand_over(stream).await?;
        let reports = tokio::spawn(pass_over(from_core));
        let pause = match receiver_timeout.is_zero() {
            true => SIGN_OF_LIFE,
            false => SIGN_OF_LIFE.min(receiver_timeout / 4),
        };
        Ok(Self { to_core, reports, pause, at: start })
    }

    /// Ends it; what was sent before still counts.
    pub(super) async fn end(mut self) {
        // A core that has ended it does not need to be told.
        drop(self.to_core.shutdown().await);
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
                biased;
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
async fn pass_over(mut from_core: impl AsyncRead + Unpin) {
    let mut bytes = [0; 4096];
    while let Ok(read) = from_core.read(&mut bytes).await
        && read > 0
    {}
}

fn now() -> PgTime {
    PgTime::from(SystemTime::now())
}
