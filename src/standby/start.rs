//! START_REPLICATION: which timeline to stream, from where, or why not. The checks are
//! PostgreSQL's, in PostgreSQL's order.

use super::refusals;
use crate::timeline::Forks;
use crate::wal::{Lsn, SegmentName, SegmentSize, TimelineId};
use crate::wire::refusal::Refusal;

/// What the hub can serve at the moment.
#[derive(Debug, Clone)]
pub struct Serving<'a> {
    /// The timeline being received.
    pub tli: TimelineId,
    /// Everything before this is on disk.
    pub durable: Lsn,
    /// Where the earlier timelines of its history ended.
    pub forks: &'a Forks,
    /// The cluster's segment size.
    pub size: SegmentSize,
}

/// The answer to a START_REPLICATION.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// Stream this timeline from there, if the WAL is still here.
    Stream {
        /// The timeline.
        tli: TimelineId,
        /// The position.
        start: Lsn,
        /// The file that PostgreSQL would name if the WAL is gone.
        segment: SegmentName,
    },
    /// The timeline ends exactly there: no copy mode at all, only the next timeline.
    AlreadyAtEnd {
        /// The timeline.
        tli: TimelineId,
        /// The timeline that follows.
        next: TimelineId,
        /// Where it forks off.
        at: Lsn,
    },
    /// The standby has WAL past the end of a timeline: an error before CopyBothResponse.
    Diverged {
        /// The timeline.
        tli: TimelineId,
        /// Where it ended.
        end: Lsn,
        /// The error.
        refusal: Refusal,
    },
    /// An error before CopyBothResponse.
    Refused(Refusal),
    /// An error after CopyBothResponse.
    RefusedInCopy(Refusal),
}

/// Decides.
pub fn decide(serving: &Serving<'_>, asked: Option<TimelineId>, start: Lsn) -> Start {
    let tli = asked.unwrap_or(serving.tli);
    let size = serving.size;
    if tli == serving.tli {
        // A standby that read whole segments from an archive asks for the next one while we are
        // still inside the previous one. Here it waits for us; PostgreSQL would refuse it again and
        // again.
        let reach = serving.durable.segment(size).next().end(size);
        if start > serving.durable && start > reach {
            return Start::RefusedInCopy(refusals::ahead_of_flush(start, serving.durable));
        }
        return Start::Stream {
            tli,
            start,
            segment: SegmentName { tli, no: start.segment(size), size },
        };
    }
    let Some(place) = serving.forks.iter().position(|(known, _)| *known == tli) else {
        return Start::Refused(refusals::timeline_not_in_history(tli));
    };
    let end = serving.forks.get(place).map_or(Lsn::MAX, |(_, end)| *end);
    if start > end {
        return Start::Diverged { tli, end, refusal: refusals::start_past_fork(start, tli, end) };
    }
    let next = serving.forks.get(place + 1).map_or(serving.tli, |(next, _)| *next);
    if start == end {
        return Start::AlreadyAtEnd { tli, next, at: end };
    }
    // The segment with the fork is read from the child's file, the earlier ones from the timeline's
    // own.
    let no = start.segment(size);
    let file = if no == end.segment(size) { next } else { tli };
    Start::Stream { tli, start, segment: SegmentName { tli: file, no, size } }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tli(n: u32) -> TimelineId {
        TimelineId::new(n).unwrap()
    }

    const MIB: u64 = 1 << 20;

    fn ask(asked: Option<u32>, start: u64) -> Start {
        let forks = [(tli(1), Lsn::new(3 * MIB + 8)), (tli(2), Lsn::new(4 * MIB))];
        let serving = Serving {
            tli: tli(4),
            durable: Lsn::new(6 * MIB + 100),
            forks: &forks,
            size: SegmentSize::new(MIB).unwrap(),
        };
        decide(&serving, asked.map(tli), Lsn::new(start))
    }

    fn text(start: Start) -> String {
        match start {
            Start::Stream { tli, start, segment } => format!("stream {tli} {start} {segment}"),
            Start::AlreadyAtEnd { next, at, .. } => format!("end {next} {at}"),
            Start::Refused(refusal) | Start::Diverged { refusal, .. } => {
                format!("before {} {}", refusal.sqlstate, refusal.message)
            }
            Start::RefusedInCopy(refusal) => {
                format!("after {} {}", refusal.sqlstate, refusal.message)
            }
        }
    }

    #[test]
    fn current_timeline() {
        for asked in [None, Some(4)] {
            let stream = "stream 4 0/600000 000000040000000000000006";
            assert_eq!(text(ask(asked, 6 * MIB)), stream);
        }
        assert_eq!(
            text(ask(None, 6 * MIB + 100)),
            "stream 4 0/600064 000000040000000000000006",
            "caught up"
        );
        assert!(text(ask(None, 7 * MIB)).starts_with("stream 4 0/700000"), "held");
        assert!(text(ask(None, 8 * MIB)).starts_with("stream 4 0/800000"), "held");
        assert_eq!(
            text(ask(None, 8 * MIB + 1)),
            "after XX000 requested starting point 0/800001 is ahead of the WAL flush position of \
             this server 0/600064"
        );
    }

    #[test]
    fn earlier_timelines() {
        assert_eq!(text(ask(Some(1), 2 * MIB)), "stream 1 0/200000 000000010000000000000002");
        assert_eq!(text(ask(Some(1), 3 * MIB)), "stream 1 0/300000 000000020000000000000003");
        assert_eq!(text(ask(Some(1), 3 * MIB + 8)), "end 2 0/300008");
        assert_eq!(text(ask(Some(2), 4 * MIB)), "end 4 0/400000");
        assert_eq!(
            text(ask(Some(1), 3 * MIB + 9)),
            "before XX000 requested starting point 0/300009 on timeline 1 is not in this server's \
             history"
        );
        assert_eq!(
            text(ask(Some(3), 4 * MIB)),
            "before XX000 requested timeline 3 is not in this server's history"
        );
    }
}
