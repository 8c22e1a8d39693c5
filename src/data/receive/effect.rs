//! What the receive role has done for it.

use crate::keeper::Job;
use crate::ring::{ChunkRange, Fd};
use crate::store::append::WriteId;
use crate::upstream::end::UpstreamEnd;
use crate::wal::SegmentNo;
use crate::wire::copy::{HotStandbyFeedback, StatusReply};
use crate::wire::frontend;
use bytes::BytesMut;

/// One thing to be done, in the order in which they come out. `F` is an open file.
#[derive(Debug)]
pub enum Effect<F = Fd> {
    /// Write the bytes at `offset` of the file; then
    /// [`Receiver::on_written`](super::Receiver::on_written).
    Write {
        /// Comes back with the completion.
        id: WriteId,
        /// Where to.
        file: F,
        /// Where in the file.
        offset: u64,
        /// They stay as they are for as long as this lives (I7).
        bytes: ChunkRange,
    },
    /// fdatasync; then [`Receiver::on_synced`](super::Receiver::on_synced).
    Sync {
        /// Comes back with the completion.
        segment: SegmentNo,
        /// Its file.
        file: F,
    },
    /// Give the keeper a job; its answer comes to
    /// [`Receiver::on_keeper`](super::Receiver::on_keeper).
    Job(Job),
    /// Give the keeper this job before all that wait for a place in its queue.
    UrgentJob(Job),
    /// Forget the jobs that wait for a place in the keeper's queue: they are about files
    /// that are written no longer.
    ForgetJobs,
    /// Tell the upstream.
    Tell(ToUpstream),
    /// The watermark has moved: wake the cores that sleep.
    Published,
    /// Close the connection to the upstream.
    Disconnect(Goodbye),
    /// Tell the control thread that the stream has ended.
    Ended(UpstreamEnd),
    /// End the process: WAL could not be made durable (I9).
    Halt,
}

/// A message for the upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToUpstream {
    /// How far this hub is.
    Status(StatusReply),
    /// What standbys' queries need.
    Feedback(HotStandbyFeedback),
    /// CopyDone.
    CopyDone,
}

impl ToUpstream {
    /// Appends the message as it goes over the wire.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Status(status) => out.extend_from_slice(&status.encode()),
            Self::Feedback(feedback) => out.extend_from_slice(&feedback.encode()),
            Self::CopyDone => {
                let mut done = BytesMut::new();
                frontend::copy_done(&mut done);
                out.extend_from_slice(&done);
            }
        }
    }
}

/// How the connection to the upstream is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goodbye {
    /// With Terminate, so that the server logs no error.
    Terminate,
    /// Without a word.
    Silent,
}
