//! CPU time from the scheduler's own accounting, in nanoseconds.
//!
//! A thread's time includes what the kernel did for it and the softirqs that interrupted it: on
//! loopback the sender is also charged for the receiver's half of TCP.

use super::processes::{Servers, numbers};
use std::collections::HashMap;
use std::fs;
use std::time::Duration;

/// A tick of `/proc/PID/stat` in nanoseconds: USER_HZ is 100 on every architecture that
/// runs this.
const TICK: u64 = 10_000_000;

/// Adds up the CPU time that the servers' processes use from its start on.
#[derive(Debug)]
pub struct CpuMeter {
    servers: Servers,
    processes: HashMap<u32, Account>,
}

impl CpuMeter {
    /// Starts counting. A process that starts later counts from its start.
    pub fn start(servers: Servers) -> Self {
        let mut meter = Self { servers, processes: HashMap::new() };
        for pid in meter.servers.pids() {
            if let Some(look) = Look::at(pid) {
                meter.processes.insert(pid, Account::open(look));
            }
        }
        meter
    }

    /// The measured processes.
    pub const fn servers(&self) -> &Servers {
        &self.servers
    }

    /// The CPU time used so far. What a process or thread used before it ended is kept, at least up
    /// to the last call.
    pub fn used(&mut self) -> Duration {
        for pid in self.servers.pids() {
            if let Some(look) = Look::at(pid) {
                self.processes.entry(pid).or_default().take(look);
            }
        }
        Duration::from_nanos(self.processes.values().map(Account::used).sum())
    }
}

/// Two accounts of one process. The sum over its threads counts nanoseconds, but misses threads
/// that begin and end between two samples (io_uring's workers do). The process's own account is
/// complete, but counts ticks. The greater growth is right to within a tick.
#[derive(Debug, Default)]
struct Account {
    /// Nanoseconds at the last sample, by thread.
    threads: HashMap<u32, u64>,
    /// Nanoseconds of threads that have ended.
    ended: u64,
    whole: u64,
    threads_before: u64,
    whole_before: u64,
}

impl Account {
    /// An account that counts from this sample on.
    fn open(look: Look) -> Self {
        let threads_before = look.threads.values().sum();
        let whole_before = look.whole;
        Self { threads: look.threads, whole: look.whole, ended: 0, threads_before, whole_before }
    }

    fn take(&mut self, look: Look) {
        self.whole = look.whole;
        for (thread, last) in std::mem::replace(&mut self.threads, look.threads) {
            // A smaller value than before belongs to another thread with the same ID.
            if self.threads.get(&thread).is_none_or(|now| *now < last) {
                self.ended += last;
            }
        }
    }

    /// Nanoseconds since it was opened.
    fn used(&self) -> u64 {
        let threads = self.ended + self.threads.values().sum::<u64>();
        // The difference of two rounded numbers may be a tick too large.
        let whole = self.whole.saturating_sub(self.whole_before).saturating_sub(TICK);
        threads.saturating_sub(self.threads_before).max(whole)
    }
}

/// A sample of a process's CPU time, in nanoseconds.
#[derive(Debug)]
struct Look {
    threads: HashMap<u32, u64>,
    whole: u64,
}

impl Look {
    /// Returns `None` when the process is gone.
    fn at(pid: u32) -> Option<Self> {
        let tids = numbers(&format!("/proc/{pid}/task")).into_iter();
        let threads = tids.filter_map(|tid| Some((tid, used(pid, tid)?))).collect();
        Some(Self { threads, whole: whole(pid)? })
    }
}

fn used(pid: u32, tid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/schedstat")).ok()?;
    text.split_whitespace().next()?.parse().ok()
}

/// utime and stime, which include threads that have ended.
fn whole(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name is in parentheses and may contain anything.
    let mut fields = text.get(text.rfind(')')? + 1..)?.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some((next()? + next()?).saturating_mul(TICK))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(whole: u64, threads: &[(u32, u64)]) -> Look {
        Look { threads: threads.iter().copied().collect(), whole }
    }

    #[test]
    fn time_of_threads_that_ended_is_kept() {
        let mut account = Account::open(look(0, &[(1, 100), (2, 50)]));
        assert_eq!(account.used(), 0);
        account.take(look(0, &[(1, 110), (3, 5)]));
        assert_eq!(account.used(), 15);
        account.take(look(0, &[(1, 120), (3, 2)]));
        assert_eq!(account.used(), 27, "3 is another one");
        account.take(look(0, &[]));
        assert_eq!(account.used(), 27);
    }

    #[test]
    fn time_of_threads_that_nobody_saw_is_in_the_whole() {
        let mut account = Account::open(look(30 * TICK, &[(1, 100)]));
        account.take(look(31 * TICK, &[(1, 200)]));
        assert_eq!(account.used(), 100, "a tick may be rounding");
        account.take(look(40 * TICK, &[(1, 300)]));
        assert_eq!(account.used(), 9 * TICK);
    }

    #[test]
    fn our_own_time_goes_up() {
        let mut meter = CpuMeter::start(Servers::One(std::process::id()));
        let begun = std::time::Instant::now();
        let mut n = 0u64;
        while meter.used() < Duration::from_millis(20) {
            n = (0..10_000).fold(n, |n, i| n.wrapping_mul(31).wrapping_add(i));
            assert!(begun.elapsed() < Duration::from_secs(30), "{n}");
        }
    }
}
