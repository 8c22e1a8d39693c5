//! What comes in a stream.

use super::{BUFFER, NEVER, Worker};
use crate::bench::clock::Nanos;
use crate::bench::standbys::frames::Came;
use crate::bench::standbys::plan::{Group, Replies, Verify};
use crate::bench::standbys::standby::{Kind, State};
use crate::bench::standbys::sums::{Sums, Unverified};
use crate::wal::Lsn;
use crate::wire::backend_read::FromServer;
use crate::wire::copy::ReplyRequest;
use crate::wire::frame::next_frame;
use crate::wire::frontend;
use crate::wire::sqlstate;
use bytes::BytesMut;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The size of one receive when most of it is to be dropped in the kernel.
const PEEP: usize = 8 << 10;
/// Receives for one standby before others get their turn.
const ROUNDS: usize = 4;
/// How soon a walreceiver is restarted after the last one ended.
pub(super) const RESTART: Duration = Duration::from_millis(25);
/// What comes next for a standby whose bytes were processed.
pub(super) enum AfterBytes {
    /// The stream continues.
    Stream,
    /// The connection is over.
    Reconnect(String),
    /// A fault.
    Fault(Lsn, String),
}

impl Worker {
    pub(super) fn begin_stream(&mut self, place: usize, rest: &[u8]) {
        let now = self.now();
        let standby = &mut self.standbys[place];
        let State::Connecting(connecting) = std::mem::replace(&mut standby.state, State::Idle)
        else {
            return;
        };
        self.connect.saturating_record(now.0.saturating_sub(connecting.begun.0));
        let first = standby.received.is_invalid();
        standby.state = State::Streaming(connecting.socket);
        standby.begin_stream(standby.at, now);
        let behaviours = &self.shared.plan.behaviours;
        match standby.group {
            Group::Stalled => {
                standby.act = behaviours.stalled.map_or(NEVER, |stalled| now.after(stalled.after));
            }
            Group::Flapping => {
                standby.act = behaviours.flapping.as_ref().map_or(NEVER, |flapping| {
                    now.after(self.random.between(*flapping.every.start(), *flapping.every.end()))
                });
            }
            Group::Good | Group::Slow => {}
        }
        let (group, at, number, received) =
            (standby.group, standby.at, standby.number, standby.received);
        if first {
            self.ledger.join(place, at);
            self.shared.received[number].store(received.raw(), Ordering::Relaxed);
        } else {
            self.counts[group.index()].reconnects += 1;
        }
        if group == Group::Good {
            self.shared.good_streams(1);
        }
        self.count(Kind::Connecting, Kind::Streaming);
        // Like a walreceiver, which first reports its position.
        self.tell(place, ReplyRequest::No);
        self.tick(place, now);
        let next = self.take(place, rest);
        self.credit(place, at, now);
        self.after(place, next);
        if !rest.is_empty() {
            self.report_batch(place);
        }
    }

    /// The socket has data: takes a batch, as a walreceiver does. Others get their turn when the
    /// batch does not end.
    pub(super) fn receive(&mut self, place: usize) {
        let before = self.standbys[place].at;
        for _ in 0..ROUNDS {
            let (next, drained) = self.try_receive(place);
            let stays = matches!(next, AfterBytes::Stream);
            self.after(place, next);
            if !stays {
                return;
            }
            if drained {
                break;
            }
        }
        if self.standbys[place].at > before {
            self.report_batch(place);
        }
    }

    pub(super) fn report_batch(&mut self, place: usize) {
        if self.shared.plan.replies == Replies::Flush {
            self.unreported.push(place);
        }
    }

    pub(super) fn after(&mut self, place: usize, next: AfterBytes) {
        match next {
            AfterBytes::Stream if !self.is_finished(place) => {}
            AfterBytes::Reconnect(why) => self.reconnect(place, why),
            AfterBytes::Fault(at, text) => self.fault(place, at, text),
            AfterBytes::Stream => {
                self.say_goodbye(place);
                self.leave_stream(place, State::Finished);
                self.ledger.leave(place);
                self.shared.one_finished();
            }
        }
    }

    /// Returns what to do next, and whether that was all for now.
    pub(super) fn try_receive(&mut self, place: usize) -> (AfterBytes, bool) {
        let slow_share = self.slow_share();
        let standby = &mut self.standbys[place];
        let State::Streaming(socket) = &standby.state else { return (AfterBytes::Stream, true) };
        let (before, left) = (standby.at, standby.frames.left());
        let slow = standby.group == Group::Slow;
        let drop_wal = self.shared.plan.verify == Verify::Off;
        // The length is never more than the buffer's, even when the kernel drops the data.
        let (flags, room) = match drop_wal {
            _ if slow => (RecvFlags::empty(), slow_share),
            true if left > 0 => (RecvFlags::TRUNC, left.min(BUFFER)),
            true => (RecvFlags::empty(), PEEP),
            false => (RecvFlags::empty(), BUFFER),
        };
        let Some(buffer) = self.buffer.get_mut(..room) else { return (AfterBytes::Stream, true) };
        let got = match recv(socket, &mut *buffer, flags | RecvFlags::DONTWAIT) {
            Ok((_, 0)) => {
                let text = "server closed the connection unexpectedly";
                return (AfterBytes::Reconnect(text.to_owned()), true);
            }
            Ok((_, got)) => got,
            Err(Errno::AGAIN | Errno::INTR) => return (AfterBytes::Stream, true),
            Err(error) => return (AfterBytes::Reconnect(error.to_string()), true),
        };
        let now = self.shared.plan.clock.now();
        let standby = &mut self.standbys[place];
        standby.heard = now;
        standby.pinged = false;
        let next = if flags.contains(RecvFlags::TRUNC) {
            standby.frames.skip(got);
            standby.at = standby.at.saturating_add(got as u64);
            self.counts[standby.group.index()].sums +=
                Sums::of_unverified(Unverified::NotChecked, got as u64);
            AfterBytes::Stream
        } else {
            let buffer = std::mem::take(&mut self.buffer);
            let next = self.take(place, buffer.get(..got).unwrap_or_default());
            self.buffer = buffer;
            next
        };
        self.credit(place, before, now);
        (next, got < room || slow)
    }

    /// Has it received everything that it was to receive?
    pub(super) fn is_finished(&self, place: usize) -> bool {
        let at = self.standbys[place].at;
        self.shared.plan.until.is_some_and(|until| at >= until)
    }

    /// Parses received bytes.
    pub(super) fn take(&mut self, place: usize, bytes: &[u8]) -> AfterBytes {
        let mut bytes = bytes;
        loop {
            let standby = &mut self.standbys[place];
            let group = standby.group.index();
            match standby.frames.next(&mut bytes) {
                Ok(None) => return AfterBytes::Stream,
                Ok(Some(Came::Message(start))) => {
                    self.counts[group].messages += 1;
                    if start != standby.at {
                        let text = format!("WAL from {start} follows {}", standby.at);
                        return AfterBytes::Fault(standby.at, text);
                    }
                }
                Ok(Some(Came::Wal(wal))) => {
                    match self.verifier.check(&mut standby.check, standby.at, wal) {
                        Ok(sums) => self.counts[group].sums += sums,
                        Err(wrong) => return AfterBytes::Fault(wrong.at, wrong.text),
                    }
                    standby.at = standby.at.saturating_add(wal.len() as u64);
                }
                Ok(Some(Came::Keepalive(ReplyRequest::No))) => {}
                Ok(Some(Came::Keepalive(ReplyRequest::Yes))) => {
                    standby.received = standby.received.max(standby.at);
                    self.tell(place, ReplyRequest::No);
                }
                Ok(Some(Came::Other(message))) => match self.other(place, &message) {
                    AfterBytes::Stream => {}
                    next => return next,
                },
                Err(malformed) => return AfterBytes::Fault(standby.at, malformed.to_string()),
            }
        }
    }

    /// Handles a message other than CopyData.
    pub(super) fn other(&self, place: usize, message: &[u8]) -> AfterBytes {
        let at = self.standbys[place].at;
        let frame = match next_frame(message, message.len()) {
            Ok(Some(frame)) => frame,
            Ok(None) => return AfterBytes::Stream,
            Err(malformed) => return AfterBytes::Fault(at, malformed.to_string()),
        };
        match FromServer::parse(frame) {
            Ok(FromServer::Error(error)) if error.sqlstate == sqlstate::UNDEFINED_FILE => {
                AfterBytes::Fault(at, error.to_string())
            }
            Ok(FromServer::Error(error)) => AfterBytes::Reconnect(error.to_string()),
            Ok(FromServer::CommandComplete(_)) => {
                AfterBytes::Reconnect("the server is shutting down".to_owned())
            }
            Ok(FromServer::CopyDone) => {
                AfterBytes::Fault(at, format!("the stream's timeline ended at {at}"))
            }
            Ok(FromServer::Notice(_) | FromServer::ParameterStatus { .. }) => AfterBytes::Stream,
            Ok(_) => {
                let tag = frame.tag.escape_ascii();
                AfterBytes::Fault(at, format!("unexpected message of type \"{tag}\" in the stream"))
            }
            Err(malformed) => AfterBytes::Fault(at, malformed.to_string()),
        }
    }

    /// WAL from `before` on has come, at `now`.
    pub(super) fn credit(&mut self, place: usize, before: Lsn, now: Nanos) {
        let standby = &mut self.standbys[place];
        let bytes = standby.at.bytes_since(before);
        if bytes == 0 {
            return;
        }
        let group = standby.group;
        self.counts[group.index()].bytes += bytes;
        if standby.at > standby.received {
            standby.received = standby.at;
            let shown = &self.shared.received[standby.number];
            shown.store(standby.at.raw(), Ordering::Relaxed);
            self.ledger.receipt(place, standby.at, now);
        }
        if group == Group::Slow {
            self.pause(place, bytes, now);
        }
    }

    /// A slow standby's share for a tenth of a second.
    pub(super) fn slow_share(&self) -> usize {
        let rate = self.shared.plan.behaviours.slow.map_or(0, |slow| slow.bytes_per_second);
        usize::try_from(rate / 10).unwrap_or(BUFFER).clamp(512, BUFFER)
    }

    /// A slow standby has read its share.
    pub(super) fn pause(&mut self, place: usize, bytes: u64, now: Nanos) {
        let rate = self.shared.plan.behaviours.slow.map_or(0, |slow| slow.bytes_per_second);
        let share = Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
        let standby = &mut self.standbys[place];
        standby.act = now.after(share);
        self.listen(place, EventFlags::empty());
        self.set_due(place, now.after(share));
    }

    pub(super) fn say_goodbye(&mut self, place: usize) {
        if let State::Streaming(socket) = &self.standbys[place].state {
            let mut out = BytesMut::new();
            frontend::copy_done(&mut out);
            frontend::terminate(&mut out);
            // The close that follows has the same effect.
            send(socket, &out, SendFlags::NOSIGNAL | SendFlags::DONTWAIT).ok();
        }
    }

    /// Closes a stream. What the server still sends is ignored.
    pub(super) fn leave_stream(&mut self, place: usize, state: State) {
        let standby = &mut self.standbys[place];
        let before = standby.kind();
        standby.state = state;
        standby.due = NEVER;
        self.counts[standby.group.index()].sums += standby.check.close();
        let (after, good) = (standby.kind(), standby.group == Group::Good);
        self.count(before, after);
        if good && before == Kind::Streaming {
            self.shared.good_streams(-1);
        }
    }

    pub(super) fn reconnect(&mut self, place: usize, why: String) {
        let now = self.now();
        let retry = self.shared.plan.retry;
        self.shared.refusal(why);
        self.leave_stream(place, State::Idle);
        let standby = &self.standbys[place];
        // Like the startup process: soon, unless it has just done so.
        let wait = if now.since(standby.since) < retry { retry } else { RESTART };
        self.set_due(place, now.after(wait));
    }

    pub(super) fn fault(&mut self, place: usize, at: Lsn, text: String) {
        self.shared.fault(self.standbys[place].number, at, text);
        self.leave_stream(place, State::GivenUp);
        self.ledger.leave(place);
    }
}
