//! What a thread's standbys have received, commit by commit.
//!
//! The thread copies each commit once from the run's list; its standbys advance along that copy. A
//! receipt past the known commits waits, with its arrival time, until more are known.

use super::first_last::{Done, FirstLast};
use super::outcome::histogram;
use super::plan::Group;
use crate::bench::clock::Nanos;
use crate::bench::commits::{Commit, Commits};
use crate::wal::Lsn;
use hdrhistogram::Histogram;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// Commits that a thread remembers for its slowest standbys.
const MAX_COMMITS: usize = 1 << 19;
/// Receipts that wait for their commits.
const MAX_WAITING: usize = 1 << 20;

/// One thread's ledger.
pub(super) struct Ledger {
    commits: Arc<Commits>,
    first_last: Arc<Mutex<FirstLast>>,
    thread: usize,
    /// Number of the first commit in the list.
    first: u64,
    list: VecDeque<(Lsn, Nanos)>,
    known: Lsn,
    waiting: VecDeque<Receipt>,
    accounts: Vec<Account>,
    since: Nanos,
    pub(super) each: [Histogram<u64>; 4],
    pub(super) forgotten: [u64; 4],
    tally: Tally,
    scratch: Vec<Commit>,
    done: Vec<Done>,
}

struct Account {
    group: Group,
    /// The first commit that it has not received.
    next: u64,
    /// It counts for the first and the last receipt.
    counted: bool,
}

struct Receipt {
    standby: u32,
    end: Lsn,
    at: Nanos,
}

impl Ledger {
    pub(super) fn new(
        commits: Arc<Commits>,
        first_last: Arc<Mutex<FirstLast>>,
        thread: usize,
    ) -> Self {
        Self {
            commits,
            first_last,
            thread,
            first: 0,
            list: VecDeque::new(),
            known: Lsn::INVALID,
            waiting: VecDeque::new(),
            accounts: Vec::new(),
            since: Nanos(0),
            each: std::array::from_fn(|_| histogram()),
            forgotten: [0; 4],
            tally: Tally::default(),
            scratch: Vec::new(),
            done: Vec::new(),
        }
    }

    /// Adds a standby; they are numbered from 0.
    pub(super) fn open(&mut self, group: Group) {
        self.accounts.push(Account { group, next: 0, counted: false });
    }

    /// A standby's first stream begins at `at`. A good one counts from now on.
    pub(super) fn join(&mut self, standby: usize, at: Lsn) {
        self.learn();
        let next = self.commits.first_after(at);
        let Some(account) = self.accounts.get_mut(standby) else { return };
        account.next = next;
        if account.group == Group::Good {
            account.counted = true;
            self.tally.join(next);
        }
    }

    /// A standby will receive nothing more.
    pub(super) fn leave(&mut self, standby: usize) {
        let Some(account) = self.accounts.get_mut(standby) else { return };
        if std::mem::take(&mut account.counted) {
            self.tally.leave(account.next);
        }
    }

    /// A standby has received everything before `end`.
    pub(super) fn receipt(&mut self, standby: usize, end: Lsn, at: Nanos) {
        if end > self.known {
            self.learn();
        }
        if self.known.is_invalid() {
            return;
        }
        self.settle_waiting();
        if end <= self.known && self.waiting.is_empty() {
            self.resolve(standby, end, at);
            return;
        }
        if self.waiting.len() == MAX_WAITING
            && let Some(old) = self.waiting.pop_front()
        {
            self.resolve(old.standby as usize, old.end.min(self.known), old.at);
        }
        let standby = u32::try_from(standby).unwrap_or(u32::MAX);
        self.waiting.push_back(Receipt { standby, end, at });
    }

    /// Passes finished commits to the record shared by all threads.
    pub(super) fn settle(&mut self) {
        if !self.waiting.is_empty() || self.tally.is_idle() {
            self.learn();
            self.settle_waiting();
        }
        let from = self.tally.first;
        self.tally.drain(&mut self.done);
        if !self.done.is_empty() {
            let mut books = self.first_last.lock().unwrap_or_else(PoisonError::into_inner);
            books.take(self.thread, from, &self.done);
            self.done.clear();
        }
    }

    /// Does a receipt wait for its commit?
    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Only commits from `since` on count.
    pub(super) fn mark(&mut self, since: Nanos) {
        self.since = since;
        self.each.iter_mut().for_each(Histogram::reset);
        self.forgotten = [0; 4];
    }

    fn settle_waiting(&mut self) {
        while let Some(receipt) = self.waiting.pop_front_if(|waiting| waiting.end <= self.known) {
            self.resolve(receipt.standby as usize, receipt.end, receipt.at);
        }
    }

    /// Copies new commits.
    fn learn(&mut self) {
        let known = self.commits.known();
        if known <= self.known {
            return;
        }
        let next = self.first + self.list.len() as u64;
        self.scratch.clear();
        self.commits.collect(next, known, &mut self.scratch);
        self.known = known;
        let Some(begin) = self.scratch.first().map(|commit| commit.number) else { return };
        if begin != next {
            // They were dropped from the run's list before this thread saw them.
            self.list.clear();
            self.first = begin;
            self.tally.skip_to(begin);
        }
        for commit in &self.scratch {
            self.list.push_back((commit.end, commit.due));
            self.tally.push(commit.due);
        }
        let surplus = self.list.len().saturating_sub(MAX_COMMITS);
        self.list.drain(..surplus);
        self.first += surplus as u64;
    }

    fn resolve(&mut self, standby: usize, end: Lsn, at: Nanos) {
        let Some(account) = self.accounts.get_mut(standby) else { return };
        let group = account.group.index();
        let passed = self.first.saturating_sub(account.next);
        self.forgotten[group] += passed;
        account.next += passed;
        if account.counted && passed > 0 {
            // It has them nevertheless; the time is unknown.
            self.tally.passed(account.next - passed, account.next);
        }
        let offset = usize::try_from(account.next - self.first).unwrap_or(usize::MAX);
        if offset >= self.list.len() {
            return;
        }
        for &(commit_end, due) in self.list.range(offset..) {
            if commit_end > end {
                break;
            }
            if due >= self.since {
                let taken = at.0.saturating_sub(due.0);
                self.each[group].saturating_record(taken);
            }
            if account.counted {
                self.tally.seen(account.next, at);
            }
            account.next += 1;
        }
    }
}

/// How many of a thread's good standbys have which commit.
#[derive(Default)]
struct Tally {
    members: u32,
    first: u64,
    entries: VecDeque<Entry>,
}

struct Entry {
    due: Nanos,
    seen: u32,
    first: Nanos,
    last: Nanos,
    /// Some standbys have it since an unknown time.
    blurred: bool,
}

impl Tally {
    fn push(&mut self, due: Nanos) {
        let (first, last) = (Nanos(u64::MAX), Nanos(0));
        self.entries.push_back(Entry { due, seen: 0, first, last, blurred: false });
    }

    /// Are there no members, so that each commit is finished at once?
    fn is_idle(&self) -> bool {
        self.members == 0
    }

    /// Commits before `number` are lost.
    fn skip_to(&mut self, number: u64) {
        self.entries.clear();
        self.first = number;
    }

    /// Adds a member that needs the commits from `next` on.
    fn join(&mut self, next: u64) {
        self.members += 1;
        self.before(next, |entry| entry.seen += 1);
    }

    /// Removes a member that has the commits before `next`.
    fn leave(&mut self, next: u64) {
        self.members = self.members.saturating_sub(1);
        self.before(next, |entry| entry.seen = entry.seen.saturating_sub(1));
    }

    fn before(&mut self, next: u64, change: impl FnMut(&mut Entry)) {
        let count = usize::try_from(next.saturating_sub(self.first)).unwrap_or(usize::MAX);
        self.entries.iter_mut().take(count).for_each(change);
    }

    fn seen(&mut self, number: u64, at: Nanos) {
        let place = number.checked_sub(self.first).and_then(|n| usize::try_from(n).ok());
        if let Some(entry) = place.and_then(|place| self.entries.get_mut(place)) {
            entry.seen += 1;
            entry.first = entry.first.min(at);
            entry.last = entry.last.max(at);
        }
    }

    fn passed(&mut self, from: u64, to: u64) {
        let skip = usize::try_from(from.saturating_sub(self.first)).unwrap_or(usize::MAX);
        let count = usize::try_from(to.saturating_sub(from.max(self.first))).unwrap_or(usize::MAX);
        for entry in self.entries.iter_mut().skip(skip).take(count) {
            entry.seen += 1;
            entry.blurred = true;
        }
    }

    /// Moves the commits that all members have to `done`.
    fn drain(&mut self, done: &mut Vec<Done>) {
        while let Some(entry) = self.entries.pop_front_if(|entry| entry.seen >= self.members) {
            self.first += 1;
            let timed = entry.last.0 > 0 && !entry.blurred;
            let times = timed.then_some((entry.first, entry.last));
            done.push(Done { due: entry.due, times, lost: entry.blurred });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Books {
        commits: Arc<Commits>,
        shared: Arc<Mutex<FirstLast>>,
        ledger: Ledger,
    }

    fn books(groups: &[Group]) -> Books {
        let commits = Arc::new(Commits::new(1000));
        let shared = Arc::new(Mutex::new(FirstLast::new(1)));
        let mut ledger = Ledger::new(Arc::clone(&commits), Arc::clone(&shared), 0);
        for group in groups {
            ledger.open(*group);
        }
        Books { commits, shared, ledger }
    }

    impl Books {
        /// Counts and maxima of the first and of the last.
        fn first_last(&mut self) -> [(u64, u64); 2] {
            self.ledger.settle();
            let books = self.shared.lock().unwrap();
            let (first, last, _) = books.result(self.commits.count());
            [(first.len(), first.max()), (last.len(), last.max())]
        }
    }

    const GOOD: Group = Group::Good;

    #[test]
    fn each_first_and_last() {
        let mut books = books(&[GOOD, GOOD, Group::Slow]);
        for standby in 0..3 {
            books.ledger.join(standby, Lsn::new(50));
        }
        for n in 1..=3 {
            books.commits.add(Lsn::new(n * 100), Nanos(n * 10));
        }
        books.ledger.receipt(0, Lsn::new(250), Nanos(100));
        books.ledger.receipt(2, Lsn::new(100), Nanos(150));
        assert_eq!(books.first_last(), [(0, 0), (0, 0)], "one good one is missing");
        books.ledger.receipt(1, Lsn::new(200), Nanos(200));
        assert_eq!(books.first_last(), [(2, 90), (2, 190)]);
        books.ledger.receipt(1, Lsn::new(200), Nanos(300));
        let [good, slow, ..] = &books.ledger.each;
        assert_eq!((good.len(), good.min(), good.max()), (4, 80, 190));
        assert_eq!((slow.len(), slow.max()), (1, 140));
    }

    #[test]
    fn a_receipt_waits_for_its_commit() {
        let mut books = books(&[GOOD]);
        books.commits.add(Lsn::new(100), Nanos(10));
        books.ledger.join(0, Lsn::new(100));
        books.ledger.receipt(0, Lsn::new(200), Nanos(1000));
        books.ledger.receipt(0, Lsn::new(300), Nanos(2000));
        assert!(books.ledger.is_waiting());
        books.commits.add(Lsn::new(200), Nanos(900));
        books.ledger.settle();
        assert!(books.ledger.is_waiting(), "300 is not known");
        books.commits.complete_to(Lsn::new(300));
        assert_eq!(books.first_last(), [(1, 100), (1, 100)]);
        assert!(!books.ledger.is_waiting());
    }

    #[test]
    fn who_leaves_is_not_waited_for() {
        let mut books = books(&[GOOD, GOOD, GOOD]);
        books.ledger.join(0, Lsn::new(1));
        books.ledger.join(1, Lsn::new(1));
        for n in 1..=4 {
            books.commits.add(Lsn::new(n * 100), Nanos(n));
        }
        books.ledger.receipt(0, Lsn::new(400), Nanos(50));
        books.ledger.receipt(1, Lsn::new(100), Nanos(60));
        // It joins late and needs only the last commit.
        books.ledger.join(2, Lsn::new(350));
        assert_eq!(books.first_last(), [(1, 49), (1, 59)]);
        books.ledger.leave(1);
        assert_eq!(books.first_last()[0].0, 3, "all but the one that the third needs");
        books.ledger.receipt(2, Lsn::new(400), Nanos(70));
        assert_eq!(books.first_last()[1].0, 4);
    }

    #[test]
    fn only_what_is_due_after_the_mark_counts() {
        let mut books = books(&[GOOD]);
        books.ledger.join(0, Lsn::new(1));
        books.commits.add(Lsn::new(100), Nanos(10));
        books.commits.add(Lsn::new(200), Nanos(20));
        books.ledger.mark(Nanos(15));
        books.shared.lock().unwrap().mark(Nanos(15));
        books.ledger.receipt(0, Lsn::new(200), Nanos(30));
        assert_eq!(books.first_last(), [(1, 10), (1, 10)]);
        assert_eq!(books.ledger.each[0].len(), 1);
    }
}
