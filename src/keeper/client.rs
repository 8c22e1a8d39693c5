//! The clients' side of the keeper's queues, one for each lane.
//!
//! A queue is bounded. A task that finds it full waits for a place, and so does a thread of
//! the restorer. A data core, which waits for nothing, gets its job back and asks again. A note
//! is then dropped, because the next note says more.

use super::job::{Job, JobDone, Lane, Note, ShownBy};
use super::order::{AnswerInbox, Order, Reply};
use crate::cluster::instance::InstanceId;
use crate::store::RecoveredWal;
use crate::store::abandoned::Abandoned;
use crate::store::control_file::ControlFile;
use crate::store::course::{FenceNote, UpstreamNote};
use crate::store::evidence::Evidence;
use crate::store::retention::Outlook;
use crate::store::seams::{Cut, Seams, UnagreedSwitch};
use crate::store::slots::SlotName;
use crate::store::switch::Switch;
use crate::wal::{Lsn, SegmentNo, TimelineId};
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// The most orders that can wait in a lane.
pub const QUEUE: usize = 256;

/// Why something is not on disk.
#[derive(Debug, thiserror::Error)]
pub enum SaveFault {
    /// The operating system's error.
    #[error(transparent)]
    Io(io::Error),
    /// The hub is shutting down.
    #[error("the keeper has ended")]
    Gone,
}

/// A handle to the keeper. Dropping the last one ends its thread after the waiting orders.
#[derive(Debug)]
pub struct KeeperClient<F = Arc<OwnedFd>> {
    urgent: mpsc::Sender<Order<F>>,
    patient: mpsc::Sender<Order<F>>,
}

impl<F> Clone for KeeperClient<F> {
    fn clone(&self) -> Self {
        Self { urgent: self.urgent.clone(), patient: self.patient.clone() }
    }
}

/// The keeper's end of its queues.
#[derive(Debug)]
pub struct Orders<F = Arc<OwnedFd>> {
    /// Orders of [`Lane::Urgent`].
    pub urgent: LaneQueue<F>,
    /// Orders of [`Lane::Patient`].
    pub patient: LaneQueue<F>,
}

/// The keeper's end of the queue to one lane.
#[derive(Debug)]
pub struct LaneQueue<F = Arc<OwnedFd>>(mpsc::Receiver<Order<F>>);

/// The queues to a keeper, each with room for `capacity` waiting orders.
pub fn queue<F>(capacity: usize) -> (KeeperClient<F>, Orders<F>) {
    let (urgent, urgent_orders) = mpsc::channel(capacity);
    let (patient, patient_orders) = mpsc::channel(capacity);
    let orders = Orders { urgent: LaneQueue(urgent_orders), patient: LaneQueue(patient_orders) };
    (KeeperClient { urgent, patient }, orders)
}

impl<F> LaneQueue<F> {
    /// The next order, if one is waiting.
    pub fn take(&mut self) -> Option<Order<F>> {
        self.0.try_recv().ok()
    }

    /// The next order. Returns `None` when no client is left.
    pub async fn next(&mut self) -> Option<Order<F>> {
        self.0.recv().await
    }

    /// Whether no client is left and no order waits.
    pub fn is_over(&self) -> bool {
        self.0.is_closed() && self.0.is_empty()
    }
}

/// For the keepers of tests, which do one job at a time.
#[cfg(test)]
impl<F> Orders<F> {
    /// The next order, if one is waiting.
    pub fn take(&mut self) -> Option<Order<F>> {
        self.urgent.take().or_else(|| self.patient.take())
    }

    /// The next order. Returns `None` when no client is left.
    pub async fn next(&mut self) -> Option<Order<F>> {
        tokio::select! {
            biased;
            Some(order) = self.urgent.next() => Some(order),
            Some(order) = self.patient.next() => Some(order),
            else => None,
        }
    }
}

impl<F> KeeperClient<F> {
    /// The client for a data core, which takes its answers from `inbox`.
    pub fn for_core(&self, inbox: Arc<dyn AnswerInbox<F>>) -> CoreClient<F> {
        CoreClient { client: self.clone(), inbox }
    }

    /// Stores a history file, durably.
    pub async fn save_history(&self, tli: TimelineId, bytes: Vec<u8>) -> Result<(), SaveFault> {
        self.save(Job::SaveHistory { tli, bytes }).await
    }

    /// Replaces the control file of a directory without a cluster, durably.
    pub async fn save_control(&self, control: ControlFile) -> Result<(), SaveFault> {
        self.save(Job::SaveControl(Box::new(control))).await
    }

    /// Replaces the cluster's description of itself in the control file, durably.
    pub async fn save_identity(
        &self,
        data_directory_mode: String,
        parameters: Vec<(String, String)>,
    ) -> Result<(), SaveFault> {
        self.save(Job::SaveIdentity { data_directory_mode, parameters }).await
    }

    /// Ends our timeline on disk. When an earlier switch away from the same timeline was
    /// begun and could not be finished, that one is finished instead.
    pub async fn switch(&self, plan: Switch) -> Result<Box<RecoveredWal>, SaveFault> {
        match self.ask(Job::Switch(plan)).await? {
            JobDone::Switched(wal) => Ok(wal),
            other => Err(other.into()),
        }
    }

    /// Makes ready what a cut needs space for.
    pub async fn prepare_cut(&self, cut: Cut) -> Result<(), SaveFault> {
        self.save(Job::PrepareCut(cut)).await
    }

    /// Decides a cut that was prepared.
    pub async fn decide_cut(&self, cut: Cut) -> Result<(), SaveFault> {
        self.save(Job::DecideCut(cut)).await
    }

    /// Moves WAL of ours aside. Returns what is left, and what stands.
    pub async fn cut(&self, cut: Cut) -> Result<(Box<RecoveredWal>, Seams), SaveFault> {
        match self.ask(Job::Cut(cut)).await? {
            JobDone::CutOff { wal, seams } => Ok((wal, seams)),
            other => Err(other.into()),
        }
    }

    /// Makes sure that a switch, which comes next, can be undone.
    pub async fn keep_left(&self, taken: UnagreedSwitch) -> Result<(), SaveFault> {
        self.save(Job::KeepLeft(taken)).await
    }

    /// Moves all WAL aside. The hub's own ID stays.
    pub async fn set_aside(&self, instance: InstanceId) -> Result<(), SaveFault> {
        self.save(Job::SetAside(instance)).await
    }

    /// What retention would do now, and who keeps what.
    pub async fn foresee(&self, tli: TimelineId, newest: Lsn) -> Result<Box<Outlook>, SaveFault> {
        match self.ask(Job::Foresee { tli, newest }).await? {
            JobDone::Foreseen(outlook) => Ok(outlook),
            other => Err(other.into()),
        }
    }

    /// Writes `bytes`, which lie in one segment, over a damaged record of ours.
    pub async fn overwrite(
        &self,
        tli: TimelineId,
        at: Lsn,
        bytes: Vec<u8>,
    ) -> Result<(), SaveFault> {
        self.save(Job::Overwrite { tli, at, bytes }).await
    }

    /// Writes a slot that was created to disk; on failure there is no such slot.
    pub async fn save_slot(&self, name: SlotName) -> Result<(), SaveFault> {
        self.save(Job::SaveSlot(name)).await
    }

    /// Removes a slot, its file first.
    pub async fn drop_slot(&self, name: SlotName) -> Result<(), SaveFault> {
        self.save(Job::DropSlot(name)).await
    }

    /// Confirms that nobody needs what was set aside under this name.
    pub async fn confirm_aside(&self, name: String) -> Result<(), SaveFault> {
        self.save(Job::ConfirmAside(name)).await
    }

    /// Sets the fence on disk, or removes it.
    pub async fn save_fence(&self, fence: Option<FenceNote>) -> Result<(), SaveFault> {
        let bytes = fence.map(|fence| fence.encode());
        self.save(Job::SaveNote { note: Note::Fence, bytes }).await
    }

    /// Stores an upstream that replaces the flag's; `None` makes the flag's count again.
    pub async fn save_upstream(&self, upstream: Option<UpstreamNote>) -> Result<(), SaveFault> {
        let bytes = upstream.map(|upstream| upstream.encode());
        self.save(Job::SaveNote { note: Note::Upstream, bytes }).await
    }

    /// Stores where other sources have other bytes; without any the file is removed.
    pub async fn save_evidence(&self, evidence: &Evidence) -> Result<(), SaveFault> {
        let bytes = (!evidence.is_empty()).then(|| evidence.encode());
        self.save(Job::SaveNote { note: Note::Evidence, bytes }).await
    }

    /// Stores what was abandoned and is not confirmed; without any the file is removed.
    pub async fn save_abandoned(&self, abandoned: &Abandoned) -> Result<(), SaveFault> {
        let bytes = (!abandoned.is_empty()).then(|| abandoned.encode());
        self.save(Job::SaveNote { note: Note::Abandoned, bytes }).await
    }

    /// Stores where other histories go on, and the switches that are remembered; without any the file
    /// is removed.
    pub async fn save_seams(&self, seams: &Seams) -> Result<(), SaveFault> {
        let bytes = (*seams != Seams::default()).then(|| seams.encode());
        self.save(Job::SaveNote { note: Note::Seams, bytes }).await
    }

    /// Gives a job whose answer nobody waits for. A full queue drops it.
    pub fn note(&self, job: Job) {
        drop(self.post(Order { job, reply: Reply::Nobody }));
    }

    /// Gives a job whose answer nobody waits for. Blocks while the queue is full, so it is only for
    /// threads on which nobody else waits.
    pub fn give(&self, job: Job) {
        let order = Order { job, reply: Reply::Nobody };
        // A keeper that has ended does nothing any more.
        drop(self.lane(&order.job).blocking_send(order));
    }

    /// Has a damaged segment replaced by the file that was fetched for it. Blocks until that is
    /// done, so it is only for threads on which nobody else waits.
    ///
    /// # Errors
    /// The operating system's error; [`io::ErrorKind::NotFound`] when the segment is not here any
    /// more.
    pub fn mend(&self, tli: TimelineId, no: SegmentNo) -> Result<(), SaveFault> {
        let (tell, told) = oneshot::channel();
        let order = Order { job: Job::Mend { tli, no }, reply: Reply::Task(tell) };
        self.lane(&order.job).blocking_send(order).map_err(|_| SaveFault::Gone)?;
        match told.blocking_recv().map_err(|_| SaveFault::Gone)? {
            JobDone::Done(_) => Ok(()),
            other => Err(other.into()),
        }
    }

    /// Gives an order. Returns it when the queue of its lane is full or the keeper has ended.
    pub fn post(&self, order: Order<F>) -> Result<(), Order<F>> {
        self.lane(&order.job).try_send(order).map_err(|refused| refused.into_inner())
    }

    /// Has a segment that was fetched from the archive given its name and opened. `inbox` gets
    /// the answer. Blocks while the queue is full, so it is only for threads on which nobody else
    /// waits.
    ///
    /// # Errors
    /// The keeper has ended, and nobody is answered.
    pub fn adopt(
        &self,
        tli: TimelineId,
        no: SegmentNo,
        shown: ShownBy,
        inbox: Arc<dyn AnswerInbox<F>>,
    ) -> Result<(), SaveFault> {
        let order = Order { job: Job::Adopt { tli, no, shown }, reply: Reply::Inbox(inbox) };
        self.patient.blocking_send(order).map_err(|_| SaveFault::Gone)
    }

    async fn save(&self, job: Job) -> Result<(), SaveFault> {
        match self.ask(job).await? {
            JobDone::Done(_) => Ok(()),
            other => Err(other.into()),
        }
    }

    async fn ask(&self, job: Job) -> Result<JobDone<F>, SaveFault> {
        let (tell, told) = oneshot::channel();
        let order = Order { job, reply: Reply::Task(tell) };
        self.lane(&order.job).send(order).await.map_err(|_| SaveFault::Gone)?;
        told.await.map_err(|_| SaveFault::Gone)
    }

    fn lane(&self, job: &Job) -> &mpsc::Sender<Order<F>> {
        match job.lane() {
            Lane::Urgent => &self.urgent,
            Lane::Patient => &self.patient,
        }
    }
}

impl<F> From<JobDone<F>> for SaveFault {
    /// Turns an answer other than the expected one into a failure.
    fn from(done: JobDone<F>) -> Self {
        match done {
            JobDone::Failed { error, .. } => Self::Io(error),
            _ => Self::Gone,
        }
    }
}

/// A data core's client of the keeper.
pub struct CoreClient<F = Arc<OwnedFd>> {
    client: KeeperClient<F>,
    inbox: Arc<dyn AnswerInbox<F>>,
}

impl<F> Clone for CoreClient<F> {
    fn clone(&self) -> Self {
        Self { client: self.client.clone(), inbox: Arc::clone(&self.inbox) }
    }
}

impl<F> CoreClient<F> {
    /// Asks for a job, whose answer comes to the core's inbox. Gives the job back when the queue
    /// or the inbox is full, or the keeper has ended.
    pub fn post(&self, job: Job) -> Result<(), Job> {
        if !self.inbox.reserve() {
            return Err(job);
        }
        let order = Order { job, reply: Reply::Inbox(Arc::clone(&self.inbox)) };
        self.client.post(order).map_err(|order| {
            self.inbox.release();
            order.job
        })
    }
}

impl<F> fmt::Debug for CoreClient<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CoreClient").finish_non_exhaustive()
    }
}

#[cfg(all(test, not(walhub_loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_fleet_that_creates_its_slots_at_once_waits_for_places() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (client, mut orders) = queue::<()>(4);
            let save = |n: u32| {
                let client = client.clone();
                let name = SlotName::parse(&format!("node_{n}")).unwrap();
                tokio::spawn(async move { client.save_slot(name).await })
            };
            let fleet: Vec<_> = (0..500).map(save).collect();
            drop(client);
            let mut saved = 0;
            while let Some(Order { job, reply }) = orders.next().await {
                assert!(orders.patient.0.len() <= 4);
                let done = match saved {
                    // Each has the answer to its own order, whatever the outcome of the others.
                    7 => JobDone::Failed { job: job.kind(), error: io::Error::other("full") },
                    _ => JobDone::Done(job.kind()),
                };
                reply.send(done);
                saved += 1;
            }
            let mut failed = Vec::new();
            for (n, one) in fleet.into_iter().enumerate() {
                if let Err(fault) = one.await.unwrap() {
                    failed.push((n, fault.to_string()));
                }
            }
            assert_eq!((saved, failed), (500, vec![(7, "full".to_owned())]));
        });
    }

    #[test]
    fn who_waits_for_a_keeper_that_ends_hears_of_it() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (client, mut orders) = queue::<()>(1);
        runtime.block_on(async {
            let ask = tokio::spawn(async move { client.save_fence(None).await });
            let order = orders.next().await.unwrap();
            drop((order, orders));
            assert!(matches!(ask.await.unwrap(), Err(SaveFault::Gone)));
        });
    }
}
