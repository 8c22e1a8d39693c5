//! What the keeper knows of what was set aside.

use super::job::JobKind;
use crate::store::now::Now;
use std::cell::Cell;
use std::time::{Duration, Instant};

/// How often it is looked at when nothing moves: an operator may take some of it away.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(60);

/// What the keeper knows of what was set aside.
#[derive(Debug, Default)]
pub(super) struct Asides {
    looked: Cell<Option<Instant>>,
    /// Something has moved since.
    moved: Cell<bool>,
    /// The files in `damaged`, and their bytes.
    damaged: Cell<(usize, u64)>,
}

impl Asides {
    /// Something was set aside, or may have been.
    pub(super) fn note_move(&self) {
        self.moved.set(true);
    }

    /// The files in `damaged`, and their bytes, as far as they are known.
    pub(super) fn damaged(&self) -> (usize, u64) {
        self.damaged.get()
    }

    /// One more of so many bytes is in `damaged`.
    pub(super) fn note_damaged(&self, bytes: u64) {
        let (files, sum) = self.damaged.get();
        self.damaged.set((files + 1, sum.saturating_add(bytes)));
        self.note_move();
    }

    /// A job of this kind is done.
    pub(super) fn note_job(&self, kind: JobKind) {
        if matches!(kind, JobKind::SetAside | JobKind::Switch | JobKind::Cut) {
            self.note_move();
        }
    }

    /// A look begins.
    pub(super) fn begin_look(&self, now: Now) {
        self.moved.set(false);
        self.looked.set(Some(now.instant));
    }

    /// So many files are in `damaged`, with so many bytes.
    pub(super) fn see_damaged(&self, damaged: (usize, u64)) {
        self.damaged.set(damaged);
    }

    /// Is it time to look?
    pub(super) fn is_due(&self, now: Now) -> bool {
        self.moved.get() || self.looked.get().is_none_or(|at| now.since(at) >= LOOK_EVERY)
    }
}
