//! What the kernel says about processes of servers.

mod cpu;
mod memory;

pub(crate) use cpu::CpuMeter;
pub(crate) use memory::{Memory, kernel_kib};

use crate::fault::{During, Outcome};
use rustix::io::Errno;
use rustix::process::{Signal, kill_process};
use std::fs;
use std::process::Child;

/// A process.
pub(crate) type Pid = u32;

/// The processes that do the work whose price is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Workers {
    /// This process and its threads.
    Process(Pid),
    /// Children of a postmaster that send WAL.
    Walsenders(Pid),
    /// The same, with the walreceiver that feeds them. The startup process, which
    /// replays, is nobody's part in passing WAL on.
    Cascade(Pid),
}

impl Workers {
    /// Those that exist now.
    pub(crate) fn pids(self) -> Vec<Pid> {
        match self {
            Self::Process(pid) => vec![pid],
            Self::Walsenders(postmaster) => children(postmaster, &["postgres: walsender"]),
            Self::Cascade(postmaster) => {
                children(postmaster, &["postgres: walsender", "postgres: walreceiver"])
            }
        }
    }
}

/// Children of a process whose command line begins with one of these words.
fn children(parent: Pid, beginnings: &[&str]) -> Vec<Pid> {
    let path = format!("/proc/{parent}/task/{parent}/children");
    let text = fs::read_to_string(path).unwrap_or_default();
    let named = |pid: &Pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        beginnings.iter().any(|beginning| line.starts_with(beginning.as_bytes()))
    };
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).filter(named).collect()
}

/// Sends a signal to a child; one that is gone already is no error.
pub(crate) fn signal(child: &Child, signal: Signal) -> Outcome {
    match kill_process(rustix::process::Pid::from_child(child), signal) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(error) => Err(error).during("a signal"),
    }
}
