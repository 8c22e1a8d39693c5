//! One standby as its core sees it: socket, place in the WAL, talk, and the way out.

use super::blocks::BlockId;
use crate::fanout::Cursor;
use crate::hub::SenderPermit;
use crate::hub::fleet::Member;
use crate::ring::{Fd, OpId};
use crate::standby::client::{Session, StreamEnd};
use crate::standby::stream::Talk;
use crate::store::retention::Hold;
use crate::watermark::Cell;
use std::sync::Arc;
use std::time::Instant;

/// A walsender: a standby's stream, from its CopyBothResponse to its end.
#[derive(Debug)]
pub struct Sender {
    /// The socket. Operations in flight hold it too.
    pub socket: Fd,
    /// Who it is.
    pub session: Session,
    /// Its place among `max_wal_senders`.
    pub permit: SenderPermit,
    /// Keeps the WAL that is still to be sent.
    pub hold: Hold,
    /// What of it is told upstream.
    pub member: Member,
    /// The timeline it streams.
    pub cell: Arc<Cell>,
    /// How far it has been sent.
    pub cursor: Cursor,
    /// What it says.
    pub talk: Talk,
    /// Small messages that go out at the next message boundary, before more WAL.
    pub outbox: Vec<u8>,
    /// Where it stands between its beginning and its end.
    pub phase: Phase,
    /// A receive in flight.
    pub reading: Option<OpId>,
    /// A wait for room in the socket's buffer.
    pub waiting_room: Option<OpId>,
    /// How it is sent large pieces.
    pub delivery: Delivery,
    /// A send without a copy that the socket has not taken yet.
    pub sending: Option<OpId>,
    /// Sends without a copy whose memory is still in use.
    pub unreleased: u32,
    /// Sends without a copy so far.
    pub zerocopy_sends: u64,
    /// The WAL it needs next has to be read from its file first.
    pub waiting_block: Option<BlockId>,
    /// It talks too much: read on only then.
    pub read_again: Option<Instant>,
    /// Bytes heard since `quota_since`.
    pub heard: usize,
    /// Receives beyond the quota since it was last left unread for a while.
    pub receives: u32,
    /// The beginning of the current second of its talk.
    pub quota_since: Instant,
    /// A hub below that has to look again: its stream ends then.
    pub ends_at: Option<Instant>,
    /// The earliest entry in the core's timer heap.
    pub timer: Option<Instant>,
    /// Has it been sent everything once? (`streaming` after `catchup`.)
    pub pace: Pace,
}

/// How a standby is sent large pieces of WAL from the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// As all the rest: the socket copies them.
    Copied,
    /// The network reads them where they lie.
    Zerocopy,
}

/// `pg_stat_replication.state` of a standby: it never goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// Has not been sent everything yet.
    Catchup,
    /// Was sent everything at least once.
    Streaming,
}

/// Where a stream stands.
#[derive(Debug)]
pub enum Phase {
    /// WAL as it becomes durable.
    Streaming,
    /// The timeline has ended and our CopyDone is out; the client's is awaited.
    TimelineEnded {
        /// What the client will be told.
        end: StreamEnd,
    },
    /// The hub shuts down: the rest of the WAL, then `COPY 0`.
    Stopping,
    /// No new message is begun. When the unfinished one and the outbox are out, it goes.
    Leaving(Farewell),
    /// Its receive is being cancelled; then the socket goes back to the control thread.
    HandingBack {
        /// How the stream ended.
        end: StreamEnd,
        /// Bytes behind the client's CopyDone.
        rest: Vec<u8>,
    },
    /// Our side is shut; what the client still sends is read and dropped, so that the
    /// kernel does not answer it with a reset that destroys what we sent last.
    Draining,
    /// Both sides are shut; operations in flight end, then the socket is closed.
    Closing,
}

/// What happens when everything announced is out.
#[derive(Debug)]
pub enum Farewell {
    /// The connection goes on, on the control thread.
    HandBack {
        /// How the stream ended.
        end: StreamEnd,
        /// Bytes behind the client's CopyDone.
        rest: Vec<u8>,
    },
    /// The connection is closed.
    Close,
}

impl Sender {
    /// May new WAL messages be begun?
    pub const fn sends_wal(&self) -> bool {
        matches!(self.phase, Phase::Streaming | Phase::Stopping)
    }

    /// Is there something to be sent now?
    pub fn is_due(&self) -> bool {
        if self.waiting_room.is_some() || self.sending.is_some() || self.is_parting() {
            return false;
        }
        if self.waiting_block.is_some() {
            // An answer or a ping does not wait for the disk, unless a message is
            // unfinished: nothing may come between its bytes.
            return self.cursor.unfinished().is_none() && !self.outbox.is_empty();
        }
        match self.phase {
            Phase::HandingBack { .. } | Phase::Draining | Phase::Closing => false,
            Phase::TimelineEnded { .. } | Phase::Leaving(_) => self.is_owing(),
            Phase::Streaming | Phase::Stopping => {
                self.is_owing() || self.cursor.next_message() < self.cell.limit()
            }
        }
    }

    /// Was it sent all of a timeline that has ended, and has to be told?
    pub fn is_at_end(&self) -> bool {
        let has_to_be_told = || match self.phase {
            Phase::Streaming => self.cell.next().is_some(),
            Phase::Stopping => true,
            _ => false,
        };
        self.cell.end().is_some_and(|end| end <= self.cursor.next_message())
            && self.waiting_room.is_none()
            && self.sending.is_none()
            && !self.is_owing()
            && has_to_be_told()
    }

    /// Is something announced or queued that has to go out in any case?
    pub fn is_owing(&self) -> bool {
        self.cursor.unfinished().is_some() || !self.outbox.is_empty()
    }

    /// Operations in flight that hold the socket.
    pub const fn is_busy(&self) -> bool {
        self.reading.is_some() || self.waiting_room.is_some() || self.sending.is_some()
    }

    /// Is it on its way out, so that nobody listens to it any more?
    pub const fn is_parting(&self) -> bool {
        matches!(self.phase, Phase::HandingBack { .. } | Phase::Draining | Phase::Closing)
    }
}
