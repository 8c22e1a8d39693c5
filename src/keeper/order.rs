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
    /// To a data core, or to the threads that restore.
    Inbox(Arc<dyn AnswerInbox<F>>),
    /// To a task or a thread that waits for it.
    Task(oneshot::Sender<JobDone<F>>),
    /// Nobody waits.
    Nobody,
}

/// Where the keeper's answers go. The keeper never waits here: an inbox of a bounded size has a
/// place for each job that was given in its name, and the place is reserved before that.
pub trait AnswerInbox<F = Arc<OwnedFd>>: Send + Sync {
    /// Reserves a place for one answer. Returns whether there was one. An inbox that stores
    /// nothing always has one.
    fn reserve(&self) -> bool {
        true
    }

    /// Gives a reserved place up: the job could not be given.
    fn release(&self) {}

    /// Takes an answer over, and wakes who waits for it.
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
            (Self::Inbox(inbox), done) => inbox.answer(done),
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
            Self::Inbox(_) => "Inbox",
            Self::Task(_) => "Task",
            Self::Nobody => "Nobody",
        })
    }
}
