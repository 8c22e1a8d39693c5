//! Lines that wait to be written, up to a number of bytes. Lines beyond that are counted and
//! lost.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The lines that wait.
#[derive(Debug)]
pub(super) struct LogLines {
    room: usize,
    inner: Mutex<Inner>,
    pushed: Condvar,
    written: Condvar,
    lost: AtomicU64,
}

#[derive(Debug, Default)]
struct Inner {
    waiting: Vec<u8>,
    writer: Writer,
}

/// What the writing thread is doing.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Writer {
    /// It waits for lines.
    #[default]
    Idle,
    /// It has lines that are not written yet.
    Busy,
}

impl LogLines {
    /// Holds `room` bytes.
    pub(super) fn new(room: usize) -> Self {
        Self {
            room,
            inner: Mutex::default(),
            pushed: Condvar::new(),
            written: Condvar::new(),
            lost: AtomicU64::new(0),
        }
    }

    /// Adds whole lines, or counts them as lost when there is no room. Never waits for the
    /// writing thread.
    pub(super) fn push(&self, lines: &[u8]) {
        let mut inner = self.lock();
        if inner.waiting.len() + lines.len() > self.room {
            self.lose(lines);
            return;
        }
        inner.waiting.extend_from_slice(lines);
        drop(inner);
        self.pushed.notify_one();
    }

    /// Waits for lines and takes all of them. Lines taken before count as written.
    pub(super) fn take(&self, mut lines: Vec<u8>) -> Vec<u8> {
        lines.clear();
        let mut inner = self.lock();
        inner.writer = Writer::Idle;
        self.written.notify_all();
        while inner.waiting.is_empty() {
            inner = self.pushed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        inner.writer = Writer::Busy;
        std::mem::swap(&mut inner.waiting, &mut lines);
        lines
    }

    /// Counts these lines as lost: they could not be written.
    pub(super) fn could_not_write(&self, lines: &[u8]) {
        self.lose(lines);
    }

    /// How many lines have been lost in total.
    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Waits until no lines wait or are being written, for at most `limit`.
    pub(super) fn wait_written(&self, limit: Duration) {
        let until = Instant::now() + limit;
        let mut inner = self.lock();
        while !inner.waiting.is_empty() || inner.writer == Writer::Busy {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.written.wait_timeout(inner, left);
            inner = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lose(&self, lines: &[u8]) {
        self.lost.fetch_add(count(lines), Ordering::Relaxed);
    }

    // A thread that panics with the lock held has left nothing half changed.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The number of lines; an unterminated one counts.
fn count(lines: &[u8]) -> u64 {
    lines.split_inclusive(|byte| *byte == b'\n').count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn what_has_no_room_is_counted() {
        let queue = LogLines::new(10);
        for line in ["1234\n", "5678\n", "x\n", "y\nz\n"] {
            queue.push(line.as_bytes());
        }
        assert_eq!(queue.lost(), 3);
        assert_eq!(queue.take(Vec::new()), b"1234\n5678\n");
        queue.push(b"more\n");
        queue.push(b"longer than all the room\n");
        assert_eq!(queue.take(Vec::new()), b"more\n");
        queue.could_not_write(b"rest of one\nanother\n");
        assert_eq!(queue.lost(), 6);
    }

    #[test]
    fn the_end_waits_for_the_writer_and_no_longer_than_it_may() {
        let queue = Arc::new(LogLines::new(100));
        queue.wait_written(Duration::from_secs(60));
        queue.push(b"a\n");
        let lines = queue.take(Vec::new());
        // It is being written, and never finishes.
        let begun = Instant::now();
        queue.wait_written(Duration::from_millis(30));
        assert!(begun.elapsed() >= Duration::from_millis(30));
        let writer = {
            let queue = Arc::clone(&queue);
            std::thread::spawn(move || queue.take(lines))
        };
        queue.wait_written(Duration::from_secs(60));
        queue.push(b"b\n");
        assert_eq!(writer.join().unwrap(), b"b\n");
    }
}
