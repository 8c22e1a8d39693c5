//! The plan against a search that asks for each segment separately whether it may go.

use super::*;
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

fn size() -> SegmentSize {
    SegmentSize::new(MIB).unwrap()
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// A situation that owns its data.
#[derive(Debug, Clone)]
struct Case {
    policy: Policy,
    oldest: u64,
    newest: u64,
    now: u64,
    completed: Vec<u64>,
    walk_start: Option<u64>,
    standbys: Option<u64>,
    slots: Vec<(u64, Option<u64>)>,
    unarchived: Vec<u64>,
    space: Option<Space>,
}

impl Case {
    fn completed(&self) -> Vec<(SegmentNo, SystemTime)> {
        let numbered = (self.oldest..).zip(&self.completed);
        numbered.map(|(no, time)| (SegmentNo::new(no), at(*time))).collect()
    }

    fn needs(&self) -> Vec<SlotNeed> {
        let activity = |idle: &Option<u64>| match idle {
            None => Activity::Used,
            Some(since) => Activity::IdleSince(at(*since)),
        };
        let need = |(from, idle): &(u64, Option<u64>)| SlotNeed {
            from: Lsn::new(*from),
            activity: activity(idle),
        };
        self.slots.iter().map(need).collect()
    }

    fn plan(&self) -> Plan {
        let (completed, slots) = (self.completed(), self.needs());
        let archived = |no: SegmentNo| !self.unarchived.contains(&no.raw());
        let situation = Situation {
            now: at(self.now),
            completed: &completed,
            walk_start: self.walk_start.map(Lsn::new),
            standbys: self.standbys.map(Lsn::new),
            slots: &slots,
            archived: &archived,
            space: self.space,
            ..Situation::new(size(), SegmentNo::new(self.oldest), Lsn::new(self.newest))
        };
        plan(&self.policy, &situation)
    }

    /// Has this slot been idle for too long?
    fn is_late(&self, slot: usize) -> bool {
        let timeout = self.policy.idle_slot_timeout.as_secs();
        self.slots[slot].1.is_some_and(|since| timeout > 0 && self.now >= since + timeout)
    }

    /// Does anyone need a byte of this segment, whatever the rules keep? Slots in `lost` do not
    /// count.
    fn is_needed(&self, no: u64, lost: &[usize]) -> bool {
        let end = (no + 1) * MIB;
        let beyond_limit = self
            .policy
            .max_slot_wal_keep_size
            .is_some_and(|max| end <= self.newest.saturating_sub(max));
        let slot = |n: usize| !lost.contains(&n) && self.slots[n].0 < end;
        let somebody =
            self.standbys.is_some_and(|from| from < end) || (0..self.slots.len()).any(slot);
        (somebody && !beyond_limit)
            || end > self.newest
            || self.walk_start.is_some_and(|from| from < end)
            || self.unarchived.contains(&no)
    }

    fn is_kept_by_rules(&self, no: u64) -> bool {
        let end = (no + 1) * MIB;
        let age = || {
            let at = self.completed.get((no - self.oldest) as usize);
            at.map_or(0, |at| self.now.saturating_sub(*at))
        };
        let time = self.policy.wal_keep_time.as_secs();
        end > self.newest.saturating_sub(self.policy.wal_keep_size)
            || self.is_among_the_last(no)
            || (time > 0 && age() < time)
    }

    fn is_among_the_last(&self, no: u64) -> bool {
        (no + 1) * MIB > self.newest.saturating_sub(MIN_KEPT_SEGMENTS * MIB)
    }

    /// The first segment, from the oldest on, that has to stay.
    fn first(&self, stays: impl Fn(u64) -> bool) -> u64 {
        (self.oldest..).find(|no| stays(*no)).unwrap()
    }

    fn late(&self) -> Vec<usize> {
        (0..self.slots.len()).filter(|n| self.is_late(*n)).collect()
    }
}

fn cases() -> impl Strategy<Value = Case> {
    let policy = (
        0u64..40 * MIB,
        prop_oneof![Just(0), 1u64..200],
        proptest::option::of(0u64..60 * MIB),
        prop_oneof![Just(0), 1u64..200],
    );
    let policy = policy.prop_map(|(size, time, max, idle)| Policy {
        wal_keep_size: size,
        wal_keep_time: Duration::from_secs(time),
        max_slot_wal_keep_size: max,
        idle_slot_timeout: Duration::from_secs(idle),
        high_watermark: None,
        auto_created_ttl: Duration::ZERO,
        archive_mode: ArchiveMode::Off,
        restorable: Restorable::No,
    });
    let position = || 10 * MIB..110 * MIB;
    (
        policy,
        10u64..90,
        10 * MIB..100 * MIB,
        proptest::collection::vec(0u64..300, 0..80),
        proptest::option::of(position()),
        proptest::option::of(position()),
        proptest::collection::vec((position(), proptest::option::of(0u64..300)), 0..4),
        proptest::collection::vec(10u64..100, 0..2),
    )
        .prop_map(
            |(policy, oldest, newest, mut completed, walk, standbys, slots, unarchived)| {
                completed.sort_unstable();
                let newest = newest.max(oldest * MIB);
                // Nobody was granted a position that was gone already.
                let held = |from: u64| from.max(oldest * MIB);
                Case {
                    policy,
                    oldest,
                    newest,
                    now: 300,
                    completed,
                    walk_start: walk.map(held),
                    standbys: standbys.map(held),
                    slots: slots.into_iter().map(|(from, idle)| (held(from), idle)).collect(),
                    unarchived,
                    space: None,
                }
            },
        )
}

/// A case with a disk that is `segments` segments too full.
fn with_shortage(mut case: Case, segments: u64) -> Case {
    case.policy.high_watermark = Some(HighWatermark::Free(1000 * MIB));
    case.space = Some(Space { total: 5000 * MIB, free: (1000 - segments) * MIB });
    case
}

proptest! {
    #[test]
    fn below_the_watermark_all_that_may_go_goes(case in cases()) {
        let plan = case.plan();
        let late = case.late();
        let expected = case.first(|no| case.is_needed(no, &late) || case.is_kept_by_rules(no));
        prop_assert_eq!(plan.horizon.raw(), expected);
        prop_assert_eq!(plan.receiving, Receiving::Open);
        for n in 0..case.slots.len() {
            let cause = plan.invalidate.iter().find(|(lost, _)| *lost == n).map(|(_, cause)| *cause);
            let expected = match (case.is_late(n), case.slots[n].0 / MIB < expected) {
                (true, _) => Some(Cause::IdleTimeout),
                (false, true) => Some(Cause::WalRemoved),
                (false, false) => None,
            };
            prop_assert_eq!(cause, expected);
        }
    }

    /// WAL that can be fetched again from the archive goes as before, and nobody has lost it.
    #[test]
    fn with_an_archive_no_slot_loses_wal(case in cases(), shortage in proptest::option::of(1u64..60)) {
        let mut case = match shortage {
            Some(segments) => with_shortage(case, segments),
            None => case,
        };
        let without = case.plan();
        case.policy.restorable = Restorable::Yes { ahead: 2 };
        let with = case.plan();
        prop_assert_eq!(with.horizon, without.horizon);
        prop_assert!(with.invalidate.iter().all(|(_, cause)| *cause == Cause::IdleTimeout));
    }

    #[test]
    fn above_it_no_more_goes_than_has_to(case in cases(), shortage in 1u64..60) {
        let normal = case.plan().horizon.raw();
        let case = with_shortage(case, shortage);
        let plan = case.plan();
        let idle: Vec<_> = (0..case.slots.len())
            .filter(|n| case.is_late(*n) || case.slots[*n].1.is_some())
            .collect();
        // For each segment separately: does anyone need it?
        let possible =
            case.first(|no| case.is_needed(no, &idle) || case.is_among_the_last(no));
        let target = case.oldest + shortage;
        let expected = normal.max(possible.min(target));
        prop_assert_eq!(plan.horizon.raw(), expected);
        prop_assert_eq!(plan.receiving == Receiving::Paused, expected < target);
        // A slot loses its WAL only when that goes, and a used one never to the disk limit.
        for (n, cause) in &plan.invalidate {
            match cause {
                Cause::IdleTimeout => prop_assert!(case.is_late(*n)),
                Cause::WalRemoved => {
                    prop_assert!(case.slots[*n].0 / MIB < expected);
                    prop_assert!(
                        case.slots[*n].1.is_some() || case.policy.max_slot_wal_keep_size.is_some()
                    );
                }
            }
        }
    }
}

fn quiet() -> Case {
    Case {
        policy: Policy::default(),
        oldest: 10,
        newest: 100 * MIB + 5,
        now: 1000,
        completed: Vec::new(),
        walk_start: None,
        standbys: None,
        slots: Vec::new(),
        unarchived: Vec::new(),
        space: None,
    }
}

#[test]
fn a_slot_out_of_its_limit_is_lost_when_its_wal_goes_and_not_before() {
    let mut case = quiet();
    case.slots = vec![(50 * MIB, None)];
    case.policy.max_slot_wal_keep_size = Some(20 * MIB);
    case.policy.wal_keep_size = 60 * MIB;
    assert_eq!(
        case.plan(),
        Plan { horizon: SegmentNo::new(40), invalidate: vec![], receiving: Receiving::Open }
    );
    case.policy.wal_keep_size = 0;
    let plan = case.plan();
    assert_eq!(plan.horizon.raw(), 80);
    assert_eq!(plan.invalidate, [(0, Cause::WalRemoved)]);
}

#[test]
fn wal_keep_time_counts_from_a_segments_end() {
    let mut case = quiet();
    case.policy.wal_keep_time = Duration::from_secs(100);
    case.completed = vec![850, 900, 901, 902];
    assert_eq!(case.plan().horizon.raw(), 12);
    // A clock that was set back.
    case.now = 10;
    assert_eq!(case.plan().horizon.raw(), 10);
}

#[test]
fn a_full_disk_takes_from_the_rules_then_from_idle_slots_then_closes_the_door() {
    let mut case = quiet();
    case.policy.wal_keep_size = 85 * MIB;
    case.slots = vec![(30 * MIB, Some(900)), (60 * MIB, None)];
    assert_eq!(case.plan().horizon.raw(), 15);
    let short = |segments| with_shortage(case.clone(), segments).plan();
    assert_eq!(short(5).horizon.raw(), 15, "what goes anyway is enough");
    assert_eq!(short(12).horizon.raw(), 22, "kept by rules only");
    let plan = short(40);
    assert_eq!((plan.horizon.raw(), plan.invalidate.len()), (50, 1), "the idle slot's");
    assert_eq!(plan.receiving, Receiving::Open);
    let plan = short(70);
    assert_eq!(plan.horizon.raw(), 60, "the used slot's stays");
    assert_eq!(plan.receiving, Receiving::Paused);
    let backlog = Case { unarchived: vec![25], ..with_shortage(case.clone(), 40) };
    let plan = backlog.plan();
    assert_eq!((plan.horizon.raw(), plan.invalidate.len()), (25, 0), "not archived yet");
    assert_eq!(plan.receiving, Receiving::Paused);
}

#[test]
fn receiving_goes_on_only_with_some_room() {
    let mut case = quiet();
    case.oldest = 95;
    let case = with_shortage(case, 0);
    let slots = case.needs();
    let situation = Situation {
        slots: &slots,
        space: case.space,
        receiving: Receiving::Paused,
        ..Situation::new(size(), SegmentNo::new(95), Lsn::new(case.newest))
    };
    assert_eq!(plan(&case.policy, &situation).receiving, Receiving::Paused);
    let roomy = Space { free: (1000 + RESUME_SEGMENTS) * MIB, ..case.space.unwrap() };
    let situation = Situation { space: Some(roomy), ..situation };
    assert_eq!(plan(&case.policy, &situation).receiving, Receiving::Open);
}
