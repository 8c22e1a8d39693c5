//! What the threads do next, and who waits for it.

use super::Inner;
use crate::keeper::Reply;
use crate::wal::{SegmentNo, TimelineId};
use std::collections::{BTreeMap, VecDeque};

/// The most segments that wait to be fetched ahead of need: beyond that, requested segments come
/// first.
const MAX_FORESEEN: usize = 64;

/// A segment in the archive, by the timeline in its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SegmentKey {
    pub(super) tli: TimelineId,
    pub(super) no: SegmentNo,
}

/// A core that waits for a segment, and the timeline it asked for.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) tli: TimelineId,
    pub(super) reply: Reply,
}

/// A piece of work for a task.
pub(super) trait Work: Send {
    /// Does anybody still wait for it?
    fn is_wanted(&self) -> bool;

    /// Does the work and sends the result.
    fn run(self: Box<Self>, inner: &Inner);
}

/// What a thread does next.
pub(super) enum NextTask {
    Segment(SegmentKey),
    Work(Box<dyn Work>),
}

/// The control thread and the standbys take turns: neither waits for all of the other's work.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Turn {
    #[default]
    Work,
    Segment,
}

/// The queue. Requested segments go before segments fetched ahead of need.
#[derive(Default)]
pub(super) struct Queue {
    work: VecDeque<Box<dyn Work>>,
    /// Whose turn it is when both want something.
    turn: Turn,
    needed: VecDeque<SegmentKey>,
    foreseen: VecDeque<SegmentKey>,
    /// Who waits for each segment that is in a list, being fetched, or with the keeper.
    waiting: BTreeMap<SegmentKey, Vec<Waiting>>,
}

impl Queue {
    /// A core needs a segment.
    pub(super) fn want(&mut self, key: SegmentKey, waiting: Waiting) {
        match self.waiting.get_mut(&key) {
            None => {
                self.waiting.insert(key, vec![waiting]);
                self.needed.push_back(key);
            }
            Some(others) => {
                others.push(waiting);
                if let Some(place) = self.foreseen.iter().position(|other| *other == key) {
                    self.foreseen.remove(place);
                    self.needed.push_back(key);
                }
            }
        }
    }

    /// A segment will be needed. Returns false when it is already on its way, or has to wait.
    pub(super) fn foresee(&mut self, key: SegmentKey) -> bool {
        if self.waiting.contains_key(&key) || self.foreseen.len() >= MAX_FORESEEN {
            return false;
        }
        self.waiting.insert(key, Vec::new());
        self.foreseen.push_back(key);
        true
    }

    /// A task wants something. Work that nobody waits for any more makes room.
    pub(super) fn order(&mut self, work: Box<dyn Work>) {
        self.work.retain(|work| work.is_wanted());
        self.work.push_back(work);
    }

    pub(super) fn next(&mut self) -> Option<NextTask> {
        if (self.turn == Turn::Work || self.needed.is_empty())
            && let Some(work) = self.work.pop_front()
        {
            self.turn = Turn::Segment;
            return Some(NextTask::Work(work));
        }
        self.turn = Turn::Work;
        let segment = self.needed.pop_front().or_else(|| self.foreseen.pop_front());
        segment.map(NextTask::Segment)
    }

    /// A segment is finished. Returns who waited for it.
    pub(super) fn finished(&mut self, key: SegmentKey) -> Vec<Waiting> {
        self.waiting.remove(&key).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(no: u64) -> SegmentKey {
        SegmentKey { tli: TimelineId::FIRST, no: SegmentNo::new(no) }
    }

    /// A waiting core, identified by the timeline that it asked for.
    fn core(core: u32) -> Waiting {
        Waiting { tli: TimelineId::new(1 + core).unwrap(), reply: Reply::Nobody }
    }

    fn cores(waiting: Vec<Waiting>) -> Vec<u32> {
        waiting.into_iter().map(|waiting| waiting.tli.raw() - 1).collect()
    }

    struct Forgotten;

    impl Work for Forgotten {
        fn is_wanted(&self) -> bool {
            false
        }

        fn run(self: Box<Self>, _: &Inner) {}
    }

    #[test]
    fn work_that_nobody_waits_for_makes_room() {
        let mut queue = Queue::default();
        for _ in 0..1000 {
            queue.order(Box::new(Forgotten));
        }
        assert_eq!(queue.work.len(), 1);
    }

    fn next(queue: &mut Queue) -> Option<SegmentKey> {
        match queue.next()? {
            NextTask::Segment(key) => Some(key),
            NextTask::Work(_) => panic!("nobody ordered work"),
        }
    }

    #[test]
    fn one_fetch_for_all_and_needs_before_foresight() {
        let mut queue = Queue::default();
        queue.want(key(1), core(0));
        assert!(queue.foresee(key(2)));
        assert!(queue.foresee(key(3)));
        assert!(!queue.foresee(key(2)), "once");
        queue.want(key(1), core(1));
        queue.want(key(3), core(1));
        assert_eq!(next(&mut queue), Some(key(1)));
        queue.want(key(1), core(2));
        assert!(!queue.foresee(key(1)), "it is being fetched");
        assert_eq!(next(&mut queue), Some(key(3)));
        assert_eq!(next(&mut queue), Some(key(2)));
        assert_eq!(next(&mut queue), None);
        assert_eq!(cores(queue.finished(key(1))), [0, 1, 2]);
        assert!(queue.finished(key(2)).is_empty());
        queue.want(key(1), core(2));
        assert_eq!(next(&mut queue), Some(key(1)), "asked again, fetched again");
    }
}
