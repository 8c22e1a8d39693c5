//! A job, and where its answer goes. The address travels with the job, so nobody has to find out
//! afterwards who waits for what.

use super::job::{Job, JobDone};
use crate::wal::{SegmentNo, TimelineId};
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use tokio::sync::oneshot;
use tracing::debug;

/// A request to the keeper.
#[derive(Debug)]
pub struct Order<F = Arc<OwnedFd>> {
    /// What to do.
    pub job: Job,
    /// Where the answer goes.
    pub reply: Reply<F>,
}

/// Where an answer goes.
pub enum Reply<F = Arc<OwnedFd>> {
    /// To a data core.
    Core(Arc<dyn CoreInbox<F>>),
    /// To a task or a thread that waits for it.
    Task(oneshot::Sender<JobDone<F>>),
    /// Nobody waits.
    Nobody,
}

/// Where a data core takes the keeper's answers. It has room for one answer to each of the
/// core's unanswered jobs, so that the keeper never waits here.
pub trait CoreInbox<F = Arc<OwnedFd>>: Send + Sync {
    /// Hands over an answer, and wakes the core.
    fn answer(&self, done: JobDone<F>);
}

/// Where segments come from that are not on disk: the archive.
pub trait SegmentSource<F = Arc<OwnedFd>>: Send + Sync {
    /// A reader needs this segment. `reply` gets a [`JobDone::Opened`] when it is there, or when
    /// it is known that it will not come.
    fn want(&self, tli: TimelineId, no: SegmentNo, reply: Reply<F>);

    /// A reader has opened this segment: the following ones may be needed soon.
    fn look_ahead(&self, tli: TimelineId, no: SegmentNo);
}

impl<F> Reply<F> {
    /// Delivers the answer.
    pub fn send(self, done: JobDone<F>) {
        match (self, done) {
            (Self::Core(inbox), done) => inbox.answer(done),
            // The asking task may be gone.
            (Self::Task(task), done) => drop(task.send(done)),
            (Self::Nobody, JobDone::Failed { job, error }) => debug!("could not {job}: {error}"),
            (Self::Nobody, _) => {}
        }
    }
}

impl<F> fmt::Debug for Reply<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Core(_) => "Core",
            Self::Task(_) => "Task",
            Self::Nobody => "Nobody",
        })
    }
}
