//! What the task is doing, and what it remembers from one attempt to the next. No other file
//! changes either.
//!
//! ```text
//!                 ┌─────────────── fails ───────────────┐
//!                 ▼                                     │
//!             Choosing ──connects──► Connecting ──begins──► Streaming
//!             │  ▲  ▲                    │                   │
//!         pauses │  └── is_interrupted ──┴───────────────────┤
//!             ▼  │                                           │
//!           Pausing                         fails, turns ────┘
//! ```
//!
//! In Pausing no upstream is asked; it is the archive's turn. `resumes` and `is_interrupted` lead
//! from it to Choosing. `is_fenced` leads from Choosing to Fenced, and only `is_steered` from there
//! back. `stops` leads from every state to Stopped, which is the last.

use crate::upstream::position::{Position, StartFrom};
use crate::wal::Lsn;
use std::time::Instant;

/// What the task is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// It decides what to do next.
    Choosing,
    /// Nothing before an operator's order.
    Fenced,
    /// No upstream is asked until then. With an archive it is the archive's turn.
    Pausing { until: Instant },
    /// It connects to this host.
    Connecting { host: usize },
    /// The receive role has a stream of this host.
    Streaming { host: usize },
    /// The hub is shutting down.
    Stopped,
}

/// With `prefer-standby`: have all hosts been checked for a standby?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NoStandby {
    /// This round has met nothing but standbys.
    NotMet,
    /// This round has met a server that could be followed but is no standby.
    Met,
    /// A whole round has met no standby that could be followed: anything will do.
    Settled,
}

/// May a server be followed that is no standby, with `prefer-standby`?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Preference {
    /// A later host may be one.
    Waits,
    /// No host is one.
    GivenUp,
}

/// The task's phase and memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TaskProgress {
    phase: Phase,
    /// Where to begin when there is no WAL; `current` after a gap was skipped.
    start_from: StartFrom,
    /// The upstream no longer has this start of ours.
    removed: Option<Lsn>,
    no_standby: NoStandby,
    /// The archive had nothing more for this position.
    exhausted: Option<Position>,
    /// Attempts that gave no stream since the last stream, or since the last pause.
    failures: usize,
}

impl TaskProgress {
    pub(super) const fn new(start_from: StartFrom) -> Self {
        Self {
            phase: Phase::Choosing,
            start_from,
            removed: None,
            no_standby: NoStandby::NotMet,
            exhausted: None,
            failures: 0,
        }
    }

    pub(super) const fn phase(&self) -> Phase {
        self.phase
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.phase == Phase::Stopped
    }

    /// Where to begin when there is no WAL.
    pub(super) const fn start_from(&self) -> StartFrom {
        self.start_from
    }

    /// Has the upstream no longer the WAL from this start of ours on?
    pub(super) fn lacks(&self, start: Lsn) -> bool {
        self.removed == Some(start)
    }

    /// Has the archive nothing more for this position?
    pub(super) fn is_exhausted(&self, position: Position) -> bool {
        self.exhausted == Some(position)
    }

    /// Have all `hosts` failed twice without a pause? Hosts that fail slowly leave none between two
    /// rounds.
    pub(super) const fn needs_pause(&self, hosts: usize) -> bool {
        self.failures >= 2 * hosts
    }

    /// The hub is fenced.
    pub(super) fn is_fenced(&mut self) {
        self.enter(Phase::Fenced);
    }

    /// No upstream is asked until then.
    pub(super) fn pauses(&mut self, until: Instant) {
        self.failures = 0;
        self.enter(Phase::Pausing { until });
    }

    /// The pause is over.
    pub(super) fn resumes(&mut self) {
        self.enter(Phase::Choosing);
    }

    /// An attempt begins, with the first host a round.
    pub(super) fn connects(&mut self, host: usize) {
        if host == 0 {
            self.no_standby = match self.no_standby {
                NoStandby::Met => NoStandby::Settled,
                NoStandby::Settled | NoStandby::NotMet => NoStandby::NotMet,
            };
        }
        self.enter(Phase::Connecting { host });
    }

    /// With `prefer-standby`, a server that could be followed is no standby.
    pub(super) fn meets_no_standby(&mut self) -> Preference {
        if self.no_standby == NoStandby::Settled {
            return Preference::GivenUp;
        }
        self.no_standby = NoStandby::Met;
        Preference::Waits
    }

    /// The attempt gave a stream.
    pub(super) fn begins(&mut self) {
        self.failures = 0;
        if let Phase::Connecting { host } = self.phase {
            self.enter(Phase::Streaming { host });
        }
    }

    /// The attempt gave no stream, or the stream has ended.
    pub(super) fn fails(&mut self) {
        self.failures += 1;
        self.enter(Phase::Choosing);
    }

    /// The upstream no longer has the WAL from `start` on, and the next attempt asks for less.
    pub(super) fn turns_from(&mut self, start: Lsn) {
        self.removed = Some(start);
        self.enter(Phase::Choosing);
    }

    /// What was under way was ended by an operator's order.
    pub(super) fn is_interrupted(&mut self) {
        self.enter(Phase::Choosing);
    }

    /// An operator's order has changed the upstream or the fence.
    pub(super) fn is_steered(&mut self) {
        self.no_standby = NoStandby::NotMet;
        self.removed = None;
        match self.phase {
            Phase::Fenced => self.phase = Phase::Choosing,
            _ => self.enter(Phase::Choosing),
        }
    }

    /// The hub goes on with another timeline.
    pub(super) fn switches(&mut self) {
        self.removed = None;
    }

    /// All WAL was moved aside: the hub begins at the upstream's position.
    pub(super) fn begins_anew(&mut self) {
        self.start_from = StartFrom::Current;
        self.removed = None;
    }

    /// The archive has nothing more for this position.
    pub(super) fn exhausts(&mut self, position: Position) {
        self.exhausted = Some(position);
    }

    /// The hub is shutting down.
    pub(super) fn stops(&mut self) {
        self.enter(Phase::Stopped);
    }

    /// Enters a phase, if the present one leads to it.
    fn enter(&mut self, next: Phase) {
        use Phase::{Choosing, Connecting, Fenced, Pausing, Stopped, Streaming};
        let leads_there = match (self.phase, next) {
            (Stopped, _) => false,
            (_, Stopped) => true,
            (Choosing, Fenced | Pausing { .. } | Connecting { .. }) => true,
            (Connecting { .. }, Streaming { .. }) => true,
            (Pausing { .. } | Connecting { .. } | Streaming { .. }, Choosing) => true,
            _ => false,
        };
        if leads_there {
            self.phase = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write as _;

    type Event = (&'static str, fn(&mut TaskProgress, Instant));

    const EVENTS: [Event; 13] = [
        ("is_fenced", |progress, _| progress.is_fenced()),
        ("pauses", |progress, now| progress.pauses(now)),
        ("resumes", |progress, _| progress.resumes()),
        ("connects(0)", |progress, _| progress.connects(0)),
        ("connects(1)", |progress, _| progress.connects(1)),
        ("meets_no_standby", |progress, _| {
            progress.meets_no_standby();
        }),
        ("begins", |progress, _| progress.begins()),
        ("fails", |progress, _| progress.fails()),
        ("turns_from", |progress, _| progress.turns_from(Lsn::new(7))),
        ("is_interrupted", |progress, _| progress.is_interrupted()),
        ("is_steered", |progress, _| progress.is_steered()),
        ("begins_anew", |progress, _| progress.begins_anew()),
        ("stops", |progress, _| progress.stops()),
    ];

    fn shown(progress: &TaskProgress) -> String {
        let phase = match progress.phase {
            Phase::Pausing { .. } => "Pausing".to_owned(),
            Phase::Connecting { host } => format!("Connecting({host})"),
            Phase::Streaming { host } => format!("Streaming({host})"),
            phase => format!("{phase:?}"),
        };
        let removed = progress.removed.map_or_else(String::new, |_| ", removed".to_owned());
        let TaskProgress { failures, no_standby, start_from, .. } = progress;
        format!("{phase}, {failures} failures, {no_standby:?}, {start_from:?}{removed}")
    }

    /// Every phase and every event, with a memory of earlier attempts.
    #[test]
    fn every_pair_leads_where_it_should() {
        let now = Instant::now();
        let phases = [
            Phase::Choosing,
            Phase::Fenced,
            Phase::Pausing { until: now },
            Phase::Connecting { host: 1 },
            Phase::Streaming { host: 1 },
            Phase::Stopped,
        ];
        let mut table = String::new();
        for phase in phases {
            let before = TaskProgress {
                phase,
                removed: Some(Lsn::new(9)),
                no_standby: NoStandby::Met,
                failures: 3,
                ..TaskProgress::new(StartFrom::Oldest)
            };
            writeln!(table, "{}", shown(&before)).unwrap();
            let mut stays = Vec::new();
            for (name, event) in EVENTS {
                let mut progress = before.clone();
                event(&mut progress, now);
                match shown(&progress) == shown(&before) {
                    true => stays.push(name),
                    false => writeln!(table, "  {name} -> {}", shown(&progress)).unwrap(),
                }
            }
            writeln!(table, "  stays: {}", stays.join(" ")).unwrap();
        }
        assert_eq!(table, include_str!("progress.snapshot"), "as it is now:\n{table}");
    }

    #[test]
    fn anything_will_do_after_a_round_without_a_standby() {
        let mut progress = TaskProgress::new(StartFrom::Current);
        progress.connects(0);
        assert_eq!(progress.meets_no_standby(), Preference::Waits);
        progress.connects(1);
        assert_eq!(progress.meets_no_standby(), Preference::Waits);
        progress.connects(0);
        assert_eq!(progress.meets_no_standby(), Preference::GivenUp);
        // Only for one round.
        progress.connects(0);
        assert_eq!(progress.meets_no_standby(), Preference::Waits);
    }

    #[test]
    fn all_hosts_fail_twice_before_a_pause() {
        let mut progress = TaskProgress::new(StartFrom::Current);
        for _ in 0..3 {
            progress.fails();
        }
        assert!(!progress.needs_pause(2));
        progress.fails();
        assert!(progress.needs_pause(2));
        progress.begins();
        assert!(!progress.needs_pause(2));
    }
}
