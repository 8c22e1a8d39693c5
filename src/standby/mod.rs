//! Stage 5: what a standby, or any other replication client, says and hears.
#![forbid(unsafe_code)]

pub mod admission;
pub mod diverged;
pub mod parameters;
pub mod refusals;
pub mod session;
pub mod show;
pub mod start;
pub mod stream;
