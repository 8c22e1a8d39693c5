//! walhub: one physical standby upstream, hundreds of stock PostgreSQL standbys
//! downstream, no replay.

pub mod instance;
pub mod timeline;
pub mod wal;
pub mod wire;

pub mod store;
pub mod watermark;

pub mod keeper;
pub mod ring;
