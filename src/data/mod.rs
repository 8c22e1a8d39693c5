//! Engine: the data cores. Each is one thread with one ring; core 0 has the receive
//! role, and every core sends to the standbys it owns.
#![forbid(unsafe_code)]

pub mod blocks;
pub mod core;
pub mod figures;
pub mod files;
#[cfg(walhub_flip)]
mod flip;
pub mod handoff;
mod io;
mod laggard;
mod listen;
mod moment;
pub mod receive;
mod send;
pub mod sender;
#[cfg(all(test, not(walhub_loom)))]
mod simulation;
pub mod table;
#[cfg(test)]
#[cfg(not(walhub_loom))]
mod tests;
pub mod token;
mod zerocopy;

pub use core::{CoreParts, DataCore};
pub use io::Peer;
pub use moment::Moment;
pub use receive::{Receiver, Store};

use crate::ring::{Clock, Fd, Ring};
use crate::wire::time::PgTime;
use std::net::Shutdown;

/// The time of day, for messages only: no timeout depends on it.
fn pg_now(clock: &impl Clock) -> PgTime {
    PgTime::from(clock.time_of_day())
}

/// Shuts both sides of a socket: operations in flight end, and let it close.
fn shut<R: Ring>(ring: &mut R, socket: &Fd) {
    if let Err(error) = ring.shut(socket, Shutdown::Both) {
        // The peer was faster.
        tracing::trace!("shutdown of a socket: {error}");
    }
}
