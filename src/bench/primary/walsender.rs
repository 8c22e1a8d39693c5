//! A stream to one walreceiver: the WAL of the next message, and the receiver's replies. No I/O.

use super::session::{Extent, Session, removed};
use crate::bench::truth::Truth;
use crate::standby::stream::Talk;
use crate::wal::{Lsn, PAGE_SIZE, SegmentSize};
use crate::wire::copy::{ReplyRequest, keepalive, xlog_data_header};
use crate::wire::refusal::Refusal;
use crate::wire::time::PgTime;
use bytes::Bytes;
use std::collections::VecDeque;
use std::time::{Instant, SystemTime};

/// `MAX_SEND_SIZE`
const MAX_SEND: u64 = 16 * PAGE_SIZE as u64;

/// The stream.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) talk: Talk,
    /// End of the last message made.
    pub(super) sent: Lsn,
    pub(super) slot: Option<String>,
}

impl Stream {
    pub(super) fn new(start: Lsn, slot: Option<String>, session: &Session) -> Self {
        Self { talk: Talk::new(Instant::now(), session.wal_sender_timeout), sent: start, slot }
    }

    /// Appends the next message to `queue`; returns `false` when there is no WAL for one.
    pub(super) fn message(
        &mut self,
        truth: &Truth,
        size: SegmentSize,
        queue: &mut VecDeque<Bytes>,
    ) -> Result<bool, Refusal> {
        let ready = truth.end();
        if ready <= self.sent {
            return Ok(false);
        }
        let end = match self.sent.saturating_add(MAX_SEND) {
            cut if cut < ready => cut.page_start(),
            _ => ready,
        };
        // No message has 2^32 bytes or more.
        let len = usize::try_from(end.bytes_since(self.sent)).unwrap_or(0);
        let header = xlog_data_header(self.sent, ready, now(), len);
        let before = queue.len();
        queue.push_back(Bytes::copy_from_slice(&header));
        if !truth.gather(self.sent, end, queue) {
            queue.truncate(before);
            return Err(removed(size, self.sent));
        }
        self.sent = end;
        Ok(true)
    }

    /// A keepalive after everything made so far.
    pub(super) fn keepalive(&self, request: ReplyRequest) -> Bytes {
        Bytes::copy_from_slice(&keepalive(self.sent, now(), request))
    }

    /// Has it been sent everything?
    pub(super) fn caught_up(&self, extent: Extent) -> bool {
        self.sent >= extent.end
    }
}

fn now() -> PgTime {
    SystemTime::now().into()
}
