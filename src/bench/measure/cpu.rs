//! CPU time by the scheduler's own clock, in nanoseconds.
//!
//! A thread's time includes what the kernel did for it, and the softirqs that it met on
//! its way: on loopback the receiver's half of TCP is among what the sender pays.

use super::processes::{Servers, numbers};
use std::collections::HashMap;
use std::fs;
use std::time::Duration;

/// A tick of `/proc/PID/stat` in nanoseconds: USER_HZ is 100 on every architecture that
/// runs this.
const TICK: u64 = 10_000_000;

/// Adds up what the servers' processes use from a moment on.
#[derive(Debug)]
pub struct CpuMeter {
    servers: Servers,
    processes: HashMap<u32, Account>,
}

impl CpuMeter {
    /// Begins to count. A process that is born later counts from its birth.
    pub fn start(servers: Servers) -> Self {
        let mut meter = Self { servers, processes: HashMap::new() };
        for pid in meter.servers.pids() {
            if let Some(look) = Look::at(pid) {
                meter.processes.insert(pid, Account::open(look));
            }
        }
        meter
    }

    /// Whose time it is.
    pub const fn servers(&self) -> &Servers {
        &self.servers
    }

    /// What was used until now. What a process or thread used before it ended is kept, up
    /// to the last call at the least.
    pub fn used(&mut self) -> Duration {
        for pid in self.servers.pids() {
            if let Some(look) = Look::at(pid) {
                self.processes.entry(pid).or_default().take(look);
            }
        }
        Duration::from_nanos(self.processes.values().map(Account::used).sum())
    }
}

/// Two accounts of one process. The sum over its threads counts nanoseconds, and misses
/// those that begin and end between two looks (io_uring's workers do); the process's own
/// is complete and counts ticks. The greater growth is the truth to within a tick.
#[derive(Debug, Default)]
struct Account {
    /// By thread: nanoseconds at the last look.
    threads: HashMap<u32, u64>,
    /// Of threads that have ended.
    ended: u64,
    whole: u64,
    threads_before: u64,
    whole_before: u64,
}

impl Account {
    /// One that counts from this look on.
    fn open(look: Look) -> Self {
        let threads_before = look.threads.values().sum();
        let whole_before = look.whole;
        Self { threads: look.threads, whole: look.whole, ended: 0, threads_before, whole_before }
    }

    fn take(&mut self, look: Look) {
        self.whole = look.whole;
        for (thread, last) in std::mem::replace(&mut self.threads, look.threads) {
            // Less than before is another thread under the same number.
            if self.threads.get(&thread).is_none_or(|now| *now < last) {
                self.ended += last;
            }
        }
    }

    /// Nanoseconds since it was opened.
    fn used(&self) -> u64 {
        let threads = self.ended + self.threads.values().sum::<u64>();
        // A difference of two rounded numbers may be a tick too much.
        let whole = self.whole.saturating_sub(self.whole_before).saturating_sub(TICK);
        threads.saturating_sub(self.threads_before).max(whole)
    }
}

/// A process's books at a moment, in nanoseconds.
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

/// utime and stime, which remember threads that ended.
fn whole(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name of the program stands in parentheses and may hold anything.
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
