//! The log, decoupled from the threads that write to it.
//!
//! Whoever has something to say puts a line into a bounded queue and goes on; one thread,
//! `log`, writes to standard error, and nobody else does. So a log that takes nothing (a full
//! disk, a pipe that nobody reads, one that was closed) costs lines and nothing else. Lines
//! that were lost are counted, and the log says how many in all as soon as it writes again.
#![forbid(unsafe_code)]

mod panics;
mod queue;
mod writer;

use queue::LogLines;
use std::borrow::Cow;
use std::fs::File;
use std::io::{self, IsTerminal as _, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tracing::{Level, Subscriber};

/// The most bytes that wait to be written: some ten thousand lines.
const ROOM: usize = 1 << 20;

/// How long the process waits at its end for the last lines to be written.
const LAST_LINES: Duration = Duration::from_millis(250);

/// The process' log, once it was started.
static LOG: OnceLock<Arc<LogLines>> = OnceLock::new();

/// Starts the log: from now on everything sent to [`tracing`] goes to standard error, and so
/// does the message of a panic.
///
/// # Errors
/// The thread could not be started, or the process has a log already.
pub fn start(level: Level) -> io::Result<()> {
    let queue = Arc::new(LogLines::new(ROOM));
    let to = File::from(io::stderr().as_fd().try_clone_to_owned()?);
    // Before anybody is told of the queue: what is in it is said only by the thread.
    let thread = std::thread::Builder::new().name("log".to_owned());
    let lines = Arc::clone(&queue);
    thread.spawn(move || writer::write_on(&lines, to))?;
    let started = LOG.set(Arc::clone(&queue)).is_ok();
    let subscriber = subscriber(queue, level);
    let installed = tracing::subscriber::set_global_default(subscriber).is_ok();
    if !(started && installed) {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    panics::log_them();
    Ok(())
}

/// Puts what [`tracing`] is told into `queue`.
fn subscriber(queue: Arc<LogLines>, level: Level) -> impl Subscriber + Send + Sync {
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(move || Line(Arc::clone(&queue)))
        .with_ansi(io::stderr().is_terminal())
        .log_internal_errors(false)
        .finish()
}

/// How many lines have been lost so far.
pub fn lost() -> u64 {
    LOG.get().map_or(0, |queue| queue.lost())
}

/// Waits, but not for long, until everything logged is written. Called before the process ends.
pub fn finish() {
    if let Some(queue) = LOG.get() {
        queue.wait_written(LAST_LINES);
    }
}

/// Ends the process after writing what was logged, if the log accepts it.
pub fn exit(code: i32) -> ! {
    finish();
    std::process::exit(code)
}

/// A program's last line on standard error, sent through the log when there is one.
pub fn last_line(text: &str) {
    let line = format!("{text}\n");
    match LOG.get() {
        Some(queue) => queue.push(line.as_bytes()),
        // If this fails too, there is no way left to report it.
        None => drop(io::stderr().write_all(line.as_bytes())),
    }
    finish();
}

/// Takes the whole text of one event.
struct Line(Arc<LogLines>);

impl Write for Line {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.0.push(&one_line(text));
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The text of an event as one line. What another server or a file says is part of some events, and
/// it must not look like an event of ours.
fn one_line(text: &[u8]) -> Cow<'_, [u8]> {
    let (line, end) = match text.split_last() {
        Some((b'\n', line)) => (line, &b"\n"[..]),
        _ => (text, &b""[..]),
    };
    let breaks = |byte: &u8| matches!(byte, b'\n' | b'\r');
    if !line.iter().any(breaks) {
        return Cow::Borrowed(text);
    }
    let shown = line.iter().flat_map(|byte| match byte {
        b'\n' => &b"\\n"[..],
        b'\r' => &b"\\r"[..],
        byte => std::slice::from_ref(byte),
    });
    Cow::Owned(shown.chain(end).copied().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line() {
        let queue = Arc::new(LogLines::new(1000));
        let logged = subscriber(Arc::clone(&queue), Level::INFO);
        tracing::subscriber::with_default(logged, || {
            let said = "no\n2026-11-30T10:00:00Z  INFO walhub: fenced\r\nway";
            tracing::warn!(said, "the upstream said: {said}");
            tracing::info!("next");
        });
        let lines = String::from_utf8(queue.take(Vec::new())).unwrap();
        assert_eq!(lines.matches('\n').count(), 2, "{lines}");
        assert!(lines.contains("said: no\\n2026") && lines.ends_with("next\n"), "{lines}");
    }
}
