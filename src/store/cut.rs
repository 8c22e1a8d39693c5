//! Our WAL of a timeline from a place on leaves `pg_wal`, and the timeline goes on from there with
//! that of another history: the steps that make this durable, in an order in which a crash between
//! any two of them does no harm.
//!
//! 1. The segment in which the place lies is built again: its bytes before the place and zeros past
//!    it, under a temporary name. A place on a segment's boundary needs no such file.
//! 2. `walhub.seams` says that this is under way. That decides: from here on a start finishes it.
//! 3. When no complete segment stays directly before it, the control file says that our WAL begins with the open one.
//!    The files from the place on move to `diverged/`, and what was built gets its name. While its
//!    temporary name is there, the segment's own file is the former one. What is in the files is
//!    counted before the first one moves.
//! 4. The slots past the place lose their WAL, and `walhub.seams` says that it is finished. Until
//!    then nothing is received and nothing is served.

use super::aside::move_aside;
use super::control_file::{Cluster, ControlFile};
use super::count::note_cut;
use super::disk::{Disk, parent};
use super::durable::{read_full, read_note, remove, replace_durably};
use super::fault::{StoreFault, failed};
use super::layout::{FileKind, Layout};
use super::notes::BegunNote;
use super::seams::{Seam, Seams};
use super::switch::{open_segment, write_segment};
use crate::wal::{Lsn, SegmentName, SegmentSize};
use std::io;
use std::path::{Path, PathBuf};

/// Step 1, and the folder that the files will move to: all that needs space.
///
/// # Errors
/// Nothing has changed.
pub async fn prepare_cut<D: Disk>(
    disk: &D,
    layout: &Layout,
    size: SegmentSize,
    seam: Seam,
) -> Result<(), StoreFault> {
    let name = SegmentName { tli: seam.tli, no: seam.at.segment(size), size };
    let temporary = Layout::temporary(&layout.partial(name));
    // An earlier attempt, at another place in the segment, may have left one. It would be taken for
    // that of this one.
    remove(disk, &temporary).await.map_err(failed("remove file", &temporary))?;
    sync(disk, layout.wal()).await?;
    make_folder(disk, layout, seam).await?;
    let len = seam.at.segment_offset(size);
    if len == 0 {
        return Ok(());
    }
    let (path, file) = open_segment(disk, layout, name).await?;
    let read = read_full(disk, &file, len as usize, 0).await;
    let prefix = read.map_err(failed("read file", &path))?;
    if (prefix.len() as u64) < len {
        return Err(failed("read file", &path)(io::ErrorKind::UnexpectedEof.into()));
    }
    if let Err(error) = write_segment(disk, &temporary, prefix, size).await {
        // On a full disk it takes the room that others need.
        drop(remove(disk, &temporary).await);
        return Err(failed("write file", &temporary)(error));
    }
    sync(disk, layout.wal()).await
}

/// Step 2. One that is decided already only becomes durable once more: that needs no space.
///
/// # Errors
/// The file could not be read or written, another cut is under way, or too many seams stand.
pub async fn decide_cut<D: Disk>(disk: &D, layout: &Layout, seam: Seam) -> Result<(), StoreFault> {
    let path = layout.seams();
    let mut seams = read_seams(disk, layout).await?;
    if seams.under_way() == Some(seam) {
        return sync(disk, layout.root()).await;
    }
    let begun = seams.begin(seam);
    begun.map_err(|why| failed("use file", &path)(io::Error::other(why)))?;
    write_seams(disk, layout, &seams).await
}

/// The end of step 4. Returns what stands.
///
/// # Errors
/// The file could not be read or written.
pub async fn finish_cut<D: Disk>(disk: &D, layout: &Layout) -> Result<Seams, StoreFault> {
    let mut seams = read_seams(disk, layout).await?;
    if seams.under_way().is_some() {
        seams.finish();
        write_seams(disk, layout, &seams).await?;
    }
    Ok(seams)
}

/// What stands.
///
/// # Errors
/// The file is damaged: it may be what keeps two histories apart.
pub async fn read_seams<D: Disk>(disk: &D, layout: &Layout) -> Result<Seams, StoreFault> {
    Ok(read_note(disk, &layout.seams(), Seams::decode).await?.unwrap_or_default())
}

async fn write_seams<D: Disk>(disk: &D, layout: &Layout, seams: &Seams) -> Result<(), StoreFault> {
    let path = layout.seams();
    replace_durably(disk, &path, seams.encode()).await.map_err(failed("write file", &path))
}

/// Step 3, or the rest of it. `names` is what is in `pg_wal`. Returns whether the control file has
/// changed.
pub(super) async fn carry_out_cut<D: Disk>(
    disk: &D,
    layout: &Layout,
    cluster: &Cluster,
    seam: Seam,
    names: &[String],
) -> Result<ControlChange, StoreFault> {
    let size = cluster.segment_size;
    let name = SegmentName { tli: seam.tli, no: seam.at.segment(size), size };
    let partial = layout.partial(name);
    let temporary = Layout::temporary(&partial);
    let is_built = names.iter().any(|other| temporary.ends_with(other));
    let is_inside = seam.at.segment_offset(size) > 0;
    let leaves = |other: &&String| match FileKind::of(other, size) {
        FileKind::Segment(other) | FileKind::Partial(other) => {
            other.tli == seam.tli
                && (other.no > name.no || other.no == name.no && (is_built || !is_inside))
        }
        _ => false,
    };
    let leaving: Vec<_> = names.iter().filter(leaves).cloned().collect();
    note_cut(disk, layout, cluster, seam, &leaving).await;
    let stays = |other: &String| match FileKind::of(other, size) {
        FileKind::Segment(other) => other.tli == seam.tli && other.no.next() == name.no,
        _ => false,
    };
    let change = match names.iter().any(stays) {
        true => limit_beginning(disk, layout, seam).await?,
        false => begin_at(disk, layout, name.no.start(size), seam).await?,
    };
    let folder = make_folder(disk, layout, seam).await?;
    for file in &leaving {
        let reason = format!("another history goes on from {seam}");
        move_aside(disk, &layout.wal().join(file), &folder.join(file), &reason).await?;
    }
    sync(disk, &folder).await?;
    sync(disk, layout.wal()).await?;
    if is_built {
        disk.rename(&temporary, &partial).await.map_err(failed("rename file", &temporary))?;
        sync(disk, layout.wal()).await?;
    }
    Ok(change)
}

/// Is the control file another one than before?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ControlChange {
    None,
    Start,
}

/// The note about the first bytes vouches for none that have left.
async fn limit_beginning<D: Disk>(
    disk: &D,
    layout: &Layout,
    seam: Seam,
) -> Result<ControlChange, StoreFault> {
    let begun = read_note(disk, &layout.begun(), BegunNote::decode).await?;
    let goes_past = |begun: &BegunNote| begun.tli == seam.tli && begun.upto > seam.at;
    if let Some(begun) = begun.filter(goes_past) {
        note_beginning(disk, layout, BegunNote { upto: seam.at, ..begun }).await?;
    }
    Ok(ControlChange::None)
}

/// No complete segment is left before the open one: our WAL of the timeline begins with the open one, although it began
/// earlier once and the segments before were removed since. The record that it may begin in the
/// middle of has no checksum here, so a note vouches for these bytes.
async fn begin_at<D: Disk>(
    disk: &D,
    layout: &Layout,
    start: Lsn,
    seam: Seam,
) -> Result<ControlChange, StoreFault> {
    let begun = BegunNote { tli: seam.tli, start, upto: seam.at };
    note_beginning(disk, layout, begun).await?;
    let path = layout.control();
    let control = read_note(disk, &path, ControlFile::decode).await?;
    let Some(ControlFile { instance, cluster: Some(cluster) }) = control else {
        return Ok(ControlChange::None);
    };
    if cluster.start >= start {
        return Ok(ControlChange::None);
    }
    let control = ControlFile { instance, cluster: Some(Cluster { start, ..cluster }) };
    let written = replace_durably(disk, &path, control.encode()).await;
    written.map_err(failed("write file", &path))?;
    Ok(ControlChange::Start)
}

async fn note_beginning<D: Disk>(
    disk: &D,
    layout: &Layout,
    begun: BegunNote,
) -> Result<(), StoreFault> {
    let path = layout.begun();
    let written = replace_durably(disk, &path, begun.encode()).await;
    written.map_err(failed("write file", &path))
}

async fn make_folder<D: Disk>(
    disk: &D,
    layout: &Layout,
    seam: Seam,
) -> Result<PathBuf, StoreFault> {
    let (root, folder) = (layout.all_diverged(), layout.diverged(seam.tli, seam.at));
    for dir in [&root, &folder] {
        match disk.mkdir(dir).await {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other.map_err(failed("create directory", dir))?,
        }
        sync(disk, parent(dir)).await?;
    }
    Ok(folder)
}

async fn sync<D: Disk>(disk: &D, dir: &Path) -> Result<(), StoreFault> {
    let synced = disk.sync_dir(dir).await;
    synced.map_err(|error| StoreFault::Sync { path: dir.to_owned(), error })
}

#[cfg(test)]
mod tests;
