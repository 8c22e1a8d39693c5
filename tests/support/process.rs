//! Processes of servers: signals, descendants, being really gone.

use super::wait::PATIENCE;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, getpid, kill_process};
use std::fs;
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

/// A process that we have started. Dropped, it is killed with all that descends from it,
/// and every one of them is gone: while a backend lives, PostgreSQL does not start again
/// on its data directory.
#[derive(Debug)]
pub(crate) struct Process(Child);

impl Process {
    #[track_caller]
    pub(crate) fn start(command: &mut Command) -> Self {
        let program = command.get_program().to_owned();
        let child = command.spawn();
        Self(child.unwrap_or_else(|error| panic!("{}: {error}", program.display())))
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.0)
    }

    /// Its ends of the pipes that it was given.
    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.0
    }

    /// Returns `None` while it runs.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().unwrap()
    }

    /// Sends a signal to this process alone.
    pub(crate) fn signal(&self, which: Signal) {
        signal(self.pid(), which);
    }

    /// Sends a signal to it and to all that descends from it.
    pub(crate) fn signal_family(&self, which: Signal) {
        for pid in family(self.pid()) {
            signal(pid, which);
        }
    }

    /// Waits for at most `limit` until it has ended by itself.
    #[track_caller]
    pub(crate) fn wait_end(mut self, limit: Duration, what: &str) -> ExitStatus {
        super::wait::within(limit, what, || self.ended())
    }

    /// Memory that this process alone holds, in KiB.
    pub(crate) fn private_kib(&self) -> u64 {
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.0.id())).unwrap();
        rollup
            .lines()
            .filter(|line| line.starts_with("Private_"))
            .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
            .sum()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The number of one that was waited for may be somebody else's.
        if matches!(self.0.try_wait(), Ok(Some(_))) {
            return;
        }
        let family = family(self.pid());
        kill(&family);
        drop(self.0.wait());
        wait_gone(&family);
    }
}

/// kill -9 of everything that descends from this process.
pub(crate) fn kill_descendants() {
    let family = family(getpid());
    let descendants = family.get(1..).unwrap_or_default();
    kill(descendants);
    wait_gone(descendants);
}

fn kill(pids: &[Pid]) {
    for pid in pids {
        // One that is gone already needs no signal.
        kill_process(*pid, Signal::KILL).ok();
    }
}

/// Waits until they are gone; that they are not is a failure of its own, unless there is
/// one already.
fn wait_gone(pids: &[Pid]) {
    let deadline = Instant::now() + PATIENCE;
    while pids.iter().any(|pid| is_running(*pid)) {
        if Instant::now() > deadline {
            assert!(thread::panicking(), "killed processes do not go: {pids:?}");
            return;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Sends a signal; a process that is gone already is no error.
pub(crate) fn signal(pid: Pid, signal: Signal) {
    let sent = kill_process(pid, signal);
    assert!(matches!(sent, Ok(()) | Err(Errno::SRCH)), "{signal:?} to {pid:?}: {sent:?}");
}

/// A process and everything that descends from it, parents first.
pub(crate) fn family(root: Pid) -> Vec<Pid> {
    let parents: Vec<(Pid, Pid)> = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| {
            let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let pid = Pid::from_raw(pid)?;
            Some((pid, stat(pid)?.parent?))
        })
        .collect();
    let mut family = vec![root];
    let mut next = 0;
    while let Some(&parent) = family.get(next) {
        family.extend(parents.iter().filter(|(_, its)| *its == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    family
}

/// Exists and is more than a zombie.
pub(crate) fn is_running(pid: Pid) -> bool {
    stat(pid).is_some_and(|stat| !matches!(stat.state, 'Z' | 'X'))
}

struct Stat {
    state: char,
    parent: Option<Pid>,
}

/// The state and the parent, from `/proc/<pid>/stat`.
fn stat(pid: Pid) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // The name of the program stands in parentheses and may hold anything.
    let mut fields = text.get(text.rfind(')')? + 1..)?.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok().and_then(Pid::from_raw);
    Some(Stat { state, parent })
}
