//! Worlds in which one thing goes wrong, on purpose and at length, and what must hold in
//! them. The ordinary world has a little of everything; these have one fault each that it
//! never meets.

use crate::environment::conninfo_of;
use crate::hub::Answer;
use crate::network::Node;
use crate::plants::Plant;
use crate::random::Random;
use crate::shared::{STEP, promise};
use crate::truth::MIB;
use crate::world::{HubState, World};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::oneshot::error::TryRecvError;
use walhub::config::WeakProof;
use walhub::follow::Steer;
use walhub::hub::course::Upstream;
use walhub::store::course::FenceNote;
use walhub::store::retention::{HighWatermark, Policy};
use walhub::store::slots::{Create, InvalidSlots, Origin, SlotName};
use walhub::wal::{Lsn, TimelineId};
use walhub::wire::command::SlotLifetime;
use walhub::wire::conninfo::TargetSessionAttrs;

/// What a world is about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Kind {
    /// A little of everything.
    Ordinary,
    /// The primary's storage is rolled back to a snapshot, and the same job runs again.
    RolledBack,
    /// The same, and then a standby that has followed the primary back is promoted.
    Promoted,
    /// The same as the first, and an operator gives the hub's history up for the upstream's.
    GivenUp,
    /// A segment vanishes from the middle of pg_wal while the hub is down.
    Hole,
    /// The hub starts again with its disk above the high watermark.
    FullDisk,
    /// Hundreds of slots move, and the disk takes its time.
    ManySlots,
    /// The clock jumps by days, and back.
    ClockJumps,
    /// A client sends many commands before it reads an answer.
    Pipelines,
    /// A standby's connection breaks, and it is back seconds later.
    Returns,
    /// An operator fences the hub, which loses its power meanwhile.
    Fenced,
    /// An operator names another upstream to the hub, which loses its power afterwards.
    Steered,
}

/// All but the ordinary one.
pub(crate) const SPECIAL: [Kind; 11] = [
    Kind::RolledBack,
    Kind::Promoted,
    Kind::GivenUp,
    Kind::Hole,
    Kind::FullDisk,
    Kind::ManySlots,
    Kind::ClockJumps,
    Kind::Pipelines,
    Kind::Returns,
    Kind::Fenced,
    Kind::Steered,
];

/// What the special worlds have to meet.
pub(crate) const SIGHTS: &[&str] = &[
    "a primary rolled back",
    "a standby of a primary rolled back is promoted",
    "an upstream's history is accepted",
    "a hub dies while it gives its history up",
    "a standby with the former WAL is refused",
    "a hole in pg_wal",
    "a start above the watermark",
    "hundreds of slots",
    "a clock that jumps",
    "a pipeline of commands",
    "a standby that comes back",
    "upstream has other bytes",
    "a fenced hub",
    "a hub dies while it is given an order",
    "another upstream",
];

/// A step is five milliseconds: so many are the time for which WAL is kept for somebody
/// who has just gone, and for everybody after a start.
pub(crate) const GRACE: u64 = 90 * 200;

/// Slots of a hub with many.
pub(crate) const SLOTS: usize = 200;

/// What a commit waits for is done in so many turns of the keeper, whatever else it has to
/// do. A sync for each slot takes five times as many.
const PROMPT: u64 = 300;

/// What is done to a world, and when.
pub(crate) struct Script {
    kind: Kind,
    first: u64,
    second: u64,
    /// The snapshot that the primary returns to.
    snapshot: Option<(TimelineId, Lsn)>,
    /// Files that nobody gave up.
    kept: Vec<PathBuf>,
    /// Where the slots of a hub with many report to.
    reports: BTreeMap<String, Arc<AtomicU64>>,
    /// All of them are on disk.
    settled: bool,
    /// A primary that is rolled back had just begun a new segment.
    on_a_boundary: bool,
    /// The hub starts again while the primary is rolled back: it compares its whole open segment,
    /// once.
    starts_again: bool,
    /// The order that ends a fence names the upstream that is in force anyway.
    names_the_upstream: bool,
    /// How far the operator is, who steers the hub.
    pub(crate) steering: Steering,
}

/// An operator's way: there and back again, with a power failure in between.
pub(crate) enum Steering {
    Due,
    Ordered(Answer),
    /// The order was carried out. The hub does not get past that.
    There(Option<FenceNote>),
    /// The power failed.
    Restarted(Option<FenceNote>),
    Back,
}

impl Steering {
    /// What a fenced hub does not get past.
    const fn fence(&self) -> Option<FenceNote> {
        match self {
            Self::There(fence) | Self::Restarted(fence) => *fence,
            _ => None,
        }
    }

    /// Is the hub where it was sent?
    const fn is_there(&self) -> bool {
        matches!(self, Self::There(_) | Self::Restarted(_))
    }
}

impl Script {
    pub(crate) fn new(kind: Kind, seed: u64) -> Self {
        // Its own: the ordinary worlds are the same whatever is added here.
        let mut random = Random::new(!seed);
        // A rolled back primary has to have something to write yet.
        let (first, apart) = match kind {
            Kind::RolledBack | Kind::Promoted | Kind::GivenUp | Kind::Fenced | Kind::Steered => {
                (100 + random.below(300), 100 + random.below(300))
            }
            _ => (400 + random.below(1200), 200 + random.below(1500)),
        };
        let second = first + apart;
        let (kept, reports) = (Vec::new(), BTreeMap::new());
        let (settled, on_a_boundary) = (false, random.chance(500));
        let (starts_again, names_the_upstream) = (random.chance(500), random.chance(500));
        let (snapshot, steering) = (None, Steering::Due);
        Self {
            kind,
            first,
            second,
            snapshot,
            kept,
            reports,
            settled,
            on_a_boundary,
            starts_again,
            names_the_upstream,
            steering,
        }
    }
}

impl Kind {
    /// What a hub keeps.
    pub(crate) fn policy(self, ordinary: Policy) -> Policy {
        let none = Policy::default();
        let patient = Policy { grace: STEP * GRACE as u32, ..Policy::default() };
        match self {
            Self::Ordinary => ordinary,
            Self::Hole => Policy { wal_keep_size: 1 << 30, ..none },
            Self::FullDisk => {
                Policy { high_watermark: Some(HighWatermark::Free(4 * MIB)), ..patient }
            }
            Self::ClockJumps => {
                Policy { idle_slot_timeout: Duration::from_secs(24 * 3600), ..patient }
            }
            Self::Returns => patient,
            _ => none,
        }
    }

    /// What a hub makes of a weak proof. It may be followed into another history, which worlds with
    /// two must not see. A mistake shows where it is followed.
    pub(crate) fn weak_proof(self, plant: Plant) -> WeakProof {
        match self {
            Self::RolledBack | Self::Promoted | Self::GivenUp if plant == Plant::Honest => {
                WeakProof::Refuse
            }
            _ => WeakProof::Accept,
        }
    }

    /// Does the standby behind the hub have a slot?
    pub(crate) fn has_slot(self) -> bool {
        matches!(self, Self::FullDisk | Self::ClockJumps | Self::GivenUp)
    }

    /// Does everybody get to the newest timeline's end once faults have stopped? Whoever has
    /// lost WAL, or holds another history, does not.
    pub(crate) fn converges(self) -> bool {
        !matches!(
            self,
            Self::RolledBack | Self::Promoted | Self::GivenUp | Self::Hole | Self::Returns
        )
    }
}

impl World {
    /// What the world is about happens.
    pub(crate) fn afflict(&mut self) {
        let now = self.shared.steps.get();
        // A standby that finds no WAL to begin with is made from a base backup.
        let lost = { self.servers[2].borrow().gap && self.servers[2].borrow().left.is_none() };
        if lost && self.script.kind != Kind::Ordinary {
            self.make_anew(2);
        }
        let (first, second) = (self.script.first, self.script.second);
        match self.script.kind {
            Kind::Ordinary => {}
            Kind::RolledBack | Kind::Promoted | Kind::GivenUp if now == first => {
                self.take_snapshot();
            }
            Kind::RolledBack | Kind::Promoted if now >= second => self.roll_back(),
            Kind::GivenUp if now >= second => {
                self.roll_back();
                self.give_up_ours();
            }
            Kind::Hole if now >= first => self.tear_a_hole(),
            Kind::FullDisk if now == first => self.stalled[2] = u64::MAX,
            Kind::FullDisk if now == second => self.fill_the_disk(),
            Kind::ManySlots => self.move_slots(),
            Kind::ClockJumps if now == first => {
                self.walreceivers[2] = None;
                self.stalled[2] = second + 700;
                self.shared.network.borrow_mut().cut_off(Node::Server(2));
            }
            Kind::ClockJumps if now == second => self.jump(8),
            Kind::ClockJumps if now == second + 600 => self.jump(-8),
            Kind::Returns if now >= first && now.is_multiple_of(400) => {
                self.shared.network.borrow_mut().cut_off(Node::Server(2));
                self.shared.seen("a standby that comes back");
            }
            Kind::Fenced | Kind::Steered if now >= first => self.steer(),
            _ => {}
        }
        self.look_after();
    }

    /// What must hold at every step of a world.
    fn look_after(&self) {
        match self.script.kind {
            Kind::Hole => self.look_for_files(),
            Kind::FullDisk | Kind::ClockJumps => self.look_at_slot(),
            Kind::Fenced | Kind::Steered => self.look_where_it_is(),
            _ => {}
        }
    }

    fn take_snapshot(&mut self) {
        let truth = self.shared.truth.borrow();
        let tli = truth.newest();
        self.script.snapshot = Some((tli, truth.end(tli)));
        drop(truth);
        self.shared.trace(|| "a snapshot of the primary is taken".to_owned());
    }

    /// The primary was at the snapshot once more and has come as far as before. Whoever has more than that holds a history
    /// that nobody writes any more.
    fn roll_back(&mut self) {
        let Some((tli, at)) = self.script.snapshot else { return };
        if self.shared.truth.borrow().end(tli) < at.saturating_add(20_000) {
            return;
        }
        // The primary rests until the hub has everything.
        self.budget = 0;
        if std::mem::take(&mut self.script.on_a_boundary) {
            let mut truth = self.shared.truth.borrow_mut();
            truth.switch_segment(tli);
            self.servers[0].borrow_mut().flush = truth.end(tli);
            return;
        }
        let end = self.shared.truth.borrow().end(tli);
        if self.hubs[0].ground.model.borrow().published != Some((tli, end)) {
            return;
        }
        self.script.snapshot = None;
        self.stop_server(0);
        let first = {
            let mut random = self.shared.random.borrow_mut();
            self.shared.truth.borrow_mut().roll_back(tli, at, &mut random)
        };
        for server in &self.servers {
            server.borrow_mut().note_rollback(first.unwrap_or(Lsn::MAX));
        }
        match self.script.kind {
            Kind::Promoted => self.promote_a_standby(end),
            _ => self.start_server(0),
        }
        if self.script.starts_again {
            self.stop_hub(0);
        }
        self.budget = 30 * MIB;
        self.shared.seen("a primary rolled back");
        self.shared.trace(|| format!("the primary is rolled back to {at}, first other {first:?}"));
    }

    /// The primary stays away, and its standby has all that was written again.
    fn promote_a_standby(&self, end: Lsn) {
        let mut standby = self.servers[1].borrow_mut();
        standby.flush = end;
        standby.promote();
        self.shared.seen("a standby of a primary rolled back is promoted");
    }

    fn tear_a_hole(&mut self) {
        let HubState::Up { .. } = self.hubs[0].state else { return };
        if !self.script.kept.is_empty() {
            return;
        }
        let ground = Rc::clone(&self.hubs[0].ground);
        let mut complete = ground.segments();
        complete.sort();
        if complete.len() < 5 {
            return;
        }
        self.stop_hub(0);
        let middle = 1 + self.shared.below(complete.len() as u64 - 3) as usize;
        let lost = complete.remove(middle);
        ground.disk.disk.lose(&lost);
        self.script.kept = complete;
        self.shared.seen("a hole in pg_wal");
        self.shared.trace(|| format!("{} vanishes", lost.display()));
    }

    fn look_for_files(&self) {
        let ground = &self.hubs[0].ground;
        let names: Vec<_> = ground.disk.disk.names();
        // A power failure may take a final name that is not durable yet.
        let is_there = |kept: &PathBuf| {
            let open = kept.with_extension("partial");
            names
                .iter()
                .any(|name| [kept.file_name(), open.file_name()].contains(&name.file_name()))
        };
        let lost = self.script.kept.iter().find(|kept| !is_there(kept));
        promise!(self.shared, lost.is_none(), "{lost:?} goes, and nobody gave it up");
    }

    /// There is room for a few segments more than there are, so the watermark is exceeded
    /// already; and the hub starts again.
    fn fill_the_disk(&mut self) {
        let ground = Rc::clone(&self.hubs[0].ground);
        ground.disk.disk.leave_free(2 * MIB);
        self.stop_hub(0);
        self.stalled[2] = self.shared.steps.get() + 300;
        self.shared.seen("a start above the watermark");
        self.shared.trace(|| "the hub starts above the watermark".to_owned());
    }

    /// The slot of a standby that was away for seconds keeps its WAL, and a disk with a high
    /// watermark is never full.
    fn look_at_slot(&self) {
        let full = self.hubs[0].ground.disk.disk.has_overflowed();
        promise!(self.shared, !full, "the disk is full, whatever its high watermark");
        let HubState::Up { process, .. } = &self.hubs[0].state else { return };
        let slots = process.hub.holds.slots.lock();
        let lost = slots.get("s2").and_then(|slot| slot.invalidated);
        promise!(
            self.shared,
            lost.is_none(),
            "slot s2 is invalidated ({lost:?}) though its standby was away for seconds"
        );
    }

    /// The operator's next step.
    fn steer(&mut self) {
        let now = self.shared.steps.get();
        match std::mem::replace(&mut self.script.steering, Steering::Back) {
            Steering::Due => self.script.steering = self.order_there(),
            Steering::Ordered(answer) => self.script.steering = self.wait_for(answer),
            Steering::There(fence) if now >= self.script.second => {
                self.stop_hub(0);
                self.hubs[0].ground.disk.disk.power_loss();
                self.script.steering = Steering::Restarted(fence);
            }
            Steering::Restarted(_) if now >= self.script.second + 1000 => {
                self.script.steering = Steering::Restarted(None);
                self.order_back();
            }
            other => self.script.steering = other,
        }
    }

    /// The operator gives the hub's history up wherever the upstream has another, again until it is
    /// done.
    fn give_up_ours(&mut self) {
        if let Steering::Ordered(answer) = &mut self.script.steering {
            match answer.try_recv() {
                Err(TryRecvError::Empty) if self.shared.chance(5) => {
                    self.shared.seen("a hub dies while it gives its history up");
                    self.shared.trace(|| "the hub dies while it gives its history up".to_owned());
                    self.stop_hub(0);
                    if self.shared.chance(500) {
                        self.hubs[0].ground.disk.disk.power_loss();
                    }
                }
                Err(TryRecvError::Empty) => return,
                answered => self.shared.trace(|| format!("the order is answered: {answered:?}")),
            }
            self.script.steering = Steering::Due;
        }
        let HubState::Up { process, .. } = &self.hubs[0].state else { return };
        let evidence = process.hub.course.evidence();
        if let Some(difference) = evidence.iter().find(|difference| !difference.cleared) {
            self.script.steering =
                Steering::Ordered(process.order(Steer::AcceptTheirs(difference.at)));
        }
    }

    /// Where the hub's history was given up, it gets to the end of the upstream's.
    pub(crate) fn check_given_up(&self) -> Result<(), String> {
        let HubState::Up { process, .. } = &self.hubs[0].state else { return Ok(()) };
        if self.shared.kind != Kind::GivenUp || process.hub.course.seams().is_empty() {
            return Ok(());
        }
        self.shared.seen("an upstream's history is accepted");
        let (tli, end) = self.end_of_all();
        let durable = process.hub.current_cell().map(|cell| (cell.tli(), cell.durable()));
        match durable == Some((tli, end)) {
            true => Ok(()),
            false => Err(format!("hub 0 is at {durable:?} of the accepted history, to {end}")),
        }
    }

    fn order_there(&self) -> Steering {
        let HubState::Up { process, .. } = &self.hubs[0].state else { return Steering::Due };
        if process.hub.current_cell().is_none() {
            return Steering::Due;
        }
        Steering::Ordered(process.order(match self.script.kind {
            Kind::Fenced => Steer::Fence,
            _ => Steer::Follow(Some(Arc::new(other_upstream()))),
        }))
    }

    /// The hub may die first: whether the order was carried out is not known then.
    fn wait_for(&mut self, mut answer: Answer) -> Steering {
        match answer.try_recv() {
            Err(TryRecvError::Empty) if self.shared.chance(20) => {
                self.shared.seen("a hub dies while it is given an order");
                self.stop_hub(0);
                if self.shared.chance(500) {
                    self.hubs[0].ground.disk.disk.power_loss();
                }
                Steering::Due
            }
            Err(TryRecvError::Empty) => Steering::Ordered(answer),
            Err(TryRecvError::Closed) => Steering::Due,
            Ok(Err(why)) => {
                self.shared.trace(|| format!("the order is refused: {why}"));
                Steering::Due
            }
            Ok(Ok(())) => {
                let HubState::Up { process, .. } = &self.hubs[0].state else {
                    return Steering::Due;
                };
                let fence = process.hub.course.fence();
                self.shared.trace(|| format!("the order is carried out: {fence:?}"));
                Steering::There(fence)
            }
        }
    }

    /// The operator takes the order back, once it was given.
    pub(crate) fn order_back(&mut self) {
        let HubState::Up { process, .. } = &self.hubs[0].state else { return };
        let steer = match self.script.kind {
            Kind::Fenced => {
                let flag = process.hub.course.flag();
                Steer::Unfence(self.script.names_the_upstream.then_some(flag))
            }
            Kind::Steered => Steer::Follow(None),
            _ => return,
        };
        // When it is carried out does not matter.
        drop(process.order(steer));
        self.script.steering = Steering::Back;
    }

    /// What was ordered holds, whatever became of the hub.
    fn look_where_it_is(&self) {
        let (shared, steering) = (&self.shared, &self.script.steering);
        let HubState::Up { process, .. } = &self.hubs[0].state else { return };
        if let Some(fence) = steering.fence()
            && let Some(cell) = process.hub.current_cell()
        {
            shared.seen("a fenced hub");
            // A start takes the rest of a segment that a record ends early for WAL that it has.
            let (from, to) = (fence.durable, cell.durable().max(fence.durable));
            let more = shared.truth.borrow().bytes(fence.tli, from, to);
            promise!(
                shared,
                cell.tli() == fence.tli && more.iter().all(|byte| *byte == 0),
                "the hub is at {}, fenced at {}",
                cell.durable(),
                fence.durable
            );
        }
        if shared.kind == Kind::Steered && steering.is_there() {
            let upstream = process.upstream();
            if upstream == Some(Node::Server(1)) {
                shared.seen("another upstream");
            }
            promise!(
                shared,
                upstream != Some(Node::Server(0)),
                "the hub follows the upstream that it was sent away from"
            );
        }
    }

    fn jump(&self, days: i64) {
        self.shared.jump(days);
        self.shared.seen("a clock that jumps");
        self.shared.trace(|| format!("the clock jumps by {days} days"));
    }

    /// Hundreds of standbys confirm what they have.
    fn move_slots(&mut self) {
        let HubState::Up { process, .. } = &self.hubs[0].state else { return };
        let Some(cell) = process.hub.current_cell() else { return };
        let durable = cell.durable();
        let mut slots = process.hub.holds.slots.lock();
        if self.script.reports.is_empty() {
            for n in 0..SLOTS {
                let name = SlotName::parse(&format!("many{n}")).unwrap();
                let session = slots.enter(100_000 + n as u32);
                let create = Create {
                    name: name.clone(),
                    lifetime: SlotLifetime::Persistent,
                    origin: Origin::Asked,
                    reserve: Some(process.hub.holds.oldest_kept()),
                    session,
                };
                slots.create(create, 10_000).unwrap();
                slots.set_free(&name);
                let key = name.to_string();
                let used = slots.acquire(&key, session, InvalidSlots::Refuse).unwrap();
                slots.release(&name, used.token);
                self.script.reports.insert(key, used.reported);
                let keeper = process.keeper.clone();
                process.spawn(async move { keeper.save_slot(name).await.unwrap() });
            }
            self.shared.seen("hundreds of slots");
        }
        drop(slots);
        if !self.script.settled && process.is_at_leisure() {
            self.script.settled = true;
            process.answers.forget_longest();
            self.hubs[0].ground.disk.disk.set_slowness(5);
        }
        for (name, reports) in &self.script.reports {
            let reserved = process.hub.holds.oldest_kept();
            let confirmed = durable.saturating_sub(self.shared.below(100_000)).max(reserved);
            let before = reports.fetch_max(confirmed.raw(), Ordering::Relaxed);
            let flush = Lsn::new(before.max(confirmed.raw()));
            self.shared.promised.borrow_mut().insert((0, name.clone()), flush);
        }
        let most = process.answers.longest();
        self.shared.trace(|| format!("the longest wait so far: {most}"));
        promise!(
            self.shared,
            most <= PROMPT || !self.script.settled,
            "what a commit waits for took {most} turns of the keeper"
        );
    }
}

/// The upstream that an operator names: the standby of the other.
fn other_upstream() -> Upstream {
    Upstream::parse(&conninfo_of(&[Node::Server(1)], TargetSessionAttrs::Any)).unwrap()
}
