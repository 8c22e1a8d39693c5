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
//!    decides.
//!
//! The history file of the child is durable before all of this. Afterwards the directory is
//! examined as at a start ([`recover`](super::recover())): there is one way to find the end of
//! the WAL, not two.

use super::control_file::{Cluster, ControlFile, Sealed};
use super::disk::Disk;
use super::durable::read_note;
use super::fault::{StoreFault, failed};
use super::layout::{FileKind, Layout};
use crate::store::durable::{read_full, replace_durably, write_full};
use crate::wal::page::{PAGE_SIZE, PageHeader};
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
    let file = disk.create(&temporary).await?;
    let mut at = prefix.len() as u64;
    write_full(disk, &file, prefix, 0).await?;
    while at < size.bytes() {
        let len = (size.bytes() - at).min(PIECE);
        write_full(disk, &file, vec![0; len as usize], at).await?;
        at += len;
    }
    disk.sync_data(&file).await?;
    drop(file);
    disk.rename(&temporary, path).await?;
    disk.sync_dir(super::disk::parent(path)).await
}

/// Opens a segment's file under either of its names.
async fn open_segment<D: Disk>(
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

/// Step 3, for every timeline that has ended: what lies at or past its switchpoint leaves
/// `pg_wal`. So does an open segment of a timeline that this directory is not on. It is removed
/// when it is the copy of a switch that was begun but not decided, and set aside when it holds
/// anything else.
pub async fn clear_ended<D: Disk>(
    disk: &D,
    layout: &Layout,
    cluster: &Cluster,
) -> Result<(), StoreFault> {
    let size = cluster.segment_size;
    let dir = layout.wal();
    let names = disk.list(dir).await.map_err(failed("list directory", dir))?;
    let mut changed = false;
    for name in names {
        let (segment, open) = match FileKind::of(&name, size) {
            FileKind::Segment(segment) => (segment, false),
            FileKind::Partial(segment) => (segment, true),
            _ => continue,
        };
        let path = dir.join(&name);
        let ended = cluster.sealed.iter().find(|sealed| sealed.tli == segment.tli);
        match ended {
            Some(sealed) if segment.no >= sealed.end.segment(size) => {
                // A complete segment is WAL to its end, whatever its first page looks like.
                if !open || holds_wal_behind(disk, &path, segment, sealed.end).await? {
                    move_aside(disk, layout, sealed, &path, &name).await?;
                } else {
                    disk.unlink(&path).await.map_err(failed("remove file", &path))?;
                }
                changed = true;
            }
            None if open && segment.tli != cluster.timeline => {
                let own = SegmentName { tli: cluster.timeline, ..segment };
                if is_begun_copy(disk, layout, &path, own).await? {
                    disk.unlink(&path).await.map_err(failed("remove file", &path))?;
                } else {
                    let aside = Layout::stray(&path);
                    disk.rename(&path, &aside).await.map_err(failed("rename file", &path))?;
                }
                changed = true;
            }
            _ => {}
        }
    }
    if changed {
        let synced = disk.sync_dir(dir).await;
        synced.map_err(|error| StoreFault::Sync { path: dir.to_owned(), error })?;
    }
    Ok(())
}

/// Is the file at `path` what step 1 makes of our own segment: its bytes up to some position,
/// and zeros from there on?
async fn is_begun_copy<D: Disk>(
    disk: &D,
    layout: &Layout,
    path: &Path,
    own: SegmentName,
) -> Result<bool, StoreFault> {
    let copy = disk.open_read(path).await.map_err(failed("open file", path))?;
    let (own_path, original) = match open_segment(disk, layout, own).await {
        Ok(opened) => opened,
        Err(StoreFault::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(false);
        }
        Err(fault) => return Err(fault),
    };
    let mut at = 0;
    while at < own.size.bytes() {
        let copied = read_full(disk, &copy, PIECE as usize, at).await;
        let copied = copied.map_err(failed("read file", path))?;
        let ours = read_full(disk, &original, PIECE as usize, at).await;
        let ours = ours.map_err(failed("read file", &own_path))?;
        let same = copied.iter().zip(&ours).take_while(|(copied, ours)| copied == ours).count();
        if copied.iter().skip(same).any(|byte| *byte != 0) {
            return Ok(false);
        }
        at += PIECE;
    }
    Ok(true)
}

/// Does a file of an ended timeline hold WAL at or past the switchpoint `end`?
async fn holds_wal_behind<D: Disk>(
    disk: &D,
    path: &Path,
    name: SegmentName,
    end: Lsn,
) -> Result<bool, StoreFault> {
    let at = end.max(name.no.start(name.size));
    if at >= name.no.end(name.size) {
        return Ok(false);
    }
    let file = disk.open_read(path).await.map_err(failed("open file", path))?;
    let len = PAGE_SIZE.saturating_sub(at.page_offset());
    let read = read_full(disk, &file, len, at.segment_offset(name.size)).await;
    let bytes = read.map_err(failed("read file", path))?;
    if at.page_offset() > 0 {
        // Past the end of what was received, a page is zero.
        return Ok(bytes.iter().any(|byte| *byte != 0));
    }
    Ok(PageHeader::parse(&bytes).is_ok_and(|header| header.addr == at))
}

async fn move_aside<D: Disk>(
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
    disk.rename(path, &folder.join(name)).await.map_err(failed("rename file", path))?;
    for dir in [folder.as_path(), root.as_path(), layout.root()] {
        let synced = disk.sync_dir(dir).await;
        synced.map_err(|error| StoreFault::Sync { path: dir.to_owned(), error })?;
    }
    Ok(())
}

/// Where a position of an earlier timeline can be read once its own file is gone: the files of
/// the timelines that continued from there, nearest first.
pub fn heirs(
    cluster: &Cluster,
    tli: TimelineId,
    no: SegmentNo,
) -> impl Iterator<Item = TimelineId> {
    let size = cluster.segment_size;
    let from = cluster.sealed.iter().position(|sealed| sealed.tli == tli);
    let later = from.map_or(&[][..], |from| cluster.sealed.get(from..).unwrap_or_default());
    let names = cluster.sealed.iter().map(|sealed| sealed.tli).chain([cluster.timeline]);
    let children = names.skip(from.map_or(usize::MAX, |from| from + 1));
    // As long as each timeline ended inside this segment, its child begins with the same bytes.
    let inside =
        |sealed: &&Sealed| sealed.end.segment(size) == no && sealed.end.segment_offset(size) > 0;
    later
        .iter()
        .take_while(inside)
        .zip(children)
        .map(|(_, child)| child)
        .collect::<Vec<_>>()
        .into_iter()
}
