//! Engine: threads that run `restore_command`, so that neither a data core nor the control
//! thread nor the keeper waits for an archive.
//!
//! A data core is not aware of this. It asks the keeper for a segment's file. A segment that the
//! keeper does not find is passed on to here with the core's address ([`SegmentSource::want`]),
//! fetched under a temporary name, compared with the digest of what was here before, proved ([`prove`](crate::archive::prove)) and synced. The keeper
//! gives it its real name, and then the core gets its answer, late. One fetch serves every request
//! for a segment, and the next segments are fetched before anyone asks for them. A segment that is
//! proved in part only never gets its real name: the core may read its file up to there.
#![forbid(unsafe_code)]

mod fetched;
mod neighbours;
mod queue;

use self::fetched::FetchedSegments;
use self::queue::{Queue, SegmentKey, Waiting, Work};
use crate::archive::prove::{SegmentFile, SegmentProof, Unproved, prove};
use crate::archive::restore::{Fetched, RestoreCommand, RestoreFault};
use crate::archive::shell::OutputLevel;
use crate::config::RestoreSettings;
use crate::hub::Hub;
use crate::hub::chain::timeline_in_name;
use crate::keeper::{AnswerInbox, JobDone, KeeperClient, Reply, SegmentSource, ShownBy};
use crate::store::digest::{DigestComparison, compare_restored};
use crate::store::evidence::Difference;
use crate::store::layout::Layout;
use crate::timeline::History;
use crate::wal::{Lsn, SegmentName, SegmentNo, TimelineId};
use bytes::Bytes;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::oneshot::error::RecvError;
use tokio::sync::{Semaphore, oneshot};
use tracing::{debug, error, info};

/// The longest file that is accepted as a history file.
const MAX_HISTORY: u64 = 1 << 20;

/// How often it is reported that the command is broken.
const BROKEN_PAUSE: Duration = Duration::from_secs(60);

/// The most history files that are in the queue at one time.
const MAX_HISTORIES: usize = 64;

/// Fetched segments that wait for use, beside those that the threads work on.
const MAX_UNUSED: usize = 4;

/// Access to the archive's files.
pub struct Restorer {
    inner: Arc<Inner>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Inner {
    command: RestoreCommand,
    layout: Layout,
    hub: Arc<Hub>,
    /// Segments fetched ahead of need.
    ahead: u64,
    /// `None` once the hub shuts down, so that the keeper can end.
    keeper: Mutex<Option<KeeperClient>>,
    /// Places in the queue for history files.
    histories_waiting: Arc<Semaphore>,
    stop: AtomicBool,
    /// Numbers the fetches of segments.
    fetches: AtomicU64,
    /// Segments that are not proved yet.
    fetched: FetchedSegments,
    /// Held during the fetch of a history file: the last one that the archive did not have. A hub
    /// without an upstream asks for the next timeline's every few seconds.
    histories: Mutex<Option<TimelineId>>,
    /// When it was last reported that the command is broken; `None` while it works.
    broken: Mutex<Option<Instant>>,
    /// The place of the evidence because of which it was reported that a file is in doubt.
    doubted: Mutex<Option<Lsn>>,
    queue: Mutex<Queue>,
    ready: Condvar,
}

/// The result of a fetch that a task of the control thread waits for.
pub type RestoreResult<T> = Result<Option<T>, String>;

/// A file from the archive under its temporary name. Dropping it removes the file.
#[derive(Debug)]
pub struct RestoredFile {
    path: PathBuf,
}

impl RestoredFile {
    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for RestoredFile {
    fn drop(&mut self) {
        // A start removes it, too.
        drop(std::fs::remove_file(&self.path));
    }
}

impl Restorer {
    /// Starts the threads.
    ///
    /// # Errors
    /// The operating system's error.
    pub fn start(
        settings: &RestoreSettings,
        layout: Layout,
        hub: Arc<Hub>,
        keeper: KeeperClient,
    ) -> io::Result<Self> {
        let jobs = settings.jobs.get();
        let inner = Arc::new(Inner {
            command: RestoreCommand::new(settings.command.clone(), layout.root()),
            layout,
            hub,
            ahead: jobs as u64,
            keeper: Mutex::new(Some(keeper)),
            histories_waiting: Arc::new(Semaphore::new(MAX_HISTORIES)),
            stop: AtomicBool::new(false),
            fetches: AtomicU64::new(0),
            fetched: FetchedSegments::new(jobs + MAX_UNUSED),
            histories: Mutex::new(None),
            broken: Mutex::new(None),
            doubted: Mutex::new(None),
            queue: Mutex::new(Queue::default()),
            ready: Condvar::new(),
        });
        let thread = |n: usize| {
            let inner = Arc::clone(&inner);
            let builder = std::thread::Builder::new().name(format!("restore-{n}"));
            builder.spawn(move || inner.work())
        };
        let threads = (0..jobs).map(thread).collect::<io::Result<Vec<_>>>()?;
        Ok(Self { inner, threads: Mutex::new(threads) })
    }

    /// Fetches a history file. Returns `None` when the archive has none. Many clients may ask;
    /// those beyond `MAX_HISTORIES` wait for a place.
    ///
    /// # Errors
    /// The hub is shutting down.
    pub async fn history(&self, tli: TimelineId) -> Result<RestoreResult<Bytes>, RecvError> {
        // The semaphore is never closed.
        let place = Arc::clone(&self.inner.histories_waiting).acquire_owned().await.ok();
        let fetched = self.order(move |inner| {
            let _place = place;
            inner.fetch_history(tli)
        });
        fetched.await
    }

    /// Fetches a segment under the first of these names that the archive has. Its content is not
    /// checked. Returns `None` when the archive has none of them. A fetch that nobody waits for
    /// any more may still run when the same segment is asked for again, so each fetch has a path
    /// of its own. A caller has only a few under way.
    pub fn segment(
        &self,
        names: Vec<SegmentName>,
    ) -> oneshot::Receiver<RestoreResult<(SegmentName, RestoredFile)>> {
        self.order(move |inner| {
            for name in names {
                let file = inner.unique_path(name);
                let fetched =
                    inner.fetch(&name.to_string(), file.path(), Some(name.size.bytes()))?;
                if fetched == Fetched::Here {
                    return Ok(Some((name, file)));
                }
            }
            Ok(None)
        })
    }

    /// How many segments are to be fetched ahead of need.
    pub fn ahead(&self) -> u64 {
        self.inner.ahead
    }

    /// Queues a piece of work for one of the threads.
    fn order<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> T + Send + 'static,
    ) -> oneshot::Receiver<T> {
        let (tell, told) = oneshot::channel();
        self.inner.lock().order(Box::new(Fetch { tell, work }));
        self.inner.ready.notify_one();
        told
    }

    /// The hub shuts down: running commands are ended, and no new ones are begun.
    pub fn stop(&self) {
        self.inner.stop.store(true, Ordering::Relaxed);
        *self.inner.keeper() = None;
        // Under the lock, so that no thread misses it between checking and sleeping.
        drop(self.inner.lock());
        self.inner.ready.notify_all();
    }

    /// Waits until the threads have ended, but no longer than `deadline`.
    pub fn join(&self, deadline: Instant) {
        let threads =
            std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        while threads.iter().any(|thread| !thread.is_finished()) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl SegmentSource for Restorer {
    /// A core asks for no more segments than it may have files open, so this bounds the queue.
    fn want(&self, tli: TimelineId, no: SegmentNo, reply: Reply) {
        let Some(key) = self.inner.key(tli, no) else {
            let result = Err(io::ErrorKind::NotFound.into());
            return reply.send(JobDone::Opened { tli, no, result });
        };
        self.inner.lock().want(key, Waiting { tli, reply });
        self.inner.ready.notify_one();
        self.look_ahead(tli, no);
    }

    fn look_ahead(&self, tli: TimelineId, no: SegmentNo) {
        let inner = &self.inner;
        let (Some(identity), Some(cell)) = (inner.hub.identity(), inner.hub.cell_of(tli)) else {
            return;
        };
        let size = identity.segment_size;
        let here = inner.hub.holds.oldest_kept();
        let follows = (1..=inner.ahead).map(|n| SegmentNo::new(no.raw().saturating_add(n)));
        let gone = |no: &SegmentNo| no.start(size) < here && no.start(size) < cell.limit();
        for no in follows.take_while(gone) {
            if let Some(key) = inner.key(tli, no)
                && inner.lock().foresee(key)
            {
                inner.ready.notify_one();
            }
        }
    }
}

/// The keeper has taken a restored segment. This runs on its thread.
impl AnswerInbox for Inner {
    fn answer(&self, done: JobDone) {
        if let JobDone::Adopted { tli, no, result } = done {
            self.finish(SegmentKey { tli, no }, result);
        }
    }
}

/// A piece of work, and the task that waits for its result.
struct Fetch<T, W> {
    tell: oneshot::Sender<T>,
    work: W,
}

impl<T: Send, W: FnOnce(&Inner) -> T + Send> Work for Fetch<T, W> {
    fn is_wanted(&self) -> bool {
        !self.tell.is_closed()
    }

    fn run(self: Box<Self>, inner: &Inner) {
        // The asking task may be gone by now.
        drop(self.tell.send((self.work)(inner)));
    }
}

impl Inner {
    // A panic ends the process (`panic = "abort"`); only tests can poison a lock.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keeper(&self) -> MutexGuard<'_, Option<KeeperClient>> {
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// A thread's main loop.
    fn work(self: &Arc<Self>) {
        let mut queue = self.lock();
        while !self.is_stopping() {
            let Some(next) = queue.next() else {
                queue = self.wait(queue);
                continue;
            };
            drop(queue);
            match next {
                queue::NextTask::Segment(key) => self.restore_segment(key),
                queue::NextTask::Work(work) => work.run(self),
            }
            queue = self.lock();
        }
    }

    /// Waits for something to do. Files that nobody came for go meanwhile.
    fn wait<'q>(&self, queue: MutexGuard<'q, Queue>) -> MutexGuard<'q, Queue> {
        if self.fetched.is_empty() {
            return self.ready.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        let waited = self.ready.wait_timeout(queue, fetched::UNUSED);
        let (queue, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        if timeout.timed_out() {
            self.fetched.sweep();
        }
        queue
    }

    /// The archive file that holds a segment of a timeline.
    fn key(&self, tli: TimelineId, no: SegmentNo) -> Option<SegmentKey> {
        let size = self.hub.identity()?.segment_size;
        Some(SegmentKey { tli: timeline_in_name(self.hub.cell_of(tli)?, no, size), no })
    }

    /// Fetches a segment for the cores, and hands it to the keeper. The thread does not wait for
    /// the keeper's answer.
    fn restore_segment(self: &Arc<Self>, key: SegmentKey) {
        let shown = match self.find_segment(key) {
            Ok(Found::Whole(shown)) => shown,
            Ok(Found::Partly(file, unproved)) => return self.finish_partly(key, &file, &unproved),
            Ok(Found::NotThere) => return self.finish(key, Err(io::ErrorKind::NotFound.into())),
            Err(error) => return self.finish(key, Err(error)),
        };
        let Some(keeper) = self.keeper().clone() else { return };
        let inbox = Arc::clone(self) as Arc<dyn AnswerInbox>;
        if let Err(fault) = keeper.adopt(key.tli, key.no, shown, inbox) {
            self.finish(key, Err(io::Error::other(fault)));
        }
    }

    /// Finds the segment under its own name, or fetches it to a temporary one and proves it.
    fn find_segment(&self, key: SegmentKey) -> io::Result<Found> {
        let identity = self.hub.identity().ok_or_else(|| io::Error::other("no cluster yet"))?;
        let name = SegmentName { tli: key.tli, no: key.no, size: identity.segment_size };
        if self.layout.segment(name).exists() {
            return Ok(Found::Whole(ShownBy::Records));
        }
        let Some(segment) = self.obtain(name)? else { return Ok(Found::NotThere) };
        let shown = self.compare(name, segment.file()).inspect_err(|_| self.fetched.clear())?;
        let upto = name.no.end(name.size);
        let source = neighbours::NeighbourFile::Fetched(Arc::clone(&segment));
        let checked = SegmentFile { name, file: source, upto };
        let SegmentProof { unproved, continued } = prove(self, &checked, segment.head())?;
        if let Some(unproved) = unproved {
            error!("{}; WAL from {} on is not served", unproved.why, unproved.from);
            // Whatever is mended in the archive is seen when it is asked for again.
            self.fetched.clear();
            return Ok(Found::Partly(segment.file().try_clone()?, unproved));
        }
        self.fetched.note_continued(&continued);
        segment.file().sync_data()?;
        std::fs::rename(segment.path(), self.layout.restoring(&name.to_string()))?;
        info!("restored log file \"{name}\" from archive");
        Ok(Found::Whole(shown))
    }

    /// Compares a file of the archive with the digest of what was received here under its name. When
    /// there is none, the file counts unless another history is known.
    fn compare(&self, name: SegmentName, file: &File) -> io::Result<ShownBy> {
        let evidence = match compare_restored(&self.layout, name, file)? {
            DigestComparison::Same(_) => return Ok(ShownBy::Digest),
            DigestComparison::Differs(blocks) => {
                let why = format!(
                    "archive file \"{name}\" is of another history or damaged: from {} on it is not \
                     what this hub received, by its digest",
                    blocks.from()
                );
                error!("{why}; it is not served");
                return Err(io::Error::new(io::ErrorKind::InvalidData, why));
            }
            DigestComparison::Unknown => self.hub.course.evidence(),
        };
        let Some(Difference { source, at, .. }) = evidence.iter().next() else {
            return Ok(ShownBy::Records);
        };
        let why = format!(
            "archive file \"{name}\" cannot be shown to be of this hub's history, and {} had other \
             WAL at {at}",
            source.name
        );
        let mut doubted = self.doubted.lock().unwrap_or_else(PoisonError::into_inner);
        // Standbys that lag ask again and again, and while the evidence stands nothing changes.
        if doubted.replace(*at) != Some(*at) {
            error!("{why}; no such file is served while that stands");
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, why))
    }

    /// A temporary name that no other fetch has.
    fn unique_path(&self, name: SegmentName) -> RestoredFile {
        let fetch = self.fetches.fetch_add(1, Ordering::Relaxed);
        RestoredFile { path: self.layout.restoring(&format!("{name}.{fetch}")) }
    }

    fn fetch(&self, file: &str, target: &Path, size: Option<u64>) -> Result<Fetched, String> {
        self.judge(self.command.fetch(file, target, size, &self.stop))
    }

    /// Logs that the command is broken, but not too often.
    fn judge(&self, fetched: Result<Fetched, RestoreFault>) -> Result<Fetched, String> {
        let mut broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        match fetched {
            Ok(fetched) => {
                *broken = None;
                Ok(fetched)
            }
            // It is retried every few seconds, for one file after another.
            Err(fault) if broken.is_some_and(|at| at.elapsed() < BROKEN_PAUSE) => {
                debug!("{fault}");
                Err(fault.to_string())
            }
            Err(fault) => {
                *broken = Some(Instant::now());
                error!("{fault}");
                Err(fault.to_string())
            }
        }
    }

    fn fetch_history(&self, tli: TimelineId) -> RestoreResult<Bytes> {
        let file = History::file_name(tli);
        let path = self.layout.restoring(&file);
        // Two clients may ask for the same file: fetch one after the other, to one path.
        let mut absent = self.histories.lock().unwrap_or_else(PoisonError::into_inner);
        let level = if *absent == Some(tli) { OutputLevel::Debug } else { OutputLevel::Info };
        let fetched = self.command.fetch_logged(&file, &path, None, &self.stop, level);
        if self.judge(fetched)? != Fetched::Here {
            *absent = Some(tli);
            return Ok(None);
        }
        *absent = None;
        let content =
            read_small(&path).map_err(|error| format!("archive file \"{file}\": {error}"));
        // A start removes it, too.
        drop(std::fs::remove_file(&path));
        let content = Bytes::from(content?);
        match History::parse(tli, content.clone()) {
            // This file will be trusted for good: not while it is still being copied there.
            Ok(history) if history.entries().is_empty() || !content.ends_with(b"\n") => {
                Err(format!("archive file \"{file}\" is not complete"))
            }
            Ok(_) => Ok(Some(content)),
            Err(fault) => Err(format!("archive file \"{file}\": {fault}")),
        }
    }

    /// Answers every request for a segment of which only a part is proved.
    fn finish_partly(&self, key: SegmentKey, file: &File, unproved: &Unproved) {
        for Waiting { tli, reply } in self.lock().finished(key) {
            reply.send(match file.try_clone() {
                Ok(file) => {
                    let (file, unproved) = (Arc::new(file.into()), unproved.clone());
                    JobDone::OpenedPartly { tli, no: key.no, file, unproved }
                }
                Err(error) => JobDone::Opened { tli, no: key.no, result: Err(error) },
            });
        }
    }

    /// Answers every request for the segment.
    fn finish(&self, key: SegmentKey, result: io::Result<Arc<OwnedFd>>) {
        // It has its own name by now, or has to be fetched again.
        self.fetched.remove(key);
        let waiting = self.lock().finished(key);
        for Waiting { tli, reply } in waiting {
            let result = match &result {
                Ok(file) => Ok(Arc::clone(file)),
                Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
            };
            reply.send(JobDone::Opened { tli, no: key.no, result });
        }
    }
}

/// The outcome of a search for a segment.
enum Found {
    /// All of it is proved, and it has its own name or that under which the keeper takes it.
    Whole(ShownBy),
    /// It may be read up to a position.
    Partly(File, Unproved),
    NotThere,
}

fn read_small(path: &PathBuf) -> io::Result<Vec<u8>> {
    if std::fs::metadata(path)?.len() > MAX_HISTORY {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    std::fs::read(path)
}

#[cfg(test)]
#[cfg(not(walhub_loom))]
mod tests;
