//! What standbys say in their streams, and when.

use super::streaming::RESTART;
use super::{NEVER, Worker};
use crate::bench::clock::Nanos;
use crate::bench::standbys::plan::{Group, Replies};
use crate::bench::standbys::standby::{Kind, State, WriteOutcome};
use crate::wal::Lsn;
use crate::wire::copy::ReplyRequest;
use rustix::event::epoll::{self, EventData, EventFlags};
use std::cmp::Reverse;
use std::time::Duration;

/// `wal_receiver_status_interval`
const STATUS_INTERVAL: Duration = Duration::from_secs(10);
impl Worker {
    /// Sends a status update of a standby that has flushed everything received.
    pub(super) fn tell(&mut self, place: usize, reply: ReplyRequest) {
        let received = self.standbys[place].received;
        self.send_status(place, received, reply);
    }

    pub(super) fn send_status(&mut self, place: usize, flush: Lsn, reply: ReplyRequest) {
        let now = self.now();
        let standby = &mut self.standbys[place];
        if !matches!(standby.state, State::Streaming(_)) {
            return;
        }
        self.counts[standby.group.index()].replies += 1;
        // A closed connection shows at the next receive.
        if standby.tell(flush, reply, now) == WriteOutcome::Full {
            self.listen(place, EventFlags::IN | EventFlags::OUT);
        }
    }

    pub(super) fn go_on(&mut self, place: usize) {
        let now = self.now();
        if self.standbys[place].go_on(now) == WriteOutcome::All {
            self.listen(place, EventFlags::IN);
        }
    }

    /// Sends the two replies to each batch: written, and some time later, flushed. They wait until
    /// all standbys have been served; otherwise their cost would be part of the latencies of the
    /// standbys served later.
    pub(super) fn report_all(&mut self) {
        let mut unreported = std::mem::take(&mut self.unreported);
        for place in &unreported {
            let flushed = self.standbys[*place].flushed;
            self.send_status(*place, flushed, ReplyRequest::No);
        }
        for place in unreported.drain(..) {
            self.tell(place, ReplyRequest::No);
        }
        self.unreported = unreported;
    }

    pub(super) fn listen(&mut self, place: usize, flags: EventFlags) {
        let standby = &self.standbys[place];
        let (State::Streaming(socket) | State::Stalled(socket)) = &standby.state else { return };
        let data = u64::from(standby.generation) << 32 | place as u64;
        if let Err(error) = epoll::modify(&self.epoll, socket, EventData::new_u64(data), flags) {
            self.shared.refusal(error.to_string());
        }
    }

    pub(super) fn set_due(&mut self, place: usize, due: Nanos) {
        let standby = &mut self.standbys[place];
        if standby.due == due {
            return;
        }
        standby.due = due;
        if due != NEVER {
            self.timers.push(Reverse((due, u32::try_from(place).unwrap_or(u32::MAX))));
        }
    }

    pub(super) fn run_timers(&mut self) {
        let now = self.now();
        while let Some(Reverse((due, place))) = self.timers.peek().copied() {
            if due > now {
                return;
            }
            self.timers.pop();
            let place = place as usize;
            if self.standbys.get(place).is_some_and(|standby| standby.due == due) {
                self.standbys[place].due = NEVER;
                self.tick(place, now);
            }
        }
    }

    /// Does what is due for a standby, and sets what is due next.
    pub(super) fn tick(&mut self, place: usize, now: Nanos) {
        match &self.standbys[place].state {
            State::Idle => self.connect(place),
            State::Connecting(_) => {
                self.standbys[place].state = State::Idle;
                self.count(Kind::Connecting, Kind::Failed);
                self.refused(place, "the server does not answer".to_owned());
            }
            State::Streaming(_) => self.tick_stream(place, now),
            State::Stalled(_) | State::Finished | State::GivenUp => {}
        }
    }

    pub(super) fn tick_stream(&mut self, place: usize, now: Nanos) {
        let standby = &mut self.standbys[place];
        if standby.act <= now {
            match standby.group {
                Group::Flapping => {
                    self.say_goodbye(place);
                    self.leave_stream(place, State::Idle);
                    self.set_due(place, now.after(RESTART));
                    return;
                }
                Group::Stalled => {
                    if let State::Streaming(socket) =
                        std::mem::replace(&mut standby.state, State::Idle)
                    {
                        standby.state = State::Stalled(socket);
                    }
                    self.listen(place, EventFlags::empty());
                    return;
                }
                Group::Slow => {
                    standby.act = NEVER;
                    self.listen(place, EventFlags::IN);
                }
                Group::Good => {}
            }
        }
        let (timeout, interval) = (self.shared.plan.receiver_timeout, self.status_interval());
        let standby = &self.standbys[place];
        let mut due = standby.act;
        if !timeout.is_zero() {
            if now.since(standby.heard) >= timeout {
                self.reconnect(place, "terminating walreceiver due to timeout".to_owned());
                return;
            }
            if now.since(standby.heard) >= timeout / 2 && !standby.pinged {
                self.standbys[place].pinged = true;
                self.tell(place, ReplyRequest::Yes);
            }
            let standby = &self.standbys[place];
            let silence = if standby.pinged { timeout } else { timeout / 2 };
            due = due.min(standby.heard.after(silence));
        }
        if !interval.is_zero() {
            if now.since(self.standbys[place].told) >= interval {
                self.tell(place, ReplyRequest::No);
            }
            due = due.min(self.standbys[place].told.after(interval));
        }
        self.set_due(place, due);
    }

    pub(super) fn status_interval(&self) -> Duration {
        match self.shared.plan.replies {
            Replies::Interval(interval) => interval,
            Replies::Flush => STATUS_INTERVAL,
        }
    }
}
