//! The receive role: puts WAL from the upstream into the cache and onto the disk, and then moves
//! the watermark.
//!
//! [`Receiver`] decides and does no I/O. Its methods are called with the events, and return what
//! has to be done as [`Effect`]s, in order. A simulation can therefore drive the same role without
//! a ring, and choose its own type of file.

mod effect;
mod fault;
mod feedback;
mod link;
mod role;
#[cfg(test)]
#[cfg(not(walhub_loom))]
mod tests;
mod store;

pub use effect::{Effect, Goodbye, ToUpstream};
pub use fault::{CacheFault, NoSwitch};
pub use link::Offer;
pub use role::{Admission, EXIT_HALTED, Receiver};
pub use store::{Appended, Store, line};
