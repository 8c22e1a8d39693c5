//! Engine: the archiver, a thread of its own. It runs `archive_command` for one complete file
//! after another, and repeats it until it succeeds.
//!
//! Source: `src/backend/postmaster/pgarch.c` of PostgreSQL 15; order and pacing are the same.
//! When a command is broken (not found, not executable, ended by a signal), PostgreSQL's
//! archiver process ends and its postmaster starts another one later. Here the thread waits that
//! long.

mod attempt;

pub use attempt::{Attempted, attempt};

use crate::archive::shell::{self, CommandOutcome, OutputLevel};
use crate::archive::template::{Template, archive_values};
use crate::store::archive_status::Woken;
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
                    Attempted::Archived { .. } | Attempted::Dropped => break,
                    Attempted::Stopped => return Pause::ForGood,
                    Attempted::Broken => {
                        self.in_trouble = Some(file);
                        return Pause::Broken;
                    }
                    Attempted::Failed => failures += 1,
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

    fn attempt(&mut self, file: ArchiveFile) -> Attempted {
        let command = async { self.run_command(file) };
        let attempted =
            attempt(&PlainDisk, &self.layout, &self.holds, file, command, SystemTime::now);
        // Plain system calls and commands are done when they return.
        let attempted = run_ready(attempted).unwrap_or(Attempted::Failed);
        if let Attempted::Archived { drained } = attempted {
            if self.in_trouble.take().is_some() {
                info!("archiving works again: archived write-ahead log file \"{file}\"");
            }
            if drained {
                info!("no files are waiting to be archived any more");
            }
        }
        attempted
    }

    /// Runs the command for a file, and logs its failure.
    fn run_command(&self, file: ArchiveFile) -> io::Result<CommandOutcome> {
        let line = self.line(file);
        debug!("executing archive command \"{}\"", line.display());
        let outcome = shell::run(&line, self.layout.root(), &self.cut, OutputLevel::Info);
        match &outcome {
            Ok(CommandOutcome::Done | CommandOutcome::Stopped) => {}
            Ok(CommandOutcome::Failed { code }) => warn!(
                "archive command failed with exit code {code}: the failed archive command was: {}",
                line.display()
            ),
            Ok(CommandOutcome::Broken { reason }) => error!(
                "archive command failed: {reason}: the failed archive command was: {}",
                line.display()
            ),
            Err(error) => warn!("could not run archive command \"{}\": {error}", line.display()),
        }
        outcome
    }

    fn line(&self, file: ArchiveFile) -> OsString {
        let (name, path) = (file.to_string(), self.layout.archived(file));
        let path = path.strip_prefix(self.layout.root()).unwrap_or(&path);
        self.command.expand(&archive_values(name.as_ref(), path))
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
