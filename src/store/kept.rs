//! What is kept for the way back over a switch of timelines that no upstream has agreed to: the
//! segment in which the timeline was left, as it was. After the switch nothing needs it, so it would go
//! as one that adds nothing to the next timeline's. A name of its own keeps it, outside of `pg_wal`,
//! where neither retention nor a start looks.

use super::cut::read_seams;
use super::disk::Disk;
use super::durable::remove;
use super::fault::{StoreFault, failed};
use super::layout::Layout;
use super::seams::{Seams, TooManyUnagreed, UnagreedSwitch};
use super::switch::{Switch, open_segment};
use crate::wal::{SegmentName, SegmentSize};
use std::io;
use std::path::Path;

/// The segment in which a switch leaves its timeline; `None` when it does so between two.
pub(super) fn left_inside(switch: Switch, size: SegmentSize) -> Option<SegmentName> {
    let name = SegmentName { tli: switch.from, no: switch.at.segment(size), size };
    (switch.at.segment_offset(size) > 0).then_some(name)
}

/// Before a switch for which there is the archive's word alone: keeps the segment. Returns the content
/// of `walhub.seams` that is to be written before the switch.
///
/// # Errors
/// Nothing has changed that matters.
pub async fn keep_left<D: Disk>(
    disk: &D,
    layout: &Layout,
    size: SegmentSize,
    taken: UnagreedSwitch,
) -> Result<Seams, StoreFault> {
    let path = layout.seams();
    let mut seams = read_seams(disk, layout).await?;
    let is_known = seams.unagreed().any(|known| known.switch == taken.switch);
    let noted: Result<(), TooManyUnagreed> = seams.take(taken.switch, taken.since);
    noted.map_err(|why| failed("use file", &path)(io::Error::other(why)))?;
    let Some(name) = left_inside(taken.switch, size) else { return Ok(seams) };
    let kept = layout.kept_segment(name);
    if is_known && disk.open_read(&kept).await.is_ok() {
        // The switch may have been decided then, and the segment's own file gone.
        return Ok(seams);
    }
    let folder = layout.kept();
    match disk.mkdir(&folder).await {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made.map_err(failed("create directory", &folder))?,
    }
    sync(disk, layout.root()).await?;
    remove(disk, &kept).await.map_err(failed("remove file", &kept))?;
    let (own, _) = open_segment(disk, layout, name).await?;
    disk.link(&own, &kept).await.map_err(failed("link file", &kept))?;
    sync(disk, &folder).await?;
    Ok(seams)
}

/// Removes what is kept for no switch any more.
///
/// # Errors
/// Something of it stays.
pub async fn let_go<D: Disk>(
    disk: &D,
    layout: &Layout,
    size: SegmentSize,
    seams: &Seams,
) -> Result<(), StoreFault> {
    let folder = layout.kept();
    let names = match disk.list(&folder).await {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        listed => listed.map_err(failed("list directory", &folder))?,
    };
    let needed: Vec<_> = seams
        .unagreed()
        .filter_map(|unagreed| left_inside(unagreed.switch, size))
        .map(|name| layout.kept_segment(name))
        .collect();
    let unneeded = names.iter().map(|name| folder.join(name)).filter(|path| !needed.contains(path));
    for path in unneeded {
        remove(disk, &path).await.map_err(failed("remove file", &path))?;
    }
    Ok(())
}

async fn sync<D: Disk>(disk: &D, dir: &Path) -> Result<(), StoreFault> {
    let synced = disk.sync_dir(dir).await;
    synced.map_err(|error| StoreFault::Sync { path: dir.to_owned(), error })
}
