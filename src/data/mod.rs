//! Engine: the data cores. Each is one thread with one ring; core 0 has the receive
//! role, and every core sends to the standbys it owns.
#![forbid(unsafe_code)]

pub mod context;
pub mod core;
pub mod figures;
pub mod handoff;
mod io;
mod moment;
pub mod readback;
pub mod receive;
pub mod send;
#[cfg(all(test, not(walhub_loom)))]
mod simulation;
pub mod table;
#[cfg(test)]
#[cfg(not(walhub_loom))]
mod tests;
pub mod token;

pub use core::{CoreParts, DataCore};
pub use io::Peer;
pub use moment::Moment;
pub use receive::{Receiver, Store};

use crate::ring::{Fd, Ring};
use std::net::Shutdown;

/// Shuts both sides of a socket: operations in flight end, so that it can close.
fn shut<R: Ring>(ring: &mut R, socket: &Fd) {
    if let Err(error) = ring.shut(socket, Shutdown::Both) {
        // The peer closed first.
        tracing::trace!("could not shut down a socket: {error}");
    }
}
