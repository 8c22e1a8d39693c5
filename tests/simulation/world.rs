//! A cluster, hubs, an archive and what befalls them: first everything may go wrong, then
//! nothing does any more, and everybody has to end at the newest timeline's end.

use crate::environment::{conninfo_of, enter, wake_all};
use crate::fake_disk::{FakeDisk, Faults};
use crate::hub::{Ground, Model, Process, Started, start};
use crate::kinds::{Kind, Script};
use crate::network::Node;
use crate::plants::{Plant, PlantedDisk};
use crate::server::{Server, Source};
use crate::shared::{STEP, Shared, Traced};
use crate::truth::MIB;
use crate::walreceiver;
use clap::Parser as _;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::future::Future;
use std::path::Path;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::runtime::Builder;
use tokio::task::coop::unconstrained;
use walhub::cli::{Cli, Command};
use walhub::config::Config;
use walhub::follow::Steer;
use walhub::hub::course::Upstream;
use walhub::store::StoreFault;
use walhub::store::layout::Layout;
use walhub::store::retention::Policy;
use walhub::upstream::position::Position;
use walhub::wal::{Lsn, TimelineId};
use walhub::wire::conninfo::{Conninfo, TargetSessionAttrs};

/// A task of somebody.
pub(crate) type Work<T> = Pin<Box<dyn Future<Output = T>>>;

/// What an ordinary run has to meet.
pub(crate) const SIGHTS: &[&str] = &[
    "switched",
    "own WAL past the fork",
    "fork on a segment boundary",
    "switch finished by a start",
    "started on a later timeline",
    "upstream refused",
    "upstream no longer has our WAL",
    "message cut short",
    "standby sent on to the next timeline",
    "WAL read back from a file",
    "WAL removed",
    "WAL removed from under a laggard",
    "WAL read on from a removed segment",
    "slot created",
    "slot dropped",
    "slot invalidated",
    "archive has other bytes",
    "half a segment in the archive",
    "switched by the archive",
    "a difference cleared by another source",
    "old primary came back",
    "start cut off",
];

/// What comes up only among thousands of seeds.
pub(crate) const RARE_SIGHTS: &[&str] = &[
    "rest of a message past the switchpoint",
    "standby sent more than the switchpoint left",
    "diverged standby refused",
];

/// What came of a seed.
pub(crate) struct Outcome {
    pub(crate) result: Result<(), String>,
    pub(crate) sights: BTreeSet<&'static str>,
    pub(crate) trace: Vec<String>,
}

/// Runs one seed to its end.
pub(crate) fn run(seed: u64, kind: Kind, plant: Plant, traced: Traced) -> Outcome {
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut world = World::new(seed, kind, plant, traced);
        let hubs = world.hubs.iter().map(|node| Rc::clone(&node.ground));
        let _entered = enter(&world.shared, hubs.collect());
        let result = world.live().await.map_err(|broken| format!("seed {seed}: {broken}"));
        let shared = Rc::clone(&world.shared);
        world.end();
        Outcome { result, sights: shared.sights(), trace: shared.take_trace() }
    })
}

pub(crate) struct World {
    pub(crate) shared: Rc<Shared>,
    pub(crate) script: Script,
    pub(crate) servers: Vec<Rc<RefCell<Server>>>,
    pub(crate) walreceivers: Vec<Option<Work<()>>>,
    /// By server: until when it neither reads nor says anything.
    pub(crate) stalled: Vec<u64>,
    /// By server: it reads only every so many steps.
    pace: Vec<u64>,
    pub(crate) hubs: Vec<HubNode>,
    /// WAL is written up to so many bytes.
    pub(crate) budget: u64,
    /// How often a primary writes, of 1000.
    haste: u64,
    /// How often something befalls somebody, of 1000.
    harm: u64,
    promotions: u64,
}

pub(crate) struct HubNode {
    pub(crate) ground: Rc<Ground>,
    hosts: Vec<Node>,
    target: TargetSessionAttrs,
    pub(crate) state: HubState,
}

pub(crate) enum HubState {
    Down,
    Starting(Work<Result<Started, StoreFault>>, u64),
    Up { process: Rc<Process>, keeper: Work<()>, upstream: Work<()> },
}

pub(crate) fn poll<T>(work: &mut Work<T>) -> Poll<T> {
    // Each turn is a small part of a step: none of them uses up what a task may do at once.
    let turn = pin!(unconstrained(work.as_mut()));
    turn.poll(&mut Context::from_waker(Waker::noop()))
}

/// The log of a seed is over in seconds.
const RETRY_INTERVAL: Duration = Duration::from_millis(25);

/// The settings of a hub whose flags are few.
fn plain_config() -> Config {
    static PLAIN: OnceLock<Config> = OnceLock::new();
    let parse = || {
        let flags = ["walhub", "serve", "-D", "/hub", "--primary-conninfo", "host=a user=b"];
        let Command::Serve(flags) = Cli::try_parse_from(flags).unwrap().command else {
            panic!("not serve")
        };
        let config = flags.resolve().unwrap();
        Config { wal_retrieve_retry_interval: RETRY_INTERVAL, ..config }
    };
    PLAIN.get_or_init(parse).clone()
}

fn ground(shared: &Rc<Shared>, id: usize, primary_conninfo: Conninfo) -> Ground {
    let mut random = shared.random.borrow_mut();
    let layout = Layout::new(Path::new("/hub"));
    let disk = FakeDisk::with_directories(random.fork(), &[layout.root(), layout.wal()]);
    disk.set_faults(match random.below(3) {
        0 => Faults { early_writeback: 200, short_write: 20, ..Faults::default() },
        1 => Faults { eviction: 50, early_writeback: 100, ..Faults::default() },
        _ => Faults::default(),
    });
    let wal_buffers = 4 << 20;
    // See `Process::retain`; more or less than what the cache holds.
    let limits = [None, Some(16), Some(17), Some(20), Some(21)];
    let max_slot_wal_keep_size = limits[random.below(5) as usize].map(|limit| limit * MIB);
    let retention = Policy { max_slot_wal_keep_size, ..Policy::default() };
    let retention = shared.kind.policy(retention);
    let grace = match shared.plant {
        Plant::ForgetsWhoLeft => Duration::ZERO,
        _ => retention.grace,
    };
    let retention = Policy { grace, ..retention };
    let weak_proof = shared.kind.weak_proof(shared.plant);
    let config = Config { wal_buffers, retention, primary_conninfo, weak_proof, ..plain_config() };
    Ground {
        shared: Rc::clone(shared),
        id,
        disk: PlantedDisk::new(disk, shared.plant),
        layout,
        config: Arc::new(config),
        warm: [100_000, 100_000, 16 * MIB][random.below(3) as usize],
        model: RefCell::new(Model::default()),
        fetches: RefCell::default(),
        fetched: RefCell::default(),
    }
}

impl World {
    fn new(seed: u64, kind: Kind, plant: Plant, traced: Traced) -> Self {
        let ordinary = kind == Kind::Ordinary;
        let shape = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33;
        let (hubs, behind) = match ordinary {
            true => (1 + (shape % 3) as usize, 1 + (shape / 3 % 3) as usize),
            false => (1, 1),
        };
        let shared = Rc::new(Shared::new(seed, kind, plant, 2 + behind, hubs, traced));
        let mut servers = Vec::new();
        for id in 0..2 + behind {
            let source = match id {
                0 => Source::Itself,
                1 => Source::Server(0),
                _ => {
                    let first = shared.below(hubs as u64) as usize;
                    let second = shared.below(hubs as u64) as usize;
                    Source::Hubs(vec![first, second])
                }
            };
            let mut server = Server::new(&shared, id, source);
            if id >= 2 && if ordinary { shared.chance(600) } else { kind.has_slot() } {
                server.slot = Some(format!("s{id}"));
            }
            servers.push(Rc::new(RefCell::new(server)));
        }
        let nodes = (0..hubs).map(|id| {
            let target = match shared.chance(600) {
                true => TargetSessionAttrs::Primary,
                false => TargetSessionAttrs::Any,
            };
            let most = if target == TargetSessionAttrs::Any { 2 } else { servers.len() };
            let mut hosts: Vec<_> = (0..most).map(Node::Server).collect();
            if id > 0 && shared.chance(500) {
                hosts.insert(0, Node::Hub(shared.below(id as u64) as usize));
            }
            if !ordinary {
                hosts.truncate(if kind == Kind::Promoted { 2 } else { 1 });
            }
            let conninfo = Conninfo::parse(&conninfo_of(&hosts, target), &|_| None).unwrap();
            let ground = Rc::new(ground(&shared, id, conninfo));
            HubNode { ground, hosts, target, state: HubState::Down }
        });
        let hubs = nodes.collect();
        let walreceivers = servers.iter().map(|_| None).collect();
        let (budget, haste) = match shared.chance(400) || !ordinary {
            true => ((9 + shared.below(6)) * MIB, 150),
            false => ((3 + shared.below(4)) * MIB, 60),
        };
        let haste = if kind == Kind::ManySlots { 25 } else { haste };
        let harm = if ordinary { [1, 4, 7][shared.below(3) as usize] } else { 0 };
        if !ordinary {
            shared.archive.borrow_mut().there = false;
        }
        let script = Script::new(kind, seed);
        let stalled = vec![0; servers.len()];
        let pace = |_| if ordinary { [1, 1, 15, 60][shared.below(4) as usize] } else { 1 };
        let pace = (0..servers.len()).map(pace).collect();
        Self {
            shared,
            script,
            servers,
            walreceivers,
            stalled,
            pace,
            hubs,
            budget,
            haste,
            harm,
            promotions: 0,
        }
    }

    async fn live(&mut self) -> Result<(), String> {
        let steps = 2000 + self.shared.below(4000);
        for _ in 0..steps {
            self.step().await?;
            if self.shared.chance(self.harm) {
                self.befall();
            }
            self.afflict();
        }
        self.heal();
        if !self.shared.kind.converges() {
            for _ in 0..3000 {
                self.step().await?;
            }
            self.check_given_up()?;
            return self.check_final();
        }
        let mut late = 0;
        while !self.has_converged() {
            self.step().await?;
            late += 1;
            if late % 500 == 0 {
                self.help();
            }
            if late > 30_000 {
                return Err(format!("liveness: {}", self.describe()));
            }
        }
        self.check_final()
    }

    /// Everybody's tasks end.
    fn end(&mut self) {
        for id in 0..self.hubs.len() {
            self.stop_hub(id);
        }
        self.walreceivers.clear();
    }

    async fn step(&mut self) -> Result<(), String> {
        let shared = Rc::clone(&self.shared);
        shared.steps.set(shared.steps.get() + 1);
        shared.network.borrow_mut().deliver();
        wake_all();
        // Tasks of their own have their turn meanwhile.
        tokio::time::advance(STEP).await;
        let all = self.servers.len() + self.hubs.len();
        let turns = if shared.calm.get() { all } else { 2 };
        for turn in 0..turns {
            let who = if shared.calm.get() { turn } else { shared.below(all as u64) as usize };
            match who.checked_sub(self.servers.len()) {
                None => self.turn_of_server(who),
                Some(hub) => self.turn_of_hub(hub)?,
            }
        }
        shared.take_broken().map_or(Ok(()), Err)
    }

    fn turn_of_server(&mut self, id: usize) {
        let shared = &self.shared;
        if !self.servers[id].borrow().up {
            return;
        }
        self.servers[id].borrow_mut().serve();
        let source = self.servers[id].borrow().source.clone();
        match source {
            Source::Itself => {
                let written = {
                    let truth = shared.truth.borrow();
                    truth.end(truth.newest()).bytes_since(truth.start)
                };
                if !shared.calm.get() && written < self.budget && shared.chance(self.haste) {
                    let about = [500, 20_000, 200_000][shared.below(3) as usize];
                    self.servers[id].borrow_mut().write(about);
                }
            }
            Source::Server(other) => {
                let there = {
                    let other = self.servers[other].borrow();
                    other.up.then_some((other.tli, other.flush))
                };
                if let Some(there) = there
                    && (shared.calm.get() || shared.chance(100))
                {
                    self.servers[id].borrow_mut().follow(there);
                }
            }
            Source::Hubs(_)
                if self.stalled[id] > shared.steps.get()
                    || !shared.chance(1000 / self.pace[id]) => {}
            Source::Hubs(_) => {
                let me = &self.servers[id];
                let work = self.walreceivers[id].get_or_insert_with(|| {
                    Box::pin(walreceiver::run(Rc::clone(shared), Rc::clone(me)))
                });
                for _ in 0..1 + shared.below(3) {
                    assert!(poll(work).is_pending(), "a walreceiver ended");
                }
                // One that is behind falls further behind.
                if !shared.calm.get() && self.reads_from_file(id) && shared.chance(50) {
                    self.stalled[id] = shared.steps.get() + shared.below(4000);
                    shared.trace(|| format!("server {id} stalls in the middle of a file"));
                }
            }
        }
    }

    /// Is this server sent WAL from a file that some hub has open for it?
    fn reads_from_file(&self, id: usize) -> bool {
        self.hubs.iter().any(|node| match &node.state {
            HubState::Up { process, .. } => process.has_file_open_for(Node::Server(id)),
            _ => false,
        })
    }

    fn turn_of_hub(&mut self, id: usize) -> Result<(), String> {
        let shared = Rc::clone(&self.shared);
        let node = &mut self.hubs[id];
        match &mut node.state {
            HubState::Down => {
                if shared.calm.get() || shared.chance(30) {
                    let cut = match !shared.calm.get() && shared.chance(150) {
                        true => shared.below(20),
                        false => u64::MAX,
                    };
                    let work = Box::pin(start(Rc::clone(&node.ground)));
                    node.state = HubState::Starting(work, cut);
                }
            }
            HubState::Starting(work, cut) => {
                for _ in 0..4 {
                    if *cut == 0 {
                        shared.seen("start cut off");
                        node.state = HubState::Down;
                        self.maybe_power_loss(id);
                        return Ok(());
                    }
                    *cut -= 1;
                    if let Poll::Ready(started) = poll(work) {
                        let (process, keeper, upstream) =
                            started.map_err(|fault| format!("hub {id}: start failed: {fault}"))?;
                        shared.trace(|| format!("hub {id} is up: {}", process.describe()));
                        node.state = HubState::Up { process, keeper, upstream };
                        shared.hubs_up.borrow_mut()[id] = true;
                        break;
                    }
                }
            }
            HubState::Up { process, keeper, upstream } => {
                for _ in 0..1 + shared.below(6) {
                    process.answers.count_turn();
                    assert!(poll(keeper).is_pending(), "a keeper ended");
                }
                process.pass();
                assert!(poll(upstream).is_pending(), "an upstream's task ended");
                process.pass();
                process.serve();
                if shared.chance(8)
                    && let Some(cell) = process.hub.current_cell()
                {
                    process.retain(cell.tli(), cell.durable());
                }
                if process.halted.get() {
                    return Err(format!("hub {id} halted"));
                }
                if process.ground.is_switching() && !shared.calm.get() && shared.chance(50) {
                    shared.trace(|| format!("hub {id} dies in a switch"));
                    self.stop_hub(id);
                    self.maybe_power_loss(id);
                }
            }
        }
        Ok(())
    }

    /// The hub's process is gone.
    pub(crate) fn stop_hub(&mut self, id: usize) {
        let node = &mut self.hubs[id];
        let state = std::mem::replace(&mut node.state, HubState::Down);
        if let HubState::Up { process, keeper, upstream } = state {
            drop((keeper, upstream));
            process.end();
        }
        self.shared.hubs_up.borrow_mut()[id] = false;
        let mut network = self.shared.network.borrow_mut();
        network.cut_off(Node::Hub(id));
        network.cut_off(Node::Archive(id));
        drop(network);
        self.hubs[id].ground.fetches.borrow_mut().clear();
        self.hubs[id].ground.disk.disk.forget_unnamed();
    }

    fn maybe_power_loss(&mut self, id: usize) {
        if self.shared.chance(500) {
            self.hubs[id].ground.disk.disk.power_loss();
        }
    }

    pub(crate) fn stop_server(&mut self, id: usize) {
        self.walreceivers[id] = None;
        let mut server = self.servers[id].borrow_mut();
        server.up = false;
        server.restart();
        self.shared.servers_up.borrow_mut()[id] = false;
        self.shared.trace(|| format!("server {id} goes down"));
    }

    pub(crate) fn start_server(&mut self, id: usize) {
        self.servers[id].borrow_mut().up = true;
        self.shared.servers_up.borrow_mut()[id] = true;
    }

    /// The server that writes the newest timeline.
    fn primary(&self) -> usize {
        let newest = self.shared.truth.borrow().newest();
        let writes = |server: &Rc<RefCell<Server>>| {
            let server = server.borrow();
            server.source == Source::Itself && server.tli == newest
        };
        self.servers.iter().position(writes).expect("somebody writes the newest timeline")
    }

    /// Something goes wrong, or changes.
    fn befall(&mut self) {
        let shared = Rc::clone(&self.shared);
        let hub = shared.below(self.hubs.len() as u64) as usize;
        let server = shared.below(self.servers.len() as u64) as usize;
        match shared.below(100) {
            0..35 => {
                if matches!(self.hubs[hub].state, HubState::Up { .. }) {
                    self.stop_hub(hub);
                    let power = shared.chance(500);
                    shared.trace(|| format!("hub {hub} dies, power lost: {power}"));
                    if power {
                        self.hubs[hub].ground.disk.disk.power_loss();
                    }
                }
            }
            35..50 => {
                let nodes = shared.network.borrow_mut().break_one();
                shared.trace(|| format!("connection breaks: {nodes:?}"));
            }
            50..58 => {
                let is_up = self.servers[server].borrow().up;
                if !is_up {
                    self.start_server(server);
                } else if server != self.primary() || shared.chance(300) {
                    self.stop_server(server);
                }
            }
            58..70 => self.fail_over(),
            70..78 => {
                if shared.archive.borrow().there {
                    self.servers[server].borrow_mut().remove_old(1 + shared.below(2));
                }
            }
            78..88 => self.come_back(server),
            88..91 => {
                let primary = self.primary();
                let mut truth = shared.truth.borrow_mut();
                let mut server = self.servers[primary].borrow_mut();
                truth.switch_segment(server.tli);
                server.flush = truth.end(server.tli);
            }
            91..95 => {
                self.stalled[server] = shared.steps.get() + shared.below(3000);
                shared.trace(|| format!("server {server} stalls"));
            }
            _ => {
                if let HubState::Up { process, .. } = &self.hubs[hub].state {
                    process.drop_upstream();
                    if shared.chance(600) {
                        let until = shared.steps.get() + shared.below(1500);
                        shared.isolated.borrow_mut()[hub] = until;
                        shared.trace(|| format!("hub {hub} reaches no upstream until {until}"));
                    }
                }
            }
        }
    }

    /// A standby is promoted.
    fn fail_over(&mut self) {
        let shared = Rc::clone(&self.shared);
        let (primary, newest) = (self.primary(), shared.truth.borrow().newest());
        let strange = shared.chance(80);
        let candidates: Vec<_> = (0..self.servers.len())
            .filter(|id| {
                let server = self.servers[*id].borrow();
                let line = shared.truth.borrow().descends(newest, server.tli, server.flush);
                *id != primary && server.up && (line || strange) && server.source != Source::Itself
            })
            .collect();
        if candidates.is_empty() || self.promotions >= 4 {
            return;
        }
        self.promotions += 1;
        let chosen = candidates[shared.below(candidates.len() as u64) as usize];
        self.walreceivers[chosen] = None;
        self.servers[chosen].borrow_mut().promote();
        if shared.chance(600) {
            self.stop_server(primary);
        }
        if shared.chance(700) {
            self.point_at(chosen);
        }
    }

    /// The standbys that follow a server directly follow this one.
    fn point_at(&mut self, primary: usize) {
        for (id, server) in self.servers.iter().enumerate() {
            let mut server = server.borrow_mut();
            if id != primary && matches!(server.source, Source::Server(_)) {
                server.source = Source::Server(primary);
            }
        }
    }

    /// A server that was left behind comes back: as it was, or rewound.
    fn come_back(&mut self, id: usize) {
        let shared = Rc::clone(&self.shared);
        let primary = self.primary();
        if id == primary {
            return;
        }
        let zombie = self.servers[id].borrow().source == Source::Itself;
        if zombie && shared.chance(500) {
            if !self.servers[id].borrow().up {
                shared.seen("old primary came back");
                shared.trace(|| format!("old primary {id} comes back"));
                self.start_server(id);
            }
            return;
        }
        let lost = {
            let server = self.servers[id].borrow();
            zombie || server.diverged || server.gap
        };
        if lost {
            self.make_anew(id);
        }
        self.point_at(primary);
    }

    /// A base backup of the newest primary.
    pub(crate) fn make_anew(&mut self, id: usize) {
        let primary = self.primary();
        self.walreceivers[id] = None;
        let source = match id {
            0 | 1 => Source::Server(primary),
            _ => {
                let hubs = self.hubs.len() as u64;
                let any = || self.shared.below(hubs) as usize;
                Source::Hubs(vec![any(), any()])
            }
        };
        let (tli, flush) = {
            let primary = self.servers[primary].borrow();
            (primary.tli, primary.flush)
        };
        let oldest = self.servers[primary].borrow().oldest;
        let mut server = self.servers[id].borrow_mut();
        server.make_anew(source, tli, flush);
        server.oldest = oldest;
        drop(server);
        self.start_server(id);
    }

    /// Faults stop. Servers that cannot go on by themselves are made anew, but for some
    /// standbys behind hubs, which have to be refused for ever.
    fn heal(&mut self) {
        let shared = Rc::clone(&self.shared);
        shared.trace(|| "faults stop".to_owned());
        shared.calm.set(true);
        shared.network.borrow_mut().calm_down();
        shared.archive.borrow_mut().calm_down();
        for hub in &self.hubs {
            hub.ground.disk.disk.set_faults(Faults::default());
            hub.ground.disk.disk.set_slowness(0);
            hub.ground.disk.disk.enlarge();
        }
        self.stalled.fill(0);
        self.pace.fill(1);
        shared.isolated.borrow_mut().fill(0);
        let primary = self.primary();
        for id in 0..self.servers.len() {
            if !self.servers[id].borrow().up {
                self.start_server(id);
            }
            let (left_behind, diverged) = {
                let server = self.servers[id].borrow();
                let truth = shared.truth.borrow();
                let descends = truth.descends(truth.newest(), server.tli, server.flush);
                (server.source == Source::Itself, !descends)
            };
            if id != primary && (left_behind || diverged && (id < 2 || shared.chance(500))) {
                self.make_anew(id);
            }
        }
        self.point_at(primary);
        self.servers[primary].borrow_mut().write(300_000);
    }

    /// What an operator does for those whose WAL nobody has any more, and about what was not
    /// finished.
    fn help(&mut self) {
        self.order_back();
        for id in 0..self.servers.len() {
            let lost = {
                let (server, truth) = (self.servers[id].borrow(), self.shared.truth.borrow());
                server.gap && truth.descends(truth.newest(), server.tli, server.flush)
            };
            if lost && id != self.primary() {
                self.make_anew(id);
            }
        }
        for node in &self.hubs {
            let HubState::Up { process, .. } = &node.state else { continue };
            // Nobody else has its WAL any more at the place where the archive differed once.
            for difference in process.hub.course.evidence().iter().filter(|found| !found.cleared) {
                drop(process.order(Steer::AcceptOurs(difference.at)));
            }
            // The rest of a record that the archive has in part is in the segment being written.
            if process.upstream().is_none() && self.shared.archive.borrow().there {
                let mut primary = self.servers[self.primary()].borrow_mut();
                let mut truth = self.shared.truth.borrow_mut();
                truth.switch_segment(primary.tli);
                primary.flush = truth.end(primary.tli);
            }
        }
        // A hub that is content with one that gets no further never looks elsewhere.
        for node in &self.hubs {
            if let HubState::Up { process, .. } = &node.state
                && let Some(Node::Hub(above)) = process.upstream()
                && !self.is_followable(above)
            {
                let hosts: Vec<_> =
                    node.hosts.iter().filter(|host| **host != Node::Hub(above)).copied().collect();
                let upstream = Upstream::parse(&conninfo_of(&hosts, node.target)).unwrap();
                drop(process.order(Steer::Follow(Some(Arc::new(upstream)))));
            }
        }
    }

    pub(crate) fn end_of_all(&self) -> (TimelineId, Lsn) {
        let truth = self.shared.truth.borrow();
        (truth.newest(), truth.end(truth.newest()))
    }

    /// Can this hub get to the newest timeline by itself?
    fn is_followable(&self, id: usize) -> bool {
        let truth = self.shared.truth.borrow();
        let model = self.hubs[id].ground.model.borrow();
        match model.published {
            None => true,
            Some((tli, _)) => {
                let history = truth.history(truth.newest());
                let forked = history.switchpoint_of(tli);
                let kept = |fork: Lsn| fork.segment_start(truth.size) >= model.released;
                tli == truth.newest() || forked.is_some_and(kept)
            }
        }
    }

    fn position_of(&self, id: usize) -> Option<(TimelineId, Lsn)> {
        let HubState::Up { process, .. } = &self.hubs[id].state else { return None };
        let cell = process.hub.current_cell()?;
        Some((cell.tli(), cell.durable()))
    }

    fn has_converged(&self) -> bool {
        let end = Some(self.end_of_all());
        let hubs =
            (0..self.hubs.len()).all(|id| self.position_of(id) == end || !self.is_followable(id));
        hubs && (0..self.servers.len()).all(|id| {
            let server = self.servers[id].borrow();
            Some((server.tli, server.flush)) == end || !self.can_follow(&server)
        })
    }

    /// Can this server get to the newest timeline by itself?
    fn can_follow(&self, server: &Server) -> bool {
        let truth = self.shared.truth.borrow();
        let descends = truth.descends(truth.newest(), server.tli, server.flush);
        let served = match &server.source {
            Source::Hubs(hubs) => hubs.iter().any(|hub| self.is_followable(*hub)),
            _ => true,
        };
        descends && served
    }

    /// A power loss at the end: everything is still there, to the byte.
    fn check_final(&mut self) -> Result<(), String> {
        let end = self.end_of_all();
        for id in 0..self.hubs.len() {
            let due = self.position_of(id);
            self.stop_hub(id);
            self.hubs[id].ground.disk.disk.power_loss();
            let mut work: Work<_> = Box::pin(start(Rc::clone(&self.hubs[id].ground)));
            let (process, keeper, upstream) = loop {
                if let Poll::Ready(started) = poll(&mut work) {
                    break started.map_err(|fault| format!("hub {id}: start failed: {fault}"))?;
                }
            };
            drop((work, keeper, upstream));
            let found = match process.hub.position() {
                Position::At { tli, durable, .. } => Some((tli, durable)),
                Position::Empty => None,
            };
            process.end();
            self.shared.take_broken().map_or(Ok(()), Err)?;
            if self.shared.kind.converges()
                && self.is_followable(id)
                && (due, found) != (Some(end), Some(end))
            {
                return Err(format!("hub {id} ended at {found:?}, the end is {end:?}"));
            }
        }
        Ok(())
    }

    fn describe(&self) -> String {
        let mut lines = vec![format!("the end is {:?}", self.end_of_all())];
        for (id, hub) in self.hubs.iter().enumerate() {
            let state = match &hub.state {
                HubState::Up { process, .. } => process.describe(),
                HubState::Down => "down".to_owned(),
                HubState::Starting(..) => "starting".to_owned(),
            };
            lines.push(format!("hub {id} ({:?} {:?}): {state}", hub.target, hub.hosts));
        }
        for server in &self.servers {
            let server = server.borrow();
            lines.push(format!(
                "server {} {:?} timeline {} flush {} oldest {} diverged {} gap {}",
                server.id,
                server.source,
                server.tli,
                server.flush,
                server.oldest,
                server.diverged,
                server.gap
            ));
        }
        lines.join("\n")
    }
}
