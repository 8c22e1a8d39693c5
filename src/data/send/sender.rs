//! One standby as its core sees it: its socket, its position in the WAL, what it says, and the
//! state of its stream.

use super::quota::Quota;
use super::seam::{AtSeam, BeforeSeam};
use super::state::SenderState;
use crate::data::figures::StandbyFigures;
use crate::data::handoff::StandbyHandoff;
use crate::data::readback::BlockId;
use crate::fanout::Cursor;
use crate::hub::diverged::{Diverged, Left};
use crate::hub::fleet::Member;
use crate::hub::{Hub, SenderPermit};
use crate::ring::{Fd, OpId};
use crate::standby::client::Session;
use crate::standby::refusals;
use crate::standby::stream::{Heard, Talk};
use crate::store::retention::Hold;
use crate::store::seams::Seam;
use crate::store::slots::SlotSession;
use crate::wal::Lsn;
use crate::watermark::Cell;
use crate::wire::backend;
use bytes::BytesMut;
use std::sync::Arc;
use std::time::Instant;
use tracing::info;

/// A walsender: a standby's stream, from its CopyBothResponse to its end.
#[derive(Debug)]
pub struct Sender {
    /// The socket. Operations in flight hold it too.
    pub socket: Fd,
    /// Who it is.
    pub session: Session,
    /// Its place among `max_wal_senders`, until it is given back.
    pub permit: Option<SenderPermit>,
    /// Its temporary slots go with its connection.
    pub slots: SlotSession,
    /// Keeps the WAL that it does not have yet, and its slot until that is given back.
    pub hold: Hold,
    /// What is reported upstream about it, until it is no longer heard.
    pub member: Option<Member>,
    /// The timeline it streams.
    pub cell: Arc<Cell>,
    /// Where another history goes on that it may have the former WAL of.
    pub seam: Option<BeforeSeam>,
    /// How far it has been sent.
    pub cursor: Cursor,
    /// What it says.
    pub talk: Talk,
    /// How much it may say.
    pub(super) quota: Quota,
    /// Small messages that go out at the next message boundary, before more WAL.
    pub outbox: Vec<u8>,
    /// The state of its stream.
    pub state: SenderState,
    /// A receive in flight.
    pub reading: Option<OpId>,
    /// A wait for room in the socket's buffer.
    pub waiting_room: Option<OpId>,
    /// A send without a copy that the socket has not taken yet.
    pub sending: Option<OpId>,
    /// How it is sent large pieces.
    pub delivery: Delivery,
    /// Sends without a copy whose memory is still in use.
    pub unreleased: u32,
    /// Sends without a copy so far.
    pub zerocopy_sends: u64,
    /// The block that it needs next, which must be read from its file first.
    pub awaiting_block: Option<BlockId>,
    /// When its stream ends, for a hub below that must check its path again.
    pub ends_at: Option<Instant>,
    /// The earliest entry in the core's timer heap.
    pub timer: Option<Instant>,
}

/// How a standby is sent large pieces of WAL from the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// Like everything else: the socket copies them.
    Copied,
    /// The network reads them in place.
    Zerocopy,
}

impl Sender {
    /// A standby from the control thread: the first thing it is sent is its CopyBothResponse. Also
    /// returns what it has already said.
    pub(super) fn begin(handoff: StandbyHandoff, member: Member, now: Instant) -> (Self, BytesMut) {
        let mut welcome = BytesMut::new();
        backend::copy_both(&mut welcome);
        let StandbyHandoff { session, cell, start, seam, hold, permit, slots, unread, socket } =
            handoff;
        let timeout = session.wal_sender_timeout;
        let sender = Self {
            socket: Arc::new(socket),
            talk: Talk::new(now, timeout),
            seam: seam.map(|at| BeforeSeam::new(at, now, timeout)),
            quota: Quota::new(now),
            session,
            permit: Some(permit),
            slots,
            hold,
            member: Some(member),
            cell,
            cursor: Cursor::new(start),
            outbox: welcome.to_vec(),
            state: SenderState::Catchup,
            reading: None,
            waiting_room: None,
            sending: None,
            delivery: Delivery::Copied,
            unreleased: 0,
            zerocopy_sends: 0,
            awaiting_block: None,
            ends_at: None,
            timer: None,
        };
        (sender, unread)
    }

    /// It is sent nothing past this (I3): the limit of its cell, or the seam before it.
    pub fn limit(&self) -> Lsn {
        let limit = self.cell.limit();
        self.seam.map_or(limit, |seam| limit.min(seam.at))
    }

    /// Is there something to send now?
    pub fn is_due(&self) -> bool {
        if self.waiting_room.is_some() || self.sending.is_some() || self.state.is_parting() {
            return false;
        }
        if self.awaiting_block.is_some() {
            // An answer or a ping does not wait for the disk, unless a message is unfinished:
            // nothing may come between its bytes.
            return self.cursor.unfinished().is_none() && !self.outbox.is_empty();
        }
        self.is_owing() || self.state.sends_wal() && self.cursor.next_message() < self.limit()
    }

    /// Has it been sent all of a timeline that has ended, and must it be told?
    pub fn is_at_end(&self) -> bool {
        let has_to_be_told = || match self.state {
            SenderState::Catchup | SenderState::Streaming => self.cell.next().is_some(),
            SenderState::Stopping => true,
            _ => false,
        };
        self.cell.end().is_some_and(|end| end <= self.cursor.next_message())
            && self.waiting_room.is_none()
            && self.sending.is_none()
            && !self.is_owing()
            && has_to_be_told()
    }

    /// Is something announced or queued that must go out in any case?
    pub fn is_owing(&self) -> bool {
        self.cursor.unfinished().is_some() || !self.outbox.is_empty()
    }

    /// Does an operation in flight hold the socket?
    pub const fn is_busy(&self) -> bool {
        self.reading.is_some() || self.waiting_room.is_some() || self.sending.is_some()
    }

    /// The latest time at which something must be done.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let talk = if self.state.is_parting() { None } else { self.talk.deadline() };
        let seam = self.seam.filter(|_| self.state.hears()).map(|seam| seam.until);
        let lingers = self.state.lingers_until();
        let deadlines = [talk, self.quota.read_again(), self.ends_at, lingers, seam];
        deadlines.into_iter().flatten().min()
    }

    /// Takes what it said.
    pub(super) fn hear(&mut self, bytes: &[u8], hub: &Hub, now: Instant) -> Heard {
        if self.state.keep(bytes) || !self.state.hears() {
            return Heard::Replies;
        }
        let mut before = self.talk.feedback();
        let was_silent = self.talk.replied_at().is_none();
        let heard = self.talk.hear(bytes, now);
        if let Some(seam) = self.seam {
            // Until it has passed, what it reports moves no slot and counts for nothing.
            match seam.judge(&self.talk) {
                AtSeam::Unknown => return heard,
                AtSeam::Past(at) => return self.is_past(seam.at, at, heard, hub),
                AtSeam::Before => {
                    self.seam = None;
                    before = None;
                }
            }
        }
        // Past the end of its timeline it has a branch that no one follows, and needs the next
        // timeline instead.
        let positions = self.talk.positions();
        let here = |lsn: Lsn| self.cell.end().map_or(lsn, |end| lsn.min(end));
        self.hold.report(here(positions.write), here(positions.flush));
        if let Some(member) = &mut self.member {
            member.applied(positions.apply);
            if let Some(feedback) = self.talk.feedback().filter(|said| before != Some(*said)) {
                member.feedback(&feedback, now);
            }
        }
        // A standby reconnects at the start of a segment, where nothing distinguishes it from
        // others; the positions it reports do.
        self.note_diverged(hub, positions.flush.max(positions.apply));
        if was_silent && self.talk.replied_at().is_some() {
            self.note_whole(hub);
        }
        heard
    }

    /// It is at `at`, past a seam: it has the former WAL. It is told so, unless what it said ends its
    /// stream.
    fn is_past(&self, seam: Lsn, at: Lsn, heard: Heard, hub: &Hub) -> Heard {
        let (application_name, peer) =
            (self.session.application_name.clone(), self.session.peer.clone());
        let tli = self.cell.tli();
        let left = Left::Seam(Seam { tli, at: seam });
        hub.note_diverged(Diverged { application_name, peer, tli, at, left });
        match heard {
            Heard::Replies | Heard::ReplyWanted => {
                Heard::Failed(refusals::reported_past_seam(at, tli, seam))
            }
            ended => ended,
        }
    }

    /// Gives back what it has of the hub once it is no longer heard, and the rest once its
    /// connection ends: before anything that shows it the end is sent. Then it may come back at
    /// once and finds its slot, and a place, free. The WAL that it has been promised stays held
    /// until it is sent.
    pub(super) fn give_back(&mut self, hub: &Hub) {
        if self.state.hears() {
            return;
        }
        self.hold.let_slot_go();
        self.member = None;
        if !self.state.goes_back() && self.permit.take().is_some() {
            hub.holds.slots.drop_temporary(self.slots);
        }
    }

    /// Notes that it was sent, or has, WAL past the end of its timeline.
    pub(super) fn note_diverged(&self, hub: &Hub, at: Lsn) {
        if let Some(end) = self.cell.end()
            && at > end
            && hub.has_records_past(self.cell.tli(), end)
        {
            hub.note_diverged(Diverged {
                application_name: self.session.application_name.clone(),
                peer: self.session.peer.clone(),
                tli: self.cell.tli(),
                at,
                left: Left::Fork(end),
            });
        }
    }

    /// Notes that it has reported nothing past the end of its timeline, if that is so.
    fn note_whole(&self, hub: &Hub) {
        let positions = self.talk.positions();
        let at = positions.write.max(positions.flush).max(positions.apply);
        if self.cell.end().is_none_or(|end| at <= end) {
            hub.note_streaming(&self.session.application_name, &self.session.peer);
        }
    }

    /// Logs why its stream ends.
    pub(super) fn log_end(&self, why: &str) {
        let session = &self.session;
        let positions = self.talk.positions();
        info!(
            pid = session.pid, application_name = %session.application_name,
            peer = %session.peer, sent = %self.cursor.next(), flush = %positions.flush,
            "stream to standby ended: {why}"
        );
    }

    /// Its figures for `walhub ctl`.
    pub(super) fn figures(&self) -> StandbyFigures {
        StandbyFigures {
            pid: self.session.pid,
            tli: self.cell.tli(),
            state: self.state.shown(),
            sent: self.cursor.next(),
            positions: self.talk.positions(),
            reply_time: self.talk.replied_at(),
        }
    }
}
