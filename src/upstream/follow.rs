//! The timeline to which an archive leads, decided by the histories in it.

use crate::timeline::History;
use crate::wal::{Lsn, TimelineId};

/// Where the histories lead from our position.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TargetTimeline {
    /// Our timeline ends at that position, and this one follows; `None` while it continues.
    pub ends: Option<(TimelineId, Lsn)>,
    /// The history that says so.
    pub history: Option<History>,
    /// The newest timeline that left ours before our end, and where. An archive alone is no reason
    /// to discard what we hold: a copy may have been promoted for a test.
    pub passed: Option<(TimelineId, Lsn)>,
}

/// Decides as `rescanLatestTimeLine` does: the newest timeline that descends from ours and left it
/// at or past what we hold. `own` is our timeline's history, `newer` those of newer timelines,
/// oldest first.
pub fn target_timeline(own: &History, newer: &[History], durable: Lsn) -> TargetTimeline {
    let mut target = TargetTimeline::default();
    for history in newer.iter().rev().filter(|history| history.begins_with(own)) {
        let (Some(at), Some(next)) =
            (history.switchpoint_of(own.tli()), history.next_after(own.tli()))
        else {
            continue;
        };
        if at >= durable {
            target.ends = Some((next, at));
            target.history = Some(history.clone());
            return target;
        }
        target.passed.get_or_insert((history.tli(), at));
    }
    target
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn tli(n: u32) -> TimelineId {
        TimelineId::new(n).unwrap()
    }

    fn history(n: u32, text: &'static str) -> History {
        History::parse(tli(n), Bytes::from_static(text.as_bytes())).unwrap()
    }

    #[test]
    fn the_newest_descendant_that_left_past_our_end_is_followed() {
        let first = History::first();
        let second = history(2, "1\t0/500\ta\n");
        let third = history(3, "1\t0/500\ta\n2\t0/900\tb\n");
        let at = |n| Lsn::new(n);
        let goes = |own: &History, newer: &[History], durable| {
            let target = target_timeline(own, newer, at(durable));
            (target.ends.map(|(next, at)| (next.raw(), at.raw())), target.passed.is_some())
        };
        assert_eq!(goes(&first, &[], 0x400), (None, false));
        let both = [second.clone(), third.clone()];
        for durable in [0x400, 0x500] {
            assert_eq!(goes(&first, &both, durable), (Some((2, 0x500)), false));
        }
        assert_eq!(goes(&second, &both[1..], 0x600), (Some((3, 0x900)), false));
        // We hold more than it took over.
        assert_eq!(goes(&first, &both, 0x501), (None, true));
        // 3 left 1 earlier than 2 did, which is too early for us.
        let test = history(3, "1\t0/300\ttest\n");
        let newer = [second.clone(), test.clone()];
        assert_eq!(goes(&first, &newer, 0x400), (Some((2, 0x500)), true));
        assert_eq!(goes(&first, &newer, 0x300), (Some((3, 0x300)), false));
        // The child of another timeline 2 than ours.
        let other = history(3, "1\t0/501\ta\n2\t0/900\tb\n");
        assert_eq!(goes(&second, &[other], 0x600), (None, false));
        assert_eq!(goes(&second, &[test], 0x600), (None, false));
    }
}
