//! The end of the WAL as a look at the directory finds it. A start would find the same or less: it
//! syncs first and then believes only the disk.

use super::control_file::Cluster;
use super::disk::Disk;
use super::durable::read_note;
use super::fault::StoreFault;
use super::histories::read_fork;
use super::layout::{Layout, Listing};
use super::notes::BegunNote;
use super::recover::{newest_range, noted_beginning, open_segments};
use super::tail::{Tail, TailSearch};
use crate::wal::Lsn;

/// Walks. `halted` says how far a marker of a failed sync trusts the disk, if there is one: the inner
/// `None` when it does not say.
pub(super) async fn find_end<D: Disk>(
    disk: &D,
    layout: &Layout,
    cluster: &Cluster,
    listing: &Listing,
    halted: Option<Option<Lsn>>,
) -> Result<Tail, StoreFault> {
    let fork = read_fork(disk, layout, cluster.timeline).await?;
    let complete = newest_range(listing, cluster);
    let begun = read_note(disk, &layout.begun(), BegunNote::decode).await?;
    let trusted = noted_beginning(begun, cluster, complete);
    let halted = halted.map(|durable| durable.unwrap_or(Lsn::INVALID));
    let search = TailSearch {
        layout,
        cluster,
        fork,
        complete,
        partials: &open_segments(listing, cluster),
        trusted,
        limit: halted.map_or(Lsn::MAX, |durable| durable.max(trusted)),
    };
    search.find(disk).await
}
