//! What the keeper knows of what was set aside.

use super::job::JobKind;
use crate::store::asides::{AsideFile, AsideLook, AsideWalk, Confirmations};
use crate::store::now::Now;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How often it is looked at when nothing moves: an operator may take some of it away.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(60);

/// How often it is written down for how long the hub has run since something was confirmed. A run
/// that is shorter does not count.
const SAVE_EVERY: Duration = Duration::from_secs(300);

/// How long it takes until something is tried again that could not be removed.
const REST: Duration = Duration::from_secs(3600);

/// What the keeper knows of what was set aside.
#[derive(Debug, Default)]
pub(super) struct Asides {
    looked: Cell<Option<Instant>>,
    /// Something has moved since.
    moved: Cell<bool>,
    /// The look that is under way.
    pub(super) look: RefCell<Option<AsideLook>>,
    /// The files in `damaged`, and their bytes.
    damaged: Cell<(usize, u64)>,
    /// What is confirmed, durably. Only the times may be newer than on disk.
    confirmed: RefCell<Rc<Confirmations>>,
    /// Up to when time has counted.
    counted: Cell<Option<Instant>>,
    /// When the times were written down.
    saved: Cell<Option<Instant>>,
    /// What is going.
    pub(super) expiry: RefCell<Option<Expiry>>,
    /// The numbers of confirmations that are not tried again before that.
    put_off: RefCell<BTreeMap<u64, Instant>>,
    /// A sync has failed: nothing more goes in this run.
    stopped: Cell<bool>,
}

/// Files of one that was set aside are going.
#[derive(Debug)]
pub(super) struct Expiry {
    pub(super) number: u64,
    pub(super) name: String,
    /// What is still to be looked at.
    pub(super) walk: Option<AsideWalk>,
    /// Files that are to go next.
    pub(super) files: Vec<AsideFile>,
    /// Folders, each before those in it. They go last, if nothing is in them.
    pub(super) folders: Vec<PathBuf>,
    /// The directories in which names have gone, or that stay.
    pub(super) to_sync: BTreeSet<PathBuf>,
    pub(super) gone: u64,
    pub(super) bytes: u64,
    pub(super) failed: u64,
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

    /// What is confirmed.
    pub(super) fn confirmed(&self) -> Rc<Confirmations> {
        Rc::clone(&self.confirmed.borrow())
    }

    /// This is confirmed, and on disk.
    pub(super) fn set_confirmed(&self, confirmed: Confirmations, now: Now) {
        self.confirmed.replace(Rc::new(confirmed));
        self.saved.set(Some(now.instant));
    }

    /// The time since the last call counts.
    pub(super) fn count(&self, now: Now) {
        let since = self.counted.replace(Some(now.instant));
        let mut confirmed = self.confirmed.borrow_mut();
        if let Some(since) = since.filter(|_| !confirmed.is_empty()) {
            Rc::make_mut(&mut confirmed).advance(now.since(since));
        }
    }

    /// Are the times to be written down?
    pub(super) fn take_save_due(&self, now: Now) -> bool {
        let is_due = !self.confirmed.borrow().is_empty()
            && self.saved.get().is_none_or(|at| now.since(at) >= SAVE_EVERY);
        if is_due {
            self.saved.set(Some(now.instant));
        }
        is_due
    }

    /// Some of this one could not be removed. Others go meanwhile.
    pub(super) fn put_off(&self, number: u64, now: Now) {
        self.put_off.borrow_mut().insert(number, now.instant + REST);
    }

    /// Nothing more goes in this run.
    pub(super) fn stop(&self) {
        self.stopped.set(true);
    }

    /// Is this one to wait?
    pub(super) fn is_put_off(&self, number: u64, now: Now) -> bool {
        let put_off = self.put_off.borrow();
        self.stopped.get() || put_off.get(&number).is_some_and(|until| now.instant < *until)
    }
}
