//! The loop of a data core.
//!
//! ```text
//! completions -> inbox -> receive role -> round of sends -> read-back -> timers -> sleep
//!                             ▲                  │
//!                             └─ between slices ─┘
//! ```
//!
//! It runs at its own pace: whatever arrived during one pass is a single batch in the next.
//! Completions are collected first and then handled one by one. No role calls another, and none is
//! called while it is at work. A core that receives checks for completions between two slices of
//! sends, so that a synced batch does not wait for a large fleet. The loop sleeps only when nothing
//! is due, after re-checking everything that can make something due (see `watermark`).

use super::context::Context;
use super::figures::{About, Figures, Inquiry};
use super::handoff::{Inbox, ToControl, ToCore, UpstreamHandoff};
use super::io::{Halted, Peer, ReceiveIo};
use super::moment::Moment;
use super::readback::{Arrival, ReadBack};
use super::receive::{EXIT_HALTED, Effect, NoSwitch, Receiver};
use super::send::{SendRole, Slice};
use super::token::Purpose;
use crate::hub::Hub;
use crate::keeper::{CoreClient, JobDone};
use crate::log;
use crate::ring::{ChunkReader, Clock, Done, Outcome, Ring, Wait};
use crate::watermark::Bell;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tracing::debug;

/// How often a core gives back files that are no longer read.
const SWEEP: Duration = Duration::from_secs(10);

/// How soon a core retries after the keeper's queue had no place for a job.
const ASK_AGAIN: Duration = Duration::from_millis(5);

/// How soon a core retries after the control thread's queue had no place for its news.
const SAY_AGAIN: Duration = Duration::from_millis(1);

/// Everything a core is made of besides its ring.
pub struct CoreParts {
    /// Which core this is; 0 has the receive role.
    pub index: usize,
    /// What the engines share.
    pub hub: Arc<Hub>,
    /// Messages from the control thread and the keeper.
    pub inbox: Inbox,
    /// Rung after a message was posted there or a watermark moved.
    pub bell: Arc<Bell>,
    /// The newest WAL.
    pub chunks: ChunkReader,
    /// The way to the keeper, which opens files.
    pub keeper: CoreClient,
    /// News for the control thread.
    pub control: mpsc::Sender<ToControl>,
    /// The receive role, on core 0.
    pub receiver: Option<Receiver>,
    /// The other cores, which the receive role wakes.
    pub peers: Vec<Peer>,
}

/// A data core: its roles, and what they share.
pub struct DataCore<R: Ring> {
    index: usize,
    ring: R,
    clock: R::Clock,
    hub: Arc<Hub>,
    pub(super) receive: Option<ReceiveIo>,
    pub(super) send: SendRole,
    pub(super) readback: ReadBack,
    inbox: Inbox,
    pub(super) bell: Arc<Bell>,
    control: mpsc::Sender<ToControl>,
    /// Messages that did not fit into the control thread's queue.
    news: VecDeque<ToControl>,
    /// Completions that are not handled yet.
    pub(super) done: Vec<Done>,
    /// What has arrived for waiting standbys; empty between two events.
    arrivals: Vec<Arrival>,
    /// The hub is shutting down: standbys still connected at this time are cut off.
    stopping: Option<Instant>,
    swept_at: Instant,
}

/// What a core does after a pass of its loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Looks at everything again.
    Pass,
    /// Sleeps: its bell is armed, and it has re-checked everything since.
    Sleep(Wait),
    /// Ends: every standby has gone.
    End,
    /// Ends, and the process with it.
    Halt,
}

impl<R: Ring> DataCore<R> {
    /// A core without standbys.
    pub fn new(ring: R, parts: CoreParts) -> Self {
        let clock = ring.clock();
        let CoreParts { index, hub, inbox, bell, chunks, keeper, control, receiver, peers } = parts;
        Self {
            index,
            ring,
            receive: receiver.map(|role| ReceiveIo::new(role, keeper.clone(), peers)),
            send: SendRole::new(index, Arc::clone(&hub), chunks),
            readback: ReadBack::new(Arc::clone(&hub), keeper),
            hub,
            inbox,
            bell,
            control,
            news: VecDeque::new(),
            done: Vec::new(),
            arrivals: Vec::new(),
            stopping: None,
            swept_at: clock.now(),
            clock,
        }
    }

    /// Runs until it is told to stop and every standby has gone.
    ///
    /// # Errors
    /// Errors of the ring itself, from which the core cannot recover.
    pub fn run(mut self) -> io::Result<()> {
        loop {
            match self.pass()? {
                Next::Pass => {}
                Next::Sleep(wait) => self.sleep(wait)?,
                Next::End => {
                    debug!(core = self.index, "data core has stopped");
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
        let mut busy = self.handle_completions(now);
        busy |= self.read_inbox(now);
        busy |= self.drive_receiver(now);
        busy |= self.send_round(now)?;
        busy |= self.feed_readers(now);
        busy |= self.run_timers(now);
        busy |= self.stop_if_told(now);
        self.say_news();
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

    /// The second look, with the bell armed. A thread that published after the first look either
    /// saw the armed bell or is seen here (a store and a fence on either side).
    fn last_look(&mut self, now: Instant) -> Wait {
        self.bell.arm();
        let at_rest = self.stopping.is_some() && !self.send.is_stopping() && self.hub.is_at_rest();
        let missed = self.receive.as_ref().is_some_and(|receive| receive.role.has_missed());
        if self.send.is_due() || at_rest || missed || !self.inbox.is_empty() {
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
        let timer = self.send.deadline();
        let receiver = self.receive.as_ref().and_then(|receive| receive.deadline(now));
        let readers = self.readback.is_behind().then(|| now + ASK_AGAIN);
        let sweep = (!self.send.is_empty()).then(|| self.swept_at + SWEEP);
        let news = (!self.news.is_empty()).then(|| now + SAY_AGAIN);
        [timer, receiver, readers, sweep, self.stopping, news].into_iter().flatten().min()
    }

    fn is_finished(&self, now: Instant) -> bool {
        let Some(deadline) = self.stopping else { return false };
        let receiving = self.receive.as_ref().is_some_and(|receive| !receive.role.is_at_rest());
        let gone = self.send.is_empty() && !receiving && self.news.is_empty();
        gone || now >= deadline
    }

    /// Handles the completions that the ring has handed out. Returns whether there were any.
    fn handle_completions(&mut self, now: Instant) -> bool {
        let mut done = std::mem::take(&mut self.done);
        let busy = !done.is_empty();
        for Done { token, outcome } in done.drain(..) {
            if let Some(purpose) = Purpose::of(token) {
                self.handle(purpose, outcome, now);
            }
        }
        // The allocation is reused.
        self.done = done;
        busy
    }

    fn handle(&mut self, purpose: Purpose, outcome: Outcome, now: Instant) {
        let cx = &mut Context { ring: &mut self.ring, now, news: &mut self.news };
        match (purpose, outcome) {
            (Purpose::Reply(key), Outcome::Reply(result)) => self.send.on_reply(key, result, cx),
            (Purpose::Room(key), Outcome::Writable(_)) => self.send.on_room(key, cx),
            (Purpose::Zerocopy(key), Outcome::ZeroCopySent(result)) => {
                self.send.on_zerocopy_sent(key, result, cx);
            }
            (Purpose::Zerocopy(key), Outcome::ZeroCopyReleased(copied)) => {
                self.send.on_zerocopy_released(key, copied);
            }
            (Purpose::Block(slot), Outcome::Read(result, buffer)) => {
                self.readback.on_read(slot, result, buffer, &mut self.arrivals);
                self.deliver_arrivals(now);
            }
            (purpose, outcome) => {
                if let Some(receive) = &mut self.receive {
                    receive.complete(purpose, outcome, cx);
                }
            }
        }
    }

    fn read_inbox(&mut self, now: Instant) -> bool {
        let mut busy = false;
        while let Some(message) = self.inbox.take() {
            busy = true;
            // A query changes nothing for the standbys.
            if !matches!(message, ToCore::Tell(_)) {
                self.send.note_all();
            }
            self.obey(message, now);
        }
        busy
    }

    fn obey(&mut self, message: ToCore, now: Instant) {
        let cx = &mut Context { ring: &mut self.ring, now, news: &mut self.news };
        match message {
            ToCore::Standby(handoff) => self.send.adopt(*handoff, cx),
            ToCore::Upstream(handoff) => self.begin_receiving(*handoff, now),
            ToCore::RecallUpstream => {
                self.tell_receiver(now, Receiver::recall);
            }
            ToCore::Tell(inquiry) => self.answer(inquiry),
            ToCore::Cancel { pid } => self.send.cancel(pid, cx),
            ToCore::Terminate { slot } => self.send.terminate(slot, cx),
            ToCore::EndHubStreams => self.send.end_hub_streams(cx),
            ToCore::Keeper(JobDone::Opened { tli, no, result }) => {
                self.readback.on_opened(tli, no, result, &mut self.arrivals);
                self.deliver_arrivals(now);
            }
            ToCore::Keeper(JobDone::OpenedPartly { tli, no, file, unproved }) => {
                self.readback.on_opened_partly(tli, no, file, unproved);
                self.deliver_arrivals(now);
            }
            ToCore::Keeper(news) => {
                self.tell_receiver(now, |role, at, out| role.on_keeper(news, at.now, out));
            }
            ToCore::BeginAnew => {
                self.send.end_set_aside(cx);
                // Other WAL may come under the same names.
                self.readback.forget_files();
                self.tell_receiver(now, |role, _, out| role.begin_anew(out));
            }
            ToCore::Switched { wal, told } => {
                let gone_on = self.tell_receiver(now, |role, _, out| role.go_on_with(*wal, out));
                let gone_on = gone_on.unwrap_or(Err(NoSwitch::OtherCore));
                // The caller may have given up; the WAL is the same.
                drop(told.send(gone_on));
            }
            ToCore::CutOff { wal, told } => {
                let gone_on =
                    self.tell_receiver(now, |role, _, out| role.go_on_from_seam(*wal, out));
                // The caller may have given up; the WAL is the same.
                drop(told.send(gone_on.unwrap_or(Err(NoSwitch::OtherCore))));
            }
            ToCore::Stop { deadline } => {
                self.stopping.get_or_insert(deadline);
                self.tell_receiver(now, Receiver::stop);
            }
        }
    }

    /// The control thread hands over an upstream that streams. During shutdown the hand-over is
    /// dropped, which closes its socket.
    fn begin_receiving(&mut self, handoff: UpstreamHandoff, now: Instant) {
        if let Some(receive) = &mut self.receive
            && self.stopping.is_none()
        {
            let cx = &mut Context { ring: &mut self.ring, now, news: &mut self.news };
            receive.connect(handoff, cx);
        }
    }

    /// Has the receive role handle something; returns `None` on a core without that role.
    fn tell_receiver<T>(
        &mut self,
        now: Instant,
        event: impl FnOnce(&mut Receiver, &Moment<'_, R::Clock>, &mut Vec<Effect>) -> T,
    ) -> Option<T> {
        let receive = self.receive.as_mut()?;
        let cx = &mut Context { ring: &mut self.ring, now, news: &mut self.news };
        Some(receive.tell(cx, event))
    }

    /// Everything the receive role can do now. Returns whether it did anything.
    fn drive_receiver(&mut self, now: Instant) -> bool {
        let Some(receive) = &mut self.receive else { return false };
        receive.drive(&mut Context { ring: &mut self.ring, now, news: &mut self.news })
    }

    /// Sends once to every standby that is due. Returns whether there was anything to do.
    fn send_round(&mut self, now: Instant) -> io::Result<bool> {
        let cx = &mut Context { ring: &mut self.ring, now, news: &mut self.news };
        let busy = self.send.begin_round(cx);
        loop {
            let cx = &mut Context { ring: &mut self.ring, now, news: &mut self.news };
            if self.send.send_slice(&mut self.readback, cx) == Slice::Over {
                return Ok(busy);
            }
            if self.receive.is_some() {
                self.look_between_slices(now)?;
            }
        }
    }

    /// Publishes what has become durable in the meantime and starts the next batch.
    fn look_between_slices(&mut self, now: Instant) -> io::Result<()> {
        self.ring.turn(Wait::No, &mut self.done)?;
        self.handle_completions(now);
        self.drive_receiver(now);
        Ok(())
    }

    /// Has WAL read for standbys that wait for it. Returns whether more can be read in
    /// another pass.
    fn feed_readers(&mut self, now: Instant) -> bool {
        let Self { ring, send, readback, arrivals, .. } = self;
        let more = readback.feed(ring, send.cache(), |want| send.awaits(want), arrivals);
        self.deliver_arrivals(now);
        more
    }

    fn deliver_arrivals(&mut self, now: Instant) {
        let cx = &mut Context { ring: &mut self.ring, now, news: &mut self.news };
        for arrival in self.arrivals.drain(..) {
            self.send.on_arrival(arrival, cx);
        }
    }

    /// Returns whether anything was due: a timer may leave something to send.
    fn run_timers(&mut self, now: Instant) -> bool {
        let cx = &mut Context { ring: &mut self.ring, now, news: &mut self.news };
        let busy = self.send.run_timers(cx);
        if now.saturating_duration_since(self.swept_at) >= SWEEP {
            self.swept_at = now;
            self.readback.sweep();
        }
        busy
    }

    /// Returns whether this call told the streams to end.
    fn stop_if_told(&mut self, now: Instant) -> bool {
        if self.stopping.is_none() || self.send.is_stopping() {
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
        if let Some(receive) = &self.receive {
            self.hub.come_to_rest();
            receive.wake_others();
        }
        self.send.stop(&mut Context { ring: &mut self.ring, now, news: &mut self.news });
        true
    }

    /// Answers the control thread, with numbers only and never many at a time: a query must not
    /// delay the core's standbys.
    fn answer(&self, Inquiry { about, answer }: Inquiry) {
        let mut figures = Figures::default();
        match about {
            About::Receiver => {
                figures.receiver = self.receive.as_ref().and_then(|receive| receive.role.figures());
            }
            About::Standbys(from) => {
                (figures.standbys, figures.next) = self.send.figures(from);
            }
        }
        // The caller may have given up.
        drop(answer.send(figures));
    }

    /// Tells the control thread as much as its queue has room for.
    fn say_news(&mut self) {
        while let Some(news) = self.news.pop_front() {
            match self.control.try_send(news) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Full(news)) => {
                    self.news.push_front(news);
                    return;
                }
                // The control thread has ended: dropping its news closes the sockets in it.
                Err(mpsc::error::TrySendError::Closed(_)) => {}
            }
        }
    }

    /// Is the upstream left unread?
    #[cfg(all(test, not(walhub_loom)))]
    pub(super) fn is_paused(&self) -> bool {
        self.receive.as_ref().is_some_and(|receive| receive.role.is_paused())
    }
}
