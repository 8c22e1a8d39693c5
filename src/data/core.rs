//! The loop of a data core.
//!
//! ```text
//! completions -> talk, blocks, receive role -> inbox -> round of sends -> timers -> sleep
//! ```
//!
//! It runs at its own pace: whatever arrived while it was busy is one batch the next
//! time. It sleeps only when nothing is due, after a second look at everything that can
//! make something due (see `watermark`).

use super::blocks::BlockPool;
use super::files::Files;
use super::handoff::{Inbox, StandbyHandoff, ToControl, ToCore, UpstreamHandoff};
use super::io::{Halted, Peer, ReceiveIo};
use super::moment::Moment;
use super::receive::{EXIT_HALTED, Effect, Receiver};
use super::send::Bench;
use super::sender::{Pace, Phase, Sender};
use super::table::{Key, Table};
use super::token::Purpose;
use super::zerocopy::ZerocopyRole;
use crate::fanout::{Cursor, Due, round::Round};
use crate::hub::Hub;
use crate::keeper::{JobDone, KeeperHandle};
use crate::log;
use crate::ring::{ChunkReader, Clock, Done, Outcome, Ring, Wait};
use crate::standby::stream::Talk;
use crate::wal::Lsn;
use crate::watermark::{Bell, Cell};
use crate::wire::backend;
use bytes::BytesMut;
use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tracing::{debug, error, warn};

/// How often a core gives back files that nobody reads any more.
const SWEEP: Duration = Duration::from_secs(10);

/// Everything a core is made of besides its ring.
pub struct CoreParts {
    /// Which core this is; 0 has the receive role.
    pub index: usize,
    /// What the engines share.
    pub hub: Arc<Hub>,
    /// Messages from the control thread and the keeper.
    pub inbox: Inbox,
    /// Rings when somebody has put something there or moved a watermark.
    pub bell: Arc<Bell>,
    /// The newest WAL.
    pub chunks: ChunkReader,
    /// For files.
    pub keeper: KeeperHandle,
    /// News for the control thread.
    pub control: mpsc::Sender<ToControl>,
    /// The receive role, on core 0.
    pub receiver: Option<Receiver>,
    /// The other cores, which the receive role wakes.
    pub peers: Vec<Peer>,
}

/// A data core: the standbys it owns, and on core 0 the receive role.
pub struct DataCore<R: Ring> {
    pub(super) index: usize,
    pub(super) ring: R,
    pub(super) hub: Arc<Hub>,
    pub(super) chunks: ChunkReader,
    pub(super) keeper: KeeperHandle,
    pub(super) receive: Option<ReceiveIo>,
    pub(super) senders: Table<Sender>,
    pub(super) blocks: BlockPool,
    pub(super) files: Files,
    pub(super) round: Round,
    /// Who has to be looked at in the next round.
    pub(super) due: Due,
    pub(super) order: Vec<u32>,
    pub(super) bench: Bench,
    pub(super) zerocopy: ZerocopyRole,
    pub(super) results: Vec<io::Result<usize>>,
    pub(super) max_send_size: usize,
    /// The cells of this core's standbys, as the last round saw them.
    pub(super) seen: Vec<Seen>,
    inbox: Inbox,
    pub(super) bell: Arc<Bell>,
    control: mpsc::Sender<ToControl>,
    /// News that found the control thread's queue full.
    pub(super) unsaid: VecDeque<ToControl>,
    pub(super) timers: BTreeSet<(Instant, Key)>,
    /// Standbys that wait for a block nobody has begun to read yet.
    pub(super) hungry: VecDeque<Key>,
    /// Standbys that were sent from blocks in this pass.
    pub(super) ahead: Vec<Key>,
    /// Who waited for a block that has come; empty between two.
    pub(super) waiting: Vec<Key>,
    /// Standbys whose receive found no buffer.
    pub(super) starved: Vec<Key>,
    pub(super) done: Vec<Done>,
    pub(super) stopping: Option<Stopping>,
    pub(super) clock: R::Clock,
    swept_at: Instant,
}

/// What a round saw of a cell.
#[derive(Debug)]
pub(super) struct Seen {
    cell: Arc<Cell>,
    limit: Lsn,
    followed: Followed,
}

/// Has a cell's timeline ended, and is the next one ready?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Followed {
    NotYet,
    Yes,
}

impl Followed {
    fn of(cell: &Cell) -> Self {
        if cell.next().is_some() { Self::Yes } else { Self::NotYet }
    }
}

impl Seen {
    /// What there is to be seen now.
    pub(super) fn new(cell: &Arc<Cell>) -> Self {
        Self { limit: cell.limit(), followed: Followed::of(cell), cell: Arc::clone(cell) }
    }

    pub(super) fn is_of(&self, cell: &Cell) -> bool {
        self.cell.id() == cell.id()
    }

    /// Has something happened to the cell since?
    pub(super) fn is_outdated(&self) -> bool {
        self.cell.limit() != self.limit || Followed::of(&self.cell) != self.followed
    }
}

/// What a core does after a pass of its loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Looks at everything again.
    Pass,
    /// Sleeps: its bell is armed, and it has looked again since.
    Sleep(Wait),
    /// Ends: everybody has gone.
    End,
    /// Ends, and the process with it.
    Halt,
}

/// The hub shuts down.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stopping {
    /// Whoever is still there then is cut.
    pub deadline: Instant,
    /// Streams are told to end only when no more WAL can come.
    pub told: Told,
}

/// Have this core's streams been told to end?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// WAL that was received may still become durable.
    NotYet,
    /// Yes.
    Yes,
}

impl<R: Ring> DataCore<R> {
    /// A core that has nobody yet.
    pub fn new(ring: R, parts: CoreParts) -> Self {
        let clock = ring.clock();
        let zerocopy = ZerocopyRole::new(parts.hub.config.zerocopy);
        let (keeper, peers) = (parts.keeper.clone(), parts.peers);
        let receive = parts.receiver.map(|role| ReceiveIo::new(role, keeper, peers));
        Self {
            index: parts.index,
            ring,
            max_send_size: parts.hub.config.max_send_size,
            hub: parts.hub,
            chunks: parts.chunks,
            receive,
            keeper: parts.keeper,
            senders: Table::default(),
            blocks: BlockPool::default(),
            files: Files::new(parts.index),
            round: Round::default(),
            due: Due::default(),
            order: Vec::new(),
            bench: Bench::default(),
            zerocopy,
            results: Vec::new(),
            seen: Vec::new(),
            inbox: parts.inbox,
            bell: parts.bell,
            control: parts.control,
            unsaid: VecDeque::new(),
            timers: BTreeSet::new(),
            hungry: VecDeque::new(),
            ahead: Vec::new(),
            waiting: Vec::new(),
            starved: Vec::new(),
            done: Vec::new(),
            stopping: None,
            swept_at: clock.now(),
            clock,
        }
    }

    /// Runs until it was told to stop and everybody has gone.
    ///
    /// # Errors
    /// The ring's own, which nothing can be done about.
    pub fn run(mut self) -> io::Result<()> {
        loop {
            match self.pass()? {
                Next::Pass => {}
                Next::Sleep(wait) => self.sleep(wait)?,
                Next::End => {
                    debug!(core = self.index, "data core stops");
                    return Ok(());
                }
                Next::Halt => log::exit(EXIT_HALTED),
            }
        }
    }

    /// Looks at everything once.
    pub(super) fn pass(&mut self) -> io::Result<Next> {
        self.ring.turn(Wait::No, &mut self.done)?;
        let now = self.clock.now();
        let mut busy = self.complete(now);
        busy |= self.read_inbox(now);
        busy |= self.drive_receiver(now);
        busy |= self.round(now);
        busy |= self.feed_hungry();
        busy |= self.run_timers(now);
        busy |= self.stop_if_told(now);
        self.say_unsaid();
        let halted = self.receive.as_ref().map_or(Halted::No, ReceiveIo::halted);
        Ok(if halted == Halted::ForGood {
            Next::Halt
        } else if self.is_finished(now) {
            Next::End
        } else if busy {
            Next::Pass
        } else {
            Next::Sleep(self.last_look(now))
        })
    }

    /// The second look, with the bell armed: whoever published after the first look saw
    /// that, or is seen here (a store and a fence on either side).
    fn last_look(&mut self, now: Instant) -> Wait {
        self.bell.arm();
        let moved = self.seen.iter().any(Seen::is_outdated);
        let at_rest = self.stopping.is_some_and(|stopping| stopping.told == Told::NotYet)
            && self.hub.is_at_rest();
        let news = self.receive.as_ref().is_some_and(|receive| receive.role.has_missed());
        if moved || at_rest || news || !self.inbox.is_empty() || !self.due.is_empty() {
            Wait::No
        } else {
            self.next_deadline(now).map_or(Wait::Forever, Wait::Until)
        }
    }

    /// Sleeps after [`Next::Sleep`].
    pub(super) fn sleep(&mut self, wait: Wait) -> io::Result<()> {
        let slept = self.ring.turn(wait, &mut self.done);
        self.bell.disarm();
        slept
    }

    fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let timer = self.timers.first().map(|(at, _)| *at);
        // The keeper's queue was full, and its answers go to others.
        let hungry = (!self.hungry.is_empty()).then(|| now + Duration::from_millis(5));
        let receiver = self.receive.as_ref().and_then(|receive| receive.deadline(now));
        let sweep = (!self.senders.is_empty()).then(|| self.swept_at + SWEEP);
        let stop = self.stopping.map(|stopping| stopping.deadline);
        let unsaid = (!self.unsaid.is_empty()).then(|| now + Duration::from_millis(1));
        [timer, receiver, hungry, sweep, stop, unsaid].into_iter().flatten().min()
    }

    fn is_finished(&self, now: Instant) -> bool {
        let Some(stopping) = self.stopping else { return false };
        let receiving = self.receive.as_ref().is_some_and(|receive| !receive.role.is_at_rest());
        let gone = self.senders.is_empty() && !receiving && self.unsaid.is_empty();
        gone || now >= stopping.deadline
    }

    /// Takes the completions that the ring has handed out. Returns whether there were any.
    pub(super) fn complete(&mut self, now: Instant) -> bool {
        let busy = !self.done.is_empty();
        let mut done = std::mem::take(&mut self.done);
        for Done { token, outcome } in done.drain(..) {
            match (Purpose::of(token), outcome) {
                (Some(Purpose::Reply(key)), Outcome::Reply(result)) => {
                    self.heard(key, result, now);
                }
                (Some(Purpose::Room(key)), Outcome::Writable(_)) => self.has_room(key),
                (Some(Purpose::Zerocopy(key)), Outcome::ZeroCopySent(result)) => {
                    self.zerocopy_sent(key, result, now);
                }
                (Some(Purpose::Zerocopy(key)), Outcome::ZeroCopyReleased(copied)) => {
                    self.zerocopy_released(key, copied);
                }
                (Some(Purpose::Block(slot)), Outcome::Read(result, buffer)) => {
                    self.block_loaded(slot, result, buffer);
                }
                (Some(purpose), outcome) => {
                    if let Some(receive) = &mut self.receive {
                        let at = (&mut self.ring, now);
                        receive.complete((purpose, outcome), at, &mut self.unsaid);
                    }
                }
                (None, _) => {}
            }
        }
        // Handlers may have looked at the ring again meanwhile.
        if self.done.is_empty() {
            self.done = done;
        }
        busy
    }

    fn read_inbox(&mut self, now: Instant) -> bool {
        let mut busy = false;
        while let Some(message) = self.inbox.take() {
            busy = true;
            // Whoever only asks changes nothing for the standbys.
            if !matches!(message, ToCore::Tell(_)) {
                self.due.note_all();
            }
            match message {
                ToCore::Standby(handoff) => self.adopt(*handoff, now),
                ToCore::Upstream(handoff) => self.begin_receiving(*handoff, now),
                ToCore::RecallUpstream => {
                    self.tell_receiver(now, Receiver::recall);
                }
                ToCore::Tell(inquiry) => self.answer(inquiry),
                ToCore::Cancel { pid } => self.cancel_stream(pid, now),
                ToCore::Terminate { pid } => self.terminate_stream(pid, now),
                ToCore::EndHubStreams => self.end_hub_streams(now),
                ToCore::Keeper(JobDone::Opened { tli, no, result, .. }) => {
                    if let Err(error) = &result {
                        warn!("could not open WAL segment {} of timeline {tli}: {error}", no.raw());
                        self.file_missing(tli, no, error);
                    }
                    self.files.opened(tli, no, result.ok());
                    self.file_arrived(tli, no);
                }
                ToCore::Keeper(news) => {
                    self.tell_receiver(now, |role, at, out| role.on_keeper(news, at, out));
                }
                ToCore::BeginAnew => {
                    self.tell_receiver(now, |role, _, out| role.begin_anew(out));
                    self.end_streams_set_aside();
                }
                ToCore::Switched { wal, told } => {
                    let gone_on =
                        self.tell_receiver(now, |role, _, out| role.go_on_with(*wal, out));
                    let gone_on =
                        gone_on.unwrap_or_else(|| Err("this core does not receive".to_owned()));
                    // Who asked may have given up; the WAL is the same.
                    drop(told.send(gone_on));
                }
                ToCore::Stop { deadline } => {
                    self.stopping.get_or_insert(Stopping { deadline, told: Told::NotYet });
                    self.tell_receiver(now, Receiver::stop);
                }
            }
        }
        busy
    }

    /// The control thread has an upstream that streams. During shutdown its socket closes
    /// with the hand-over.
    fn begin_receiving(&mut self, handoff: UpstreamHandoff, now: Instant) {
        if let Some(receive) = &mut self.receive
            && self.stopping.is_none()
        {
            receive.connect(handoff, (&mut self.ring, now), &mut self.unsaid);
        }
    }

    /// Has the receive role handle something; none on a core that has not got it.
    fn tell_receiver<T>(
        &mut self,
        now: Instant,
        event: impl FnOnce(&mut Receiver, &Moment<'_, R::Clock>, &mut Vec<Effect>) -> T,
    ) -> Option<T> {
        let receive = self.receive.as_mut()?;
        Some(receive.tell((&mut self.ring, now), &mut self.unsaid, event))
    }

    /// Everything the receive role can do now. Returns whether it did anything.
    fn drive_receiver(&mut self, now: Instant) -> bool {
        let Some(receive) = &mut self.receive else { return false };
        receive.drive((&mut self.ring, now), &mut self.unsaid)
    }

    /// Does this core have the receive role?
    pub(super) const fn is_receiving(&self) -> bool {
        self.receive.is_some()
    }

    /// Is the upstream left unread?
    #[cfg(test)]
    pub(super) fn is_paused(&self) -> bool {
        self.receive.as_ref().is_some_and(|receive| receive.role.is_paused())
    }

    /// Between two submissions: publishes what has become durable meanwhile and starts
    /// the next batch.
    pub(super) fn look_at_receiver(&mut self, now: Instant) {
        if let Err(error) = self.ring.turn(Wait::No, &mut self.done) {
            error!("io_uring: {error}");
        }
        self.complete(now);
        self.drive_receiver(now);
    }

    /// A standby comes from the control thread: its CopyBothResponse is the first thing
    /// it is sent.
    fn adopt(&mut self, handoff: StandbyHandoff, now: Instant) {
        let mut welcome = BytesMut::new();
        backend::copy_both(&mut welcome);
        let socket = Arc::new(handoff.socket);
        let delivery = self.delivery_to(&socket);
        let key = self.senders.insert(Sender {
            socket,
            talk: Talk::new(now, handoff.session.wal_sender_timeout),
            session: handoff.session,
            permit: handoff.permit,
            hold: handoff.hold,
            member: self.hub.fleet.join(),
            cell: handoff.cell,
            cursor: Cursor::new(handoff.start),
            outbox: welcome.to_vec(),
            phase: Phase::Streaming,
            reading: None,
            waiting_room: None,
            delivery,
            sending: None,
            unreleased: 0,
            zerocopy_sends: 0,
            waiting_block: None,
            read_again: None,
            heard: 0,
            receives: 0,
            quota_since: now,
            ends_at: None,
            timer: None,
            pace: Pace::Catchup,
        });
        if !handoff.unread.is_empty() {
            self.listen_to(key, &handoff.unread, now);
        }
        self.read_on(key);
        self.set_timer(key);
        self.end_if_slot_lost(key, now);
        self.end_if_set_aside(key);
        if let Some(Stopping { told: Told::Yes, .. }) = self.stopping {
            self.tell_to_stop(key, now);
        }
    }

    /// Returns whether anything was due: it may have left something to be sent.
    fn run_timers(&mut self, now: Instant) -> bool {
        let mut busy = !self.starved.is_empty();
        while let Some(&(at, key)) = self.timers.first() {
            if at > now {
                break;
            }
            busy = true;
            self.timers.pop_first();
            if let Some(sender) = self.senders.get_mut(key) {
                sender.timer = None;
                self.timer_due(key, now);
                self.due.note(key.index);
                self.set_timer(key);
            }
        }
        for key in std::mem::take(&mut self.starved) {
            self.read_on(key);
        }
        if now.saturating_duration_since(self.swept_at) >= SWEEP {
            self.swept_at = now;
            self.files.sweep();
            self.blocks.shrink();
        }
        busy
    }

    /// Returns whether the streams were told to end just now.
    fn stop_if_told(&mut self, now: Instant) -> bool {
        let Some(stopping) = &mut self.stopping else { return false };
        if stopping.told == Told::Yes {
            return false;
        }
        // Core 0 knows when the last batch is durable; the others wait for its word.
        let last = match &self.receive {
            Some(receive) => receive.role.is_at_rest(),
            None => self.hub.is_at_rest(),
        };
        if !last {
            return false;
        }
        stopping.told = Told::Yes;
        if let Some(receive) = &self.receive {
            self.hub.come_to_rest();
            receive.wake_others();
        }
        self.due.note_all();
        for key in self.senders.keys() {
            self.tell_to_stop(key, now);
        }
        true
    }

    /// Tells the control thread, now or as soon as its queue has room.
    pub(super) fn say(&mut self, news: ToControl) {
        self.unsaid.push_back(news);
        self.say_unsaid();
    }

    fn say_unsaid(&mut self) {
        while let Some(news) = self.unsaid.pop_front() {
            match self.control.try_send(news) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Full(news)) => {
                    self.unsaid.push_front(news);
                    return;
                }
                // The control thread has gone: its sockets close with it.
                Err(mpsc::error::TrySendError::Closed(_)) => {}
            }
        }
    }
}
