//! From one timeline to the next: the steps that make the new one durable, in an order in which
//! a crash between any two of them does no harm.
//!
//! 1. The child's fork segment, if the switchpoint lies inside one: the parent's bytes
//!    before the switchpoint and zeros after it. If the parent's own bytes past the
//!    switchpoint stayed, a later start would find valid records of an abandoned branch.
//! 2. The control file: from here on the child is the timeline of this directory, and
//!    the parent ends at the switchpoint.
//! 3. The parent's files from the switchpoint on move out of `pg_wal`, or are removed when
//!    they contain nothing that the child lacks. A start repeats this, so that step 2 alone
//!    decides. It waits until the child's WAL has been found.
//!
//! The history file of the child is durable before all of this. Afterwards the directory is
//! examined as at a start ([`recover`](super::recover())): there is one way to find the end of
//! the WAL, not two.

use super::aside::{adds_nothing, holds_wal_past, move_aside, set_aside};
use super::control_file::{Cluster, ControlFile, Sealed};
use super::disk::Disk;
use super::durable::read_note;
use super::fault::{StoreFault, failed};
use super::layout::{FileKind, Layout};
use crate::store::durable::{read_full, replace_durably, write_full};
use crate::timeline;
use crate::wal::{Lsn, SegmentName, SegmentNo, SegmentSize, TimelineId};
use std::io;
use std::path::{Path, PathBuf};

/// Zeros are written in pieces of this many bytes.
const PIECE: u64 = 1 << 20;

/// A timeline ends here, and another continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switch {
    /// The timeline that ends.
    pub from: TimelineId,
    /// The one that follows.
    pub to: TimelineId,
    /// The switchpoint. Our WAL of `from` is durable up to here at least.
    pub at: Lsn,
}

impl Switch {
    /// The cluster's description after the switch.
    pub fn apply(&self, cluster: &Cluster) -> Cluster {
        let mut after = cluster.clone();
        after.sealed.push(Sealed { tli: self.from, start: cluster.start, end: self.at });
        after.timeline = self.to;
        after.start = self.at.segment_start(cluster.segment_size);
        after
    }
}

/// Steps 1 and 2. Returns the cluster's description as it is on disk now: when an earlier switch
/// away from the same timeline was decided but failed in step 3, that one stays.
///
/// # Errors
/// Fails when the directory is not on the timeline that ends.
pub async fn decide<D: Disk>(
    disk: &D,
    layout: &Layout,
    plan: Switch,
) -> Result<Cluster, StoreFault> {
    let path = layout.control();
    let Some((control, current)) = read_cluster(disk, layout).await? else {
        return Err(failed("read file", &path)(io::ErrorKind::NotFound.into()));
    };
    if current.sealed.last().is_some_and(|last| last.tli == plan.from) {
        return Ok(current);
    }
    if current.timeline != plan.from {
        let other = format!("it is on timeline {}, not {}", current.timeline, plan.from);
        return Err(failed("use file", &path)(io::Error::other(other)));
    }
    let after = plan.apply(&current);
    build_fork_segment(disk, layout, plan, after.segment_size).await?;
    let control = ControlFile { cluster: Some(after.clone()), ..control };
    let saved = replace_durably(disk, &path, control.encode()).await;
    saved.map_err(failed("write file", &path))?;
    Ok(after)
}

/// The control file as it is on disk, if it describes a cluster.
pub async fn read_cluster<D: Disk>(
    disk: &D,
    layout: &Layout,
) -> Result<Option<(ControlFile, Cluster)>, StoreFault> {
    let control = read_note(disk, &layout.control(), ControlFile::decode).await?;
    Ok(control.and_then(|control| control.cluster.clone().map(|cluster| (control, cluster))))
}

/// Step 1.
async fn build_fork_segment<D: Disk>(
    disk: &D,
    layout: &Layout,
    plan: Switch,
    size: SegmentSize,
) -> Result<(), StoreFault> {
    let len = plan.at.segment_offset(size);
    if len == 0 {
        return Ok(());
    }
    let no = plan.at.segment(size);
    let parent = SegmentName { tli: plan.from, no, size };
    let (path, file) = open_segment(disk, layout, parent).await?;
    let read = read_full(disk, &file, len as usize, 0).await;
    let prefix = read.map_err(failed("read file", &path))?;
    if (prefix.len() as u64) < len {
        return Err(failed("read file", &path)(io::ErrorKind::UnexpectedEof.into()));
    }
    let child = layout.partial(SegmentName { tli: plan.to, no, size });
    let built = build(disk, &child, prefix, size).await;
    built.map_err(failed("write file", &child))
}

/// Creates a file of a segment's size that begins with `prefix`. It gets its name only when it
/// is whole.
async fn build<D: Disk>(
    disk: &D,
    path: &Path,
    prefix: Vec<u8>,
    size: SegmentSize,
) -> io::Result<()> {
    let temporary = Layout::temporary(path);
    write_segment(disk, &temporary, prefix, size).await?;
    disk.rename(&temporary, path).await?;
    disk.sync_dir(super::disk::parent(path)).await
}

/// Writes a file of a segment's size that begins with `prefix`, and zeros past it. Its content is
/// durable then; its name is not.
pub(super) async fn write_segment<D: Disk>(
    disk: &D,
    path: &Path,
    prefix: Vec<u8>,
    size: SegmentSize,
) -> io::Result<()> {
    let file = disk.create(path).await?;
    let mut at = prefix.len() as u64;
    write_full(disk, &file, prefix, 0).await?;
    while at < size.bytes() {
        let len = (size.bytes() - at).min(PIECE);
        write_full(disk, &file, vec![0; len as usize], at).await?;
        at += len;
    }
    disk.sync_data(&file).await
}

/// Opens a segment's file under either of its names.
pub(super) async fn open_segment<D: Disk>(
    disk: &D,
    layout: &Layout,
    name: SegmentName,
) -> Result<(PathBuf, D::File), StoreFault> {
    let complete = layout.segment(name);
    match disk.open_read(&complete).await {
        Ok(file) => return Ok((complete, file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("open file", &complete)(error)),
    }
    let partial = layout.partial(name);
    let file = disk.open_read(&partial).await.map_err(failed("open file", &partial))?;
    Ok((partial, file))
}

/// Does a file leave `pg_wal` in step 3: does it lie at or past the switchpoint of a timeline that
/// has ended, or is it an open segment of a timeline that this directory is not on?
pub(super) fn leaves(name: &str, cluster: &Cluster) -> bool {
    match FileKind::of(name, cluster.segment_size) {
        FileKind::Segment(segment) => end_before(segment, cluster).is_some(),
        FileKind::Partial(segment) => {
            let is_known = |sealed: &Sealed| sealed.tli == segment.tli;
            end_before(segment, cluster).is_some()
                || segment.tli != cluster.timeline && !cluster.sealed.iter().any(is_known)
        }
        _ => false,
    }
}

/// The end of the segment's timeline, if the segment lies at or past it.
fn end_before(segment: SegmentName, cluster: &Cluster) -> Option<&Sealed> {
    let mut sealed = cluster.sealed.iter();
    sealed.find(|sealed| {
        sealed.tli == segment.tli && segment.no >= sealed.end.segment(cluster.segment_size)
    })
}

/// Step 3, for the files that [`leaves`] names. One is removed when it holds no WAL past the
/// switchpoint and another timeline's file has the WAL before it, or when it is the copy of a
/// switch that was begun but not decided. Any other is set aside.
pub(super) async fn clear_ended<D: Disk>(
    disk: &D,
    layout: &Layout,
    cluster: &Cluster,
    leaving: &[String],
) -> Result<(), StoreFault> {
    let size = cluster.segment_size;
    let dir = layout.wal();
    for name in leaving {
        let (segment, open) = match FileKind::of(name, size) {
            FileKind::Segment(segment) => (segment, false),
            FileKind::Partial(segment) => (segment, true),
            _ => continue,
        };
        let path = dir.join(name);
        let adds_nothing = match end_before(segment, cluster) {
            // A complete segment is WAL to its end, whatever its first page looks like.
            Some(sealed) => {
                open && !holds_wal_past(disk, &path, segment, sealed.end).await?
                    && is_inherited(disk, layout, cluster, segment, sealed).await?
            }
            None => {
                let own = SegmentName { tli: cluster.timeline, ..segment };
                is_begun_copy(disk, layout, &path, own).await?
            }
        };
        match end_before(segment, cluster) {
            _ if adds_nothing => {
                disk.unlink(&path).await.map_err(failed("remove file", &path))?;
            }
            Some(sealed) => move_past_end(disk, layout, sealed, &path, name).await?,
            None => set_aside(disk, &path, "the hub is not on its timeline").await?,
        }
    }
    if !leaving.is_empty() {
        let synced = disk.sync_dir(dir).await;
        synced.map_err(|error| StoreFault::Sync { path: dir.to_owned(), error })?;
    }
    Ok(())
}

/// Does another timeline's file begin with the segment's bytes before the end of its own?
async fn is_inherited<D: Disk>(
    disk: &D,
    layout: &Layout,
    cluster: &Cluster,
    segment: SegmentName,
    ended: &Sealed,
) -> Result<bool, StoreFault> {
    if segment.no.start(segment.size) >= ended.end {
        return Ok(true);
    }
    // Step 1 names such a file only when it is whole.
    for heir in heirs(cluster, segment.tli, segment.no) {
        match open_segment(disk, layout, SegmentName { tli: heir, ..segment }).await {
            Ok(_) => return Ok(true),
            Err(StoreFault::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => {}
            Err(fault) => return Err(fault),
        }
    }
    Ok(false)
}

/// Is the file at `path` what step 1 makes of our own segment: its bytes up to some position,
/// and zeros from there on?
async fn is_begun_copy<D: Disk>(
    disk: &D,
    layout: &Layout,
    path: &Path,
    own: SegmentName,
) -> Result<bool, StoreFault> {
    match open_segment(disk, layout, own).await {
        Ok((original, _)) => adds_nothing(disk, path, &original, own).await,
        Err(StoreFault::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(fault) => Err(fault),
    }
}

async fn move_past_end<D: Disk>(
    disk: &D,
    layout: &Layout,
    ended: &Sealed,
    path: &Path,
    name: &str,
) -> Result<(), StoreFault> {
    let root = layout.all_diverged();
    let folder = layout.diverged(ended.tli, ended.end);
    for dir in [&root, &folder] {
        match disk.mkdir(dir).await {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other.map_err(failed("create directory", dir))?,
        }
    }
    let reason = format!("timeline {} ended at {}", ended.tli, ended.end);
    move_aside(disk, path, &folder.join(name), &reason).await?;
    for dir in [folder.as_path(), root.as_path(), layout.root()] {
        let synced = disk.sync_dir(dir).await;
        synced.map_err(|error| StoreFault::Sync { path: dir.to_owned(), error })?;
    }
    Ok(())
}

/// Where a position of an earlier timeline can be read once its own file is gone: the files of
/// the timelines that continued from there, nearest first.
pub fn heirs(cluster: &Cluster, tli: TimelineId, no: SegmentNo) -> Vec<TimelineId> {
    let forks: Vec<_> = cluster.sealed.iter().map(|sealed| (sealed.tli, sealed.end)).collect();
    timeline::heirs(&forks, cluster.timeline, tli, (no, cluster.segment_size))
}
