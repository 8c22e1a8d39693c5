//! The door for standbys and other replication clients. It does no I/O: answers are bytes appended
//! to a buffer, and what must happen first is a [`step::Step`].

pub mod admission;
pub mod session;
pub mod show;
pub mod slots;
pub mod start;
pub mod step;
