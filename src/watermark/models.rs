//! Every interleaving of publishing and sleeping that the memory model permits: `RUSTFLAGS="--cfg
//! walhub_loom" cargo test --lib models`.
//!
//! The checker reports a core that sleeps over work as a deadlock. Each model also runs without one
//! of the fences and must then fail.

use super::sync::planted::plant;
use super::sync::{AtomicU64, Fence, Ordering};
use super::{Bell, Cell};
use crate::wal::{Lsn, TimelineId};
use loom::sync::Notify;
use loom::thread;
use std::sync::Arc;

const START: Lsn = Lsn::new(100);
const NEXT: Lsn = Lsn::new(200);

/// What cores share. The notification stands for the descriptor that a ring reads: it is kept when
/// no core sleeps.
struct Hub {
    cell: Cell,
    bell: Bell,
    event: Notify,
    /// Standbys handed over so far.
    queue: AtomicU64,
}

impl Hub {
    fn new() -> Arc<Self> {
        let cell = Cell::new(TimelineId::FIRST, START, START);
        let queue = AtomicU64::new(0);
        Arc::new(Self { cell, bell: Bell::new(), event: Notify::new(), queue })
    }

    fn ring(&self) {
        if self.bell.rings_needed() {
            self.event.notify();
        }
    }

    /// The core's loop until everything in `expected` has been seen. `last_look` is what it checks
    /// between arming and sleeping.
    fn run_until(&self, expected: Work, last_look: fn(&Self) -> Work) {
        loop {
            let seen = everything(self);
            if seen == expected {
                return;
            }
            self.bell.arm();
            let look = last_look(self);
            let found_more = look.0 && !seen.0 || look.1 && !seen.1;
            if !found_more {
                self.event.wait();
            }
            self.bell.disarm();
        }
    }
}

/// Work that a core sees: whether WAL is published and a standby is handed over.
type Work = (bool, bool);

fn watermark_only(hub: &Hub) -> Work {
    (hub.cell.limit() == NEXT, false)
}

fn everything(hub: &Hub) -> Work {
    (hub.cell.limit() == NEXT, hub.queue.load(Ordering::Acquire) == 1)
}

fn publish_and_sleep() {
    loom::model(|| {
        let hub = Hub::new();
        let receiver = Arc::clone(&hub);
        let receiver = thread::spawn(move || {
            receiver.cell.publish(NEXT);
            receiver.ring();
        });
        hub.run_until((true, false), watermark_only);
        receiver.join().expect("the receiver");
    });
}

/// The receiver publishes while the control thread hands a standby over. The core must see both,
/// though only one of them may have rung.
fn two_ring_one_sleeps(last_look: fn(&Hub) -> Work) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(move || {
        let hub = Hub::new();
        let (receiver, control) = (Arc::clone(&hub), Arc::clone(&hub));
        let receiver = thread::spawn(move || {
            receiver.cell.publish(NEXT);
            receiver.ring();
        });
        let control = thread::spawn(move || {
            control.queue.store(1, Ordering::Release);
            control.ring();
        });
        hub.run_until((true, true), last_look);
        receiver.join().expect("the receiver");
        control.join().expect("the control thread");
    });
}

#[test]
fn published_wal_wakes_a_sleeper() {
    let _all_fences = plant(None);
    publish_and_sleep();
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_the_sleepers_fence_wal_is_slept_over() {
    let _planted = plant(Some(Fence::Arm));
    publish_and_sleep();
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_the_publishers_fence_wal_is_slept_over() {
    let _planted = plant(Some(Fence::Ring));
    publish_and_sleep();
}

#[test]
fn a_hand_over_beside_a_publication_wakes_a_sleeper() {
    let _all_fences = plant(None);
    two_ring_one_sleeps(everything);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_core_that_looks_at_the_watermark_only_sleeps_over_a_hand_over() {
    let _all_fences = plant(None);
    two_ring_one_sleeps(watermark_only);
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_the_sleepers_fence_a_hand_over_is_slept_over() {
    let _planted = plant(Some(Fence::Arm));
    two_ring_one_sleeps(everything);
}
