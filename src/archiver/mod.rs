//! Engine: the archiver, a thread of its own. It runs `archive_command` for one complete file
//! after another, and repeats it until it succeeds.
//!
//! Source: `src/backend/postmaster/pgarch.c` of PostgreSQL 15; order and pacing are the same.
//! When a command is broken (not found, not executable, ended by a signal), PostgreSQL's
//! archiver process ends and its postmaster starts another one later. Here the thread waits that
//! long.

use crate::archive::shell::{self, CommandOutcome};
use crate::archive::template::{Template, archive_values};
use crate::store::archive_status::{Turn, Woken, exists, mark_done, turn};
use crate::store::disk::{Disk, run_ready};
use crate::store::layout::Layout;
use crate::store::layout::{ArchiveFile, Mark};
use crate::store::plain_disk::PlainDisk;
use crate::store::retention::Holds;
use std::ffi::OsString;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};
use tracing::{debug, error, info, warn};

/// Attempts in a row (`NUM_ARCHIVE_RETRIES`).
const ATTEMPTS: u32 = 3;

/// After how long the archiver checks again without being woken (`PGARCH_AUTOWAKE_INTERVAL`).
const AUTOWAKE: Duration = Duration::from_secs(60);

/// How long nothing is tried after a command was found broken (`PGARCH_RESTART_INTERVAL`).
const RESTART: Duration = Duration::from_secs(10);

/// How long a running command may take to end by itself at shutdown. A command that is cut short
/// may leave half a file in the archive.
const PATIENCE: Duration = Duration::from_secs(2);

/// The pause between two attempts.
#[cfg(not(test))]
const PAUSE: Duration = Duration::from_secs(1);
#[cfg(test)]
const PAUSE: Duration = Duration::from_millis(10);

/// A running archiver.
#[derive(Debug)]
pub struct Archiver {
    holds: Arc<Holds>,
    cut: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

/// Starts archiving what is in the backlog of `holds`.
///
/// # Errors
/// The thread could not be started.
pub fn start(command: Template, layout: Layout, holds: Arc<Holds>) -> io::Result<Archiver> {
    let cut = Arc::new(AtomicBool::new(false));
    let work = Work {
        command,
        layout,
        holds: Arc::clone(&holds),
        cut: Arc::clone(&cut),
        in_trouble: None,
    };
    let thread = std::thread::Builder::new().name("archiver".to_owned());
    let thread = thread.spawn(move || work.run())?;
    Ok(Archiver { holds, cut, thread })
}

impl Archiver {
    /// Waits until the thread has ended. No further command is begun; a running one may end by
    /// itself, but not for long.
    pub fn finish(self) {
        let patience = self.holds.backlog.stop() + PATIENCE;
        while !self.thread.is_finished() {
            if Instant::now() >= patience {
                self.cut.store(true, Ordering::Relaxed);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

struct Work {
    command: Template,
    layout: Layout,
    holds: Arc<Holds>,
    /// Set to end the running command.
    cut: Arc<AtomicBool>,
    /// A file whose archiving was given up for a while.
    in_trouble: Option<ArchiveFile>,
}

/// Why there is a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pause {
    /// Nothing waits, or the attempts are used up.
    Usual,
    /// The command is broken.
    Broken,
    /// The hub shuts down.
    ForGood,
}

/// How an attempt ended.
enum Attempt {
    /// The file is dealt with.
    Over,
    Failed,
    Broken,
    Stopped,
}

impl Work {
    fn run(mut self) {
        loop {
            let known = self.holds.backlog.known();
            let woken = match self.work_off() {
                Pause::Usual => self.holds.backlog.wait(Some(known), AUTOWAKE),
                Pause::Broken => self.holds.backlog.wait(None, RESTART),
                Pause::ForGood => return,
            };
            match woken {
                Woken::Stopped => return,
                Woken::News => {}
                Woken::TimeIsUp => self.look_for_marks(),
            }
        }
    }

    /// Archives the waiting files in order, until none is left or one fails for now.
    fn work_off(&mut self) -> Pause {
        while let Some(file) = self.holds.backlog.next() {
            let mut failures = 0;
            loop {
                if self.holds.backlog.is_stopped() {
                    return Pause::ForGood;
                }
                match self.attempt(file) {
                    Attempt::Over => break,
                    Attempt::Stopped => return Pause::ForGood,
                    Attempt::Broken => {
                        self.in_trouble = Some(file);
                        return Pause::Broken;
                    }
                    Attempt::Failed => failures += 1,
                }
                if failures >= ATTEMPTS {
                    warn!(
                        "archiving write-ahead log file \"{file}\" failed too many times, will \
                         try again later"
                    );
                    self.in_trouble = Some(file);
                    return Pause::Usual;
                }
                if self.holds.backlog.wait(None, PAUSE) == Woken::Stopped {
                    return Pause::ForGood;
                }
            }
        }
        Pause::Usual
    }

    fn attempt(&mut self, file: ArchiveFile) -> Attempt {
        match ready(turn(&PlainDisk, &self.layout, file)) {
            Ok(Turn::Due) => self.run_command(file),
            Ok(Turn::Done) => {
                info!("write-ahead log file \"{file}\" is already marked as archived");
                self.holds.backlog.forget(file);
                Attempt::Over
            }
            Ok(Turn::Orphan) => {
                warn!("write-ahead log file \"{file}\" was removed before it was archived");
                self.holds.backlog.forget(file);
                // The file may have appeared between the two checks.
                if ready(exists(&PlainDisk, &self.layout.archived(file))).is_ok_and(|there| there) {
                    self.holds.backlog.add(file);
                }
                Attempt::Over
            }
            Err(error) => {
                warn!("could not check write-ahead log file \"{file}\": {error}");
                self.failed(file);
                Attempt::Failed
            }
        }
    }

    fn run_command(&mut self, file: ArchiveFile) -> Attempt {
        let line = self.line(file);
        debug!("executing archive command \"{}\"", line.display());
        let outcome = shell::run(&line, self.layout.root(), &self.cut);
        match outcome {
            Ok(CommandOutcome::Done) => {
                self.succeeded(file);
                return Attempt::Over;
            }
            Ok(CommandOutcome::Stopped) => return Attempt::Stopped,
            Ok(CommandOutcome::Failed { code }) => warn!(
                "archive command failed with exit code {code}: the failed archive command was: {}",
                line.display()
            ),
            Ok(CommandOutcome::Broken { reason }) => {
                error!(
                    "archive command failed: {reason}: the failed archive command was: {}",
                    line.display()
                );
                self.failed(file);
                return Attempt::Broken;
            }
            Err(error) => warn!("could not run archive command \"{}\": {error}", line.display()),
        }
        self.failed(file);
        Attempt::Failed
    }

    fn line(&self, file: ArchiveFile) -> OsString {
        let (name, path) = (file.to_string(), self.layout.archived(file));
        let path = path.strip_prefix(self.layout.root()).unwrap_or(&path);
        self.command.expand(&archive_values(name.as_ref(), path))
    }

    fn succeeded(&mut self, file: ArchiveFile) {
        debug!("archived write-ahead log file \"{file}\"");
        if let Err(error) = ready(mark_done(&PlainDisk, &self.layout, file)) {
            // If it is still here at the next start, it is archived once more.
            let path = self.layout.mark(file, Mark::Done);
            warn!("could not create archive status file \"{}\": {error}", path.display());
        }
        let drained = self.holds.backlog.archived(file, SystemTime::now());
        if self.in_trouble.take().is_some() {
            info!("archiving works again: archived write-ahead log file \"{file}\"");
        }
        if drained {
            info!("no files are waiting to be archived any more");
        }
    }

    fn failed(&self, file: ArchiveFile) {
        self.holds.backlog.failed(file, SystemTime::now());
    }

    /// A file may have been marked by hand, to have it archived once more.
    fn look_for_marks(&self) {
        let Some(size) = self.holds.backlog.size() else { return };
        match ready(PlainDisk.list(&self.layout.archive_status())) {
            Ok(names) => {
                let marks = names.iter().filter_map(|name| Mark::parse(name, size));
                for (file, _) in marks.filter(|(_, mark)| *mark == Mark::Ready) {
                    self.holds.backlog.add(file);
                }
            }
            Err(error) => warn!(
                "could not list directory \"{}\": {error}",
                self.layout.archive_status().display()
            ),
        }
    }
}

/// Plain system calls are done when they return.
fn ready<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    run_ready(work).unwrap_or_else(|| Err(io::ErrorKind::WouldBlock.into()))
}

#[cfg(test)]
mod tests;
