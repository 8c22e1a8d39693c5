//! What passes between the control thread and the data cores: sockets together with every byte
//! already read, and news of how their streams ended.

#[cfg(all(test, walhub_loom))]
mod models;
mod post;
mod queue;

pub use post::ANSWER_DEADLINE;

use self::queue::ArrayQueue;
use super::figures::Inquiry;
use super::receive::NoSwitch;
use crate::hub::SenderPermit;
use crate::keeper::{CoreInbox, JobDone};
use crate::standby::client::{Session, StreamEnd};
use crate::store::RecoveredWal;
use crate::store::retention::Hold;
use crate::upstream::end::UpstreamEnd;
use crate::wal::{Lsn, TimelineId};
use crate::watermark::Cell;
use bytes::BytesMut;
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::oneshot;

/// A standby whose START_REPLICATION was accepted. The core writes the CopyBothResponse, so that
/// the control thread leaves nothing unsent.
#[derive(Debug)]
pub struct StandbyHandoff {
    /// Blocking mode; nothing is pending on it.
    pub socket: OwnedFd,
    /// Bytes read after the command, in order.
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

/// A connection that returns to the control thread after its stream.
#[derive(Debug)]
pub struct Handback {
    /// The same socket; the core has no more operations on it.
    pub socket: OwnedFd,
    /// Bytes received after the client's CopyDone, in order.
    pub unread: BytesMut,
    /// Who it is.
    pub session: Session,
    /// How the stream ended, which determines what is still to be written.
    pub ended: StreamEnd,
    /// Its place among `max_wal_senders`.
    pub permit: SenderPermit,
}

/// The upstream connection after its CopyBothResponse.
#[derive(Debug)]
pub struct UpstreamHandoff {
    /// Blocking mode; nothing is pending on it.
    pub socket: OwnedFd,
    /// Bytes read after the CopyBothResponse, in order.
    pub unread: BytesMut,
    /// Where the stream begins.
    pub start: Lsn,
    /// Its timeline.
    pub tli: TimelineId,
    /// The host, for the log.
    pub host: String,
}

/// What the control thread tells a core.
#[derive(Debug)]
pub enum ToCore {
    /// Stream to this standby.
    Standby(Box<StandbyHandoff>),
    /// Receive from here (core 0).
    Upstream(Box<UpstreamHandoff>),
    /// End the upstream's stream, if any, and report once there is none (core 0).
    RecallUpstream,
    /// Report some figures.
    Tell(Inquiry),
    /// A CancelRequest with the right key: end this stream as PostgreSQL does, with 57014, unless
    /// it has already ended.
    Cancel {
        /// The stream's session.
        pid: u32,
    },
    /// The slot of this session's stream lost its WAL: end it as PostgreSQL does, with 57P01,
    /// unless it has already ended.
    Terminate {
        /// The stream's session.
        pid: u32,
    },
    /// The path above us changed: end the streams of hubs below, so that they check it again.
    EndHubStreams,
    /// The keeper's answer to one of this core's jobs. It comes through a queue of its own.
    Keeper(JobDone),
    /// Our WAL was moved aside: the next upstream stream begins a new line (core 0).
    BeginAnew,
    /// The timeline has been switched on disk: continue with the new one (core 0).
    Switched {
        /// Its WAL.
        wal: Box<RecoveredWal>,
        /// Signalled once standbys can be served from it.
        told: oneshot::Sender<Result<(), NoSwitch>>,
    },
    /// The hub is shutting down: send what is durable, close the streams, end.
    Stop {
        /// Standbys still connected then are cut off.
        deadline: Instant,
    },
}

/// What a core tells the control thread.
#[derive(Debug)]
pub enum ToControl {
    /// A stream ended; its connection continues.
    StandbyEnded(Box<Handback>),
    /// A stream ended with its connection.
    StandbyClosed {
        /// Its session.
        pid: u32,
    },
    /// The upstream stream ended.
    UpstreamEnded(UpstreamEnd),
}

/// How many of the keeper's answers may wait for a core: one for every file that it may have asked
/// for, and one for every order of the receive role that fits into the keeper's queue.
#[cfg(not(walhub_loom))]
const ANSWERS: usize = super::readback::MAX_OPEN + crate::keeper::QUEUE + 64;
#[cfg(walhub_loom)]
const ANSWERS: usize = 1;

/// The control thread's and the keeper's end of a core's bounded queues.
#[derive(Clone)]
pub struct Mailbox {
    queue: Arc<ArrayQueue<ToCore>>,
    answers: Arc<ArrayQueue<JobDone>>,
    wake: Arc<dyn Fn() + Send + Sync>,
}

/// The core's end.
#[derive(Debug)]
pub struct Inbox {
    queue: Arc<ArrayQueue<ToCore>>,
    answers: Arc<ArrayQueue<JobDone>>,
}

/// A queue to a core, and one for the keeper's answers. `wake` must make a core that is about to
/// sleep look again. It is called after the message is in the queue.
pub fn mailbox(capacity: usize, wake: Arc<dyn Fn() + Send + Sync>) -> (Mailbox, Inbox) {
    let queue = Arc::new(ArrayQueue::new(capacity));
    let answers = Arc::new(ArrayQueue::new(ANSWERS));
    let inbox = Inbox { queue: Arc::clone(&queue), answers: Arc::clone(&answers) };
    (Mailbox { queue, answers, wake }, inbox)
}

impl Mailbox {
    /// Puts a message into the queue and wakes the core; returns the message when the queue is
    /// full.
    pub fn post(&self, message: ToCore) -> Result<(), ToCore> {
        let posted = self.queue.push(message);
        (self.wake)();
        posted
    }
}

impl CoreInbox for Mailbox {
    fn answer(&self, done: JobDone) {
        // Only the queue of a core that has ended fills up: nothing empties it.
        drop(self.answers.push(done));
        (self.wake)();
    }
}

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox").field("queued", &self.queue.len()).finish_non_exhaustive()
    }
}

impl Inbox {
    /// The next message; the keeper's answers come first.
    pub fn take(&self) -> Option<ToCore> {
        self.answers.pop().map(ToCore::Keeper).or_else(|| self.queue.pop())
    }

    /// Are both queues empty? A core checks this between raising its sleep flag and sleeping.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.answers.is_empty()
    }
}

#[cfg(all(test, not(walhub_loom)))]
mod tests {
    use super::*;
    use crate::keeper::JobKind;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn a_queue_full_of_messages_has_room_for_the_keepers_answers() {
        let woken = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&woken);
        let wake = move || {
            count.fetch_add(1, Ordering::Relaxed);
        };
        let (mailbox, inbox) = mailbox(2, Arc::new(wake));
        while mailbox.post(ToCore::BeginAnew).is_ok() {}
        for _ in 0..ANSWERS {
            mailbox.answer(JobDone::Done(JobKind::MarkHalted));
        }
        assert_eq!(woken.load(Ordering::Relaxed), 3 + ANSWERS);
        let answers = std::iter::from_fn(|| inbox.take());
        let answers = answers.take_while(|message| matches!(message, ToCore::Keeper(_)));
        assert_eq!(answers.count(), ANSWERS);
        assert!(matches!(inbox.take(), Some(ToCore::BeginAnew)), "one more was taken above");
        assert!(inbox.is_empty());
    }
}
