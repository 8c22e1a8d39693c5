//! The door of standbys and other replication clients. No I/O; the answers are bytes
//! appended to a buffer, and what has to happen first is a [`step::Step`].

pub mod admission;
pub mod session;
pub mod show;
pub mod slots;
pub mod start;
pub mod step;
