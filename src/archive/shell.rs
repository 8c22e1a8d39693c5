//! Runs a command by the shell, in a process group of its own, until it ends or the hub does.
//!
//! Source: `src/backend/access/transam/xlogarchive.c`, `RestoreArchivedFile`, and
//! `src/backend/postmaster/pgarch.c`, `pgarch_archiveXlog`: an exit code above 125 (not found,
//! not executable, ended by a signal) is a broken command, any other a file that is not there.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use std::ffi::OsStr;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How often a running command is looked at for the hub's end.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
/// What a command gets to end by itself when it is asked to.
const GRACE: Duration = Duration::from_secs(2);

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Exit code 0.
    Done,
    /// Exit code 1 to 125: for a restore, the file is not there.
    Failed {
        /// The code.
        code: i32,
    },
    /// The command itself is broken or was ended: exit code above 125 or a signal; in
    /// PostgreSQL's words.
    Broken {
        /// What happened.
        reason: String,
    },
    /// The hub ends; so did the command.
    Stopped,
}

/// Runs `line` by `/bin/sh -c` in `directory`, and waits for its end. Blocks. What it prints
/// goes where the hub's own log goes.
///
/// # Errors
/// The shell could not be started or waited for.
pub fn run(line: &OsStr, directory: &Path, stop: &AtomicBool) -> io::Result<Outcome> {
    let mut child = Command::new("/bin/sh")
        .arg("-c")
        .arg(line)
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(io::stderr())
        .process_group(0)
        .spawn()?;
    let group = Pid::from_child(&child);
    let ended = pidfd_open(group, PidfdFlags::empty())?;
    let by = |limit: Option<Instant>| -> io::Result<Ended> {
        loop {
            let mut fds = [PollFd::new(&ended, PollFlags::IN)];
            match poll(&mut fds, Some(&LOOK)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(Ended::Yes),
                Err(error) => return Err(error.into()),
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
        return Ok(outcome(child.wait()?));
    }
    // The group may be gone already; then there is nothing to end.
    kill_process_group(group, Signal::TERM).ok();
    if by(Some(Instant::now() + GRACE))? == Ended::No {
        kill_process_group(group, Signal::KILL).ok();
    }
    child.wait()?;
    Ok(Outcome::Stopped)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Yes,
    No,
}

fn outcome(status: ExitStatus) -> Outcome {
    match (status.code(), status.signal()) {
        (Some(0), _) => Outcome::Done,
        (Some(code @ 1..=125), _) => Outcome::Failed { code },
        (Some(126), _) => Outcome::Broken { reason: "command not executable".to_owned() },
        (Some(127), _) => Outcome::Broken { reason: "command not found".to_owned() },
        (Some(code), _) => {
            Outcome::Broken { reason: format!("child process exited with exit code {code}") }
        }
        (None, signal) => Outcome::Broken {
            reason: format!("child process was terminated by signal {}", signal.unwrap_or(0)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn sh(line: &str) -> Outcome {
        let never = AtomicBool::new(false);
        run(OsStr::new(line), Path::new("/"), &never).unwrap()
    }

    #[test]
    fn exit_codes() {
        assert_eq!(sh("true"), Outcome::Done);
        assert_eq!(sh("exit 1"), Outcome::Failed { code: 1 });
        assert_eq!(sh("exit 125"), Outcome::Failed { code: 125 });
        for (line, words) in [
            ("/nonexistent/program", "command not found"),
            ("/etc/passwd", "command not executable"),
            ("exit 200", "child process exited with exit code 200"),
            ("kill -9 $$", "child process was terminated by signal 9"),
        ] {
            assert_eq!(sh(line), Outcome::Broken { reason: words.to_owned() }, "{line}");
        }
    }

    #[test]
    fn it_runs_where_it_is_told_to() {
        let directory = tempfile::tempdir().unwrap();
        let never = AtomicBool::new(false);
        let outcome = run(OsStr::new("echo 1 > here"), directory.path(), &never).unwrap();
        assert_eq!(outcome, Outcome::Done);
        assert_eq!(std::fs::read_to_string(directory.path().join("here")).unwrap(), "1\n");
    }

    /// One that ignores SIGTERM goes with its children all the same.
    #[test]
    fn it_ends_with_the_hub() {
        let stop = Arc::new(AtomicBool::new(false));
        let directory = tempfile::tempdir().unwrap();
        let began = directory.path().join("began");
        let (ours, path) = (Arc::clone(&stop), directory.path().to_owned());
        let running = std::thread::spawn(move || {
            run(OsStr::new("trap '' TERM; echo $$ > began; sleep 1000"), &path, &ours).unwrap()
        });
        let limit = Instant::now() + Duration::from_secs(30);
        while !std::fs::read_to_string(&began).is_ok_and(|pid| pid.ends_with('\n')) {
            assert!(Instant::now() < limit, "the command has not begun");
            std::thread::yield_now();
        }
        stop.store(true, Ordering::Relaxed);
        assert_eq!(running.join().unwrap(), Outcome::Stopped);
        let pid = std::fs::read_to_string(&began).unwrap();
        assert!(!Path::new("/proc").join(pid.trim()).exists());
    }
}
