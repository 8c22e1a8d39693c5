//! A hub's clients: the conversation, and the send role for one standby, with the shipped
//! conversation, cursor, cutting of messages, cells and holds. What is written here once
//! more is `data::send` and `data::readback` for a fleet of one.

use crate::hub::Process;
use crate::network::{Conn, End, Node};
use crate::plants::{Plant, PlantedFile};
use crate::shared::promise;
use crate::truth::Branch;
use crate::world::{Work, poll};
use bytes::{Buf, BytesMut};
use std::io;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use walhub::doors::replication::session::{Conversation, welcome};
use walhub::doors::replication::step::Step;
use walhub::doors::replication::step::{SlotDone, SlotTask};
use walhub::fanout::{Cursor, message};
use walhub::hub::page_rules::page_rules;
use walhub::keeper::Job;
use walhub::standby::answers::after_stream;
use walhub::standby::client::{Session as Who, StreamEnd};
use walhub::standby::refusals;
use walhub::store::disk::run_ready;
use walhub::store::durable::read_full;
use walhub::store::retention::Hold;
use walhub::store::slots::{SlotName, SlotToken};
use walhub::wal::page::{LONG_HEADER, PAGE_SIZE, PageFault, PageHeader};
use walhub::wal::{Lsn, SegmentName, SegmentNo, TimelineId};
use walhub::watermark::Cell;
use walhub::wire::backend;
use walhub::wire::copy::{
    FromReceiver, ReplyRequest, XLOG_DATA_HEADER, keepalive, xlog_data_header,
};
use walhub::wire::frame::next_frame;
use walhub::wire::time::PgTime;

const MAX_MESSAGE: usize = 1 << 20;
/// The most WAL in one send.
const BUDGET: u64 = 256 << 10;
/// Read from a file at one time.
const BLOCK: u64 = 128 << 10;

/// A client.
pub(crate) struct Session {
    conn: Conn,
    from: Node,
    who: Who,
    conversation: Conversation,
    unread: BytesMut,
    out: BytesMut,
    state: State,
    /// Its slot was invalidated: it has to go.
    terminated: bool,
}

enum State {
    Commands,
    /// A slot's task is under way.
    Task(SlotTask, Work<Result<(), String>>),
    Stream(Box<Sender>),
    /// The answer is written, then the connection is closed.
    Closing,
}

struct Sender {
    cell: Arc<Cell>,
    cursor: Cursor,
    /// Where its WAL may be another's, until it has said that it is not past that.
    seam: Option<Lsn>,
    hold: Hold,
    phase: Phase,
    file: Option<(SegmentNo, PlantedFile)>,
    asked: Option<SegmentNo>,
}

enum Phase {
    Streaming,
    /// CopyDone is out.
    TimelineEnded {
        next: TimelineId,
        at: Lsn,
    },
}

/// WAL that is not at hand.
enum Missing {
    /// The file has to be opened first.
    File(SegmentNo),
    /// It makes no sense.
    Page(Lsn, PageFault),
}

impl Session {
    pub(crate) fn new(process: &Process, conn: Conn, from: Node) -> Self {
        let pid = process.next_pid.get();
        process.next_pid.set(pid + 1);
        let (name, instance) = match from {
            Node::Hub(id) => (format!("hub{id}"), None),
            Node::Server(id) => (format!("server{id}"), None),
            Node::Archive(_) => panic!("an archive asks for nothing"),
        };
        let who = Who {
            pid,
            user: "replicator".to_owned(),
            application_name: name.clone(),
            peer: format!("{name}:1"),
            wal_sender_timeout: Duration::ZERO,
            instance,
        };
        let conversation = Conversation::new(&process.hub, &who);
        let mut session = Self {
            conn,
            from,
            who,
            conversation,
            unread: BytesMut::new(),
            out: BytesMut::new(),
            state: State::Commands,
            terminated: false,
        };
        match process.hub.identity().filter(|_| process.hub.current_cell().is_some()) {
            Some(identity) => {
                welcome(&process.hub, &identity, &session.who, 0, &mut session.out);
            }
            None => session.state = State::Closing,
        }
        session
    }

    /// Is this client sent WAL from a file?
    pub(crate) fn has_file_open_for(&self, client: Node) -> bool {
        matches!(&self.state, State::Stream(sender) if sender.file.is_some()) && self.from == client
    }

    /// If it streams, it has to go: our WAL is set aside.
    pub(crate) fn terminate_stream(&mut self) {
        self.terminated |= matches!(self.state, State::Stream(_));
    }

    /// If it is a hub, its path has changed, and it has to go.
    pub(crate) fn terminate_hub(&mut self) {
        self.terminated |= matches!((&self.state, self.from), (State::Stream(_), Node::Hub(_)));
    }

    /// Its slot lost its WAL.
    pub(crate) fn terminate_if(&mut self, revoked: &[SlotToken]) {
        let State::Stream(sender) = &self.state else { return };
        self.terminated |= sender.hold.slot_token().is_some_and(|slot| revoked.contains(&slot));
    }

    /// The keeper opened a segment, or could not.
    pub(crate) fn opened(
        &mut self,
        process: &Process,
        (tli, no): (TimelineId, SegmentNo),
        file: &Result<PlantedFile, io::ErrorKind>,
    ) {
        let State::Stream(sender) = &mut self.state else { return };
        if sender.cell.tli() != tli || sender.asked != Some(no) {
            return;
        }
        sender.asked = None;
        match file {
            Ok(file) => sender.file = Some((no, file.clone())),
            Err(_) => {
                let size = process.shared().truth.borrow().size;
                let held = sender.hold.position();
                let kept = process.hub.holds.unbroken_from();
                promise!(
                    process.shared(),
                    held.segment(size) < kept.segment(size),
                    "hub {}: segment {} of timeline {tli} is missing, held from {held}, kept from \
                     {kept}",
                    process.ground.id,
                    no.raw()
                );
                process.shared().seen("WAL removed from under a laggard");
                if sender.cursor.unfinished().is_some() {
                    self.state = State::Closing;
                    return;
                }
                let refusal = refusals::segment_removed(SegmentName { tli, no, size });
                after_stream(&StreamEnd::Failed(refusal), &mut self.out);
                self.state = State::Commands;
            }
        }
    }

    /// One turn. False: the session is over.
    pub(crate) fn turn(&mut self, process: &Process) -> bool {
        let network = &process.shared().network;
        let received = network.borrow_mut().receive(self.conn, End::Server, &mut self.unread);
        let is_over = received.is_none() || self.terminated;
        // What was begun with a slot is finished, whether its client is there or not.
        if is_over && !matches!(self.state, State::Task(..)) {
            return false;
        }
        match &mut self.state {
            State::Closing => {
                let sent = network.borrow_mut().send(self.conn, End::Server, &self.out);
                self.out.advance(sent);
                return !self.out.is_empty();
            }
            State::Task(..) => self.look_at_task(process),
            State::Commands => self.converse(process),
            State::Stream(_) => self.listen(process),
        }
        if let State::Stream(_) = self.state {
            self.stream(process);
        } else {
            let sent = network.borrow_mut().send(self.conn, End::Server, &self.out);
            self.out.advance(sent);
        }
        true
    }

    /// The session is over.
    pub(crate) fn close(self, process: &Process) {
        process.shared().network.borrow_mut().close(self.conn, End::Server);
    }

    fn converse(&mut self, process: &Process) {
        let Self { conversation, who, unread, out, .. } = self;
        let step = conversation.take(&process.hub, who, unread, out);
        self.follow(process, step);
    }

    fn follow(&mut self, process: &Process, step: Step) {
        match step {
            Step::Close => self.state = State::Closing,
            Step::Stream(accepted) => {
                backend::copy_both(&mut self.out);
                if accepted.seam.is_some() {
                    // It is asked at once.
                    let asked = keepalive(accepted.start, PgTime::new(0), ReplyRequest::Yes);
                    self.out.extend_from_slice(&asked);
                }
                process.shared().trace(|| {
                    format!(
                        "hub {}: streams timeline {} from {} to {:?}",
                        process.ground.id,
                        accepted.cell.tli(),
                        accepted.start,
                        self.from
                    )
                });
                self.state = State::Stream(Box::new(Sender {
                    cell: accepted.cell,
                    cursor: Cursor::new(accepted.start),
                    seam: accepted.seam,
                    hold: accepted.hold,
                    phase: Phase::Streaming,
                    file: None,
                    asked: None,
                }));
            }
            Step::Slot(task) => {
                let told = match &task {
                    SlotTask::Create { name } | SlotTask::CreateThenStart { name, .. } => {
                        process.note_created(name);
                        save_slot(process, name.clone())
                    }
                    SlotTask::Drop { name } => drop_slot(process, name.clone()),
                    SlotTask::AwaitFree { .. } => panic!("nobody waits for a slot here"),
                };
                self.state = State::Task(task, told);
            }
            _ => self.state = State::Commands,
        }
    }

    fn look_at_task(&mut self, process: &Process) {
        let State::Task(_, work) = &mut self.state else { return };
        let Poll::Ready(result) = poll(work) else { return };
        let State::Task(task, _) = std::mem::replace(&mut self.state, State::Commands) else {
            return;
        };
        if process.shared().plant == Plant::ForgetsThePipeline {
            self.unread.clear();
        }
        let done = SlotDone { task, result };
        let step = self.conversation.resume(&process.hub, &self.who, done, &mut self.out);
        self.follow(process, step);
    }

    /// What a standby says in its stream.
    fn listen(&mut self, process: &Process) {
        loop {
            let State::Stream(sender) = &mut self.state else { return };
            let Some(frame) = next_frame(&self.unread, MAX_MESSAGE).unwrap() else { return };
            let (tag, len) = (frame.tag, frame.len);
            if tag == b'd'
                && let Ok(FromReceiver::Status(status)) = FromReceiver::parse(frame.body)
            {
                if let Some(seam) = sender.seam {
                    let furthest = status.write.max(status.flush).max(status.apply);
                    if furthest > seam {
                        process.shared().seen("a standby with the former WAL is refused");
                        let refusal =
                            refusals::reported_past_seam(furthest, sender.cell.tli(), seam);
                        after_stream(&StreamEnd::Failed(refusal), &mut self.out);
                        self.state = State::Commands;
                        self.unread.advance(len);
                        return;
                    }
                    sender.seam = None;
                }
                let here = |lsn: Lsn| sender.cell.end().map_or(lsn, |end| lsn.min(end));
                sender.hold.report(here(status.write), here(status.flush));
                if status.reply == ReplyRequest::Yes && matches!(sender.phase, Phase::Streaming) {
                    let at = sender.cursor.next();
                    let alive = keepalive(at, PgTime::new(0), ReplyRequest::No);
                    self.out.extend_from_slice(&alive);
                }
            }
            if tag == b'c'
                && let Phase::TimelineEnded { next, at } = sender.phase
            {
                after_stream(&StreamEnd::Timeline { next, at }, &mut self.out);
                self.state = State::Commands;
                process.shared().seen("standby sent on to the next timeline");
            }
            self.unread.advance(len);
        }
    }

    /// Sends what there is to be sent: the rest of a message, small things, new messages.
    fn stream(&mut self, process: &Process) {
        let State::Stream(sender) = &mut self.state else { return };
        let (shared, conn) = (process.shared(), self.conn);
        let send = |bytes: &[u8]| shared.network.borrow_mut().send(conn, End::Server, bytes);
        if let Some(rest) = sender.cursor.unfinished().cloned() {
            shared.seen("message cut short");
            if sender.cell.limit() < rest.end {
                shared.seen("rest of a message past the switchpoint");
            }
            let mut offered = rest.header[rest.header_sent..].to_vec();
            let wal = sender.collect(process, (rest.next, rest.end), rest.end);
            sender.check_sent(process, rest.next, &wal);
            if wal.is_empty() && rest.next < rest.end {
                return;
            }
            offered.extend_from_slice(&wal);
            let sent = send(&offered);
            sender.cursor.advance(sent, &[], &[]);
            if sender.cursor.unfinished().is_some() {
                return;
            }
        }
        if !self.out.is_empty() {
            let sent = send(&self.out);
            self.out.advance(sent);
            if !self.out.is_empty() {
                return;
            }
        }
        let Phase::Streaming = sender.phase else { return };
        if sender.send_new(process, send) {
            return;
        }
        // As `DataCore::end_of_timeline`.
        let from = sender.cursor.next_message();
        if let (Some(at), Some(next)) = (sender.cell.end(), sender.cell.next())
            && from >= at
        {
            if from > at {
                shared.seen("standby sent more than the switchpoint left");
            }
            backend::copy_done(&mut self.out);
            sender.phase = Phase::TimelineEnded { next: next.tli(), at };
        }
    }
}

/// As a connection's task does it.
fn save_slot(process: &Process, name: SlotName) -> Work<Result<(), String>> {
    let keeper = process.keeper.clone();
    Box::pin(async move { keeper.save_slot(name).await.map_err(|fault| fault.to_string()) })
}

fn drop_slot(process: &Process, name: SlotName) -> Work<Result<(), String>> {
    let keeper = process.keeper.clone();
    Box::pin(async move { keeper.drop_slot(name).await.map_err(|fault| fault.to_string()) })
}

impl Sender {
    /// New messages, as far as the WAL is at hand. False: nothing is due.
    fn send_new(&mut self, process: &Process, send: impl Fn(&[u8]) -> usize) -> bool {
        let shared = process.shared();
        let past = shared.plant == Plant::ServesPastTheSwitchpoint;
        let limit = if past { self.cell.durable() } else { self.cell.limit() };
        let limit = self.seam.map_or(limit, |seam| limit.min(seam));
        let from = self.cursor.next_message();
        if from >= limit {
            return false;
        }
        let to = limit.min(from.saturating_add(BUDGET));
        let wal = self.collect(process, (from, to), limit);
        let end = from.saturating_add(wal.len() as u64);
        let end = if end < limit && end.page_start() > from { end.page_start() } else { end };
        let (mut messages, mut headers, mut offered) = (Vec::new(), Vec::new(), Vec::new());
        for message in message::cut(from, end, BUDGET) {
            self.check_begun(process, message.end);
            let header = xlog_data_header(message.start, limit, PgTime::new(0), message.wal_len());
            let at = message.start.bytes_since(from) as usize;
            let bytes = &wal[at..at + message.wal_len()];
            self.check_sent(process, message.start, bytes);
            offered.extend_from_slice(&header);
            offered.extend_from_slice(bytes);
            messages.push(message);
            headers.push(header);
        }
        if offered.is_empty() {
            return true;
        }
        debug_assert!(offered.len() > XLOG_DATA_HEADER);
        let sent = send(&offered);
        self.cursor.advance(sent, &messages, &headers);
        self.hold.sent(self.cursor.next());
        if shared.plant == Plant::HoldsWhatIsDurable {
            self.hold.report(self.cell.durable(), self.cell.durable());
        }
        true
    }

    /// No new message extends past what is durable, nor past the timeline's end.
    fn check_begun(&self, process: &Process, end: Lsn) {
        let (shared, id, tli) = (process.shared(), process.ground.id, self.cell.tli());
        let model = process.ground.model.borrow();
        if let Some(fork) = model.ended.get(&tli) {
            promise!(
                shared,
                end <= *fork,
                "hub {id}: serves timeline {tli} up to {end}, past the switchpoint {fork}"
            );
        }
        if let Some((current, durable)) = model.published
            && current == tli
        {
            promise!(shared, end <= durable, "hub {id}: serves {end}, durable is {durable}");
        }
    }

    /// What is sent is what was written on the timeline.
    fn check_sent(&self, process: &Process, from: Lsn, wal: &[u8]) {
        let tli = self.cell.tli();
        let wrong = process.shared().truth.borrow().first_false(tli, from, wal);
        if let Some(at) = wrong {
            let id = process.ground.id;
            process.shared().broken(format!("hub {id}: false byte at {at} of timeline {tli}"));
        }
        if !process.hub.course.seams().is_empty() {
            let branch = process.shared().truth.borrow().branch_of(tli, from, wal);
            let (shared, id) = (process.shared(), process.ground.id);
            let is_former = branch == Some(Branch::Left);
            promise!(shared, !is_former, "hub {id}: sends WAL at {from} that was given up");
        }
    }

    /// The WAL `[from, to)` as far as it is at hand, of which `valid` and what lies before
    /// it is valid; what is not is asked for.
    fn collect(&mut self, process: &Process, (from, to): (Lsn, Lsn), valid: Lsn) -> Vec<u8> {
        let (mut at, mut wal) = (from, Vec::new());
        while at < to {
            let max = to.bytes_since(at) as usize;
            let pin = process.reader.pin();
            let warm = self.cell.durable().bytes_since(at) <= process.ground.warm;
            if warm && let Some(piece) = pin.bytes(self.cell.id(), at, max) {
                wal.extend_from_slice(piece);
                at = at.saturating_add(piece.len() as u64);
                continue;
            }
            drop(pin);
            match self.read(process, at, valid) {
                Ok(piece) => {
                    let count = piece.len().min(max);
                    wal.extend_from_slice(&piece[..count]);
                    at = at.saturating_add(count as u64);
                }
                Err(Missing::File(no)) => {
                    if wal.is_empty() && self.asked != Some(no) {
                        let tli = self.cell.tli();
                        let asked = process.core.post(Job::Open { tli, no });
                        self.asked = asked.is_ok().then_some(no);
                    }
                    break;
                }
                Err(Missing::Page(page, fault)) => {
                    let id = process.ground.id;
                    process.shared().broken(format!(
                        "hub {id}: a segment that is being read is not what it was: {fault} in \
                         page {page}"
                    ));
                    break;
                }
            }
        }
        wal
    }

    /// A block from the segment's file, checked page by page as `data::readback` does.
    fn read(&mut self, process: &Process, at: Lsn, valid: Lsn) -> Result<Vec<u8>, Missing> {
        let size = process.shared().truth.borrow().size;
        let no = at.segment(size);
        let file = match &self.file {
            Some((open, file)) if *open == no => file,
            _ => return Err(Missing::File(no)),
        };
        process.shared().seen("WAL read back from a file");
        if at.segment(size) < process.hub.holds.oldest_kept().segment(size) {
            process.shared().seen("WAL read on from a removed segment");
        }
        let start = Lsn::new(at.raw() - at.raw() % BLOCK);
        let disk = &process.ground.disk;
        let read = run_ready(read_full(disk, file, BLOCK as usize, start.segment_offset(size)));
        let mut block = read.expect("reads are not delayed").unwrap();
        let valid = valid.min(start.saturating_add(BLOCK));
        block.truncate(valid.bytes_since(start) as usize);
        let mut rules = page_rules(&process.hub, self.cell.tli()).unwrap();
        for (n, page) in block.chunks(PAGE_SIZE).enumerate() {
            let place = start.saturating_add((n * PAGE_SIZE) as u64);
            if page.first() == Some(&0) && block[n * PAGE_SIZE..].iter().all(|byte| *byte == 0) {
                break;
            }
            if page.len() >= LONG_HEADER {
                let header = PageHeader::parse(page).map_err(|f| Missing::Page(place, f))?;
                rules.check(place, &header).map_err(|f| Missing::Page(place, f))?;
            }
        }
        block.drain(..at.bytes_since(start) as usize);
        Ok(block)
    }
}
