//! PostgreSQL servers, as far as their WAL goes: a primary writes, standbys follow it, any
//! of them can be asked for WAL, and promoted.

use crate::kinds::{GRACE, Kind};
use crate::network::{Conn, End, Node};
use crate::shared::{Shared, promise};
use crate::truth::{Branch, MIB, SYSTEM};
use bytes::{Buf, BytesMut};
use std::collections::BTreeMap;
use std::rc::Rc;
use walhub::wal::{Lsn, TimelineId};
use walhub::wire::backend::{self, Column};
use walhub::wire::command::{ReplicationCommand, parse_command};
use walhub::wire::copy::{FromReceiver, ReplyRequest, keepalive, xlog_data_header};
use walhub::wire::frame::next_frame;
use walhub::wire::refusal::Refusal;
use walhub::wire::time::PgTime;

const MAX_MESSAGE: usize = 1 << 20;

/// From whom a server gets its WAL.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Source {
    /// It writes it.
    Itself,
    /// Another server, which is not simulated in detail.
    Server(usize),
    /// One of these hubs.
    Hubs(Vec<usize>),
}

/// A server.
pub(crate) struct Server {
    shared: Rc<Shared>,
    pub(crate) id: usize,
    pub(crate) up: bool,
    pub(crate) source: Source,
    /// The timeline that it is writing or receiving.
    pub(crate) tli: TimelineId,
    /// What it has on disk.
    pub(crate) flush: Lsn,
    /// Nothing before this is there any more.
    pub(crate) oldest: Lsn,
    /// It holds WAL that nobody follows.
    pub(crate) diverged: bool,
    /// What it asks for begins before what anybody still has.
    pub(crate) gap: bool,
    /// What it was sent, flushed or not.
    pub(crate) received: Lsn,
    /// Of a timeline whose servers were rolled back: whose history it has.
    pub(crate) branch: Option<Branch>,
    /// The hub that it streamed from last, and when that ended.
    pub(crate) left: Option<(usize, u64)>,
    /// Does it use slots at its hubs?
    pub(crate) slot: Option<String>,
    sessions: BTreeMap<Conn, Session>,
}

/// A client of the server.
struct Session {
    from: Node,
    unread: BytesMut,
    out: BytesMut,
    state: State,
    /// The newest flush that the client reported.
    confirmed: Lsn,
}

enum State {
    Commands,
    Stream {
        tli: TimelineId,
        next: Lsn,
    },
    /// CopyDone is out, the client's is awaited.
    Ended {
        next: TimelineId,
        at: Lsn,
    },
}

impl Server {
    pub(crate) fn new(shared: &Rc<Shared>, id: usize, source: Source) -> Self {
        let truth = shared.truth.borrow();
        let flush =
            if source == Source::Itself { truth.end(TimelineId::FIRST) } else { truth.start };
        Self {
            shared: Rc::clone(shared),
            id,
            up: true,
            source,
            tli: TimelineId::FIRST,
            flush,
            oldest: truth.start,
            diverged: false,
            gap: false,
            received: Lsn::INVALID,
            branch: None,
            left: None,
            slot: None,
            sessions: BTreeMap::new(),
        }
    }

    /// Writes about so much.
    pub(crate) fn write(&mut self, about: u64) {
        let mut truth = self.shared.truth.borrow_mut();
        truth.write(self.tli, about, &mut self.shared.random.borrow_mut());
        self.flush = truth.end(self.tli);
    }

    /// What it was sent up to here is on its disk.
    pub(crate) fn flushed(&mut self, upto: Lsn) {
        self.flush = self.flush.max(upto);
    }

    /// The primary was rolled back, and what it writes differs from `first` on: who has more
    /// has what nobody writes any more.
    pub(crate) fn note_rollback(&mut self, first: Lsn) {
        if self.id > 0 && self.flush.max(self.received) > first {
            self.branch = Some(Branch::Left);
        }
    }

    /// It was sent WAL. No server has two histories.
    pub(crate) fn note_received(&mut self, tli: TimelineId, from: Lsn, wal: &[u8]) {
        self.received = self.received.max(from.saturating_add(wal.len() as u64));
        let branch = {
            let truth = self.shared.truth.borrow();
            let follows = truth.follows_the_rollback(tli).then_some(Branch::Current);
            truth.branch_of(tli, from, wal).or(follows)
        };
        let known = self.branch;
        promise!(
            self.shared,
            branch.is_none() || known.is_none() || branch == known,
            "server {} is sent two histories of timeline {tli}, the second from {from} on",
            self.id
        );
        self.branch = known.or(branch);
    }

    /// It finds its WAL gone at a hub. Nobody who left it a moment ago does.
    pub(crate) fn note_gap(&mut self, hub: usize) {
        self.gap = true;
        let now = self.shared.steps.get();
        if let Some((last, at)) = self.left
            && self.shared.kind == Kind::Returns
        {
            promise!(
                self.shared,
                last != hub || now - at > GRACE,
                "server {} is back after {} ms, and its WAL is gone",
                self.id,
                5 * (now - at)
            );
        }
    }

    /// Becomes the primary of a new timeline.
    pub(crate) fn promote(&mut self) {
        let mut truth = self.shared.truth.borrow_mut();
        let at = truth.last_end(self.tli, self.flush);
        let old = self.tli;
        self.tli = truth.promote(old, at);
        self.flush = truth.end(self.tli);
        self.source = Source::Itself;
        self.shared.trace(|| {
            format!("server {} is promoted at {at}: timeline {old} -> {}", self.id, self.tli)
        });
    }

    /// Is made anew, or rewound: a copy of what `tli` had at `flush`.
    pub(crate) fn make_anew(&mut self, source: Source, tli: TimelineId, flush: Lsn) {
        self.shared.trace(|| format!("server {} is made anew on {tli} at {flush}", self.id));
        self.source = source;
        (self.tli, self.flush) = (tli, flush);
        self.diverged = false;
        self.gap = false;
        (self.received, self.branch, self.left) = (flush, None, None);
        self.restart();
    }

    /// All its connections break.
    pub(crate) fn restart(&mut self) {
        self.sessions.clear();
        self.shared.network.borrow_mut().cut_off(Node::Server(self.id));
    }

    /// Goes on behind another server, which is at `(tli, flush)`.
    pub(crate) fn follow(&mut self, (tli, flush): (TimelineId, Lsn)) {
        let (truth, shared) = (self.shared.truth.borrow(), &self.shared);
        if self.tli == tli {
            let about = self.flush.saturating_add(1 + shared.below(300_000)).min(flush);
            let whole = truth.last_end(tli, about);
            let to = if shared.chance(200) { about.page_start() } else { whole };
            self.flush = self.flush.max(to);
            return;
        }
        let history = truth.history(tli);
        match (history.switchpoint_of(self.tli), history.next_after(self.tli)) {
            (Some(end), Some(next)) if self.flush <= end => {
                self.flush = end;
                self.tli = next;
            }
            _ => self.diverged = true,
        }
    }

    /// Looks after its clients.
    pub(crate) fn serve(&mut self) {
        let here = Node::Server(self.id);
        while let Some((conn, from)) = {
            let mut network = self.shared.network.borrow_mut();
            network.accept(here)
        } {
            let mut out = BytesMut::new();
            backend::auth_ok(&mut out);
            backend::parameter_status(&mut out, "server_version", "15.18");
            backend::ready_for_query(&mut out);
            let (unread, confirmed) = (BytesMut::new(), Lsn::INVALID);
            let session = Session { from, unread, out, state: State::Commands, confirmed };
            self.sessions.insert(conn, session);
        }
        for conn in self.sessions.keys().copied().collect::<Vec<_>>() {
            let Some(mut session) = self.sessions.remove(&conn) else { continue };
            if self.serve_one(conn, &mut session) {
                self.sessions.insert(conn, session);
            } else {
                self.shared.network.borrow_mut().close(conn, End::Server);
            }
        }
    }

    /// False: the session is over.
    fn serve_one(&self, conn: Conn, session: &mut Session) -> bool {
        let received = {
            let mut network = self.shared.network.borrow_mut();
            network.receive(conn, End::Server, &mut session.unread)
        };
        if received.is_none() {
            return false;
        }
        while let Some(frame) = next_frame(&session.unread, MAX_MESSAGE).unwrap() {
            let (tag, body) = (frame.tag, BytesMut::from(frame.body));
            let len = frame.len;
            session.unread.advance(len);
            match tag {
                b'Q' => self.answer(&body[..body.len() - 1], session),
                b'd' => self.heard(&body, session),
                b'c' => self.end_of_copy(session),
                b'X' => return false,
                _ => {}
            }
        }
        if session.out.is_empty() {
            self.stream(session);
        }
        let sent = self.shared.network.borrow_mut().send(conn, End::Server, &session.out);
        session.out.advance(sent);
        true
    }

    fn heard(&self, payload: &[u8], session: &mut Session) {
        let Ok(FromReceiver::Status(status)) = FromReceiver::parse(payload) else { return };
        if status.flush >= session.confirmed {
            session.confirmed = status.flush;
        }
        if status.reply == ReplyRequest::Yes {
            let at = match session.state {
                State::Stream { next, .. } => next,
                State::Ended { .. } | State::Commands => return,
            };
            let alive = keepalive(at, PgTime::new(0), ReplyRequest::No);
            session.out.extend_from_slice(&alive);
        }
        if let (Node::Hub(hub), State::Stream { tli, .. }) = (session.from, &session.state) {
            self.shared.note_acknowledged(hub, *tli, status.flush);
        }
    }

    fn end_of_copy(&self, session: &mut Session) {
        let out = &mut session.out;
        match session.state {
            State::Ended { next, at } => {
                self.next_timeline(next, at, out);
                backend::ready_for_query(out);
            }
            State::Stream { .. } => {
                backend::copy_done(out);
                backend::command_complete(out, "START_STREAMING");
                backend::command_complete(out, "START_REPLICATION");
                backend::ready_for_query(out);
            }
            State::Commands => return,
        }
        session.state = State::Commands;
    }

    fn next_timeline(&self, next: TimelineId, at: Lsn, out: &mut BytesMut) {
        let columns = [Column::int8("next_tli"), Column::text("next_tli_startpos")];
        backend::row_description(out, &columns);
        let (next, at) = (next.to_string(), at.to_string());
        backend::data_row(out, &[Some(next.as_bytes()), Some(at.as_bytes())]);
        backend::command_complete(out, "START_STREAMING");
        backend::command_complete(out, "START_REPLICATION");
    }

    fn answer(&self, text: &[u8], session: &mut Session) {
        let (command, _) = parse_command(text).unwrap();
        let out = &mut session.out;
        let row = |out: &mut BytesMut, values: &[&str]| {
            let columns: Vec<_> = values.iter().map(|_| Column::text("column")).collect();
            backend::row_description(out, &columns);
            let values: Vec<_> = values.iter().map(|value| Some(value.as_bytes())).collect();
            backend::data_row(out, &values);
            backend::command_complete(out, "OK");
        };
        match command {
            ReplicationCommand::IdentifySystem => {
                let (tli, flush) = (self.tli.to_string(), self.flush.to_string());
                row(out, &[&SYSTEM.raw().to_string(), &tli, &flush, ""]);
            }
            ReplicationCommand::Show(name) => {
                let in_recovery = if self.source == Source::Itself { "off" } else { "on" };
                let value = match name.as_str() {
                    "wal_segment_size" => "1MB",
                    "data_directory_mode" => "0700",
                    "cluster_name" => "",
                    "synchronous_commit" => "on",
                    "transaction_read_only" => in_recovery,
                    other => panic!("a hub asks a server for {other}"),
                };
                row(out, &[value]);
            }
            ReplicationCommand::TimelineHistory(tli) => {
                let truth = self.shared.truth.borrow();
                let known = tli != TimelineId::FIRST && truth.history(self.tli).contains(tli);
                if known {
                    let name = format!("{:08X}.history", tli.raw());
                    let content = truth.history_file(tli);
                    backend::row_description(out, &[Column::text("f"), Column::text("c")]);
                    backend::data_row(out, &[Some(name.as_bytes()), Some(&content)]);
                    backend::command_complete(out, "OK");
                } else {
                    backend::error(out, &Refusal::error("58P01", "could not open file"));
                }
            }
            ReplicationCommand::StartPhysical { start, timeline, .. } => {
                return self.start(start, timeline.unwrap_or(self.tli), session);
            }
            other => panic!("a hub asks a server for {other:?}"),
        }
        backend::ready_for_query(out);
    }

    /// As `StartReplication`.
    fn start(&self, start: Lsn, tli: TimelineId, session: &mut Session) {
        let out = &mut session.out;
        let history = self.shared.truth.borrow().history(self.tli);
        let end = history.switchpoint_of(tli);
        let refusal = if tli == self.tli {
            let ahead = "requested starting point is ahead of the WAL flush position";
            (start > self.flush).then(|| Refusal::error("XX000", ahead))
        } else {
            let foreign = "requested starting point is not in this server's history";
            end.is_none_or(|end| start > end).then(|| Refusal::error("XX000", foreign))
        };
        if let Some(refusal) = refusal {
            backend::error(out, &refusal);
            return backend::ready_for_query(out);
        }
        if let (Some(end), Some(next)) = (end, history.next_after(tli))
            && start == end
        {
            self.next_timeline(next, end, out);
            return backend::ready_for_query(out);
        }
        backend::copy_both(out);
        if start < self.oldest {
            if matches!(session.from, Node::Hub(_)) {
                self.shared.seen("upstream no longer has our WAL");
            }
            let removed = "requested WAL segment has already been removed";
            backend::error(out, &Refusal::error("58P01", removed));
            return backend::ready_for_query(out);
        }
        session.state = State::Stream { tli, next: start };
    }

    /// Sends more of a stream.
    fn stream(&self, session: &mut Session) {
        let State::Stream { tli, next } = session.state else { return };
        let truth = self.shared.truth.borrow();
        let history = truth.history(self.tli);
        let mut limit = self.flush;
        if tli != self.tli {
            let Some(end) = history.switchpoint_of(tli) else { return };
            if next >= end {
                backend::copy_done(&mut session.out);
                let next = history.next_after(tli).unwrap();
                session.state = State::Ended { next, at: end };
                return;
            }
            limit = end;
        }
        if next >= limit {
            return;
        }
        let most = [300, 9000, 60_000, 128 << 10][self.shared.below(4) as usize];
        let about = next.saturating_add(most).min(limit);
        let to = match about == limit || about.page_start() <= next {
            true => about,
            false => about.page_start(),
        };
        let to = if to == limit && tli == self.tli { truth.last_end(tli, to) } else { to };
        // The last thing may be the first part of a record.
        let to = if to <= next { about } else { to };
        let wal = truth.bytes(tli, next, to);
        let header = xlog_data_header(next, limit, PgTime::new(0), wal.len());
        session.out.extend_from_slice(&header);
        session.out.extend_from_slice(&wal);
        session.state = State::Stream { tli, next: to };
    }

    /// Removes what is older than so many segments.
    pub(crate) fn remove_old(&mut self, segments: u64) {
        let size = self.shared.truth.borrow().size;
        let to = self.flush.saturating_sub(segments * MIB).segment_start(size);
        if to > self.oldest {
            self.shared.trace(|| format!("server {} removes WAL before {to}", self.id));
            self.oldest = to;
        }
        promise!(self.shared, self.oldest <= self.flush, "a server removes what it needs");
    }
}
