//! Puts the answers of several connections into WAL order.
//!
//! Commits may be answered in a different order than they have in the WAL. But a commit sent after
//! an answer comes after the answered one in the WAL. So an answer can be passed on when no commit
//! is in progress that could still get a smaller position.

use crate::bench::clock::Nanos;
use crate::wal::Lsn;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

/// Commits in progress, and answers that wait for others.
#[derive(Debug, Default)]
pub(super) struct WalOrder {
    /// The highest answer when a commit was sent, by client.
    under_way: BTreeMap<usize, Lsn>,
    answered: BinaryHeap<Reverse<(Lsn, Nanos)>>,
    highest: Lsn,
}

impl WalOrder {
    /// A client sends its commit.
    pub(super) fn sent(&mut self, client: usize) {
        self.under_way.insert(client, self.highest);
    }

    /// Its commit is answered.
    pub(super) fn answered(&mut self, client: usize, end: Lsn, due: Nanos) {
        self.under_way.remove(&client);
        self.answered.push(Reverse((end, due)));
        self.highest = self.highest.max(end);
    }

    /// Its commit will never be answered.
    pub(super) fn lost(&mut self, client: usize) {
        self.under_way.remove(&client);
    }

    /// Is no commit in progress?
    pub(super) fn is_idle(&self) -> bool {
        self.under_way.is_empty()
    }

    /// No further commit will end at or before this.
    pub(super) fn complete_to(&self) -> Lsn {
        self.under_way.values().min().map_or(self.highest, |floor| *floor)
    }

    /// The next commit in WAL order.
    pub(super) fn next(&mut self) -> Option<(Lsn, Nanos)> {
        let floor = self.complete_to();
        let Reverse((end, _)) = self.answered.peek()?;
        if *end > floor {
            return None;
        }
        self.answered.pop().map(|Reverse(commit)| commit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::random::Random;

    #[test]
    fn answers_come_out_in_the_order_of_the_wal() {
        let mut random = Random::new(5);
        let (mut order, mut wal) = (WalOrder::default(), 0u64);
        let mut clients: [Option<Lsn>; 8] = [None; 8];
        let (mut out, mut sent) = (Vec::new(), 0);
        while out.len() < 2000 {
            let client = usize::try_from(random.below(8)).unwrap();
            // A commit gets its position in the WAL at any time between send and answer.
            match clients[client] {
                None if sent < 2000 => {
                    order.sent(client);
                    clients[client] = Some(Lsn::INVALID);
                    sent += 1;
                }
                Some(Lsn::INVALID) => {
                    wal += random.between(1, 9);
                    clients[client] = Some(Lsn::new(wal));
                }
                Some(end) => {
                    order.answered(client, end, Nanos(0));
                    clients[client] = None;
                }
                None => {}
            }
            let complete = order.complete_to();
            while let Some((end, _)) = order.next() {
                assert!(out.last().is_none_or(|last| *last < end), "{end} after {out:?}");
                out.push(end);
            }
            assert!(out.last().is_none_or(|last| *last <= complete));
            let placed = clients.iter().flatten().filter(|end| !end.is_invalid());
            assert!(placed.into_iter().all(|end| *end > complete), "nothing below comes later");
        }
        assert!(order.is_idle());
    }

    #[test]
    fn a_lost_commit_holds_up_nobody() {
        let mut order = WalOrder::default();
        order.sent(1);
        order.sent(2);
        order.answered(2, Lsn::new(10), Nanos(1));
        assert_eq!(order.next(), None);
        order.lost(1);
        assert_eq!(order.next(), Some((Lsn::new(10), Nanos(1))));
        assert_eq!(order.complete_to(), Lsn::new(10));
    }
}
