//! A hub's receive role: the shipped one, driven by its effects. What `data::io` does with them on
//! a ring is done here over the simulated network and disk, and chance decides what completes when.

use crate::environment::connection_of;
use crate::hub::{News, Process};
use crate::network::{Conn, End, Node};
use crate::plants::PlantedFile;
use crate::shared::{Shared, promise};
use bytes::{Buf, BytesMut};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use walhub::data::figures::{About, Figures, Inquiry};
use walhub::data::handoff::{ToCore, UpstreamHandoff};
use walhub::data::receive::{Admission, Effect, Goodbye, NoSwitch, Offer, ToUpstream};
use walhub::data::{Moment, Receiver};
use walhub::keeper::{AnswerInbox, CoreClient, Job, JobDone, JobKind};
use walhub::ring::ChunkRange;
use walhub::store::RecoveredWal;
use walhub::store::append::WriteId;
use walhub::wal::SegmentNo;
use walhub::wire::frontend;

/// The role's effects, over simulated files.
type Effects = Vec<Effect<PlantedFile>>;

/// The keeper's answers to a core, and how long what a commit waits for has taken.
#[derive(Default)]
pub(crate) struct Answers {
    queue: Mutex<VecDeque<JobDone<PlantedFile>>>,
    /// When the jobs were given that a commit waits for, oldest first.
    given: Mutex<VecDeque<u64>>,
    /// The keeper's turns so far.
    turns: AtomicU64,
    /// The most of them that such a job took.
    longest: AtomicU64,
}

impl AnswerInbox<PlantedFile> for Answers {
    fn answer(&self, done: JobDone<PlantedFile>) {
        if let JobDone::Prepared { .. }
        | JobDone::Finalized { .. }
        | JobDone::Begun { .. }
        | JobDone::Failed {
            job: JobKind::Prepare { .. } | JobKind::Finalize { .. } | JobKind::Begin { .. },
            ..
        } = done
        {
            let given = lock(&self.given).pop_front().expect("a job was given");
            let took = self.turns.load(Ordering::Relaxed) - given;
            self.longest.fetch_max(took, Ordering::Relaxed);
        }
        lock(&self.queue).push_back(done);
    }
}

impl Answers {
    /// The keeper has one more turn.
    pub(crate) fn count_turn(&self) {
        self.turns.fetch_add(1, Ordering::Relaxed);
    }

    /// How many of the keeper's turns a job has taken at most that a commit waits for.
    pub(crate) fn longest(&self) -> u64 {
        self.longest.load(Ordering::Relaxed)
    }

    /// What was long before is forgotten.
    pub(crate) fn forget_longest(&self) {
        self.longest.store(0, Ordering::Relaxed);
    }

    /// The next answer.
    pub(crate) fn take(&self) -> Option<JobDone<PlantedFile>> {
        lock(&self.queue).pop_front()
    }

    fn note_given(&self, job: &Job) {
        if is_awaited(job) {
            lock(&self.given).push_back(self.turns.load(Ordering::Relaxed));
        }
    }

    /// The keeper's queue was full.
    fn take_back(&self, job: &Job) {
        if is_awaited(job) {
            lock(&self.given).pop_back();
        }
    }
}

/// Does a commit wait for it?
const fn is_awaited(job: &Job) -> bool {
    matches!(job, Job::Prepare { .. } | Job::Finalize { .. } | Job::Begin { .. })
}

fn lock<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().expect("nobody panics here")
}

/// The receive role and what it asked for.
pub(crate) struct Receiving {
    role: Receiver<PlantedFile>,
    keeper: CoreClient<PlantedFile>,
    /// Jobs that found the keeper's queue full.
    jobs: VecDeque<Job>,
    line: Option<Line>,
    operations: Vec<Operation>,
    effects: Effects,
}

/// The connection to an upstream.
struct Line {
    conn: Conn,
    from: Node,
    unread: BytesMut,
    outbox: Vec<u8>,
}

/// An operation in flight.
enum Operation {
    Write { id: WriteId, file: PlantedFile, offset: u64, bytes: ChunkRange },
    Sync { segment: SegmentNo, file: PlantedFile },
}

impl Receiving {
    pub(crate) const fn new(role: Receiver<PlantedFile>, keeper: CoreClient<PlantedFile>) -> Self {
        Self {
            role,
            keeper,
            jobs: VecDeque::new(),
            line: None,
            operations: Vec::new(),
            effects: Vec::new(),
        }
    }

    /// From whom it receives.
    pub(crate) fn upstream(&self) -> Option<Node> {
        self.line.as_ref().map(|line| line.from)
    }

    /// One pass of the core's loop, or a part of it.
    pub(crate) fn pass(&mut self, process: &Process) {
        let shared = process.shared();
        if !self.operations.is_empty() && shared.chance(700) {
            self.complete_one(process);
        }
        if shared.chance(700)
            && let Some(news) = process.take_news()
        {
            self.obey(process, news);
        }
        self.take_in(process);
        self.tell(process, Receiver::on_time);
        self.say_unsaid(process);
        self.tell(process, |role, at, out| role.finish(at.now, out));
        self.post_jobs(process);
    }

    /// One of the operations in flight completes.
    fn complete_one(&mut self, process: &Process) {
        let index = process.shared().below(self.operations.len() as u64) as usize;
        let disk = &process.ground.disk.disk;
        match self.operations.swap_remove(index) {
            Operation::Write { id, file, offset, bytes } => {
                let result = disk.write_now(&file.file, &bytes.filled(), offset);
                drop(bytes);
                self.tell(process, |role, at, out| role.on_written(id, result, at.now, out));
            }
            Operation::Sync { segment, file } => {
                let result = disk.sync_now(&file.file);
                self.tell(process, |role, at, out| role.on_synced(segment, result, at.now, out));
            }
        }
    }

    fn obey(&mut self, process: &Process, news: News) {
        match news {
            News::Control(message) => self.obey_control(process, message),
            News::Keeper(JobDone::Opened { tli, no, result }) => {
                process.opened((tli, no), &result.map_err(|error| error.kind()));
            }
            News::Keeper(done) => {
                let completed = matches!(done, JobDone::Finalized { .. });
                self.tell(process, |role, at, out| role.on_keeper(done, at.now, out));
                if completed && let Some(store) = self.role.store() {
                    process.retain(store.cell.tli(), store.appender.durable().lsn());
                }
            }
        }
    }

    /// As the core's loop does.
    fn obey_control(&mut self, process: &Process, message: ToCore) {
        match message {
            ToCore::Upstream(handoff) => self.connect(process, *handoff),
            ToCore::RecallUpstream => self.tell(process, Receiver::recall),
            ToCore::Tell(Inquiry { about: About::Receiver, answer }) => {
                let receiver = self.role.figures();
                // The caller may have given up.
                drop(answer.send(Figures { receiver, ..Figures::default() }));
            }
            // The standbys of a world are sessions of its own.
            ToCore::Tell(Inquiry { about: About::Standbys(_), answer }) => {
                drop(answer.send(Figures::default()));
            }
            ToCore::EndHubStreams => process.end_hub_streams(),
            ToCore::BeginAnew => {
                process.end_streams();
                self.tell(process, |role, _, out| role.begin_anew(out));
            }
            ToCore::CutOff { wal, told } => {
                let gone_on = self.tell(process, |role, _, out| role.go_on_from_seam(*wal, out));
                process.note_published();
                // The caller may have given up; the WAL is the same.
                drop(told.send(gone_on));
            }
            ToCore::Switched { wal, told } => {
                process.check_switch(&wal);
                // The caller may have given up; the WAL is the same.
                drop(told.send(self.go_on_with(process, *wal)));
            }
            other => panic!("the upstream's task says {other:?}"),
        }
    }

    fn connect(&mut self, process: &Process, handoff: UpstreamHandoff) {
        let UpstreamHandoff { socket, unread, start, tli, source } = handoff;
        let (conn, offer) = (connection_of(&socket), Offer { tli, start, source });
        let shared = process.shared();
        let from = shared.network.borrow().server_of(conn);
        let is_first = self.role.store().is_none();
        let at = Moment::new(&**shared, shared.clock());
        match self.role.on_offer(offer, &at, &mut self.effects) {
            Admission::Accepted => {
                let from = from.unwrap_or(Node::Archive(process.ground.id));
                self.line = Some(Line { conn, from, unread, outbox: Vec::new() });
            }
            Admission::Refused => shared.network.borrow_mut().close(conn, End::Client),
        }
        if is_first {
            process.note_published();
        }
        self.carry_out(process);
    }

    fn go_on_with(&mut self, process: &Process, wal: RecoveredWal) -> Result<(), NoSwitch> {
        let (old, fork) = (process.hub.current_cell(), wal.ended.last().map(|ended| ended.end));
        let gone_on = self.tell(process, |role, _, out| role.go_on_with(wal, out));
        gone_on?;
        if let (Some(old), Some(fork)) = (old, fork) {
            process.note_switched(&old, fork);
        }
        Ok(())
    }

    /// The stream is cut.
    pub(crate) fn cut(&mut self, process: &Process) {
        self.tell(process, |role, _, out| role.on_lost("cut".to_owned(), out));
    }

    /// Has the role handle something, and carries out its effects.
    fn tell<T>(
        &mut self,
        process: &Process,
        event: impl FnOnce(&mut Receiver<PlantedFile>, &Moment<'_, Shared>, &mut Effects) -> T,
    ) -> T {
        let shared = process.shared();
        let at = Moment::new(&**shared, shared.clock());
        let told = event(&mut self.role, &at, &mut self.effects);
        self.carry_out(process);
        told
    }

    /// Offers the role what has arrived.
    fn take_in(&mut self, process: &Process) {
        let Some(line) = &mut self.line else { return };
        let open = !self.role.is_reading() || {
            let mut network = process.shared().network.borrow_mut();
            network.receive(line.conn, End::Client, &mut line.unread).is_some()
        };
        let now = process.shared().clock();
        let taken = self.role.on_bytes(&line.unread, now, &mut self.effects);
        line.unread.advance(taken);
        if !open {
            let error = "server closed the connection unexpectedly".to_owned();
            self.role.on_lost(error, &mut self.effects);
        }
        self.carry_out(process);
    }

    fn carry_out(&mut self, process: &Process) {
        for effect in std::mem::take(&mut self.effects) {
            match effect {
                Effect::Write { id, file, offset, bytes } => {
                    self.operations.push(Operation::Write { id, file, offset, bytes });
                }
                Effect::Sync { segment, file } => {
                    self.operations.push(Operation::Sync { segment, file });
                }
                Effect::Job(job) => self.jobs.push_back(job),
                Effect::UrgentJob(job) => self.jobs.push_front(job),
                Effect::ForgetJobs => self.jobs.clear(),
                Effect::Tell(message) => self.say(process, message),
                Effect::Published => process.note_published(),
                Effect::Disconnect(goodbye) => self.disconnect(process, goodbye),
                Effect::Ended(end) => process.note_ended(end),
                Effect::Halt => process.halted.set(true),
            }
        }
    }

    fn say(&mut self, process: &Process, message: ToUpstream) {
        if let ToUpstream::Status(status) = message {
            let (id, shared) = (process.ground.id, process.shared());
            promise!(shared, status.flush <= status.write, "hub {id}: flush past the mark");
        }
        if let Some(line) = &mut self.line {
            message.encode(&mut line.outbox);
        }
    }

    /// Sends what the upstream is owed, as far as there is room.
    fn say_unsaid(&mut self, process: &Process) {
        if let Some(Line { conn, outbox, .. }) = &mut self.line {
            let sent = process.shared().network.borrow_mut().send(*conn, End::Client, outbox);
            outbox.drain(..sent);
        }
    }

    fn disconnect(&mut self, process: &Process, goodbye: Goodbye) {
        let Some(Line { conn, mut outbox, .. }) = self.line.take() else { return };
        let mut network = process.shared().network.borrow_mut();
        if goodbye == Goodbye::Terminate {
            let mut terminate = BytesMut::new();
            frontend::terminate(&mut terminate);
            outbox.extend_from_slice(&terminate);
        }
        network.send(conn, End::Client, &outbox);
        network.close(conn, End::Client);
    }

    fn post_jobs(&mut self, process: &Process) {
        while let Some(job) = self.jobs.pop_front() {
            process.answers.note_given(&job);
            if let Err(job) = self.keeper.post(job) {
                process.answers.take_back(&job);
                self.jobs.push_front(job);
                return;
            }
        }
    }

    /// A line about where it stands.
    pub(crate) fn describe(&self) -> String {
        let appender = self.role.store().map(|store| &store.appender);
        let line = self.line.as_ref().map(|line| (line.from, line.unread.len()));
        format!(
            "line {line:?} jobs {} operations {} {appender:?}",
            self.jobs.len(),
            self.operations.len()
        )
    }
}
