//! The standbys of one core, and what an event on one of them may lead to: the next step of its
//! end, a timer, a socket that is closed or handed back.

use super::sender::Sender;
use super::state::{Duty, SenderState};
use crate::data::context::Context;
use crate::data::handoff::{Handback, ToControl};
use crate::data::table::{Key, Table};
use crate::data::token::Purpose;
use crate::fanout::DueStandbys;
use crate::hub::Hub;
use crate::ring::{OpId, Ring};
use crate::wire::backend;
use crate::wire::copy::{ReplyRequest, keepalive};
use crate::wire::refusal::Refusal;
use bytes::BytesMut;
use std::collections::BTreeSet;
use std::io;
use std::net::Shutdown;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::{debug, error, info};

/// A keepalive frame; one in the outbox is enough.
const KEEPALIVE_LEN: usize = 23;

/// How long the peer of a connection that we shut may take to close it.
const LINGER: Duration = Duration::from_secs(2);

/// The standbys of one core.
pub(super) struct Senders {
    pub(super) hub: Arc<Hub>,
    pub(super) table: Table<Sender>,
    /// The standbys to look at in the next round.
    pub(super) due: DueStandbys,
    timers: BTreeSet<(Instant, Key)>,
    /// Large pieces that were copied because sends without a copy held too many chunks.
    pub(super) refused_holds: u64,
    /// Standbys whose receive found no buffer.
    awaiting_buffer: Vec<Key>,
    /// The same keys while they are retried; empty between two passes.
    retried: Vec<Key>,
}

impl Senders {
    pub(super) fn new(hub: Arc<Hub>) -> Self {
        Self {
            hub,
            table: Table::default(),
            due: DueStandbys::default(),
            timers: BTreeSet::new(),
            refused_holds: 0,
            awaiting_buffer: Vec::new(),
            retried: Vec::new(),
        }
    }

    /// Starts the next receive, unless one is in flight or the state no longer reads.
    pub(super) fn read_on<R: Ring>(&mut self, key: Key, cx: &mut Context<'_, R>) {
        if let Some(sender) = self.table.get_mut(key)
            && sender.reading.is_none()
            && sender.state.reads()
            // While it drains, what it says is dropped, so the quota does not apply.
            && (sender.quota.read_again().is_none() || sender.state.lingers_until().is_some())
        {
            let op = cx.ring.receive_reply(&sender.socket, Purpose::Reply(key).token());
            sender.reading = Some(op);
        }
    }

    /// A receive found no buffer: it is restarted after this pass.
    pub(super) fn await_buffer(&mut self, key: Key) {
        self.awaiting_buffer.push(key);
    }

    /// Restarts the receives that found no buffer. Returns whether there were any.
    pub(super) fn retry_receives<R: Ring>(&mut self, cx: &mut Context<'_, R>) -> bool {
        let mut retried = std::mem::take(&mut self.retried);
        std::mem::swap(&mut retried, &mut self.awaiting_buffer);
        let any = !retried.is_empty();
        for key in retried.drain(..) {
            self.read_on(key, cx);
        }
        self.retried = retried;
        any
    }

    /// The socket is full: waits for room in it.
    pub(super) fn wait_for_room<R: Ring>(&mut self, key: Key, cx: &mut Context<'_, R>) {
        let Some(sender) = self.table.get_mut(key) else { return };
        let op = cx.ring.poll_writable(&sender.socket, Purpose::Room(key).token());
        sender.waiting_room = Some(op);
    }

    /// The socket has room again.
    pub(super) fn on_room<R: Ring>(&mut self, key: Key, cx: &mut Context<'_, R>) {
        if let Some(sender) = self.table.get_mut(key) {
            sender.waiting_room = None;
            self.due.note(key.index);
        }
        self.settle(key, cx);
    }

    /// A standby has been sent something, or could have been.
    pub(super) fn sent_on<R: Ring>(&mut self, key: Key, cx: &mut Context<'_, R>) {
        let Some(sender) = self.table.get_mut(key) else { return };
        if sender.cursor.unfinished().is_none()
            && sender.cursor.next() >= sender.cell.limit()
            && sender.state.caught_up()
        {
            debug!(
                pid = sender.session.pid,
                application_name = %sender.session.application_name,
                at = %sender.cursor.next(), "standby has caught up"
            );
        }
        self.step(key, cx);
        self.due.note(key.index);
    }

    /// What follows when a standby's socket took what it was offered: the next step of an end in
    /// progress.
    pub(super) fn step<R: Ring>(&mut self, key: Key, cx: &mut Context<'_, R>) {
        let Some(sender) = self.table.get_mut(key) else { return };
        if !sender.state.sends_wal() && sender.cursor.unfinished().is_none() {
            sender.awaiting_block = None;
        }
        if sender.is_owing() {
            return;
        }
        let duty = match &sender.state {
            SenderState::Catchup | SenderState::Streaming => end_of_timeline(sender, &self.hub),
            SenderState::Stopping if sender.cursor.next_message() >= sender.limit() => {
                sender.state.sent_all()
            }
            SenderState::Leaving(_) => sender.state.said_all(cx.now + LINGER),
            _ => return,
        };
        self.perform(key, duty, cx);
    }

    /// Performs the duty that a transition returned.
    pub(super) fn perform<R: Ring>(&mut self, key: Key, duty: Duty, cx: &mut Context<'_, R>) {
        if duty == Duty::Nothing {
            return;
        }
        let Some(sender) = self.table.get_mut(key) else { return };
        sender.give_back(&self.hub);
        match duty {
            Duty::Nothing | Duty::GiveBack => {}
            Duty::CopyDone => push(sender, backend::copy_done),
            Duty::CommandComplete => push(sender, |out| backend::command_complete(out, "COPY 0")),
            Duty::CancelOperations => {
                let waiting: [Option<OpId>; 2] = [sender.reading, sender.waiting_room];
                for op in waiting.into_iter().flatten() {
                    cx.ring.cancel(op);
                }
                self.settle(key, cx);
            }
            Duty::ShutOurSide => {
                if cx.ring.shut(&sender.socket, Shutdown::Write).is_err() {
                    return self.close(key, cx);
                }
                self.set_timer(key);
                self.read_on(key, cx);
            }
            Duty::ShutBothSides => {
                crate::data::shut(cx.ring, &sender.socket);
                if sender.unreleased > 0
                    && let Err(error) = cx.ring.reset(&sender.socket)
                {
                    // Memory must not wait for a peer that is sent nothing more.
                    debug!(pid = sender.session.pid, "could not reset a connection: {error}");
                }
                self.settle(key, cx);
            }
        }
    }

    /// Closes the connection. This ends the operations in flight; then the socket is closed.
    pub(super) fn close<R: Ring>(&mut self, key: Key, cx: &mut Context<'_, R>) {
        let Some(sender) = self.table.get_mut(key) else { return };
        let duty = sender.state.closed();
        self.perform(key, duty, cx);
        self.settle(key, cx);
    }

    /// A send found the connection broken.
    pub(super) fn disconnected<R: Ring>(
        &mut self,
        key: Key,
        error: &io::Error,
        cx: &mut Context<'_, R>,
    ) {
        let Some(sender) = self.table.get_mut(key) else { return };
        let session = &sender.session;
        info!(
            pid = session.pid, application_name = %session.application_name,
            peer = %session.peer, at = %sender.cursor.next(), "standby disconnected: {error}"
        );
        self.close(key, cx);
    }

    /// Ends a stream with a last message, and then its connection.
    pub(super) fn farewell<R: Ring>(
        &mut self,
        key: Key,
        refusal: &Refusal,
        cx: &mut Context<'_, R>,
    ) {
        let Some(sender) = self.table.get_mut(key) else { return };
        push(sender, |out| backend::error(out, refusal));
        let duty = sender.state.broken_off();
        self.perform(key, duty, cx);
        self.step(key, cx);
    }

    /// Ends a stream with an error. Its connection continues, if the error can be sent.
    pub(super) fn fail<R: Ring>(&mut self, key: Key, refusal: Refusal, cx: &mut Context<'_, R>) {
        let Some(sender) = self.table.get_mut(key) else { return };
        sender.awaiting_block = None;
        self.due.note(key.index);
        if sender.cursor.unfinished().is_some() {
            // The rest of an announced message can never follow.
            return self.close(key, cx);
        }
        let duty = sender.state.failed(refusal);
        self.perform(key, duty, cx);
        self.step(key, cx);
    }

    /// Queues a keepalive, unless one is already queued. None may follow a CopyDone or an error.
    pub(super) fn push_keepalive<R: Ring>(
        &mut self,
        key: Key,
        reply: ReplyRequest,
        cx: &Context<'_, R>,
    ) {
        if let Some(sender) = self.table.get_mut(key)
            && sender.state.sends_wal()
            && sender.outbox.len() < KEEPALIVE_LEN
        {
            let frame = keepalive(sender.cursor.next_message(), cx.pg_time(), reply);
            sender.outbox.extend_from_slice(&frame);
        }
    }

    /// Lets a standby go once no operation in flight holds its socket.
    pub(super) fn settle<R: Ring>(&mut self, key: Key, cx: &mut Context<'_, R>) {
        let Some(sender) = self.table.get_mut(key) else { return };
        if sender.is_busy() || !sender.state.is_over() {
            return;
        }
        let Some(sender) = self.table.remove(key) else { return };
        if let Some(armed) = sender.timer {
            self.timers.remove(&(armed, key));
        }
        log_sends(&sender, self.refused_holds, cx);
        let pid = sender.session.pid;
        let (SenderState::HandingBack(ended), Some(permit)) = (sender.state, sender.permit) else {
            return cx.news.push_back(ToControl::StandbyClosed { pid });
        };
        cx.news.push_back(match Arc::try_unwrap(sender.socket) {
            Ok(socket) => ToControl::StandbyEnded(Box::new(Handback {
                unread: BytesMut::from(ended.rest.as_slice()),
                session: sender.session,
                ended: ended.end,
                permit,
                socket,
            })),
            Err(_held) => {
                // The ring drops its reference with the completion, before we see it.
                error!(pid, "socket is still in use after its last operation; closing it");
                ToControl::StandbyClosed { pid }
            }
        });
    }

    /// Enters the standby's next deadline into the timers, unless an earlier one is there.
    pub(super) fn set_timer(&mut self, key: Key) {
        let Some(sender) = self.table.get_mut(key) else { return };
        let Some(at) = sender.deadline() else { return };
        if sender.timer.is_none_or(|armed| at < armed) {
            if let Some(armed) = sender.timer.replace(at) {
                self.timers.remove(&(armed, key));
            }
            self.timers.insert((at, key));
        }
    }

    /// The next standby whose timer has expired; its timer is no longer set.
    pub(super) fn next_timer(&mut self, now: Instant) -> Option<Key> {
        let &(_, key) = self.timers.first().filter(|(at, _)| *at <= now)?;
        self.timers.pop_first();
        if let Some(sender) = self.table.get_mut(key) {
            sender.timer = None;
        }
        Some(key)
    }

    /// When the next timer expires.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }
}

/// The timeline of a stream has ended, and all of it is sent.
fn end_of_timeline(sender: &mut Sender, hub: &Hub) -> Duty {
    let Some(at) = sender.cell.end().filter(|end| *end <= sender.cursor.next_message()) else {
        return Duty::Nothing;
    };
    let Some(next) = sender.cell.next() else { return Duty::Nothing };
    sender.note_diverged(hub, sender.cursor.next_message());
    // Its timeline may have ended before the WAL it was waiting for.
    sender.awaiting_block = None;
    sender.state.timeline_ended(next.tli(), at)
}

/// Queues a message.
fn push(sender: &mut Sender, message: impl FnOnce(&mut BytesMut)) {
    let mut out = BytesMut::new();
    message(&mut out);
    sender.outbox.extend_from_slice(&out);
}

fn log_sends<R: Ring>(sender: &Sender, refused_holds: u64, cx: &Context<'_, R>) {
    if !tracing::enabled!(tracing::Level::DEBUG) {
        return;
    }
    let ring = cx.ring.counters();
    debug!(
        pid = sender.session.pid,
        zerocopy_sends = sender.zerocopy_sends,
        unreleased = sender.unreleased,
        "sends of the stream; of its data core: {} late sends, {} zero-copy sends ({} were copied, \
         {} are unreleased), {refused_holds} pieces copied because too many chunks were held",
        ring.late_sends,
        ring.zerocopy_sends,
        ring.zerocopy_copied,
        ring.zerocopy_unreleased,
    );
}
