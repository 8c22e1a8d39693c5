//! Files that were fetched and are not proved yet. A segment is proved with the one after it, which
//! is usually needed next: one fetch serves both.

use super::RestoredFile;
use super::queue::SegmentKey;
use crate::archive::check::ReadAt;
use crate::archive::prove::Head;
use crate::wal::SegmentName;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a file waits to be used.
pub(super) const UNUSED: Duration = Duration::from_secs(20);

/// A segment's file under a name of its own, which goes with the last user.
#[derive(Debug)]
pub(super) struct UnprovedSegment {
    file: File,
    path: RestoredFile,
    /// Whether the bytes that continue a record of the segment before are proved.
    head: AtomicBool,
}

impl UnprovedSegment {
    pub(super) fn open(path: RestoredFile) -> io::Result<Self> {
        Ok(Self { file: File::open(path.path())?, path, head: AtomicBool::new(false) })
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn path(&self) -> &Path {
        self.path.path()
    }

    pub(super) fn head(&self) -> Head {
        match self.head.load(Ordering::Relaxed) {
            true => Head::Proved,
            false => Head::Unknown,
        }
    }
}

impl ReadAt for Arc<UnprovedSegment> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }
}

#[derive(Debug)]
enum Entry {
    /// One of the threads fetches it.
    Coming,
    Here {
        segment: Arc<UnprovedSegment>,
        used: Instant,
    },
}

/// The files, and a place to wait for those on their way.
#[derive(Debug)]
pub(super) struct FetchedSegments {
    entries: Mutex<BTreeMap<SegmentKey, Entry>>,
    changed: Condvar,
    /// Files that nobody uses, at most.
    most: usize,
}

impl FetchedSegments {
    pub(super) fn new(most: usize) -> Self {
        Self { entries: Mutex::default(), changed: Condvar::new(), most }
    }

    /// The segment's file. When it is not here, `fetch` gets it; when another thread is fetching
    /// it, waits for that. Returns `None` when there is none.
    pub(super) fn get(
        &self,
        name: SegmentName,
        fetch: impl FnOnce() -> io::Result<Option<UnprovedSegment>>,
    ) -> io::Result<Option<Arc<UnprovedSegment>>> {
        let key = SegmentKey { tli: name.tli, no: name.no };
        let mut entries = self.lock();
        loop {
            match entries.get_mut(&key) {
                None => break,
                Some(Entry::Here { segment, used }) => {
                    *used = Instant::now();
                    return Ok(Some(Arc::clone(segment)));
                }
                Some(Entry::Coming) => {
                    entries = self.changed.wait(entries).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
        entries.insert(key, Entry::Coming);
        drop(entries);
        let fetched = fetch();
        let mut entries = self.lock();
        entries.remove(&key);
        self.changed.notify_all();
        let Some(segment) = fetched?.map(Arc::new) else { return Ok(None) };
        let used = Instant::now();
        entries.insert(key, Entry::Here { segment: Arc::clone(&segment), used });
        self.make_room(&mut entries);
        Ok(Some(segment))
    }

    /// The beginnings of these segments are proved, if their files are here.
    pub(super) fn note_continued(&self, names: &[SegmentName]) {
        let entries = self.lock();
        for name in names {
            let key = SegmentKey { tli: name.tli, no: name.no };
            if let Some(Entry::Here { segment, .. }) = entries.get(&key) {
                segment.head.store(true, Ordering::Relaxed);
            }
        }
    }

    /// A file has a name of its own now.
    pub(super) fn remove(&self, key: SegmentKey) {
        if matches!(self.lock().get(&key), Some(Entry::Here { .. })) {
            self.lock().remove(&key);
        }
    }

    /// One of the files is damaged, or may have been: all are fetched again.
    pub(super) fn clear(&self) {
        self.lock().retain(|_, entry| matches!(entry, Entry::Coming));
    }

    /// Lets go of files that were not used for a while. Returns whether any are left.
    pub(super) fn sweep(&self) -> bool {
        let mut entries = self.lock();
        let kept = |entry: &Entry| match entry {
            Entry::Coming => true,
            Entry::Here { used, .. } => used.elapsed() < UNUSED,
        };
        entries.retain(|_, entry| kept(entry));
        !entries.is_empty()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// The longest unused go first.
    fn make_room(&self, entries: &mut BTreeMap<SegmentKey, Entry>) {
        let idle = |(key, entry): (&SegmentKey, &Entry)| match entry {
            Entry::Here { segment, used } if Arc::strong_count(segment) == 1 => Some((*used, *key)),
            _ => None,
        };
        let mut unused: Vec<_> = entries.iter().filter_map(idle).collect();
        unused.sort_unstable();
        let surplus = unused.len().saturating_sub(self.most);
        for (_, key) in unused.into_iter().take(surplus) {
            entries.remove(&key);
        }
    }

    // A panic ends the process (`panic = "abort"`); only tests can poison a lock.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<SegmentKey, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
