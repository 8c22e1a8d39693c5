//! Memory of processes.

use super::machine::tcp_memory;
use super::processes::Servers;
use serde::{Deserialize, Serialize};
use std::fs;

/// The memory of the server's processes, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// How many processes.
    pub processes: usize,
    /// The sum of their private memory.
    pub private: u64,
    /// The same plus their shares of shared memory.
    pub pss: u64,
    /// TCP buffers of the whole host: this server's, its clients' and all others.
    pub tcp: u64,
}

impl Memory {
    /// The memory now.
    pub fn of(servers: &Servers) -> Self {
        let mut sum = Self { tcp: tcp_memory(), ..Self::default() };
        for pid in servers.pids() {
            // A process that has just ended holds nothing.
            let Ok(text) = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) else {
                continue;
            };
            sum.processes += 1;
            let (private, pss) = rollup(&text);
            sum.private += private;
            sum.pss += pss;
        }
        sum
    }
}

/// Private and proportional bytes of a `smaps_rollup`.
fn rollup(text: &str) -> (u64, u64) {
    let (mut private, mut pss) = (0, 0);
    for line in text.lines() {
        let Some((name, rest)) = line.split_once(':') else { continue };
        let kib = rest.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok());
        let bytes = kib.unwrap_or(0) << 10;
        match name {
            "Private_Clean" | "Private_Dirty" | "Private_Hugetlb" => private += bytes,
            "Pss" => pss += bytes,
            _ => {}
        }
    }
    (private, pss)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_memory_is_added_up() {
        let text = "55d0-7ffc ---p 00000000 00:00 0    [rollup]\n\
                    Rss:                1000 kB\nPss:                 600 kB\n\
                    Pss_Dirty:           300 kB\nShared_Clean:        500 kB\n\
                    Private_Clean:        10 kB\nPrivate_Dirty:       200 kB\n\
                    Private_Hugetlb:    2048 kB\n";
        assert_eq!(rollup(text), (2258 << 10, 600 << 10));
    }

    #[test]
    fn we_hold_something_ourselves() {
        let memory = Memory::of(&Servers::One(std::process::id()));
        assert_eq!(memory.processes, 1);
        assert!(memory.private > 100 << 10 && memory.pss >= memory.private / 2, "{memory:?}");
    }
}
