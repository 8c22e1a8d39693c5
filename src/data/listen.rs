//! The way back: what standbys say, their timers, and how their streams end.

use super::blocks::BlockId;
use super::core::DataCore;
use super::handoff::{Handback, ToControl};
use super::pg_now;
use super::sender::{Farewell, Phase, Sender};
use super::table::Key;
use super::token::Purpose;
use crate::hub::Hub;
use crate::hub::diverged::Diverged;
use crate::hub::page_rules::page_rules;
use crate::ring::{Buffer, Clock, ReplyBuffer, Ring};
use crate::standby::client::StreamEnd;
use crate::standby::refusals;
use crate::standby::stream::{Due, Heard};
use crate::wal::{Lsn, SegmentName, SegmentNo, TimelineId};
use crate::wire::backend;
use crate::wire::copy::{ReplyRequest, keepalive};
use crate::wire::refusal::Refusal;
use bytes::BytesMut;
use std::io;
use std::net::Shutdown;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::{debug, error, info, warn};

/// A standby that says more than this in a second is read on a timer. Two replies per
/// flush at 800 flushes a second stay below it.
const TALK_QUOTA: usize = 64 << 10;

/// How long such a standby is left unread then.
const TALK_PAUSE: Duration = Duration::from_millis(10);

/// So many receives in a row it has all the same: a burst of replies is read at once, a
/// flood at no more than 400 kB/s.
const TALK_BURST: u32 = 8;

/// A keepalive frame; one in the outbox is enough.
const KEEPALIVE_LEN: usize = 23;

/// What lies between the ends of two hubs' streams, so that their hubs do not all come
/// back at once.
pub(super) const HUB_PAUSE: Duration = Duration::from_millis(5);

/// How long a closed connection may take to say goodbye.
const LINGER: Duration = Duration::from_secs(2);

impl<R: Ring> DataCore<R> {
    /// Reads on, unless a receive is in flight or nobody listens any more.
    pub(super) fn read_on(&mut self, key: Key) {
        if let Some(sender) = self.senders.get_mut(key)
            && sender.reading.is_none()
            // While it drains, that is when it is cut.
            && (sender.read_again.is_none() || matches!(sender.phase, Phase::Draining))
            && !matches!(sender.phase, Phase::HandingBack { .. } | Phase::Closing)
            && !matches!(sender.phase, Phase::Leaving(Farewell::HandBack { .. }))
        {
            let op = self.ring.receive_reply(&sender.socket, Purpose::Reply(key).token());
            sender.reading = Some(op);
        }
    }

    /// A standby's receive completed.
    pub(super) fn heard(&mut self, key: Key, result: io::Result<ReplyBuffer>, now: Instant) {
        let Some(sender) = self.senders.get_mut(key) else {
            if let Ok(buffer) = result {
                self.ring.with_reply(buffer, |_| ());
            }
            return;
        };
        sender.reading = None;
        // What it says may ask for an answer, or for the end.
        self.due.note(key.index);
        let buffer = match result {
            Ok(buffer) => buffer,
            Err(error) if is_out_of_buffers(&error) => {
                self.starved.push(key);
                return self.settle(key);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                self.read_on(key);
                return self.settle(key);
            }
            Err(error) => {
                if !sender.is_parting() {
                    self.log_end(key, &error.to_string());
                    self.close(key);
                } else if matches!(sender.phase, Phase::Draining) {
                    self.close(key);
                }
                return self.settle(key);
            }
        };
        let bytes = self.ring.with_reply(buffer, |bytes| bytes.to_vec());
        if bytes.is_empty() {
            if let Some(sender) = self.senders.get_mut(key) {
                match sender.phase {
                    Phase::Draining => self.close(key),
                    // Its end is ours, and in the log.
                    Phase::Closing => {}
                    _ => {
                        self.log_end(key, "connection closed by the standby");
                        self.close(key);
                    }
                }
            }
            return self.settle(key);
        }
        if let Some(sender) = self.senders.get_mut(key) {
            if let Phase::HandingBack { rest, .. } = &mut sender.phase {
                rest.extend_from_slice(&bytes);
                return self.settle(key);
            }
            if now.saturating_duration_since(sender.quota_since) >= Duration::from_secs(1) {
                sender.quota_since = now;
                (sender.heard, sender.receives) = (0, 0);
            }
            sender.heard += bytes.len();
            if sender.heard > TALK_QUOTA && !matches!(sender.phase, Phase::Draining) {
                sender.receives += 1;
                if sender.receives >= TALK_BURST {
                    sender.receives = 0;
                    sender.read_again = Some(now + TALK_PAUSE);
                    self.set_timer(key);
                }
            }
        }
        self.listen_to(key, &bytes, now);
        self.read_on(key);
        self.settle(key);
    }

    /// Takes what a standby said.
    pub(super) fn listen_to(&mut self, key: Key, bytes: &[u8], now: Instant) {
        let Some(sender) = self.senders.get_mut(key) else { return };
        if matches!(
            sender.phase,
            Phase::Leaving(Farewell::Close) | Phase::Draining | Phase::Closing
        ) {
            return;
        }
        if let Phase::Leaving(Farewell::HandBack { rest, .. }) = &mut sender.phase {
            rest.extend_from_slice(bytes);
            return;
        }
        let before = sender.talk.feedback();
        let heard = sender.talk.hear(bytes, now);
        // Behind its end it has a branch that nobody follows, and needs what follows instead.
        let flush = sender.talk.positions().flush;
        sender.hold.confirm(sender.cell.end().map_or(flush, |end| flush.min(end)));
        sender.member.applied(sender.talk.positions().apply);
        if let Some(feedback) = sender.talk.feedback().filter(|said| before != Some(*said)) {
            sender.member.feedback(&feedback, now);
        }
        // A standby comes back at the start of a segment, where nothing tells it from
        // others; what it says of itself does.
        let positions = sender.talk.positions();
        note_diverged(&self.hub, sender, positions.flush.max(positions.apply));
        match heard {
            Heard::Replies => {}
            Heard::ReplyWanted => self.push_keepalive(key, ReplyRequest::No),
            Heard::Done(rest) => self.client_done(key, rest, now),
            Heard::Terminate => {
                self.log_end(key, "terminated by the standby");
                self.close(key);
            }
            Heard::Failed(refusal) => {
                warn!(pid = sender.session.pid, peer = %sender.session.peer, "{}", refusal.message);
                let end = StreamEnd::Failed(refusal);
                sender.phase = Phase::Leaving(Farewell::HandBack { end, rest: Vec::new() });
                self.step(key, now);
            }
            Heard::Broken(refusal) => {
                let said = refusal.as_ref().map_or("unexpected message type", |r| &r.message);
                self.log_end(key, said);
                self.farewell(key, refusal.as_ref(), now);
            }
        }
    }

    fn client_done(&mut self, key: Key, rest: Vec<u8>, now: Instant) {
        let Some(sender) = self.senders.get_mut(key) else { return };
        let phase = std::mem::replace(&mut sender.phase, Phase::Closing);
        let end = match phase {
            Phase::TimelineEnded { end } => end,
            _ => {
                let mut done = BytesMut::new();
                backend::copy_done(&mut done);
                sender.outbox.extend_from_slice(&done);
                StreamEnd::ClientDone
            }
        };
        sender.phase = Phase::Leaving(Farewell::HandBack { end, rest });
        self.step(key, now);
    }

    /// Queues a keepalive, unless one is waiting to be sent. None may follow a CopyDone or
    /// an error.
    fn push_keepalive(&mut self, key: Key, reply: ReplyRequest) {
        if let Some(sender) = self.senders.get_mut(key)
            && sender.sends_wal()
            && sender.outbox.len() < KEEPALIVE_LEN
        {
            let frame = keepalive(sender.cursor.next_message(), pg_now(&self.clock), reply);
            sender.outbox.extend_from_slice(&frame);
        }
    }

    /// Ends a stream that broke the protocol: with a FATAL message if there is one to
    /// be said and it can be said between two messages.
    fn farewell(&mut self, key: Key, refusal: Option<&Refusal>, now: Instant) {
        let Some(sender) = self.senders.get_mut(key) else { return };
        match refusal {
            Some(refusal) => {
                let mut message = BytesMut::new();
                backend::error(&mut message, refusal);
                sender.outbox.extend_from_slice(&message);
                sender.phase = Phase::Leaving(Farewell::Close);
                self.step(key, now);
            }
            None => self.close(key),
        }
    }

    /// The socket has room again.
    pub(super) fn has_room(&mut self, key: Key) {
        if let Some(sender) = self.senders.get_mut(key) {
            sender.waiting_room = None;
            self.due.note(key.index);
        }
        self.settle(key);
    }

    /// The timeline of a stream has ended, and everything of it is sent: our CopyDone.
    pub(super) fn end_of_timeline(&mut self, key: Key) {
        let Some(sender) = self.senders.get_mut(key) else { return };
        if let Some(at) = sender.cell.end()
            && sender.cursor.next_message() >= at
            && let Some(next) = sender.cell.next()
        {
            note_diverged(&self.hub, sender, sender.cursor.next_message());
            let mut done = BytesMut::new();
            backend::copy_done(&mut done);
            sender.outbox.extend_from_slice(&done);
            // Its timeline may have ended before the WAL that it was waiting for.
            sender.waiting_block = None;
            sender.phase =
                Phase::TimelineEnded { end: StreamEnd::Timeline { next: next.tli(), at } };
        }
    }

    /// Everything announced is out: the farewell.
    pub(super) fn leave(&mut self, key: Key, now: Instant) {
        let Some(sender) = self.senders.get_mut(key) else { return };
        match std::mem::replace(&mut sender.phase, Phase::Closing) {
            Phase::Leaving(Farewell::HandBack { end, rest }) => {
                sender.phase = Phase::HandingBack { end, rest };
                for op in [sender.reading, sender.waiting_room].into_iter().flatten() {
                    self.ring.cancel(op);
                }
                self.settle(key);
            }
            Phase::Leaving(Farewell::Close) => {
                sender.phase = Phase::Draining;
                sender.read_again = Some(now + LINGER);
                if self.ring.shut(&sender.socket, Shutdown::Write).is_err() {
                    return self.close(key);
                }
                self.set_timer(key);
                if let Some(sender) = self.senders.get_mut(key)
                    && sender.reading.is_none()
                {
                    sender.reading =
                        Some(self.ring.receive_reply(&sender.socket, Purpose::Reply(key).token()));
                }
            }
            phase => sender.phase = phase,
        }
    }

    /// Shuts both sides. What is in flight ends by that; then the socket is closed.
    pub(super) fn close(&mut self, key: Key) {
        if let Some(sender) = self.senders.get_mut(key) {
            sender.phase = Phase::Closing;
            super::shut(&mut self.ring, &sender.socket);
            if sender.unreleased > 0
                && let Err(error) = self.ring.reset(&sender.socket)
            {
                // Memory must not wait for a peer to which nobody speaks any more.
                debug!(pid = sender.session.pid, "reset of a connection: {error}");
            }
        }
        self.settle(key);
    }

    /// Lets a standby go once nothing in flight holds its socket any more.
    pub(super) fn settle(&mut self, key: Key) {
        let Some(sender) = self.senders.get_mut(key) else { return };
        if sender.is_busy() || !matches!(sender.phase, Phase::HandingBack { .. } | Phase::Closing) {
            return;
        }
        let Some(sender) = self.senders.remove(key) else { return };
        if let Some(armed) = sender.timer {
            self.timers.remove(&(armed, key));
        }
        let pid = sender.session.pid;
        if tracing::enabled!(tracing::Level::DEBUG) {
            let ring = self.ring.counters();
            debug!(
                pid,
                zerocopy_sends = sender.zerocopy_sends,
                unreleased = sender.unreleased,
                "of the stream; of its core: late sends {}, sends without a copy {} ({} were copied, \
                 {} are unreleased), pieces copied because too many chunks were held {}",
                ring.late_sends,
                ring.zerocopy_sends,
                ring.zerocopy_copied,
                ring.zerocopy_unreleased,
                self.zerocopy.refused
            );
        }
        let Phase::HandingBack { end, rest } = sender.phase else {
            return self.say(ToControl::StandbyClosed { pid });
        };
        match Arc::try_unwrap(sender.socket) {
            Ok(socket) => self.say(ToControl::StandbyEnded(Box::new(Handback {
                socket,
                unread: BytesMut::from(rest.as_slice()),
                session: sender.session,
                ended: end,
                permit: sender.permit,
            }))),
            Err(_held) => {
                // The ring gives up its reference with the completion, before we see it.
                error!(pid, "socket is still in use after its last operation; closing it");
                self.say(ToControl::StandbyClosed { pid });
            }
        }
    }

    /// Enters the standby's next deadline into the heap, unless an earlier one is there.
    pub(super) fn set_timer(&mut self, key: Key) {
        let Some(sender) = self.senders.get_mut(key) else { return };
        let talk = if sender.is_parting() { None } else { sender.talk.deadline() };
        let deadlines = [talk, sender.read_again, sender.ends_at];
        let Some(at) = deadlines.into_iter().flatten().min() else { return };
        if sender.timer.is_none_or(|armed| at < armed) {
            if let Some(armed) = sender.timer.replace(at) {
                self.timers.remove(&(armed, key));
            }
            self.timers.insert((at, key));
        }
    }

    /// A standby's timer has run out.
    pub(super) fn timer_due(&mut self, key: Key, now: Instant) {
        let Some(sender) = self.senders.get_mut(key) else { return };
        if sender.read_again.is_some_and(|at| at <= now) {
            sender.read_again = None;
            if matches!(sender.phase, Phase::Draining) {
                return self.close(key);
            }
            self.read_on(key);
        }
        let Some(sender) = self.senders.get_mut(key) else { return };
        if sender.ends_at.take_if(|at| *at <= now).is_some()
            && matches!(sender.phase, Phase::Streaming | Phase::TimelineEnded { .. })
        {
            self.log_end(key, "the hubs above this one changed; the hub below has to look again");
            return self.close(key);
        }
        if sender.is_parting() {
            return;
        }
        match sender.talk.due(now) {
            Due::Nothing => {}
            Due::Ping => self.push_keepalive(key, ReplyRequest::Yes),
            Due::GiveUp => {
                self.log_end(key, "terminating walsender process due to replication timeout");
                self.close(key);
            }
        }
    }

    /// A block came back from its file.
    pub(super) fn block_loaded(&mut self, slot: u32, result: io::Result<usize>, buffer: Buffer) {
        let Some(id) = self.blocks.id_of(slot) else { return };
        let tli = self.hub.cells().iter().find(|c| c.id() == id.cell).map(|c| c.tli());
        // Moved aside meanwhile: those who waited for it are told so elsewhere.
        let Some(tli) = tli else { return self.blocks.forget(slot, buffer) };
        let rules = match page_rules(&self.hub, tli) {
            Ok(rules) => rules,
            Err(error) => {
                self.blocks.forget(slot, buffer);
                error!("could not serve WAL of timeline {tli}: {error}");
                return self.fail_waiting(id, &error);
            }
        };
        let mut waiting = std::mem::take(&mut self.waiting);
        let (id, checked) = self.blocks.loaded(slot, result, buffer, &rules, &mut waiting);
        let Some(id) = id else { return };
        if let Err(fault) = checked {
            self.due.note_all();
            let name = SegmentName { tli, no: id.start().segment(rules.size), size: rules.size };
            error!("could not serve WAL segment {name} at {}: {fault}", id.start());
            self.fail_waiting(id, &format!("could not read WAL segment {name}: {fault}"));
        }
        self.block_arrived(id, &mut waiting);
        self.waiting = waiting;
    }

    /// A block cannot be sent: those who wait for it hear why.
    fn fail_waiting(&mut self, id: BlockId, why: &str) {
        for key in self.senders.keys() {
            if let Some(sender) = self.senders.get_mut(key)
                && sender.waiting_block == Some(id)
            {
                self.fail(key, Refusal::error("XX001", why.to_owned()));
            }
        }
    }

    /// A segment's file cannot be opened: whoever waits for it is told what PostgreSQL
    /// tells. Only a file that is not there was removed: who hears that may give up.
    pub(super) fn file_missing(&mut self, tli: TimelineId, no: SegmentNo, error: &io::Error) {
        let Some(identity) = self.hub.identity() else { return };
        let size = identity.segment_size;
        let name = SegmentName { tli, no, size };
        for key in self.senders.keys() {
            if let Some(sender) = self.senders.get_mut(key)
                && sender.waiting_block.is_some()
                && sender.cell.tli() == tli
                && sender.cursor.next().segment(size) == no
            {
                let refusal = match error.kind() {
                    io::ErrorKind::NotFound => refusals::segment_removed(named_for(sender, name)),
                    // What came from the archive is not what belongs there.
                    io::ErrorKind::InvalidData => Refusal::error("XX001", error.to_string()),
                    _ => {
                        let text = format!("could not open file \"{name}\": {error}");
                        Refusal::error("58030", text)
                    }
                };
                self.fail(key, refusal);
            }
        }
    }

    /// Ends a stream with an error; its connection goes on, if the error can be said.
    fn fail(&mut self, key: Key, refusal: Refusal) {
        let Some(sender) = self.senders.get_mut(key) else { return };
        sender.waiting_block = None;
        if sender.cursor.unfinished().is_some() {
            // The rest of an announced message can never follow.
            return self.close(key);
        }
        let end = StreamEnd::Failed(refusal);
        sender.phase = Phase::Leaving(Farewell::HandBack { end, rest: Vec::new() });
        self.step(key, self.clock.now());
    }

    /// A CancelRequest with the right key.
    pub(super) fn cancel_stream(&mut self, pid: u32, now: Instant) {
        let key = self.senders.keys().into_iter().find(|key| {
            self.senders.get_mut(*key).is_some_and(|sender| {
                sender.session.pid == pid
                    && matches!(sender.phase, Phase::Streaming | Phase::TimelineEnded { .. })
            })
        });
        if let Some(sender) = key.and_then(|key| self.senders.get_mut(key)) {
            sender.phase = Phase::Leaving(Farewell::HandBack {
                end: StreamEnd::Failed(refusals::cancelled()),
                rest: Vec::new(),
            });
        }
        if let Some(key) = key {
            self.step(key, now);
        }
    }

    /// The slot of a stream lost its WAL. Its user has to see that before it goes on.
    pub(super) fn terminate_stream(&mut self, pid: u32, now: Instant) {
        let key = self.senders.keys().into_iter().find(|key| {
            self.senders.get_mut(*key).is_some_and(|sender| {
                sender.session.pid == pid
                    && !matches!(sender.phase, Phase::Leaving(_))
                    && !sender.is_parting()
            })
        });
        if let Some(key) = key {
            self.log_end(key, "terminated, because its replication slot was invalidated");
            self.farewell(key, Some(&refusals::administrator_command()), now);
        }
    }

    /// Its slot may have been invalidated while the stream was on its way here, and the word
    /// to end it come before it.
    pub(super) fn end_if_slot_lost(&mut self, key: Key, now: Instant) {
        if let Some(sender) = self.senders.get_mut(key)
            && sender.hold.has_lost_slot()
        {
            let pid = sender.session.pid;
            self.terminate_stream(pid, now);
        }
    }

    /// The path above us changed: hubs below must look whether they are in it, one after
    /// the other.
    pub(super) fn end_hub_streams(&mut self, now: Instant) {
        let mut at = now;
        for key in self.senders.keys() {
            if let Some(sender) = self.senders.get_mut(key)
                && sender.session.instance.is_some()
                && matches!(sender.phase, Phase::Streaming | Phase::TimelineEnded { .. })
            {
                sender.ends_at.get_or_insert(at);
                at += HUB_PAUSE;
                self.set_timer(key);
            }
        }
    }

    /// Our WAL was moved aside: what the streams of it wait for will never come.
    pub(super) fn end_streams_set_aside(&mut self) {
        for key in self.senders.keys() {
            self.end_if_set_aside(key);
        }
    }

    /// Ends a stream whose line is no longer kept here; at its next start the standby
    /// hears that its WAL has been removed.
    pub(super) fn end_if_set_aside(&mut self, key: Key) {
        let Some(sender) = self.senders.get_mut(key) else { return };
        let cell = sender.cell.id();
        if self.hub.cells().iter().any(|kept| kept.id() == cell) {
            return;
        }
        self.log_end(key, "its WAL was moved aside");
        self.close(key);
    }

    /// Shutdown: the rest of the WAL, `COPY 0`, and goodbye.
    pub(super) fn tell_to_stop(&mut self, key: Key, now: Instant) {
        let Some(sender) = self.senders.get_mut(key) else { return };
        match sender.phase {
            Phase::Streaming => {
                sender.phase = Phase::Stopping;
                self.step(key, now);
            }
            Phase::TimelineEnded { .. } => self.close(key),
            _ => {}
        }
    }

    fn log_end(&mut self, key: Key, why: &str) {
        if let Some(sender) = self.senders.get_mut(key) {
            let session = &sender.session;
            let positions = sender.talk.positions();
            info!(
                pid = session.pid, application_name = %session.application_name,
                peer = %session.peer, sent = %sender.cursor.next(), flush = %positions.flush,
                "stream ends: {why}"
            );
        }
    }
}

/// Notes a standby that was sent, or has, WAL behind the end of its timeline.
fn note_diverged(hub: &Hub, sender: &Sender, at: Lsn) {
    if let Some(end) = sender.cell.end()
        && at > end
        && hub.has_records_behind(sender.cell.tli(), end)
    {
        let session = &sender.session;
        hub.note_diverged(Diverged {
            application_name: session.application_name.clone(),
            peer: session.peer.clone(),
            tli: sender.cell.tli(),
            at,
            end,
        });
    }
}

/// The file that PostgreSQL looks for: in a segment where the timeline ends, the next one's.
fn named_for(sender: &Sender, name: SegmentName) -> SegmentName {
    let ends_inside = sender.cell.end().is_some_and(|end| end.segment(name.size) == name.no);
    match sender.cell.next() {
        Some(next) if ends_inside => SegmentName { tli: next.tli(), ..name },
        _ => name,
    }
}

fn is_out_of_buffers(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOBUFS)
}
