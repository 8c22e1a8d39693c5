//! Every interleaving of a hand-over with a core that falls asleep, over the shipped mailbox:
//! `RUSTFLAGS="--cfg walhub_loom" cargo test --lib models`.
//!
//! The checker sees a core that sleeps through a message as a deadlock. Each model also runs
//! without one of the fences, or without the last look, and must then fail.

use super::{Inbox, Mailbox, ToCore, mailbox};
use crate::watermark::sync::Fence;
use crate::watermark::sync::planted::plant;
use crate::watermark::{Bell, Quiescence};
use loom::sync::Notify;
use loom::thread;
use std::sync::Arc;
use std::time::Instant;

/// What a core shares with the threads that post to it. The notification stands for the descriptor
/// that a ring reads.
struct Door {
    bell: Bell,
    event: Notify,
    rest: Quiescence,
}

impl Door {
    fn ring(&self) {
        if self.bell.rings_needed() {
            self.event.notify();
        }
    }
}

/// A core's door and queue. The closure is the one that `serve` makes.
fn opened(capacity: usize) -> (Arc<Door>, Mailbox, Inbox) {
    let door =
        Arc::new(Door { bell: Bell::new(), event: Notify::new(), rest: Quiescence::default() });
    let bell = Arc::clone(&door);
    let (mailbox, inbox) = mailbox(capacity, Arc::new(move || bell.ring()));
    (door, mailbox, inbox)
}

fn checked(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

/// The core's loop until it has taken `expected` messages.
fn take(door: &Door, inbox: &Inbox, expected: usize, last_look: fn(&Inbox) -> bool) {
    let mut taken = 0;
    loop {
        while inbox.take().is_some() {
            taken += 1;
        }
        if taken == expected {
            return;
        }
        door.bell.arm();
        if last_look(inbox) {
            door.event.wait();
        }
        door.bell.disarm();
    }
}

fn one_message(last_look: fn(&Inbox) -> bool) {
    checked(move || {
        let (door, mailbox, inbox) = opened(1);
        let control = thread::spawn(move || {
            mailbox.post(ToCore::EndHubStreams).expect("an empty queue");
        });
        take(&door, &inbox, 1, last_look);
        control.join().expect("the control thread");
    });
}

/// The control thread and the keeper post at the same time; only one of them may have rung the
/// bell.
fn two_messages() {
    checked(|| {
        let (door, mailbox, inbox) = opened(2);
        let post = |mailbox: Mailbox, message| {
            thread::spawn(move || mailbox.post(message).expect("a place in the queue"))
        };
        let control = post(mailbox.clone(), ToCore::Cancel { pid: 7 });
        let keeper = post(mailbox, ToCore::BeginAnew);
        take(&door, &inbox, 2, Inbox::is_empty);
        control.join().expect("the control thread");
        keeper.join().expect("the keeper");
    });
}

/// A full queue returns the message; posting it again delivers it.
fn full_queue() {
    checked(|| {
        let (door, mailbox, inbox) = opened(1);
        let control = thread::spawn(move || {
            for pid in 0..2 {
                let mut message = ToCore::Cancel { pid };
                while let Err(back) = mailbox.post(message) {
                    message = back;
                    thread::yield_now();
                }
            }
        });
        take(&door, &inbox, 2, Inbox::is_empty);
        control.join().expect("the control thread");
    });
}

/// Shutdown: told to stop by the control thread, the core waits until the receive role
/// has come to rest.
fn stop(last_look: fn(&Door) -> bool) {
    checked(move || {
        let (door, mailbox, inbox) = opened(1);
        let deadline = Instant::now();
        let control = thread::spawn(move || {
            mailbox.post(ToCore::Stop { deadline }).expect("an empty queue");
        });
        let receiver = Arc::clone(&door);
        let receiver = thread::spawn(move || {
            receiver.rest.come();
            receiver.ring();
        });
        let mut told = false;
        loop {
            told |= matches!(inbox.take(), Some(ToCore::Stop { .. }));
            if told && door.rest.has_come() {
                break;
            }
            door.bell.arm();
            let at_rest = told && last_look(&door);
            if inbox.is_empty() && !at_rest {
                door.event.wait();
            }
            door.bell.disarm();
        }
        control.join().expect("the control thread");
        receiver.join().expect("the receive role");
    });
}

#[test]
fn a_message_wakes_a_sleeper() {
    let _all_fences = plant(None);
    one_message(Inbox::is_empty);
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_the_last_look_a_message_is_slept_over() {
    let _all_fences = plant(None);
    one_message(|_| true);
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_the_sleepers_fence_a_message_is_slept_over() {
    let _planted = plant(Some(Fence::Arm));
    one_message(Inbox::is_empty);
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_the_posters_fence_a_message_is_slept_over() {
    let _planted = plant(Some(Fence::Ring));
    one_message(Inbox::is_empty);
}

#[test]
fn two_messages_at_once_are_both_taken() {
    let _all_fences = plant(None);
    two_messages();
}

#[test]
fn a_full_queue_loses_nothing() {
    let _all_fences = plant(None);
    full_queue();
}

#[test]
fn a_core_that_is_told_to_stop_hears_of_the_rest() {
    let _all_fences = plant(None);
    stop(|door| door.rest.has_come());
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_the_last_look_the_rest_is_slept_over() {
    let _all_fences = plant(None);
    stop(|_| false);
}
