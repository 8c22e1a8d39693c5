//! What everybody in a world shares: the truth, the network, the archive, chance and time.

use crate::archive::Archive;
use crate::kinds::Kind;
use crate::network::{Conn, Network, Node};
use crate::plants::Plant;
use crate::random::Random;
use crate::truth::Truth;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};
use walhub::ring::Clock;
use walhub::store::now::Now;
use walhub::wal::{Lsn, TimelineId};

/// How long a step takes.
pub(crate) const STEP: Duration = Duration::from_millis(5);

/// A world's common ground. Nobody holds a borrow over an await.
pub(crate) struct Shared {
    pub(crate) plant: Plant,
    pub(crate) truth: RefCell<Truth>,
    pub(crate) network: RefCell<Network>,
    pub(crate) archive: RefCell<Archive>,
    pub(crate) random: RefCell<Random>,
    /// Faults have stopped.
    pub(crate) calm: Cell<bool>,
    pub(crate) steps: Cell<u64>,
    /// When the world began, by the clock that never goes back.
    zero: Instant,
    /// What the world is about.
    pub(crate) kind: Kind,
    /// So many days the clock is ahead of itself.
    jumped: Cell<i64>,
    /// Servers that are up and can be connected to.
    pub(crate) servers_up: RefCell<Vec<bool>>,
    pub(crate) hubs_up: RefCell<Vec<bool>>,
    /// By hub: until when it reaches no upstream.
    pub(crate) isolated: RefCell<Vec<u64>>,
    /// By hub and slot: the newest flush that its user reported.
    pub(crate) promised: RefCell<BTreeMap<(usize, String), Lsn>>,
    /// By hub and timeline: the newest flush that it reported upstream.
    pub(crate) acknowledged: RefCell<BTreeMap<(usize, TimelineId), Lsn>>,
    broken: RefCell<Option<String>>,
    seen: RefCell<BTreeSet<&'static str>>,
    trace: Option<RefCell<Vec<String>>>,
}

impl Shared {
    pub(crate) fn new(
        seed: u64,
        kind: Kind,
        plant: Plant,
        servers: usize,
        hubs: usize,
        traced: Traced,
    ) -> Self {
        let mut random = Random::new(seed);
        let truth = Truth::new(&mut random);
        Self {
            plant,
            truth: RefCell::new(truth),
            network: RefCell::new(Network::new(random.fork())),
            archive: RefCell::new(Archive::new(random.fork())),
            random: RefCell::new(random),
            calm: Cell::new(false),
            steps: Cell::new(0),
            zero: Instant::now(),
            kind,
            jumped: Cell::new(0),
            servers_up: RefCell::new(vec![true; servers]),
            hubs_up: RefCell::new(vec![false; hubs]),
            isolated: RefCell::new(vec![0; hubs]),
            promised: RefCell::default(),
            acknowledged: RefCell::default(),
            broken: RefCell::default(),
            seen: RefCell::default(),
            trace: (traced == Traced::Yes).then(RefCell::default),
        }
    }

    pub(crate) fn below(&self, bound: u64) -> u64 {
        self.random.borrow_mut().below(bound)
    }

    pub(crate) fn chance(&self, per_mille: u64) -> bool {
        self.random.borrow_mut().chance(per_mille)
    }

    /// The time of day.
    pub(crate) fn now(&self) -> SystemTime {
        let passed = Duration::from_secs(1000) + STEP * self.steps.get() as u32;
        SystemTime::UNIX_EPOCH + self.ahead() + passed
    }

    /// The time by both clocks.
    pub(crate) fn both(&self) -> Now {
        let jumped = match self.plant {
            Plant::IdlesByTheTimeOfDay => self.ahead(),
            _ => Duration::ZERO,
        };
        Now { instant: self.clock() + jumped, time_of_day: self.now() }
    }

    /// How far the time of day has jumped.
    fn ahead(&self) -> Duration {
        Duration::from_secs(self.jumped.get().unsigned_abs() * 24 * 3600)
    }

    /// The clock that never goes back.
    pub(crate) fn clock(&self) -> Instant {
        let jumped = match self.plant {
            Plant::TimesOutByTheTimeOfDay => self.ahead(),
            _ => Duration::ZERO,
        };
        self.zero + jumped + STEP * self.steps.get() as u32
    }

    /// The clock is so many days further, or back.
    pub(crate) fn jump(&self, days: i64) {
        self.jumped.set(self.jumped.get() + days);
    }

    /// A connection to a node that is up and can be reached.
    pub(crate) fn connect(&self, from: Node, to: Node) -> Option<Conn> {
        let is_up = match to {
            Node::Server(n) => self.servers_up.borrow()[n],
            Node::Hub(n) => self.hubs_up.borrow()[n],
            Node::Archive(_) => true,
        };
        let isolated = match from {
            Node::Hub(n) => self.isolated.borrow()[n] > self.steps.get(),
            _ => false,
        };
        (is_up && !isolated).then(|| self.network.borrow_mut().connect(from, to))
    }

    /// A hub has told a server that it has WAL on disk.
    pub(crate) fn note_acknowledged(&self, hub: usize, tli: TimelineId, flush: Lsn) {
        let mut acknowledged = self.acknowledged.borrow_mut();
        let known = acknowledged.entry((hub, tli)).or_insert(flush);
        *known = flush.max(*known);
    }

    /// A situation came up.
    pub(crate) fn seen(&self, what: &'static str) {
        self.seen.borrow_mut().insert(what);
    }

    pub(crate) fn sights(&self) -> BTreeSet<&'static str> {
        self.seen.borrow().clone()
    }

    /// A promise is broken; the first one counts.
    pub(crate) fn broken(&self, what: String) {
        self.broken.borrow_mut().get_or_insert(what);
    }

    pub(crate) fn take_broken(&self) -> Option<String> {
        self.broken.borrow_mut().take()
    }

    pub(crate) fn trace(&self, what: impl FnOnce() -> String) {
        if let Some(trace) = &self.trace {
            trace.borrow_mut().push(format!("{:6} {}", self.steps.get(), what()));
        }
    }

    pub(crate) fn take_trace(&self) -> Vec<String> {
        self.trace.as_ref().map(RefCell::take).unwrap_or_default()
    }
}

impl Clock for Shared {
    fn now(&self) -> Instant {
        self.clock()
    }

    fn time_of_day(&self) -> SystemTime {
        Self::now(self)
    }
}

/// Is a world's story written down?
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Traced {
    No,
    Yes,
}

/// Breaks off, and says which promise was broken, when the condition does not hold.
macro_rules! promise {
    ($shared:expr, $holds:expr, $($what:tt)+) => {
        if !$holds {
            $shared.broken(format!($($what)+));
        }
    };
}
pub(crate) use promise;

/// Lets everybody else go first.
pub(crate) async fn pause() {
    let mut paused = false;
    poll_fn(|_| match std::mem::replace(&mut paused, true) {
        true => Poll::Ready(()),
        false => Poll::Pending,
    })
    .await;
}
