//! What has to survive a restart, written down by the keeper.

use super::post::Post;
use crate::cluster::identity::Identity;
use crate::control::recorder::{Recorder, Saved};
use crate::hub::Hub;
use crate::keeper::{Job, JobKind, KeeperHandle, Note};
use crate::store::control_file::{Cluster, ControlFile};
use crate::store::course::{FenceNote, UpstreamNote};
use crate::store::evidence::Evidence;
use crate::store::slots::SlotName;
use crate::store::switch::Switch;
use crate::wal::{Lsn, TimelineId};
use bytes::Bytes;
use std::io;
use std::sync::{Arc, mpsc};
use std::time::SystemTime;
use tokio::sync::oneshot;

/// The door to the keeper for the upstream's supervision.
pub(super) struct KeeperRecorder {
    hub: Arc<Hub>,
    keeper: KeeperHandle,
    post: Arc<Post>,
    /// To the thread that waits for a place in the keeper's queue. Each who orders waits for
    /// the answer, so there are no more of them than connections.
    orders: mpsc::Sender<Job>,
}

impl KeeperRecorder {
    /// A recorder before the keeper's door.
    ///
    /// # Errors
    /// There is no thread for it.
    pub(super) fn start(hub: Arc<Hub>, keeper: KeeperHandle, post: Arc<Post>) -> io::Result<Self> {
        let (orders, ordered) = mpsc::channel();
        let recorder = Self { hub, keeper: keeper.clone(), post: Arc::clone(&post), orders };
        let thread = std::thread::Builder::new().name("orders".to_owned());
        thread.spawn(move || forward(&ordered, &keeper, &post))?;
        Ok(recorder)
    }

    /// Posts a job and says when it is done.
    pub(super) fn order(&self, job: Job) -> Saved {
        let (tell, saved) = oneshot::channel();
        let kind = job.kind();
        self.post.await_job(kind, tell);
        if self.orders.send(job).is_err() {
            refuse(&self.post, kind);
        }
        saved
    }

    /// The control file of a new directory, which gets its ID before it has a cluster, so
    /// that a loop is seen at the first connection.
    pub(super) fn save_instance(&self) -> Saved {
        self.save_control(None)
    }

    fn save_control(&self, cluster: Option<Cluster>) -> Saved {
        let control = ControlFile { instance: self.hub.instance, cluster };
        self.order(Job::SaveControl(Box::new(control)))
    }
}

/// Hands orders on, however full the keeper's queue is: a whole fleet's slots are more than
/// it takes, and an order that was lost would leave a slot with a user who has gone.
fn forward(ordered: &mpsc::Receiver<Job>, keeper: &KeeperHandle, post: &Post) {
    while let Ok(job) = ordered.recv() {
        if let Err(job) = keeper.post_blocking(job) {
            refuse(post, job.kind());
        }
    }
}

/// There is no keeper any more.
fn refuse(post: &Post, kind: JobKind) {
    if let Some(tell) = post.forget_last(kind) {
        // Who asked may have gone.
        drop(tell.send(Err("the keeper is gone".to_owned())));
    }
}

impl Recorder for KeeperRecorder {
    fn save_history(&self, tli: TimelineId, content: Bytes) -> Saved {
        self.order(Job::SaveHistory { tli, bytes: content.to_vec() })
    }

    fn begin(&self, identity: Arc<Identity>, tli: TimelineId, start: Lsn) -> Saved {
        self.hub.holds.begin(start);
        drop(self.order(Job::UseCluster { segment_size: identity.segment_size }));
        self.save_control(Some(Cluster {
            system_id: identity.system_id,
            segment_size: identity.segment_size,
            data_directory_mode: identity.data_directory_mode.clone(),
            parameters: identity.parameters.clone(),
            timeline: tli,
            start,
            sealed: Vec::new(),
        }))
    }

    fn save_identity(&self, identity: Arc<Identity>) -> Saved {
        self.order(Job::SaveIdentity {
            data_directory_mode: identity.data_directory_mode.clone(),
            parameters: identity.parameters.clone(),
        })
    }

    fn switch(&self, plan: Switch) -> Saved {
        self.order(Job::Switch(plan))
    }

    fn set_wal_aside(&self) -> Saved {
        self.order(Job::SetAside(self.hub.instance))
    }

    fn save_slot(&self, name: SlotName) -> Saved {
        self.order(Job::SaveSlot(name))
    }

    fn drop_slot(&self, name: SlotName) -> Saved {
        self.order(Job::DropSlot(name))
    }

    fn save_fence(&self, fence: Option<FenceNote>) -> Saved {
        let bytes = fence.map(|fence| fence.encode());
        self.order(Job::SaveNote { note: Note::Fence, bytes })
    }

    fn save_upstream(&self, upstream: Option<UpstreamNote>) -> Saved {
        let bytes = upstream.map(|upstream| upstream.encode());
        self.order(Job::SaveNote { note: Note::Upstream, bytes })
    }

    fn save_evidence(&self, evidence: Option<&Evidence>) -> Saved {
        let bytes = evidence.map(Evidence::encode);
        self.order(Job::SaveNote { note: Note::Evidence, bytes })
    }

    fn retain(&self, tli: TimelineId, newest: Lsn, now: SystemTime) {
        // A keeper whose queue is full comes to it the next time.
        drop(self.keeper.post(Job::Retain { tli, newest, now }));
    }

    fn save_state(&self, json: String) {
        // Only `inspect` reads it; the next change writes it again.
        drop(self.keeper.post(Job::SaveState(json)));
    }
}
