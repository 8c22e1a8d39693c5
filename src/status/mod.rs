//! The vocabulary of a hub's self-description: one model, printed by every reporter.
//!
//! [`HubStatus`], [`StandbysStatus`], [`SlotStatus`], [`RetentionStatus`], [`FollowedUpstream`] and
//! [`FenceStatus`] describe a running hub, [`DirectoryStatus`] its directory. The values come from the owners of
//! the data; this module gives them their forms, JSON by serde and [`text`] for people. No locks,
//! no I/O, no clock.
//!
//! In JSON positions and identifiers are text, times are ISO 8601 in UTC to the millisecond, and
//! unknown values are null. Named values (a state, a cause) appear as their names, so that a
//! program can read the names of a newer hub as well.
#![forbid(unsafe_code)]

mod ages;
mod archive;
mod directory;
mod form;
mod hub;
mod retention;
mod scrub;
mod slots;
mod standbys;
mod table;
pub mod text;
mod upstream;

pub use ages::Ages;
pub use archive::ArchiverStatus;
pub use directory::{
    DirectoryStatus, EndOfWal, HaltedStatus, LockStatus, RecordedCluster, SealedTimeline,
    SegmentSpan, SpanContents,
};
pub use hub::{ConfirmedStatus, HubStatus, MissingWal, SetAsideStatus, SetAsideTotal};
pub use retention::{KeptBy, LosingSlot, RetentionStatus};
pub use scrub::{DamagedSegment, ScrubStatus};
pub use slots::SlotStatus;
pub use standbys::{DivergedStandby, StandbyStatus, StandbysStatus};
pub use upstream::{
    AbandonedStatus, ArchiveTimelineStatus, EvidenceStatus, FenceStatus, FollowedUpstream,
    ProofOutcome, ProofStatus, SeamStatus, SetBy, UpstreamStatus, needs_an_operator,
};
