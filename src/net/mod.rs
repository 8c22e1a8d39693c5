//! Sockets of both directions on the control thread's runtime.
#![forbid(unsafe_code)]

mod connect;
mod socket;
pub mod tcp;

pub use connect::connect;
pub use socket::{Family, Socket};
