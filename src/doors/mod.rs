//! Where clients come in: which are admitted, what they ask, and what they are answered.
#![forbid(unsafe_code)]

pub mod replication;
