//! Processes of servers: signals, descendants, being really gone.

use crate::wait;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::process::Child;

/// The process id of a child, as the kernel calls want it.
pub(crate) fn pid_of(child: &Child) -> Pid {
    Pid::from_child(child)
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

/// Sends a signal to a server with all its children.
pub(crate) fn signal_family(child: &Child, which: Signal) {
    for pid in family(pid_of(child)) {
        signal(pid, which);
    }
}

/// kill -9 of a server and all its children, until every one is really gone: while a
/// backend lives, PostgreSQL does not start again on its data directory.
pub(crate) fn kill_family(child: &mut Child) {
    let family = family(pid_of(child));
    for pid in &family {
        signal(*pid, Signal::KILL);
    }
    drop(child.wait());
    wait::until("killed processes are gone", || family.iter().all(|pid| !is_running(*pid)));
}

/// Exists and is more than a zombie.
fn is_running(pid: Pid) -> bool {
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

/// Memory that this process alone holds, in KiB.
pub(crate) fn private_kib(child: &Child) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", child.id())).unwrap();
    rollup
        .lines()
        .filter(|line| line.starts_with("Private_"))
        .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
        .sum()
}
