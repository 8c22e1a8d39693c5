//! A hub's process: what the engines do, step by step, with the shipped parts. The keeper,
//! the store, the cells, the conversations are the real ones; what is written here once
//! more is the order in which the engines call them (`serve`, `data::receive`,
//! `keeper::serve`, `control::upstream`).

use crate::network::{Conn, End, Node};
use crate::plants::{Plant, PlantedDisk, PlantedFile};
use crate::session::Session;
use crate::shared::{Shared, pause, promise};
use crate::truth::MIB;
use bytes::{Buf, BytesMut};
use std::cell::{Cell as Flag, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use walhub::cluster::identity::Identity;
use walhub::cluster::instance::InstanceId;
use walhub::config::Config;
use walhub::data::Store;
use walhub::data::receive::Appended;
use walhub::hub::Hub;
use walhub::keeper::{Job, JobDone, JobKind, Keeper, Tended};
use walhub::ring::{ChunkReader, ChunkWriter};
use walhub::store::append::{Action, WriteId};
use walhub::store::control_file::{Cluster, ControlFile};
use walhub::store::durable::read_small;
use walhub::store::layout::{FileKind, Layout};
use walhub::store::retention::Holds;
use walhub::store::switch::Switch;
use walhub::store::{RecoveredWal, StoreFault, recover};
use walhub::upstream::end::UpstreamEnd;
use walhub::upstream::position::Position;
use walhub::upstream::stream::{StreamMessage, next_message};
use walhub::wal::{Lsn, SegmentNo, TimelineId};
use walhub::watermark::Cell;
use walhub::wire::copy::{ReplyRequest, StatusReply};
use walhub::wire::frontend;
use walhub::wire::time::PgTime;

/// Where the outcome of a job is put for whoever waits for it.
pub(crate) type Told1 = Rc<RefCell<Option<Result<(), String>>>>;

/// A job, and who waits for it.
pub(crate) struct Order {
    job: Job,
    tell: Option<Told1>,
    /// The keeper's turn in which it was given.
    given: u64,
}

/// What comes to the core.
pub(crate) enum News {
    Keeper(JobDone<PlantedFile>),
    Switched(Box<RecoveredWal>, Told1),
    Upstream { conn: Conn, unread: BytesMut, tli: TimelineId, start: Lsn, from: Node },
}

/// What outlives a hub's process, and what the simulation knows of it.
pub(crate) struct Ground {
    pub(crate) shared: Rc<Shared>,
    pub(crate) id: usize,
    pub(crate) disk: PlantedDisk,
    pub(crate) layout: Layout,
    pub(crate) config: Arc<Config>,
    pub(crate) writer: RefCell<Option<ChunkWriter>>,
    pub(crate) reader: ChunkReader,
    /// What lies further back is read from files. The log of a seed is short, so a cache of
    /// some hundred KiB is to it what one of many MiB is to others.
    pub(crate) warm: u64,
    pub(crate) model: RefCell<Model>,
}

/// What a hub has promised.
#[derive(Default)]
pub(crate) struct Model {
    /// Everything below was published on this timeline.
    pub(crate) published: Option<(TimelineId, Lsn)>,
    /// Ends of timelines that the hub has acted on.
    pub(crate) ended: BTreeMap<TimelineId, Lsn>,
    /// A switch that the keeper was asked for.
    pub(crate) asked: Option<Switch>,
    /// WAL before this was given up.
    pub(crate) released: Lsn,
    /// It stopped over something that needs a human: its own WAL and an upstream's differ.
    pub(crate) alarms: u64,
}

/// A running hub.
pub(crate) struct Process {
    pub(crate) ground: Rc<Ground>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) orders: RefCell<VecDeque<Order>>,
    pub(crate) inbox: RefCell<VecDeque<News>>,
    receive: RefCell<Receive>,
    /// How the stream ended, for the upstream's task.
    pub(crate) end: RefCell<Option<UpstreamEnd>>,
    pub(crate) sessions: RefCell<BTreeMap<Conn, Session>>,
    pub(crate) next_pid: Flag<u32>,
    /// The process has to end.
    pub(crate) halted: Flag<bool>,
    /// Turns that the keeper has had.
    pub(crate) keeper_turns: Flag<u64>,
    /// The most of them that something took for which a commit waits.
    pub(crate) longest_wait: Flag<u64>,
}

/// The receive role.
struct Receive {
    writer: ChunkWriter,
    store: Option<Store>,
    files: BTreeMap<SegmentNo, PlantedFile>,
    operations: Vec<Operation>,
    actions: Vec<Action>,
    link: Option<Link>,
    ended: Option<UpstreamEnd>,
}

struct Link {
    conn: Conn,
    from: Node,
    unread: BytesMut,
    expected: Lsn,
    told: Option<(Lsn, Lsn)>,
    /// CopyDone came: only the next timeline's name is awaited.
    ending: bool,
    /// There is no room for the next message until more is durable.
    paused: bool,
}

enum Operation {
    Write { id: WriteId, segment: SegmentNo, offset: u64, bytes: Vec<u8> },
    Sync(SegmentNo),
}

enum Taken {
    Yes,
    NotYet,
    End(UpstreamEnd),
}

/// Starts a process: what `serve` does before it serves anybody. The future may be dropped
/// at any step.
pub(crate) async fn start(
    ground: Rc<Ground>,
) -> Result<(Rc<Process>, Keeper<PlantedDisk>), StoreFault> {
    let Ground { disk, layout, config, .. } = &*ground;
    let recovered = recover(disk, layout).await?;
    let cluster = recovered.control.as_ref().and_then(|control| control.cluster.clone());
    let wal = recovered.wal.as_ref();
    if ground.shared.plant == Plant::RemovesBeforeAHole {
        ground.lose_before(wal.map_or(Lsn::INVALID, |wal| wal.extent.unbroken_from()));
    }
    let extent = wal.map(|wal| wal.extent.clone()).unwrap_or_default();
    let holds = Arc::new(Holds::of(extent));
    let complete = wal.and_then(|wal| wal.complete);
    let keeper = Keeper::new(
        disk.clone(),
        layout.clone(),
        Arc::clone(&holds),
        &recovered.listing,
        complete,
        cluster.clone(),
    );
    let keeper = keeper.with_policy(config.retention.clone());
    keeper.load_slots().await?;
    ground.check_start(&recovered, &holds);
    let instance = InstanceId::new(0x1000 + ground.id as u128);
    let control = recovered.control.unwrap_or(ControlFile { instance, cluster: None });
    let hub = Arc::new(Hub::new(Arc::clone(config), control.instance, holds));
    for tli in recovered.listing.histories {
        let content = read_small(disk, &layout.history(tli)).await.unwrap().unwrap();
        hub.set_history(tli, content.into());
    }
    // From here on nothing is awaited.
    let mut writer = ground.writer.borrow_mut().take().unwrap();
    let mut store = None;
    if let (Some(cluster), Some(wal)) = (&control.cluster, recovered.wal) {
        hub.set_identity(Arc::new(Identity {
            system_id: cluster.system_id,
            segment_size: cluster.segment_size,
            data_directory_mode: cluster.data_directory_mode.clone(),
            parameters: cluster.parameters.clone(),
        }));
        store = Some(resume(&hub, wal, &mut writer));
    }
    let orders = RefCell::default();
    let receive = Receive {
        writer,
        store,
        files: BTreeMap::new(),
        operations: Vec::new(),
        actions: Vec::new(),
        link: None,
        ended: None,
    };
    let process = Process {
        hub,
        orders,
        inbox: RefCell::default(),
        receive: RefCell::new(receive),
        end: RefCell::default(),
        sessions: RefCell::default(),
        next_pid: Flag::new(1),
        halted: Flag::new(false),
        keeper_turns: Flag::new(0),
        longest_wait: Flag::new(0),
        ground,
    };
    if control.cluster.is_none() {
        drop(process.save_control(None));
    }
    Ok((Rc::new(process), keeper))
}

impl Ground {
    /// The mistake: complete segments before `oldest` go.
    fn lose_before(&self, oldest: Lsn) {
        let size = self.shared.truth.borrow().size;
        for path in self.segments() {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let FileKind::Segment(name) = FileKind::of(name, size) else { continue };
            if name.no < oldest.segment(size) {
                self.disk.disk.lose(&path);
            }
        }
    }

    /// The complete segments in pg_wal.
    pub(crate) fn segments(&self) -> Vec<PathBuf> {
        let size = self.shared.truth.borrow().size;
        let is_segment = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            path.parent() == Some(self.layout.wal())
                && matches!(FileKind::of(name, size), FileKind::Segment(_))
        };
        self.disk.disk.names().into_iter().filter(is_segment).collect()
    }
}

/// As `serve::resume`.
fn resume(hub: &Hub, wal: RecoveredWal, writer: &mut ChunkWriter) -> Store {
    let (tli, durable, start) = (wal.walker.rules().tli, wal.durable, wal.prefix_from);
    let mut cells: Vec<Arc<Cell>> = Vec::new();
    for ended in &wal.ended {
        let cell = Arc::new(Cell::new(ended.tli, ended.oldest, ended.end));
        cell.seal(ended.end);
        cells.push(cell);
    }
    let store = Store::resume(wal, writer, hub.config.wal_buffers).unwrap();
    cells.push(Arc::clone(&store.cell));
    for (cell, next) in cells.iter().zip(cells.iter().skip(1)) {
        cell.link(Arc::clone(next));
    }
    hub.set_cells(cells);
    hub.set_position(Position::At { tli, durable, start });
    store
}

/// Does a commit wait for it?
fn is_urgent(job: &Job) -> bool {
    matches!(job, Job::Prepare { .. } | Job::Finalize { .. } | Job::Begin { .. } | Job::Switch(_))
}

/// The keeper's loop.
pub(crate) async fn keep(process: Rc<Process>, keeper: Keeper<PlantedDisk>) {
    loop {
        let order = process.orders.borrow_mut().pop_front();
        match order {
            Some(Order { job, tell, given }) => {
                let urgent = is_urgent(&job);
                let done = keeper.run(job).await;
                if urgent {
                    let took = process.keeper_turns.get() - given;
                    process.longest_wait.set(process.longest_wait.get().max(took));
                }
                process.deliver(done, tell);
            }
            None => {
                if !matches!(keeper.tend().await, Ok(Tended::More)) {
                    pause().await;
                }
            }
        }
    }
}

impl Process {
    pub(crate) fn shared(&self) -> &Rc<Shared> {
        &self.ground.shared
    }

    /// Gives the cache's memory back: the process is gone.
    pub(crate) fn end(self: Rc<Self>) {
        let ground = Rc::clone(&self.ground);
        let mut model = ground.model.borrow_mut();
        model.released = model.released.max(self.hub.holds.oldest_kept());
        drop(model);
        let Ok(process) = Rc::try_unwrap(self) else { panic!("a task outlives its process") };
        *ground.writer.borrow_mut() = Some(process.receive.into_inner().writer);
    }

    /// Posts a job and says where its outcome will be.
    pub(crate) fn order(&self, job: Job) -> Told1 {
        let told = Told1::default();
        self.give(job, Some(Rc::clone(&told)));
        told
    }

    fn give(&self, job: Job, tell: Option<Told1>) {
        let given = self.keeper_turns.get();
        self.orders.borrow_mut().push_back(Order { job, tell, given });
    }

    pub(crate) fn post(&self, job: Job) {
        self.give(job, None);
    }

    /// As `keeper::serve`, and what the control thread does with the answers.
    fn deliver(&self, done: JobDone<PlantedFile>, tell: Option<Told1>) {
        let answer = |tell: Option<Told1>, result| {
            if let Some(tell) = tell {
                *tell.borrow_mut() = Some(result);
            }
        };
        match done {
            JobDone::Switched(wal) => {
                let tell = tell.expect("somebody waits for a switch");
                self.ground.check_switched(&wal, &self.hub.holds);
                self.inbox.borrow_mut().push_back(News::Switched(wal, tell));
            }
            JobDone::Done(_) => answer(tell, Ok(())),
            JobDone::Failed { job, error } if tell.is_some() => {
                self.shared().trace(|| format!("hub {}: {job}: {error}", self.ground.id));
                answer(tell, Err(error.to_string()));
            }
            done => self.inbox.borrow_mut().push_back(News::Keeper(done)),
        }
    }

    fn save_control(&self, cluster: Option<Cluster>) -> Told1 {
        let control = ControlFile { instance: self.hub.instance, cluster };
        self.order(Job::SaveControl(Box::new(control)))
    }

    pub(crate) fn begin(&self, identity: &Identity, tli: TimelineId, start: Lsn) -> Told1 {
        self.ground.model.borrow_mut().released = start;
        self.save_control(Some(Cluster {
            system_id: identity.system_id,
            segment_size: identity.segment_size,
            data_directory_mode: identity.data_directory_mode.clone(),
            parameters: identity.parameters.clone(),
            timeline: tli,
            start,
            sealed: Vec::new(),
        }))
    }

    pub(crate) fn switch(&self, plan: Switch) -> Told1 {
        self.ground.model.borrow_mut().asked = Some(plan);
        self.order(Job::Switch(plan))
    }

    /// The clock of retention, and what follows a completed segment. The log of a seed is
    /// short: it is looked at as if more had come, so that something is removed at all.
    pub(crate) fn retain(&self, tli: TimelineId, newest: Lsn) {
        let now = self.shared().now();
        if self.shared().plant == Plant::RetainsByUnsavedSlots {
            let size = self.shared().truth.borrow().size;
            let oldest = self.hub.holds.oldest_kept();
            let mut slots = self.hub.holds.slots.lock();
            slots.absorb(oldest);
            for file in slots.to_save(size, now) {
                slots.saved(file, now);
            }
        }
        self.post(Job::Retain { tli, newest: newest.saturating_add(15 * MIB), now });
    }

    /// What retention has given up, and whom it has told to go.
    fn look_at_retention(&self) {
        let holds = &self.hub.holds;
        if holds.oldest_kept() > self.ground.model.borrow().released {
            self.ground.check_retained(holds, holds.oldest_kept());
        }
        let revoked = holds.slots.lock().take_revoked();
        for session in self.sessions.borrow_mut().values_mut() {
            session.terminate_if(&revoked);
        }
    }

    /// One pass of the core's loop, or a part of it.
    pub(crate) fn pass(&self) {
        let shared = self.shared();
        self.look_at_retention();
        let receive = &mut *self.receive.borrow_mut();
        if !receive.operations.is_empty() && shared.chance(700) {
            self.complete_one(receive);
        }
        if shared.chance(700) {
            let news = self.inbox.borrow_mut().pop_front();
            if let Some(news) = news {
                self.take_news(receive, news);
            }
        }
        self.parse_stream(receive);
        while !receive.actions.is_empty() {
            for action in std::mem::take(&mut receive.actions) {
                self.act_on(receive, action);
            }
        }
        self.status(receive);
        self.finish_stream(receive);
    }

    /// One of the operations in flight completes.
    fn complete_one(&self, receive: &mut Receive) {
        let index = self.shared().below(receive.operations.len() as u64) as usize;
        let operation = receive.operations.swap_remove(index);
        let Some(store) = &mut receive.store else { return };
        let disk = &self.ground.disk.disk;
        match operation {
            Operation::Write { id, segment, offset, bytes } => {
                let file = &receive.files[&segment];
                let result = disk.write_now(&file.file, &bytes, offset);
                store.appender.written(id, result, &mut receive.actions);
            }
            Operation::Sync(segment) => {
                let result = disk.sync_now(&receive.files[&segment].file);
                store.appender.synced(segment, result, &mut receive.actions);
            }
        }
    }

    fn take_news(&self, receive: &mut Receive, news: News) {
        match news {
            News::Upstream { conn, unread, tli, start, from } => {
                self.begin_receiving(receive, (conn, from), unread, (tli, start));
            }
            News::Switched(wal, tell) => {
                *tell.borrow_mut() = Some(self.go_on_with(receive, *wal));
            }
            News::Keeper(done) => self.receiver_news(receive, done),
        }
    }

    fn begin_receiving(
        &self,
        receive: &mut Receive,
        (conn, from): (Conn, Node),
        unread: BytesMut,
        (tli, start): (TimelineId, Lsn),
    ) {
        assert!(receive.link.is_none() && receive.ended.is_none(), "two upstream streams");
        let close = || self.shared().network.borrow_mut().close(conn, End::Client);
        if receive.store.is_none() {
            let buffers = self.hub.config.wal_buffers;
            match Store::begin(&self.hub, tli, start, &mut receive.writer, buffers) {
                Ok(store) => {
                    self.ground.model.borrow_mut().published = Some((tli, start));
                    receive.store = Some(store);
                }
                Err(end) => {
                    close();
                    *self.end.borrow_mut() = Some(end);
                    return;
                }
            }
        }
        if let Some(store) = &mut receive.store {
            if store.appender.out_of_space() {
                store.appender.resume(&mut receive.actions);
                self.retain(store.appender.tli(), store.appender.durable());
            }
            store.appender.warm_up(&mut receive.actions);
            if tli != store.cell.tli() || start > store.received() {
                close();
                let error = "the stream begins behind our end".to_owned();
                *self.end.borrow_mut() = Some(UpstreamEnd::Lost { error, at: start });
                return;
            }
        }
        receive.link = Some(Link {
            conn,
            from,
            unread,
            expected: start,
            told: None,
            ending: false,
            paused: false,
        });
    }

    /// As `DataCore::go_on_with`.
    fn go_on_with(&self, receive: &mut Receive, wal: RecoveredWal) -> Result<(), String> {
        if receive.link.is_some() || receive.ended.is_some() {
            return Err("the stream of the ended timeline is still there".to_owned());
        }
        let (start, fork) = (wal.prefix_from, wal.ended.last().map(|ended| ended.end));
        let old = self.hub.current_cell();
        let store = Store::resume(wal, &mut receive.writer, self.hub.config.wal_buffers);
        let store = store.map_err(|fault| fault.to_string())?;
        let next = Arc::clone(&store.cell);
        receive.actions.clear();
        receive.files.clear();
        receive.operations.clear();
        receive.store = Some(store);
        self.hub.push_cell(Arc::clone(&next));
        self.hub.set_position(Position::At { tli: next.tli(), durable: next.durable(), start });
        if let (Some(old), Some(fork)) = (old, fork) {
            self.shared().trace(|| {
                format!(
                    "hub {}: {} ended at {fork}, on with {}",
                    self.ground.id,
                    old.tli(),
                    next.tli()
                )
            });
            if old.durable() > fork {
                self.shared().seen("own WAL past the fork");
            }
            if fork.segment_offset(self.shared().truth.borrow().size) == 0 {
                self.shared().seen("fork on a segment boundary");
            }
            let mut model = self.ground.model.borrow_mut();
            model.asked = None;
            model.ended.insert(old.tli(), fork);
            model.published = Some((next.tli(), next.durable()));
            old.seal(fork);
            old.link(next);
        }
        self.shared().seen("switched");
        Ok(())
    }

    fn receiver_news(&self, receive: &mut Receive, news: JobDone<PlantedFile>) {
        if let JobDone::Opened { tli, no, result } = news {
            let file = result.map_err(|error| error.kind());
            for session in self.sessions.borrow_mut().values_mut() {
                session.opened(self, (tli, no), &file);
            }
            return;
        }
        let tli = match &news {
            JobDone::Prepared { tli, .. } | JobDone::Finalized { tli, .. } => *tli,
            JobDone::Begun { tli, .. } => *tli,
            _ => TimelineId::FIRST,
        };
        let Some(store) = &mut receive.store else { return };
        let out = &mut receive.actions;
        match news {
            JobDone::Prepared { .. } | JobDone::Finalized { .. } | JobDone::Begun { .. }
                if tli != store.cell.tli() =>
            {
                self.shared().broken(format!("hub {}: late answer of {tli}", self.ground.id));
            }
            JobDone::Prepared { no, file, .. } => {
                receive.files.insert(no, file);
                store.appender.segment_ready(no, out);
            }
            JobDone::Finalized { no, .. } => {
                store.appender.finalized(no);
                self.retain(store.appender.tli(), store.appender.durable());
            }
            JobDone::Begun { begun, .. } => store.appender.begun(Ok(begun), out),
            JobDone::Failed { job: JobKind::Prepare { no, .. }, error } => {
                store.appender.prepare_failed(no, &error, out);
            }
            JobDone::Failed { job: JobKind::Finalize { no, .. }, error } => {
                store.appender.finalize_failed(no, &error, out);
            }
            JobDone::Failed { job: JobKind::Begin { .. }, error } => {
                store.appender.begun(Err(&error), out);
            }
            JobDone::Failed { job, error } => {
                self.shared().broken(format!("hub {}: could not {job}: {error}", self.ground.id));
            }
            _ => {}
        }
    }

    fn parse_stream(&self, receive: &mut Receive) {
        let Some(mut link) = receive.link.take() else { return };
        let open = link.paused || {
            let mut network = self.shared().network.borrow_mut();
            network.receive(link.conn, End::Client, &mut link.unread).is_some()
        };
        link.paused = false;
        let mut unread = std::mem::take(&mut link.unread);
        receive.link = Some(link);
        let (mut end, mut paused) = (None, false);
        while end.is_none() {
            match next_message(&unread) {
                Ok(None) => break,
                Ok(Some((told, len))) => match self.take(receive, told) {
                    Taken::Yes => unread.advance(len),
                    Taken::NotYet => {
                        paused = true;
                        break;
                    }
                    Taken::End(ended) => end = Some(ended),
                },
                Err(fault) => panic!("a simulated server speaks nonsense: {fault}"),
            }
        }
        let at = receive.link.as_ref().map_or(Lsn::INVALID, |link| link.expected);
        if let Some(link) = &mut receive.link {
            link.unread = unread;
            link.paused = paused;
        }
        if end.is_none() && !open {
            let error = "server closed the connection unexpectedly".to_owned();
            end = Some(UpstreamEnd::Lost { error, at });
        }
        if let Some(end) = end {
            self.end_stream(receive, end);
        }
    }

    fn take(&self, receive: &mut Receive, told: StreamMessage<'_>) -> Taken {
        let Some(link) = &mut receive.link else { return Taken::Yes };
        match told {
            StreamMessage::Nothing | StreamMessage::ReplyWanted => Taken::Yes,
            StreamMessage::Wal { start, wal } => self.take_wal(receive, start, wal),
            StreamMessage::CopyDone => {
                let mut done = BytesMut::new();
                frontend::copy_done(&mut done);
                self.shared().network.borrow_mut().send_all(link.conn, End::Client, &done);
                link.ending = true;
                Taken::Yes
            }
            StreamMessage::Next { tli, at } => Taken::End(UpstreamEnd::Timeline { next: tli, at }),
            StreamMessage::Error(error) => Taken::End(UpstreamEnd::Refused {
                sqlstate: error.sqlstate,
                message: error.message,
            }),
            StreamMessage::ShutDown => {
                let error = "replication terminated by upstream server".to_owned();
                Taken::End(UpstreamEnd::Lost { error, at: link.expected })
            }
        }
    }

    /// As `Receiver::take_wal`.
    fn take_wal(&self, receive: &mut Receive, start: Lsn, wal: &[u8]) -> Taken {
        let (Some(link), Some(store)) = (&mut receive.link, &mut receive.store) else {
            return Taken::Yes;
        };
        if link.ending {
            return Taken::Yes;
        }
        if start != link.expected {
            let error = format!("upstream sent WAL at {start}, expected {}", link.expected);
            // A simulated server does not; a hub must not either.
            self.shared().broken(format!("hub {}: {error}", self.ground.id));
            return Taken::End(UpstreamEnd::Lost { error, at: start });
        }
        let end = start.saturating_add(wal.len() as u64);
        let received = store.received();
        let known = (received.bytes_since(start) as usize).min(wal.len());
        let (overlap, new) = wal.split_at(known);
        let blind = self.shared().plant == Plant::ArchiveWinsSilently
            && matches!(link.from, Node::Archive(_));
        if !blind && let Err(end) = store.compare(&receive.writer, start, overlap) {
            return Taken::End(end);
        }
        let unsynced = received.bytes_since(store.appender.durable());
        let most = (self.hub.config.wal_buffers / 2) as u64;
        if unsynced > 0 && unsynced + new.len() as u64 > most {
            return Taken::NotYet;
        }
        if !new.is_empty() {
            match store.append(&mut receive.writer, new) {
                Ok(Appended::Taken) => store.appender.received(end, &mut receive.actions),
                Ok(Appended::NoRoom) => return Taken::NotYet,
                Err(end) => return Taken::End(end),
            }
        }
        link.expected = end;
        Taken::Yes
    }

    /// As `DataCore::act_on`.
    fn act_on(&self, receive: &mut Receive, action: Action) {
        let id = self.ground.id;
        let Some(store) = &mut receive.store else { return };
        let tli = store.cell.tli();
        match action {
            Action::Prepare { segment, keep } => {
                self.post(Job::Prepare { tli, no: segment, keep });
            }
            Action::Write { id, segment, offset, from, to } => {
                let bytes = from_cache(&receive.writer, from, to);
                receive.operations.push(Operation::Write { id, segment, offset, bytes });
            }
            Action::Sync(segment) => receive.operations.push(Operation::Sync(segment)),
            Action::Begin(upto) => {
                let start = store.begins;
                self.post(Job::Begin { tli, start, upto });
            }
            Action::Durable(lsn) => {
                store.publish(lsn, &mut receive.writer);
                self.ground.model.borrow_mut().published = Some((tli, lsn));
            }
            Action::Finalize(segment) => {
                receive.files.remove(&segment);
                self.post(Job::Finalize { tli, no: segment });
            }
            Action::DropToDurable(lsn) => {
                self.shared().seen("space ran out");
                receive.files.clear();
                store.rewind(lsn, &mut receive.writer);
                self.end_stream(receive, UpstreamEnd::NoSpace);
            }
            Action::Halt(reason) => {
                self.shared().trace(|| format!("hub {id}: {reason}"));
                self.halted.set(true);
            }
        }
    }

    fn status(&self, receive: &mut Receive) {
        let (Some(link), Some(store)) = (&mut receive.link, &receive.store) else { return };
        let appender = &store.appender;
        let (write, flush) = (appender.durable(), appender.flush_reportable());
        promise!(self.shared(), flush <= write, "hub {}: flush past the mark", self.ground.id);
        if link.told == Some((write, flush)) || link.ending {
            return;
        }
        let client_time = PgTime::new(0);
        let reply = ReplyRequest::No;
        let status = StatusReply { write, flush, apply: flush, client_time, reply }.encode();
        self.shared().network.borrow_mut().send_all(link.conn, End::Client, &status);
        link.told = Some((write, flush));
    }

    fn end_stream(&self, receive: &mut Receive, end: UpstreamEnd) {
        let Some(link) = receive.link.take() else { return };
        self.shared().network.borrow_mut().close(link.conn, End::Client);
        self.shared()
            .trace(|| format!("hub {}: stream ends at {}: {end:?}", self.ground.id, link.expected));
        receive.ended.get_or_insert(end);
    }

    fn finish_stream(&self, receive: &mut Receive) {
        if receive.ended.is_none() || self.halted.get() {
            return;
        }
        if let Some(store) = &receive.store {
            let appender = &store.appender;
            if !(appender.settled() || appender.out_of_space()) {
                return;
            }
            self.hub.set_position(Position::At {
                tli: store.cell.tli(),
                durable: appender.durable(),
                start: store.start_of_next(&receive.writer),
            });
        }
        *self.end.borrow_mut() = receive.ended.take();
    }

    /// Looks after its clients.
    pub(crate) fn serve(&self) {
        let here = Node::Hub(self.ground.id);
        let accepted = self.shared().network.borrow_mut().accept(here);
        if let Some((conn, from)) = accepted {
            self.sessions.borrow_mut().insert(conn, Session::new(self, conn, from));
        }
        let conns: Vec<_> = self.sessions.borrow().keys().copied().collect();
        for conn in conns {
            let session = self.sessions.borrow_mut().remove(&conn);
            let Some(mut session) = session else { continue };
            if session.turn(self) {
                self.sessions.borrow_mut().insert(conn, session);
            } else {
                session.close(self);
            }
        }
    }

    /// Cuts a stream that is under way, as an operator's change of the upstream does.
    pub(crate) fn drop_upstream(&self) {
        let receive = &mut *self.receive.borrow_mut();
        let at = receive.link.as_ref().map_or(Lsn::INVALID, |link| link.expected);
        self.end_stream(receive, UpstreamEnd::Lost { error: "cut".to_owned(), at });
    }

    /// Is a client sent WAL from a file?
    pub(crate) fn has_file_open_for(&self, client: Node) -> bool {
        self.sessions.borrow().values().any(|session| session.has_file_open_for(client))
    }

    /// From whom it receives.
    pub(crate) fn upstream(&self) -> Option<Node> {
        self.receive.borrow().link.as_ref().map(|link| link.from)
    }

    /// A line about where it stands.
    pub(crate) fn describe(&self) -> String {
        let receive = self.receive.borrow();
        let appender = receive.store.as_ref().map(|store| &store.appender);
        let link = receive.link.as_ref().map(|link| (link.from, link.expected, link.unread.len()));
        format!(
            "{:?} link {link:?} ended {:?} orders {} inbox {} operations {} {appender:?}",
            self.hub.position(),
            receive.ended,
            self.orders.borrow().len(),
            self.inbox.borrow().len(),
            receive.operations.len(),
        )
    }
}

/// What a write takes from the cache: what was received by now, then zeros.
fn from_cache(writer: &ChunkWriter, from: Lsn, to: Lsn) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(to.bytes_since(from) as usize);
    let mut at = from;
    while at < to
        && let Some(piece) = writer.peek(at, to.bytes_since(at) as usize)
    {
        bytes.extend_from_slice(piece);
        at = at.saturating_add(piece.len() as u64);
    }
    bytes.resize(to.bytes_since(from) as usize, 0);
    bytes
}
