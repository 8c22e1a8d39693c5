//! The upstream's stream after its CopyBothResponse: what it says, what it is owed, how
//! long it may be silent.
//!
//! Timers follow `walreceiver.c` (`WalReceiverMain`).

use crate::wal::{Lsn, TimelineId};
use crate::wire::backend_read::{FromServer, ServerError};
use crate::wire::copy::{FromSender, ReplyRequest, StatusReply};
use crate::wire::frame::next_frame;
use crate::wire::time::PgTime;
use std::time::{Duration, Instant};

/// The longest message accepted from an upstream. PostgreSQL sends at most 128 KiB of WAL in one;
/// the limit only bounds memory.
pub const MAX_BODY: usize = 512 << 10;

/// One message from upstream.
#[derive(Debug, PartialEq, Eq)]
pub enum StreamMessage<'a> {
    /// WAL that starts at `start`.
    Wal {
        /// First byte.
        start: Lsn,
        /// The bytes.
        wal: &'a [u8],
    },
    /// A status reply is wanted at once.
    ReplyWanted,
    /// CopyDone: the timeline has ended; our CopyDone is owed.
    CopyDone,
    /// After both CopyDones: the timeline that follows.
    Next {
        /// Its number.
        tli: TimelineId,
        /// Where it forks off.
        at: Lsn,
    },
    /// It ended the stream with an error.
    Error(ServerError),
    /// It shut down cleanly, after sending everything.
    ShutDown,
    /// Nothing that concerns the stream.
    Nothing,
}

/// What came is not a replication stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoStream {
    /// It is not even a message.
    #[error("invalid message from upstream: {0}")]
    Malformed(String),
    /// A message that does not belong in a stream.
    #[error("upstream sent an unexpected message of type \"{}\" in the stream", .0.escape_ascii())]
    Unexpected(u8),
    /// CopyData with something other than WAL or a keepalive.
    #[error("upstream sent an invalid replication message")]
    Payload,
    /// The row that names the next timeline cannot be read.
    #[error("upstream ended the timeline without naming the next one")]
    NextTimeline,
}

/// Reads the next whole message from the front of `bytes`; `None` while it is incomplete. Returns
/// the message and its length.
pub fn next_message(bytes: &[u8]) -> Result<Option<(StreamMessage<'_>, usize)>, NoStream> {
    let frame = match next_frame(bytes, MAX_BODY) {
        Ok(Some(frame)) => frame,
        Ok(None) => return Ok(None),
        Err(malformed) => return Err(NoStream::Malformed(malformed.to_string())),
    };
    let len = frame.len;
    let told = match frame.tag {
        b'd' => match FromSender::parse(frame.body).map_err(|_| NoStream::Payload)? {
            FromSender::XLogData { start, wal, .. } => StreamMessage::Wal { start, wal },
            FromSender::Keepalive { reply: ReplyRequest::Yes, .. } => StreamMessage::ReplyWanted,
            FromSender::Keepalive { reply: ReplyRequest::No, .. } => StreamMessage::Nothing,
        },
        b'c' => StreamMessage::CopyDone,
        b'C' if frame.body == b"COPY 0\0" => StreamMessage::ShutDown,
        tag @ (b'D' | b'E') => match FromServer::parse(frame) {
            Ok(FromServer::Error(error)) => StreamMessage::Error(error),
            Ok(FromServer::DataRow(row)) => next_timeline(&row)?,
            Ok(_) => return Err(NoStream::Unexpected(tag)),
            Err(malformed) => return Err(NoStream::Malformed(malformed.to_string())),
        },
        // Notices and parameter changes may come at any time; after CopyDone a row description
        // precedes the row and two CommandComplete follow.
        b'N' | b'S' | b'T' | b'C' | b'Z' => StreamMessage::Nothing,
        tag => return Err(NoStream::Unexpected(tag)),
    };
    Ok(Some((told, len)))
}

fn next_timeline(row: &[Option<&[u8]>]) -> Result<StreamMessage<'static>, NoStream> {
    let text = |n| std::str::from_utf8((*row.get(n)?)?).ok();
    let tli = text(0).and_then(|tli| tli.parse().ok()).and_then(TimelineId::new);
    let at = text(1).and_then(|at| at.parse().ok());
    match (tli, at) {
        (Some(tli), Some(at)) => Ok(StreamMessage::Next { tli, at }),
        _ => Err(NoStream::NextTimeline),
    }
}

/// How long an upstream may be left unread when there is no timeout: as long as with PostgreSQL's
/// default of 60 s.
const UNREAD_LIMIT: Duration = Duration::from_secs(30);

/// Where this hub stands, as reported to the upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Positions {
    /// Received and written.
    pub write: Lsn,
    /// Durable.
    pub flush: Lsn,
    /// Replayed, by whichever server.
    pub apply: Lsn,
}

/// When something is owed to the upstream, and when the connection is abandoned.
#[derive(Debug)]
pub struct ReceiverTimers {
    status_interval: Duration,
    timeout: Duration,
    heard_at: Instant,
    pinged: bool,
    told_at: Instant,
    told: Option<Positions>,
    /// Since when the upstream's bytes are left unread because our disk is behind.
    paused_at: Option<Instant>,
}

/// What the timers ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Nothing yet.
    Nothing,
    /// A status reply, which requests an answer or not.
    Status(ReplyRequest),
    /// The upstream is silent for too long.
    GiveUp,
    /// Our disk has been behind for too long: an upstream socket left unread can freeze a primary's
    /// checkpointer.
    DiskTooSlow(Duration),
}

impl ReceiverTimers {
    /// A stream that begins now. Zero disables an interval or timeout.
    pub fn new(now: Instant, status_interval: Duration, timeout: Duration) -> Self {
        Self {
            status_interval,
            timeout,
            heard_at: now,
            pinged: false,
            told_at: now,
            told: None,
            paused_at: None,
        }
    }

    /// A message came.
    pub fn heard(&mut self, now: Instant) {
        self.heard_at = now;
        self.pinged = false;
    }

    /// Reading stops, because too much is not durable yet.
    pub fn pause(&mut self, now: Instant) {
        self.paused_at.get_or_insert(now);
    }

    /// Reading continues.
    pub fn resume(&mut self, now: Instant) {
        if self.paused_at.take().is_some() {
            // Its messages are in the socket; it has not been silent.
            self.heard(now);
        }
    }

    /// Whether the upstream is left unread.
    pub const fn is_paused(&self) -> bool {
        self.paused_at.is_some()
    }

    /// Whether a status reply would say something new. One goes out after every write and flush.
    pub fn has_news(&self, positions: Positions) -> bool {
        self.told != Some(positions) && !self.status_interval.is_zero()
    }

    /// The status reply for these positions, which is going out now.
    pub fn status(
        &mut self,
        positions: Positions,
        reply: ReplyRequest,
        client_time: PgTime,
        now: Instant,
    ) -> StatusReply {
        self.told_at = now;
        self.told = Some(positions);
        let Positions { write, flush, apply } = positions;
        StatusReply { write, flush, apply, client_time, reply }
    }

    /// How long the upstream may be left unread. It is bounded even without a timeout: an operator
    /// who trusts the network does not thereby let our disk freeze the primary.
    fn unread_limit(&self) -> Duration {
        if self.timeout.is_zero() { UNREAD_LIMIT } else { self.timeout / 2 }
    }

    /// When [`ReceiverTimers::due`] has to be called next.
    pub fn deadline(&self) -> Option<Instant> {
        let timed = !self.timeout.is_zero();
        let status = (!self.status_interval.is_zero()).then(|| self.told_at + self.status_interval);
        let paused = self.paused_at.map(|at| at + self.unread_limit());
        let silent = (timed && self.paused_at.is_none())
            .then(|| self.heard_at + if self.pinged { self.timeout } else { self.timeout / 2 });
        [status, paused, silent].into_iter().flatten().min()
    }

    /// What the timers ask for. After a status that requests an answer, the upstream counts as
    /// pinged.
    pub fn due(&mut self, now: Instant) -> Due {
        if let Some(paused_at) = self.paused_at {
            let unread = now.saturating_duration_since(paused_at);
            if unread >= self.unread_limit() {
                return Due::DiskTooSlow(unread);
            }
        } else if !self.timeout.is_zero() {
            let silent = now.saturating_duration_since(self.heard_at);
            if silent >= self.timeout {
                return Due::GiveUp;
            }
            if silent >= self.timeout / 2 && !self.pinged {
                self.pinged = true;
                return Due::Status(ReplyRequest::Yes);
            }
        }
        let told = now.saturating_duration_since(self.told_at);
        if !self.status_interval.is_zero() && told >= self.status_interval {
            return Due::Status(ReplyRequest::No);
        }
        Due::Nothing
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    const fn at(write: u64, flush: u64) -> Positions {
        let (write, flush) = (Lsn::new(write), Lsn::new(flush));
        Positions { write, flush, apply: flush }
    }

    #[test]
    fn asks_at_half_time_and_gives_up_at_the_end() {
        let t0 = Instant::now();
        let mut timers = ReceiverTimers::new(t0, s(10), s(60));
        assert_eq!(timers.deadline(), Some(t0 + s(10)));
        assert_eq!(timers.due(t0 + s(10)), Due::Status(ReplyRequest::No));
        timers.status(at(8, 8), ReplyRequest::No, PgTime::new(0), t0 + s(10));
        assert_eq!(timers.due(t0 + s(11)), Due::Nothing);
        assert_eq!(timers.due(t0 + s(30)), Due::Status(ReplyRequest::Yes));
        timers.status(at(8, 8), ReplyRequest::Yes, PgTime::new(0), t0 + s(30));
        assert_eq!(timers.due(t0 + s(31)), Due::Nothing);
        assert_eq!(timers.due(t0 + s(60)), Due::GiveUp);
        timers.heard(t0 + s(60));
        assert_eq!(timers.due(t0 + s(61)), Due::Status(ReplyRequest::No));
    }

    #[test]
    fn a_slow_disk_is_not_the_upstreams_silence() {
        let t0 = Instant::now();
        let mut timers = ReceiverTimers::new(t0, s(0), s(60));
        timers.pause(t0 + s(20));
        assert_eq!(timers.deadline(), Some(t0 + s(50)));
        assert_eq!(timers.due(t0 + s(49)), Due::Nothing);
        assert_eq!(timers.due(t0 + s(50)), Due::DiskTooSlow(s(30)));
        timers.resume(t0 + s(51));
        assert_eq!(timers.due(t0 + s(80)), Due::Nothing);
        assert_eq!(timers.due(t0 + s(81)), Due::Status(ReplyRequest::Yes));
    }

    #[test]
    fn no_timeout_is_no_leave_to_keep_the_upstream_waiting() {
        let t0 = Instant::now();
        let mut timers = ReceiverTimers::new(t0, s(0), s(0));
        assert_eq!(timers.deadline(), None);
        assert_eq!(timers.due(t0 + s(1_000_000)), Due::Nothing);
        timers.pause(t0 + s(20));
        assert_eq!(timers.deadline(), Some(t0 + s(50)));
        assert_eq!(timers.due(t0 + s(49)), Due::Nothing);
        assert_eq!(timers.due(t0 + s(50)), Due::DiskTooSlow(s(30)));
    }

    #[test]
    fn news_are_told_once() {
        let t0 = Instant::now();
        let mut timers = ReceiverTimers::new(t0, s(10), s(0));
        assert!(timers.has_news(at(16, 8)));
        let status = timers.status(at(16, 8), ReplyRequest::No, PgTime::new(0), t0);
        assert_eq!([status.write, status.flush, status.apply].map(Lsn::raw), [16, 8, 8]);
        assert!(!timers.has_news(at(16, 8)));
        assert!(timers.has_news(at(16, 16)));
        assert!(timers.has_news(Positions { apply: Lsn::INVALID, ..at(16, 8) }));
    }

    #[test]
    fn reads_the_end_of_a_timeline() {
        let mut bytes = b"c\0\0\0\x04".to_vec();
        bytes.extend_from_slice(b"D\0\0\0\x17\0\x02\0\0\0\x012\0\0\0\x080/6E25B8");
        bytes.extend_from_slice(b"C\0\0\0\x0bCOPY 0\0");
        let (told, len) = next_message(&bytes).unwrap().unwrap();
        assert_eq!(told, StreamMessage::CopyDone);
        let rest = &bytes[len..];
        let (told, len) = next_message(rest).unwrap().unwrap();
        assert_eq!(
            told,
            StreamMessage::Next { tli: TimelineId::new(2).unwrap(), at: Lsn::new(0x6E_25B8) }
        );
        assert_eq!(next_message(&rest[len..]).unwrap().unwrap().0, StreamMessage::ShutDown);
        assert_eq!(next_message(&rest[..5]), Ok(None));
        assert_eq!(next_message(b"Q\0\0\0\x04"), Err(NoStream::Unexpected(b'Q')));
        assert_eq!(next_message(b"d\0\0\0\x05z"), Err(NoStream::Payload));
        assert!(matches!(next_message(b"d\x7f\0\0\0"), Err(NoStream::Malformed(_))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_calmly(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            drop(next_message(&bytes));
        }
    }
}
