//! Engine: the task that keeps the hub connected. It tries the hosts of the conninfo, judges their
//! answers, gives a stream to the receive role, and waits for its end. While no upstream streams,
//! the archive takes the upstream's place.
//!
//! The task reaches servers, the receive role's socket and our files through an [`Environment`], and
//! takes the time from tokio's clock.
#![forbid(unsafe_code)]

mod accepting;
mod archive;
mod attempt;
mod copying;
mod damage;
mod difference;
mod environment;
mod feed;
mod going_back;
mod heard;
mod histories;
mod joining;
mod link;
mod orders;
mod outcome;
mod probe;
mod progress;
mod proof;
mod questions;
mod search;
mod sightings;
mod steering;
mod switching;
mod system;
mod warnings;

pub use copying::{CopyClient, CopyPart, CopyRequests, copies, copy_segments};
pub use environment::{Archive, Environment, HandOverFault, Stream};
pub use histories::{UnsavedHistory, save as save_history};
pub use orders::{Steer, UpstreamOrder};
pub use system::System;

use self::accepting::Accepting;
use self::difference::Kept;
use self::heard::HeardUpstreams;
use self::outcome::MetGap;
use self::progress::{Phase, TaskProgress};
use self::sightings::Sightings;
use self::switching::Switching;
use crate::data::handoff::Mailbox;
use crate::hub::Hub;
use crate::hub::course::Upstream;
use crate::keeper::KeeperClient;
use crate::store::evidence::WalSource;
use crate::store::seams::Cut;
use crate::upstream::end::UpstreamEnd;
use crate::upstream::supervise::{NextAttempt, Supervisor};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// How many reports about ended streams may wait: the end of one, and that there is none.
pub const ENDS: usize = 2;

/// How many operators' orders may wait for the previous one.
pub const ORDERS: usize = 16;

/// The log target of the upstream's state.
const LOG: &str = "walhub::upstream";

/// What the task works with.
pub struct Parts<E: Environment> {
    /// What the engines share.
    pub hub: Arc<Hub>,
    /// The data cores. The first has the receive role.
    pub cores: Vec<Mailbox>,
    /// Saves what must survive a restart.
    pub keeper: KeeperClient<E::File>,
    /// The archive, if there is one.
    pub archive: Option<Arc<E::Archive>>,
    /// The world outside of the hub.
    pub environment: E,
}

impl<E: Environment> Parts<E> {
    /// The core with the receive role.
    fn receiver(&self) -> &Mailbox {
        // A hub has at least one core.
        &self.cores[0]
    }
}

/// Keeps the hub connected until it shuts down, or until the other end of `orders` is dropped. `ends`
/// says how the receive role's streams end.
pub async fn run<E: Environment>(
    parts: Parts<E>,
    ends: mpsc::Receiver<UpstreamEnd>,
    mut orders: mpsc::Receiver<UpstreamOrder>,
) {
    let mut task = Task::new(Arc::new(parts), ends);
    task.write_state();
    if task.parts.hub.course.fence().is_some() {
        task.begin_course();
    }
    while !orders.is_closed() || !orders.is_empty() {
        if let Err(fault) = task.finish_cutting().await {
            tracing::error!(target: LOG, "{fault}; nothing is received or served until it is done");
            tokio::time::sleep(task.parts.hub.config.wal_retrieve_retry_interval).await;
            continue;
        }
        if let Err(error) = task.settle_difference().await {
            tracing::error!(target: LOG, "{error}");
        }
        task.settle_accepting();
        let order = match task.choose() {
            Phase::Fenced => orders.recv().await,
            Phase::Pausing { until } => task.pause(until, &mut orders).await,
            Phase::Connecting { host } => task.attempt(host, &mut orders).await,
            Phase::Choosing | Phase::Streaming { .. } | Phase::Stopped => return,
        };
        // An attempt that took too long may have left a switch unfinished, and the next one would
        // ask for it again.
        task.end_switching().await;
        if let Some(order) = order {
            task.carry_out(order).await;
        }
    }
}

/// The task. Its phases and their order are in [`progress`].
struct Task<E: Environment> {
    parts: Arc<Parts<E>>,
    /// The upstream in force.
    upstream: Arc<Upstream>,
    /// Which host is next, and when.
    supervisor: Supervisor,
    progress: TaskProgress,
    ends: mpsc::Receiver<UpstreamEnd>,
    /// Whom the receive role has the stream of, or had the last.
    source: WalSource,
    /// A switch of timelines in progress, even if its attempt has been given up.
    switching: Option<Switching>,
    /// Where our WAL is being set aside, until that is done.
    cutting: Option<Cut>,
    /// An order to accept an upstream's history, until it is answered.
    accepting: Option<Accepting>,
    /// What was seen of an upstream with another history.
    sightings: Sightings,
    /// What is kept about a difference that was found.
    kept: Kept,
    /// The gap at which the hub starts again if it stays.
    gap: Option<MetGap>,
    /// What the upstreams were heard to say.
    heard: Arc<HeardUpstreams>,
    /// Was the effect of `remote_apply` on this hub already logged?
    warned_of_apply: bool,
    /// What was logged about the archive.
    told: archive::ArchiveWarnings,
}

impl<E: Environment> Task<E> {
    fn new(parts: Arc<Parts<E>>, ends: mpsc::Receiver<UpstreamEnd>) -> Self {
        let config = &parts.hub.config;
        let (upstream, _) = parts.hub.course.upstream();
        let hosts = upstream.conninfo.hosts.len();
        Self {
            supervisor: Supervisor::new(hosts, config.wal_retrieve_retry_interval),
            progress: TaskProgress::new(config.start_from),
            parts,
            upstream,
            ends,
            source: WalSource { name: "the upstream".to_owned(), server: None },
            switching: None,
            cutting: None,
            accepting: None,
            sightings: Sightings::default(),
            kept: Kept::default(),
            gap: None,
            heard: Arc::new(HeardUpstreams::new()),
            warned_of_apply: false,
            told: archive::ArchiveWarnings::default(),
        }
    }

    /// Decides what to do next.
    fn choose(&mut self) -> Phase {
        let now = Instant::now().into_std();
        if self.parts.hub.course.fence().is_some() {
            self.progress.is_fenced();
            return self.progress.phase();
        }
        let hosts = self.upstream.conninfo.hosts.len();
        match self.supervisor.next(now) {
            NextAttempt::SleepUntil(at) => self.progress.pauses(at),
            NextAttempt::Connect(0) if self.progress.needs_pause(hosts) => {
                self.progress.pauses(now)
            }
            NextAttempt::Connect(host) => self.progress.connects(host),
        }
        self.progress.phase()
    }
}

#[cfg(test)]
mod tests;
