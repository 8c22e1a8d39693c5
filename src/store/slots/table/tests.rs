//! The table of slots: use, removal, invalidation, what is on disk.

use super::*;
use crate::store::retention::Policy;
use crate::store::seams::{Cut, Seam};
use crate::store::slots::{Generation, WalStatus};
use crate::wal::TimelineId;
use proptest::prelude::*;
use std::sync::LazyLock;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

const MIB: u64 = 1 << 20;

fn size() -> SegmentSize {
    SegmentSize::new(MIB).unwrap()
}

fn name(text: &str) -> SlotName {
    SlotName::parse(text).unwrap()
}

fn at(seconds: u64) -> Now {
    static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);
    let passed = Duration::from_secs(seconds);
    Now { instant: *BEGAN + passed, time_of_day: SystemTime::UNIX_EPOCH + passed }
}

fn create(table: &mut SlotTable, text: &str, pid: u32) -> Create {
    Create {
        name: name(text),
        lifetime: SlotLifetime::Persistent,
        origin: Origin::Asked,
        reserve: None,
        session: table.enter(pid),
    }
}

/// A table with one slot `s`, free and on disk.
fn one(reserve: Option<u64>) -> SlotTable {
    let mut table = SlotTable::default();
    let create = create(&mut table, "s", 1);
    table.create(Create { reserve: reserve.map(Lsn::new), ..create }, 10).unwrap();
    save(&mut table);
    save(&mut table);
    table.set_free(&name("s"));
    table
}

/// Writes a generation.
fn save(table: &mut SlotTable) {
    let records = table.records(&SlotChange::None);
    table.saved(records);
}

/// What the next generation says of the only slot.
fn record(table: &SlotTable) -> SlotRecord {
    table.records(&SlotChange::None).remove(0)
}

/// A stream of a new session gets the slot.
fn start(table: &mut SlotTable, pid: u32) -> Result<SlotGrant, SlotFault> {
    let session = table.enter(pid);
    table.acquire("s", session, InvalidSlots::Accept)
}

/// The session with this number reports, with the slot that it has or now gets.
fn report(table: &mut SlotTable, pid: u32, flush: u64) {
    let slot = table.get("s").unwrap();
    let reported = match slot.active_pid() {
        Some(user) => {
            assert_eq!(user, pid, "another one has it");
            Arc::clone(&slot.reported)
        }
        None => start(table, pid).unwrap().reported,
    };
    reported.store(flush, Ordering::Release);
}

/// The stream that has the slot gives it back.
fn release(table: &mut SlotTable) {
    let token = table.get("s").unwrap().user().unwrap();
    table.release(&name("s"), token);
}

#[test]
fn one_user_at_a_time() {
    let mut table = SlotTable::default();
    let create = create(&mut table, "s", 1);
    table.create(create, 2).unwrap();
    let busy = |pid| SlotFault::InUse { name: name("s"), pid };
    let taken = start(&mut table, 2).unwrap_err();
    assert_eq!(taken, busy(1), "it is not on disk yet");
    assert_eq!(taken.to_string(), "replication slot \"s\" is active for PID 1");
    table.set_free(&name("s"));
    let two = table.enter(2);
    let used = table.acquire("s", two, InvalidSlots::Accept).unwrap();
    assert_eq!(start(&mut table, 3).unwrap_err(), busy(2));
    let three = table.enter(3);
    assert_eq!(table.begin_drop("s", three).unwrap_err(), busy(2));
    table.set_free(&name("s"));
    assert_eq!(start(&mut table, 3).unwrap_err(), busy(2), "nobody creates or drops it");
    table.release(&name("s"), used.token);
    assert_eq!(table.begin_drop("s", three), Ok(SlotLifetime::Persistent));
    table.release(&name("s"), used.token);
    assert_eq!(start(&mut table, 4).unwrap_err(), busy(3));
    assert_eq!(table.begin_drop("s", three).unwrap_err(), busy(3), "once is enough");
    table.forget(&name("s"));
    let unknown = SlotFault::Unknown("s".to_owned());
    assert_eq!(table.begin_drop("s", three).unwrap_err(), unknown);
}

/// The number of a session shows nothing: what has the slot is one stream.
#[test]
fn a_session_that_has_a_slot_does_not_get_it_twice_nor_frees_it_by_an_earlier_use() {
    let mut table = one(None);
    let session = table.enter(2);
    let mut again = || table.acquire("s", session, InvalidSlots::Accept);
    let first = again().unwrap();
    let busy = SlotFault::InUse { name: name("s"), pid: 2 };
    assert_eq!(again().unwrap_err(), busy);
    assert_eq!(table.begin_drop("s", session).unwrap_err(), busy);
    table.release(&name("s"), first.token);
    let second = table.acquire("s", session, InvalidSlots::Accept).unwrap();
    table.release(&name("s"), first.token);
    assert_eq!(table.get("s").unwrap().active_pid(), Some(2), "the first is over already");
    // Nor is it another session's that has the same number, later.
    let later = table.enter(2);
    assert_eq!(table.begin_drop("s", later).unwrap_err(), busy);
    table.release(&name("s"), second.token);
    assert_eq!(table.begin_drop("s", later), Ok(SlotLifetime::Persistent));
}

#[test]
fn names_are_unique_and_places_are_counted() {
    let mut table = SlotTable::default();
    let mut try_create = |text, max| {
        let create = create(&mut table, text, 1);
        table.create(create, max)
    };
    try_create("a", 2).unwrap();
    try_create("b", 2).unwrap();
    // That the name is taken is reported before that the table is full.
    assert_eq!(try_create("a", 2), Err(SlotFault::Exists(name("a"))));
    assert_eq!(try_create("c", 2), Err(SlotFault::Full));
    assert_eq!(try_create("c", 0), Err(SlotFault::Full));
}

#[test]
fn temporary_slots_go_with_their_session() {
    let mut table = one(None);
    let mut temporary = |text, pid| {
        let create = create(&mut table, text, pid);
        let session = create.session;
        table.create(Create { lifetime: SlotLifetime::Temporary, ..create }, 10).unwrap();
        session
    };
    let (seven, eight) = (temporary("a", 7), temporary("b", 8));
    let on_disk: Vec<_> = table.records(&SlotChange::None);
    assert_eq!((on_disk.len(), &on_disk[0].name), (1, &name("s")), "never on disk");
    assert!(table.is_saved(&name("a")), "nobody waits for that");
    // Its session streams from it and stops again: it still belongs to that session.
    let used = table.acquire("a", seven, InvalidSlots::Accept).unwrap();
    let busy = SlotFault::InUse { name: name("a"), pid: 7 };
    assert_eq!(table.begin_drop("a", seven), Err(busy.clone()), "its own stream");
    table.release(&name("a"), used.token);
    let later = table.enter(7);
    for stranger in [eight, later] {
        assert_eq!(table.begin_drop("a", stranger), Err(busy.clone()));
        table.acquire("a", stranger, InvalidSlots::Accept).unwrap_err();
        table.drop_temporary(later);
    }
    table.drop_temporary(seven);
    let names: Vec<_> = table.iter().map(|slot| slot.name.to_string()).collect();
    assert_eq!(names, ["b", "s"]);
    assert_eq!(table.begin_drop("b", eight), Ok(SlotLifetime::Temporary));
    assert_eq!(table.len(), 1);
}

#[test]
fn the_position_is_the_users_flush() {
    let mut table = one(None);
    assert_eq!(table.needs(at(0)).1, []);
    let restart = |table: &mut SlotTable, oldest: u64| {
        table.absorb(Lsn::new(oldest));
        table.get("s").unwrap().restart_lsn.map(Lsn::raw)
    };
    assert_eq!(restart(&mut table, 5), None);
    report(&mut table, 2, 70);
    assert_eq!(restart(&mut table, 5), Some(70));
    // A position ahead of our own WAL and one further back: both are what the standby reported.
    report(&mut table, 2, 1 << 60);
    assert_eq!(restart(&mut table, 5), Some(1 << 60));
    report(&mut table, 2, 60);
    assert_eq!(restart(&mut table, 5), Some(60));
    report(&mut table, 2, 40);
    assert_eq!(restart(&mut table, 50), Some(60), "that WAL is gone");
}

#[test]
fn only_what_both_generations_say_lets_wal_go() {
    let mut table = one(Some(10 * MIB));
    let need = |table: &SlotTable| table.get("s").unwrap().needed_from().unwrap().raw();
    report(&mut table, 2, 30 * MIB);
    table.absorb(Lsn::new(10 * MIB));
    assert_eq!(need(&table), 10 * MIB);
    save(&mut table);
    assert_eq!(need(&table), 10 * MIB, "a start may read the one before");
    save(&mut table);
    assert_eq!(need(&table), 30 * MIB);
    // Further back: what is on disk does not protect that.
    report(&mut table, 2, 20 * MIB);
    table.absorb(Lsn::new(10 * MIB));
    assert_eq!(need(&table), 20 * MIB);
}

/// It shows that its standby has followed over the seam, and would be refused without it.
#[test]
fn a_slot_that_passes_a_seam_is_written_down() {
    let mut table = one(Some(10 * MIB));
    for _ in 0..2 {
        save(&mut table);
    }
    let mut seams = Seams::default();
    let seam = Seam { tli: TimelineId::FIRST, at: Lsn::new(10 * MIB + 500) };
    seams.begin(Cut::Past(seam), &[seam]).unwrap();
    seams.finish();
    table.watch(&seams);
    let mut is_due = |flush: u64, now: u64| {
        report(&mut table, 2, flush);
        table.absorb(Lsn::new(10 * MIB));
        let is_due = table.take_due(size(), at(now));
        if is_due {
            save(&mut table);
        }
        is_due
    };
    assert!(!is_due(10 * MIB + 500, 10), "at the seam");
    assert!(is_due(10 * MIB + 501, 11));
    assert!(is_due(10 * MIB + 600, 12), "the older generation is before it");
    assert!(!is_due(10 * MIB + 700, 13));
}

#[test]
fn written_down_by_segments_and_seconds() {
    let mut table = one(Some(10 * MIB));
    let mut is_due = |flush: u64, now: u64| {
        report(&mut table, 2, flush);
        table.absorb(Lsn::new(10 * MIB));
        let is_due = table.take_due(size(), at(now));
        if is_due {
            save(&mut table);
        }
        is_due
    };
    assert!(!is_due(10 * MIB + 500, 10), "the same segment");
    assert!(is_due(11 * MIB, 10));
    assert!(!is_due(12 * MIB, 10), "the same second");
    assert!(is_due(12 * MIB + 7, 11));
    assert!(is_due(12 * MIB + 9, 12), "the older generation is behind");
    assert!(!is_due(12 * MIB + 11, 13));
    release(&mut table);
    for second in [14, 15] {
        assert!(table.take_due(size(), at(second)), "unused, it is written down exactly");
        save(&mut table);
    }
    assert!(!table.take_due(size(), at(16)));
}

#[test]
fn a_start_takes_the_newest_generation_and_keeps_what_the_other_needs() {
    let generation = |number, positions: &[(&str, u64)]| {
        let record = |(text, at): &(&str, u64)| SlotRecord {
            name: name(text),
            restart_lsn: Some(Lsn::new(at * MIB)),
            invalidated: None,
            origin: Origin::Asked,
        };
        Some(Generation {
            number,
            standbys_from: None,
            slots: positions.iter().map(record).collect(),
        })
    };
    let loaded = |found| {
        let mut table = SlotTable::default();
        table.load(found);
        let position = |slot: &Slot| {
            let lsn = |lsn: Option<Lsn>| lsn.map_or(0, |lsn| lsn.raw() / MIB);
            (slot.name.to_string(), lsn(slot.restart_lsn), lsn(slot.needed_from()))
        };
        let slots: Vec<_> = table.iter().map(position).collect();
        (slots, table.is_unsettled())
    };
    let a = |at, needed| ("a".to_owned(), at, needed);
    let both = [generation(8, &[("a", 20)]), generation(7, &[("a", 20)])];
    assert_eq!(loaded(both), (vec![a(20, 20)], false));
    let moved = [generation(8, &[("a", 20)]), generation(7, &[("a", 10)])];
    assert_eq!(loaded(moved), (vec![a(20, 10)], true));
    let dropped = [generation(8, &[("a", 20)]), generation(7, &[("a", 20), ("b", 5)])];
    assert_eq!(loaded(dropped), (vec![a(20, 20)], true));
    let created = [generation(8, &[("a", 20)]), generation(7, &[])];
    assert_eq!(loaded(created), (vec![a(20, 20)], true));
    assert_eq!(loaded([generation(8, &[("a", 20)]), None]), (vec![a(20, 20)], true));
    assert_eq!(loaded([None, None]), (vec![], false));
}

/// The slot loses its WAL.
fn lose(table: &mut SlotTable, cause: Cause) {
    let losses = table.losses([(&name("s"), cause)].into_iter());
    assert_eq!(table.lose(losses).len(), 1);
}

#[test]
fn an_unused_slot_with_a_new_user_is_spared() {
    let mut table = one(Some(10 * MIB));
    let losses = table.losses([(&name("s"), Cause::IdleTimeout)].into_iter());
    report(&mut table, 2, 11 * MIB);
    assert!(table.lose(losses).is_empty());
    assert!(table.take_revoked().is_empty() && table.get("s").unwrap().invalidated.is_none());
    assert!(table.is_unsettled(), "the disk says otherwise");
    // A user who has left meanwhile, or another one, makes no difference.
    let losses = table.losses([(&name("s"), Cause::WalRemoved)].into_iter());
    release(&mut table);
    report(&mut table, 3, 11 * MIB);
    assert_eq!(table.lose(losses).len(), 1);
    assert_eq!(table.take_revoked(), [table.get("s").unwrap().user().unwrap()]);
    // Neither does a slot that was made anew.
    let losses = table.losses([(&name("s"), Cause::WalRemoved)].into_iter());
    table.forget(&name("s"));
    let create = create(&mut table, "s", 1);
    table.create(create, 10).unwrap();
    assert!(table.lose(losses).is_empty());
}

#[test]
fn an_invalid_slot_is_accepted_up_to_17_and_revived_by_a_flush() {
    let mut table = one(Some(10 * MIB));
    report(&mut table, 2, 11 * MIB);
    lose(&mut table, Cause::WalRemoved);
    assert_eq!(table.take_revoked(), [table.get("s").unwrap().user().unwrap()]);
    assert!(table.take_revoked().is_empty());
    let status = |table: &SlotTable| {
        let (newest, oldest) = (Lsn::new(90 * MIB), Lsn::new(50 * MIB));
        table.get("s").unwrap().wal_status(&Policy::default(), size(), newest, oldest)
    };
    assert_eq!(status(&table), Some(WalStatus::Lost));
    table.absorb(Lsn::new(50 * MIB));
    assert_eq!(status(&table), Some(WalStatus::Lost), "the old user's report does not count");
    assert_eq!(table.needs(at(0)).1.len(), 1, "not on disk yet");
    save(&mut table);
    save(&mut table);
    assert_eq!(table.needs(at(0)).1, [], "it keeps nothing");
    release(&mut table);

    let three = table.enter(3);
    let refused = table.acquire("s", three, InvalidSlots::Refuse).unwrap_err();
    assert_eq!(
        refused,
        SlotFault::Invalidated { name: name("s"), cause: Cause::WalRemoved },
        "as 18"
    );
    report(&mut table, 3, 80 * MIB);
    table.absorb(Lsn::new(50 * MIB));
    assert_eq!(status(&table), Some(WalStatus::Reserved));
    assert!(table.get("s").unwrap().invalidated.is_some(), "as 17 shows it");
}

#[test]
fn how_safe_its_wal_is() {
    let policy = Policy {
        wal_keep_size: 20 * MIB,
        max_slot_wal_keep_size: Some(40 * MIB),
        ..Policy::default()
    };
    let status = |from: u64| {
        let table = one(Some(from * MIB));
        let slot = table.get("s").unwrap();
        slot.wal_status(&policy, size(), Lsn::new(100 * MIB), Lsn::new(50 * MIB))
    };
    assert_eq!(one(None).get("s").unwrap().wal_status(&policy, size(), Lsn::MAX, Lsn::MAX), None);
    let all = [85, 80, 79, 60, 59, 50, 49].map(status);
    use WalStatus::{Extended, Lost, Reserved, Unreserved};
    let expected = [Reserved, Reserved, Extended, Extended, Unreserved, Unreserved, Lost];
    assert_eq!(all, expected.map(Some));
}

#[test]
fn automatically_created_slots_expire() {
    let mut table = one(None);
    let create = create(&mut table, "auto", 5);
    table.create(Create { origin: Origin::AutoCreated, ..create }, 10).unwrap();
    assert_eq!(table.auto_created(), 1);
    let ttl = Duration::from_secs(60);
    table.note_idle(at(0));
    assert_eq!(table.expired(at(1000), ttl), [], "in use");
    table.set_free(&name("auto"));
    table.note_idle(at(1000));
    assert_eq!(table.expired(at(1059), ttl), []);
    assert_eq!(table.expired(at(5000), Duration::ZERO), [], "for ever");
    let expired = table.expired(at(1060), ttl);
    assert_eq!((expired.as_slice(), table.len()), (&[name("auto")][..], 2));
    let change = SlotChange::Forget(expired.clone());
    assert_eq!(table.records(&change).len(), 1);
    let six = table.enter(6);
    let used = table.acquire("auto", six, InvalidSlots::Accept).unwrap();
    assert_eq!(table.forget_unused(expired.clone()), [], "it is used again");
    table.release(&name("auto"), used.token);
    assert_eq!(table.forget_unused(expired), [name("auto")]);
    assert_eq!(table.len(), 1);
}

/// What may happen to one slot.
#[derive(Debug, Clone)]
enum Event {
    Report(u64),
    Absorb,
    Save,
    Written,
    Invalidate,
    Crash,
}

fn events() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0u64..100).prop_map(|no| Event::Report(no * MIB)),
        3 => Just(Event::Absorb),
        2 => Just(Event::Save),
        2 => Just(Event::Written),
        1 => Just(Event::Invalidate),
        1 => Just(Event::Crash),
    ]
}

proptest! {
    /// Whatever is reported, written and lost in a crash: WAL that the slot has in either
    /// generation on disk, or goes back to, was never given up.
    #[test]
    fn a_crash_never_wants_more_than_was_kept(
        events in proptest::collection::vec(events(), 1..60)
    ) {
        let mut table = one(Some(0));
        // The older generation, and the newest.
        let mut disk = [record(&table), record(&table)];
        let mut writing: Option<Vec<SlotRecord>> = None;
        // What retention has given up so far.
        let mut gone = 0;
        for (n, event) in events.into_iter().enumerate() {
            let now = at(10 * n as u64);
            match event {
                Event::Report(flush) => report(&mut table, 2, flush),
                Event::Absorb => table.absorb(Lsn::new(gone)),
                Event::Save => {
                    if table.take_due(size(), now) {
                        writing = Some(table.records(&SlotChange::None));
                    }
                }
                Event::Written => {
                    if let Some(records) = writing.take() {
                        disk = [disk[1].clone(), records[0].clone()];
                        table.saved(records);
                    }
                }
                Event::Invalidate => {
                    // It is durable in both before anything is removed.
                    let losses = table.losses([(&name("s"), Cause::WalRemoved)].into_iter());
                    let change = SlotChange::Lose(losses.clone());
                    for _ in 0..2 {
                        let records = table.records(&change);
                        disk = [disk[1].clone(), records[0].clone()];
                        table.saved(records);
                    }
                    table.lose(losses);
                    writing = None;
                    if table.get("s").unwrap().is_used() {
                        release(&mut table);
                    }
                }
                Event::Crash => {
                    table = SlotTable::default();
                    let [older, newest] = disk.clone();
                    let generation =
                        |number, record| Some(Generation { number, standbys_from: None, slots: vec![record] });
                    table.load([generation(2, newest), generation(1, older)]);
                    writing = None;
                }
            }
            // The keeper never writes and plans at the same time.
            if writing.is_none() {
                let needs = table.needs(now).1;
                let kept = needs.first().map_or(99 * MIB, |need| need.from.raw());
                gone = gone.max(kept.min(99 * MIB));
            }
            for restart in disk.iter().filter_map(|record| record.restart_lsn) {
                prop_assert!(restart.raw() >= gone, "{restart} is gone, up to {gone}");
            }
            if let Some(restart) = table.get("s").unwrap().restart_lsn {
                prop_assert!(restart.raw() >= gone);
            }
        }
    }
}

#[test]
fn a_switch_pulls_back_what_is_beyond_it() {
    let mut table = one(Some(3 * MIB));
    report(&mut table, 1, 9 * MIB);
    table.absorb(Lsn::new(0));
    assert!(!table.fall_back(Lsn::new(10 * MIB)), "it is not beyond");
    assert!(!table.fall_back(Lsn::new(5 * MIB)), "on disk it is not");
    table.absorb(Lsn::new(0));
    assert_eq!(table.get("s").unwrap().restart_lsn, Some(Lsn::new(5 * MIB)));
    save(&mut table);
    assert!(table.fall_back(Lsn::new(4 * MIB + 7)));
    assert_eq!(record(&table).restart_lsn, Some(Lsn::new(4 * MIB + 7)));
    save(&mut table);
    assert!(table.fall_back(Lsn::new(4 * MIB + 7)), "the generation before is");
    save(&mut table);
    assert!(!table.fall_back(Lsn::new(4 * MIB + 7)));
    report(&mut table, 1, 6 * MIB);
    table.absorb(Lsn::new(0));
    assert_eq!(table.get("s").unwrap().restart_lsn, Some(Lsn::new(6 * MIB)), "it goes on");
}
