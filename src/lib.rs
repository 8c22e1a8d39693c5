//! walhub: one physical standby upstream, hundreds of stock PostgreSQL standbys
//! downstream, no replay.
//!
//! A byte of WAL travels through the stages from left to right; what standbys report
//! travels back:
//!
//! ```text
//! primary --> upstream --> store --> watermark --> fanout --> standby --> standbys
//! ```
//!
//! - words, which depend on nothing else: [`wal`], [`wire`], [`timeline`], [`cluster`], [`status`];
//! - stages, which depend on words but not on each other: [`upstream`], [`archive`], [`store`],
//!   [`watermark`], [`fanout`], [`standby`];
//! - engines, which join stages and do the I/O: [`ring`], [`data`], [`keeper`], [`archiver`],
//!   [`restorer`], [`scrub`], [`follow`], [`doors`], [`control`]; what they share is in [`hub`],
//!   their settings are in [`config`]; [`ctl`] asks a running hub.

// Words.
pub mod cluster;
pub mod status;
pub mod timeline;
pub mod wal;
pub mod wire;

// Stages.
pub mod archive;
pub mod fanout;
pub mod standby;
pub mod store;
pub mod upstream;
pub mod watermark;

// Shared.
pub mod config;
pub mod ctl;
pub mod doors;
pub mod hub;
pub mod net;

/// The simulations share files with the integration tests, which name this crate.
#[cfg(test)]
extern crate self as walhub;

// Engines.
pub mod archiver;
pub mod control;
pub mod data;
pub mod follow;
pub mod keeper;
pub mod log;
pub mod restorer;
pub mod ring;
pub mod scrub;

// The program.
pub mod bench;
pub mod cli;
pub mod inspect;
pub mod serve;
pub mod verify;
