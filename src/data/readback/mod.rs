//! Read-back: WAL that has left the cache, read from segment files for standbys that catch up. It
//! knows which standby waits for what, which files are open, and what is read next.

pub mod blocks;
pub mod files;
mod role;

pub use blocks::{BLOCK_SIZE, BlockId};
pub use files::MAX_OPEN;
pub use role::{Arrival, ReadBack, ReadFault, Want};
