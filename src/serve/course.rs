//! Takes over what an earlier run left in the directory about the upstream: the upstream that
//! `walhub ctl` set, its fence, the evidence of a difference, what was abandoned at switches, and where other
//! histories go on.

use crate::hub::course::{Course, Resumed};
use crate::store::abandoned::Abandoned;
use crate::store::course::{FenceNote, UpstreamNote};
use crate::store::evidence::Evidence;
use crate::store::fault::DAMAGED;
use crate::store::layout::Layout;
use crate::store::scrub::ScrubNote;
use crate::store::sealed_text::Unreadable;
use crate::store::seams::Seams;
use crate::wire::conninfo::ConninfoFault;
use crate::wire::secret::Secret;
use std::io;
use std::path::{Path, PathBuf};
use tracing::warn;

/// Why the hub does not start with what was left.
#[derive(Debug, thiserror::Error)]
pub enum CourseFault {
    /// A file cannot be read or removed.
    #[error("could not read or remove file \"{}\": {error}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// The operating system's error.
        error: io::Error,
    },
    /// A file is damaged. It may be a fence or evidence, so it is not skipped.
    #[error("file \"{}\" {fault}; {DAMAGED}", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        fault: Unreadable,
    },
    /// The upstream that was set is no longer usable.
    #[error("the upstream in file \"{}\": {fault}", path.display())]
    Conninfo {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        fault: ConninfoFault,
    },
}

/// Restores the course of the last run. `flag` is `--primary-conninfo`, `contents` gives a file of
/// the directory. An upstream that was set in place of another flag than today's remains in its
/// file until it is discarded.
///
/// # Errors
/// A file that cannot be read, or whose content cannot be used.
pub fn take_over(
    course: &Course,
    layout: &Layout,
    flag: Secret,
    contents: impl Fn(&Path) -> io::Result<Option<Vec<u8>>>,
) -> Result<Resumed, CourseFault> {
    let path = layout.auto();
    let upstream = read(&contents, &path, UpstreamNote::decode)?;
    let fence = read(&contents, &layout.fence(), FenceNote::decode)?;
    let evidence = read(&contents, &layout.evidence(), Evidence::decode)?;
    let seams = read(&contents, &layout.seams(), Seams::decode)?;
    course.set_seams(seams.unwrap_or_default());
    let abandoned = read(&contents, &layout.abandoned(), Abandoned::decode);
    // Nothing depends on it, and recovery has reported that it cannot be read.
    course.set_abandoned(abandoned.ok().flatten().unwrap_or_default());
    let resumed = course.resume(flag, upstream, fence, evidence);
    resumed.map_err(|fault| CourseFault::Conninfo { path, fault })
}

/// Whether [`take_over`] could use what was left. Until then a start has changed nothing.
///
/// # Errors
/// A file that cannot be read, or whose content cannot be used.
pub(super) fn check(
    layout: &Layout,
    contents: impl Fn(&Path) -> io::Result<Option<Vec<u8>>>,
) -> Result<(), CourseFault> {
    read(&contents, &layout.auto(), UpstreamNote::decode)?;
    read(&contents, &layout.fence(), FenceNote::decode)?;
    read(&contents, &layout.evidence(), Evidence::decode)?;
    read(&contents, &layout.seams(), Seams::decode)?;
    Ok(())
}

/// What the scrubs of earlier runs have found. Nothing depends on it, so a file that cannot be read
/// only has the next scrub find the same again.
pub(super) fn known_damage(
    layout: &Layout,
    contents: impl Fn(&Path) -> io::Result<Option<Vec<u8>>>,
) -> ScrubNote {
    let path = layout.scrub();
    let note = read(&contents, &path, ScrubNote::decode);
    let note = note.unwrap_or_else(|fault| {
        warn!("{fault}");
        None
    });
    note.unwrap_or_default()
}

/// Logs which upstream counts. One that was set in place of an older flag is removed.
pub(super) fn discard_older(
    course: &Course,
    layout: &Layout,
    resumed: Resumed,
) -> Result<(), CourseFault> {
    match resumed {
        Resumed::ByFlag => {}
        Resumed::AsSet => warn!(
            "following the upstream set by walhub ctl, not --primary-conninfo: \"{}\"",
            course.upstream().0.conninfo.shown()
        ),
        Resumed::FlagIsNewer => {
            warn!(
                "--primary-conninfo has changed since walhub ctl set an upstream: the upstream \
                 that was set is discarded"
            );
            let path = layout.auto();
            // Otherwise it would count again when the flag is changed back.
            std::fs::remove_file(&path).map_err(|error| CourseFault::Io { path, error })?;
        }
    }
    Ok(())
}

fn read<T>(
    contents: impl Fn(&Path) -> io::Result<Option<Vec<u8>>>,
    path: &Path,
    decode: impl FnOnce(&[u8]) -> Result<T, Unreadable>,
) -> Result<Option<T>, CourseFault> {
    match contents(path) {
        Ok(bytes) => match bytes.map(|bytes| decode(&bytes)).transpose() {
            Ok(note) => Ok(note),
            Err(fault) => Err(CourseFault::Unreadable { path: path.to_owned(), fault }),
        },
        Err(error) => Err(CourseFault::Io { path: path.to_owned(), error }),
    }
}
