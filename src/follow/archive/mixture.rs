//! An archive to which several servers write is a mixture. A command that keeps a file which is there
//! already, as the usual ones do, leaves ours beside another history's of the same numbers. So what
//! the archive has of our WAL proves nothing of the file after it.

use crate::follow::environment::Environment;
use crate::follow::{LOG, Task};
use crate::hub::Hub;
use crate::store::evidence::WalSource;
use crate::wal::{Lsn, TimelineId};

/// Why the archive may hold another history's files under the names of ours.
pub(super) struct Mixture {
    /// From there on.
    at: Lsn,
    why: String,
}

impl Mixture {
    /// May the archive's files of our timeline `tli` be another history's? So they may while a server has
    /// other WAL on it, whether that bars all sources or this server alone; and while a seam stands,
    /// past which ours was given up. A difference that was found in the archive itself is compared there.
    fn of(hub: &Hub, tli: TimelineId) -> Option<Self> {
        let (evidence, archive) = (hub.course.evidence(), WalSource::archive());
        let mut foreign = evidence.iter().filter(|difference| !difference.is_of(&archive));
        if let Some(found) = foreign.find(|found| found.tli == tli || !found.cleared) {
            let why = format!(
                "{} had other WAL than this hub at {}, and may have archived it",
                found.source.name, found.at
            );
            return Some(Self { at: found.at, why });
        }
        let seams = hub.course.seams();
        let seam = seams.iter().find(|seam| seam.tli == tli)?;
        let why = format!(
            "this hub's former WAL past {seam} may be in it: walhub ctl confirm seam, when it is not"
        );
        Some(Self { at: seam.at, why })
    }
}

impl<E: Environment> Task<E> {
    /// Is the archive neither a witness of our WAL nor a source of what follows? Says why, once.
    pub(super) fn is_mixed(&mut self, tli: TimelineId) -> bool {
        let Some(Mixture { at, why }) = Mixture::of(&self.parts.hub, tli) else { return false };
        if self.told.mixed.replace(at) != Some(at) {
            tracing::warn!(
                target: LOG,
                "the archive shows nothing, and nothing past this hub's end is taken from it: {why}"
            );
        }
        true
    }
}
