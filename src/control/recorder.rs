//! What the upstream's supervision wants written down. The file work is the keeper's;
//! this is the door to it.

use crate::hub::Identity;
use crate::store::switch::Switch;
use crate::wal::{Lsn, TimelineId};
use bytes::Bytes;
use std::sync::Arc;
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
    /// standbys go on with it. Its history is saved already.
    fn switch(&self, plan: Switch) -> Saved;

    /// `--on-gap restart-at-current`: move our WAL aside. Afterwards the hub's
    /// position is `Empty`.
    fn set_wal_aside(&self) -> Saved;

    /// The content of `walhub.state`, for `inspect`; not waited for.
    fn save_state(&self, json: String);
}
