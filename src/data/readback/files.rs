//! The segment files that a core reads for standbys that catch up.

use crate::archive::prove::Unproved;
use crate::keeper::{CoreClient, Job};
use crate::ring::Fd;
use crate::wal::{SegmentNo, TimelineId};
use std::collections::BTreeMap;

/// The most files that a core has open. Standbys that catch up must not use up the descriptors that
/// WAL is written through.
pub const MAX_OPEN: usize = 256;

/// Open segment files of a core. The keeper opens them. A file that was not used between two sweeps
/// is closed, so that a removed segment frees its space. The least recently used one is closed when
/// there are too many.
#[derive(Debug, Default)]
pub struct Files {
    open: BTreeMap<(TimelineId, SegmentNo), Entry>,
    /// How often a file was asked for.
    uses: u64,
    /// `uses` at the last sweep.
    swept: u64,
}

#[derive(Debug)]
struct Entry {
    state: FileState,
    /// The number of its last use.
    used: u64,
}

/// Where a segment's file is.
#[derive(Debug)]
pub enum FileAnswer {
    /// Open. From the position on, if there is one, its WAL is not proved and not read.
    Open(Fd, Option<Unproved>),
    /// The keeper is opening it and will say so.
    Coming,
    /// Too many files or jobs at present: ask again.
    Busy,
}

#[derive(Debug)]
enum FileState {
    Asked,
    Open(Fd, Option<Unproved>),
}

impl Files {
    /// The file of a segment. When it is not open, the keeper is asked for it.
    pub fn file(&mut self, tli: TimelineId, no: SegmentNo, keeper: &CoreClient) -> FileAnswer {
        self.uses += 1;
        if let Some(entry) = self.open.get_mut(&(tli, no)) {
            entry.used = self.uses;
            return match &entry.state {
                FileState::Open(fd, unproved) => FileAnswer::Open(Fd::clone(fd), unproved.clone()),
                FileState::Asked => FileAnswer::Coming,
            };
        }
        if !self.has_room() || keeper.post(Job::Open { tli, no }).is_err() {
            return FileAnswer::Busy;
        }
        self.open.insert((tli, no), Entry { state: FileState::Asked, used: self.uses });
        FileAnswer::Coming
    }

    /// Is there room for one more? Closes one if necessary and possible.
    fn has_room(&mut self) -> bool {
        if self.open.len() < MAX_OPEN {
            return true;
        }
        let open = self.open.iter().filter(|(_, entry)| matches!(entry.state, FileState::Open(..)));
        let Some((&least, _)) = open.min_by_key(|(_, entry)| entry.used) else { return false };
        self.open.remove(&least).is_some()
    }

    /// The keeper opened a file, of which perhaps not all may be read.
    pub fn opened(&mut self, tli: TimelineId, no: SegmentNo, fd: Fd, unproved: Option<Unproved>) {
        let entry = Entry { state: FileState::Open(fd, unproved), used: self.uses };
        self.open.insert((tli, no), entry);
    }

    /// The keeper could not open a file, or one that is proved in part is to be asked for again.
    pub fn forget(&mut self, tli: TimelineId, no: SegmentNo) {
        self.open.remove(&(tli, no));
    }

    /// Closes all of them: a segment has another file now.
    pub fn close(&mut self) {
        self.open.retain(|_, entry| matches!(entry.state, FileState::Asked));
    }

    /// Closes the files not used since the last sweep.
    pub fn sweep(&mut self) {
        let swept = std::mem::replace(&mut self.swept, self.uses);
        self.open.retain(|_, entry| matches!(entry.state, FileState::Asked) || entry.used > swept);
    }
}

#[cfg(all(test, not(walhub_loom)))]
mod tests {
    use super::*;
    use crate::keeper::{AnswerInbox, JobDone, Order, queue};
    use std::fs::File;
    use std::sync::Arc;

    const TLI: TimelineId = TimelineId::FIRST;

    /// The test answers itself.
    struct Nowhere;

    impl AnswerInbox for Nowhere {
        fn answer(&self, _: JobDone) {}
    }

    fn ask(files: &mut Files, no: u64, keeper: &CoreClient) -> FileAnswer {
        files.file(TLI, SegmentNo::new(no), keeper)
    }

    fn is_open(files: &mut Files, no: u64, keeper: &CoreClient) -> bool {
        matches!(ask(files, no, keeper), FileAnswer::Open(..))
    }

    #[test]
    fn no_more_files_are_open_than_may_be() {
        let (keeper, mut asked) = queue(MAX_OPEN + 1);
        let keeper = keeper.for_core(Arc::new(Nowhere));
        let mut files = Files::default();
        let most = MAX_OPEN as u64;
        for no in 0..most {
            assert!(matches!(ask(&mut files, no, &keeper), FileAnswer::Coming));
        }
        assert!(matches!(ask(&mut files, most, &keeper), FileAnswer::Busy), "all are awaited");
        while let Some(Order { job: Job::Open { tli, no }, .. }) = asked.take() {
            files.opened(tli, no, Arc::new(File::open("/dev/null").unwrap().into()), None);
        }
        assert!(is_open(&mut files, 0, &keeper));
        assert!(matches!(ask(&mut files, most, &keeper), FileAnswer::Coming), "1 is closed for it");
        assert_eq!(files.open.len(), MAX_OPEN);
        assert!(is_open(&mut files, 0, &keeper) && is_open(&mut files, 2, &keeper));
        assert!(matches!(ask(&mut files, 1, &keeper), FileAnswer::Coming));
    }

    #[test]
    fn a_sweep_closes_what_was_not_used_since_the_last_one() {
        let (keeper, _asked) = queue(2);
        let keeper = keeper.for_core(Arc::new(Nowhere));
        let mut files = Files::default();
        for no in [0, 1] {
            ask(&mut files, no, &keeper);
            let file = Arc::new(File::open("/dev/null").unwrap().into());
            files.opened(TLI, SegmentNo::new(no), file, None);
        }
        files.sweep();
        assert!(is_open(&mut files, 1, &keeper));
        files.sweep();
        assert!(files.open.contains_key(&(TLI, SegmentNo::new(1))));
        assert!(!files.open.contains_key(&(TLI, SegmentNo::new(0))));
    }
}
