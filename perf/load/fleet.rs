//! Many standbys on one thread.

use super::standby::{Read, Replies, Standby, Temper};
use super::{Clock, Nanos};
use crate::fault::{During, Fault, Outcome};
use crate::wait::within;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use walhub::wal::Lsn;

/// How often timers are looked at.
const TICK: Duration = Duration::from_millis(50);
/// `wal_receiver_status_interval`.
const STATUS_INTERVAL: Nanos = 10_000_000_000;
/// Between two attempts of one standby to connect.
const RETRY: Nanos = 100_000_000;
/// Failures per standby after which waiting for the fleet is in vain.
const MAX_FAILURES: u64 = 50;
/// Read from one socket before the next one has its turn.
const TURN: usize = 1 << 20;

/// A fleet that is to be.
#[derive(Debug, Clone)]
pub(crate) struct FleetPlan {
    pub(crate) target: SocketAddr,
    /// Where each standby begins; as many as there are standbys.
    pub(crate) starts: Vec<Lsn>,
    /// Where they stop reading.
    pub(crate) until: Option<Lsn>,
    pub(crate) replies: Replies,
    /// How the first ones read; the rest is good.
    pub(crate) tempers: Vec<Temper>,
    /// Connections begun in a second; none: all at once.
    pub(crate) connect_rate: Option<f64>,
}

/// What a running fleet tells.
#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    recording: AtomicBool,
    streaming: AtomicUsize,
    finished: AtomicUsize,
    bytes: AtomicU64,
    retries: AtomicU64,
    /// Streams that ended before they were to.
    broken: AtomicU64,
    /// The newest refusal or broken connection.
    complaint: Mutex<String>,
}

/// What a fleet did.
#[derive(Debug)]
pub(crate) struct Fleeted {
    /// Of every good standby: how far it had received, and when.
    pub(crate) receipts: Vec<Vec<(Lsn, Nanos)>>,
    /// Of every standby: from its first attempt to connect to the begin of its stream.
    pub(crate) connects: Vec<Duration>,
    /// Attempts to connect that failed.
    pub(crate) retries: u64,
    /// Streams that ended before they were to.
    pub(crate) broken: u64,
}

/// A fleet at work. Dropped, its connections close.
#[derive(Debug)]
pub(crate) struct Fleet {
    shared: Arc<Shared>,
    standbys: usize,
    thread: Option<JoinHandle<Outcome<Fleeted>>>,
}

impl Fleet {
    pub(crate) fn start(plan: FleetPlan, clock: Clock) -> Outcome<Self> {
        raise_file_limit();
        let shared = Arc::new(Shared::default());
        let standbys = plan.starts.len();
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("fleet".to_owned())
            .spawn(move || Crew::new(plan, clock, theirs)?.sail())
            .during("a thread")?;
        Ok(Self { shared, standbys, thread: Some(thread) })
    }

    /// Waits until all stream.
    pub(crate) fn wait_streaming(&self, patience: Duration) -> Outcome {
        let what = format!("{} standbys stream", self.standbys);
        self.wait(patience, &what, || {
            self.shared.streaming.load(Ordering::Relaxed) == self.standbys
        })
    }

    /// Waits until all have received what they were to.
    pub(crate) fn wait_finished(&self, patience: Duration) -> Outcome {
        let what = format!("{} standbys have all", self.standbys);
        self.wait(patience, &what, || self.shared.finished.load(Ordering::Relaxed) == self.standbys)
    }

    fn wait(&self, patience: Duration, what: &str, done: impl Fn() -> bool) -> Outcome {
        within(patience, what, || {
            let dead = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
            let failures = self.shared.retries.load(Ordering::Relaxed)
                + self.shared.broken.load(Ordering::Relaxed);
            if dead || failures > MAX_FAILURES * self.standbys as u64 {
                return Err(Fault::new(format!("in vain, {failures} failures: {what}")));
            }
            Ok(done().then_some(()))
        })
        .map_err(|fault| {
            let complaint = self.shared.complaint.lock().unwrap_or_else(PoisonError::into_inner);
            Fault::new(format!("{fault} {complaint}"))
        })
    }

    /// Receipts are written down from now on.
    pub(crate) fn record(&self) {
        self.shared.recording.store(true, Ordering::Relaxed);
    }

    /// WAL that all together have received so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }

    /// Ends it.
    pub(crate) fn stop(mut self) -> Outcome<Fleeted> {
        self.end().unwrap_or_else(|| Err(Fault::new("the fleet has ended")))
    }

    fn end(&mut self) -> Option<Outcome<Fleeted>> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let joined = self.thread.take()?.join();
        Some(joined.unwrap_or_else(|_| Err(Fault::new("the fleet panicked"))))
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // Whoever wants to know has called `stop`.
        drop(self.end());
    }
}

/// A standby's place in the fleet.
#[derive(Debug)]
struct Berth {
    start: Lsn,
    temper: Temper,
    /// When it is to connect, while it is not connected.
    due: Nanos,
    first_attempt: Option<Nanos>,
    connected_in: Option<Duration>,
    standby: Option<Standby>,
    finished: bool,
    /// A slow one's bytes until it has to wait.
    allowance: f64,
}

/// The thread's own.
struct Crew {
    plan: FleetPlan,
    clock: Clock,
    shared: Arc<Shared>,
    poll: OwnedFd,
    berths: Vec<Berth>,
    block: Vec<u8>,
    bytes: u64,
    next_status: Nanos,
    last_tick: Nanos,
}

impl Crew {
    fn new(plan: FleetPlan, clock: Clock, shared: Arc<Shared>) -> Outcome<Self> {
        let now = clock.now();
        let gap = plan.connect_rate.map_or(0.0, |rate| 1e9 / rate);
        let tempers = plan.tempers.iter().copied().chain(std::iter::repeat(Temper::Good));
        let berth = |((place, start), temper): ((usize, &Lsn), Temper)| Berth {
            start: *start,
            temper,
            due: now + (gap * place as f64) as Nanos,
            first_attempt: None,
            connected_in: None,
            standby: None,
            finished: false,
            allowance: 0.0,
        };
        let berths = plan.starts.iter().enumerate().zip(tempers).map(berth).collect();
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC).during("epoll_create")?;
        Ok(Self {
            plan,
            clock,
            shared,
            poll,
            berths,
            block: vec![0; TURN],
            bytes: 0,
            next_status: now + STATUS_INTERVAL,
            last_tick: now,
        })
    }

    fn sail(mut self) -> Outcome<Fleeted> {
        let mut events = Vec::with_capacity(1024);
        let nap = rustix::event::Timespec::try_from(TICK / 10).during("a timeout")?;
        while !self.shared.stop.load(Ordering::Relaxed) {
            match epoll::wait(&self.poll, spare_capacity(&mut events), Some(&nap)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error).during("epoll_wait"),
            }
            for event in events.drain(..) {
                let place = usize::try_from(event.data.u64()).unwrap_or(usize::MAX);
                self.attend(place, event.flags);
            }
            let now = self.clock.now();
            if now >= self.last_tick + super::nanos(TICK) || self.has_due(now) {
                self.tick(now);
            }
            self.shared.bytes.store(self.bytes, Ordering::Relaxed);
        }
        let good = |berth: &Berth| berth.temper == Temper::Good;
        let connects = self.berths.iter().filter_map(|berth| berth.connected_in).collect();
        let receipts = self.berths.into_iter().filter(good);
        Ok(Fleeted {
            receipts: receipts.map(|b| b.standby.map_or(Vec::new(), |s| s.receipts)).collect(),
            connects,
            retries: self.shared.retries.load(Ordering::Relaxed),
            broken: self.shared.broken.load(Ordering::Relaxed),
        })
    }

    /// Somebody may connect now; asked each time only while a fleet gathers.
    fn has_due(&self, now: Nanos) -> bool {
        self.shared.streaming.load(Ordering::Relaxed) < self.berths.len()
            && self.berths.iter().any(|berth| berth.standby.is_none() && berth.due <= now)
    }

    fn tick(&mut self, now: Nanos) {
        let passed = Duration::from_nanos(now - self.last_tick).as_secs_f64();
        self.last_tick = now;
        let status = now >= self.next_status;
        if status {
            self.next_status = now + STATUS_INTERVAL;
        }
        for place in 0..self.berths.len() {
            let berth = &mut self.berths[place];
            match (&berth.standby, berth.temper) {
                (None, _) if berth.due <= now => {
                    let outcome = self.connect(place, now);
                    self.judge(place, outcome);
                }
                (Some(standby), Temper::Slow(rate)) if standby.is_streaming() => {
                    berth.allowance = (berth.allowance + rate * passed).min(rate);
                    let budget = berth.allowance as usize;
                    if budget >= 512 {
                        let outcome = self.receive(place, budget);
                        self.judge(place, outcome);
                    }
                }
                _ => {}
            }
            if status
                && let Some(standby) = &self.berths[place].standby
                && standby.is_streaming()
            {
                let outcome = standby.report();
                self.judge(place, outcome);
            }
        }
    }

    fn connect(&mut self, place: usize, now: Nanos) -> Outcome {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket =
            socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).during("a socket")?;
        let berth = &mut self.berths[place];
        berth.first_attempt.get_or_insert(berth.due.min(now));
        match connect(&socket, &self.plan.target) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error).during("connect"),
        }
        epoll::add(&self.poll, &socket, EventData::new_u64(place as u64), EventFlags::OUT)
            .during("epoll_ctl")?;
        berth.standby = Some(Standby::new(socket, berth.start, self.plan.replies));
        Ok(())
    }

    fn attend(&mut self, place: usize, flags: EventFlags) {
        let outcome = if flags.contains(EventFlags::OUT) {
            self.introduce(place)
        } else {
            self.receive(place, TURN)
        };
        self.judge(place, outcome);
    }

    /// The connection is there, or it failed: the first send says.
    fn introduce(&mut self, place: usize) -> Outcome {
        let Some(standby) = self.berths.get(place).and_then(|b| b.standby.as_ref()) else {
            return Ok(());
        };
        rustix::net::sockopt::set_tcp_nodelay(&standby.socket, true).during("TCP_NODELAY")?;
        standby.ask(&format!("standby_{place}"))?;
        let data = EventData::new_u64(place as u64);
        epoll::modify(&self.poll, &standby.socket, data, EventFlags::IN).during("epoll_ctl")
    }

    fn receive(&mut self, place: usize, budget: usize) -> Outcome {
        let Some(berth) = self.berths.get_mut(place) else { return Ok(()) };
        let Some(standby) = &mut berth.standby else { return Ok(()) };
        let before = standby.received();
        let read = standby.read(&mut self.block, budget);
        let now = self.clock.now();
        let received = standby.received();
        let wal = received.bytes_since(before);
        self.bytes += wal;
        berth.allowance -= wal as f64;
        if wal > 0 && self.shared.recording.load(Ordering::Relaxed) {
            standby.receipts.push((received, now));
        }
        if read? == Read::Began {
            self.shared.streaming.fetch_add(1, Ordering::Relaxed);
            let since = berth.first_attempt.unwrap_or(now);
            berth.connected_in = Some(Duration::from_nanos(now - since));
            if berth.temper != Temper::Good {
                epoll::delete(&self.poll, &standby.socket).during("epoll_ctl")?;
            }
        }
        if wal > 0 {
            standby.answer()?;
        }
        if !berth.finished && self.plan.until.is_some_and(|until| received >= until) {
            berth.finished = true;
            self.shared.finished.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// After a failure the standby comes again, from where it began.
    fn judge(&mut self, place: usize, outcome: Outcome) {
        let Err(fault) = outcome else { return };
        let now = self.clock.now();
        let Some(berth) = self.berths.get_mut(place) else { return };
        berth.due = now + RETRY;
        if berth.standby.take().is_some_and(|standby| standby.is_streaming()) {
            self.shared.streaming.fetch_sub(1, Ordering::Relaxed);
            self.shared.broken.fetch_add(1, Ordering::Relaxed);
        } else {
            self.shared.retries.fetch_add(1, Ordering::Relaxed);
        }
        let complaint = &self.shared.complaint;
        *complaint.lock().unwrap_or_else(PoisonError::into_inner) = format!("({fault})");
    }
}

/// A thousand standbys are a thousand descriptors.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    // If it is not allowed, a large fleet fails by name.
    drop(setrlimit(Resource::Nofile, raised).map_err(std::io::Error::from));
}
