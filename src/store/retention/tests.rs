//! The plan against a search that asks for each segment separately whether it may go.

use super::*;
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

fn size() -> SegmentSize {
    SegmentSize::new(MIB).unwrap()
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
    /// Standbys that left: from where they need WAL, and how many seconds ago.
    gone: Vec<(u64, u64)>,
    /// For how many seconds WAL has been looked after, and none was received.
    running: u64,
    paused: Option<u64>,
    slots: Vec<(u64, Option<u64>)>,
    unarchived: Vec<u64>,
    space: Option<Space>,
}

impl Case {
    fn completed(&self) -> Vec<(SegmentNo, Duration)> {
        let numbered = (self.oldest..).zip(&self.completed);
        let age = |time: &u64| Duration::from_secs(self.now.saturating_sub(*time));
        numbered.map(|(no, time)| (SegmentNo::new(no), age(time))).collect()
    }

    fn idle(&self, since: u64) -> u64 {
        self.now.saturating_sub(since)
    }

    fn grace(&self) -> u64 {
        self.policy.grace.as_secs()
    }

    /// Is the user of this slot waited for?
    fn is_awaited(&self, slot: usize) -> bool {
        self.slots[slot].1.is_some_and(|since| self.idle(since) < self.grace())
    }

    fn needs(&self) -> Vec<SlotNeed> {
        let activity = |idle: &Option<u64>| match idle {
            None => Activity::Used,
            Some(since) => Activity::Idle(Duration::from_secs(self.idle(*since))),
        };
        let need = |(from, idle): &(u64, Option<u64>)| SlotNeed {
            from: Lsn::new(*from),
            activity: activity(idle),
        };
        self.slots.iter().map(need).collect()
    }

    fn needed(&self) -> Needed {
        let gone = |(from, ago): &(u64, u64)| (Lsn::new(*from), Duration::from_secs(*ago));
        let gone = self.gone.iter().map(gone).collect();
        Needed { standbys: self.standbys.map(Lsn::new), gone }
    }

    fn plan(&self) -> Plan {
        let (completed, slots) = (self.completed(), self.needs());
        let archived = |no: SegmentNo| !self.unarchived.contains(&no.raw());
        let situation = Situation {
            running: Duration::from_secs(self.running),
            paused: self.paused.map(Duration::from_secs),
            completed: &completed,
            walk_start: self.walk_start.map(Lsn::new),
            needed: self.needed(),
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
        let least = timeout.max(self.grace());
        self.slots[slot].1.is_some_and(|since| timeout > 0 && self.idle(since) >= least)
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
        let mut slots = (0..self.slots.len()).filter(|n| slot(*n));
        let awaited = slots.clone().any(|n| self.is_awaited(n))
            || self.gone.iter().any(|(from, ago)| *from < end && *ago < self.grace());
        let somebody = self.standbys.is_some_and(|from| from < end) || slots.next().is_some();
        awaited
            || (somebody && !beyond_limit)
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
        self.running < self.grace()
            || end > self.newest.saturating_sub(self.policy.wal_keep_size)
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
        grace: Duration::from_secs(90),
        keep_set_aside: Duration::ZERO,
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
        proptest::collection::vec((position(), 0u64..180), 0..3),
        prop_oneof![Just(1000), 0u64..180],
        proptest::option::of(0u64..180),
    )
        .prop_map(
            |(
                policy,
                oldest,
                newest,
                mut completed,
                walk,
                standbys,
                slots,
                unarchived,
                gone,
                running,
                paused,
            )| {
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
                    gone: gone.into_iter().map(|(from, ago)| (held(from), ago)).collect(),
                    running,
                    paused,
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
        prop_assert!(with.horizon >= without.horizon || without.invalidate.len() > with.invalidate.len());
        prop_assert!(with.invalidate.iter().all(|(_, cause)| *cause == Cause::IdleTimeout));
    }

    #[test]
    fn above_it_no_more_goes_than_has_to(case in cases(), shortage in 1u64..60) {
        let normal = case.plan().horizon.raw();
        let more = if case.paused.is_some() { RESUME_SEGMENTS } else { 0 };
        let case = with_shortage(case, shortage);
        let plan = case.plan();
        let mut lost = case.late();
        let target = case.oldest + shortage + more;
        let reach = |lost: &[usize]| {
            case.first(|no| case.is_needed(no, lost) || case.is_among_the_last(no))
        };
        let mut expected = normal.max(reach(&lost).min(target));
        // One slot that nobody uses, nor is waited for, goes when a pause has not helped.
        let is_unused = |n: &usize| case.slots[*n].1.is_some() && !case.is_awaited(*n);
        let unused: Vec<_> =
            (0..case.slots.len()).filter(|n| is_unused(n) && !lost.contains(n)).collect();
        let all = [lost.clone(), unused.clone()].concat();
        let greatest = unused.into_iter().min_by_key(|n| (case.slots[*n].0, *n));
        let has_paused = case.paused.is_some_and(|paused| paused >= 90);
        let taken = greatest.filter(|n| {
            expected < target
                && has_paused
                && case.slots[*n].0 / MIB < reach(&all)
                && reach(&all) > case.oldest
        });
        if let Some(taken) = taken {
            lost.push(taken);
            expected = expected.max(reach(&lost).min(target));
        }
        prop_assert_eq!(plan.horizon.raw(), expected);
        prop_assert_eq!(plan.receiving == Receiving::Paused, expected < target);
        for (n, cause) in &plan.invalidate {
            match cause {
                Cause::IdleTimeout => prop_assert!(case.is_late(*n)),
                Cause::WalRemoved => {
                    prop_assert!(case.slots[*n].0 / MIB < expected || taken == Some(*n));
                    prop_assert!(
                        taken == Some(*n) || case.policy.max_slot_wal_keep_size.is_some()
                    );
                    prop_assert!(!case.is_awaited(*n), "its user may be back at once");
                }
            }
        }
    }

    /// What somebody needs who has gone a moment ago stays, whatever the limits are.
    #[test]
    fn nobody_who_may_come_back_loses_wal(case in cases(), shortage in 0u64..60) {
        let plan = with_shortage(case.clone(), shortage).plan();
        let horizon = plan.horizon.raw();
        prop_assert!(case.running >= 90 || case.plan().horizon.raw() == case.oldest);
        for (from, _) in case.gone.iter().filter(|(_, ago)| *ago < 90) {
            prop_assert!(horizon <= from / MIB);
        }
        for n in (0..case.slots.len()).filter(|n| case.is_awaited(*n)) {
            prop_assert!(horizon <= case.slots[n].0 / MIB);
            prop_assert!(plan.invalidate.iter().all(|(lost, _)| *lost != n));
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
        gone: Vec::new(),
        running: 1000,
        paused: None,
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
}

#[test]
fn a_full_disk_takes_from_the_rules_then_closes_the_door_then_takes_from_unused_slots() {
    let mut case = quiet();
    case.policy.wal_keep_size = 85 * MIB;
    case.policy.grace = Duration::from_secs(90);
    // One was used a moment ago, two have not been for long.
    case.slots =
        vec![(30 * MIB, Some(900)), (60 * MIB, None), (40 * MIB, Some(500)), (45 * MIB, Some(950))];
    assert_eq!(case.plan().horizon.raw(), 15);
    let short = |case: &Case, segments| with_shortage(case.clone(), segments).plan();
    assert_eq!(short(&case, 5).horizon.raw(), 15, "what goes anyway is enough");
    assert_eq!(short(&case, 12).horizon.raw(), 22, "kept by rules only");
    let lost = |plan: &Plan| plan.invalidate.iter().map(|(n, _)| *n).collect::<Vec<_>>();
    let plan = short(&case, 40);
    assert_eq!((plan.horizon.raw(), lost(&plan)), (30, vec![]), "a pause comes first");
    assert_eq!(plan.receiving, Receiving::Paused);
    case.paused = Some(89);
    assert!(lost(&short(&case, 40)).is_empty());
    case.paused = Some(90);
    let plan = short(&case, 40);
    assert_eq!((plan.horizon.raw(), lost(&plan)), (40, vec![0]), "the one that keeps most");
    assert_eq!(plan.receiving, Receiving::Paused);
    case.slots[0].1 = None;
    assert!(lost(&short(&case, 40)).is_empty(), "another keeps as much, and is used");
    case.slots.remove(0);
    let plan = short(&case, 70);
    assert_eq!((plan.horizon.raw(), lost(&plan)), (45, vec![1]), "one at a time");
    case.slots.remove(1);
    let plan = short(&case, 70);
    assert_eq!((plan.horizon.raw(), lost(&plan)), (45, vec![]), "its user may come back");
    assert_eq!(plan.receiving, Receiving::Paused);
    case.now += 100;
    let backlog = Case { unarchived: vec![25], ..case };
    let plan = short(&backlog, 40);
    assert_eq!((plan.horizon.raw(), lost(&plan)), (25, vec![]), "not archived yet");
}

#[test]
fn the_grace_is_over_when_the_disk_is_about_to_be_full() {
    let mut case = quiet();
    case.policy.grace = Duration::from_secs(90);
    case.policy.max_slot_wal_keep_size = Some(20 * MIB);
    case.slots = vec![(50 * MIB, Some(999))];
    case.gone = vec![(60 * MIB, 1)];
    let slots = case.needs();
    let free = |free, pace| {
        let situation = Situation {
            slots: &slots,
            needed: case.needed(),
            running: Duration::from_secs(1000),
            space: Some(Space { total: 1000 * MIB, free }),
            pace,
            ..Situation::new(size(), SegmentNo::new(10), Lsn::new(case.newest))
        };
        plan(&case.policy, &situation)
    };
    assert_eq!(free(30 * MIB, MIB).horizon.raw(), 50);
    assert_eq!(free(0, 0).horizon.raw(), 50, "nothing comes in");
    let plan = free(30 * MIB - 1, MIB);
    assert_eq!((plan.horizon.raw(), plan.invalidate), (80, vec![(0, Cause::WalRemoved)]));
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
        paused: Some(Duration::ZERO),
        ..Situation::new(size(), SegmentNo::new(95), Lsn::new(case.newest))
    };
    assert_eq!(plan(&case.policy, &situation).receiving, Receiving::Paused);
    let roomy = Space { free: (1000 + RESUME_SEGMENTS) * MIB, ..case.space.unwrap() };
    let situation = Situation { space: Some(roomy), ..situation };
    assert_eq!(plan(&case.policy, &situation).receiving, Receiving::Open);
}
