//! The task that keeps the hub connected: it tries the hosts of the conninfo, judges their answers,
//! hands a stream to the first core, and waits for its end.

mod archive;
mod difference;
mod feed;
mod link;
mod probe;
mod steer;
mod switching;

use self::difference::Kept;
use self::link::{Link, LinkFault, Started, text};
use self::switching::Switching;
use super::Shared;
use super::orders::Order;
use crate::cluster::identity::Identity;
use crate::config::{MissingSlot, OnGap};
use crate::data::handoff::{ToCore, UpstreamHandoff};
use crate::hub::Hub;
use crate::hub::course::{Standing, Upstream};
use crate::keeper::Job;
use crate::store::control_file::{Cluster, ControlFile};
use crate::store::retention::Receiving;
use crate::store::switch::Switch;
use crate::timeline::History;
use crate::upstream::apply::ReportApply;
use crate::upstream::apply::names_standby;
use crate::upstream::end::UpstreamEnd;
use crate::upstream::judge::{Known, Seen, Verdict, judge};
use crate::upstream::login::{LoginFault, create_slot, start_replication};
use crate::upstream::oldest::OldestSearch;
use crate::upstream::place::Span;
use crate::upstream::position::{Position, StartFrom};
use crate::upstream::state::UpstreamState;
use crate::upstream::supervise::{News, Next, Supervisor};
use crate::wal::{Lsn, SegmentSize, SystemId, TimelineId};
use crate::wire::conninfo::{ServerNature, TargetSessionAttrs};
use crate::wire::sqlstate;
use crate::wire::units::{SizeUnit, parse_bytes};
use bytes::Bytes;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// How long an attempt may take when neither connect_timeout nor wal_receiver_timeout is set.
const DEFAULT_ATTEMPT: Duration = Duration::from_secs(60);

/// The same with an archive.
const SHORT_ATTEMPT: Duration = Duration::from_secs(5);

/// The longest wait for the first message of a stream. Our start is nearly always before the
/// upstream's end, so it comes at once.
const FIRST_MESSAGE: Duration = Duration::from_secs(1);

/// History files fetched below the upstream's timeline: more generations than any
/// cluster has.
const MAX_HISTORIES: u32 = 1024;

/// The log target of the upstream's state.
const LOG: &str = "walhub::upstream";

/// Keeps the hub connected until the task is dropped.
pub(super) async fn run(
    shared: Arc<Shared>,
    ends: mpsc::Receiver<UpstreamEnd>,
    mut orders: mpsc::Receiver<Order>,
) {
    let config = Arc::clone(&shared.hub.config);
    let (upstream, _) = shared.hub.course.upstream();
    let hosts = upstream.conninfo.hosts.len();
    let supervisor = Supervisor::new(hosts, config.wal_retrieve_retry_interval);
    let mut task = Task {
        shared,
        upstream,
        supervisor,
        ends,
        switching: None,
        start_from: config.start_from,
        removed: None,
        warned_of_apply: false,
        no_standby: NoStandby::NotMet,
        kept: Kept::default(),
        told: archive::Told::default(),
        exhausted: None,
        failures: 0,
    };
    task.write_state();
    if task.is_fenced() {
        task.begin_course();
    }
    loop {
        if let Err(error) = task.settle_difference().await {
            tracing::error!(target: LOG, "{error}");
        }
        let order = match task.next() {
            None => orders.recv().await,
            Some(Next::SleepUntil(at)) => task.wait(at, &mut orders).await,
            // Hosts that fail slowly leave no pause between two rounds.
            Some(Next::Connect(0)) if task.failures >= 2 * task.upstream.conninfo.hosts.len() => {
                task.wait(Instant::now(), &mut orders).await
            }
            Some(Next::Connect(host)) => task.attempt(host, &mut orders).await,
        };
        // An attempt that took too long may have left a switch unfinished, and the next one would
        // ask for it again.
        task.end_switching().await;
        if let Some(order) = order {
            task.carry_out(order).await;
        }
    }
}

struct Task {
    shared: Arc<Shared>,
    /// The upstream in force.
    upstream: Arc<Upstream>,
    supervisor: Supervisor,
    ends: mpsc::Receiver<UpstreamEnd>,
    /// A switch of timelines in progress, even if its attempt has been given up.
    switching: Option<Switching>,
    /// Where to begin when there is no WAL; `current` after a gap was skipped.
    start_from: StartFrom,
    /// The upstream no longer has this start of ours.
    removed: Option<Lsn>,
    /// Was the effect of `remote_apply` on this hub already logged?
    warned_of_apply: bool,
    no_standby: NoStandby,
    /// What is kept about a difference that was found.
    kept: Kept,
    /// What was logged about the archive.
    told: archive::Told,
    /// The archive had nothing more for this position.
    exhausted: Option<Position>,
    /// Attempts that gave no stream since the last stream, or since the archive was asked.
    failures: usize,
}

/// With `prefer-standby`: have all hosts been checked for a standby?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NoStandby {
    /// This round has met nothing but standbys.
    NotMet,
    /// This round has met a server that could be followed but is no standby.
    Met,
    /// A whole round has met no standby that could be followed: anything will do.
    Settled,
}

/// A link whose stream has begun.
struct Begun {
    link: Link,
    tli: TimelineId,
    start: Lsn,
}

/// Why an attempt gave no stream.
enum Failure {
    Link(LinkFault),
    State(UpstreamState),
    /// The upstream no longer has the WAL from there on.
    Removed {
        start: Lsn,
        message: String,
    },
}

impl From<LinkFault> for Failure {
    fn from(fault: LinkFault) -> Self {
        Self::Link(fault)
    }
}

impl Failure {
    fn other(why: impl Into<String>) -> Self {
        Self::State(UpstreamState::Disconnected { why: why.into() })
    }
}

impl Task {
    /// What to do now; `None` while the hub is fenced.
    fn next(&mut self) -> Option<Next> {
        if self.is_fenced() {
            return None;
        }
        Some(self.supervisor.next(Instant::now()))
    }

    fn is_fenced(&self) -> bool {
        self.shared.hub.course.fence().is_some()
    }

    /// Connects, and stays until the stream has ended. An order that ends it is returned, to be
    /// carried out afterwards.
    async fn attempt(&mut self, index: usize, orders: &mut mpsc::Receiver<Order>) -> Option<Order> {
        let upstream = Arc::clone(&self.upstream);
        let host = upstream.conninfo.hosts.get(index)?;
        if index == 0 {
            self.no_standby = match self.no_standby {
                NoStandby::Met => NoStandby::Settled,
                NoStandby::Settled | NoStandby::NotMet => NoStandby::NotMet,
            };
        }
        let name = host.to_string();
        let established = tokio::select! {
            biased;
            order = orders.recv() => return order,
            established = self.establish(index, &name) => established,
        };
        let begun = match established {
            Ok(begun) => begun,
            Err(failure) => {
                self.failed(index, name, failure).await;
                return None;
            }
        };
        let Begun { link, tli, start } = begun;
        let handoff = match link.leave() {
            Ok((socket, unread)) => {
                UpstreamHandoff { socket, unread, start, tli, host: name.clone() }
            }
            Err(error) => {
                let why = format!("{name}: {error}");
                self.ended(index, UpstreamState::Disconnected { why }).await;
                return None;
            }
        };
        let message = ToCore::Upstream(Box::new(handoff));
        if super::connection::post(&self.shared, 0, message, || true).await.is_none() {
            let why = "the receiving core is not taking messages from its queue".to_owned();
            self.ended(index, UpstreamState::Disconnected { why }).await;
            return None;
        }
        let mut news = Vec::new();
        self.failures = 0;
        let state = UpstreamState::Streaming { host: name.clone(), tli, start };
        self.supervisor.started(index, state, &mut news);
        self.tell(news);
        self.stay(index, &name, start, orders).await
    }

    async fn failed(&mut self, index: usize, host: String, failure: Failure) {
        let state = match failure {
            Failure::State(state) => state,
            Failure::Removed { start, message } => return self.gap(index, start, message).await,
            // Only a hub below us answers a login with this error.
            Failure::Link(LinkFault::Login(LoginFault::Server(error)))
                if error.sqlstate == sqlstate::OBJECT_NOT_IN_PREREQUISITE_STATE =>
            {
                UpstreamState::Refused { host, why: error.to_string() }
            }
            Failure::Link(fault) => UpstreamState::Disconnected { why: format!("{host}: {fault}") },
        };
        self.ended(index, state).await;
    }

    /// The core receives: waits for the end of the stream, or for an order that ends it. The stream
    /// lasts until that order is carried out.
    async fn stay(
        &mut self,
        index: usize,
        host: &str,
        start: Lsn,
        orders: &mut mpsc::Receiver<Order>,
    ) -> Option<Order> {
        let end = loop {
            tokio::select! {
                biased;
                end = self.ends.recv() => break end,
                Some(order) = orders.recv() => match self.interrupts(&order) {
                    true => return Some(order),
                    false => self.obey(order).await,
                },
            }
        };
        match end {
            Some(end) => self.stream_ended(index, host, start, end).await,
            // The control thread ends.
            None => std::future::pending().await,
        }
        None
    }

    async fn stream_ended(&mut self, index: usize, host: &str, start: Lsn, end: UpstreamEnd) {
        let state = match end {
            UpstreamEnd::Lost { error, at } => {
                UpstreamState::Disconnected { why: format!("{error}; received up to {at}") }
            }
            UpstreamEnd::TimedOut => UpstreamState::Disconnected {
                why: "terminating walreceiver due to timeout".to_owned(),
            },
            UpstreamEnd::Timeline { next, at } => {
                // Everything else is decided from its next answer.
                self.supervisor.forget();
                let why = format!("the timeline ended at {at}, timeline {next} follows");
                UpstreamState::Disconnected { why }
            }
            UpstreamEnd::Diverged { at, detail } => {
                self.keep_difference(host, at, &detail).await;
                UpstreamState::Diverged { at, detail }
            }
            UpstreamEnd::Refused { sqlstate, message } if sqlstate == sqlstate::UNDEFINED_FILE => {
                return self.gap(index, start, message).await;
            }
            UpstreamEnd::Refused { sqlstate, message } => {
                UpstreamState::Disconnected { why: format!("{message} ({sqlstate})") }
            }
            UpstreamEnd::NoSpace => UpstreamState::NoSpace,
            // The order that caused it decides what follows.
            UpstreamEnd::Recalled => return,
            UpstreamEnd::Stopped => UpstreamState::Stopped,
        };
        let stopped = state == UpstreamState::Stopped;
        self.ended(index, state).await;
        if stopped {
            std::future::pending::<()>().await;
        }
    }

    /// The upstream has removed the WAL from `asked` on.
    async fn gap(&mut self, index: usize, asked: Lsn, message: String) {
        let at = match self.shared.hub.position() {
            Position::At { start, durable, .. } => {
                // Our end may be in a later segment than the record before it.
                if asked == start && self.without_overlap(start, durable).is_some() {
                    self.removed = Some(start);
                    self.supervisor.forget();
                    let state = UpstreamState::Disconnected { why: message };
                    let mut news = Vec::new();
                    self.supervisor.ended(Instant::now(), index, state, &mut news);
                    self.supervisor.forget();
                    return self.tell(news);
                }
                durable
            }
            Position::Empty => asked,
        };
        self.ended(index, UpstreamState::Gap { at, message }).await;
    }

    /// The start of the segment of our end, when the overlap lies in an earlier one.
    fn without_overlap(&self, start: Lsn, durable: Lsn) -> Option<Lsn> {
        let identity = self.shared.hub.identity()?;
        let open = durable.segment_start(identity.segment_size);
        (open > start).then_some(open)
    }

    async fn restart_at_current(&mut self, at: Lsn) {
        tracing::error!(
            target: LOG,
            %at,
            "beginning anew at the upstream's position (--on-gap restart-at-current); our WAL up \
             to here is moved aside and no longer served"
        );
        match self.shared.keeper.set_aside(self.shared.hub.instance).await {
            Ok(()) => {
                self.begin_anew().await;
                self.start_from = StartFrom::Current;
                self.removed = None;
                self.supervisor.forget();
            }
            Err(error) => tracing::error!(target: LOG, %error, "could not move our WAL aside"),
        }
    }

    async fn ended(&mut self, index: usize, state: UpstreamState) {
        self.failures += 1;
        let gap = match state {
            UpstreamState::Gap { at, .. } => Some(at),
            _ => None,
        };
        let mut news = Vec::new();
        self.supervisor.ended(Instant::now(), index, state, &mut news);
        self.tell(news);
        if let Some(at) = gap
            && self.shared.hub.config.on_gap == OnGap::RestartAtCurrent
            && self.supervisor.all_have_gaps()
            && self.archive_is_exhausted()
        {
            self.restart_at_current(at).await;
        }
    }

    fn tell(&self, news: Vec<News>) {
        for item in news {
            match item {
                News::Changed(state) => {
                    if state.is_alarm() {
                        tracing::error!(target: LOG, "{state}");
                    } else if matches!(
                        state,
                        UpstreamState::Streaming { .. } | UpstreamState::Connecting
                    ) {
                        tracing::info!(target: LOG, "{state}");
                    } else {
                        tracing::warn!(target: LOG, "{state}");
                    }
                    self.write_state();
                }
                News::Host(state) => tracing::info!(target: LOG, "{state}"),
                News::LongWait(state) => tracing::warn!(target: LOG, "still {state}"),
            }
        }
    }

    fn write_state(&self) {
        let since = SystemTime::now();
        let state = self.supervisor.state().clone();
        self.shared.hub.course.set_standing(Standing { state, since });
        let since = since.duration_since(UNIX_EPOCH).unwrap_or_default();
        let since = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        // A lost write is harmless: only `inspect` reads the file, and the next change writes it
        // again.
        self.shared.keeper.note(Job::SaveState(self.supervisor.state().to_json(since)));
    }
}

/// A link whose server has identified itself.
struct Asked {
    link: Link,
    seen: Seen,
    data_directory_mode: String,
    /// The history file of its timeline.
    history: Option<Bytes>,
}

impl Task {
    /// From nothing to a stream.
    async fn establish(&mut self, index: usize, name: &str) -> Result<Begun, Failure> {
        let config = Arc::clone(&self.shared.hub.config);
        if self.shared.hub.receiving() == Receiving::Paused {
            return Err(Failure::State(UpstreamState::NoSpace));
        }
        let upstream = Arc::clone(&self.upstream);
        let conninfo = &upstream.conninfo;
        let Some(host) = conninfo.hosts.get(index) else {
            return Err(Failure::other("no such host"));
        };
        let instance = self.shared.hub.instance;
        let limit = conninfo.connect_timeout.filter(|t| !t.is_zero());
        let limit = limit.unwrap_or_else(|| self.patience());
        let open = Link::open(conninfo, host, instance, &config.cluster_name);
        let link = match timeout(limit, open).await {
            Ok(link) => link?,
            Err(_) => {
                return Err(Failure::other(format!("{name}: timeout expired while connecting")));
            }
        };
        link.set_options(&config.tcp);
        let limit = Some(config.wal_receiver_timeout).filter(|t| !t.is_zero());
        let limit = limit.unwrap_or(DEFAULT_ATTEMPT);
        let first = FIRST_MESSAGE.min(limit / 2);
        // An upstream that has answered everything and has nothing to send is not late.
        match timeout(limit + first, self.begin(link, name, first)).await {
            Ok(begun) => begun,
            Err(_) => Err(Failure::other(format!("{name}: no answer within wal_receiver_timeout"))),
        }
    }

    /// How long a host may take to accept us when no timeout is set. With an archive there is
    /// something better to do in the meantime.
    fn patience(&self) -> Duration {
        let interval = self.shared.hub.config.wal_retrieve_retry_interval;
        match self.shared.restorer {
            Some(_) => DEFAULT_ATTEMPT.min(SHORT_ATTEMPT.max(interval)),
            None => DEFAULT_ATTEMPT,
        }
    }

    /// Asks for a stream and waits at most `first` for its first message.
    async fn begin(
        &mut self,
        mut link: Link,
        name: &str,
        first: Duration,
    ) -> Result<Begun, Failure> {
        let hub = Arc::clone(&self.shared.hub);
        if let Some(objection) = self.objection(&mut link).await? {
            link.close().await;
            return Err(Failure::other(format!("{name}: {objection}")));
        }
        let mut asked = ask(link, name).await?;
        let mut same = None;
        let (known, verdict) = loop {
            self.settle_difference().await.map_err(Failure::other)?;
            let known = Known { same, ..self.known(name).map_err(Failure::other)? };
            match judge(&asked.seen, &known) {
                Verdict::Switch { next, at } => self.switch(&mut asked, next, at).await?,
                Verdict::Compare(span) => self.compare(&mut asked, span).await?,
                Verdict::CompareFork(span) => {
                    self.compare_fork(&mut asked, span).await?;
                    same = Some(span);
                }
                verdict => break (known, verdict),
            }
        };
        let Asked { mut link, seen, data_directory_mode, history } = asked;
        let tli = match &verdict {
            Verdict::Start { tli, .. } | Verdict::FindOldest { tli, .. } => *tli,
            Verdict::Not(state) => {
                let state = state.clone();
                link.close().await;
                return Err(Failure::State(state));
            }
            Verdict::Switch { .. } | Verdict::Compare(_) | Verdict::CompareFork(_) => {
                return Err(Failure::other("no timeline to follow"));
            }
        };
        self.save_histories(&mut link, tli, seen.tli, history).await?;
        if seen.path.is_empty() {
            self.warn_of_apply(&mut link).await?;
        }
        let slot = hub.config.primary_slot_name.as_deref();
        if known.position == Position::Empty && hub.config.missing_slot == MissingSlot::Create {
            // Before a start is chosen, so that its WAL stays.
            create(&mut link, slot).await?;
        }
        let mut start = match verdict {
            Verdict::FindOldest { newest, .. } => {
                find_oldest(&mut link, tli, newest, seen.segment_size).await?
            }
            Verdict::Start { start, .. } => start,
            Verdict::Not(_)
            | Verdict::Switch { .. }
            | Verdict::Compare(_)
            | Verdict::CompareFork(_) => {
                return Err(Failure::other("no place to begin at"));
            }
        };
        if let Position::At { durable, .. } = known.position
            && self.removed == Some(start)
        {
            start = self.without_overlap(start, durable).unwrap_or(start);
        }
        if hub.above() != seen.path {
            hub.set_above(seen.path);
            // In a task of its own: this attempt may be given up while a core's queue is full.
            tokio::spawn(end_hub_streams(Arc::clone(&self.shared)));
        }
        let sql = start_replication(slot, start, tli);
        let started = match link.start(&sql).await {
            Err(LinkFault::Server(error))
                if error.sqlstate == sqlstate::UNDEFINED_OBJECT
                    && hub.config.missing_slot == MissingSlot::Create =>
            {
                create(&mut link, slot).await?;
                link.start(&sql).await
            }
            other => other,
        };
        let first = match started {
            Ok(Started::Stream) => timeout(first, link.first_message()).await,
            Ok(Started::TimelineEnded { next, at }) => {
                let why = format!("{name}: timeline {tli} ended at {at}, timeline {next} follows");
                return Err(Failure::other(why));
            }
            Err(fault) => Ok(Err(fault)),
        };
        match first {
            Ok(Err(LinkFault::Server(error))) if error.sqlstate == sqlstate::UNDEFINED_FILE => {
                return Err(Failure::Removed { start, message: error.message });
            }
            Ok(first) => first?,
            // At the very end of its WAL there is nothing to send yet.
            Err(_) => {}
        }
        // The stream is certain; its first bytes wait in the socket.
        let identity = Arc::new(Identity {
            system_id: seen.system_id,
            segment_size: seen.segment_size,
            data_directory_mode,
            parameters: link.welcome.parameters.clone(),
        });
        self.remember(identity, known.position, tli, start).await?;
        Ok(Begun { link, tli, start })
    }

    /// Why this server is not the one that `target_session_attrs` asks for.
    async fn objection(&mut self, link: &mut Link) -> Result<Option<&'static str>, LinkFault> {
        let target = self.upstream.conninfo.target_session_attrs;
        if target == TargetSessionAttrs::Any {
            return Ok(None);
        }
        let objection = target.objection(nature(link).await?);
        if target == TargetSessionAttrs::PreferStandby && objection.is_some() {
            if self.no_standby == NoStandby::Settled {
                return Ok(None);
            }
            self.no_standby = NoStandby::Met;
        }
        Ok(objection)
    }

    /// What counts when `host` is judged.
    fn known(&self, host: &str) -> Result<Known, String> {
        let hub = &self.shared.hub;
        Ok(Known {
            instance: hub.instance,
            cluster: hub.identity().map(|identity| (identity.system_id, identity.segment_size)),
            position: hub.position(),
            forks: self.own_forks()?,
            differs: difference::barred_by(hub, host),
            same: None,
            oldest: hub.holds.unbroken_from(),
            start_from: self.start_from,
        })
    }

    /// Checks that the upstream has our bytes where a difference was found.
    async fn compare(&mut self, asked: &mut Asked, span: Span) -> Result<(), Failure> {
        match difference::compare(&self.shared, &mut asked.link, span).await? {
            Some(state) => Err(Failure::State(state)),
            None => {
                let host = &asked.seen.host;
                let why = format!("{host} has our WAL there");
                self.agreed(host, &why).await.map_err(Failure::other)
            }
        }
    }

    /// Checks that the upstream has our bytes up to where its history leaves our timeline.
    async fn compare_fork(&mut self, asked: &mut Asked, span: Span) -> Result<(), Failure> {
        match difference::compare(&self.shared, &mut asked.link, span).await? {
            Some(state) => Err(Failure::State(state)),
            None => Ok(()),
        }
    }

    /// Our timeline ended at `at`, and `next` follows: saves the histories, then the switch, and
    /// waits until standbys can be directed to the next timeline.
    async fn switch(
        &mut self,
        asked: &mut Asked,
        next: TimelineId,
        at: Lsn,
    ) -> Result<(), Failure> {
        let hub = Arc::clone(&self.shared.hub);
        let Position::At { tli: from, .. } = hub.position() else {
            return Err(Failure::other("no timeline to leave"));
        };
        let (seen, oldest) = (&asked.seen, hub.holds.unbroken_from());
        if at.segment_start(seen.segment_size) < oldest {
            let message = format!(
                "timeline {from} ended there, before the oldest WAL that is still here, {oldest}"
            );
            return Err(Failure::State(UpstreamState::Gap { at, message }));
        }
        let newest = seen.tli;
        self.save_histories(&mut asked.link, newest, newest, asked.history.clone()).await?;
        let history = hub.history(next).and_then(|content| History::parse(next, content).ok());
        let fork = history.and_then(|history| history.switchpoint_of(from));
        if fork != Some(at) {
            let why = match fork {
                Some(fork) => format!(
                    "its history of timeline {next} says that timeline {from} ended at {fork}, \
                     that of timeline {newest} says at {at}"
                ),
                None => format!("it has no history of timeline {next} that names timeline {from}"),
            };
            let host = asked.seen.host.clone();
            return Err(Failure::State(UpstreamState::Refused { host, why }));
        }
        self.go_on_with(Switch { from, to: next, at }).await.map_err(Failure::other)
    }

    /// A primary that wants to wait until this hub replays actually waits for something else: logs
    /// once what that is.
    async fn warn_of_apply(&mut self, link: &mut Link) -> Result<(), Failure> {
        let config = Arc::clone(&self.shared.hub.config);
        if self.warned_of_apply || config.feedback.report_apply != ReportApply::Flush {
            return Ok(());
        }
        let names = match show(link, "synchronous_commit").await {
            Ok(level) if level == "remote_apply" => show(link, "synchronous_standby_names").await?,
            // Or it has no such setting, because it is not PostgreSQL.
            Ok(_) | Err(LinkFault::Server(_)) => return Ok(()),
            Err(fault) => return Err(fault.into()),
        };
        let own = self.upstream.conninfo.application_name.as_deref();
        if names_standby(&names, own.unwrap_or(&config.cluster_name)) {
            self.warned_of_apply = true;
            tracing::warn!(
                target: LOG,
                "the upstream waits for this hub with synchronous_commit = remote_apply, and a hub \
                 replays nothing: with --report-apply flush its commits return when they are on \
                 the hub's disk; --report-apply slowest makes them wait for the connected standbys"
            );
        }
        Ok(())
    }

    /// Where the ancestors of our timeline ended; `None` when there is no file that says so.
    fn own_forks(&self) -> Result<Option<Vec<(TimelineId, Lsn)>>, String> {
        let Position::At { tli, .. } = self.shared.hub.position() else { return Ok(None) };
        forks_of(&self.shared.hub, tli)
    }

    /// Saves the history files up to the timeline that we receive, durably before its WAL: standbys
    /// ask for each of them, ancestor or not.
    async fn save_histories(
        &self,
        link: &mut Link,
        tli: TimelineId,
        of: TimelineId,
        mut content: Option<Bytes>,
    ) -> Result<(), Failure> {
        let first = tli.raw().saturating_sub(MAX_HISTORIES).max(2);
        for raw in (first..=tli.raw()).rev() {
            let Some(one) = TimelineId::new(raw) else { continue };
            let (known, ours) = (self.shared.hub.history(one), self.own_timeline());
            // Our own timeline's history came with our WAL. A newer one may be left from an
            // upstream with another history.
            if known.is_some() && ours.is_some_and(|ours| one <= ours) {
                continue;
            }
            let file = if one == of { content.take() } else { fetch_history(link, one).await? };
            let Some(file) = file.filter(|file| known.as_ref() != Some(file)) else { continue };
            self.shared.keeper.save_history(one, file.to_vec()).await.map_err(|error| {
                Failure::other(format!("could not save the history of timeline {one}: {error}"))
            })?;
            self.shared.hub.set_history(one, file);
        }
        Ok(())
    }

    fn own_timeline(&self) -> Option<TimelineId> {
        match self.shared.hub.position() {
            Position::At { tli, .. } => Some(tli),
            Position::Empty => None,
        }
    }

    async fn remember(
        &self,
        identity: Arc<Identity>,
        position: Position,
        tli: TimelineId,
        start: Lsn,
    ) -> Result<(), Failure> {
        let hub = &self.shared.hub;
        let keeper = &self.shared.keeper;
        let (mode, parameters) =
            (identity.data_directory_mode.clone(), identity.parameters.clone());
        let saved = match position {
            Position::Empty => {
                let cluster = Cluster {
                    system_id: identity.system_id,
                    segment_size: identity.segment_size,
                    data_directory_mode: mode,
                    parameters,
                    timeline: tli,
                    start,
                    sealed: Vec::new(),
                };
                let control = ControlFile { instance: hub.instance, cluster: Some(cluster) };
                keeper.save_control(control).await
            }
            Position::At { .. } if hub.identity().is_some_and(|old| *old == *identity) => {
                return Ok(());
            }
            Position::At { .. } => keeper.save_identity(mode, parameters).await,
        };
        saved.map_err(|error| {
            Failure::other(format!("could not write the control file: {error}"))
        })?;
        hub.set_identity(identity);
        Ok(())
    }
}

/// Where the ancestors of a timeline ended; `None` when there is no file that says so.
fn forks_of(hub: &Hub, tli: TimelineId) -> Result<Option<Vec<(TimelineId, Lsn)>>, String> {
    let Some(content) = hub.history(tli) else { return Ok(None) };
    match History::parse(tli, content) {
        Ok(history) => Ok(Some(history.forks())),
        Err(fault) => Err(format!("history of our timeline {tli}: {fault}")),
    }
}

/// Tells every core that the hubs below must check their path again.
async fn end_hub_streams(shared: Arc<Shared>) {
    for core in 0..shared.mailboxes.len() {
        super::connection::insist(&shared, core, ToCore::EndHubStreams).await;
    }
}

/// Asks the server who it is, in a walreceiver's order; 13 and 14 standbys want IDENTIFY_SYSTEM
/// first.
async fn ask(mut link: Link, name: &str) -> Result<Asked, Failure> {
    let senseless = |what: &str| LinkFault::Protocol(format!("{what} makes no sense"));
    let rows = link.query("IDENTIFY_SYSTEM").await?;
    let identified = rows.first().and_then(|row| {
        let system_id = SystemId::new(text(row, 0)?.parse().ok()?);
        let tli = TimelineId::new(text(row, 1)?.parse().ok()?)?;
        Some((system_id, tli, text(row, 2)?.parse::<Lsn>().ok()?))
    });
    let (system_id, tli, xlogpos) = identified.ok_or_else(|| senseless("IDENTIFY_SYSTEM"))?;
    let size = show(&mut link, "wal_segment_size").await?;
    let segment_size = parse_bytes(&size, SizeUnit::Byte)
        .ok()
        .and_then(SegmentSize::new)
        .ok_or_else(|| senseless("wal_segment_size"))?;
    let data_directory_mode = show(&mut link, "data_directory_mode").await?;
    if !matches!(data_directory_mode.as_str(), "0700" | "0750") {
        return Err(senseless("data_directory_mode").into());
    }
    let history =
        if tli == TimelineId::FIRST { None } else { fetch_history(&mut link, tli).await? };
    let forks = match &history {
        Some(content) => {
            let history = History::parse(tli, content.clone()).map_err(|fault| {
                LinkFault::Protocol(format!("history of timeline {tli}: {fault}"))
            })?;
            Some(history.forks())
        }
        None => None,
    };
    let path = link.welcome.path.clone();
    let host = name.to_owned();
    let seen = Seen { host, system_id, tli, xlogpos, segment_size, forks, path };
    Ok(Asked { link, seen, data_directory_mode, history })
}

/// Is it in recovery, and is it read-only?
async fn nature(link: &mut Link) -> Result<ServerNature, LinkFault> {
    let said = |link: &Link, name: &str| {
        let parameter = link.welcome.parameters.iter().find(|(known, _)| known == name);
        parameter.map(|(_, value)| value == "on")
    };
    let in_hot_standby = match said(link, "in_hot_standby") {
        Some(known) => known,
        // 13 does not report it; in recovery every transaction is read-only.
        None => show(link, "transaction_read_only").await? == "on",
    };
    let read_only = said(link, "default_transaction_read_only").unwrap_or(false);
    Ok(ServerNature { in_hot_standby, read_only })
}

async fn show(link: &mut Link, name: &str) -> Result<String, LinkFault> {
    let rows = link.query(&format!("SHOW {name}")).await?;
    let value = rows.first().and_then(|row| text(row, 0));
    value.map(str::to_owned).ok_or_else(|| LinkFault::Protocol(format!("no answer to SHOW {name}")))
}

/// The file's content; `None` when the upstream has no such file.
async fn fetch_history(link: &mut Link, tli: TimelineId) -> Result<Option<Bytes>, LinkFault> {
    match link.query(&format!("TIMELINE_HISTORY {tli}")).await {
        Ok(rows) => {
            let name = format!("{:08X}.history", tli.raw());
            let row = rows.first().filter(|row| text(row, 0) == Some(name.as_str()));
            let content = row.and_then(|row| row.get(1).cloned().flatten());
            let missing = || LinkFault::Protocol(format!("no answer to TIMELINE_HISTORY {tli}"));
            content.map(Some).ok_or_else(missing)
        }
        Err(LinkFault::Server(error)) if error.sqlstate == sqlstate::UNDEFINED_FILE => Ok(None),
        Err(fault) => Err(fault),
    }
}

async fn create(link: &mut Link, slot: Option<&str>) -> Result<(), LinkFault> {
    let Some(name) = slot else { return Ok(()) };
    match link.query(&create_slot(name, link.welcome.server_version_num())).await {
        Ok(_) => {
            tracing::info!(target: LOG, slot = name, "created the replication slot upstream");
            Ok(())
        }
        Err(LinkFault::Server(error)) if error.sqlstate == sqlstate::DUPLICATE_OBJECT => Ok(()),
        Err(fault) => Err(fault),
    }
}

async fn find_oldest(
    link: &mut Link,
    tli: TimelineId,
    newest: Lsn,
    size: SegmentSize,
) -> Result<Lsn, LinkFault> {
    let mut search = OldestSearch::new(newest, size);
    while let Some(lsn) = search.probe() {
        let there = match link.start(&start_replication(None, lsn, tli)).await {
            Ok(Started::Stream) => match link.first_message().await {
                Ok(()) => link.end_stream().await,
                Err(fault) => Err(fault),
            },
            Ok(Started::TimelineEnded { .. }) => Ok(()),
            Err(fault) => Err(fault),
        };
        match there {
            Ok(()) => search.found(),
            Err(LinkFault::Server(error)) if error.sqlstate == sqlstate::UNDEFINED_FILE => {
                search.removed()
            }
            Err(fault) => return Err(fault),
        }
    }
    Ok(search.oldest())
}

#[cfg(test)]
mod tests;
