//! The keeper's answers find their way: to the core that asked, or to the task that
//! waits for something to be durable.

use crate::data::handoff::{Mailbox, ToCore};
use crate::hub::Hub;
use crate::keeper::{JobDone, JobKind};
use crate::restorer::Restorer;
use crate::store::retention::Receiving;
use crate::upstream::position::Position;
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;

/// Somebody on the control thread who waits for a job.
pub(super) type Waiting = oneshot::Sender<Result<(), String>>;

/// The post office between the keeper and everybody else.
#[derive(Default)]
pub(super) struct Post {
    hub: OnceLock<Arc<Hub>>,
    cores: OnceLock<Vec<Mailbox>>,
    restorer: OnceLock<Arc<Restorer>>,
    /// The keeper works in order, so answers of one kind come in the order of asking.
    waiting: Mutex<VecDeque<(JobKind, Waiting)>>,
}

impl Post {
    /// From now on cores can be answered.
    pub(super) fn open(&self, hub: Arc<Hub>, cores: Vec<Mailbox>) {
        // Opened once, at the start.
        drop((self.hub.set(hub), self.cores.set(cores)));
    }

    /// From now on, what is not on disk is looked for in the archive.
    pub(super) fn ask_archive(&self, restorer: Arc<Restorer>) {
        // Told once, at the start.
        drop(self.restorer.set(restorer));
    }

    /// A core's question is answered without the keeper.
    pub(super) fn answer(&self, core: usize, done: JobDone) {
        self.to_core(core, done);
    }

    /// Notes who waits for a job; before the job is posted.
    pub(super) fn await_job(&self, kind: JobKind, waiting: Waiting) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push_back((kind, waiting));
    }

    /// Nobody waits for this any more: the job could not be posted.
    pub(super) fn forget_last(&self, kind: JobKind) -> Option<Waiting> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let place = waiting.iter().rposition(|(other, _)| *other == kind)?;
        waiting.remove(place).map(|(_, waiting)| waiting)
    }

    /// Delivers an answer. Called on the keeper's thread.
    pub(super) fn deliver(&self, done: JobDone) {
        let done = match done {
            JobDone::Switched(wal) => {
                if let Some(told) = self.take_waiting(JobKind::Switch) {
                    self.send(0, ToCore::Switched { wal, told });
                }
                return;
            }
            JobDone::Adopted { tli, no, result } => {
                if let Some(restorer) = self.restorer.get() {
                    restorer.adopted(tli, no, result);
                }
                return;
            }
            done => done,
        };
        if let (Some(restorer), JobDone::Opened { tli, no, for_core, result }) =
            (self.restorer.get(), &done)
        {
            match result {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return restorer.want(*tli, *no, *for_core);
                }
                Ok(_) => restorer.look_ahead(*tli, *no),
                Err(_) => {}
            }
        }
        if let JobDone::Retained { terminate, receiving, .. } = &done {
            self.after_retention(terminate, *receiving);
        }
        match &done {
            JobDone::Opened { for_core, .. } => self.to_core(*for_core, done),
            JobDone::Done(kind) => match kind {
                JobKind::MarkHalted | JobKind::Retain => self.to_core(0, done),
                JobKind::SetAside => {
                    self.begin_anew();
                    self.to_waiting(JobKind::SetAside, Ok(()));
                }
                kind => self.to_waiting(*kind, Ok(())),
            },
            JobDone::Failed { job, error } => match job {
                JobKind::SaveControl
                | JobKind::SaveIdentity
                | JobKind::SaveHistory { .. }
                | JobKind::UseCluster
                | JobKind::SetAside
                | JobKind::SaveSlot
                | JobKind::DropSlot
                | JobKind::SaveNote(_)
                | JobKind::Switch => self.to_waiting(*job, Err(error.to_string())),
                JobKind::SaveState => tracing::debug!("could not {job}: {error}"),
                _ => self.to_core(0, done),
            },
            _ => self.to_core(0, done),
        }
    }

    /// Whose slot lost its WAL has to go; who receives has to know whether there is room.
    fn after_retention(&self, terminate: &[u32], receiving: Receiving) {
        if let Some(hub) = self.hub.get() {
            hub.set_receiving(receiving);
        }
        for pid in terminate {
            for core in 0..self.cores.get().map_or(0, Vec::len) {
                self.send(core, ToCore::Terminate { pid: *pid });
            }
        }
    }

    /// Our WAL is aside: the hub holds none, and the receive role forgets where it was
    /// before it is given another upstream.
    fn begin_anew(&self) {
        if let Some(hub) = self.hub.get() {
            hub.set_cells(Vec::new());
            hub.set_position(Position::Empty);
        }
        for core in 0..self.cores.get().map_or(0, Vec::len) {
            self.send(core, ToCore::BeginAnew);
        }
    }

    fn to_core(&self, core: usize, done: JobDone) {
        self.send(core, ToCore::Keeper(done));
    }

    fn send(&self, core: usize, mut message: ToCore) {
        let Some(mailbox) = self.cores.get().and_then(|cores| cores.get(core)) else { return };
        // A core that is this busy works its queue off; an answer must not be lost.
        while let Err(back) = mailbox.post(message) {
            message = back;
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn to_waiting(&self, kind: JobKind, result: Result<(), String>) {
        if let Some(waiting) = self.take_waiting(kind) {
            // It may have given up waiting.
            drop(waiting.send(result));
        }
    }

    fn take_waiting(&self, kind: JobKind) -> Option<Waiting> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let place = waiting.iter().position(|(other, _)| *other == kind)?;
        waiting.remove(place).map(|(_, waiting)| waiting)
    }
}
