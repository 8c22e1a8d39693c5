//! What the digests of the complete segments say.

use crate::status::{DirectoryStatus, SpanContents};
use crate::store::digest::{DigestFile, SegmentDigest, read};
use crate::store::disk::Disk;
use crate::store::layout::Layout;
use crate::wal::{SegmentName, SegmentNo, SegmentSize, Stamp};
use crate::wire::time::PgTime;
use std::time::SystemTime;

/// So many segments are looked at for the first that says when it was written, and for the last: one
/// may lie in a long transaction.
const NEAR: u64 = 64;

impl DirectoryStatus {
    /// A few files for each range of segments: there may be tens of thousands of others between.
    pub(super) async fn read_contents<D: Disk>(
        &mut self,
        disk: &D,
        layout: &Layout,
        size: SegmentSize,
    ) {
        for range in &mut self.segments {
            let names = [&range.first, &range.last].map(|name| SegmentName::parse(name, size));
            let [Some(first), Some(last)] = names else { continue };
            let (oldest, newest) = (first.no.raw(), last.no.raw());
            let near = NEAR.min(range.count);
            let begins = stamps(disk, layout, first, oldest..oldest.saturating_add(near)).await;
            let back = (newest.saturating_sub(near - 1)..newest.saturating_add(1)).rev();
            let ends = stamps(disk, layout, last, back).await;
            let last = known(disk, layout, last).await;
            range.contents = span_contents(
                begins.map(|(first, _)| first),
                ends.map(|(_, last)| last),
                last.as_ref(),
            );
        }
    }
}

/// The time-stamped records of the first of these segments that has any.
async fn stamps<D: Disk>(
    disk: &D,
    layout: &Layout,
    of: SegmentName,
    numbers: impl Iterator<Item = u64>,
) -> Option<(Stamp, Stamp)> {
    for no in numbers {
        let name = SegmentName { no: SegmentNo::new(no), ..of };
        let contents = known(disk, layout, name).await.and_then(|digest| digest.contents);
        if let Some(stamps) = contents.and_then(|contents| contents.stamps) {
            return Some(stamps);
        }
    }
    None
}

async fn known<D: Disk>(disk: &D, layout: &Layout, name: SegmentName) -> Option<SegmentDigest> {
    match read(disk, layout, name).await {
        Ok(DigestFile::Known(digest)) => Some(*digest),
        Ok(DigestFile::Missing | DigestFile::Unreadable(_)) | Err(_) => None,
    }
}

fn span_contents(
    begins: Option<Stamp>,
    ends: Option<Stamp>,
    last: Option<&SegmentDigest>,
) -> Option<SpanContents> {
    let next = last.and_then(|digest| digest.contents?.next_xid);
    let time = |raw| SystemTime::from(PgTime::new(raw));
    let contents = SpanContents {
        first_time: begins.map(|stamp| time(stamp.time)),
        first_time_lsn: begins.map(|stamp| stamp.at),
        last_time: ends.map(|stamp| time(stamp.time)),
        last_time_lsn: ends.map(|stamp| stamp.at),
        next_xid: next.map(|next| next.xid),
        next_xid_epoch: next.and_then(|next| next.epoch),
        last_completed: last.and_then(|digest| digest.completed),
    };
    (contents != SpanContents::default()).then_some(contents)
}
