//! The files that wait for the archive: the keeper adds them, the archiver takes them in order,
//! and retention keeps the files listed here.

use crate::store::layout::ArchiveFile;
use crate::wal::{SegmentName, SegmentNo, SegmentSize, TimelineId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// A backlog of this many files is reported, and again each time it doubles.
const WORTH_A_WORD: usize = 16;

/// The files that wait for the archive, and how archiving is going. Empty when nothing is to be
/// archived.
#[derive(Debug, Default)]
pub struct Backlog {
    inner: Mutex<Inner>,
    news: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    size: Option<SegmentSize>,
    waiting: BTreeSet<ArchiveFile>,
    /// Which of all files that were ever added each is: another one may come under the same name.
    serials: BTreeMap<ArchiveFile, u64>,
    /// What waited at the start: a command left over from the previous run may still read it.
    left_over: BTreeSet<ArchiveFile>,
    /// Grows with every file that is added.
    added: u64,
    /// How many waited at the last report; zero when all is well.
    said: usize,
    stopped: Option<Instant>,
    archived: Tally,
    failed: Tally,
}

#[derive(Debug, Default)]
struct Tally {
    count: u64,
    last: Option<Attempt>,
}

impl Tally {
    fn note(&mut self, file: ArchiveFile, at: SystemTime) {
        self.count += 1;
        self.last = Some(Attempt { file, at });
    }
}

/// An attempt to archive a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt {
    /// The file.
    pub file: ArchiveFile,
    /// When it ended.
    pub at: SystemTime,
}

/// How archiving is going: what `pg_stat_archiver` shows, and the backlog. Counted since the
/// start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArchiveStatus {
    /// Files that were archived.
    pub archived_count: u64,
    /// The last file archived.
    pub last_archived: Option<Attempt>,
    /// Attempts that failed.
    pub failed_count: u64,
    /// The last failure.
    pub last_failed: Option<Attempt>,
    /// Segments that wait.
    pub waiting_segments: usize,
    /// History files that wait.
    pub waiting_histories: usize,
    /// The next file to archive.
    pub next: Option<ArchiveFile>,
}

/// Why a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Woken {
    /// There are files that were not there before.
    News,
    /// Nothing came.
    TimeIsUp,
    /// The hub is shutting down.
    Stopped,
}

impl Backlog {
    /// Sets the segment size, once the cluster is known.
    pub fn use_size(&self, size: SegmentSize) {
        self.lock().size = Some(size);
    }

    /// The size of the cluster's segments, once it is known.
    pub fn size(&self) -> Option<SegmentSize> {
        self.lock().size
    }

    /// Sets what waits at the start, which the caller has reported.
    pub fn load(&self, waiting: BTreeSet<ArchiveFile>) {
        let mut inner = self.lock();
        inner.left_over = waiting.clone();
        inner.said = waiting.len();
        drop(inner);
        self.replace(waiting);
    }

    /// Replaces what waits by the result of a new listing.
    pub fn replace(&self, waiting: BTreeSet<ArchiveFile>) {
        let mut inner = self.lock();
        inner.added += 1;
        let (added, known) = (inner.added, std::mem::take(&mut inner.serials));
        let serial = |file: &ArchiveFile| (*file, known.get(file).copied().unwrap_or(added));
        inner.serials = waiting.iter().map(serial).collect();
        inner.waiting = waiting;
        self.news.notify_all();
    }

    /// Adds a file that waits. Returns how many wait when that is worth reporting.
    pub fn add(&self, file: ArchiveFile) -> Option<usize> {
        let mut inner = self.lock();
        inner.added += 1;
        if inner.waiting.insert(file) {
            let added = inner.added;
            inner.serials.insert(file, added);
        }
        self.news.notify_all();
        let waiting = inner.waiting.len();
        let worth = waiting >= WORTH_A_WORD.max(inner.said.saturating_mul(2));
        worth.then(|| {
            inner.said = waiting;
            waiting
        })
    }

    /// A file was archived. Returns whether it was the last one of a backlog that was reported.
    pub fn archived(&self, file: ArchiveFile, at: SystemTime) -> bool {
        let mut inner = self.lock();
        inner.archived.note(file, at);
        inner.waiting.remove(&file);
        inner.serials.remove(&file);
        inner.waiting.is_empty() && std::mem::take(&mut inner.said) > 0
    }

    /// An attempt to archive failed.
    pub fn failed(&self, file: ArchiveFile, at: SystemTime) {
        self.lock().failed.note(file, at);
    }

    /// A file need not be archived any more.
    pub fn forget(&self, file: ArchiveFile) {
        let mut inner = self.lock();
        inner.waiting.remove(&file);
        inner.serials.remove(&file);
    }

    /// Which file it is that waits under this name; `None` when none does. Another one, which came
    /// after that one had left, has another number.
    pub fn serial(&self, file: ArchiveFile) -> Option<u64> {
        self.lock().serials.get(&file).copied()
    }

    /// Does the file wait?
    pub fn waits(&self, file: ArchiveFile) -> bool {
        self.lock().waiting.contains(&file)
    }

    /// The file whose turn it is.
    pub fn next(&self) -> Option<ArchiveFile> {
        self.lock().waiting.first().copied()
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Does nothing wait?
    pub fn is_empty(&self) -> bool {
        self.lock().waiting.is_empty()
    }

    /// The segment with the lowest position of those that wait, on any timeline.
    pub fn oldest_segment(&self) -> Option<SegmentNo> {
        let inner = self.lock();
        let mut oldest: Option<SegmentNo> = None;
        let mut from = inner.first_segment_of(TimelineId::FIRST);
        while let Some(SegmentName { tli, no, .. }) = from {
            oldest = Some(oldest.map_or(no, |oldest| oldest.min(no)));
            let later = tli.raw().checked_add(1).and_then(TimelineId::new);
            from = later.and_then(|tli| inner.first_segment_of(tli));
        }
        oldest
    }

    /// Might a command from the previous run still read the file? A command that was killed with
    /// the hub was not waited for.
    pub fn may_be_read(&self, file: ArchiveFile) -> bool {
        self.lock().left_over.contains(&file)
    }

    /// The current count of added files, to pass to [`wait`](Self::wait).
    pub fn known(&self) -> u64 {
        self.lock().added
    }

    /// Waits for at most `limit`. When `known` is given, also returns as soon as files beyond it
    /// were added.
    pub fn wait(&self, known: Option<u64>, limit: Duration) -> Woken {
        let until = Instant::now() + limit;
        let mut inner = self.lock();
        loop {
            if inner.stopped.is_some() {
                return Woken::Stopped;
            }
            if known.is_some_and(|known| known != inner.added) {
                return Woken::News;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Woken::TimeIsUp;
            }
            let waited = self.news.wait_timeout(inner, left);
            inner = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The hub is shutting down: no more files are archived. Returns when this was first called.
    pub fn stop(&self) -> Instant {
        let stopped = *self.lock().stopped.get_or_insert_with(Instant::now);
        self.news.notify_all();
        stopped
    }

    /// Has [`stop`](Self::stop) been called?
    pub fn is_stopped(&self) -> bool {
        self.lock().stopped.is_some()
    }

    /// How archiving is going.
    pub fn status(&self) -> ArchiveStatus {
        let inner = self.lock();
        let histories =
            inner.waiting.iter().take_while(|file| matches!(file, ArchiveFile::History(_))).count();
        ArchiveStatus {
            archived_count: inner.archived.count,
            last_archived: inner.archived.last,
            failed_count: inner.failed.count,
            last_failed: inner.failed.last,
            waiting_segments: inner.waiting.len() - histories,
            waiting_histories: histories,
            next: inner.waiting.first().copied(),
        }
    }

    // A panic ends the process (`panic = "abort"`); only tests can poison the lock.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// The first segment of this timeline or a later one.
    fn first_segment_of(&self, tli: TimelineId) -> Option<SegmentName> {
        let least = SegmentName { tli, no: SegmentNo::new(0), size: self.size? };
        match self.waiting.range(ArchiveFile::Segment(least)..).next() {
            Some(ArchiveFile::Segment(name)) => Some(*name),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;

    fn segment(tli: u32, no: u64) -> ArchiveFile {
        let size = SegmentSize::new(1 << 20).unwrap();
        let tli = TimelineId::new(tli).unwrap();
        ArchiveFile::Segment(SegmentName { tli, no: SegmentNo::new(no), size })
    }

    fn backlog() -> Backlog {
        let backlog = Backlog::default();
        backlog.use_size(SegmentSize::new(1 << 20).unwrap());
        backlog
    }

    #[test]
    fn histories_go_first_and_segments_in_order() {
        let backlog = backlog();
        let history = ArchiveFile::History(TimelineId::new(2).unwrap());
        for file in [segment(2, 7), segment(1, 9), segment(1, 8), history] {
            backlog.add(file);
        }
        let status = backlog.status();
        assert_eq!(
            (status.waiting_histories, status.waiting_segments, status.next),
            (1, 3, Some(history))
        );
        let mut order = Vec::new();
        while let Some(file) = backlog.next() {
            backlog.archived(file, SystemTime::UNIX_EPOCH);
            order.push(file);
        }
        assert_eq!(order, [history, segment(1, 8), segment(1, 9), segment(2, 7)]);
        let status = backlog.status();
        assert_eq!((status.archived_count, status.waiting_segments), (4, 0));
        assert_eq!(status.last_archived.map(|last| last.file), Some(segment(2, 7)));
    }

    #[test]
    fn a_growing_backlog_is_worth_a_word_now_and_then() {
        let backlog = backlog();
        let words: Vec<_> = (0..70).filter_map(|no| backlog.add(segment(1, no))).collect();
        assert_eq!(words, [16, 32, 64]);
        let at = SystemTime::UNIX_EPOCH;
        let over: Vec<_> = (0..70).filter(|no| backlog.archived(segment(1, *no), at)).collect();
        assert_eq!(over, [69]);
        backlog.add(segment(1, 70));
        assert!(!backlog.archived(segment(1, 70), at), "nothing was said");
    }

    #[test]
    fn waiting_ends_with_news_with_time_and_with_the_hub() {
        let backlog = Arc::new(backlog());
        let known = backlog.known();
        assert_eq!(backlog.wait(Some(known), Duration::ZERO), Woken::TimeIsUp);
        backlog.add(segment(1, 1));
        let long = Duration::from_secs(60);
        assert_eq!(backlog.wait(Some(known), long), Woken::News);
        assert_eq!(backlog.wait(None, Duration::ZERO), Woken::TimeIsUp);
        let waiter = {
            let backlog = Arc::clone(&backlog);
            std::thread::spawn(move || backlog.wait(None, long))
        };
        let first = backlog.stop();
        assert_eq!(waiter.join().unwrap(), Woken::Stopped);
        assert_eq!(backlog.stop(), first);
    }

    proptest! {
        #[test]
        fn the_oldest_segment_of_all_timelines(
            files in proptest::collection::vec((1u32..5, 0u64..20), 0..20)
        ) {
            let backlog = backlog();
            backlog.add(ArchiveFile::History(TimelineId::new(9).unwrap()));
            for (tli, no) in &files {
                backlog.add(segment(*tli, *no));
            }
            let expected = files.iter().map(|(_, no)| *no).min();
            prop_assert_eq!(backlog.oldest_segment().map(SegmentNo::raw), expected);
        }
    }
}
