//! CPU time of processes, from the scheduler's own accounts.

use super::{Pid, Workers};
use std::collections::HashMap;
use std::fs;
use std::time::Duration;

/// A tick of `/proc/<pid>/stat`: USER_HZ is 100 on every architecture that runs this.
const TICK: Duration = Duration::from_millis(10);

/// Two accounts of one process. The sum over its threads counts nanoseconds and forgets
/// those that ended (io_uring's workers come and go); the process's own is complete and
/// counts ticks. The greater growth is the truth to within a tick.
#[derive(Debug, Clone, Copy, Default)]
struct Account {
    threads: Duration,
    whole: Duration,
}

impl Account {
    fn of(pid: Pid) -> Option<Self> {
        Some(Self { threads: threads(pid)?, whole: whole(pid)? })
    }

    fn since(self, earlier: Self) -> Duration {
        let threads = self.threads.saturating_sub(earlier.threads);
        // A difference of two rounded numbers may be a tick too much.
        let whole = self.whole.saturating_sub(earlier.whole).saturating_sub(TICK);
        threads.max(whole)
    }
}

/// Nanoseconds on a CPU, of all threads that live.
fn threads(pid: Pid) -> Option<Duration> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let of = |task: fs::DirEntry| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
    };
    Some(tasks.filter_map(|task| of(task.ok()?)).sum())
}

/// utime and stime, which remember threads that ended.
fn whole(pid: Pid) -> Option<Duration> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name of the program stands in parentheses and may hold anything.
    let mut fields = text.get(text.rfind(')')? + 1..)?.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u32>().ok();
    Some(TICK * next()? + TICK * next()?)
}

/// CPU time of workers from a moment on. Workers that come later count from their birth.
#[derive(Debug)]
pub(crate) struct CpuMeter {
    workers: Workers,
    before: HashMap<Pid, Account>,
    last: HashMap<Pid, Account>,
}

impl CpuMeter {
    /// Begins to count.
    pub(crate) fn start(workers: Workers) -> Self {
        let accounts = workers.pids().into_iter().filter_map(|pid| Some((pid, Account::of(pid)?)));
        let before: HashMap<_, _> = accounts.collect();
        Self { workers, last: before.clone(), before }
    }

    /// Looks now, so that workers which end soon are not forgotten.
    pub(crate) fn look(&mut self) {
        for pid in self.workers.pids() {
            if let Some(account) = Account::of(pid) {
                self.last.insert(pid, account);
            }
        }
    }

    /// What was used until now.
    pub(crate) fn used(&mut self) -> Duration {
        self.look();
        let since = |(pid, last): (&Pid, &Account)| {
            last.since(self.before.get(pid).copied().unwrap_or_default())
        };
        self.last.iter().map(since).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hint::black_box;
    use std::time::Instant;

    #[test]
    fn work_is_counted() {
        let mut meter = CpuMeter::start(Workers::Process(std::process::id()));
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(60) {
            black_box(0);
        }
        let used = meter.used();
        assert!(used > Duration::from_millis(5) && used < Duration::from_secs(10), "{used:?}");
    }
}
