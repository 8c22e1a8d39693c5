//! Runs a command with the shell, in its own process group, until it ends or the hub stops.
//!
//! Source: `src/backend/access/transam/xlogarchive.c`, `RestoreArchivedFile`, and
//! `src/backend/postmaster/pgarch.c`, `pgarch_archiveXlog`. An exit code above 125 (not found, not
//! executable, ended by a signal) means a broken command, any other a missing file.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use std::ffi::OsStr;
use std::io::{self, PipeReader, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tracing::{debug, info};

/// How often the hub checks for its own stop while a command runs.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
/// A longer line is logged in pieces.
const LINE: usize = 1024;
/// What a pipe holds, in bytes.
const PIPE: usize = 65_536;
/// What a command gets to end by itself when it is asked to.
const GRACE: Duration = Duration::from_secs(2);

/// At which level a line that a command prints is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputLevel {
    /// An operator should see it.
    Info,
    /// It was logged before, when the command did the same.
    Debug,
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandOutcome {
    /// Exit code 0.
    Done,
    /// Exit code 1 to 125: for a restore, the file is not there.
    Failed {
        /// The code.
        code: i32,
    },
    /// The command itself is broken or was terminated: exit code above 125 or a signal; in
    /// PostgreSQL's words.
    Broken {
        /// What happened.
        reason: String,
    },
    /// The hub is stopping; the command was ended.
    Stopped,
}

/// Runs `line` by `/bin/sh -c` in `directory`, and waits for its end. Blocks. What it prints
/// is logged line by line; what a process prints that it leaves behind is not, and SIGPIPE ends
/// that process when it prints.
///
/// # Errors
/// The shell could not be started or waited for.
pub fn run(
    line: &OsStr,
    directory: &Path,
    stop: &AtomicBool,
    level: OutputLevel,
) -> io::Result<CommandOutcome> {
    let (pipe, printed) = io::pipe()?;
    let mut child = Command::new("/bin/sh")
        .arg("-c")
        .arg(line)
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(printed.try_clone()?)
        .stderr(printed)
        .process_group(0)
        .spawn()?;
    let group = Pid::from_child(&child);
    let ended = pidfd_open(group, PidfdFlags::empty())?;
    let mut output = Output::new(pipe, level);
    let mut by = |limit: Option<Instant>| -> io::Result<Ended> {
        loop {
            if output.log_until(&ended)? == Ended::Yes {
                return Ok(Ended::Yes);
            }
            let over = match limit {
                Some(limit) => Instant::now() >= limit,
                None => stop.load(Ordering::Relaxed),
            };
            if over {
                return Ok(Ended::No);
            }
        }
    };
    if by(None)? == Ended::Yes {
        output.log_rest();
        return Ok(outcome(child.wait()?));
    }
    // The group may be gone already; then there is nothing to end.
    kill_process_group(group, Signal::TERM).ok();
    if by(Some(Instant::now() + GRACE))? == Ended::No {
        kill_process_group(group, Signal::KILL).ok();
    }
    output.log_rest();
    child.wait()?;
    Ok(CommandOutcome::Stopped)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Yes,
    No,
}

/// The output of a command.
struct Output {
    /// `None` when every process has closed it.
    pipe: Option<PipeReader>,
    /// The last line, still incomplete.
    line: Vec<u8>,
    level: OutputLevel,
}

impl Output {
    fn new(pipe: PipeReader, level: OutputLevel) -> Self {
        Self { pipe: Some(pipe), line: Vec::new(), level }
    }

    /// Logs what arrives for a moment, or until `command` has ended.
    fn log_until(&mut self, command: &OwnedFd) -> io::Result<Ended> {
        let (printed, flags) = match &self.pipe {
            Some(pipe) => (pipe.as_fd(), PollFlags::IN),
            None => (command.as_fd(), PollFlags::empty()),
        };
        let mut fds =
            [PollFd::new(command, PollFlags::IN), PollFd::from_borrowed_fd(printed, flags)];
        match poll(&mut fds, Some(&LOOK)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let [ended, printed] = fds.map(|fd| !fd.revents().is_empty());
        if self.pipe.is_some() && printed {
            self.log_some();
        }
        Ok(if ended { Ended::Yes } else { Ended::No })
    }

    /// Logs what is in the pipe. Neither waits for more nor goes on when as much was read as a
    /// pipe holds: a process that was left behind may have it open for long, and print without
    /// end.
    fn log_rest(&mut self) {
        const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut left = PIPE;
        while left > 0
            && let Some(pipe) = &self.pipe
            && poll(&mut [PollFd::new(pipe, PollFlags::IN)], Some(&AT_ONCE)).is_ok_and(|n| n > 0)
        {
            left = left.saturating_sub(self.log_some());
        }
        self.log_line();
    }

    /// Reads once; there is something to read. Returns how many bytes were read.
    fn log_some(&mut self) -> usize {
        let mut piece = [0; 4096];
        let read = match self.pipe.as_mut().map(|pipe| pipe.read(&mut piece)) {
            Some(Ok(read)) if read > 0 => read,
            Some(Err(error)) if error.kind() == io::ErrorKind::Interrupted => return 0,
            _ => {
                self.pipe = None;
                return 0;
            }
        };
        for byte in piece.iter().take(read) {
            if *byte == b'\n' || self.line.len() >= LINE {
                self.log_line();
            }
            if *byte != b'\n' {
                self.line.push(*byte);
            }
        }
        read
    }

    fn log_line(&mut self) {
        if !self.line.is_empty() {
            let line = String::from_utf8_lossy(&self.line);
            match self.level {
                OutputLevel::Info => info!("command: {line}"),
                OutputLevel::Debug => debug!("command: {line}"),
            }
            self.line.clear();
        }
    }
}

fn outcome(status: ExitStatus) -> CommandOutcome {
    match (status.code(), status.signal()) {
        (Some(0), _) => CommandOutcome::Done,
        (Some(code @ 1..=125), _) => CommandOutcome::Failed { code },
        (Some(126), _) => CommandOutcome::Broken { reason: "command not executable".to_owned() },
        (Some(127), _) => CommandOutcome::Broken { reason: "command not found".to_owned() },
        (Some(code), _) => {
            CommandOutcome::Broken { reason: format!("child process exited with exit code {code}") }
        }
        (None, signal) => CommandOutcome::Broken {
            reason: format!("child process was terminated by signal {}", signal.unwrap_or(0)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::sync::{Arc, mpsc};

    fn sh(line: &str) -> CommandOutcome {
        let never = AtomicBool::new(false);
        run(OsStr::new(line), Path::new("/"), &never, OutputLevel::Info).unwrap()
    }

    #[test]
    fn exit_codes() {
        assert_eq!(sh("true"), CommandOutcome::Done);
        assert_eq!(sh("exit 1"), CommandOutcome::Failed { code: 1 });
        assert_eq!(sh("exit 125"), CommandOutcome::Failed { code: 125 });
        for (line, words) in [
            ("/nonexistent/program", "command not found"),
            ("/etc/passwd", "command not executable"),
            ("exit 200", "child process exited with exit code 200"),
            ("kill -9 $$", "child process was terminated by signal 9"),
        ] {
            assert_eq!(sh(line), CommandOutcome::Broken { reason: words.to_owned() }, "{line}");
        }
    }

    #[test]
    fn it_runs_where_it_is_told_to() {
        let directory = tempfile::tempdir().unwrap();
        let never = AtomicBool::new(false);
        let line = OsStr::new("echo 1 > here");
        let outcome = run(line, directory.path(), &never, OutputLevel::Info).unwrap();
        assert_eq!(outcome, CommandOutcome::Done);
        assert_eq!(std::fs::read_to_string(directory.path().join("here")).unwrap(), "1\n");
    }

    /// More than a pipe holds, and a process that keeps it open.
    #[test]
    fn it_may_print_what_it_likes() {
        let begun = Instant::now();
        let line = "sleep 60 & head -c 300000 /dev/zero; yes | head -n 50000 >&2; exit 3";
        assert_eq!(sh(line), CommandOutcome::Failed { code: 3 });
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    }

    /// As of a process that was left behind and prints faster than anybody reads.
    #[test]
    fn output_without_end_is_not_read_to_its_end() {
        let endless = PipeReader::from(OwnedFd::from(File::open("/dev/zero").unwrap()));
        let (ended, end) = mpsc::channel();
        std::thread::spawn(move || {
            Output::new(endless, OutputLevel::Info).log_rest();
            ended.send(())
        });
        assert_eq!(end.recv_timeout(Duration::from_secs(30)), Ok(()));
    }

    /// One that ignores SIGTERM goes with its children all the same.
    #[test]
    fn it_ends_with_the_hub() {
        let stop = Arc::new(AtomicBool::new(false));
        let directory = tempfile::tempdir().unwrap();
        let began = directory.path().join("began");
        let (ours, path) = (Arc::clone(&stop), directory.path().to_owned());
        let running = std::thread::spawn(move || {
            let line = OsStr::new("trap '' TERM; echo $$ > began; sleep 1000");
            run(line, &path, &ours, OutputLevel::Info).unwrap()
        });
        let limit = Instant::now() + Duration::from_secs(30);
        while !std::fs::read_to_string(&began).is_ok_and(|pid| pid.ends_with('\n')) {
            assert!(Instant::now() < limit, "the command has not begun");
            std::thread::yield_now();
        }
        stop.store(true, Ordering::Relaxed);
        assert_eq!(running.join().unwrap(), CommandOutcome::Stopped);
        let pid = std::fs::read_to_string(&began).unwrap();
        assert!(!Path::new("/proc").join(pid.trim()).exists());
    }
}
