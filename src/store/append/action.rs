//! What the state machine asks of its caller, and why it stops.

use super::Durable;
use crate::wal::{Lsn, SegmentNo};
use std::fmt;

/// Identifies a write, to match its completion.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct WriteId(pub u64);

/// What the caller has to do, in the order of the list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Have the keeper make `<segment>.partial` ready; then
    /// [`segment_ready`](super::Appender::segment_ready) or
    /// [`prepare_failed`](super::Appender::prepare_failed).
    Prepare {
        /// The segment.
        segment: SegmentNo,
        /// WAL below this position stays; nothing from here on may look like WAL.
        keep: Lsn,
    },
    /// Write the bytes `[from, to)` at `offset` of the segment's file; then
    /// [`written`](super::Appender::written). Both ends are widened to pages (the remainder of a
    /// short write may begin anywhere). Bytes not received yet are zeros.
    Write {
        /// Comes back with the completion.
        id: WriteId,
        /// The segment.
        segment: SegmentNo,
        /// Where in its file.
        offset: u64,
        /// First byte.
        from: Lsn,
        /// The position just past the last byte.
        to: Lsn,
    },
    /// fdatasync the segment's file; then [`synced`](super::Appender::synced).
    Sync(SegmentNo),
    /// Have the keeper note that the store's first bytes are durable up to here; then
    /// [`begun`](super::Appender::begun). Only for WAL that begins in this directory.
    Begin(Lsn),
    /// Everything below is durable: publish it.
    Durable(Durable),
    /// All of the segment is durable and no write follows: have the keeper give it its final name;
    /// then [`finalized`](super::Appender::finalized) or
    /// [`finalize_failed`](super::Appender::finalize_failed).
    Finalize(SegmentNo),
    /// No space: forget everything received from this position on and every file handed out,
    /// close the upstream connection, and call [`resume`](super::Appender::resume) before the next
    /// attempt.
    DropToDurable(Lsn),
    /// Nothing may be published any more; the process has to end.
    Halt(HaltReason),
}

/// Why the store stopped for good.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HaltReason {
    /// What was tried.
    pub operation: AppendOperation,
    /// On which segment.
    pub segment: SegmentNo,
    /// The operating system's error message.
    pub error: String,
}

impl fmt::Display for HaltReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = match self.operation {
            AppendOperation::Prepare => "prepare",
            AppendOperation::Write => "write to",
            AppendOperation::Sync => "fdatasync",
            AppendOperation::Begin => "note the beginning of",
            AppendOperation::Finalize => "rename",
        };
        write!(f, "could not {verb} WAL segment number {}: {}", self.segment.raw(), self.error)
    }
}

/// An operation that can fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AppendOperation {
    /// Making a segment's file ready.
    Prepare,
    /// A write.
    Write,
    /// An fdatasync.
    Sync,
    /// Noting the store's beginning.
    Begin,
    /// Giving the final name.
    Finalize,
}
