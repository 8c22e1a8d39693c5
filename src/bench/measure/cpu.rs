//! CPU time by the scheduler's own clock, in nanoseconds.
//!
//! A thread's time includes what the kernel did for it, and the softirqs that it met on
//! its way: on loopback the receiver's half of TCP is among what the sender pays.

use super::processes::{Servers, numbers};
use std::collections::HashMap;
use std::fs;
use std::time::Duration;

/// Adds up what all threads of the servers have used. What a thread used before it
/// ended is kept, up to the last look at it.
#[derive(Debug)]
pub struct CpuMeter {
    servers: Servers,
    /// By process and thread: nanoseconds at the last look.
    threads: HashMap<(u32, u32), u64>,
    ended: u64,
}

impl CpuMeter {
    /// A meter that has seen nothing yet.
    pub fn new(servers: Servers) -> Self {
        Self { servers, threads: HashMap::new(), ended: 0 }
    }

    /// Whose time it is.
    pub const fn servers(&self) -> &Servers {
        &self.servers
    }

    /// Everything used so far, since the processes began.
    pub fn read(&mut self) -> Duration {
        let mut seen = HashMap::with_capacity(self.threads.len());
        for pid in self.servers.pids() {
            for tid in numbers(&format!("/proc/{pid}/task")) {
                let Some(used) = used(pid, tid) else { continue };
                seen.insert((pid, tid), used);
            }
        }
        self.take(seen)
    }

    fn take(&mut self, seen: HashMap<(u32, u32), u64>) -> Duration {
        for (thread, last) in std::mem::replace(&mut self.threads, seen) {
            // Less than before is another thread under the same number.
            if self.threads.get(&thread).is_none_or(|now| *now < last) {
                self.ended += last;
            }
        }
        Duration::from_nanos(self.ended + self.threads.values().sum::<u64>())
    }
}

fn used(pid: u32, tid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/schedstat")).ok()?;
    text.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_of_threads_that_ended_is_kept() {
        let mut meter = CpuMeter::new(Servers::One(0));
        let look = |threads: &[(u32, u64)]| {
            threads.iter().map(|(tid, used)| ((1, *tid), *used)).collect::<HashMap<_, _>>()
        };
        assert_eq!(meter.take(look(&[(1, 100), (2, 50)])).as_nanos(), 150);
        assert_eq!(meter.take(look(&[(1, 110), (3, 5)])).as_nanos(), 165);
        assert_eq!(meter.take(look(&[(1, 120), (3, 2)])).as_nanos(), 177, "3 is another one");
        assert_eq!(meter.take(look(&[])).as_nanos(), 177);
    }

    #[test]
    fn our_own_time_goes_up() {
        let mut meter = CpuMeter::new(Servers::One(std::process::id()));
        let before = meter.read();
        let begun = std::time::Instant::now();
        let mut n = 0u64;
        while meter.read() < before + Duration::from_millis(20) {
            n = (0..10_000).fold(n, |n, i| n.wrapping_mul(31).wrapping_add(i));
            assert!(begun.elapsed() < Duration::from_secs(30), "{n}");
        }
    }
}
