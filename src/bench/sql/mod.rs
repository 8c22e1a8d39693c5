//! Commits on a real primary, for runs against a server that does not get its WAL from
//! a synthetic one: `pg_logical_emit_message`, which writes WAL and nothing else.
//!
//! A commit's position in the WAL is the end of its message, which the server returns; the commit
//! record follows. Both are flushed together, and walsenders send what is flushed.

mod client;
mod link;
mod wal_order;

pub use link::LinkFault;

use self::client::CommitLoad;
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

/// What to commit, and where.
#[derive(Debug)]
pub struct SqlPlan {
    /// The primary. An ordinary connection, not one for replication.
    pub target: Conninfo,
    /// The load. Of the profile's features, only rate, bursts and commit sizes are honoured.
    pub load: Load,
    /// Connections. A commit waits for a free one, so there must be enough for the rate.
    pub clients: usize,
    /// The run's clock.
    pub clock: Clock,
    /// Gets the commits.
    pub commits: Arc<Commits>,
}

/// The progress of the commits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SqlProgress {
    /// Commits answered.
    pub commits: u64,
    /// The server's WAL from the start of the load to the last answer, whoever wrote it.
    pub bytes: u64,
    /// End of the last commit that was answered; after a pause the end of the server's
    /// WAL.
    pub end: Lsn,
    /// Every commit has been answered, and `end` is the end of the server's WAL.
    pub settled: bool,
    /// The greatest delay of a commit against its schedule since the last query: all connections
    /// were busy.
    pub late: Duration,
    /// The load's total has been made.
    pub finished: bool,
    /// Why the load was given up.
    pub fault: Option<String>,
}

/// The results of the commits.
#[derive(Clone, Debug)]
pub struct SqlResult {
    /// The progress at the end.
    pub progress: SqlProgress,
    /// Nanoseconds from due to answered: what an application would see.
    pub latency: Histogram<u64>,
    /// Nanoseconds from sent to answered: the time that the server took.
    pub service: Histogram<u64>,
}

/// Commits in progress. Dropping this stops them.
#[derive(Debug)]
pub struct SqlCommits {
    shared: Arc<CommitLoad>,
    clients: Vec<JoinHandle<()>>,
}

/// Opens the connections. Nothing is committed yet.
pub fn start(plan: SqlPlan) -> Result<SqlCommits, LinkFault> {
    let links: Vec<Link> = (0..plan.clients.max(1))
        .map(|n| Link::open(&plan.target, &format!("walhub bench {n}")))
        .collect::<Result<_, _>>()?;
    let shared = Arc::new(CommitLoad::new(plan.load, plan.clock, plan.commits));
    let mut commits = SqlCommits { shared, clients: Vec::new() };
    for (n, link) in links.into_iter().enumerate() {
        let shared = Arc::clone(&commits.shared);
        let thread = std::thread::Builder::new().name(format!("commits-{n}"));
        commits.clients.push(thread.spawn(move || client::run(&shared, n, link))?);
    }
    Ok(commits)
}

impl SqlCommits {
    /// Starts the load, or resumes it after a pause.
    pub fn begin(&self) {
        self.shared.begin();
    }

    /// Sends no more commits. When the last one is answered, [`Commits::known`] advances to the end
    /// of the server's WAL.
    pub fn pause(&self) {
        self.shared.pause();
    }

    /// Starts measuring: clears the histograms.
    pub fn mark(&self) {
        self.shared.mark();
    }

    /// The progress.
    pub fn progress(&self) -> SqlProgress {
        self.shared.progress()
    }

    /// Pauses, waits up to five seconds for commits in progress, and closes the connections.
    pub fn stop(mut self) -> SqlResult {
        self.halt();
        self.shared.result()
    }

    fn halt(&mut self) {
        self.shared.stop();
        for client in self.clients.drain(..) {
            // A thread that panicked left nothing that is needed here.
            drop(client.join());
        }
    }
}

impl Drop for SqlCommits {
    fn drop(&mut self) {
        self.halt();
    }
}
