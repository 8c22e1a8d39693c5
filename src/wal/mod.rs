//! Words of the write-ahead log: positions, names, pages, records. No I/O.
#![forbid(unsafe_code)]

pub mod ids;
pub mod lsn;
pub mod page;
pub mod segment;

pub use ids::{SystemId, TimelineId};
pub use lsn::Lsn;
pub use segment::{SegmentName, SegmentNo, SegmentSize};
