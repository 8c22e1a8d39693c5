//! A primary without a database: it speaks physical replication and sends valid WAL according to a
//! load. The WAL cannot be replayed.
//!
//! walhub, pg_receivewal and `psql "replication=1"` find what they need: IDENTIFY_SYSTEM, SHOW,
//! slots (kept in memory, holding no WAL), START_REPLICATION, keepalives, `wal_sender_timeout`. All
//! clients are trusted. The WAL begins when the primary starts, and its newest part, a window, can
//! be streamed.

mod connection;
mod engine;
mod files;
mod generator;
mod mix;
mod session;
mod slots;
#[cfg(test)]
mod tests;
mod version;
mod walsender;

pub use version::{ServerVersion, UnknownVersion};

use self::engine::{Engine, Order, Parts};
use self::files::SegmentFiles;
use self::generator::{Generator, Sinks};
use self::session::{Server, TIMELINE};
use self::slots::PrimarySlots;
use super::clock::Clock;
use super::commits::Commits;
use super::profile::Load;
use super::truth::Truth;
use crate::wal::synth::Synth;
use crate::wal::{Lsn, SegmentSize, SystemId};
use rustix::event::{EventfdFlags, eventfd};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// The plan of a primary.
#[derive(Debug)]
pub struct PrimaryPlan {
    /// Where it listens; port 0 takes any.
    pub listen: SocketAddr,
    /// The PostgreSQL version that it pretends to be.
    pub server_version: ServerVersion,
    /// Its cluster.
    pub system_id: SystemId,
    /// Size of its segments.
    pub segment_size: SegmentSize,
    /// Where its WAL and `truth` begin: the start of a segment.
    pub start: Lsn,
    /// The load.
    pub load: Load,
    /// How much of the newest WAL `truth` keeps.
    pub window: u64,
    /// Also writes the WAL as segment files into this folder.
    pub write_wal: Option<PathBuf>,
    /// The run's clock.
    pub clock: Clock,
    /// Gets the WAL.
    pub truth: Arc<Truth>,
    /// Gets the commits, each before its WAL is in `truth`.
    pub commits: Arc<Commits>,
}

/// The progress of a primary.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrimaryProgress {
    /// Bytes of WAL since the load began.
    pub bytes: u64,
    /// Commits made.
    pub commits: u64,
    /// End of its WAL.
    pub end: Lsn,
    /// The greatest delay of a commit against its schedule since the last query: what the machine
    /// cannot do. It is part of every latency measured.
    pub late: Duration,
    /// The load's total has been made.
    pub finished: bool,
    /// Why the load was given up: a receiver was so slow that its WAL left the window, or the files
    /// could not be written.
    pub fault: Option<String>,
    /// The streaming receivers.
    pub receivers: Vec<ReceiverProgress>,
}

/// The progress of a walreceiver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiverProgress {
    /// Its name.
    pub application_name: String,
    /// End of what it was sent.
    pub sent: Lsn,
    /// The write position it reports.
    pub write: Lsn,
    /// The flush position it reports.
    pub flush: Lsn,
    /// The apply position it reports.
    pub apply: Lsn,
}

/// A running primary. Dropping it stops it.
#[derive(Debug)]
pub struct Primary {
    address: SocketAddr,
    orders: Sender<Order>,
    bell: Arc<OwnedFd>,
    thread: Option<JoinHandle<PrimaryProgress>>,
}

/// Starts a primary. When this returns, it listens and its load is paused.
pub fn start(plan: PrimaryPlan) -> io::Result<Primary> {
    let PrimaryPlan { segment_size: size, start, window, clock, truth, .. } = plan;
    check(&plan.load, window, size, start, &truth)?;
    let magic = plan.server_version.magic();
    let synth = Synth::new(plan.system_id, size, TIMELINE, magic, start);
    let create = |folder| SegmentFiles::create(folder, TIMELINE, size);
    let files = plan.write_wal.map(create).transpose()?;
    let sinks = Sinks { truth: Arc::clone(&truth), commits: plan.commits, files };
    let generator = Generator::new(plan.load, synth, clock, sinks)?;
    let listener = TcpListener::bind(plan.listen)?;
    let address = listener.local_addr()?;
    let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    let (orders, inbox) = channel();
    let server = Server {
        version: plan.server_version,
        system: plan.system_id,
        size,
        slots: PrimarySlots::default(),
    };
    let engine = Engine::new(Parts {
        listener,
        bell: Arc::clone(&bell),
        orders: inbox,
        server,
        truth,
        generator,
        clock,
        window,
    })?;
    let thread = std::thread::Builder::new().name("primary".into()).spawn(|| engine.run())?;
    Ok(Primary { address, orders, bell, thread: Some(thread) })
}

fn check(load: &Load, window: u64, size: SegmentSize, start: Lsn, truth: &Truth) -> io::Result<()> {
    let invalid = |why: String| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    if start.segment_offset(size) != 0 || start.is_invalid() {
        return invalid(format!("WAL begins at the start of a segment after 0/0, not at {start}"));
    }
    if truth.end() != start {
        return invalid(format!("the truth begins at {}, the WAL at {start}", truth.end()));
    }
    if load.commit_size.max() > window / 4 {
        return invalid(format!(
            "commits of {} are too large for a window of {window} bytes",
            load.commit_size
        ));
    }
    Ok(())
}

impl Primary {
    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Starts the load, or resumes it after a pause.
    pub fn begin(&self) {
        self.order(Order::Begin);
    }

    /// Pauses the load and its schedule.
    pub fn pause(&self) {
        self.order(Order::Pause);
    }

    /// Its progress.
    pub fn progress(&self) -> PrimaryProgress {
        let (to, answer) = channel();
        self.order(Order::Report(to));
        // Without a thread there is no answer; `stop` reports why.
        answer.recv().unwrap_or_default()
    }

    /// Shuts down cleanly: walreceivers get the rest of the WAL, for two seconds at most.
    pub fn stop(mut self) -> PrimaryProgress {
        self.halt()
    }

    fn order(&self, order: Order) {
        // The thread only ends when it is told to; until then it holds its end of both.
        drop(self.orders.send(order));
        if let Err(error) = rustix::io::write(&*self.bell, &1u64.to_ne_bytes()) {
            tracing::debug!("the synthetic primary's bell: {error}");
        }
    }

    fn halt(&mut self) -> PrimaryProgress {
        self.order(Order::Stop);
        let ended = self.thread.take().map(JoinHandle::join);
        ended.and_then(Result::ok).unwrap_or_default()
    }
}

impl Drop for Primary {
    fn drop(&mut self) {
        if self.thread.is_some() {
            drop(self.halt());
        }
    }
}
