//! What a server costs according to the kernel, and the machine it ran on.
//!
//! Processes are measured only through `/proc`: the server need not cooperate.

mod cpu;
mod machine;
mod memory;
mod processes;

pub use cpu::CpuMeter;
pub use machine::{Machine, tcp_memory};
pub use memory::Memory;
pub use processes::Servers;
