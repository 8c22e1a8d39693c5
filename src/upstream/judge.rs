//! Whether this upstream may be followed, and from where. Decided from what it says of itself,
//! before any WAL is requested.
//!
//! Histories are compared, never timeline numbers. An upstream that is merely behind is waited for;
//! one of another cluster, or of another branch, is refused. Where a difference was found before,
//! no upstream is followed past it unless it has shown the same bytes there. Each has to show our
//! WAL up to the end of what it shares with us: before it streams, before it is waited for, and
//! before our timeline is left for another.

use super::place::{Place, Span};
use super::proof::SharedEnd;
use super::state::UpstreamState;
use crate::cluster::instance::{InstanceId, InstancePath};
use crate::timeline::Forks;
use crate::upstream::position::Position;
use crate::upstream::position::StartFrom;
use crate::wal::{Lsn, SegmentSize, SystemId, TimelineId};

/// What an upstream says of itself.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Its name in the log.
    pub host: String,
    /// IDENTIFY_SYSTEM: the cluster.
    pub system_id: SystemId,
    /// IDENTIFY_SYSTEM: its timeline.
    pub tli: TimelineId,
    /// IDENTIFY_SYSTEM: what it has flushed.
    pub xlogpos: Lsn,
    /// `SHOW wal_segment_size`.
    pub segment_size: SegmentSize,
    /// The history of its timeline; `None` when there is no such file.
    pub forks: Option<Vec<(TimelineId, Lsn)>>,
    /// The path from it upwards, when it is a hub.
    pub path: InstancePath,
}

/// What this hub knows and holds.
#[derive(Debug, Clone)]
pub struct Known {
    /// Our own ID.
    pub instance: InstanceId,
    /// The cluster and its segment size, once known.
    pub cluster: Option<(SystemId, SegmentSize)>,
    /// Where the receive role stands.
    pub position: Position,
    /// The history of our timeline; `None` when there is no such file.
    pub forks: Option<Vec<(TimelineId, Lsn)>>,
    /// Where another source had other bytes than ours, as long as that is unresolved.
    pub differs: Option<Place>,
    /// Up to where this upstream has shown our WAL since it was connected to.
    pub shown: Option<SharedEnd>,
    /// Where an empty directory begins.
    pub start_from: StartFrom,
}

/// The decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Request the stream.
    Start {
        /// On this timeline.
        tli: TimelineId,
        /// From here.
        start: Lsn,
    },
    /// Compare this WAL, which holds the place of the difference, with ours first. When it is the
    /// same the difference is resolved: decide again.
    Compare(Span),
    /// The same, but our WAL at the place of the difference is lost: compare this with what was noted
    /// of ours when it was found.
    CompareNoted(Span),
    /// Compare our WAL that ends there with the upstream's, far enough back to prove that it is one
    /// history. When it is the same, decide again with it as [`Known::shown`]. A difference at or
    /// after the end, where the upstream leaves our timeline, stands until our WAL at its place has
    /// been set aside.
    Prove(SharedEnd),
    /// Look for the oldest segment first.
    FindOldest {
        /// On this timeline.
        tli: TimelineId,
        /// Start of the segment it is writing, which is known to exist.
        newest: Lsn,
    },
    /// Our timeline has ended, and all of it is here (or more than all): continue with the one that
    /// follows, then decide again.
    Switch {
        /// The timeline that follows.
        next: TimelineId,
        /// Where ours ended.
        at: Lsn,
    },
    /// Do not follow it.
    Not(UpstreamState),
}

/// Makes the decision.
pub fn judge(seen: &Seen, known: &Known) -> Verdict {
    let refuse =
        |why: String| Verdict::Not(UpstreamState::Refused { host: seen.host.clone(), why });
    if seen.path.contains(known.instance) {
        return refuse(format!(
            "it gets its WAL from this hub itself (instance {} is in its path {}): a loop",
            known.instance, seen.path
        ));
    }
    if let Some((system_id, segment_size)) = known.cluster {
        if seen.system_id != system_id {
            return refuse(format!(
                "database system identifier differs: the upstream's identifier is {}, this hub's \
                 identifier is {system_id}",
                seen.system_id
            ));
        }
        if seen.segment_size != segment_size {
            return refuse(format!(
                "WAL segment size differs: the upstream's is {} bytes, this hub's is {} bytes",
                seen.segment_size.bytes(),
                segment_size.bytes()
            ));
        }
    }
    // Every receiver of its WAL requests the file, too: a PostgreSQL standby fails each attempt on
    // the answer. The WAL stored here could be served to no standby, and the next start could not
    // tell which timelines its pages may carry.
    if seen.tli != TimelineId::FIRST && seen.forks.is_none() {
        return refuse(format!(
            "it has no history file of its timeline {}, as after pg_resetwal; without it no \
             standby can follow this timeline",
            seen.tli
        ));
    }
    match known.position {
        Position::Empty => begin(seen, known.start_from),
        Position::At { tli, durable, start } => go_on(seen, known, tli, durable, start),
    }
}

fn begin(seen: &Seen, from: StartFrom) -> Verdict {
    let newest = seen.xlogpos.segment_start(seen.segment_size);
    match from {
        StartFrom::Current => Verdict::Start { tli: seen.tli, start: newest },
        StartFrom::Oldest => Verdict::FindOldest { tli: seen.tli, newest },
        StartFrom::At(start_from) if start_from > seen.xlogpos => {
            let (host, theirs) = (seen.host.clone(), seen.xlogpos);
            Verdict::Not(UpstreamState::WaitingToStart { host, start_from, theirs })
        }
        StartFrom::At(lsn) => {
            Verdict::Start { tli: seen.tli, start: lsn.segment_start(seen.segment_size) }
        }
    }
}

fn behind(seen: &Seen, ours: Lsn) -> Verdict {
    let (host, theirs) = (seen.host.clone(), seen.xlogpos);
    Verdict::Not(UpstreamState::Waiting { host, ours, theirs })
}

fn go_on(seen: &Seen, known: &Known, tli: TimelineId, durable: Lsn, start: Lsn) -> Verdict {
    let refuse =
        |why: String| Verdict::Not(UpstreamState::Refused { host: seen.host.clone(), why });
    let theirs = seen.forks.as_deref();
    let ours = known.forks.as_deref();
    if seen.tli == tli {
        // Two branches can carry the same number.
        if let (Some(theirs), Some(ours)) = (theirs, ours)
            && theirs != ours
        {
            return refuse(format!("its history of timeline {tli} differs from ours"));
        }
        let shared = SharedEnd { tli, end: durable.min(seen.xlogpos) };
        let compare = known.differs.and_then(|place| compare(known, place, shared.end));
        let noted = || match seen.xlogpos < durable {
            true => None,
            false => compare_noted(known, tli, durable, seen.xlogpos),
        };
        return compare.or_else(noted).or_else(|| prove(known, shared)).unwrap_or_else(
            || match seen.xlogpos < durable {
                true => behind(seen, durable),
                false => Verdict::Start { tli, start },
            },
        );
    }
    if seen.tli < tli {
        // A standby that has not followed yet, or the old primary.
        return match ours.and_then(|forks| end_of(forks, seen.tli)) {
            Some(end) if seen.xlogpos <= end => {
                let shared = SharedEnd { tli: seen.tli, end: seen.xlogpos };
                let compare = known.differs.and_then(|place| compare(known, place, shared.end));
                compare.or_else(|| prove(known, shared)).unwrap_or_else(|| behind(seen, durable))
            }
            Some(end) => refuse(format!(
                "it is on timeline {} at {}, past {end} where our timeline {tli} forked off",
                seen.tli, seen.xlogpos
            )),
            None => refuse(format!(
                "it is on timeline {}, which is not in the history of our timeline {tli}",
                seen.tli
            )),
        };
    }
    let theirs = theirs.unwrap_or_default();
    let Some(end) = end_of(theirs, tli) else {
        return refuse(format!(
            "our timeline {tli} is not in the history of its timeline {}",
            seen.tli
        ));
    };
    let earlier =
        |forks: &Forks| forks.iter().filter(|(t, _)| *t < tli).copied().collect::<Vec<_>>();
    if let Some(ours) = ours
        && earlier(theirs) != earlier(ours)
    {
        return refuse(format!("its history of timeline {tli} differs from ours"));
    }
    let shared = SharedEnd { tli, end: durable.min(end) };
    let compare = known.differs.and_then(|place| compare(known, place, shared.end));
    let noted = || match end <= durable {
        // What it has of our timeline, we have.
        true => None,
        false => compare_noted(known, tli, durable, end),
    };
    if let Some(compare) = compare.or_else(noted).or_else(|| prove(known, shared)) {
        return compare;
    }
    if durable >= end {
        // Nothing of our timeline is missing any more.
        let next = theirs.iter().map(|(t, _)| *t).find(|t| *t > tli).unwrap_or(seen.tli);
        return Verdict::Switch { next, at: end };
    }
    Verdict::Start { tli, start }
}

/// The comparison that is due with an upstream that shares our history up to `end`, unless it has
/// left ours at or before the place.
fn compare(known: &Known, place: Place, end: Lsn) -> Option<Verdict> {
    let (_, size) = known.cluster?;
    (place.at < end).then(|| Verdict::Compare(place.span(size, end)))
}

/// What is due with an upstream that has WAL of our timeline past our end, up to `theirs`, when our own
/// at the place of the difference is lost. Our end lies before the place, so the upstream's WAL there
/// cannot be compared with ours, and standbys may have what we have lost.
fn compare_noted(known: &Known, tli: TimelineId, durable: Lsn, theirs: Lsn) -> Option<Verdict> {
    let place = known.differs.filter(|place| place.tli == tli && place.at >= durable)?;
    let (_, size) = known.cluster?;
    if place.at < theirs {
        return Some(Verdict::CompareNoted(place.noted_span(size, theirs)));
    }
    let Place { at, .. } = place;
    let detail = format!(
        "a source had other WAL there, this hub's own was lost from {durable} on, and the upstream's \
         of timeline {tli} ends at {theirs}, before it"
    );
    Some(Verdict::Not(UpstreamState::Diverged { at, detail }))
}

/// What the upstream has yet to show.
fn prove(known: &Known, shared: SharedEnd) -> Option<Verdict> {
    known.cluster?;
    (known.shown != Some(shared)).then_some(Verdict::Prove(shared))
}

fn end_of(forks: &Forks, tli: TimelineId) -> Option<Lsn> {
    forks.iter().find(|(t, _)| *t == tli).map(|(_, end)| *end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tli(n: u32) -> TimelineId {
        TimelineId::new(n).unwrap()
    }

    fn lsn(n: u64) -> Lsn {
        Lsn::new(n)
    }

    const MIB: u64 = 1 << 20;

    fn seen(t: u32, xlogpos: u64, forks: &[(u32, u64)]) -> Seen {
        Seen {
            host: "db1".into(),
            system_id: SystemId::new(7),
            tli: tli(t),
            xlogpos: lsn(xlogpos),
            segment_size: SegmentSize::new(MIB).unwrap(),
            forks: (t > 1).then(|| forks.iter().map(|(t, e)| (tli(*t), lsn(*e))).collect()),
            path: InstancePath::empty(),
        }
    }

    fn known(t: u32, durable: u64, start: u64, forks: &[(u32, u64)]) -> Known {
        Known {
            instance: InstanceId::new(0xE),
            cluster: Some((SystemId::new(7), SegmentSize::new(MIB).unwrap())),
            position: Position::At { tli: tli(t), durable: lsn(durable), start: lsn(start) },
            forks: (t > 1).then(|| forks.iter().map(|(t, e)| (tli(*t), lsn(*e))).collect()),
            differs: None,
            shown: None,
            start_from: StartFrom::Current,
        }
    }

    /// The verdict after the upstream has shown what it was asked for.
    fn judge(seen: &Seen, known: &Known) -> Verdict {
        match super::judge(seen, known) {
            Verdict::Prove(shared) => {
                super::judge(seen, &Known { shown: Some(shared), ..known.clone() })
            }
            verdict => verdict,
        }
    }

    /// What an upstream is asked to show: the timeline, and up to where.
    fn asked(seen: &Seen, known: &Known) -> (u32, u64) {
        match super::judge(seen, known) {
            Verdict::Prove(SharedEnd { tli, end }) => (tli.raw(), end.raw()),
            verdict => panic!("{verdict:?}"),
        }
    }

    fn name(verdict: &Verdict) -> &'static str {
        match verdict {
            Verdict::Not(state) => state.name(),
            _ => "go",
        }
    }

    #[test]
    fn empty_directory_begins_where_it_is_told() {
        let mut known = Known { position: Position::Empty, ..known(1, 0, 0, &[]) };
        known.cluster = None;
        let seen = seen(3, 5 * MIB + 77, &[(1, 1), (2, 2)]);
        let newest = lsn(5 * MIB);
        assert_eq!(judge(&seen, &known), Verdict::Start { tli: tli(3), start: newest });
        known.start_from = StartFrom::Oldest;
        assert_eq!(judge(&seen, &known), Verdict::FindOldest { tli: tli(3), newest });
        known.start_from = StartFrom::At(lsn(2 * MIB + 5));
        assert_eq!(judge(&seen, &known), Verdict::Start { tli: tli(3), start: lsn(2 * MIB) });
        known.start_from = StartFrom::At(lsn(6 * MIB));
        assert_eq!(name(&judge(&seen, &known)), "waiting for upstream");
    }

    #[test]
    fn a_timeline_without_its_history_file_is_refused() {
        let empty = Known { position: Position::Empty, cluster: None, ..known(1, 0, 0, &[]) };
        let no_file = Seen { forks: None, ..seen(2, 5 * MIB, &[]) };
        for ours in [empty, known(1, 100, 50, &[]), known(2, 100, 50, &[(1, 40)])] {
            assert_eq!(name(&judge(&no_file, &ours)), "upstream refused");
        }
    }

    #[test]
    fn another_cluster_or_size_or_a_loop_is_refused() {
        let ours = known(1, 100, 50, &[]);
        let mut other = seen(1, 200, &[]);
        other.system_id = SystemId::new(8);
        assert_eq!(name(&judge(&other, &ours)), "upstream refused");
        let mut other = seen(1, 200, &[]);
        other.segment_size = SegmentSize::new(2 * MIB).unwrap();
        assert_eq!(name(&judge(&other, &ours)), "upstream refused");
        let mut other = seen(1, 200, &[]);
        other.path =
            InstancePath::empty().announced_by(ours.instance).announced_by(InstanceId::new(1));
        assert_eq!(name(&judge(&other, &ours)), "upstream refused");
        other.path = InstancePath::empty().announced_by(InstanceId::new(1));
        assert_eq!(name(&judge(&other, &ours)), "go");
    }

    #[test]
    fn same_timeline() {
        let ours = known(1, 100, 50, &[]);
        let go = Verdict::Start { tli: tli(1), start: lsn(50) };
        assert_eq!(judge(&seen(1, 100, &[]), &ours), go);
        assert_eq!(name(&judge(&seen(1, 99, &[]), &ours)), "waiting for upstream");
        let ours = known(2, 100, 50, &[(1, 40)]);
        assert_eq!(name(&judge(&seen(2, 200, &[(1, 40)]), &ours)), "go");
        assert_eq!(name(&judge(&seen(2, 200, &[(1, 41)]), &ours)), "upstream refused");
    }

    #[test]
    fn newer_timeline_must_have_ours_in_its_history() {
        let ours = known(2, 100, 50, &[(1, 40)]);
        assert_eq!(name(&judge(&seen(3, 300, &[(1, 40), (2, 101)]), &ours)), "go");
        for end in [99, 100] {
            let promoted = seen(4, 300, &[(1, 40), (2, end), (3, 250)]);
            assert_eq!(judge(&promoted, &ours), Verdict::Switch { next: tli(3), at: lsn(end) });
        }
        assert_eq!(name(&judge(&seen(3, 300, &[(1, 40)]), &ours)), "upstream refused");
        assert_eq!(name(&judge(&seen(3, 300, &[(1, 39), (2, 100)]), &ours)), "upstream refused");
        let no_file = Seen { forks: None, ..seen(3, 300, &[]) };
        assert_eq!(name(&judge(&no_file, &ours)), "upstream refused");
    }

    #[test]
    fn nobody_is_followed_past_a_difference_before_the_place_was_compared() {
        let ours = Known {
            differs: Some(Place { tli: tli(2), at: lsn(70) }),
            ..known(2, 100, 90, &[(1, 40)])
        };
        let compare = |to| Verdict::Compare(Span { tli: tli(2), from: lsn(0), to: lsn(to) });
        // Every upstream that has WAL there is compared; one that is behind the place, or refused
        // anyway, is not.
        assert_eq!(judge(&seen(2, 100, &[(1, 40)]), &ours), compare(100));
        assert_eq!(judge(&seen(2, 9 * MIB, &[(1, 40)]), &ours), compare(100));
        assert_eq!(judge(&seen(2, 99, &[(1, 40)]), &ours), compare(99));
        assert_eq!(name(&judge(&seen(2, 70, &[(1, 40)]), &ours)), "waiting for upstream");
        assert_eq!(name(&judge(&seen(2, 200, &[(1, 41)]), &ours)), "upstream refused");
        // A newer timeline that left ours after the place has to show it.
        let left = |end| seen(3, 300, &[(1, 40), (2, end)]);
        for end in [71, 100] {
            assert_eq!(judge(&left(end), &ours), compare(end));
        }
        assert_eq!(judge(&left(500), &ours), compare(100));
    }

    #[test]
    fn each_upstream_shows_our_wal_up_to_the_end_of_what_it_shares() {
        let ours = known(2, 100, 50, &[(1, 40)]);
        // One that has all of ours, and one that is behind us on our timeline, or on its parent.
        assert_eq!(asked(&seen(2, 200, &[(1, 40)]), &ours), (2, 100));
        assert_eq!(asked(&seen(2, 99, &[(1, 40)]), &ours), (2, 99));
        assert_eq!(asked(&seen(1, 39, &[]), &ours), (1, 39));
        // One that left our timeline, before our end or past it.
        let left = |end| seen(3, 300, &[(1, 40), (2, end)]);
        assert_eq!(asked(&left(99), &ours), (2, 99));
        assert_eq!(asked(&left(100), &ours), (2, 100));
        assert_eq!(asked(&left(101), &ours), (2, 100));
        // What it has shown up to another end does not count.
        let shown = Some(SharedEnd { tli: tli(2), end: lsn(98) });
        assert_eq!(asked(&left(99), &Known { shown, ..ours.clone() }), (2, 99));
        // Nobody is asked for WAL who is refused anyway, or while we have none.
        assert_eq!(name(&super::judge(&seen(2, 200, &[(1, 41)]), &ours)), "upstream refused");
        let empty = Known { position: Position::Empty, ..ours };
        assert!(matches!(super::judge(&left(100), &empty), Verdict::Start { .. }));
    }

    #[test]
    fn who_left_our_timeline_before_a_difference_shows_what_precedes_the_fork() {
        let differs = Some(Place { tli: tli(2), at: lsn(2 * MIB + 70) });
        let ours = Known { differs, ..known(2, 2 * MIB + 100, 2 * MIB + 90, &[(1, MIB)]) };
        let left = |end| seen(3, 9 * MIB, &[(1, MIB), (2, end)]);
        for end in [2 * MIB + 70, 2 * MIB + 69, 2 * MIB, MIB] {
            assert_eq!(asked(&left(end), &ours), (2, end));
            let switch = Verdict::Switch { next: tli(3), at: lsn(end) };
            assert_eq!(judge(&left(end), &ours), switch);
        }
    }

    #[test]
    fn where_our_wal_at_a_difference_is_lost_nobody_streams_who_does_not_show_it() {
        let differs = Some(Place { tli: tli(2), at: lsn(2 * MIB + 70) });
        let ours = Known { differs, ..known(2, 2 * MIB + 50, 2 * MIB + 40, &[(1, MIB)]) };
        let same = |end| seen(2, end, &[(1, MIB)]);
        let left = |end| seen(3, 9 * MIB, &[(1, MIB), (2, end)]);
        let noted =
            |to| Verdict::CompareNoted(Span { tli: tli(2), from: lsn(2 * MIB + 70), to: lsn(to) });
        for upstream in [same, left] {
            assert_eq!(judge(&upstream(9 * MIB), &ours), noted(2 * MIB + 70 + 8192));
            assert_eq!(judge(&upstream(2 * MIB + 71), &ours), noted(2 * MIB + 71));
            assert_eq!(name(&judge(&upstream(2 * MIB + 70), &ours)), "diverged");
            assert_eq!(name(&judge(&upstream(2 * MIB + 51), &ours)), "diverged");
        }
        assert_eq!(name(&judge(&same(2 * MIB + 50), &ours)), "diverged", "it would stream");
        assert_eq!(name(&judge(&same(2 * MIB + 49), &ours)), "waiting for upstream");
        // Its timeline begins where nothing is lost.
        let switch = Verdict::Switch { next: tli(3), at: lsn(2 * MIB + 50) };
        assert_eq!(judge(&left(2 * MIB + 50), &ours), switch);
    }

    #[test]
    fn a_difference_on_an_ancestor_is_compared_there() {
        let differs = Some(Place { tli: tli(1), at: lsn(70) });
        let ours = Known { differs, ..known(2, 2 * MIB, MIB, &[(1, MIB)]) };
        let span = Span { tli: tli(1), from: lsn(0), to: lsn(70 + 8192) };
        assert_eq!(judge(&seen(2, 3 * MIB, &[(1, MIB)]), &ours), Verdict::Compare(span));
        let promoted = seen(3, 3 * MIB, &[(1, MIB), (2, 2 * MIB)]);
        assert_eq!(judge(&promoted, &ours), Verdict::Compare(span));
    }

    #[test]
    fn older_timeline_is_late_or_left_behind() {
        let ours = known(3, 300, 250, &[(1, 40), (2, 100)]);
        assert_eq!(name(&judge(&seen(2, 90, &[(1, 40)]), &ours)), "waiting for upstream");
        assert_eq!(name(&judge(&seen(2, 101, &[(1, 40)]), &ours)), "upstream refused");
        assert_eq!(name(&judge(&seen(1, 41, &[]), &ours)), "upstream refused");
        let skipped = known(4, 300, 250, &[(1, 40), (2, 100)]);
        assert_eq!(name(&judge(&seen(3, 90, &[]), &skipped)), "upstream refused");
    }
}
