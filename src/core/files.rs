//! The segment files that a core reads for standbys that catch up.

use crate::keeper::{Job, KeeperHandle};
use crate::ring::Fd;
use crate::wal::{SegmentNo, TimelineId};
use std::collections::BTreeMap;

/// Open segment files of one core. The keeper opens them; a file that nobody used
/// between two sweeps is given back, so that a removed segment frees its space.
#[derive(Debug)]
pub struct Files {
    core: usize,
    open: BTreeMap<(TimelineId, SegmentNo), Entry>,
}

#[derive(Debug)]
struct Entry {
    state: FileState,
    used: bool,
}

/// Where a segment's file is.
#[derive(Debug)]
pub enum FileAnswer {
    /// Here.
    Open(Fd),
    /// The keeper is opening it and will say so.
    Coming,
    /// The keeper's queue is full: ask again.
    Busy,
}

#[derive(Debug)]
enum FileState {
    Asked,
    Open(Fd),
}

impl Files {
    /// No files yet, for the core with this number.
    pub const fn new(core: usize) -> Self {
        Self { core, open: BTreeMap::new() }
    }

    /// The file of a segment; the keeper is asked for it when it is not open.
    pub fn file(&mut self, tli: TimelineId, no: SegmentNo, keeper: &KeeperHandle) -> FileAnswer {
        if let Some(entry) = self.open.get_mut(&(tli, no)) {
            entry.used = true;
            return match &entry.state {
                FileState::Open(fd) => FileAnswer::Open(Fd::clone(fd)),
                FileState::Asked => FileAnswer::Coming,
            };
        }
        if keeper.post(Job::Open { tli, no, for_core: self.core }).is_err() {
            return FileAnswer::Busy;
        }
        self.open.insert((tli, no), Entry { state: FileState::Asked, used: true });
        FileAnswer::Coming
    }

    /// The keeper opened a file, or could not.
    pub fn opened(&mut self, tli: TimelineId, no: SegmentNo, fd: Option<Fd>) {
        match fd {
            Some(fd) => {
                self.open.insert((tli, no), Entry { state: FileState::Open(fd), used: true });
            }
            None => {
                self.open.remove(&(tli, no));
            }
        }
    }

    /// Closes what nobody used since the last sweep.
    pub fn sweep(&mut self) {
        self.open.retain(|_, entry| {
            matches!(entry.state, FileState::Asked) || std::mem::replace(&mut entry.used, false)
        });
    }
}
