//! The role itself: its state, and what each event does to it.
//!
//! Nothing is stored before it has passed the walk (page headers, record CRCs, links to the
//! previous record), and nothing is published before its batch is synced.

use super::effect::{Effect, Goodbye, ToUpstream};
use super::fault::NoSwitch;
use super::link::{Acknowledged, Offer, StreamLink};
use super::store::{Appended, Setback, Store, line};
use crate::data::figures::ReceiverFigures;
use crate::data::moment::Moment;
use crate::hub::Hub;
use crate::keeper::{Job, JobDone, JobKind};
use crate::ring::{ChunkWriter, Clock, Fd};
use crate::store::RecoveredWal;
use crate::store::append::{Action, WriteId};
use crate::store::retention::Receiving;
use crate::upstream::apply::ApplyReport;
use crate::upstream::end::UpstreamEnd;
use crate::upstream::position::Position;
use crate::upstream::stream::{Due, StreamMessage, next_message};
use crate::wal::{Lsn, SegmentNo, TimelineId};
use crate::wire::copy::ReplyRequest;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::{error, info, warn};

/// How long the keeper may take to write the `halted` marker before the process ends
/// without it.
const HALT_PATIENCE: Duration = Duration::from_secs(5);

/// Exit status after a failed sync, once the `halted` marker has been dealt with.
pub const EXIT_HALTED: i32 = 3;

/// The receive role of core 0. `F` is an open file.
pub struct Receiver<F = Fd> {
    hub: Arc<Hub>,
    writer: ChunkWriter,
    store: Option<Store<F>>,
    link: Option<StreamLink>,
    /// The stream has ended. The end is reported when the received WAL is durable.
    ended: Option<UpstreamEnd>,
    recall: Recall,
    /// The appender's actions; empty between two events.
    actions: Vec<Action>,
    halted_at: Option<Instant>,
    /// What is reported about the standbys' replay.
    apply: ApplyReport,
}

/// Is the control thread waiting until there is no stream?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Recall {
    No,
    Asked,
}

/// The outcome of an offered stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "the socket of a stream that was refused is to be closed"]
pub enum Admission {
    /// The role receives from it.
    Accepted,
    /// It does not.
    Refused,
}

/// The outcome of taking a message.
enum Taken {
    /// It was taken.
    Yes,
    /// There is no room for it until more is durable.
    NotYet,
    /// The stream ends.
    End(UpstreamEnd),
}

impl<F: Clone> Receiver<F> {
    /// A receive role whose newest WAL is in `writer`; `store` is `None` for an empty directory.
    pub fn new(hub: Arc<Hub>, writer: ChunkWriter, store: Option<Store<F>>) -> Self {
        let apply = ApplyReport::new(hub.config.feedback.report_apply);
        Self {
            hub,
            writer,
            store,
            link: None,
            ended: None,
            recall: Recall::No,
            actions: Vec::new(),
            halted_at: None,
            apply,
        }
    }

    /// The WAL of the current timeline; `None` before the first WAL.
    pub const fn store(&self) -> Option<&Store<F>> {
        self.store.as_ref()
    }

    /// The role's positions; `None` before the first WAL.
    pub fn figures(&self) -> Option<ReceiverFigures> {
        let store = self.store.as_ref()?;
        Some(ReceiverFigures {
            tli: store.cell.tli(),
            received: store.received(),
            written: store.appender.written_upto(),
            durable: store.appender.durable().lsn(),
            record_end: store.record_end(),
            needed: self.link.as_ref().and_then(StreamLink::told_need),
        })
    }

    /// Is there no connection, and is all received WAL durable or dropped?
    pub fn is_at_rest(&self) -> bool {
        let stored = self.store.as_ref().is_none_or(|store| {
            store.appender.settled() || store.appender.out_of_space() || store.appender.halted()
        });
        self.link.is_none() && self.ended.is_none() && stored
    }

    /// May the stream be read further? A paused stream's next message stays in the buffer and must
    /// be offered again: the upstream may have nothing more to send when there is room again.
    pub fn is_reading(&self) -> bool {
        self.link.as_ref().is_some_and(|link| !link.timers.is_paused())
    }

    /// Is there a stream that is left unread because too much WAL is not durable yet?
    pub fn is_paused(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.timers.is_paused())
    }

    /// Has something happened to the standbys since the last look that may have to be sent
    /// upstream?
    pub fn has_missed(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.has_missed(&self.hub.fleet))
    }

    /// The latest time at which the role must be driven again.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        let link = self.link.as_ref().and_then(|link| link.deadline(now));
        let halted = self.halted_at.map(|at| at + HALT_PATIENCE);
        // Other cores' pins keep the cache full, and no bell rings when they are gone.
        let pinned =
            self.is_paused() && self.store.as_ref().is_none_or(|store| store.appender.idle());
        let soon = pinned.then(|| now + Duration::from_millis(1));
        [link, halted, soon].into_iter().flatten().min()
    }

    /// The control thread offers an upstream that streams.
    pub fn on_offer(
        &mut self,
        offer: Offer,
        at: &Moment<'_, impl Clock>,
        out: &mut Vec<Effect<F>>,
    ) -> Admission {
        if self.link.is_some() || self.ended.is_some() {
            return Admission::Refused;
        }
        if let Err(end) = self.prepare_store(&offer) {
            self.act(at.now, out);
            out.push(Effect::Ended(end));
            return Admission::Refused;
        }
        self.link = Some(StreamLink::new(offer, &self.hub.config, at.now));
        self.look_at_fleet(at, out);
        self.tell_status(ReplyRequest::No, at, out);
        self.act(at.now, out);
        Admission::Accepted
    }

    /// Makes the store ready for the offered stream. Bytes are never joined across a hole or across
    /// timelines (I1), nor while it is unknown whose history is ours (I13).
    fn prepare_store(&mut self, offer: &Offer) -> Result<(), UpstreamEnd> {
        let Offer { tli, start, .. } = *offer;
        if let Some(difference) = self.hub.course.evidence().against(&offer.source) {
            let error = format!(
                "no stream of {} begins while a difference stands, at {} on timeline {}",
                offer.source.name, difference.at, difference.tli
            );
            return Err(UpstreamEnd::Lost { error, at: start });
        }
        let store = match &mut self.store {
            Some(store) => store,
            none => {
                let wal_buffers = self.hub.config.wal_buffers;
                let store = Store::begin(&self.hub, tli, start, &mut self.writer, wal_buffers)?;
                none.insert(store)
            }
        };
        if store.appender.out_of_space() {
            store.appender.resume(&mut self.actions);
        }
        store.appender.warm_up(&mut self.actions);
        if tli != store.cell.tli() || start > store.received() {
            let error = format!(
                "the stream begins at {start} on timeline {tli}, past the end of this hub's WAL at \
                 {} on timeline {}",
                store.received(),
                store.cell.tli()
            );
            return Err(UpstreamEnd::Lost { error, at: start });
        }
        Ok(())
    }

    /// Takes the stream's bytes, from the first that was not taken yet. Returns how many were
    /// taken; the others must be offered again, with those that follow.
    pub fn on_bytes(&mut self, bytes: &[u8], now: Instant, out: &mut Vec<Effect<F>>) -> usize {
        let mut taken = 0;
        let end = loop {
            match next_message(bytes.get(taken..).unwrap_or_default()) {
                Ok(None) => break None,
                Ok(Some((told, len))) => match self.take(told, now, out) {
                    Taken::Yes => taken += len,
                    Taken::NotYet => break None,
                    Taken::End(end) => break Some(end),
                },
                Err(fault) => {
                    break Some(UpstreamEnd::Lost {
                        error: fault.to_string(),
                        at: self.expected(),
                    });
                }
            }
        };
        if let Some(end) = end {
            self.end_stream(end, out);
        }
        self.act(now, out);
        taken
    }

    /// Takes one message of the stream.
    fn take(&mut self, told: StreamMessage<'_>, now: Instant, out: &mut Vec<Effect<F>>) -> Taken {
        let Some(link) = &mut self.link else { return Taken::Yes };
        link.timers.heard(now);
        match told {
            StreamMessage::Nothing => Taken::Yes,
            StreamMessage::ReplyWanted => {
                link.note_asked();
                Taken::Yes
            }
            StreamMessage::Wal { start, wal } => self.take_wal(start, wal, now),
            StreamMessage::CopyDone => {
                out.push(Effect::Tell(ToUpstream::CopyDone));
                link.next = Some(UpstreamEnd::Lost {
                    error: "upstream ended the stream without naming a next timeline".to_owned(),
                    at: link.expected,
                });
                Taken::Yes
            }
            StreamMessage::Next { tli, at } => Taken::End(UpstreamEnd::Timeline { next: tli, at }),
            StreamMessage::Error(error) => Taken::End(UpstreamEnd::Refused {
                sqlstate: error.sqlstate,
                message: error.message,
            }),
            StreamMessage::ShutDown => Taken::End(UpstreamEnd::Lost {
                error: "replication terminated by upstream server".to_owned(),
                at: link.expected,
            }),
        }
    }

    fn take_wal(&mut self, start: Lsn, wal: &[u8], now: Instant) -> Taken {
        let (Some(link), Some(store)) = (&mut self.link, &mut self.store) else {
            return Taken::Yes;
        };
        let lost = |error: String, at| Taken::End(UpstreamEnd::Lost { error, at });
        if link.next.is_some() {
            return Taken::Yes;
        }
        if start != link.expected {
            return lost(
                format!("upstream sent WAL at {start}, expected {}", link.expected),
                start,
            );
        }
        let Some(end) = start.checked_add(wal.len() as u64) else {
            return lost("upstream sent WAL past the last possible position".to_owned(), start);
        };
        let received = store.received();
        let known = (received.bytes_since(start) as usize).min(wal.len());
        let (overlap, new) = wal.split_at(known);
        if let Err(end) = store.compare(&self.writer, start, overlap) {
            return Taken::End(end);
        }
        // Half of the buffers; anything beyond that waits in the upstream's socket (I10).
        let most = (self.hub.config.wal_buffers / 2) as u64;
        let unsynced = received.bytes_since(store.appender.durable().lsn());
        if unsynced > 0 && unsynced + new.len() as u64 > most {
            link.timers.pause(now);
            return Taken::NotYet;
        }
        if !new.is_empty() {
            // The keeper has found the disk full.
            if self.hub.receiving() == Receiving::Paused {
                return Taken::End(UpstreamEnd::NoSpace);
            }
            match store.append(&mut self.writer, new) {
                Ok(Appended::Taken) => store.appender.received(end, &mut self.actions),
                Ok(Appended::NoRoom) => {
                    link.timers.pause(now);
                    return Taken::NotYet;
                }
                Err(end) => return Taken::End(end),
            }
        }
        link.timers.resume(now);
        link.expected = end;
        Taken::Yes
    }

    /// The connection broke, or the upstream does not read our replies.
    pub fn on_lost(&mut self, error: String, out: &mut Vec<Effect<F>>) {
        self.end_stream(UpstreamEnd::Lost { error, at: self.expected() }, out);
    }

    /// A write completed.
    pub fn on_written(
        &mut self,
        id: WriteId,
        result: io::Result<usize>,
        now: Instant,
        out: &mut Vec<Effect<F>>,
    ) {
        if let Some(store) = &mut self.store {
            store.appender.written(id, result, &mut self.actions);
            self.act(now, out);
        }
    }

    /// A sync completed.
    pub fn on_synced(
        &mut self,
        segment: SegmentNo,
        result: io::Result<()>,
        now: Instant,
        out: &mut Vec<Effect<F>>,
    ) {
        if let Some(store) = &mut self.store {
            store.appender.synced(segment, result, &mut self.actions);
            self.act(now, out);
        }
    }

    /// The keeper answers.
    pub fn on_keeper(&mut self, news: JobDone<F>, now: Instant, out: &mut Vec<Effect<F>>) {
        if let JobDone::Done(JobKind::MarkHalted)
        | JobDone::Failed { job: JobKind::MarkHalted, .. } = news
        {
            error!("terminating because WAL could not be made durable");
            return out.push(Effect::Halt);
        }
        let Some(store) = &mut self.store else { return };
        // An answer about a timeline that was left in the meantime does not concern this one.
        if timeline_of(&news).is_some_and(|tli| tli != store.appender.tli()) {
            return;
        }
        let actions = &mut self.actions;
        match news {
            JobDone::Prepared { no, file, .. } => {
                store.files.insert(no, file);
                store.appender.segment_ready(no, actions);
            }
            JobDone::Finalized { no, .. } => {
                store.appender.finalized(no);
            }
            JobDone::Begun { begun, .. } => store.appender.begun(Ok(begun), actions),
            JobDone::Failed { job: JobKind::Prepare { no, .. }, error } => {
                store.appender.prepare_failed(no, &error, actions);
            }
            JobDone::Failed { job: JobKind::Finalize { no, .. }, error } => {
                store.appender.finalize_failed(no, &error, actions);
            }
            JobDone::Failed { job: JobKind::Begin { .. }, error } => {
                store.appender.begun(Err(&error), actions);
            }
            JobDone::Failed { job, error } => warn!("could not {job}: {error}"),
            JobDone::Done(_)
            | JobDone::Opened { .. }
            | JobDone::OpenedPartly { .. }
            | JobDone::Adopted { .. }
            | JobDone::Foreseen(_)
            | JobDone::Switched(_)
            | JobDone::CutOff { .. } => {}
        }
        self.act(now, out);
    }

    /// Carries out the appender's actions, or has them carried out.
    fn act(&mut self, now: Instant, out: &mut Vec<Effect<F>>) {
        let mut actions = std::mem::take(&mut self.actions);
        for action in actions.drain(..) {
            let Some(store) = &mut self.store else { continue };
            match store.carry_out(action, &mut self.writer, out) {
                None => {}
                Some(Setback::NoSpace(lsn)) => {
                    warn!(
                        "no space left for WAL: discarding the received WAL after {lsn}, the \
                         durable position"
                    );
                    self.end_stream(UpstreamEnd::NoSpace, out);
                }
                Some(Setback::Halted { durable, reason }) => {
                    error!(
                        "PANIC: {reason}; no WAL after {durable} will be acknowledged or served, \
                         and the hub terminates"
                    );
                    self.halted_at = Some(now);
                    let reason = reason.to_string();
                    out.push(Effect::UrgentJob(Job::MarkHalted { durable, reason }));
                }
            }
        }
        // The allocation is reused.
        self.actions = actions;
    }

    /// Sends the upstream what it is owed by now. Gives up an upstream that is silent, or that our
    /// disk has kept waiting for too long.
    pub fn on_time(&mut self, at: &Moment<'_, impl Clock>, out: &mut Vec<Effect<F>>) {
        self.look_at_fleet(at, out);
        let owes = |link: &StreamLink| self.positions().is_some_and(|now| link.owes_status(now));
        if self.link.as_ref().is_some_and(owes) {
            self.tell_status(ReplyRequest::No, at, out);
        }
        match self.link.as_mut().map_or(Due::Nothing, |link| link.due(at.now)) {
            Due::Nothing => {}
            Due::Status(reply) => self.tell_status(reply, at, out),
            Due::GiveUp => self.end_stream(UpstreamEnd::TimedOut, out),
            Due::DiskTooSlow(unread) => self.on_lost(
                format!("disk too slow: nothing was read from the upstream for {unread:.1?}"),
                out,
            ),
        }
    }

    /// Sends the current status. Write and flush are both the durable position: nobody can rely on
    /// WAL that is only in our memory.
    fn tell_status(
        &mut self,
        reply: ReplyRequest,
        at: &Moment<'_, impl Clock>,
        out: &mut Vec<Effect<F>>,
    ) {
        if let (Some(positions), Some(link)) = (self.positions(), &mut self.link) {
            link.tell_status(positions, reply, at, out);
        }
    }

    /// This hub's positions, as reported to the upstream (I5).
    fn positions(&self) -> Option<Acknowledged> {
        let appender = &self.store.as_ref()?.appender;
        let (write, flush) = (appender.durable(), appender.flush_reportable());
        Some(Acknowledged { write, flush, apply: self.apply.value(flush.lsn()) })
    }

    fn look_at_fleet(&mut self, at: &Moment<'_, impl Clock>, out: &mut Vec<Effect<F>>) {
        if let Some(link) = &mut self.link {
            link.look_at_fleet(&self.hub.fleet, &mut self.apply, at, out);
        }
    }

    /// The next byte of the stream; 0/0 without one.
    fn expected(&self) -> Lsn {
        self.link.as_ref().map_or(Lsn::INVALID, |link| link.expected)
    }

    /// Closes the upstream connection. The end is reported when the received WAL is durable.
    fn end_stream(&mut self, end: UpstreamEnd, out: &mut Vec<Effect<F>>) {
        let Some(link) = self.link.take() else { return };
        let goodbye = match end {
            UpstreamEnd::Stopped | UpstreamEnd::Recalled | UpstreamEnd::Timeline { .. } => {
                Goodbye::Terminate
            }
            _ => Goodbye::Silent,
        };
        out.push(Effect::Disconnect(goodbye));
        info!(host = %link.host, at = %link.expected, "stream from upstream ended");
        let end = match link.next {
            Some(next) if !matches!(end, UpstreamEnd::Timeline { .. }) => next,
            _ => end,
        };
        self.ended.get_or_insert(end);
    }

    /// Reports what has ended: a stream once all of it is durable; then, if it was recalled, that
    /// there is none; and the process, when the keeper has had its time for the `halted` marker.
    pub fn finish(&mut self, now: Instant, out: &mut Vec<Effect<F>>) {
        self.report_ended(out);
        if self.recall == Recall::Asked && self.link.is_none() && self.ended.is_none() {
            self.recall = Recall::No;
            out.push(Effect::Ended(UpstreamEnd::Recalled));
        }
        let halted_for = self.halted_at.map(|at| now.saturating_duration_since(at));
        if halted_for.is_some_and(|halted_for| halted_for >= HALT_PATIENCE) {
            error!("could not write the halted marker in time; terminating without it");
            out.push(Effect::Halt);
        }
    }

    fn report_ended(&mut self, out: &mut Vec<Effect<F>>) {
        if self.ended.is_none() || self.halted_at.is_some() {
            return;
        }
        if let Some(store) = &self.store {
            let appender = &store.appender;
            if !(appender.settled() || appender.out_of_space()) {
                return;
            }
            self.hub.set_position(Position::At {
                tli: store.cell.tli(),
                durable: appender.durable().lsn(),
                start: store.start_of_next(&self.writer),
            });
        }
        // A recalled stream is reported once, as `Recalled`.
        let end = self.ended.take().filter(|end| !matches!(end, UpstreamEnd::Recalled));
        out.extend(end.map(Effect::Ended));
    }

    /// First half of the shutdown: no more WAL comes in.
    pub fn stop(&mut self, at: &Moment<'_, impl Clock>, out: &mut Vec<Effect<F>>) {
        self.tell_status(ReplyRequest::No, at, out);
        self.end_stream(UpstreamEnd::Stopped, out);
    }

    /// The control thread wants no more WAL from any upstream. Received WAL still becomes durable.
    /// What is durable now is acknowledged, and nothing after that.
    pub fn recall(&mut self, at: &Moment<'_, impl Clock>, out: &mut Vec<Effect<F>>) {
        self.tell_status(ReplyRequest::No, at, out);
        self.recall = Recall::Asked;
        self.end_stream(UpstreamEnd::Recalled, out);
    }

    /// Our timeline has ended, and the next one is on disk: standbys are directed to it, and the
    /// next connection asks for it.
    pub fn go_on_with(
        &mut self,
        wal: RecoveredWal,
        out: &mut Vec<Effect<F>>,
    ) -> Result<(), NoSwitch> {
        if self.link.is_some() || self.ended.is_some() {
            return Err(NoSwitch::Streaming);
        }
        let (start, fork) = (wal.prefix_from, wal.ended.last().map(|ended| ended.end));
        let old = self.hub.current_cell();
        if old.as_ref().is_some_and(|old| old.tli() == wal.walker.rules().tli) {
            // The switch was asked for twice, and done twice on disk.
            return Ok(());
        }
        let store = Store::resume(wal, &mut self.writer, self.hub.config.wal_buffers)?;
        let next = Arc::clone(&store.cell);
        if let Some(left) = &self.store {
            self.hub.set_record_end(left.cell.tli(), left.record_end());
        }
        self.leave_store(out);
        self.store = Some(store);
        // A standby told of the end asks for the next timeline within a millisecond.
        self.hub.push_cell(Arc::clone(&next));
        self.hub.set_position(Position::At { tli: next.tli(), durable: next.durable(), start });
        if let (Some(old), Some(fork)) = (old, fork) {
            info!(
                "timeline {} ended at {fork}; continuing with timeline {}",
                old.tli(),
                next.tli()
            );
            old.seal(fork);
            old.link(next);
        }
        out.push(Effect::Published);
        Ok(())
    }

    /// Our WAL past a seam was set aside, and the streams of all standbys have ended: goes on from
    /// there, with cells of its own.
    pub fn go_on_from_seam(
        &mut self,
        wal: RecoveredWal,
        out: &mut Vec<Effect<F>>,
    ) -> Result<(), NoSwitch> {
        if self.link.is_some() || self.ended.is_some() {
            return Err(NoSwitch::Streaming);
        }
        let (start, ended) = (wal.prefix_from, wal.ended.clone());
        let store = Store::resume(wal, &mut self.writer, self.hub.config.wal_buffers)?;
        let (tli, durable) = (store.cell.tli(), store.cell.durable());
        self.leave_store(out);
        self.hub.set_cells(line(&ended, Arc::clone(&store.cell)));
        self.hub.set_position(Position::At { tli, durable, start });
        self.store = Some(store);
        out.push(Effect::Published);
        Ok(())
    }

    /// Our WAL was moved aside: the next connection begins a new history.
    pub fn begin_anew(&mut self, out: &mut Vec<Effect<F>>) {
        if self.link.is_none() {
            self.leave_store(out);
        }
    }

    /// Drops the store and its waiting jobs: they are about files that are no longer written.
    fn leave_store(&mut self, out: &mut Vec<Effect<F>>) {
        self.store = None;
        self.actions.clear();
        out.push(Effect::ForgetJobs);
    }
}

/// The timeline that the keeper's news about a written file concerns.
fn timeline_of<F>(news: &JobDone<F>) -> Option<TimelineId> {
    match news {
        JobDone::Prepared { tli, .. }
        | JobDone::Finalized { tli, .. }
        | JobDone::Begun { tli, .. }
        | JobDone::Failed {
            job:
                JobKind::Prepare { tli, .. } | JobKind::Finalize { tli, .. } | JobKind::Begin { tli },
            ..
        } => Some(*tli),
        _ => None,
    }
}
