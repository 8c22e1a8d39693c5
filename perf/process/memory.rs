//! Memory of processes, and what the kernel holds besides.

use super::{Pid, Workers};
use std::fs;

/// What some workers and the kernel hold at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    /// Pages that belong to one of the workers alone.
    pub(crate) private_kib: f64,
    /// Of the whole machine, see [`kernel_kib`].
    pub(crate) kernel_kib: f64,
}

impl Memory {
    pub(crate) fn of(workers: Workers) -> Self {
        Self {
            private_kib: workers.pids().into_iter().map(private_kib).sum(),
            kernel_kib: kernel_kib(),
        }
    }
}

fn private_kib(pid: Pid) -> f64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    kib(&rollup, |name| name.starts_with("Private_"))
}

/// Slab, kernel stacks, page tables and the memory of TCP, of the whole machine and so
/// of both ends of every connection. Only differences mean anything.
pub(crate) fn kernel_kib() -> f64 {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let names = ["Slab:", "KernelStack:", "PageTables:"];
    kib(&meminfo, |name| names.contains(&name)) + tcp_kib()
}

/// Pages that TCP holds for queued bytes.
fn tcp_kib() -> f64 {
    let text = fs::read_to_string("/proc/net/sockstat").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("TCP: ")).unwrap_or_default();
    let mut words = line.split_whitespace().skip_while(|word| *word != "mem").skip(1);
    let page_kib = rustix::param::page_size() as f64 / 1024.0;
    words.next().and_then(|word| word.parse::<f64>().ok()).unwrap_or(0.0) * page_kib
}

/// The sum of the lines `name: number kB` whose name is wanted.
fn kib(text: &str, wanted: impl Fn(&str) -> bool) -> f64 {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let name = words.next().filter(|name| wanted(name))?;
            let number = words.next()?.parse::<f64>().ok()?;
            (!name.is_empty()).then_some(number)
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_summed() {
        let text = "Rss: 100 kB\nPrivate_Clean:  4 kB\nPrivate_Dirty:   16 kB\n";
        assert!((kib(text, |name| name.starts_with("Private_")) - 20.0).abs() < 1e-9);
        assert!(private_kib(std::process::id()) > 100.0);
        assert!(kernel_kib() > 100.0);
    }
}
