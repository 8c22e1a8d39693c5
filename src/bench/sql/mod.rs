//! Commits on a real primary, for runs against a server that does not get its WAL from
//! a synthetic one: `pg_logical_emit_message`, which writes WAL and nothing else.
//!
//! A commit's place in the WAL is the end of its message, which the server answers with;
//! its commit record follows. Both are flushed together, and walsenders send what is
//! flushed.

mod client;
mod link;
mod order;

pub use link::LinkFault;

use self::client::Shared;
use self::link::Link;
use super::clock::Clock;
use super::commits::Commits;
use super::profile::Load;
use crate::wal::Lsn;
use crate::wire::conninfo::Conninfo;
use hdrhistogram::Histogram;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// What is to be committed, and where.
#[derive(Debug)]
pub struct SqlPlan {
    /// The primary. An ordinary connection, not one for replication.
    pub target: Conninfo,
    /// The load; of the profile's features rate, bursts and commit sizes are honoured.
    pub load: Load,
    /// Connections. A commit waits for one that is free, so there must be enough for the
    /// rate.
    pub clients: usize,
    /// The run's clock.
    pub clock: Clock,
    /// Gets the commits.
    pub commits: Arc<Commits>,
}

/// How far the commits are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SqlProgress {
    /// Commits answered.
    pub commits: u64,
    /// WAL of the server from the load's beginning to the last answer: everybody's.
    pub bytes: u64,
    /// End of the last commit that was answered; after a pause the end of the server's
    /// WAL.
    pub end: Lsn,
    /// Every commit has been answered, and `end` is the end of the server's WAL.
    pub settled: bool,
    /// The most that a commit was sent behind its schedule since this was asked last:
    /// because all connections were busy.
    pub late: Duration,
    /// The load's total has been made.
    pub finished: bool,
    /// Why the load was given up.
    pub fault: Option<String>,
}

/// What the commits came to.
#[derive(Clone, Debug)]
pub struct SqlResult {
    /// At the end.
    pub progress: SqlProgress,
    /// From due to answered, in nanoseconds: what an application would see.
    pub latency: Histogram<u64>,
    /// From sent to answered, in nanoseconds: what the server took.
    pub service: Histogram<u64>,
}

/// Commits that are being made. Dropped, they stop.
#[derive(Debug)]
pub struct SqlCommits {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
}

/// Opens the connections. Nothing is committed yet.
pub fn start(plan: SqlPlan) -> Result<SqlCommits, LinkFault> {
    let links: Vec<Link> = (0..plan.clients.max(1))
        .map(|n| Link::open(&plan.target, &format!("walhub bench {n}")))
        .collect::<Result<_, _>>()?;
    let shared = Arc::new(Shared::new(plan.load, plan.clock, plan.commits));
    let mut commits = SqlCommits { shared, clients: Vec::new() };
    for (n, link) in links.into_iter().enumerate() {
        let shared = Arc::clone(&commits.shared);
        let thread = std::thread::Builder::new().name(format!("commits-{n}"));
        commits.clients.push(thread.spawn(move || client::run(&shared, n, link))?);
    }
    Ok(commits)
}

impl SqlCommits {
    /// The load begins, or goes on after a pause.
    pub fn begin(&self) {
        self.shared.begin();
    }

    /// No more commits are sent. When the last one is answered, [`Commits::known`] goes
    /// to the end of the server's WAL.
    pub fn pause(&self) {
        self.shared.pause();
    }

    /// Measuring begins: the histograms are empty from here.
    pub fn mark(&self) {
        self.shared.mark();
    }

    /// How far it is.
    pub fn progress(&self) -> SqlProgress {
        self.shared.progress()
    }

    /// Pauses, waits for what is under way, for five seconds at most, and closes the
    /// connections.
    pub fn stop(mut self) -> SqlResult {
        self.halt();
        self.shared.result()
    }

    fn halt(&mut self) {
        self.shared.stop();
        for client in self.clients.drain(..) {
            // One that panicked has left nothing behind that is needed here.
            drop(client.join());
        }
    }
}

impl Drop for SqlCommits {
    fn drop(&mut self) {
        self.halt();
    }
}
