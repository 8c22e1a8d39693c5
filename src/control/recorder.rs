//! What the upstream's supervision wants written down. The file work is the keeper's;
//! this is the door to it.

use crate::cluster::identity::Identity;
use crate::store::course::{FenceNote, UpstreamNote};
use crate::store::evidence::Evidence;
use crate::store::slots::SlotName;
use crate::store::switch::Switch;
use crate::wal::{Lsn, TimelineId};
use bytes::Bytes;
use std::sync::Arc;
use std::time::SystemTime;
use tokio::sync::oneshot;

/// Comes when something is durable, or with the reason why it is not.
pub type Saved = oneshot::Receiver<Result<(), String>>;

/// Writes down what has to survive a restart, before it is acted on.
pub trait Recorder: Send + Sync {
    /// A history file, byte for byte.
    fn save_history(&self, tli: TimelineId, content: Bytes) -> Saved;

    /// The directory is empty, and its WAL will begin here: the control file.
    fn begin(&self, identity: Arc<Identity>, tli: TimelineId, start: Lsn) -> Saved;

    /// The upstream describes itself otherwise than it did: the control file.
    fn save_identity(&self, identity: Arc<Identity>) -> Saved;

    /// Our timeline has ended: what follows is written down, and the receive role and the
    /// standbys go on with it. Its history is saved already. When an earlier switch away from
    /// the same timeline was begun and could not be finished, they go on with that one.
    fn switch(&self, plan: Switch) -> Saved;

    /// `--on-gap restart-at-current`: move our WAL aside. Afterwards the hub's
    /// position is `Empty`.
    fn set_wal_aside(&self) -> Saved;

    /// A slot that was created; on failure there is no such slot.
    fn save_slot(&self, name: SlotName) -> Saved;

    /// A slot goes, its file first.
    fn drop_slot(&self, name: SlotName) -> Saved;

    /// The fence goes up, or comes down.
    fn save_fence(&self, fence: Option<FenceNote>) -> Saved;

    /// The upstream is another than the flag says, or the flag's again.
    fn save_upstream(&self, upstream: Option<UpstreamNote>) -> Saved;

    /// A source has other bytes than we at this place, or has them no more.
    fn save_evidence(&self, evidence: Option<&Evidence>) -> Saved;

    /// It is time to look after slots and old WAL; not waited for.
    fn retain(&self, tli: TimelineId, newest: Lsn, now: SystemTime);

    /// The content of `walhub.state`, for `inspect`; not waited for.
    fn save_state(&self, json: String);
}
