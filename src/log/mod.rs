//! The log, beside everybody who writes to it.
//!
//! Whoever has something to say puts a line into a bounded queue and goes on; one thread,
//! `log`, writes to standard error, and nobody else does. So a log that takes nothing (a full
//! disk, a pipe that nobody reads, one that was closed) costs lines and nothing else. Lines
//! that were lost are counted, and the log says how many as soon as it writes again.
#![forbid(unsafe_code)]

mod panics;
mod queue;
mod writer;

use queue::LogLines;
use std::fs::File;
use std::io::{self, IsTerminal as _, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tracing::Level;

/// The most that waits to be written, in bytes: some ten thousand lines.
const ROOM: usize = 1 << 20;

/// How long the end of the process waits for the last lines to be written.
const LAST_LINES: Duration = Duration::from_millis(250);

/// The process' log, once it was started.
static LOG: OnceLock<Arc<LogLines>> = OnceLock::new();

/// Starts the log: what [`tracing`] is told goes to standard error from now on, and so does
/// the message of a panic.
///
/// # Errors
/// The thread could not be started, or the process has a log already.
pub fn start(level: Level) -> io::Result<()> {
    let queue = Arc::new(LogLines::new(ROOM));
    let ansi = io::stderr().is_terminal();
    let to = File::from(io::stderr().as_fd().try_clone_to_owned()?);
    let started = LOG.set(Arc::clone(&queue)).is_ok();
    let lines = {
        let queue = Arc::clone(&queue);
        move || Line(Arc::clone(&queue))
    };
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(lines)
        .with_ansi(ansi)
        .log_internal_errors(false)
        .finish();
    let installed = tracing::subscriber::set_global_default(subscriber).is_ok();
    if !(started && installed) {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    panics::log_them();
    let thread = std::thread::Builder::new().name("log".to_owned());
    thread.spawn(move || writer::write_on(&queue, to)).map(drop)
}

/// How many lines were lost so far.
pub fn lost() -> u64 {
    LOG.get().map_or(0, |queue| queue.lost())
}

/// Waits until all that was said is written, but not for long. Whoever ends the process does
/// this first.
pub fn finish() {
    if let Some(queue) = LOG.get() {
        queue.wait_written(LAST_LINES);
    }
}

/// Ends the process; what was said is written first, if the log takes it.
pub fn exit(code: i32) -> ! {
    finish();
    std::process::exit(code)
}

/// A program's last line on standard error: by way of the log when there is one.
pub fn last_line(text: &str) {
    let line = format!("{text}\n");
    match LOG.get() {
        Some(queue) => queue.push(line.as_bytes()),
        // There is nobody to tell that nobody can be told.
        None => drop(io::stderr().write_all(line.as_bytes())),
    }
    finish();
}

/// Takes one event's text, whole.
struct Line(Arc<LogLines>);

impl Write for Line {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.0.push(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
