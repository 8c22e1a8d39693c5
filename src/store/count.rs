//! Counts what is abandoned at a switch, before the files that hold it leave `pg_wal`.

use super::abandoned::{Abandoned, AbandonedWal, Content};
use super::control_file::{Cluster, Sealed};
use super::disk::Disk;
use super::durable::{read_note, replace_durably};
use super::fault::{StoreFault, failed};
use super::histories::read_fork;
use super::layout::{FileKind, Layout};
use super::seams::Seam;
use super::tail::walk_file;
use crate::wal::page::PageRules;
use crate::wal::{Lsn, SegmentName, SegmentNo, Tally, TimelineId, WalkFault, Walker};
use crate::wire::date::date_millis;
use crate::wire::time::PgTime;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::SystemTime;

/// Counts what the files in `leaving` hold past the switchpoints of their timelines, and writes it
/// down. Returns all that is not confirmed. What was written down before is not counted again: some
/// of its files may have gone since.
///
/// A failure stands in the log, and keeps the hub from nothing: the switch is decided.
pub(super) async fn note_abandoned<D: Disk>(
    disk: &D,
    layout: &Layout,
    cluster: &Cluster,
    leaving: &[String],
) -> Abandoned {
    let path = layout.abandoned();
    let known = read_note(disk, &path, Abandoned::decode).await;
    let known = known.unwrap_or_else(|fault| {
        tracing::error!("it is not known what was abandoned before: {fault}");
        None
    });
    let mut all = known.unwrap_or_default();
    let before = all.clone();
    for (n, ended) in cluster.sealed.iter().enumerate() {
        let files = files_past(layout, cluster, ended, leaving);
        if files.is_empty() || all.has(ended.tli, ended.end) {
            continue;
        }
        let next = cluster.sealed.get(n + 1).map_or(cluster.timeline, |next| next.tli);
        let counted = count(disk, layout, cluster, ended, &files).await;
        let (to, content) = match counted {
            Ok((to, content)) => (to, Some(content)),
            Err(why) => {
                tracing::error!("what is abandoned of timeline {} is unknown: {why}", ended.tli);
                (ended.end, None)
            }
        };
        // Part of a record is nothing.
        if content.is_some_and(|content| content.records == 0) {
            continue;
        }
        let (tli, from, since) = (ended.tli, ended.end, SystemTime::now());
        let entry = AbandonedWal { tli, from, to, next, content, since, holders: None };
        tell(&entry, layout);
        if let Some(lost) = all.add(entry) {
            tracing::error!(
                "too much was abandoned and not confirmed: the oldest of it is no longer kept: {lost}"
            );
        }
    }
    if all != before
        && let Err(error) = replace_durably(disk, &path, all.encode()).await
    {
        let fault = failed("write file", &path)(error);
        tracing::error!("after a restart it is not known what was abandoned: {fault}");
    }
    all
}

/// The same for what leaves at a seam, where the timeline goes on with another history, or the hub
/// with another timeline.
pub(super) async fn note_cut<D: Disk>(
    disk: &D,
    layout: &Layout,
    cluster: &Cluster,
    (seam, next): (Seam, TimelineId),
    leaving: &[String],
) {
    let own = Sealed { tli: seam.tli, start: cluster.start, end: seam.at };
    let cut = Cluster { sealed: vec![own], timeline: next, ..cluster.clone() };
    note_abandoned(disk, layout, &cut, leaving).await;
}

fn tell(entry: &AbandonedWal, layout: &Layout) {
    let aside = layout.diverged(entry.tli, entry.from);
    let aside = aside.display();
    match (entry.has_commits(), entry.content.and_then(|content| content.commit_times)) {
        (true, Some((first, last))) => tracing::error!(
            "{entry}, from {} to {}; the WAL is kept in \"{aside}\", and `walhub ctl confirm abandoned \
             {}` says that this is known",
            shown(first),
            shown(last),
            entry.from
        ),
        (true, None) => tracing::error!(
            "{entry}; the WAL is kept in \"{aside}\", and `walhub ctl confirm abandoned {}` says that \
             this is known",
            entry.from
        ),
        (false, _) => tracing::warn!("{entry}; the WAL is kept in \"{aside}\""),
    }
}

fn shown(time: PgTime) -> String {
    date_millis(time.into())
}

/// The leaving files of a timeline from the segment of its switchpoint on.
fn files_past(
    layout: &Layout,
    cluster: &Cluster,
    ended: &Sealed,
    leaving: &[String],
) -> BTreeMap<SegmentNo, PathBuf> {
    let size = cluster.segment_size;
    let mut files = BTreeMap::new();
    for name in leaving {
        let path = layout.wal().join(name);
        match FileKind::of(name, size) {
            FileKind::Segment(segment) if segment.tli == ended.tli => {
                files.insert(segment.no, path);
            }
            // A complete one of that number counts.
            FileKind::Partial(segment) if segment.tli == ended.tli => {
                files.entry(segment.no).or_insert(path);
            }
            _ => {}
        }
    }
    files
}

/// Why abandoned WAL is not counted.
#[derive(Debug, thiserror::Error)]
enum Uncounted {
    /// A file cannot be read.
    #[error(transparent)]
    Unread(#[from] StoreFault),
    /// What precedes the switchpoint on its page is damaged.
    #[error("the WAL before {end} is damaged: {fault}")]
    Before { end: Lsn, fault: WalkFault },
}

/// What the files hold past the switchpoint: the end of the last whole record, and what lies
/// between.
async fn count<D: Disk>(
    disk: &D,
    layout: &Layout,
    cluster: &Cluster,
    ended: &Sealed,
    files: &BTreeMap<SegmentNo, PathBuf>,
) -> Result<(Lsn, Content), Uncounted> {
    let size = cluster.segment_size;
    let rules = PageRules {
        system: cluster.system_id,
        size,
        tli: ended.tli,
        magic: None,
        fork: read_fork(disk, layout, ended.tli).await?,
    };
    let mut walker = Walker::new(rules.clone(), ended.end.page_start());
    let (mut end, mut sum) = (ended.end, Tally::default());
    for (no, path) in files {
        let name = SegmentName { tli: ended.tli, no: *no, size };
        if walker.position().segment(size) != *no {
            // Files between have gone.
            walker = Walker::new(rules.clone(), no.start(size));
        }
        if walker.position() < ended.end {
            let fault = walk_file(disk, &mut walker, path, name, ended.end).await?;
            fault.map_or(Ok(()), |fault| Err(Uncounted::Before { end: ended.end, fault }))?;
            walker.take_tally();
        }
        let fault = walk_file(disk, &mut walker, path, name, Lsn::MAX).await?;
        let tally = walker.take_tally();
        if tally.records > 0 {
            end = end.max(walker.record_end());
        }
        sum = sum.and(tally);
        if fault.is_some() {
            break;
        }
    }
    let times = sum.commit_times;
    let content = Content {
        records: sum.records,
        commits: sum.commits,
        commit_times: times.map(|(first, last)| (PgTime::new(first), PgTime::new(last))),
    };
    Ok((end, content))
}

#[cfg(test)]
mod tests;
