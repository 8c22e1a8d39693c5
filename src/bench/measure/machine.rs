//! The machine that a run ran on.

use serde::{Deserialize, Serialize};
use std::fs;

/// The machine. Figures mean little without it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// `uname -r`
    pub kernel: String,
    /// The processor's name.
    pub cpu: String,
    /// CPUs that this process may use.
    pub cpus: usize,
    /// Bytes of memory.
    pub memory: u64,
    /// The default TCP congestion control.
    pub congestion_control: String,
    /// Load averages at the run's start: with other work on the machine, times mean little.
    pub load_average: String,
}

impl Machine {
    /// The current state of this machine.
    pub fn this() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let line = |path: &str| read(path).lines().next().unwrap_or_default().to_owned();
        let load = read("/proc/loadavg");
        Self {
            kernel: line("/proc/sys/kernel/osrelease"),
            cpu: value(&read("/proc/cpuinfo"), "model name").unwrap_or_default().to_owned(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory: kib(&read("/proc/meminfo"), "MemTotal"),
            congestion_control: line("/proc/sys/net/ipv4/tcp_congestion_control"),
            load_average: load.split_whitespace().take(3).collect::<Vec<_>>().join(" "),
        }
    }

    /// Memory available now, in bytes.
    pub fn available_memory() -> u64 {
        kib(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemAvailable")
    }
}

/// Bytes in the TCP buffers of the whole host.
pub fn tcp_memory() -> u64 {
    let text = fs::read_to_string("/proc/net/sockstat").unwrap_or_default();
    tcp_pages(&text).unwrap_or(0) * rustix::param::page_size() as u64
}

fn tcp_pages(sockstat: &str) -> Option<u64> {
    let mut words = sockstat.lines().find_map(|line| line.strip_prefix("TCP:"))?.split_whitespace();
    words.find(|word| *word == "mem")?;
    words.next()?.parse().ok()
}

fn kib(text: &str, name: &str) -> u64 {
    let words = value(text, name).unwrap_or_default();
    words.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) << 10
}

/// The value from a line like `name : value`.
fn value<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then_some(value.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_tables_are_read() {
        let text =
            "sockets: used 215\nTCP: inuse 14 orphan 0 tw 5 alloc 20 mem 37\nUDP: inuse 1 mem 9\n";
        assert_eq!(tcp_pages(text), Some(37));
        assert_eq!(tcp_pages("UDP: mem 9\n"), None);
        assert_eq!(kib("MemFree: 1 kB\nMemTotal:       24 kB\n", "MemTotal"), 24 << 10);
        assert_eq!(value("model name\t: Some CPU\n", "model name"), Some("Some CPU"));
    }

    #[test]
    fn this_machine_has_a_kernel_and_memory() {
        let machine = Machine::this();
        assert!(machine.kernel.contains('.') && machine.memory > 1 << 20, "{machine:?}");
        assert!(Machine::available_memory() > 1 << 20);
    }
}
