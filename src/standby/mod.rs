//! Stage 5: what a standby, or any other replication client, says and hears.
#![forbid(unsafe_code)]

pub mod answers;
pub mod client;
pub mod parameters;
pub mod refusals;
pub mod start;
pub mod stream;
