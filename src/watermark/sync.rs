//! The atomics of the lock-free parts: std's, or loom's under `cfg(walhub_loom)`.
//!
//! Publish/sleep and pin/reuse are Dekker patterns: each side stores, then fences, then loads what
//! the other side stores. Every such fence goes through [`full_fence`] with its own name, so that a
//! model can remove exactly one and show that the checker notices.

#[cfg(walhub_loom)]
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
pub(crate) use std::sync::atomic::Ordering;
#[cfg(not(walhub_loom))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};

/// The places where a sequentially consistent fence carries the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fence {
    /// Between "I am going to sleep" and the last check for work.
    Arm,
    /// Between new work and the check for sleepers.
    Ring,
    /// Between a reader's hazard word and its second check of the chunk.
    Pin,
    /// Between the end of a chunk's identity and the check of the hazard words.
    Retire,
}

/// A sequentially consistent fence.
#[cfg(not(walhub_loom))]
#[inline]
pub(crate) fn full_fence(_site: Fence) {
    std::sync::atomic::fence(Ordering::SeqCst);
}

/// A sequentially consistent fence, unless the running model has removed it.
#[cfg(walhub_loom)]
pub(crate) fn full_fence(_site: Fence) {
    #[cfg(test)]
    if planted::removed() == Some(_site) {
        return;
    }
    loom::sync::atomic::fence(Ordering::SeqCst);
}

/// Removes a fence, for the models that must fail.
#[cfg(all(test, walhub_loom))]
pub(crate) mod planted {
    use super::Fence;
    use std::sync::{Mutex, MutexGuard, PoisonError};

    static REMOVED: Mutex<Option<Fence>> = Mutex::new(None);
    static ONE_MODEL: Mutex<()> = Mutex::new(());

    /// Models run one at a time: the switch applies to the whole process.
    pub(crate) struct Planted {
        _turn: MutexGuard<'static, ()>,
    }

    /// Runs the following model without this fence, or with all of them.
    pub(crate) fn plant(fence: Option<Fence>) -> Planted {
        // A model that fails as it should poisons the lock; the state is a copy.
        let turn = ONE_MODEL.lock().unwrap_or_else(PoisonError::into_inner);
        *REMOVED.lock().unwrap_or_else(PoisonError::into_inner) = fence;
        Planted { _turn: turn }
    }

    pub(super) fn removed() -> Option<Fence> {
        *REMOVED.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
