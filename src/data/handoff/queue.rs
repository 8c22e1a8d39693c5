//! The queue of a hand-over: crossbeam's, or under `cfg(walhub_loom)` one that the checker can
//! follow. That one promises no more than this: a thread that sees the place filled sees what was
//! pushed.

#[cfg(not(walhub_loom))]
pub(super) use crossbeam::queue::ArrayQueue;
#[cfg(walhub_loom)]
pub(super) use modelled::ArrayQueue;

#[cfg(walhub_loom)]
mod modelled {
    use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::sync::{Mutex, PoisonError};

    #[derive(Debug)]
    struct Place<T> {
        filled: AtomicBool,
        value: Mutex<Option<T>>,
    }

    /// Bounded; many producers, one consumer.
    #[derive(Debug)]
    pub(in crate::data::handoff) struct ArrayQueue<T> {
        places: Vec<Place<T>>,
        /// The next place that a push claims; the place itself says when it is free.
        tail: AtomicUsize,
        head: AtomicUsize,
    }

    impl<T> ArrayQueue<T> {
        pub(in crate::data::handoff) fn new(capacity: usize) -> Self {
            let place = || Place { filled: AtomicBool::new(false), value: Mutex::new(None) };
            let places = (0..capacity).map(|_| place()).collect();
            Self { places, tail: AtomicUsize::new(0), head: AtomicUsize::new(0) }
        }

        pub(in crate::data::handoff) fn push(&self, value: T) -> Result<(), T> {
            let mut tail = self.tail.load(Ordering::Relaxed);
            loop {
                // A stale head makes the queue look full, which is allowed.
                if tail - self.head.load(Ordering::Acquire).min(tail) >= self.places.len() {
                    return Err(value);
                }
                let next = tail + 1;
                match self.tail.compare_exchange(tail, next, Ordering::Relaxed, Ordering::Relaxed) {
                    Ok(_) => break,
                    Err(newer) => tail = newer,
                }
            }
            let place = &self.places[tail % self.places.len()];
            *place.value.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
            place.filled.store(true, Ordering::Release);
            Ok(())
        }

        pub(in crate::data::handoff) fn pop(&self) -> Option<T> {
            let head = self.head.load(Ordering::Relaxed);
            let place = &self.places[head % self.places.len()];
            if !place.filled.load(Ordering::Acquire) {
                return None;
            }
            let value = place.value.lock().unwrap_or_else(PoisonError::into_inner).take();
            place.filled.store(false, Ordering::Relaxed);
            self.head.store(head + 1, Ordering::Release);
            value
        }

        pub(in crate::data::handoff) fn is_empty(&self) -> bool {
            let head = self.head.load(Ordering::Relaxed);
            !self.places[head % self.places.len()].filled.load(Ordering::Acquire)
        }

        pub(in crate::data::handoff) fn len(&self) -> usize {
            let head = self.head.load(Ordering::Relaxed);
            self.tail.load(Ordering::Relaxed).saturating_sub(head)
        }
    }
}
