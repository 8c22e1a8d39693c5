//! The thread that writes the log.

use super::queue::LogLines;
use rustix::event::{PollFd, PollFlags, poll};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use tracing::error;

/// Writes everything that comes, for as long as the process lives.
pub(super) fn write_on(queue: &LogLines, mut to: impl Write + AsFd) -> ! {
    let (mut lines, mut line, mut said) = (Vec::new(), Place::Begins, 0);
    loop {
        lines = queue.take(lines);
        let left = write(&mut to, &lines, &mut line);
        if left > 0 {
            let rest = lines.len().saturating_sub(left);
            queue.could_not_write(lines.get(rest..).unwrap_or_default());
            continue;
        }
        say_lost(queue, &mut said);
    }
}

/// Says how many lines were lost in all, when they are more than was `said` last. Where that
/// line is lost itself they are more again, and it is said after the next lines. At the level
/// that every log has.
fn say_lost(queue: &LogLines, said: &mut u64) {
    let lost = queue.lost();
    if lost > *said {
        *said = lost;
        error!("{lost} log lines were lost so far: standard error did not accept them");
    }
}

/// The position in the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// At the beginning of a line.
    Begins,
    /// Inside a line that was cut off.
    Inside,
}

/// Writes lines; returns how many bytes of them could not be written.
fn write(to: &mut (impl Write + AsFd), lines: &[u8], place: &mut Place) -> usize {
    if *place == Place::Inside && write_all(to, b"\n") == 0 {
        *place = Place::Begins;
    }
    if *place == Place::Inside {
        return lines.len();
    }
    let left = write_all(to, lines);
    let written = lines.get(..lines.len().saturating_sub(left)).unwrap_or_default();
    if written.last().is_some_and(|byte| *byte != b'\n') {
        *place = Place::Inside;
    }
    left
}

/// Writes bytes, however long that takes; returns how many could not be written.
fn write_all(to: &mut (impl Write + AsFd), mut bytes: &[u8]) -> usize {
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(0) => break,
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Another process that shares the descriptor made it non-blocking.
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if wait_for_room(to).is_err() {
                    break;
                }
            }
            Err(_) => break,
        }
    }
    bytes.len()
}

fn wait_for_room(to: &impl AsFd) -> io::Result<()> {
    match poll(&mut [PollFd::new(to, PollFlags::OUT)], None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::subscriber;
    use std::collections::VecDeque;
    use std::os::fd::BorrowedFd;
    use std::sync::Arc;
    use tracing::Level;

    /// Follows a script: takes a number of bytes, or gives an error.
    struct Output {
        script: VecDeque<Result<usize, ErrorKind>>,
        taken: Vec<u8>,
        ready: std::fs::File,
    }

    impl Output {
        fn new(script: &[Result<usize, ErrorKind>]) -> Self {
            let ready = std::fs::File::options().write(true).open("/dev/null").unwrap();
            Self { script: script.iter().copied().collect(), taken: Vec::new(), ready }
        }
    }

    impl Write for Output {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let room = self.script.pop_front().unwrap_or(Ok(usize::MAX))?;
            let written = room.min(bytes.len());
            self.taken.extend_from_slice(&bytes[..written]);
            Ok(written)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl AsFd for Output {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.ready.as_fd()
        }
    }

    #[test]
    fn a_line_that_was_cut_off_is_ended_before_the_next() {
        let mut to = Output::new(&[
            Ok(2),
            Err(ErrorKind::Interrupted),
            Err(ErrorKind::WouldBlock),
            Ok(3),
            Err(ErrorKind::StorageFull),
            // The end of the line that was cut off finds no room either.
            Err(ErrorKind::StorageFull),
        ]);
        let mut place = Place::Begins;
        assert_eq!(write(&mut to, b"one\ntwo\n", &mut place), 3);
        assert_eq!(place, Place::Inside);
        assert_eq!(write(&mut to, b"three\n", &mut place), 6);
        assert_eq!(write(&mut to, b"four\n", &mut place), 0);
        assert_eq!(place, Place::Begins);
        assert_eq!(to.taken, b"one\nt\nfour\n");
    }

    #[test]
    fn nothing_written_cuts_nothing_off() {
        let mut to = Output::new(&[Err(ErrorKind::BrokenPipe), Ok(0)]);
        let mut place = Place::Begins;
        for line in ["one\n", "two\n"] {
            assert_eq!(write(&mut to, line.as_bytes(), &mut place), 4);
        }
        assert_eq!(write(&mut to, b"three\n", &mut place), 0);
        assert_eq!(to.taken, b"three\n");
    }

    /// At every level, and until a line that says it is not lost itself.
    #[test]
    fn how_many_were_lost_is_said_until_the_log_takes_it() {
        for level in [Level::ERROR, Level::DEBUG] {
            let queue = Arc::new(LogLines::new(1000));
            let said = std::cell::Cell::new(0);
            let say = || {
                let mut last = said.get();
                tracing::subscriber::with_default(subscriber(Arc::clone(&queue), level), || {
                    say_lost(&queue, &mut last);
                });
                said.set(last);
            };
            say();
            queue.push(&[b'\n'; 1000]);
            queue.push(b"one\ntwo\n");
            // There is no room for it, twice.
            say();
            say();
            assert_eq!(queue.lost(), 4);
            queue.take(Vec::new());
            say();
            say();
            let lines = String::from_utf8(queue.take(Vec::new())).unwrap();
            assert_eq!(lines.lines().count(), 1, "{lines}");
            assert!(lines.contains("4 log lines were lost so far"), "{lines}");
            assert_eq!(queue.lost(), 4);
        }
    }
}
