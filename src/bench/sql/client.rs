//! A connection's thread: it takes the next commit of the schedule, waits until it is due, sends
//! it, and waits for the answer.

use super::link::{Goes, Link, LinkFault, Patience};
use super::wal_order::WalOrder;
use super::{SqlProgress, SqlResult};
use crate::bench::clock::{Clock, Nanos};
use crate::bench::commits::Commits;
use crate::bench::profile::Load;
use crate::bench::random::Random;
use crate::bench::schedule::{Due, Schedule};
use crate::wal::Lsn;
use hdrhistogram::Histogram;
use std::num::NonZeroU64;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// WAL of a commit besides its message's content: two record headers, the message's own
/// header and prefix, the commit.
const OVERHEAD: u64 = 104;

/// How long to wait for an answer after the load has been stopped.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

/// What the threads share.
#[derive(Debug)]
pub(super) struct CommitLoad {
    load: Load,
    clock: Clock,
    commits: Arc<Commits>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// `None` before the load begins.
    schedule: Option<Schedule>,
    random: Random,
    /// Bytes of the commits taken from the schedule.
    taken: u64,
    /// How many of them are not due yet.
    waiting: usize,
    wal_order: WalOrder,
    /// End of the WAL when the load began.
    origin: Option<Lsn>,
    end: Lsn,
    answered: u64,
    late: Duration,
    latency: Histogram<u64>,
    service: Histogram<u64>,
    end_of_wal: EndOfWal,
    stopped: Option<Instant>,
    fault: Option<String>,
}

/// Whether the end of the server's WAL is known since the last commit was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EndOfWal {
    /// It must be asked for when no commit is in progress.
    Unknown,
    Asked,
    Known,
}

/// A commit that a client has taken from the schedule.
#[derive(Debug, Clone, Copy)]
struct Taken {
    /// When it is due, in the load's time.
    elapsed: Duration,
    size: u64,
}

/// What a client does next.
#[derive(Debug)]
enum Job {
    Commit {
        due: Nanos,
        size: u64,
    },
    /// Asks for the end of the WAL when no commit is in progress.
    Settle,
    End,
}

impl CommitLoad {
    pub(super) fn new(load: Load, clock: Clock, commits: Arc<Commits>) -> Self {
        let state = State {
            schedule: None,
            random: Random::new(load.seed),
            taken: 0,
            waiting: 0,
            wal_order: WalOrder::default(),
            origin: None,
            end: Lsn::INVALID,
            answered: 0,
            late: Duration::ZERO,
            latency: histogram(),
            service: histogram(),
            end_of_wal: EndOfWal::Unknown,
            stopped: None,
            fault: None,
        };
        Self { load, clock, commits, state: Mutex::new(state), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn begin(&self) {
        let now = self.clock.now();
        let mut state = self.lock();
        match &mut state.schedule {
            Some(schedule) => schedule.resume(now),
            None => state.schedule = Some(Schedule::new(&self.load, now)),
        }
        self.changed.notify_all();
    }

    pub(super) fn pause(&self) {
        let now = self.clock.now();
        if let Some(schedule) = &mut self.lock().schedule {
            schedule.pause(now);
        }
        self.changed.notify_all();
    }

    pub(super) fn mark(&self) {
        let mut state = self.lock();
        state.latency.reset();
        state.service.reset();
    }

    pub(super) fn stop(&self) {
        self.pause();
        self.lock().stopped.get_or_insert_with(Instant::now);
        self.changed.notify_all();
    }

    pub(super) fn progress(&self) -> SqlProgress {
        let mut state = self.lock();
        let late = std::mem::take(&mut state.late);
        state.progress(&self.load, late)
    }

    pub(super) fn result(&self) -> SqlResult {
        let state = self.lock();
        SqlResult {
            progress: state.progress(&self.load, state.late),
            latency: state.latency.clone(),
            service: state.service.clone(),
        }
    }

    /// Waits for something to do. `mine` is the commit that the client has taken.
    fn job(&self, client: usize, mine: &mut Option<Taken>) -> Job {
        let mut state = self.lock();
        loop {
            let still = state.origin.is_none() || state.is_still(&self.load);
            if state.end_of_wal == EndOfWal::Unknown && still && state.wal_order.is_idle() {
                state.end_of_wal = EndOfWal::Asked;
                return Job::Settle;
            }
            if state.stopped.is_some() || state.fault.is_some() {
                return Job::End;
            }
            if state.origin.is_none() {
                // Another client is asking where the load begins.
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            if mine.is_none() {
                *mine = state.take(&self.load);
            }
            let now = self.clock.now();
            let wait = match state.due(mine.as_ref()) {
                Due::At(due) if due > now => Some(due.since(now)),
                Due::Paused => None,
                due => {
                    if let Some(taken) = mine.take() {
                        let due = if let Due::At(due) = due { due } else { now };
                        return state.send(client, due, now, taken.size);
                    }
                    None
                }
            };
            state = match wait {
                Some(span) => {
                    let woken = self.changed.wait_timeout(state, span);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn answered(&self, client: usize, end: Lsn, due: Nanos, sent: Nanos) {
        let now = self.clock.now();
        let mut state = self.lock();
        state.answered += 1;
        state.end = state.end.max(end);
        record(&mut state.latency, now.since(due));
        record(&mut state.service, now.since(sent));
        state.wal_order.answered(client, end, due);
        self.pass_on(&mut state);
    }

    fn settled(&self, end: Lsn) {
        let mut state = self.lock();
        state.origin.get_or_insert(end);
        state.end = state.end.max(end);
        if state.end_of_wal == EndOfWal::Asked {
            state.end_of_wal = EndOfWal::Known;
        }
        self.commits.complete_to(end);
        drop(state);
        self.changed.notify_all();
    }

    fn failed(&self, client: usize, fault: &LinkFault) {
        let mut state = self.lock();
        state.wal_order.lost(client);
        self.pass_on(&mut state);
        state.fault.get_or_insert_with(|| fault.to_string());
        drop(state);
        self.changed.notify_all();
    }

    fn pass_on(&self, state: &mut State) {
        while let Some((end, due)) = state.wal_order.next() {
            self.commits.add(end, due);
        }
        self.commits.complete_to(state.wal_order.complete_to());
    }
}

impl State {
    /// The next commit of the schedule.
    fn take(&mut self, load: &Load) -> Option<Taken> {
        if self.all_taken(load) {
            return None;
        }
        let schedule = self.schedule.as_mut()?;
        let size = load.commit_size.draw(&mut self.random);
        let elapsed = schedule.elapsed();
        schedule.made(size);
        self.taken = self.taken.saturating_add(size);
        self.waiting += 1;
        Some(Taken { elapsed, size })
    }

    fn all_taken(&self, load: &Load) -> bool {
        load.total.is_some_and(|total| self.taken >= total)
    }

    fn due(&self, taken: Option<&Taken>) -> Due {
        match (taken, &self.schedule) {
            (Some(taken), Some(schedule)) => schedule.due_at(taken.elapsed),
            _ => Due::Paused,
        }
    }

    fn send(&mut self, client: usize, due: Nanos, now: Nanos, size: u64) -> Job {
        self.late = self.late.max(now.since(due));
        self.waiting = self.waiting.saturating_sub(1);
        self.end_of_wal = EndOfWal::Unknown;
        self.wal_order.sent(client);
        Job::Commit { due, size }
    }

    /// Will no commit be sent for now?
    fn is_still(&self, load: &Load) -> bool {
        let paused = self.schedule.as_ref().is_none_or(|all| all.due() == Due::Paused);
        paused || (self.all_taken(load) && self.waiting == 0)
    }

    fn progress(&self, load: &Load, late: Duration) -> SqlProgress {
        SqlProgress {
            commits: self.answered,
            bytes: self.origin.map_or(0, |origin| self.end.bytes_since(origin)),
            end: self.end,
            settled: self.end_of_wal == EndOfWal::Known,
            late,
            finished: self.all_taken(load) && self.waiting == 0 && self.wal_order.is_idle(),
            fault: self.fault.clone(),
        }
    }
}

/// Up to an hour. (An auto-resizing histogram does not grow for a saturating record.)
fn histogram() -> Histogram<u64> {
    const HOUR: u64 = 3_600_000_000_000;
    Histogram::new_with_bounds(1, HOUR, 3)
        .expect("these bounds are valid: 1 <= low, 2 * low <= high, digits <= 5")
}

fn record(histogram: &mut Histogram<u64>, span: Duration) {
    histogram.saturating_record(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX));
}

impl Goes for CommitLoad {
    fn goes(&self) -> bool {
        self.lock().stopped.is_none_or(|since| since.elapsed() < LAST_ANSWERS)
    }
}

/// Commits until the load is stopped.
pub(super) fn run(shared: &CommitLoad, client: usize, mut link: Link) {
    if let Err(error) = rustix::thread::set_current_timer_slack(NonZeroU64::new(1)) {
        tracing::debug!("commits may be late by the timer's slack of 50 us: {error}");
    }
    let pattern = pattern(shared.load.seed, client);
    let mut taken = None;
    loop {
        let done = match shared.job(client, &mut taken) {
            Job::End => return,
            Job::Settle => {
                let end = position(&mut link, shared, "SELECT pg_current_wal_flush_lsn()");
                end.map(|end| shared.settled(end))
            }
            Job::Commit { due, size } => {
                let content = size.saturating_sub(OVERHEAD);
                let query = format!(
                    "SELECT pg_logical_emit_message(true, 'walhub', rpad('', {content}, '{pattern}'))"
                );
                let sent = shared.clock.now();
                let end = position(&mut link, shared, &query);
                end.map(|end| shared.answered(client, end, due, sent))
            }
        };
        if let Err(fault) = done {
            return shared.failed(client, &fault);
        }
    }
}

fn position(link: &mut Link, shared: &CommitLoad, query: &str) -> Result<Lsn, LinkFault> {
    let text = link.value(query, Patience::While(shared))?;
    text.parse().map_err(|_| LinkFault::NoRow)
}

/// What a client's messages are made of.
fn pattern(seed: u64, client: usize) -> String {
    let mut random = Random::new(seed ^ (client as u64) << 32);
    (0..8).map(|_| format!("{:016x}", random.bits())).collect()
}
