//! What has to survive a restart, written down by the keeper.

use super::post::Post;
use crate::control::recorder::{Recorder, Saved};
use crate::hub::{Hub, Identity};
use crate::keeper::{Job, KeeperHandle, Note};
use crate::store::control_file::{Cluster, ControlFile};
use crate::store::course::{FenceNote, UpstreamNote};
use crate::store::slots::SlotName;
use crate::store::switch::Switch;
use crate::wal::{Lsn, TimelineId};
use bytes::Bytes;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;
use tokio::sync::oneshot;

/// The door to the keeper for the upstream's supervision.
pub(super) struct KeeperRecorder {
    hub: Arc<Hub>,
    keeper: KeeperHandle,
    post: Arc<Post>,
    /// The control file as it was written last.
    control: Mutex<ControlFile>,
}

impl KeeperRecorder {
    /// A recorder that knows the control file recovery found.
    pub(super) fn new(
        hub: Arc<Hub>,
        keeper: KeeperHandle,
        post: Arc<Post>,
        control: ControlFile,
    ) -> Self {
        Self { hub, keeper, post, control: Mutex::new(control) }
    }

    /// Posts a job and says when it is done.
    pub(super) fn order(&self, job: Job) -> Saved {
        let (tell, saved) = oneshot::channel();
        let kind = job.kind();
        self.post.await_job(kind, tell);
        if self.keeper.post(job).is_err()
            && let Some(tell) = self.post.forget_last(kind)
        {
            // The one who asked sees it at once.
            drop(tell.send(Err("the keeper's queue is full".to_owned())));
        }
        saved
    }

    fn save(&self, change: impl FnOnce(&mut ControlFile)) -> Saved {
        let mut control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut control);
        self.order(Job::SaveControl(Box::new(control.clone())))
    }

    /// Writes the control file as it is: a new directory gets its ID before it has a
    /// cluster, so that a loop is seen at the first connection.
    pub(super) fn save_instance(&self) -> Saved {
        self.save(|_| ())
    }
}

impl Recorder for KeeperRecorder {
    fn save_history(&self, tli: TimelineId, content: Bytes) -> Saved {
        self.order(Job::SaveHistory { tli, bytes: content.to_vec() })
    }

    fn begin(&self, identity: Arc<Identity>, tli: TimelineId, start: Lsn) -> Saved {
        self.hub.holds.begin(start);
        drop(self.order(Job::UseCluster { segment_size: identity.segment_size }));
        self.save(|control| {
            control.cluster = Some(Cluster {
                system_id: identity.system_id,
                segment_size: identity.segment_size,
                data_directory_mode: identity.data_directory_mode.clone(),
                parameters: identity.parameters.clone(),
                timeline: tli,
                start,
                sealed: Vec::new(),
            });
        })
    }

    fn save_identity(&self, identity: Arc<Identity>) -> Saved {
        self.save(|control| {
            if let Some(cluster) = &mut control.cluster {
                cluster.data_directory_mode = identity.data_directory_mode.clone();
                cluster.parameters = identity.parameters.clone();
            }
        })
    }

    fn switch(&self, plan: Switch) -> Saved {
        let mut control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        // A switch that failed behind its decision is asked for again.
        if let Some(cluster) = control.cluster.as_mut().filter(|c| c.timeline == plan.from) {
            *cluster = plan.apply(cluster);
        }
        self.order(Job::Switch { plan, control: Box::new(control.clone()) })
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

    fn retain(&self, newest: Lsn, now: SystemTime) {
        // A keeper whose queue is full comes to it the next time.
        drop(self.keeper.post(Job::Retain { newest, now }));
    }

    fn save_state(&self, json: String) {
        // Only `inspect` reads it; the next change writes it again.
        drop(self.keeper.post(Job::SaveState(json)));
    }
}
