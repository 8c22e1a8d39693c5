//! The plan of a fleet.

use super::scout::Identity;
use crate::bench::clock::Clock;
use crate::bench::commits::Commits;
use crate::bench::truth::Truth;
use crate::wal::Lsn;
use crate::wire::conninfo::Conninfo;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

/// A fleet of synthetic standbys.
#[derive(Debug, Clone)]
pub struct FleetPlan {
    /// Where they connect to; hosts are tried in this order.
    pub target: Vec<Conninfo>,
    /// What the target would report about itself, if it does not answer yet. Otherwise it is asked
    /// at the start.
    pub identity: Option<Identity>,
    /// How many.
    pub standbys: usize,
    /// Threads that they share.
    pub threads: usize,
    /// Where their first streams begin.
    pub first: StartAt,
    /// Each leaves once it has received up to here.
    pub until: Option<Lsn>,
    /// How what they receive is checked.
    pub verify: Verify,
    /// What they report.
    pub replies: Replies,
    /// The standbys that are not good ones, and what the good ones do together.
    pub behaviours: Behaviours,
    /// Prefix of their `application_name`; their number follows, from 1.
    pub names: String,
    /// Whether they use replication slots.
    pub slots: StandbySlots,
    /// Connections begun per second at the start; `None` begins all at once.
    pub connect_rate: Option<u32>,
    /// `wal_receiver_timeout`: after half of it in silence they ask for a reply, after all of it
    /// they reconnect. Zero disables both.
    pub receiver_timeout: Duration,
    /// The pause after a failed attempt to connect.
    pub retry: Duration,
    /// The run's clock.
    pub clock: Clock,
    /// The correct WAL.
    pub truth: Arc<Truth>,
    /// Where it comes from.
    pub truth_from: TruthFrom,
    /// When each commit was due.
    pub commits: Arc<Commits>,
    /// The seed for random choices.
    pub seed: u64,
}

/// Where a stream begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartAt {
    /// At the start of the page with the server's flush position.
    Current,
    /// At the start of the segment with the server's flush position, as a stock standby does.
    Segment,
    /// At the start of the page that holds this position.
    At(Lsn),
    /// The first standby at `At(from)`, the last one near `to`, the others evenly in between.
    Spread {
        /// The one furthest behind.
        from: Lsn,
        /// The one furthest ahead would begin here if there were one more.
        to: Lsn,
    },
}

/// How received WAL is checked. The continuity of messages is always checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verify {
    /// Byte by byte against the truth; outside its window, by page headers, record chain and record
    /// checksums.
    Full,
    /// A CRC-32C over each MiB, compared with that of the truth or of the first standby
    /// that received it.
    Crc,
    /// Not at all: large messages are discarded in the kernel.
    Off,
}

/// What a standby reports, besides answers that the server asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replies {
    /// Its position at this interval, like pg_receivewal; zero means never.
    Interval(Duration),
    /// Like a walreceiver: for each batch of WAL one reply when it is written and one when it is
    /// flushed, and one at least every ten seconds.
    Flush,
}

/// Standbys that are not good ones. They are part of the fleet's number; the rest are good.
#[derive(Debug, Clone, Default)]
pub struct Behaviours {
    /// Read less than they could.
    pub slow: Option<Slow>,
    /// Stop reading.
    pub stalled: Option<Stalled>,
    /// Disconnect and reconnect.
    pub flapping: Option<Flapping>,
    /// What all good ones do at once.
    pub storm: Option<Storm>,
}

/// Standbys that read slowly.
#[derive(Debug, Clone, Copy)]
pub struct Slow {
    /// How many.
    pub count: usize,
    /// The rate at which each reads.
    pub bytes_per_second: u64,
}

/// Standbys that stop reading and replying, with their sockets open.
#[derive(Debug, Clone, Copy)]
pub struct Stalled {
    /// How many.
    pub count: usize,
    /// How long they read before that.
    pub after: Duration,
}

/// Standbys that disconnect, and reconnect at once.
#[derive(Debug, Clone)]
pub struct Flapping {
    /// How many.
    pub count: usize,
    /// The range of a connection's lifetime.
    pub every: RangeInclusive<Duration>,
}

/// All good standbys disconnect and reconnect at the same instant.
#[derive(Debug, Clone, Copy)]
pub struct Storm {
    /// The time of the first one, from the fleet's start.
    pub first: Duration,
    /// The interval after that; `None` means only once.
    pub every: Option<Duration>,
}

/// Physical replication slots of the standbys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StandbySlots {
    /// None.
    None,
    /// Existing ones, named by this prefix and the standby's number.
    Existing(String),
    /// The same, but created when they are missing.
    Created(String),
}

/// The source of the truth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TruthFrom {
    /// The primary in this process: what is not in the truth was never written.
    Primary,
    /// The standby that receives WAL first, after it has walked it.
    FirstReceiver,
}

impl FleetPlan {
    /// Good standbys on one thread that check everything and reply as stock standbys do.
    pub fn new(
        target: Conninfo,
        standbys: usize,
        clock: Clock,
        truth: Arc<Truth>,
        commits: Arc<Commits>,
    ) -> Self {
        Self {
            target: vec![target],
            identity: None,
            standbys,
            threads: 1,
            first: StartAt::Segment,
            until: None,
            verify: Verify::Full,
            replies: Replies::Flush,
            behaviours: Behaviours::default(),
            names: "standby_".to_owned(),
            slots: StandbySlots::None,
            connect_rate: None,
            receiver_timeout: Duration::from_secs(60),
            retry: Duration::from_secs(1),
            clock,
            truth,
            truth_from: TruthFrom::Primary,
            commits,
            seed: 1,
        }
    }

    /// The number of standbys in a group.
    pub(super) fn members(&self, group: Group) -> usize {
        let ends = self.ends();
        let begin = group.index().checked_sub(1).map_or(0, |before| ends[before]);
        ends[group.index()].saturating_sub(begin)
    }

    /// The group of the standby with this number, from 0.
    pub(super) fn group_of(&self, number: usize) -> Group {
        let ends = self.ends();
        let found = Group::ALL.into_iter().find(|group| number < ends[group.index()]);
        found.unwrap_or(Group::Good)
    }

    /// The number after each group's last; the good ones come first.
    fn ends(&self) -> [usize; 4] {
        let behaviours = &self.behaviours;
        let slow = behaviours.slow.map_or(0, |slow| slow.count);
        let stalled = behaviours.stalled.map_or(0, |stalled| stalled.count);
        let flapping = behaviours.flapping.as_ref().map_or(0, |flapping| flapping.count);
        let all = self.standbys;
        let stalled_end = all.saturating_sub(flapping);
        let slow_end = stalled_end.saturating_sub(stalled);
        [slow_end.saturating_sub(slow), slow_end, stalled_end, all]
    }
}

/// A kind of standby.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Does what stock standbys do.
    Good,
    /// See [`Slow`].
    Slow,
    /// See [`Stalled`].
    Stalled,
    /// See [`Flapping`].
    Flapping,
}

impl Group {
    /// All groups, in the order of the standbys' numbers.
    pub const ALL: [Self; 4] = [Self::Good, Self::Slow, Self::Stalled, Self::Flapping];

    /// Its name in messages and keys.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Slow => "slow",
            Self::Stalled => "stalled",
            Self::Flapping => "flapping",
        }
    }

    pub(super) const fn index(self) -> usize {
        self as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_good_ones_come_first() {
        let target = Conninfo::parse("host=127.0.0.1 user=u", &|_| None).unwrap();
        let truth = Arc::new(Truth::new(Lsn::INVALID, 1));
        let commits = Arc::new(Commits::new(1));
        let mut plan = FleetPlan::new(target, 10, Clock::start(), truth, commits);
        plan.behaviours.slow = Some(Slow { count: 1, bytes_per_second: 1 });
        plan.behaviours.stalled = Some(Stalled { count: 2, after: Duration::ZERO });
        plan.behaviours.flapping =
            Some(Flapping { count: 3, every: Duration::ZERO..=Duration::ZERO });
        let groups: String =
            (0..10).map(|n| plan.group_of(n).name().chars().next().unwrap()).collect();
        assert_eq!(groups, "ggggssssff".replace("ssssff", "sssfff"));
        assert_eq!(Group::ALL.map(|group| plan.members(group)), [4, 1, 2, 3]);
        assert_eq!(plan.group_of(4), Group::Slow);
        assert_eq!(plan.group_of(5), Group::Stalled);
        plan.standbys = 2;
        assert_eq!(Group::ALL.map(|group| plan.members(group)), [0, 0, 0, 2]);
    }
}
