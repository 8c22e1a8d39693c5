//! What passes between the control thread and the data cores: sockets with every
//! byte already read, and news of how their streams ended.

#[cfg(all(test, walhub_loom))]
mod models;
mod queue;

use self::queue::ArrayQueue;
use super::figures::Inquiry;
use crate::hub::SenderPermit;
use crate::instance::InstanceId;
use crate::keeper::JobDone;
use crate::store::RecoveredWal;
use crate::store::retention::Hold;
use crate::wal::{Lsn, TimelineId};
use crate::watermark::Cell;
use crate::wire::refusal::Refusal;
use bytes::BytesMut;
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// A standby whose START_REPLICATION was accepted. The core writes the
/// CopyBothResponse, so that nothing of the control thread's is still unsent.
#[derive(Debug)]
pub struct StandbyHandoff {
    /// Blocking mode; nothing is pending on it.
    pub socket: OwnedFd,
    /// Bytes read behind the command, in order.
    pub unread: BytesMut,
    /// Who it is.
    pub session: Session,
    /// The timeline it asked for.
    pub cell: Arc<Cell>,
    /// The position it asked for; may lie up to one segment ahead of `durable`.
    pub start: Lsn,
    /// Keeps the WAL from `start` on.
    pub hold: Hold,
    /// Its place among `max_wal_senders`.
    pub permit: SenderPermit,
}

/// A replication connection, as far as a stream cares.
#[derive(Debug, Clone)]
pub struct Session {
    /// The number in BackendKeyData, unique among live connections.
    pub pid: u32,
    /// The user name it gave.
    pub user: String,
    /// Its `application_name`.
    pub application_name: String,
    /// Where it comes from, for the log.
    pub peer: String,
    /// Zero switches it off.
    pub wal_sender_timeout: Duration,
    /// Its ID when it is a hub.
    pub instance: Option<InstanceId>,
}

/// A connection that goes back to the control thread after its stream.
#[derive(Debug)]
pub struct Handback {
    /// The same socket; the core has no operation on it any more.
    pub socket: OwnedFd,
    /// Bytes received behind the client's CopyDone, in order.
    pub unread: BytesMut,
    /// Who it is.
    pub session: Session,
    /// How the stream ended, and so what is still to be written.
    pub ended: StreamEnd,
    /// Its place among `max_wal_senders`.
    pub permit: SenderPermit,
}

/// How a stream ended that leaves its connection usable.
#[derive(Debug)]
pub enum StreamEnd {
    /// The client sent CopyDone and has our CopyDone; two CommandComplete and
    /// ReadyForQuery are to follow.
    ClientDone,
    /// The timeline ended. Both CopyDones are exchanged; the row with the next
    /// timeline, two CommandComplete and ReadyForQuery are to follow.
    Timeline {
        /// The next timeline.
        next: TimelineId,
        /// Where it forks off.
        at: Lsn,
    },
    /// An error ended it; ErrorResponse and ReadyForQuery are to follow, no CopyDone.
    Failed(Refusal),
}

/// The upstream connection after its CopyBothResponse.
#[derive(Debug)]
pub struct UpstreamHandoff {
    /// Blocking mode; nothing is pending on it.
    pub socket: OwnedFd,
    /// Bytes read behind the CopyBothResponse, in order.
    pub unread: BytesMut,
    /// Where the stream begins.
    pub start: Lsn,
    /// Its timeline.
    pub tli: TimelineId,
    /// The host, for the log.
    pub host: String,
}

/// How the upstream stream ended. The receive role has set the hub's position before.
#[derive(Debug)]
pub enum UpstreamEnd {
    /// The connection broke, or what came on it was no protocol.
    Lost {
        /// What went wrong.
        error: String,
        /// What had been received.
        at: Lsn,
    },
    /// Nothing came for `wal_receiver_timeout`.
    TimedOut,
    /// The upstream ended the timeline.
    Timeline {
        /// The timeline that follows.
        next: TimelineId,
        /// Where it forks off.
        at: Lsn,
    },
    /// The upstream has other bytes under positions that we hold.
    Diverged {
        /// The first such position.
        at: Lsn,
        /// What differs.
        detail: String,
    },
    /// The upstream answered with an error inside the stream.
    Refused {
        /// Its SQLSTATE.
        sqlstate: String,
        /// Its words.
        message: String,
    },
    /// Our disk is full; the batch was dropped.
    NoSpace,
    /// There is no stream any more, as [`ToCore::RecallUpstream`] wants it: said once for
    /// each, behind the end of a stream that was there.
    Recalled,
    /// We are shutting down.
    Stopped,
}

/// What the control thread tells a core.
#[derive(Debug)]
pub enum ToCore {
    /// Stream to this standby.
    Standby(Box<StandbyHandoff>),
    /// Receive from here (core 0).
    Upstream(Box<UpstreamHandoff>),
    /// End the upstream's stream, if there is one, and say when there is none (core 0).
    RecallUpstream,
    /// Tell some figures.
    Tell(Inquiry),
    /// A CancelRequest with the right key: end this stream as PostgreSQL does, with
    /// 57014, unless it has ended meanwhile.
    Cancel {
        /// The stream's session.
        pid: u32,
    },
    /// The slot of this session's stream lost its WAL: end it as PostgreSQL does, with
    /// 57P01, unless it has ended meanwhile.
    Terminate {
        /// The stream's session.
        pid: u32,
    },
    /// The path above us changed: end the streams of hubs, so that they check again.
    EndHubStreams,
    /// The keeper's answer to a job of this core's.
    Keeper(JobDone),
    /// Our WAL was moved aside: the next upstream stream begins a new line (core 0).
    BeginAnew,
    /// The timeline is another one now, on disk: go on with it (core 0).
    Switched {
        /// Its WAL.
        wal: Box<RecoveredWal>,
        /// Told when standbys can be served from it.
        told: oneshot::Sender<Result<(), String>>,
    },
    /// The hub shuts down: send what is durable, say goodbye, end.
    Stop {
        /// Whoever is still there then is cut.
        deadline: Instant,
    },
}

/// What a core tells the control thread.
#[derive(Debug)]
pub enum ToControl {
    /// A stream ended, the connection goes on.
    StandbyEnded(Box<Handback>),
    /// A stream ended with its connection.
    StandbyClosed {
        /// Its session.
        pid: u32,
    },
    /// The upstream stream ended.
    UpstreamEnded(UpstreamEnd),
}

/// The control thread's and the keeper's end of a core's bounded queue.
#[derive(Clone)]
pub struct Mailbox {
    queue: Arc<ArrayQueue<ToCore>>,
    wake: Arc<dyn Fn() + Send + Sync>,
}

/// The core's end.
#[derive(Debug)]
pub struct Inbox {
    queue: Arc<ArrayQueue<ToCore>>,
}

/// A queue to a core. `wake` must make a core that is about to sleep look again: the
/// message is in the queue before it is called.
pub fn mailbox(capacity: usize, wake: Arc<dyn Fn() + Send + Sync>) -> (Mailbox, Inbox) {
    let queue = Arc::new(ArrayQueue::new(capacity));
    (Mailbox { queue: Arc::clone(&queue), wake }, Inbox { queue })
}

impl Mailbox {
    /// Puts a message into the queue and wakes the core; gives it back when the
    /// queue is full.
    pub fn post(&self, message: ToCore) -> Result<(), ToCore> {
        let posted = self.queue.push(message);
        (self.wake)();
        posted
    }
}

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox").field("queued", &self.queue.len()).finish_non_exhaustive()
    }
}

impl Inbox {
    /// The next message.
    pub fn take(&self) -> Option<ToCore> {
        self.queue.pop()
    }

    /// Is nothing there? A core looks here between raising its sleep flag and
    /// sleeping.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}
