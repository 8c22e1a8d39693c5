//! Answers to a replication client outside its stream.

use super::client::StreamEnd;
use crate::wal::{Lsn, TimelineId};
use crate::wire::backend::{self, Column};
use bytes::BytesMut;

/// The longest message a client may send outside a stream. Commands are short.
pub const MAX_MESSAGE: usize = 64 * 1024;

/// What is still owed to the client after its stream.
pub fn after_stream(ended: &StreamEnd, out: &mut BytesMut) {
    match ended {
        StreamEnd::ClientDone => {
            backend::command_complete(out, "START_STREAMING");
            backend::command_complete(out, "START_REPLICATION");
        }
        StreamEnd::Timeline { next, at } => next_timeline(*next, *at, out),
        StreamEnd::Failed(refusal) => backend::error(out, refusal),
    }
    backend::ready_for_query(out);
}

/// The row after the end of a timeline, with the two CommandComplete that walreceivers expect.
pub fn next_timeline(next: TimelineId, at: Lsn, out: &mut BytesMut) {
    let columns = [Column::int8("next_tli"), Column::text("next_tli_startpos")];
    backend::row_description(out, &columns);
    row(out, &[Some(&next.to_string()), Some(&at.to_string())]);
    backend::command_complete(out, "START_STREAMING");
    backend::command_complete(out, "START_REPLICATION");
}

/// A DataRow of texts.
pub fn row(out: &mut BytesMut, values: &[Option<&str>]) {
    let values: Vec<_> = values.iter().map(|value| value.map(str::as_bytes)).collect();
    backend::data_row(out, &values);
}
