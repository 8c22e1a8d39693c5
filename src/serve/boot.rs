//! From what a start found in its directory to a hub that can serve it, without threads or
//! sockets.

use crate::cluster::identity::Identity;
use crate::data::Store;
use crate::data::receive::{CacheFault, line};
use crate::hub::Hub;
use crate::ring::ChunkWriter;
use crate::store::control_file::Cluster;
use crate::store::recover::RecoveredWal;
use crate::upstream::position::Position;
use crate::wal::TimelineId;
use bytes::Bytes;
use std::sync::Arc;
use tracing::info;

/// Makes known to the hub what the directory has of a cluster: its description, the histories and
/// the WAL of all timelines, the newest of it in the cache. Returns the WAL of the current
/// timeline, for the receive role.
///
/// # Errors
/// The WAL does not fit into the cache.
pub fn resume<F>(
    hub: &Hub,
    cluster: &Cluster,
    histories: Vec<(TimelineId, Bytes)>,
    wal: RecoveredWal,
    writer: &mut ChunkWriter,
) -> Result<Store<F>, CacheFault> {
    hub.set_identity(Arc::new(Identity {
        system_id: cluster.system_id,
        segment_size: cluster.segment_size,
        data_directory_mode: cluster.data_directory_mode.clone(),
        parameters: cluster.parameters.clone(),
    }));
    for (tli, content) in histories {
        hub.set_history(tli, content);
    }
    let (tli, durable) = (wal.walker.rules().tli, wal.durable);
    // The status says the same: WAL of earlier timelines counts.
    let oldest = hub.holds.oldest_kept();
    // The first comparison covers everything that was read back.
    let start = wal.prefix_from;
    let ended = wal.ended.clone();
    let store = Store::resume(wal, writer, hub.config.wal_buffers)?;
    hub.set_cells(line(&ended, Arc::clone(&store.cell)));
    info!(timeline = %tli, %oldest, %durable, "found WAL in the directory");
    hub.set_position(Position::At { tli, durable, start });
    Ok(store)
}
