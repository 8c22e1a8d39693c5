//! START_REPLICATION with what this hub holds: the cell to stream from, the WAL to keep.

use super::step::{Accepted, Step};
use crate::hub::Hub;
use crate::hub::diverged::{Diverged, Left};
use crate::standby::answers::next_timeline;
use crate::standby::client::Session;
use crate::standby::refusals;
use crate::standby::start::{Serving, Start, decide};
use crate::store::seams::Seam;
use crate::store::slots::SlotUse;
use crate::timeline::{Forks, History, heirs};
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
            let seam = seam_under(hub, slot.as_ref(), &forks, tli);
            let left = seam.map_or(Left::Fork(end), Left::Seam);
            note_diverged(hub, session, (tli, start), left);
            return Err(seam.map_or(refusal, |seam| {
                refusals::start_past_fork_and_seam(start, (tli, end), (seam.tli, seam.at))
            }));
        }
        Start::AlreadyAtEnd { tli, next, at } => {
            seam_before(hub, session, slot.as_ref(), (tli, at))?;
            next_timeline(next, at, out);
            return Ok(Step::Answered);
        }
        Start::RefusedInCopy(refusal) => refusal,
        Start::Stream { tli, start, segment } => {
            if tli != current.tli() && !reaches_its_fork(&current, &forks) {
                return Err(refusals::starting_up());
            }
            let seam = seam_before(hub, session, slot.as_ref(), (tli, start))?;
            match hold(hub, &forks, (tli, start), segment) {
                Ok(accepted) => {
                    // On a timeline that has ended it may have WAL past the end. Its first report
                    // tells.
                    if seam.is_none() && tli == current.tli() {
                        hub.note_streaming(&session.application_name, &session.peer);
                    }
                    let hold = accepted.hold.for_standby(&session.application_name).with_slot(slot);
                    return Ok(Step::Stream(Accepted { seam, hold, ..accepted }));
                }
                Err(refusal) => refusal,
            }
        }
    };
    backend::copy_both(out);
    Err(refused)
}

/// A hub that began in the segment of a fork may not have all of the ancestors' WAL yet, although they
/// have ended. A standby that is told so comes back.
fn reaches_its_fork(current: &Cell, forks: &Forks) -> bool {
    forks.last().is_none_or(|(_, fork)| current.limit() >= *fork)
}

/// The seam past which the standby must not be, and is not by what it asks for.
fn seam_before(
    hub: &Hub,
    session: &Session,
    slot: Option<&SlotUse>,
    (tli, start): (TimelineId, Lsn),
) -> Result<Option<Lsn>, Refusal> {
    let seam = hub.course.seams().first_before(tli, slot.and_then(SlotUse::position));
    // A hub compares before it streams, and says then that it keeps nothing of that. It is told no
    // more than any other, but finds out by itself where the two histories part.
    let is_hub = session.instance.is_some();
    let Some(at) = seam.filter(|seam| start > *seam && !is_hub) else { return Ok(seam) };
    note_diverged(hub, session, (tli, start), Left::Seam(Seam { tli, at }));
    Err(refusals::start_past_seam(start, tli, at))
}

/// The first seam in what our history has of `tli`, which has ended, and of its ancestors. A standby
/// that has WAL past the end of `tli` may have the former WAL from that seam on.
fn seam_under(hub: &Hub, slot: Option<&SlotUse>, forks: &Forks, tli: TimelineId) -> Option<Seam> {
    let (seams, slot) = (hub.course.seams(), slot.and_then(SlotUse::position));
    let own = forks.iter().position(|(known, _)| *known == tli)?;
    forks.iter().take(own + 1).find_map(|(tli, end)| {
        let at = seams.first_before(*tli, slot).filter(|at| at <= end)?;
        Some(Seam { tli: *tli, at })
    })
}

fn note_diverged(hub: &Hub, session: &Session, (tli, at): (TimelineId, Lsn), left: Left) {
    let (application_name, peer) = (session.application_name.clone(), session.peer.clone());
    hub.note_diverged(Diverged { application_name, peer, tli, at, left });
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
        let hold = hub.holds.hold_restorable(start);
        return Ok(Accepted { cell, start, seam: None, hold });
    }
    // Standbys ask for the start of the segment with the fork, whose prefix is the parent's.
    let begins = |cell: &Arc<Cell>| cell.start().segment_start(segment.size) <= start;
    let hold = hub.holds.hold(start).map_err(|_| removed())?;
    let own = hub.cell_of(tli).filter(begins);
    // A hub that began after the fork has those bytes in the child's file.
    let last = hub.current_cell().map(|cell| cell.tli()).ok_or_else(removed)?;
    let children = heirs(forks, last, tli, (start.segment(segment.size), segment.size));
    let is_here = |child: TimelineId| hub.cell_of(child).is_some_and(|cell| begins(&cell));
    let is_inherited = children.into_iter().any(is_here);
    let inherited = || is_inherited.then(|| hub.past_cell(tli, forks)).flatten();
    let cell = own.or_else(inherited).ok_or_else(removed)?;
    Ok(Accepted { cell, start, seam: None, hold })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::instance::InstanceId;
    use crate::hub::tests::hub;
    use crate::store::seams::{Cut, Seams};
    use crate::store::slots::{Create, InvalidSlots, Origin, SlotName};
    use crate::wire::command::SlotLifetime;
    use bytes::Bytes;
    use std::time::Duration;

    const TLI: TimelineId = TimelineId::FIRST;
    const BEGIN: Lsn = Lsn::new(0x500_0000);
    const SEAM: Lsn = Lsn::new(0x500_8000);
    const END: Lsn = Lsn::new(0x700_0000);

    /// A hub with a seam in its WAL.
    fn scene() -> Hub {
        let hub = hub("15.18");
        hub.holds.begin(BEGIN);
        hub.push_cell(Arc::new(Cell::new(TLI, BEGIN, END)));
        set_seam(&hub);
        hub
    }

    fn set_seam(hub: &Hub) {
        let mut seams = Seams::default();
        let seam = Seam { tli: TLI, at: SEAM };
        seams.begin(Cut::Past(seam), &[seam]).unwrap();
        seams.finish();
        hub.course.set_seams(seams);
    }

    /// A hub whose timeline is the third, with a seam in what it has of the first. The first ended
    /// at `end`, the second at [`END`].
    fn after_failovers(end: &str) -> Hub {
        let (hub, last) = (hub("15.18"), TimelineId::new(3).unwrap());
        hub.holds.begin(BEGIN);
        let history = format!("1\t{end}\tno recovery target\n2\t{END}\tno recovery target\n");
        hub.set_history(last, Bytes::from(history));
        hub.push_cell(Arc::new(Cell::new(last, BEGIN, END.saturating_add(0x10_0000))));
        set_seam(&hub);
        hub
    }

    fn start(hub: &Hub, slot: Option<SlotUse>, at: Lsn) -> Result<Option<Lsn>, String> {
        start_of(None, hub, slot, at)
    }

    fn start_of(
        instance: Option<InstanceId>,
        hub: &Hub,
        slot: Option<SlotUse>,
        at: Lsn,
    ) -> Result<Option<Lsn>, String> {
        match ask(instance, hub, slot, (TLI, at)) {
            Ok(Step::Stream(accepted)) => Ok(accepted.seam),
            Ok(other) => panic!("{other:?}"),
            Err(refusal) => Err(format!("{} {}", refusal.sqlstate, refusal.message)),
        }
    }

    fn ask(
        instance: Option<InstanceId>,
        hub: &Hub,
        slot: Option<SlotUse>,
        (tli, at): (TimelineId, Lsn),
    ) -> Result<Step, Refusal> {
        let session = Session {
            pid: 7,
            user: "u".to_owned(),
            application_name: "s".to_owned(),
            peer: "10.0.0.1:5".to_owned(),
            wal_sender_timeout: Duration::ZERO,
            instance,
        };
        start_physical(hub, &session, slot, Some(tli), at, &mut BytesMut::new())
    }

    /// A slot that was reserved there, and whose standby has reported this.
    fn slot(hub: &Hub, reserve: Lsn, reported: Lsn) -> SlotUse {
        let name = SlotName::parse("s").unwrap();
        let mut slots = hub.holds.slots.lock();
        let (session, lifetime) = (slots.enter(7), SlotLifetime::Persistent);
        let origin = Origin::Asked;
        let create =
            Create { name: name.clone(), lifetime, origin, reserve: Some(reserve), session };
        slots.create(create, 10).unwrap();
        slots.set_free(&name);
        drop(slots);
        let slot = hub.holds.use_slot("s", session, InvalidSlots::Accept).unwrap();
        slot.confirm(reported);
        slot
    }

    #[test]
    fn who_may_have_the_former_wal_is_asked_or_refused() {
        let hub = scene();
        hub.note_diverged(Diverged {
            application_name: "s".to_owned(),
            peer: "10.0.0.1:9".to_owned(),
            tli: TLI,
            at: END,
            left: Left::Seam(Seam { tli: TLI, at: SEAM }),
        });
        assert_eq!(start(&hub, None, BEGIN), Ok(Some(SEAM)));
        assert_eq!(hub.diverged().len(), 1, "it has not passed yet");
        let refused = start(&hub, None, Lsn::new(0x600_0000)).unwrap_err();
        assert_eq!(
            refused,
            "XX000 requested starting point 0/6000000 on timeline 1 is not in this server's history"
        );
        assert_eq!(hub.diverged()[0].at, Lsn::new(0x600_0000));
        let below = Some(InstanceId::new(0xB));
        assert_eq!(start_of(below, &hub, None, Lsn::new(0x600_0000)), Ok(Some(SEAM)));
        hub.course.set_seams(Seams::default());
        assert_eq!(start(&hub, None, Lsn::new(0x600_0000)), Ok(None));
        assert!(hub.diverged().is_empty());
    }

    /// `pg_rewind` would go back to where the timelines part, and find nothing of the seam.
    #[test]
    fn who_is_past_the_end_of_a_timeline_with_a_seam_before_it_needs_a_base_backup() {
        let past_end = |end: &str, slot: Option<Lsn>, tli: u32| {
            let hub = after_failovers(end);
            let slot = slot.map(|reported| self::slot(&hub, BEGIN, reported));
            let at = END.saturating_add(0x10_0000);
            let refused = ask(None, &hub, slot, (TimelineId::new(tli).unwrap(), at)).unwrap_err();
            (hub.diverged()[0].left, refused.hint.unwrap_or_default())
        };
        let seam = Left::Seam(Seam { tli: TLI, at: SEAM });
        for tli in [1, 2] {
            let (left, hint) = past_end("0/6000000", None, tli);
            assert_eq!(left, seam, "{tli}");
            for part in ["0/5008000", "from a base backup; pg_rewind cannot tell the two apart"] {
                assert!(hint.contains(part), "{hint}");
            }
        }
        let (end, none) = (Lsn::new(0x600_0000), String::new());
        let followed = past_end("0/6000000", Some(Lsn::new(0x580_0000)), 1);
        assert_eq!(followed, (Left::Fork(end), none.clone()), "by its slot");
        let before = Left::Fork(Lsn::new(0x500_4000));
        assert_eq!(past_end("0/5004000", None, 1), (before, none), "our history leaves it before");
    }

    #[test]
    fn who_is_at_the_end_of_a_timeline_is_not_told_the_next_one_over_a_seam() {
        let at_end = |slot: Option<Lsn>| {
            let hub = after_failovers("0/6000000");
            let slot = slot.map(|reported| self::slot(&hub, BEGIN, reported));
            match ask(None, &hub, slot, (TLI, Lsn::new(0x600_0000))) {
                Ok(Step::Answered) => Ok(()),
                Ok(other) => panic!("{other:?}"),
                Err(refusal) => Err(refusal.message),
            }
        };
        let refused = at_end(None).unwrap_err();
        assert!(
            refused.starts_with("requested starting point 0/6000000 on timeline 1"),
            "{refused}"
        );
        assert_eq!(at_end(Some(Lsn::new(0x580_0000))), Ok(()));
    }

    /// It asks for the beginning of a segment, whatever it has of that.
    #[test]
    fn only_a_start_on_the_current_timeline_takes_a_standby_off_the_list() {
        let hub = after_failovers("0/6000000");
        hub.course.set_seams(Seams::default());
        let last = TimelineId::new(3).unwrap();
        let first = Arc::new(Cell::new(TLI, BEGIN, Lsn::new(0x600_0000)));
        hub.set_cells(std::iter::once(first).chain(hub.cells()).collect());
        for (tli, named) in [(TLI, 1), (last, 0)] {
            let left = Left::Fork(Lsn::new(0x600_0000));
            let (application_name, peer) = ("s".to_owned(), "10.0.0.1:9".to_owned());
            hub.note_diverged(Diverged { application_name, peer, tli: TLI, at: END, left });
            assert!(matches!(ask(None, &hub, None, (tli, BEGIN)), Ok(Step::Stream(_))));
            assert_eq!(hub.diverged().len(), named, "{tli}");
        }
    }

    #[test]
    fn an_ancestor_is_served_once_its_last_bytes_are_here() {
        let start_at = |durable: u64| {
            let (hub, child) = (hub("15.18"), TimelineId::new(2).unwrap());
            hub.holds.begin(BEGIN);
            hub.set_history(child, Bytes::from_static(b"1\t0/5008000\tno recovery target\n"));
            hub.push_cell(Arc::new(Cell::new(child, BEGIN, Lsn::new(durable))));
            start(&hub, None, BEGIN)
        };
        assert_eq!(start_at(0x500_8000), Ok(None));
        assert_eq!(start_at(0x500_7FF8), Err("57P03 the database system is starting up".into()));
    }

    #[test]
    fn a_slot_past_a_seam_shows_that_its_standby_has_followed() {
        let (before, past) = (Lsn::new(0x500_4000), Lsn::new(0x600_0000));
        let followed = |reserve, reported| {
            let hub = scene();
            let slot = slot(&hub, reserve, reported);
            start(&hub, Some(slot), Lsn::new(0x600_0000)).is_ok()
        };
        assert!(!followed(before, Lsn::INVALID));
        assert!(!followed(before, SEAM));
        assert!(followed(before, past));
        assert!(!followed(past, before), "it has gone back");
    }
}
