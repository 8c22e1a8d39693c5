//! Where clients come in: who is let in, and what each of them asks and is answered.
#![forbid(unsafe_code)]

pub mod replication;
