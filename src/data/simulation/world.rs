//! One hub in a world of its own: its cores, its keeper, its control thread, an upstream and
//! standbys, all on one thread. The seed determines which runs next.
//!
//! First there are faults, then none: every connected standby is sent everything. Then nothing
//! happens for a while, and the cores sleep. Then comes the end, by a shutdown, or by the end of
//! the timeline and then a shutdown.

use super::disk::Disk;
use super::keeper::Keeper;
use super::kernel::{Faults, Kernel, MICROSECOND, MILLISECOND, SECOND, Shared, Stage, What};
use super::plants::Plant;
use super::primary::Primary;
use super::random::Random;
use super::ring::{FakeClock, FakeRing, Inner};
use super::standby::{Standby, Wish};
use super::truth::{MIB, SYSTEM, Truth};
use crate::cluster::identity::Identity;
use crate::cluster::instance::InstanceId;
use crate::config::Zerocopy;
use crate::data::core::Next;
use crate::data::handoff::{Mailbox, ToControl, ToCore, mailbox};
use crate::data::io::ReceiveIo;
use crate::data::token::Purpose;
use crate::data::{CoreParts, DataCore, Peer, Receiver, Store};
use crate::hub::Hub;
use crate::keeper::queue;
use crate::ring::{self, Audit, ChunkWriter, Wait, Waker};
use crate::store::append::Beginning;
use crate::store::retention::Holds;
use crate::upstream::end::UpstreamEnd;
use crate::upstream::position::Position;
use crate::wal::walk::Walker;
use crate::wal::{Lsn, SegmentSize, TimelineId};
use crate::watermark::{Bell, Cell};
use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::panic::AssertUnwindSafe;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// The steps after which a world counts as endless.
const ENDLESS: u64 = 1_000_000;

/// What occurred in a world.
pub(super) type Sights = BTreeSet<&'static str>;

/// Everything that must occur with some seed of an ordinary run.
pub(super) const SIGHTS: &[&str] = &[
    "a block from a file",
    "a cancellation",
    "a send without a copy",
    "a falsified byte",
    "a halt",
    "a keeper's failure",
    "a new store",
    "a queue to a core that is full",
    "a removed segment",
    "a reset by a standby",
    "a reset by the upstream",
    "a slow disk",
    "a stream that failed",
    "a stream that its client ended",
    "a timeline's end",
    "another history",
    "garbage from a standby",
    "no space",
    "the upstream's silence",
    "two cores",
    "work in the middle of a send",
];

/// Runs the world of a seed; the error says which promise was broken.
pub(super) fn run(seed: u64, plant: Plant) -> Result<Sights, String> {
    let run = AssertUnwindSafe(|| World::new(seed, plant).live());
    std::panic::catch_unwind(run).map_err(|panic| {
        let words = panic.downcast_ref::<String>().cloned();
        let words = words.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        format!("WALHUB_SEED={seed}: {}", words.unwrap_or_default())
    })
}

enum State {
    Awake,
    Asleep(Wait),
    Ended,
    Halted,
}

/// A data core and what keeps it from sleeping.
struct Slot {
    core: Option<DataCore<FakeRing>>,
    inner: Rc<RefCell<Inner>>,
    kernel: Shared,
    zero: Instant,
    state: State,
    woken: Arc<AtomicBool>,
    waker: Waker,
    passes: u64,
}

impl Slot {
    /// When it has something to do.
    fn next_at(&self) -> Option<Duration> {
        let mut kernel = self.kernel.borrow_mut();
        let now = kernel.now;
        match self.state {
            State::Awake | State::Asleep(Wait::No) => Some(now),
            State::Ended | State::Halted => None,
            State::Asleep(wait) => {
                if self.woken.load(Ordering::Relaxed) {
                    return Some(now);
                }
                let mut inner = self.inner.borrow_mut();
                for op in &mut inner.ops {
                    kernel.ripen(op);
                }
                let ripe = inner.ops.iter().filter_map(|op| op.ripe_at).min();
                let deadline = match wait {
                    Wait::Until(when) => Some(when.saturating_duration_since(self.zero)),
                    _ => None,
                };
                [ripe, deadline].into_iter().flatten().min()
            }
        }
    }

    fn step(&mut self) {
        let Some(core) = &mut self.core else { return };
        match self.state {
            State::Awake => {
                self.passes += 1;
                let next = core.pass().expect("the simulated ring never fails");
                let cost = {
                    let mut kernel = self.kernel.borrow_mut();
                    MICROSECOND * (1 + kernel.random.below(30) as u32)
                };
                self.kernel.borrow_mut().now += cost;
                if core.done.is_empty() {
                    self.inner.borrow_mut().collect();
                    check_operations(core, &self.inner.borrow());
                    check_belongings(core);
                }
                self.state = match next {
                    Next::Pass => State::Awake,
                    Next::Sleep(wait) => {
                        assert!(core.done.is_empty(), "a core sleeps over completions");
                        State::Asleep(wait)
                    }
                    Next::End => State::Ended,
                    Next::Halt => State::Halted,
                };
            }
            State::Asleep(wait) => {
                self.woken.store(false, Ordering::Relaxed);
                core.sleep(wait).expect("the simulated ring never fails");
                self.state = State::Awake;
            }
            State::Ended | State::Halted => {}
        }
    }
}

/// A standby that is no longer heard, and may see the end of its stream, has nothing of the hub.
fn check_belongings(core: &DataCore<FakeRing>) {
    for (_, sender) in core.send.senders() {
        let state = &sender.state;
        assert_eq!(sender.member.is_some(), state.hears(), "in the fleet: {state:?}");
        let has_place = state.hears() || state.goes_back();
        assert_eq!(sender.permit.is_some(), has_place, "a place: {state:?}");
    }
}

/// I8: the operations in flight are those that the core knows about.
fn check_operations(core: &mut DataCore<FakeRing>, inner: &Inner) {
    let mut blocks = 0;
    let (mut replies, mut rooms, mut sending, mut unreleased) = (0, 0, 0, Vec::new());
    let upstream = core.receive.as_ref().map(ReceiveIo::in_flight);
    for op in &inner.ops {
        match Purpose::of(op.token).expect("a token of this core's") {
            Purpose::Reply(key) => {
                let known = core.send.sender(key).and_then(|sender| sender.reading);
                assert_eq!(known, Some(op.id), "I8: a receive that nobody knows of");
                replies += 1;
            }
            Purpose::Room(key) => {
                let known = core.send.sender(key).and_then(|sender| sender.waiting_room);
                assert_eq!(known, Some(op.id), "I8: a poll that nobody knows of");
                rooms += 1;
            }
            Purpose::Block(_) => blocks += 1,
            Purpose::Upstream(connection) | Purpose::UpstreamRoom(connection) => {
                let (current, known) = upstream.expect("the receive role");
                let mine = known.contains(&Some(op.id));
                assert!(mine || connection != current || known == [None; 2], "I8: the upstream's");
            }
            Purpose::Write(_) | Purpose::Sync(_) => {}
            Purpose::Zerocopy(key) => {
                unreleased.push(key);
                let What::ZeroCopy(send) = &op.what else { panic!("a send without a copy") };
                let known = core.send.sender(key).and_then(|sender| sender.sending);
                if let Stage::Sending = send.stage {
                    assert_eq!(known, Some(op.id), "I8: a send that nobody knows of");
                    sending += 1;
                }
            }
        }
    }
    for op in upstream.into_iter().flat_map(|(_, known)| known).flatten() {
        assert!(inner.ops.iter().any(|other| other.id == op), "I8: the upstream's is lost");
    }
    let reading = core.send.senders().filter(|(_, sender)| sender.reading.is_some()).count();
    let polling = core.send.senders().filter(|(_, sender)| sender.waiting_room.is_some()).count();
    assert_eq!((replies, rooms), (reading, polling), "I8: receives and polls in flight");
    let waiting = core.send.senders().filter(|(_, sender)| sender.sending.is_some()).count();
    assert_eq!(sending, waiting, "I8: sends without a copy in flight");
    for (key, sender) in core.send.senders() {
        let held = unreleased.iter().filter(|of| **of == key).count();
        assert_eq!(held, sender.unreleased as usize, "I8: a notification is lost");
    }
    assert_eq!(blocks, core.readback.loading(), "I8: reads in flight");
}

pub(super) struct World {
    kernel: Shared,
    truth: &'static Truth,
    zero: Instant,
    hub: Arc<Hub>,
    slots: Vec<Rc<RefCell<Slot>>>,
    mailboxes: Vec<Mailbox>,
    /// Messages for each core that are not in its queue yet, which may be full.
    posts: Vec<VecDeque<ToCore>>,
    posts_at: Duration,
    keeper: Keeper,
    news: mpsc::Receiver<ToControl>,
    news_at: Duration,
    primary: Primary,
    standbys: Vec<Standby>,
    goal: Lsn,
    random: Random,
    seen: Sights,
    steps: u64,
    plant: Plant,
    meanwhiles: Rc<RefCell<u64>>,
    ending: bool,
}

/// What a receive role starts with.
struct Found {
    store: Option<Store>,
    cells: Vec<Arc<Cell>>,
    position: Position,
}

fn begin(
    truth: &'static Truth,
    hub: &Hub,
    from: Lsn,
    durable: Lsn,
    writer: &mut ChunkWriter,
) -> Found {
    if from == durable {
        return Found { store: None, cells: Vec::new(), position: Position::Empty };
    }
    let tli = TimelineId::FIRST;
    let rules = crate::hub::page_rules::page_rules(hub, tli).unwrap();
    let prefix_from = Lsn::new(durable.saturating_sub(8192).raw() >> 20 << 20).max(from);
    let prefix = truth.bytes(prefix_from, durable.bytes_since(prefix_from) as usize);
    let mut walker = Walker::new(rules, prefix_from);
    walker.feed(prefix).unwrap();
    let cell = Arc::new(Cell::new(tli, from, durable));
    writer.open(cell.id(), prefix_from, &[]).unwrap();
    assert_eq!(writer.append(prefix), prefix.len());
    writer.durable(durable);
    let buffers = hub.config.wal_buffers;
    let store = Store::new(Arc::clone(&cell), walker, Beginning::Past, from, buffers);
    Found {
        store: Some(store),
        cells: vec![cell],
        position: Position::At { tli, durable, start: prefix_from },
    }
}

fn storm(random: &mut Random) -> Faults {
    let mut rate = |most: u64| if random.chance(300) { 0 } else { random.below(most) };
    Faults {
        short_sends: rate(500),
        would_block: rate(100),
        interrupted: rate(60),
        no_buffers: rate(200),
        late: rate(20),
        bad_reads: rate(200),
        no_space: rate(20),
        short_writes: rate(200),
        deadly_disk: 0,
        stuck_disk: rate(40),
        no_memory: rate(20),
        copied: rate(300),
        meanwhile: rate(300),
        early_wake_ups: rate(50),
        keeper: rate(60),
        peers: rate(60),
    }
}

impl World {
    fn new(seed: u64, plant: Plant) -> Self {
        let mut random = Random::new(seed);
        let truth = Truth::any(&mut random);
        let size = SegmentSize::new(MIB).unwrap();
        let first = random.below(3);
        let from = truth.segment(first);
        // A new store, or one with some WAL; some worlds outgrow the cache.
        let old = random.below(6) * MIB * random.below(2) + random.below(MIB);
        let is_new = random.chance(300);
        let durable = truth.record_end(from.saturating_add(old));
        let durable = if is_new || durable <= from { from } else { durable };
        let more = match random.below(8) {
            0..2 => 7 * MIB,
            2..4 => 3 * MIB,
            _ => random.below(2 * MIB) + 10_000,
        };
        let about = durable.saturating_add(more).min(truth.end());
        let goal = Some(truth.record_end(about)).filter(|end| *end > durable);
        let goal = goal.unwrap_or(about.page_start());
        let mut faults = storm(&mut random);
        if random.chance(60) {
            faults.deadly_disk = 1 + random.below(20);
        }
        let zero = Instant::now();
        let disk = Disk::new(truth, from, durable);
        let kernel = Kernel::new(random.fork(), faults, plant, disk);
        let kernel: Shared = Rc::new(RefCell::new(kernel));
        let clock = FakeClock::new(&kernel, zero);

        let mut config = crate::hub::tests::config("host=/nonexistent user=walhub");
        config.wal_buffers = 1 << 20;
        config.max_wal_senders = 1000;
        config.max_send_size = 8192 << random.below(6);
        let modes = [Zerocopy::Auto, Zerocopy::On, Zerocopy::Off];
        config.zerocopy = modes[random.below(3) as usize];
        kernel.borrow_mut().locks_memory = random.chance(900);
        let some = |random: &mut Random, choices: &[u64]| {
            Duration::from_secs(choices[random.below(choices.len() as u64) as usize])
        };
        config.wal_sender_timeout = some(&mut random, &[0, 60]);
        config.wal_receiver_timeout = some(&mut random, &[0, 5, 60]);
        config.wal_receiver_status_interval = some(&mut random, &[1, 10]);
        let holds = Arc::new(Holds::new(from));
        let hub = Arc::new(Hub::new(Arc::new(config), InstanceId::new(7), Arc::clone(&holds)));
        let identity = crate::standby::parameters::tests::identity("15.18");
        let identity = Identity { system_id: SYSTEM, segment_size: size, ..identity };
        hub.set_identity(Arc::new(identity));

        let cores = 1 + random.below(2) as usize;
        let (mut writer, readers) = ring::chunks(1 << 20, cores).unwrap();
        let found = begin(truth, &hub, from, durable, &mut writer);
        hub.set_cells(found.cells);
        hub.set_position(found.position);
        let (keeper, orders) = queue(1 + random.below(6) as usize);
        let (say, news) = mpsc::channel(1 + random.below(4) as usize);
        let bells: Vec<Arc<Bell>> = (0..cores).map(|_| Arc::default()).collect();
        let wakers: Vec<Waker> = (0..cores).map(|_| Waker::simulated()).collect();
        let mut peers: Vec<Peer> = (1..cores)
            .map(|n| Peer {
                bell: match plant {
                    Plant::WakesNobody => Arc::default(),
                    _ => Arc::clone(&bells[n]),
                },
                waker: wakers[n].clone(),
            })
            .collect();
        let receiver = Receiver::new(Arc::clone(&hub), writer, found.store);
        let mut receiver = Some(receiver);
        let all: Rc<RefCell<Vec<Weak<RefCell<Slot>>>>> = Rc::default();
        let meanwhiles: Rc<RefCell<u64>> = Rc::default();
        let (mut slots, mut mailboxes) = (Vec::new(), Vec::new());
        for (index, chunks) in readers.into_iter().enumerate() {
            let audit = Audit::of(&chunks, index);
            let others = Rc::clone(&all);
            let count = Rc::clone(&meanwhiles);
            let meanwhile = Box::new(move || {
                let other = others.borrow().get(1 - index).and_then(Weak::upgrade);
                let Some(other) = other else { return };
                // It may be the one that is sending, further up the stack.
                let Ok(mut other) = other.try_borrow_mut() else { return };
                for _ in 0..5 {
                    let now = other.kernel.borrow().now;
                    if other.next_at().is_some_and(|at| at <= now) {
                        *count.borrow_mut() += 1;
                        other.step();
                    }
                }
            });
            let buffers = 1 + random.below(4) as u16;
            let ring = FakeRing::new(&kernel, &clock, buffers, audit, meanwhile);
            let inner = ring.inner();
            let woken: Arc<AtomicBool> = Arc::default();
            let (bell, flag) = (Arc::clone(&bells[index]), Arc::clone(&woken));
            let wake = move || {
                if plant != Plant::PostsInSilence && bell.rings_needed() {
                    flag.store(true, Ordering::Relaxed);
                }
            };
            let (mailbox, inbox) = mailbox(1 + random.below(2) as usize, Arc::new(wake));
            mailboxes.push(mailbox.clone());
            let parts = CoreParts {
                index,
                hub: Arc::clone(&hub),
                inbox,
                bell: Arc::clone(&bells[index]),
                chunks,
                keeper: keeper.for_core(Arc::new(mailbox)),
                control: say.clone(),
                receiver: receiver.take(),
                peers: std::mem::take(&mut peers),
            };
            let slot = Rc::new(RefCell::new(Slot {
                core: Some(DataCore::new(ring, parts)),
                inner,
                kernel: Rc::clone(&kernel),
                zero,
                state: State::Awake,
                woken,
                waker: wakers[index].clone(),
                passes: 0,
            }));
            all.borrow_mut().push(Rc::downgrade(&slot));
            slots.push(slot);
        }
        let standbys = 1 + random.below(7) as usize;
        let standbys = (0..standbys).map(|n| {
            let span = goal.bytes_since(from).min(durable.bytes_since(from) + MIB);
            let ahead = from.saturating_add(random.below(span));
            let at = if random.chance(500) { durable } else { ahead };
            Standby::new(n, cores, at, &mut kernel.borrow_mut())
        });
        let standbys = standbys.collect();
        let pace = match random.below(6) {
            0..2 => 200,
            2..4 => 200 + random.below(200_000),
            _ => 400_000 + random.below(400_000),
        };
        let mut world = Self {
            primary: Primary::new(truth, durable, goal, pace.max(more / 300)),
            keeper: Keeper::new(orders, holds),
            posts: (0..cores).map(|_| VecDeque::new()).collect(),
            posts_at: SECOND,
            news_at: SECOND,
            ending: false,
            seen: Sights::new(),
            steps: 0,
            kernel,
            truth,
            zero,
            hub,
            slots,
            mailboxes,
            news,
            standbys,
            goal,
            random,
            plant,
            meanwhiles,
        };
        if is_new {
            world.see("a new store");
        }
        if cores == 2 {
            world.see("two cores");
        }
        world
    }

    fn see(&mut self, what: &'static str) {
        self.seen.insert(what);
    }

    /// A world without faults, in which every standby has everything and every core sleeps.
    pub(super) fn at_rest(seed: u64) -> Self {
        let mut world = Self::new(seed, Plant::Honest);
        // The faults stop before the first of them.
        world.come_to_rest();
        world.sleep_well();
        world
    }

    /// The standbys, with the kernel behind them.
    pub(super) fn standbys(&mut self) -> (&mut [Standby], &Shared) {
        (&mut self.standbys, &self.kernel)
    }

    pub(super) fn now(&self) -> Duration {
        self.kernel.borrow().now
    }

    fn live(mut self) -> Sights {
        self.weather_the_storm();
        if !self.has_halted() {
            self.come_to_rest();
        }
        if !self.has_halted() {
            self.sleep_well();
            self.commit_once_more();
            self.end();
        }
        if self.has_halted() {
            assert!(self.kernel.borrow().dead_disk, "the hub halts without a reason");
            self.see("a halt");
        }
        self.look_back();
        self.seen
    }

    fn has_halted(&self) -> bool {
        matches!(self.slots[0].borrow().state, State::Halted)
    }

    /// Runs until `done`, or until `deadline`. Returns whether it reached `done`.
    pub(super) fn run_until(
        &mut self,
        deadline: Duration,
        mut done: impl FnMut(&mut Self) -> bool,
    ) -> bool {
        loop {
            if self.has_halted() || done(self) {
                return true;
            }
            if self.now() >= deadline || !self.step(deadline) {
                return false;
            }
        }
    }

    fn weather_the_storm(&mut self) {
        let deadline = self.now() + SECOND * (5 + self.random.below(200) as u32);
        let most = 20_000 + self.random.below(40_000);
        self.run_until(deadline, |world| {
            world.steps > most
                || world.primary.written == world.goal
                    && world.random.chance(2)
                    && world.random.chance(100)
        });
    }

    /// Faults stop; every standby is sent everything.
    fn come_to_rest(&mut self) {
        self.kernel.borrow_mut().faults = Faults::default();
        self.reach_the_end(SECOND * 300);
    }

    /// Every core sleeps, and a commit comes: only the bell can wake the sending core so soon.
    pub(super) fn commit_once_more(&mut self) {
        let commit = self.truth.record_end(self.goal.saturating_add(20_000));
        if commit > self.goal {
            self.goal = commit;
            self.primary.goal = commit;
            self.reach_the_end(SECOND);
        }
    }

    /// Makes a commit. Returns whether it is sent to every standby within `patience`, whatever they
    /// say.
    pub(super) fn commit_is_sent_in(&mut self, patience: Duration) -> bool {
        self.goal = self.truth.record_end(self.goal.saturating_add(20_000));
        (self.primary.goal, self.primary.next_at) = (self.goal, self.now());
        let deadline = self.now() + patience;
        self.run_until(deadline, |world| {
            let mut kernel = world.kernel.borrow_mut();
            world.standbys.iter().all(|standby| standby.position(&mut kernel) == world.goal)
        })
    }

    fn reach_the_end(&mut self, patience: Duration) {
        let deadline = self.now() + patience;
        let all = self.run_until(deadline, |world| {
            let mut kernel = world.kernel.borrow_mut();
            kernel.disk.durable() >= world.goal
                && world.primary.is_content()
                && world.standbys.iter().all(|standby| standby.is_content(world.goal, &mut kernel))
        });
        assert!(all, "liveness: not everybody reaches the end: {}", self.describe());
    }

    fn describe(&self) -> String {
        let mut kernel = self.kernel.borrow_mut();
        let standbys = self.standbys.iter().map(|standby| standby.describe(&mut kernel));
        let standbys: Vec<_> = standbys.collect();
        format!(
            "durable {} of {}, upstream content {}, {standbys:#?}",
            kernel.disk.durable(),
            self.goal,
            self.primary.is_content()
        )
    }

    /// Nothing happens, so no core is busy.
    fn sleep_well(&mut self) {
        let passes =
            |world: &Self| -> u64 { world.slots.iter().map(|slot| slot.borrow().passes).sum() };
        let (before, until) = (passes(self), self.now() + SECOND);
        for standby in &mut self.standbys {
            standby.next_at = until;
        }
        self.primary.next_at = until;
        self.run_until(until, |_| false);
        let took = passes(self) - before;
        assert!(took < 100, "the cores do not sleep: {took} passes in an idle second");
    }

    fn end(&mut self) {
        self.ending = true;
        self.primary.stopped = true;
        if self.random.chance(400) {
            self.end_timeline();
        }
        let deadline = self.now() + SECOND * 100;
        for core in 0..self.slots.len() {
            let deadline = self.zero + deadline;
            self.posts[core].push_back(ToCore::Stop { deadline });
        }
        let ended = self.run_until(deadline, |world| {
            world.slots.iter().all(|slot| matches!(slot.borrow().state, State::Ended))
        });
        assert!(ended, "liveness: the cores do not end");
        // News that the control thread has not read.
        let until = self.now() + SECOND;
        self.run_until(until, |world| world.standbys.iter().all(|standby| !standby.is_connected()));
        assert!(
            self.standbys.iter().all(|standby| !standby.is_connected()),
            "liveness: the end of a stream is not reported"
        );
    }

    /// The timeline ends where every standby is.
    pub(super) fn end_timeline(&mut self) {
        let Some(cell) = self.hub.current_cell() else { return };
        let next = TimelineId::new(2).unwrap();
        let next = Arc::new(Cell::new(next, self.goal, self.goal));
        cell.seal(self.goal);
        cell.link(next);
        for slot in &self.slots {
            let slot = slot.borrow();
            if slot.core.as_ref().is_some_and(|core| core.bell.rings_needed()) {
                slot.woken.store(true, Ordering::Relaxed);
            }
        }
        let deadline = self.now() + SECOND * 50;
        let ended = self.run_until(deadline, |world| {
            world.standbys.iter().all(|standby| !standby.is_connected())
        });
        assert!(ended, "liveness: a standby is not told that its timeline has ended");
    }

    /// What must hold at the end.
    fn look_back(&mut self) {
        let halted = self.has_halted();
        for slot in &self.slots {
            let mut slot = slot.borrow_mut();
            let inner = Rc::clone(&slot.inner);
            if !halted {
                let mut kernel = self.kernel.borrow_mut();
                let mut inner = inner.borrow_mut();
                inner.collect();
                for op in &mut inner.ops {
                    kernel.ripen(op);
                    assert!(
                        op.ripe_at.is_some(),
                        "I8: {:?} never completes: {}",
                        Purpose::of(op.token),
                        kernel.describe(op)
                    );
                }
            }
            drop(slot.core.take());
            inner.borrow_mut().collect();
            assert!(halted || inner.borrow().buffers_out() == 0, "I8: a reply's buffer is lost");
        }
        while self.news.try_recv().is_ok() {}
        for posts in &mut self.posts {
            posts.clear();
        }
        self.mailboxes.clear();
        assert_eq!(self.hub.holds.count(), 0, "a hold is left");
        assert_eq!(self.hub.senders(), 0, "a place among the senders is lost");
        let kernel = self.kernel.borrow();
        let (zerocopied, no_space, removed, failed, opened) = (
            kernel.zerocopied > 0,
            kernel.no_space > 0,
            self.keeper.removed > 0,
            self.keeper.failed > 0,
            self.keeper.opened > 0,
        );
        drop(kernel);
        let meanwhile = *self.meanwhiles.borrow() > 0;
        for (met, what) in [
            (zerocopied, "a send without a copy"),
            (no_space, "no space"),
            (removed, "a removed segment"),
            (failed, "a keeper's failure"),
            (opened, "a block from a file"),
            (meanwhile, "work in the middle of a send"),
        ] {
            if met {
                self.see(what);
            }
        }
    }

    /// Runs one participant that has something to do, or lets time pass.
    fn step(&mut self, until: Duration) -> bool {
        self.steps += 1;
        assert!(self.steps < ENDLESS, "liveness: this comes to no end: {}", self.describe());
        let mut next: Vec<(Duration, Actor)> = Vec::with_capacity(16);
        for (n, slot) in self.slots.iter().enumerate() {
            let slot = slot.borrow();
            if matches!(slot.state, State::Asleep(_)) && slot.waker.has_fired() {
                slot.woken.store(true, Ordering::Relaxed);
            }
            next.extend(slot.next_at().map(|at| (at, Actor::Core(n))));
        }
        for (n, standby) in self.standbys.iter().enumerate() {
            if !self.ending || standby.is_connected() {
                next.push((standby.next_at, Actor::Standby(n)));
            }
        }
        next.push((self.primary.next_at, Actor::Primary));
        let at = self.keeper.next_at(&mut self.kernel.borrow_mut());
        next.extend(at.map(|at| (at, Actor::Keeper)));
        if !self.news.is_empty() {
            next.push((self.news_at, Actor::Control));
        }
        if self.posts.iter().any(|posts| !posts.is_empty()) {
            next.push((self.posts_at, Actor::Posts));
        }
        let now = self.now();
        let due: Vec<Actor> =
            next.iter().filter(|(at, _)| *at <= now).map(|(_, actor)| *actor).collect();
        if due.is_empty() {
            let Some(at) = next.iter().map(|(at, _)| *at).min() else { return false };
            let early = self.kernel.borrow().faults.early_wake_ups;
            if self.random.chance(early) {
                self.wake_one_early();
            }
            self.kernel.borrow_mut().now = at.min(until);
            return true;
        }
        match due[self.random.below(due.len() as u64) as usize] {
            Actor::Core(n) => {
                self.slots[n].borrow_mut().step();
                if self.plant == Plant::IgnoresTheLimit {
                    self.publish_what_is_received();
                }
            }
            Actor::Standby(n) => self.move_standby(n),
            Actor::Primary => self.move_primary(),
            Actor::Keeper => {
                let answer = self.keeper.work(&mut self.kernel.borrow_mut());
                if let Some((reply, done)) = answer {
                    reply.send(done);
                }
            }
            Actor::Control => self.hear_news(),
            Actor::Posts => self.post(),
        }
        true
    }

    fn wake_one_early(&mut self) {
        let n = self.random.below(self.slots.len() as u64) as usize;
        let mut slot = self.slots[n].borrow_mut();
        if let State::Asleep(_) = slot.state {
            slot.step();
        }
    }

    fn move_standby(&mut self, n: usize) {
        let mut kernel = self.kernel.borrow_mut();
        let wish = self.standbys[n].act(&mut kernel, &self.hub, self.truth, &mut self.seen);
        drop(kernel);
        let (core, pid) = (self.standbys[n].core, self.standbys[n].pid);
        match wish {
            Wish::Nothing => {}
            Wish::HandOver(handoff) => self.posts[core].push_back(ToCore::Standby(handoff)),
            Wish::Cancel => self.posts[core].push_back(ToCore::Cancel { pid }),
        }
    }

    fn move_primary(&mut self) {
        let position = self.hub.position();
        let mut kernel = self.kernel.borrow_mut();
        let handoff = self.primary.act(&mut kernel, position, &mut self.seen);
        drop(kernel);
        if let Some(handoff) = handoff {
            self.posts[0].push_back(ToCore::Upstream(Box::new(handoff)));
        }
    }

    fn post(&mut self) {
        let pause = self.kernel.borrow_mut().delay(5 * MILLISECOND);
        self.posts_at = self.now() + pause;
        for core in 0..self.posts.len() {
            while let Some(message) = self.posts[core].pop_front() {
                if let Err(message) = self.mailboxes[core].post(message) {
                    self.posts[core].push_front(message);
                    self.see("a queue to a core that is full");
                    break;
                }
                if self.random.chance(500) {
                    break;
                }
            }
        }
    }

    fn hear_news(&mut self) {
        let pause = self.kernel.borrow_mut().delay(MILLISECOND);
        self.news_at = self.now() + pause;
        let Ok(news) = self.news.try_recv() else { return };
        let mut kernel = self.kernel.borrow_mut();
        let excused = kernel.bad_reads > 0 || self.keeper.failed > 0;
        match news {
            ToControl::StandbyClosed { pid } => {
                by_pid(&mut self.standbys, pid).closed(&mut kernel, excused)
            }
            ToControl::StandbyEnded(handback) => by_pid(&mut self.standbys, handback.session.pid)
                .handed_back(&handback, &mut kernel, excused, &mut self.seen),
            ToControl::UpstreamEnded(end) => {
                let sight = match &end {
                    UpstreamEnd::Lost { error, .. } => {
                        error.contains("too slow").then_some("a slow disk")
                    }
                    UpstreamEnd::TimedOut => Some("the upstream's silence"),
                    UpstreamEnd::Diverged { at, detail } => {
                        assert!(self.primary.is_corrupt(), "diverged at {at}: {detail}");
                        Some("another history")
                    }
                    UpstreamEnd::NoSpace => {
                        assert!(kernel.no_space > 0, "there is space");
                        None
                    }
                    UpstreamEnd::Stopped => {
                        assert!(self.ending, "the upstream's stream is stopped");
                        None
                    }
                    end => panic!("the upstream's stream ends by {end:?}"),
                };
                self.seen.extend(sight);
                self.primary.disconnected(&mut kernel);
            }
        }
    }

    /// The mistake: sets the watermark to the end of the received WAL.
    fn publish_what_is_received(&mut self) {
        let slot = self.slots[0].borrow();
        let receive = slot.core.as_ref().and_then(|core| core.receive.as_ref());
        if let Some(store) = receive.and_then(|receive| receive.role.store()) {
            store.cell.publish(store.received().max(store.cell.durable()));
        }
    }
}

fn by_pid(standbys: &mut [Standby], pid: u32) -> &mut Standby {
    let found = standbys.iter_mut().find(|standby| standby.pid == pid);
    found.expect("news of a stream that has begun")
}

#[derive(Clone, Copy)]
enum Actor {
    Core(usize),
    Standby(usize),
    Primary,
    Keeper,
    Control,
    Posts,
}
