//! A thread with its share of the standbys.

mod connecting;
mod replies;
mod streaming;

use super::ledger::Ledger;
use super::outcome::histogram;
use super::plan::Group;
use super::shared::{Counts, FleetState};
use super::standby::{Kind, Standby, State};
use super::verify::Verifier;
use crate::bench::clock::Nanos;
use hdrhistogram::Histogram;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The size of one receive.
const BUFFER: usize = 128 << 10;
/// The most events taken at once.
const EVENTS: usize = 512;
/// The waker's token among the events.
const WAKER: u64 = u64::MAX;
/// How often a receipt whose commit is not known yet is checked.
const WAITING_TICK: Duration = Duration::from_millis(5);
const NEVER: Nanos = Nanos(u64::MAX);

pub(super) struct Worker {
    shared: Arc<FleetState>,
    thread: usize,
    epoll: OwnedFd,
    standbys: Vec<Standby>,
    timers: BinaryHeap<Reverse<(Nanos, u32)>>,
    buffer: Box<[u8]>,
    ledger: Ledger,
    verifier: Verifier,
    counts: [Counts; 4],
    marked_counts: [Counts; 4],
    marked: Nanos,
    storms: u64,
    next_storm: Nanos,
    states: [usize; 4],
    connect: Histogram<u64>,
    /// Standbys that have received a batch and not reported it yet.
    unreported: Vec<usize>,
    random: Random,
}

/// A thread's results since the mark.
pub(super) struct Report {
    pub(super) groups: [GroupResults; 4],
    pub(super) connect: Histogram<u64>,
}

pub(super) struct GroupResults {
    pub(super) counts: Counts,
    pub(super) each: Histogram<u64>,
    pub(super) forgotten: u64,
}

impl Worker {
    pub(super) fn new(shared: Arc<FleetState>, thread: usize) -> io::Result<Self> {
        let plan = &shared.plan;
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        if let Some(waker) = shared.waker(thread) {
            epoll::add(&epoll, waker, EventData::new_u64(WAKER), EventFlags::IN)?;
        }
        let books = Arc::clone(&shared.first_last);
        let mut ledger = Ledger::new(Arc::clone(&plan.commits), books, thread);
        let (mut standbys, mut timers) = (Vec::new(), BinaryHeap::new());
        let now = plan.clock.now();
        for number in (thread..plan.standbys).step_by(plan.threads) {
            let mut standby = Standby::new(number, plan.group_of(number));
            let wait = plan.connect_rate.map_or(Duration::ZERO, |rate| {
                Duration::from_secs_f64(number as f64 / f64::from(rate.max(1)))
            });
            standby.due = now.after(wait);
            let place = u32::try_from(standbys.len()).map_err(io::Error::other)?;
            timers.push(Reverse((standby.due, place)));
            ledger.open(standby.group);
            standbys.push(standby);
        }
        let storm = plan.behaviours.storm.filter(|_| thread == 0);
        Ok(Self {
            thread,
            epoll,
            states: [standbys.len(), 0, 0, 0],
            standbys,
            timers,
            buffer: vec![0; BUFFER].into_boxed_slice(),
            ledger,
            verifier: Verifier::new(Arc::clone(&shared.common), plan.verify),
            counts: [Counts::default(); 4],
            marked_counts: [Counts::default(); 4],
            marked: Nanos(0),
            storms: 0,
            next_storm: storm.map_or(NEVER, |storm| now.after(storm.first)),
            connect: histogram(),
            unreported: Vec::new(),
            random: Random(plan.seed ^ (thread as u64) << 32),
            shared,
        })
    }

    pub(super) fn run(mut self) -> Report {
        let nothing = Event { flags: EventFlags::empty(), data: EventData::new_u64(0) };
        let mut events = vec![nothing; EVENTS];
        while !self.shared.stopping.load(Ordering::Acquire) {
            let timeout = self.timeout();
            let count = match epoll::wait(&self.epoll, events.as_mut_slice(), Some(&timeout)) {
                Ok(count) => count,
                Err(Errno::INTR) => 0,
                Err(error) => {
                    self.shared.refusal(format!("could not wait for sockets: {error}"));
                    break;
                }
            };
            self.obey();
            for event in events.iter().take(count) {
                let (data, flags) = (event.data, event.flags);
                self.event(data.u64(), flags);
            }
            self.report_all();
            self.run_timers();
            self.ledger.settle();
            self.publish();
        }
        self.report()
    }

    fn now(&self) -> Nanos {
        self.shared.plan.clock.now()
    }

    fn timeout(&self) -> Timespec {
        let now = self.now();
        let first = self.timers.peek().map_or(NEVER, |Reverse((due, _))| *due);
        let mut due = first.min(self.next_storm);
        if self.ledger.is_waiting() {
            due = due.min(now.after(WAITING_TICK));
        }
        let wait = due.since(now).min(Duration::from_secs(1));
        let (tv_sec, tv_nsec) = (wait.as_secs().cast_signed(), wait.subsec_nanos().into());
        Timespec { tv_sec, tv_nsec }
    }

    /// Carries out what the fleet's owner has ordered.
    fn obey(&mut self) {
        let marked = Nanos(self.shared.marked.load(Ordering::Acquire));
        if marked != self.marked {
            self.marked = marked;
            self.ledger.mark(marked);
            self.marked_counts = self.counts;
        }
        let now = self.now();
        if self.next_storm <= now {
            let every = self.shared.plan.behaviours.storm.and_then(|storm| storm.every);
            self.next_storm = every.map_or(NEVER, |every| self.next_storm.after(every));
            self.shared.storm();
        }
        let storms = self.shared.storms.load(Ordering::Acquire);
        if storms != self.storms {
            self.storms = storms;
            self.storm();
        }
    }

    fn storm(&mut self) {
        let mut gone = Vec::new();
        for place in 0..self.standbys.len() {
            let standby = &self.standbys[place];
            if standby.group == Group::Good && standby.kind() == Kind::Streaming {
                self.say_goodbye(place);
                self.leave_stream(place, State::Idle);
                gone.push(place);
            }
        }
        self.shared.storm_obeyed();
        for place in gone {
            self.connect(place);
        }
    }

    fn event(&mut self, data: u64, flags: EventFlags) {
        if data == WAKER {
            let mut count = [0; 8];
            if let Some(waker) = self.shared.waker(self.thread) {
                // It is empty when an earlier read also took this wake-up.
                rustix::io::read(waker, &mut count).ok();
            }
            return;
        }
        let (place, generation) = ((data & 0xFFFF_FFFF) as usize, (data >> 32) as u32);
        let Some(standby) = self.standbys.get(place) else { return };
        if standby.generation != generation {
            return;
        }
        match &standby.state {
            State::Connecting(_) => self.shake_hands(place),
            State::Streaming(_) => {
                if flags.contains(EventFlags::OUT) {
                    self.go_on(place);
                }
                if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
                    self.receive(place);
                }
            }
            State::Stalled(_) => {
                if flags.intersects(EventFlags::HUP | EventFlags::ERR) {
                    self.reconnect(place, "the server closed the connection".to_owned());
                }
            }
            State::Idle | State::Finished | State::GivenUp => {}
        }
    }

    fn count(&mut self, before: Kind, after: Kind) {
        self.states[before as usize] = self.states[before as usize].saturating_sub(1);
        self.states[after as usize] += 1;
    }

    fn publish(&self) {
        let all = self.counts.iter().fold(Counts::default(), |all, one| all.plus(one));
        if let Some(counts) = self.shared.counts.get(self.thread) {
            counts.publish(&self.states, &all);
        }
    }

    fn report(mut self) -> Report {
        for place in 0..self.standbys.len() {
            self.say_goodbye(place);
            let standby = &mut self.standbys[place];
            self.counts[standby.group.index()].sums += standby.check.close();
        }
        self.ledger.settle();
        self.publish();
        let groups = std::array::from_fn(|n| GroupResults {
            counts: self.counts[n].since(&self.marked_counts[n]),
            each: self.ledger.each[n].clone(),
            forgotten: self.ledger.forgotten[n],
        });
        Report { groups, connect: self.connect }
    }
}

/// Vigna's SplitMix64, which is good enough to scatter times.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }

    fn between(&mut self, low: Duration, high: Duration) -> Duration {
        let span = high.saturating_sub(low).as_nanos() as u64;
        low + Duration::from_nanos(if span == 0 { 0 } else { self.next() % span })
    }
}
