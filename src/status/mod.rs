//! Words of what a hub says of itself: one model, which everybody prints who is asked.
//!
//! [`HubStatus`], [`StandbysStatus`], [`SlotStatus`], [`FollowedUpstream`] and
//! [`FenceStatus`] are of a hub that runs, [`DirectoryStatus`] is of its directory. Whoever
//! knows fills them; here they get their forms, JSON by serde and [`text`] for people. No
//! locks, no I/O, no clock.
//!
//! In JSON positions and identifiers are text, times are ISO 8601 in UTC to the millisecond,
//! what is not known is null. What has a name (a state, a cause) is that name, so that a
//! program reads the names of a newer hub as well.
#![forbid(unsafe_code)]

mod ages;
mod archive;
mod directory;
mod form;
mod hub;
mod slots;
mod standbys;
mod table;
pub mod text;
mod upstream;

pub use ages::Ages;
pub use archive::ArchiverStatus;
pub use directory::{
    DirectoryStatus, EndOfWal, HaltedStatus, LockStatus, RecordedCluster, SealedTimeline,
    SegmentSpan,
};
pub use hub::{HubStatus, MissingWal};
pub use slots::SlotStatus;
pub use standbys::{DivergedStandby, StandbyStatus, StandbysStatus};
pub use upstream::{EvidenceStatus, FenceStatus, FollowedUpstream, SetBy, UpstreamStatus};
