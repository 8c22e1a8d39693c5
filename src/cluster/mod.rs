//! The vocabulary of a cluster: which one it is, and which hubs pass its WAL on. No I/O.
#![forbid(unsafe_code)]

pub mod identity;
pub mod instance;
