//! The appender: one batch in flight, segments in order, failures.

use super::*;

const MIB: u64 = 1 << 20;

fn lsn(mib: u64, more: u64) -> Lsn {
    Lsn::new(mib * MIB + more)
}

fn no(raw: u64) -> SegmentNo {
    SegmentNo::new(raw)
}

fn appender(durable: Lsn, beginning: Beginning) -> Appender {
    let size = SegmentSize::new(MIB).unwrap();
    Appender::new(TimelineId::FIRST, size, durable, beginning, 32 * MIB)
}

fn no_space() -> io::Error {
    io::Error::from_raw_os_error(28)
}

/// Feeds one input and returns the resulting actions.
fn step(
    appender: &mut Appender,
    input: impl FnOnce(&mut Appender, &mut Vec<Action>),
) -> Vec<Action> {
    let mut out = Vec::new();
    input(appender, &mut out);
    out
}

fn ids(actions: &[Action]) -> Vec<WriteId> {
    actions
        .iter()
        .filter_map(|a| if let Action::Write { id, .. } = a { Some(*id) } else { None })
        .collect()
}

#[test]
fn one_batch_over_two_segments() {
    let mut a = appender(lsn(5, 100), Beginning::Past);
    let out = step(&mut a, |a, out| a.received(lsn(6, 10), out));
    assert_eq!(
        out,
        [
            Action::Prepare { segment: no(5), keep: lsn(5, 100) },
            Action::Prepare { segment: no(6), keep: lsn(6, 0) },
            Action::Prepare { segment: no(7), keep: lsn(7, 0) },
        ]
    );
    assert!(step(&mut a, |a, out| a.segment_ready(no(6), out)).is_empty());
    let out = step(&mut a, |a, out| a.segment_ready(no(5), out));
    let ids = ids(&out);
    assert_eq!(
        out,
        [
            Action::Write { id: ids[0], segment: no(5), offset: 0, from: lsn(5, 0), to: lsn(6, 0) },
            Action::Write {
                id: ids[1],
                segment: no(6),
                offset: 0,
                from: lsn(6, 0),
                to: lsn(6, 8192)
            },
        ]
    );
    assert!(step(&mut a, |a, out| a.written(ids[1], Ok(8192), out)).is_empty());
    let out = step(&mut a, |a, out| a.written(ids[0], Ok(MIB as usize), out));
    assert_eq!(out, [Action::Sync(no(5)), Action::Sync(no(6))]);
    assert!(step(&mut a, |a, out| a.synced(no(6), Ok(()), out)).is_empty());
    assert_eq!(a.durable().lsn(), lsn(5, 100));
    let out = step(&mut a, |a, out| a.synced(no(5), Ok(()), out));
    assert_eq!(out, [Action::Durable(Durable::new(lsn(6, 10))), Action::Finalize(no(5))]);
    assert_eq!(a.flush_reportable().lsn(), lsn(5, 100), "segment 5 has no final name yet");
    assert!(!a.idle());
    a.finalized(no(5));
    assert_eq!(a.flush_reportable().lsn(), lsn(6, 10));
    assert!(a.settled());
}

#[test]
fn gathers_while_a_batch_is_in_flight() {
    let mut a = appender(lsn(5, 0), Beginning::Past);
    step(&mut a, Appender::warm_up);
    step(&mut a, |a, out| a.segment_ready(no(5), out));
    let first = ids(&step(&mut a, |a, out| a.received(lsn(5, 300), out)));
    assert!(ids(&step(&mut a, |a, out| a.received(lsn(5, 9000), out))).is_empty());
    assert!(ids(&step(&mut a, |a, out| a.received(lsn(5, 9100), out))).is_empty());
    step(&mut a, |a, out| a.written(first[0], Ok(8192), out));
    let out = step(&mut a, |a, out| a.synced(no(5), Ok(()), out));
    let id = ids(&out)[0];
    let rest = Action::Write { id, segment: no(5), offset: 0, from: lsn(5, 0), to: lsn(5, 16384) };
    assert_eq!(out, [Action::Durable(Durable::new(lsn(5, 300))), rest]);
}

#[test]
fn a_large_batch_ends_at_a_page() {
    let size = SegmentSize::new(MIB).unwrap();
    let mut a = Appender::new(TimelineId::FIRST, size, lsn(5, 100), Beginning::Past, 3 * 8192);
    step(&mut a, Appender::warm_up);
    step(&mut a, |a, out| a.segment_ready(no(5), out));
    let out = step(&mut a, |a, out| a.received(lsn(5, 100_000), out));
    assert!(matches!(out[0], Action::Write { to, .. } if to == lsn(5, 3 * 8192)));
}

#[test]
fn a_short_write_goes_on_and_one_that_stays_short_drops() {
    let mut a = appender(lsn(5, 0), Beginning::Past);
    step(&mut a, Appender::warm_up);
    step(&mut a, |a, out| a.segment_ready(no(5), out));
    let first = ids(&step(&mut a, |a, out| a.received(lsn(5, 300), out)));
    let out = step(&mut a, |a, out| a.written(first[0], Ok(1000), out));
    let id = ids(&out)[0];
    let rest =
        Action::Write { id, segment: no(5), offset: 1000, from: lsn(5, 1000), to: lsn(5, 8192) };
    assert_eq!(out, [rest]);
    let out = step(&mut a, |a, out| a.written(id, Ok(0), out));
    assert_eq!(out, [Action::DropToDurable(lsn(5, 0))]);
    assert!(step(&mut a, |a, out| a.received(lsn(5, 400), out)).is_empty());
    assert!(step(&mut a, Appender::resume).is_empty());
    let out = step(&mut a, |a, out| a.received(lsn(5, 300), out));
    assert!(
        matches!(out[0], Action::Prepare { segment, keep } if segment == no(5) && keep == lsn(5, 0))
    );
}

#[test]
fn no_space_waits_for_the_other_writes() {
    let mut a = appender(lsn(5, 0), Beginning::Past);
    step(&mut a, Appender::warm_up);
    step(&mut a, |a, out| a.segment_ready(no(5), out));
    step(&mut a, |a, out| a.segment_ready(no(6), out));
    let ids = ids(&step(&mut a, |a, out| a.received(lsn(6, 300), out)));
    assert!(step(&mut a, |a, out| a.written(ids[0], Err(no_space()), out)).is_empty());
    let out = step(&mut a, |a, out| a.written(ids[1], Ok(8192), out));
    assert_eq!(out, [Action::DropToDurable(lsn(5, 0))]);
    assert!(a.out_of_space() && a.idle());
}

#[test]
fn no_space_for_a_segment_matters_when_it_is_needed() {
    let mut a = appender(lsn(5, 0), Beginning::Past);
    step(&mut a, Appender::warm_up);
    step(&mut a, |a, out| a.segment_ready(no(5), out));
    assert!(step(&mut a, |a, out| a.prepare_failed(no(6), &no_space(), out)).is_empty());
    let first = ids(&step(&mut a, |a, out| a.received(lsn(6, 0), out)));
    step(&mut a, |a, out| a.written(first[0], Ok(MIB as usize), out));
    let out = step(&mut a, |a, out| a.synced(no(5), Ok(()), out));
    assert_eq!(out, [Action::Durable(Durable::new(lsn(6, 0))), Action::Finalize(no(5))]);
    let out = step(&mut a, |a, out| a.received(lsn(6, 50), out));
    assert!(out.contains(&Action::Prepare { segment: no(6), keep: lsn(6, 0) }));
    let out = step(&mut a, |a, out| a.prepare_failed(no(6), &no_space(), out));
    assert_eq!(out, [Action::DropToDurable(lsn(6, 0))]);
}

#[test]
fn a_failed_sync_and_a_foreign_write_error_halt() {
    for sync_fails in [true, false] {
        let mut a = appender(lsn(5, 0), Beginning::Past);
        step(&mut a, Appender::warm_up);
        step(&mut a, |a, out| a.segment_ready(no(5), out));
        let first = ids(&step(&mut a, |a, out| a.received(lsn(5, 300), out)));
        let error = || io::Error::from_raw_os_error(if sync_fails { 28 } else { 5 });
        let out = if sync_fails {
            step(&mut a, |a, out| a.written(first[0], Ok(8192), out));
            step(&mut a, |a, out| a.synced(no(5), Err(error()), out))
        } else {
            step(&mut a, |a, out| a.written(first[0], Err(error()), out))
        };
        assert!(matches!(out[..], [Action::Halt(_)]), "{out:?}");
        assert!(step(&mut a, |a, out| a.received(lsn(5, 400), out)).is_empty());
        assert_eq!(a.durable().lsn(), lsn(5, 0));
    }
}

#[test]
fn the_beginning_is_noted_before_it_is_published() {
    let mut a = appender(lsn(5, 0), Beginning::Ahead);
    step(&mut a, Appender::warm_up);
    step(&mut a, |a, out| a.segment_ready(no(5), out));
    for (upto, begun) in [(300, Begun::Partly), (600, Begun::Wholly), (900, Begun::Wholly)] {
        let id = ids(&step(&mut a, |a, out| a.received(lsn(5, upto), out)))[0];
        step(&mut a, |a, out| a.written(id, Ok(8192), out));
        let out = step(&mut a, |a, out| a.synced(no(5), Ok(()), out));
        if upto < 900 {
            assert_eq!(out, [Action::Begin(lsn(5, upto))]);
            let out = step(&mut a, |a, out| a.begun(Ok(begun), out));
            assert_eq!(out, [Action::Durable(Durable::new(lsn(5, upto)))]);
        } else {
            assert_eq!(out, [Action::Durable(Durable::new(lsn(5, 900)))]);
        }
    }
}

#[test]
fn a_name_without_space_is_given_later() {
    let mut a = appender(lsn(5, 0), Beginning::Past);
    step(&mut a, Appender::warm_up);
    step(&mut a, |a, out| a.segment_ready(no(5), out));
    let first = ids(&step(&mut a, |a, out| a.received(lsn(6, 0), out)));
    step(&mut a, |a, out| a.written(first[0], Ok(MIB as usize), out));
    step(&mut a, |a, out| a.synced(no(5), Ok(()), out));
    let out = step(&mut a, |a, out| a.finalize_failed(no(5), &no_space(), out));
    assert_eq!(out, [Action::DropToDurable(lsn(6, 0))]);
    assert_eq!(a.flush_reportable().lsn(), lsn(5, 0));
    assert_eq!(step(&mut a, Appender::resume), [Action::Finalize(no(5))]);
    a.finalized(no(5));
    assert_eq!(a.flush_reportable().lsn(), lsn(6, 0));
}
