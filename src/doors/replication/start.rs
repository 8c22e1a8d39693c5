//! START_REPLICATION with what this hub holds: the cell to stream from, the WAL to keep.

use super::step::{Accepted, Step};
use crate::hub::Hub;
use crate::hub::diverged::Diverged;
use crate::standby::answers::next_timeline;
use crate::standby::client::Session;
use crate::standby::refusals;
use crate::standby::start::{Serving, Start, decide};
use crate::store::slots::SlotUse;
use crate::timeline::{Forks, History};
use crate::wal::{Lsn, SegmentName, TimelineId};
use crate::watermark::Cell;
use crate::wire::backend;
use crate::wire::refusal::Refusal;
use bytes::BytesMut;
use std::sync::Arc;

/// The slot is released when the start is refused.
pub(super) fn start_physical(
    hub: &Hub,
    session: &Session,
    slot: Option<SlotUse>,
    timeline: Option<TimelineId>,
    start: Lsn,
    out: &mut BytesMut,
) -> Result<Step, Refusal> {
    let (Some(identity), Some(current)) = (hub.identity(), hub.current_cell()) else {
        return Err(refusals::starting_up());
    };
    let history = hub.read_history(current.tli()).ok().flatten();
    let forks = history.as_ref().map(History::forks).unwrap_or_default();
    let serving = Serving {
        tli: current.tli(),
        durable: current.limit(),
        forks: &forks,
        size: identity.segment_size,
    };
    let refused = match decide(&serving, timeline, start) {
        Start::Refused(refusal) => return Err(refusal),
        Start::Diverged { tli, end, refusal } => {
            let (application_name, peer) = (session.application_name.clone(), session.peer.clone());
            hub.note_diverged(Diverged { application_name, peer, tli, at: start, end });
            return Err(refusal);
        }
        Start::AlreadyAtEnd { next, at } => {
            next_timeline(next, at, out);
            return Ok(Step::Answered);
        }
        Start::RefusedInCopy(refusal) => refusal,
        Start::Stream { tli, start, segment } => match hold(hub, &forks, (tli, start), segment) {
            Ok(accepted) => {
                hub.note_streaming(&session.application_name, &session.peer);
                let hold = accepted.hold.for_standby(&session.application_name).with_slot(slot);
                return Ok(Step::Stream(Accepted { hold, ..accepted }));
            }
            Err(refusal) => refusal,
        },
    };
    backend::copy_both(out);
    Err(refused)
}

fn hold(
    hub: &Hub,
    forks: &Forks,
    (tli, start): (TimelineId, Lsn),
    segment: SegmentName,
) -> Result<Accepted, Refusal> {
    let removed = || refusals::segment_removed(segment);
    if hub.config.restore.is_some() {
        // A timeline's first file is that of the segment in which it forked off; not even an
        // archive has an earlier one.
        let child = forks.iter().position(|(parent, _)| *parent == tli).unwrap_or(forks.len());
        let begins = child.checked_sub(1).and_then(|parent| forks.get(parent));
        if begins.is_some_and(|(_, fork)| start < fork.segment_start(segment.size)) {
            return Err(removed());
        }
        let cell = hub.cell_of(tli).or_else(|| hub.past_cell(tli, forks)).ok_or_else(removed)?;
        return Ok(Accepted { cell, start, hold: hub.holds.hold_restorable(start) });
    }
    // Standbys ask for the start of the segment with the fork, whose prefix is the parent's.
    let begins = |cell: &Arc<Cell>| cell.start().segment_start(segment.size) <= start;
    let cell = hub.cell_of(tli).filter(begins).ok_or_else(removed)?;
    let hold = hub.holds.hold(start).map_err(|_| removed())?;
    Ok(Accepted { cell, start, hold })
}
