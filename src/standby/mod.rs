//! Stage 5: the messages from and to a standby or any other replication client.
#![forbid(unsafe_code)]

pub mod answers;
pub mod client;
pub mod parameters;
pub mod refusals;
pub mod start;
pub mod stream;
