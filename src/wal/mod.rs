//! The vocabulary of the write-ahead log: positions, names, pages, records, and the walk that
//! proves them. No I/O.
#![forbid(unsafe_code)]
// I11: bytes from peers and disks never cause a panic. Tests may panic.
#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

pub mod contents;
pub mod fork;
pub mod ids;
pub mod lsn;
pub mod page;
pub mod record;
pub mod segment;
pub mod synth;
pub mod walk;

pub use contents::{NextXid, SegmentContents, Stamp};
pub use fork::{Ancestor, Fork};
pub use ids::{SystemId, TimelineId};
pub use lsn::Lsn;
pub use page::{PAGE_SIZE, PageFault, PageHeader, PageRules};
pub use segment::{SegmentName, SegmentNo, SegmentSize};
pub use walk::{Tally, WalkFault, Walker};
