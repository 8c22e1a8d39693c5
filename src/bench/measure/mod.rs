//! What a server costs, by the kernel's own books, and what machine it was.
//!
//! Of processes nothing but `/proc` is asked: the server needs no part in it.

mod cpu;
mod machine;
mod memory;
mod processes;

pub use cpu::CpuMeter;
pub use machine::{Machine, tcp_memory};
pub use memory::Memory;
pub use processes::Servers;
