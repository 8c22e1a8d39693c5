//! Which host to try next, and when: a state machine without I/O.
//!
//! Hosts are tried in the order of the conninfo, all of them in one round. When a round ends
//! without success, the next begins at once if the failure before is older than
//! `wal_retrieve_retry_interval`, else after the rest of it, as PostgreSQL's startup process does.
//! A host that has to change before it can be followed is asked less often. Every change is
//! reported once, and a state without WAL again and again, more gravely with time.

use super::state::UpstreamState;
use std::time::{Duration, Instant};

/// How much longer than `wal_retrieve_retry_interval` a host is left alone whose answer can change
/// only if someone acts.
const SLOW_FACTOR: u32 = 6;

/// How long nothing may come in before that is worth a warning.
const WARNED_AFTER: Duration = Duration::from_secs(60);

/// How long until it is an error.
pub const GRAVE_AFTER: Duration = Duration::from_secs(600);

/// How long from one error to the next.
const REPEATED_AFTER: Duration = Duration::from_secs(3600);

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextAttempt {
    /// Try this host, by its index.
    Connect(usize),
    /// Nothing before this moment.
    SleepUntil(Instant),
}

/// What to report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// The state changed: log and state file.
    Changed(UpstreamState),
    /// One host's answer is new, but the state as a whole is not (yet): log only.
    Host(UpstreamState),
    /// Nothing has come in for long.
    Still {
        /// The state, whenever it was reported first.
        state: UpstreamState,
        /// For how long.
        lasting: Duration,
    },
}

/// The machine. `now` is always an argument.
#[derive(Debug)]
pub struct Supervisor {
    retry_interval: Duration,
    hosts: Vec<Host>,
    /// The next host of this round; `hosts.len()` when the round is over.
    next_host: usize,
    round_not_before: Option<Instant>,
    last_failure: Option<Instant>,
    state: UpstreamState,
    /// Since when nothing has come in.
    since: Option<Instant>,
    /// How often that was reported.
    told: u64,
}

#[derive(Debug, Default)]
struct Host {
    not_before: Option<Instant>,
    last: Option<UpstreamState>,
}

impl Supervisor {
    /// Nothing has been tried yet.
    pub fn new(hosts: usize, retry_interval: Duration) -> Self {
        Self {
            retry_interval,
            hosts: std::iter::repeat_with(Host::default).take(hosts).collect(),
            next_host: 0,
            round_not_before: None,
            last_failure: None,
            state: UpstreamState::Connecting,
            since: None,
            told: 0,
        }
    }

    /// The state as last reported.
    pub const fn state(&self) -> &UpstreamState {
        &self.state
    }

    /// What to do now.
    pub fn next(&mut self, now: Instant) -> NextAttempt {
        if let Some(at) = self.round_not_before {
            if now < at {
                return NextAttempt::SleepUntil(at);
            }
            self.round_not_before = None;
        }
        while let Some(host) = self.hosts.get(self.next_host) {
            if host.not_before.is_none_or(|at| at <= now) {
                return NextAttempt::Connect(self.next_host);
            }
            self.next_host += 1;
        }
        // Every remaining host is one to be asked less often.
        self.next_host = 0;
        let soonest = self.hosts.iter().filter_map(|host| host.not_before).min();
        let at = soonest.unwrap_or(now + self.retry_interval);
        self.round_not_before = Some(at);
        NextAttempt::SleepUntil(at)
    }

    /// The stream began.
    pub fn started(&mut self, host: usize, state: UpstreamState, news: &mut Vec<News>) {
        if let Some(host) = self.hosts.get_mut(host) {
            *host = Host::default();
        }
        // Our position advances: a host that lacked the old one may well have the next.
        for host in &mut self.hosts {
            if matches!(host.last, Some(UpstreamState::Gap { .. })) {
                *host = Host::default();
            }
        }
        self.change(state, news);
    }

    /// The attempt at `host`, or the stream from it, ended with `state`.
    pub fn ended(&mut self, now: Instant, host: usize, state: UpstreamState, news: &mut Vec<News>) {
        let was_streaming = matches!(self.state, UpstreamState::Streaming { .. });
        let slow = matches!(
            state,
            UpstreamState::Refused { .. }
                | UpstreamState::Unproved { .. }
                | UpstreamState::Gap { .. }
                | UpstreamState::Diverged { .. }
        );
        if let Some(host) = self.hosts.get_mut(host) {
            host.not_before = slow.then(|| now + self.retry_interval * SLOW_FACTOR);
            let same = host.last.as_ref().is_some_and(|last| same_kind(last, &state));
            host.last = Some(state.clone());
            if !same && !was_streaming && self.hosts.len() > 1 {
                news.push(News::Host(state.clone()));
            }
        }
        if was_streaming {
            // libpq starts with the first host again, and so do we.
            self.change(state, news);
            self.round_ends(now);
            return self.lasts(now, news);
        }
        self.next_host += 1;
        let more = self.hosts.iter().skip(self.next_host);
        if more.clone().all(|host| host.not_before.is_some_and(|at| at > now)) {
            let worst = self.hosts.iter().filter_map(|host| host.last.as_ref());
            if let Some(worst) = worst.max_by_key(|state| state.severity()).cloned() {
                self.change(worst, news);
            }
            self.round_ends(now);
        }
        self.lasts(now, news);
    }

    /// Something other than a host decides the state: the archive.
    pub fn note(&mut self, state: UpstreamState, news: &mut Vec<News>) {
        self.change(state, news);
    }

    /// Whether every host said, the last time it was asked, that it lacks our position.
    pub fn all_have_gaps(&self) -> bool {
        let gap = |host: &Host| matches!(host.last, Some(UpstreamState::Gap { .. }));
        self.hosts.iter().all(gap)
    }

    /// What we ask for has changed (another start, a hub that began anew past a gap): every host
    /// may be asked at once.
    pub fn forget(&mut self) {
        self.hosts.fill_with(Host::default);
        self.next_host = 0;
        self.round_not_before = None;
    }

    /// An operator has ended what was under way: the hub is in `state`, and all `hosts` are to be
    /// tried from the first on, without a pause for earlier failures.
    pub fn interrupted(&mut self, hosts: usize, state: UpstreamState, news: &mut Vec<News>) {
        self.hosts = std::iter::repeat_with(Host::default).take(hosts).collect();
        self.next_host = 0;
        self.round_not_before = None;
        self.last_failure = None;
        self.change(state, news);
    }

    fn round_ends(&mut self, now: Instant) {
        let at = self.last_failure.map_or(now, |last| now.max(last + self.retry_interval));
        self.last_failure = Some(at);
        self.round_not_before = Some(at);
        self.next_host = 0;
    }

    /// Reports how long nothing has come in, when that is due.
    pub fn lasts(&mut self, now: Instant, news: &mut Vec<News>) {
        let since = *self.since.get_or_insert(now);
        let lasting = now.saturating_duration_since(since);
        let due = match lasting {
            _ if lasting < WARNED_AFTER => 0,
            _ if lasting < GRAVE_AFTER => 1,
            _ => 2 + lasting.as_secs() / REPEATED_AFTER.as_secs(),
        };
        if due > self.told {
            self.told = due;
            news.push(News::Still { state: self.state.clone(), lasting });
        }
    }

    fn change(&mut self, state: UpstreamState, news: &mut Vec<News>) {
        if let UpstreamState::Streaming { .. }
        | UpstreamState::Restoring { .. }
        | UpstreamState::Fenced { .. } = state
        {
            (self.since, self.told) = (None, 0);
        }
        if !same_kind(&self.state, &state) {
            news.push(News::Changed(state.clone()));
        }
        self.state = state;
    }
}

/// Whether this is the same answer again. Positions move while a hub waits; that is no news.
fn same_kind(a: &UpstreamState, b: &UpstreamState) -> bool {
    match (a, b) {
        (UpstreamState::Waiting { host: a, .. }, UpstreamState::Waiting { host: b, .. })
        | (
            UpstreamState::WaitingToStart { host: a, .. },
            UpstreamState::WaitingToStart { host: b, .. },
        ) => a == b,
        (UpstreamState::Streaming { .. }, UpstreamState::Streaming { .. }) => false,
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::{Lsn, TimelineId};

    const RETRY: Duration = Duration::from_secs(5);

    fn down() -> UpstreamState {
        UpstreamState::Disconnected { why: "connection refused".into() }
    }

    fn streaming() -> UpstreamState {
        let tli = TimelineId::FIRST;
        UpstreamState::Streaming { host: "a".into(), tli, start: Lsn::new(1) }
    }

    fn refused() -> UpstreamState {
        UpstreamState::Refused { host: "a".into(), why: "another cluster".into() }
    }

    fn waiting(theirs: u64) -> UpstreamState {
        let host = "a".to_owned();
        UpstreamState::Waiting { host, ours: Lsn::new(100), theirs: Lsn::new(theirs) }
    }

    #[test]
    fn first_failure_retries_at_once_the_next_after_the_interval() {
        let mut machine = Supervisor::new(1, RETRY);
        let (t0, mut news) = (Instant::now(), Vec::new());
        assert_eq!(machine.next(t0), NextAttempt::Connect(0));
        machine.ended(t0, 0, down(), &mut news);
        assert_eq!(machine.next(t0), NextAttempt::Connect(0));
        machine.ended(t0, 0, down(), &mut news);
        assert_eq!(machine.next(t0), NextAttempt::SleepUntil(t0 + RETRY));
        assert_eq!(machine.next(t0 + RETRY), NextAttempt::Connect(0));
        machine.ended(t0 + RETRY, 0, down(), &mut news);
        assert_eq!(machine.next(t0 + RETRY), NextAttempt::SleepUntil(t0 + RETRY * 2));
        assert_eq!(news, [News::Changed(down())], "told once");
    }

    #[test]
    fn a_stream_that_lasted_reconnects_at_once() {
        let mut machine = Supervisor::new(1, RETRY);
        let (t0, mut news) = (Instant::now(), Vec::new());
        machine.ended(t0, 0, down(), &mut news);
        machine.started(0, streaming(), &mut news);
        let later = t0 + Duration::from_secs(60);
        machine.ended(later, 0, down(), &mut news);
        assert_eq!(machine.next(later), NextAttempt::Connect(0));
        machine.started(0, streaming(), &mut news);
        machine.ended(later, 0, down(), &mut news);
        assert_eq!(
            machine.next(later),
            NextAttempt::SleepUntil(later + RETRY),
            "but does not spin"
        );
        assert_eq!(news.len(), 5, "{news:?}");
    }

    #[test]
    fn all_hosts_make_one_round_and_the_gravest_answer_is_the_state() {
        let mut machine = Supervisor::new(3, RETRY);
        let (t0, mut news) = (Instant::now(), Vec::new());
        for round in 0..3 {
            let now = t0 + RETRY * round;
            // The refused host is left alone in the later rounds.
            let tried: &[usize] = if round == 0 { &[0, 1, 2] } else { &[0, 2] };
            for &host in tried {
                assert_eq!(machine.next(now), NextAttempt::Connect(host), "round {round}");
                let state = if host == 1 { refused() } else { down() };
                machine.ended(now, host, state, &mut news);
            }
            assert_eq!(machine.state(), &refused());
            if round == 0 {
                machine.last_failure = Some(now);
                machine.round_not_before = Some(now + RETRY);
            }
        }
        let told = [
            News::Host(down()),
            News::Host(refused()),
            News::Host(down()),
            News::Changed(refused()),
        ];
        assert_eq!(news, told);
        let much_later = t0 + RETRY * SLOW_FACTOR;
        assert_eq!(machine.next(much_later), NextAttempt::Connect(0));
        machine.ended(much_later, 0, down(), &mut news);
        assert_eq!(machine.next(much_later), NextAttempt::Connect(1));
    }

    #[test]
    fn only_slow_hosts_do_not_spin() {
        let mut machine = Supervisor::new(1, RETRY);
        let (t0, mut news) = (Instant::now(), Vec::new());
        machine.ended(t0, 0, refused(), &mut news);
        let NextAttempt::SleepUntil(at) = machine.next(t0) else { panic!("must sleep") };
        assert_eq!(at, t0 + RETRY * SLOW_FACTOR);
        assert_eq!(machine.next(at), NextAttempt::Connect(0));
        machine.forget();
        assert_eq!(machine.next(t0), NextAttempt::Connect(0));
    }

    #[test]
    fn who_was_interrupted_begins_with_other_hosts_at_once() {
        let mut machine = Supervisor::new(1, RETRY);
        let (t0, mut news) = (Instant::now(), Vec::new());
        for _ in 0..2 {
            machine.ended(t0, 0, refused(), &mut news);
        }
        machine.interrupted(2, UpstreamState::Connecting, &mut news);
        assert_eq!(machine.next(t0), NextAttempt::Connect(0));
        machine.ended(t0, 0, down(), &mut news);
        assert_eq!(machine.next(t0), NextAttempt::Connect(1));
        machine.ended(t0, 1, down(), &mut news);
        assert_eq!(machine.next(t0), NextAttempt::Connect(0), "the first failure of this upstream");
        assert_eq!(news[1], News::Changed(UpstreamState::Connecting));
    }

    #[test]
    fn what_lasts_is_told_after_a_minute_ten_and_every_hour() {
        let mut machine = Supervisor::new(1, RETRY);
        let (t0, mut news) = (Instant::now(), Vec::new());
        // Two and a half hours.
        for n in 0..1800 {
            machine.ended(t0 + RETRY * n, 0, waiting(u64::from(n)), &mut news);
        }
        let still = |n: u32| News::Still { state: waiting(u64::from(n)), lasting: RETRY * n };
        assert_eq!(
            news,
            [News::Changed(waiting(0)), still(12), still(120), still(720), still(1440)]
        );

        // Another reason is news, and changes nothing about how long nothing has come in.
        news.clear();
        machine.ended(t0 + RETRY * 2160, 0, down(), &mut news);
        let still = News::Still { state: down(), lasting: RETRY * 2160 };
        assert_eq!(news, [News::Changed(down()), still]);
        news.clear();
        machine.started(0, streaming(), &mut news);
        machine.ended(t0 + RETRY * 3000, 0, down(), &mut news);
        assert_eq!(news, [News::Changed(streaming()), News::Changed(down())]);
    }
}
