//! The receive role: WAL from the upstream into the cache and onto the disk, and the
//! watermark behind it.
//!
//! [`Receiver`] decides and does no I/O. What happens is told to it by its methods, and
//! what has to be done for it comes out as [`Effect`]s, in order. So a simulation drives
//! the same role without a ring, and files can be whatever it calls a file.

mod effect;
mod feedback;
mod link;
mod role;
#[cfg(test)]
#[cfg(not(walhub_loom))]
mod tests;
mod store;

pub use effect::{Effect, Goodbye, ToUpstream};
pub use link::Offer;
pub use role::{Admission, EXIT_HALTED, Receiver};
pub use store::{Appended, Store};
