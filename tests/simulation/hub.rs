//! A hub's process. The start (`keeper::open`, `serve::boot`, `serve::course`), the keeper's loop,
//! the receive role, the upstream's task and the conversations are the shipped ones; what is here
//! besides is what threads and sockets do for them.

use crate::archive::Condition;
use crate::environment::{Fetch, Restores, Surroundings};
use crate::kinds::Kind;
use crate::network::{Conn, Node};
use crate::plants::{Plant, PlantedDisk, PlantedFile};
use crate::receiving::{Answers, Receiving};
use crate::session::Session;
use crate::shared::{Shared, pause, promise};
use crate::truth::MIB;
use crate::world::{Work, poll};
use std::cell::{Cell as Flag, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use walhub::cluster::instance::InstanceId;
use walhub::config::Config;
use walhub::data::Receiver;
use walhub::data::handoff::{Inbox, ToCore, mailbox};
use walhub::follow::{self, ENDS, ORDERS, Parts, Steer, UpstreamOrder};
use walhub::hub::Hub;
use walhub::keeper::{self, CoreClient, Job, JobDone, Keeper, KeeperClient, Order, Orders, QUEUE};
use walhub::ring::{ChunkReader, chunks};
use walhub::serve::{boot, course};
use walhub::store::control_file::ControlFile;
use walhub::store::durable::read_small;
use walhub::store::evidence::{Difference, Evidence};
use walhub::store::layout::{FileKind, Layout};
use walhub::store::seams::Seams;
use walhub::store::slots::SlotChange;
use walhub::store::switch::Switch;
use walhub::store::{RecoveredWal, StoreFault};
use walhub::upstream::end::UpstreamEnd;
use walhub::upstream::state::UpstreamState;
use walhub::wal::{Lsn, SegmentNo, TimelineId};
use walhub::watermark::Cell;
use walhub::wire::secret::Secret;

/// How many messages of the control thread may wait for the core.
const INBOX: usize = 4;

/// How an operator's order is answered.
pub(crate) type Answer = oneshot::Receiver<Result<(), String>>;

/// What comes to the core.
pub(crate) enum News {
    Keeper(JobDone<PlantedFile>),
    Control(ToCore),
}

/// What outlives a hub's process, and what the simulation knows of it.
pub(crate) struct Ground {
    pub(crate) shared: Rc<Shared>,
    pub(crate) id: usize,
    pub(crate) disk: PlantedDisk,
    pub(crate) layout: Layout,
    pub(crate) config: Arc<Config>,
    /// What lies further back is read from files. The log of a seed is short, so a cache of
    /// some hundred KiB is to it what one of many MiB is to others.
    pub(crate) warm: u64,
    pub(crate) model: RefCell<Model>,
    /// Segments that are being fetched from the archive.
    pub(crate) fetches: RefCell<VecDeque<Fetch>>,
    /// What came of the last fetch of each file.
    pub(crate) fetched: RefCell<BTreeMap<String, Condition>>,
}

/// What a hub has promised.
#[derive(Default)]
pub(crate) struct Model {
    /// Everything below was published on this timeline.
    pub(crate) published: Option<(TimelineId, Lsn)>,
    /// Ends of timelines that the hub has acted on.
    pub(crate) ended: BTreeMap<TimelineId, Lsn>,
    /// WAL before this was given up.
    pub(crate) released: Lsn,
    /// Was the archive asked after the last connection?
    pub(crate) asked_archive: bool,
}

/// A running hub.
pub(crate) struct Process {
    pub(crate) ground: Rc<Ground>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) keeper: KeeperClient<PlantedFile>,
    /// The core's way to the keeper.
    pub(crate) core: CoreClient<PlantedFile>,
    pub(crate) answers: Arc<Answers>,
    /// The control thread's messages to the core.
    inbox: Inbox,
    pub(crate) reader: ChunkReader,
    receiving: RefCell<Receiving>,
    /// How streams ended, on the way to the upstream's task.
    ends: RefCell<VecDeque<UpstreamEnd>>,
    to_task: mpsc::Sender<UpstreamEnd>,
    operator: mpsc::Sender<UpstreamOrder>,
    /// The differences that stand.
    evidence: RefCell<Arc<Evidence>>,
    /// Other tasks of the control thread.
    tasks: RefCell<Vec<Work<()>>>,
    pub(crate) sessions: RefCell<BTreeMap<Conn, Session>>,
    pub(crate) next_pid: Flag<u32>,
    /// The process has to end.
    pub(crate) halted: Flag<bool>,
}

/// A process that has started, its keeper's thread and its upstream's task.
pub(crate) type Started = (Rc<Process>, Work<()>, Work<()>);

/// Starts a process: what `serve` does before it serves anybody. The future may be dropped at any
/// step.
pub(crate) async fn start(ground: Rc<Ground>) -> Result<Started, StoreFault> {
    let Ground { disk, layout, config, .. } = &*ground;
    disk.forget_children();
    let (keeper, recovered, holds) =
        keeper::open(disk.clone(), layout, config.retention.clone()).await?;
    if ground.shared.plant == Plant::RemovesBeforeAHole {
        let wal = recovered.wal.as_ref();
        ground.lose_before(wal.map_or(Lsn::INVALID, |wal| wal.extent.unbroken_from()));
    }
    ground.check_start(&recovered, &holds);
    let mut histories = Vec::new();
    for tli in &recovered.listing.histories {
        let content = read_small(disk, &layout.history(*tli)).await.unwrap().unwrap();
        histories.push((*tli, content.into()));
    }
    // From here on nothing is awaited.
    let (client, orders) = keeper::queue(QUEUE);
    let instance = InstanceId::new(0x1000 + ground.id as u128);
    let control = recovered.control.unwrap_or(ControlFile { instance, cluster: None });
    let hub = Arc::new(Hub::new(Arc::clone(config), control.instance, holds));
    ground.take_over_course(&hub);
    if control.cluster.is_none() {
        client.note(Job::SaveControl(Box::new(control.clone())));
    }
    let (mut writer, mut readers) = chunks(config.wal_buffers, 1).unwrap();
    let store = match (&control.cluster, recovered.wal) {
        (Some(cluster), Some(wal)) => {
            Some(boot::resume(&hub, cluster, histories, wal, &mut writer).unwrap())
        }
        _ => None,
    };
    let answers = Arc::new(Answers::default());
    let core = client.for_core(Arc::<Answers>::clone(&answers));
    let role = Receiver::new(Arc::clone(&hub), writer, store);
    let (mailbox, inbox) = mailbox(INBOX, Arc::new(|| {}));
    let (to_task, ends) = mpsc::channel(ENDS);
    let (operator, ordered) = mpsc::channel(ORDERS);
    let archive = Restores { hub: ground.id };
    let parts = Parts {
        hub: Arc::clone(&hub),
        cores: vec![mailbox.clone()],
        keeper: client.clone(),
        archive: ground.shared.archive.borrow().there.then(|| Arc::new(archive)),
        environment: Surroundings { hub: ground.id, receiver: mailbox },
    };
    let process = Process {
        receiving: RefCell::new(Receiving::new(role, core.clone())),
        reader: readers.remove(0),
        evidence: RefCell::new(hub.course.evidence()),
        hub,
        keeper: client,
        core,
        answers,
        inbox,
        ends: RefCell::default(),
        to_task,
        operator,
        tasks: RefCell::default(),
        sessions: RefCell::default(),
        next_pid: Flag::new(1),
        halted: Flag::new(false),
        ground: Rc::clone(&ground),
    };
    let shared = Rc::clone(&ground.shared);
    let keeper = keeper.with_clock(move || shared.both());
    let serving: Work<()> = match ground.shared.plant {
        Plant::OneLane => Box::pin(serve_in_one_lane(keeper, orders)),
        _ => Box::pin(async move { keeper::serve(&keeper, orders, None).await }),
    };
    Ok((Rc::new(process), serving, Box::pin(follow::run(parts, ends, ordered))))
}

/// The mistake: one job at a time, whatever its lane.
async fn serve_in_one_lane(keeper: Keeper<PlantedDisk>, orders: Orders<PlantedFile>) {
    let Orders { mut urgent, mut patient } = orders;
    loop {
        match urgent.take().or_else(|| patient.take()) {
            Some(Order { job, reply }) => reply.send(keeper.run(job).await),
            None => {
                drop(keeper.tend().await);
                pause().await;
            }
        }
    }
}

impl Ground {
    /// What an earlier process left about its upstream.
    fn take_over_course(&self, hub: &Hub) {
        let (flag, plant) = (Secret::new("the flag"), self.shared.plant);
        let forgotten = match plant {
            Plant::ForgetsTheFence => Some(self.layout.fence()),
            Plant::ForgetsTheUpstream => Some(self.layout.auto()),
            _ => None,
        };
        let contents = |path: &Path| {
            let is_forgotten = forgotten.as_deref() == Some(path);
            Ok(self.disk.disk.views(path).0.filter(|_| !is_forgotten))
        };
        course::take_over(&hub.course, &self.layout, flag, contents).unwrap();
    }

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

impl Process {
    pub(crate) fn shared(&self) -> &Rc<Shared> {
        &self.ground.shared
    }

    /// The process is gone.
    pub(crate) fn end(self: Rc<Self>) {
        let mut model = self.ground.model.borrow_mut();
        model.released = model.released.max(self.hub.holds.oldest_kept());
        drop(model);
        assert_eq!(Rc::strong_count(&self), 1, "a task outlives its process");
    }

    /// Begins a task of the control thread's.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.tasks.borrow_mut().push(Box::pin(task));
    }

    /// Have all tasks ended that were begun?
    pub(crate) fn is_at_leisure(&self) -> bool {
        self.tasks.borrow().is_empty()
    }

    /// What the core is told next; the keeper's answers come first.
    pub(crate) fn take_news(&self) -> Option<News> {
        let answer = self.answers.take().map(News::Keeper);
        answer.or_else(|| self.inbox.take().map(News::Control))
    }

    /// Gives an operator's order. Returns where it is answered.
    pub(crate) fn order(&self, steer: Steer) -> Answer {
        let (answer, answered) = oneshot::channel();
        let given = self.operator.try_send(UpstreamOrder { steer, answer });
        assert!(given.is_ok(), "an order finds no room");
        answered
    }

    /// The core has a message about a timeline's end.
    pub(crate) fn check_switch(&self, wal: &RecoveredWal) {
        let from = self.ground.model.borrow().published.map(|(tli, _)| tli);
        let to = wal.walker.rules().tli;
        // A switch may be asked for, and done, twice.
        if let (Some(from), Some(ended)) = (from, wal.ended.last())
            && from != to
        {
            let plan = Switch { from, to, at: ended.end };
            self.ground.check_switched(plan, wal, &self.hub.holds);
        }
    }

    /// The path above us changed: hubs below check it again.
    pub(crate) fn end_hub_streams(&self) {
        for session in self.sessions.borrow_mut().values_mut() {
            session.terminate_hub();
        }
    }

    /// Our WAL is set aside: nobody is sent any more of it.
    pub(crate) fn end_streams(&self) {
        for session in self.sessions.borrow_mut().values_mut() {
            session.terminate_stream();
        }
    }

    /// The clock of retention, and what follows a completed segment. The log of a seed is
    /// short: it is looked at as if more had come, so that something is removed at all.
    pub(crate) fn retain(&self, tli: TimelineId, newest: Lsn) {
        if self.shared().plant == Plant::RetainsByUnsavedSlots {
            let now = self.shared().both();
            let size = self.shared().truth.borrow().size;
            let oldest = self.hub.holds.oldest_kept();
            let mut slots = self.hub.holds.slots.lock();
            slots.absorb(oldest);
            if slots.take_due(size, now) {
                let records = slots.records(&SlotChange::None);
                slots.saved(records.clone());
                slots.saved(records);
            }
        }
        self.keeper.note(Job::Retain { tli, newest: newest.saturating_add(15 * MIB) });
    }

    /// What retention has given up, and whom it has told to go.
    fn look_at_retention(&self) {
        let holds = &self.hub.holds;
        let mut model = self.ground.model.borrow_mut();
        if model.released == Lsn::INVALID {
            // The first WAL of an empty directory.
            model.released = holds.oldest_kept();
        }
        let released = model.released;
        drop(model);
        if holds.oldest_kept() > released {
            self.ground.check_retained(holds, holds.oldest_kept());
        }
        let revoked = holds.slots.lock().take_revoked();
        for session in self.sessions.borrow_mut().values_mut() {
            session.terminate_if(&revoked);
        }
    }

    /// One pass of the core's loop, or a part of it.
    pub(crate) fn pass(&self) {
        self.look_at_retention();
        self.look_at_course();
        self.receiving.borrow_mut().pass(self);
        let mut ends = self.ends.borrow_mut();
        while let Some(end) = ends.pop_front() {
            if let Err(TrySendError::Full(end)) = self.to_task.try_send(end) {
                ends.push_front(end);
                return;
            }
        }
    }

    /// What the task says of the upstream.
    fn look_at_course(&self) {
        let (shared, course) = (self.shared(), &self.hub.course);
        if shared.plant == Plant::ForgetsDifferences {
            course.set_evidence(Evidence::default());
        }
        if shared.plant == Plant::ForgetsSeams {
            course.set_seams(Seams::default());
        }
        if matches!(course.standing().state, UpstreamState::Refused { .. }) {
            shared.seen("upstream refused");
        }
        let (known, evidence) = (self.evidence.borrow().clone(), course.evidence());
        if known == evidence {
            return;
        }
        for difference in evidence.iter().filter(|new| known.iter().all(|old| old != *new)) {
            self.note_difference(difference);
        }
        *self.evidence.borrow_mut() = evidence;
    }

    fn note_difference(&self, Difference { at, source, cleared, .. }: &Difference) {
        let (id, shared) = (self.ground.id, self.shared());
        if *cleared {
            return shared.seen("a difference cleared by another source");
        }
        shared.trace(|| format!("hub {id}: {} has other WAL at {at}", source.name));
        let file = source.name.strip_prefix("archive file ").map(|name| name.trim_matches('"'));
        match file {
            Some(file) => {
                let good = self.ground.was_good(file);
                promise!(shared, !good, "hub {id}: a good file {file} differs at {at}");
                shared.seen("archive has other bytes");
            }
            None => shared.seen("upstream has other bytes"),
        }
    }

    /// The watermark has moved.
    pub(crate) fn note_published(&self) {
        let cell = self.hub.current_cell();
        self.ground.model.borrow_mut().published = cell.map(|cell| (cell.tli(), cell.durable()));
    }

    /// The core goes on with the timeline that left `old` at `fork`.
    pub(crate) fn note_switched(&self, old: &Cell, fork: Lsn) {
        let (shared, id) = (self.shared(), self.ground.id);
        shared.trace(|| format!("hub {id}: {} ended at {fork}", old.tli()));
        if old.durable() > fork {
            shared.seen("own WAL past the fork");
        }
        if fork.segment_offset(shared.truth.borrow().size) == 0 {
            shared.seen("fork on a segment boundary");
        }
        let mut model = self.ground.model.borrow_mut();
        model.ended.insert(old.tli(), fork);
        shared.seen("switched");
        if model.asked_archive {
            shared.seen("switched by the archive");
        }
    }

    /// The core reports the end of a stream.
    pub(crate) fn note_ended(&self, end: UpstreamEnd) {
        let (shared, id) = (self.shared(), self.ground.id);
        shared.trace(|| format!("hub {id}: stream ends: {end:?}"));
        promise!(
            shared,
            shared.kind != Kind::ClockJumps || !matches!(end, UpstreamEnd::TimedOut),
            "hub {id} gives up an upstream that was heard a moment ago"
        );
        self.ends.borrow_mut().push_back(end);
    }

    /// The keeper opened a segment for a client, or could not.
    pub(crate) fn opened(
        &self,
        segment: (TimelineId, SegmentNo),
        file: &Result<PlantedFile, io::ErrorKind>,
    ) {
        for session in self.sessions.borrow_mut().values_mut() {
            session.opened(self, segment, file);
        }
    }

    /// Looks after its clients.
    pub(crate) fn serve(&self) {
        if self.shared().chance(300) {
            self.ground.complete_fetch(&self.hub);
        }
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
        self.tasks.borrow_mut().retain_mut(|task| poll(task).is_pending());
    }

    /// Cuts a stream that is under way.
    pub(crate) fn drop_upstream(&self) {
        self.receiving.borrow_mut().cut(self);
    }

    /// Is a client sent WAL from a file?
    pub(crate) fn has_file_open_for(&self, client: Node) -> bool {
        self.sessions.borrow().values().any(|session| session.has_file_open_for(client))
    }

    /// From whom it receives.
    pub(crate) fn upstream(&self) -> Option<Node> {
        self.receiving.borrow().upstream()
    }

    /// A line about where it stands.
    pub(crate) fn describe(&self) -> String {
        format!(
            "{:?} {} evidence {:?} ends {:?} {}",
            self.hub.position(),
            self.hub.course.standing().state,
            self.hub.course.evidence(),
            self.ends.borrow(),
            self.receiving.borrow().describe(),
        )
    }
}
