//! walhub: one physical standby upstream, hundreds of stock PostgreSQL standbys
//! downstream, no replay.
//!
//! The modules stand in the order in which a byte of WAL travels:
//!
//! ```text
//! primary --> upstream --> store --> watermark --> fanout --> standby --> standbys
//!             words: wal, wire, timeline      engines: ring, core, keeper, control
//! ```

pub mod wal;
pub mod wire;
pub mod timeline;
pub mod upstream;
pub mod store;
pub mod watermark;
pub mod fanout;
pub mod standby;
pub mod ring;
pub mod core;
pub mod keeper;
pub mod control;
