//! What the receive role asks others to do.

use crate::keeper::Job;
use crate::ring::{ChunkRange, Fd};
use crate::store::append::WriteId;
use crate::upstream::end::UpstreamEnd;
use crate::wal::SegmentNo;
use crate::wire::copy::{HotStandbyFeedback, StatusReply};
use crate::wire::frontend;
use bytes::BytesMut;

/// One thing to do. Effects are carried out in order. `F` is an open file.
#[derive(Debug)]
pub enum Effect<F = Fd> {
    /// Write the bytes at `offset` of the file; then
    /// [`Receiver::on_written`](super::Receiver::on_written).
    Write {
        /// Comes back with the completion.
        id: WriteId,
        /// The file to write to.
        file: F,
        /// Where in the file.
        offset: u64,
        /// They do not change as long as this lives (I7).
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
    /// Give the keeper this job ahead of all that wait for a place in its queue.
    UrgentJob(Job),
    /// Forget the jobs that wait for a place in the keeper's queue: they are about files that are
    /// no longer written.
    ForgetJobs,
    /// Tell the upstream.
    Tell(ToUpstream),
    /// The watermark has moved: wake the sleeping cores.
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
    /// This hub's positions.
    Status(StatusReply),
    /// What the standbys' queries need.
    Feedback(HotStandbyFeedback),
    /// CopyDone.
    CopyDone,
}

impl ToUpstream {
    /// Appends the message in its wire format.
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
    /// Without a message.
    Silent,
}
