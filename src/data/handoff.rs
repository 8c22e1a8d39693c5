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
use crate::keeper::{AnswerInbox, JobDone};
use crate::standby::client::{Session, StreamEnd};
use crate::store::RecoveredWal;
use crate::store::evidence::WalSource;
use crate::store::retention::Hold;
use crate::store::slots::{SlotSession, SlotToken};
use crate::upstream::end::UpstreamEnd;
use crate::wal::{Lsn, TimelineId};
use crate::watermark::Cell;
use bytes::BytesMut;
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;
use tokio::sync::{Notify, oneshot};

/// A standby whose START_REPLICATION was accepted. The core writes the CopyBothResponse, so that
/// the control thread leaves nothing unsent.
///
/// One that is dropped gives back what it has of the hub before it closes its socket, which is the
/// last field.
#[derive(Debug)]
pub struct StandbyHandoff {
    /// Who it is.
    pub session: Session,
    /// The timeline it asked for.
    pub cell: Arc<Cell>,
    /// The position it asked for; may lie up to one segment ahead of `durable`.
    pub start: Lsn,
    /// It is sent nothing past this before it has said that it is not past it.
    pub seam: Option<Lsn>,
    /// Keeps the WAL from `start` on.
    pub hold: Hold,
    /// Its place among `max_wal_senders`.
    pub permit: SenderPermit,
    /// Whose temporary slots go when the core closes the connection.
    pub slots: SlotSession,
    /// Bytes read after the command, in order.
    pub unread: BytesMut,
    /// Blocking mode; nothing is pending on it.
    pub socket: OwnedFd,
}

/// A connection that returns to the control thread after its stream. All that the stream had of
/// the hub is given back; dropped, the connection's place is given back before its socket closes.
#[derive(Debug)]
pub struct Handback {
    /// Bytes received after the client's CopyDone, in order.
    pub unread: BytesMut,
    /// Who it is.
    pub session: Session,
    /// How the stream ended, which determines what is still to be written.
    pub ended: StreamEnd,
    /// Its place among `max_wal_senders`.
    pub permit: SenderPermit,
    /// The same socket; the core has no more operations on it.
    pub socket: OwnedFd,
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
    /// Whose it is.
    pub source: WalSource,
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
    /// The slot lost its WAL: end the stream that uses it as PostgreSQL does, with 57P01, unless
    /// it has already ended.
    Terminate {
        /// The stream's use of the slot.
        slot: SlotToken,
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
    /// Our WAL past a seam has been set aside on disk, and no standby streams: continue from there
    /// (core 0).
    CutOff {
        /// What is left.
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

/// How many answers of the keeper a core may have outstanding: one for every file that it may have
/// asked for, and one for every order of the receive role that fits into the keeper's queue. A job
/// beyond that is not given.
#[cfg(not(walhub_loom))]
const ANSWERS: usize = super::readback::MAX_OPEN + crate::keeper::QUEUE + 64;
#[cfg(walhub_loom)]
const ANSWERS: usize = 1;

/// The control thread's and the keeper's end of a core's bounded queues.
#[derive(Clone)]
pub struct Mailbox {
    queue: Arc<ArrayQueue<ToCore>>,
    /// Notified of each message that is taken out.
    room: Arc<Notify>,
    answers: Arc<Answers>,
    wake: Arc<dyn Fn() + Send + Sync>,
}

/// The keeper's answers. Each has a place from the time when its job is given until the core takes
/// it, so that the queue is never full (I10).
#[derive(Debug)]
struct Answers {
    queue: ArrayQueue<JobDone>,
    /// Places that are reserved.
    reserved: AtomicUsize,
}

/// The core's end.
#[derive(Debug)]
pub struct Inbox {
    queue: Arc<ArrayQueue<ToCore>>,
    room: Arc<Notify>,
    answers: Arc<Answers>,
}

/// A queue to a core, and one for the keeper's answers. `wake` must make a core that is about to
/// sleep look again. It is called after the message is in the queue.
pub fn mailbox(capacity: usize, wake: Arc<dyn Fn() + Send + Sync>) -> (Mailbox, Inbox) {
    let queue = Arc::new(ArrayQueue::new(capacity));
    let room = Arc::new(Notify::new());
    let answers = Answers { queue: ArrayQueue::new(ANSWERS), reserved: AtomicUsize::new(0) };
    let answers = Arc::new(answers);
    let (theirs, its) = (Arc::clone(&queue), Arc::clone(&room));
    let inbox = Inbox { queue: theirs, room: its, answers: Arc::clone(&answers) };
    (Mailbox { queue, room, answers, wake }, inbox)
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

impl AnswerInbox for Mailbox {
    fn reserve(&self) -> bool {
        let reserved = &self.answers.reserved;
        let more = |count| (count < ANSWERS).then_some(count + 1);
        // The core itself reserves and frees the places.
        reserved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    fn release(&self) {
        self.answers.reserved.fetch_sub(1, Ordering::Relaxed);
    }

    fn answer(&self, done: JobDone) {
        let pushed = self.answers.queue.push(done);
        assert!(pushed.is_ok(), "I10: an answer of the keeper has no place in its core's queue");
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
        if let Some(done) = self.answers.queue.pop() {
            self.answers.reserved.fetch_sub(1, Ordering::Relaxed);
            return Some(ToCore::Keeper(done));
        }
        let message = self.queue.pop()?;
        self.room.notify_one();
        Some(message)
    }

    /// Are both queues empty? A core checks this between raising its sleep flag and sleeping.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.answers.queue.is_empty()
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
            assert!(mailbox.reserve());
        }
        assert!(!mailbox.reserve(), "a job whose answer has no place is not given");
        for _ in 0..ANSWERS {
            mailbox.answer(JobDone::Done(JobKind::MarkHalted));
        }
        assert_eq!(woken.load(Ordering::Relaxed), 3 + ANSWERS);
        let answers = std::iter::from_fn(|| inbox.take());
        let answers = answers.take_while(|message| matches!(message, ToCore::Keeper(_)));
        assert_eq!(answers.count(), ANSWERS);
        assert!(matches!(inbox.take(), Some(ToCore::BeginAnew)), "one more was taken above");
        assert!(inbox.is_empty());
        assert!(mailbox.reserve(), "the places are free again");
    }

    /// The runtime has no timer: only the core's taking a message out can wake those who wait.
    #[test]
    fn who_finds_a_full_queue_is_woken_when_there_is_room() {
        let (mailbox, inbox) = mailbox(1, Arc::new(|| {}));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let senders = (0..3).map(|pid| {
                let mailbox = mailbox.clone();
                tokio::spawn(async move { mailbox.insist(ToCore::Cancel { pid }).await })
            });
            let senders: Vec<_> = senders.collect();
            let core = std::thread::spawn(move || {
                let mut taken = 0;
                while taken < 3 {
                    match inbox.take() {
                        Some(_) => taken += 1,
                        None => std::thread::yield_now(),
                    }
                }
            });
            for sender in senders {
                sender.await.unwrap();
            }
            core.join().unwrap();
        });
    }
}
