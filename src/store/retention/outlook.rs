//! What a plan would do, and who keeps what: for people who want to know before it happens.

use super::needs::Needs;
use super::{Activity, Plan, Policy, Situation, WalHolder};
use crate::store::slots::{Cause, SlotName};
use crate::wal::{Lsn, SegmentNo, SegmentSize};
use std::time::Duration;

/// A plan that was made and not carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outlook {
    /// The size of every segment.
    pub size: SegmentSize,
    /// The oldest segment that is here.
    pub oldest: SegmentNo,
    /// Where the WAL ends.
    pub newest: Lsn,
    /// What would be done now.
    pub plan: Plan,
    /// The slots that would lose their WAL now.
    pub losing: Vec<(SlotName, Cause)>,
    /// The slot that would be the next to lose its WAL if the disk stayed too full.
    pub next_slot: Option<SlotName>,
    /// Who keeps WAL, the one that keeps most first.
    pub keeps: Vec<Keep>,
}

/// Somebody, or something, that keeps WAL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keep {
    /// What it is.
    pub reason: KeepReason,
    /// Its name, if it has one.
    pub name: Option<String>,
    /// The first segment that it keeps.
    pub from: SegmentNo,
    /// When that ends by itself.
    pub left: Option<Duration>,
}

/// Why WAL is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepReason {
    /// The hub has started a moment ago: everybody may come back.
    Start,
    /// A connected standby has not flushed it.
    Standby,
    /// A standby that left a moment ago had not flushed it.
    StandbyThatLeft,
    /// The hub compares it with another source's.
    Evidence,
    /// A slot that is in use.
    SlotInUse,
    /// A slot whose user left a moment ago.
    SlotAwaited,
    /// A slot that nobody uses.
    SlotUnused,
    /// `--wal-keep-size`, or the least number of segments.
    WalKeepSize,
    /// `--wal-keep-time`.
    WalKeepTime,
    /// It is not archived.
    Archive,
    /// The next start reads it.
    NextStart,
}

impl KeepReason {
    /// Its name in JSON and in tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Standby => "standby",
            Self::StandbyThatLeft => "standby_that_left",
            Self::Evidence => "evidence",
            Self::SlotInUse => "slot_in_use",
            Self::SlotAwaited => "slot_awaited",
            Self::SlotUnused => "slot_unused",
            Self::WalKeepSize => "wal_keep_size",
            Self::WalKeepTime => "wal_keep_time",
            Self::Archive => "archive",
            Self::NextStart => "next_start",
        }
    }
}

/// What [`plan`](super::plan) would do in this situation, in which the slots have these names.
pub fn outlook(
    policy: &Policy,
    situation: &Situation<'_>,
    slots: &[SlotName],
    holders: &[WalHolder],
) -> Outlook {
    let plan = super::plan(policy, situation);
    let needs = Needs::new(policy, situation);
    let named = |n: usize| slots.get(n).cloned();
    let losing: Vec<_> =
        plan.invalidate.iter().filter_map(|(n, cause)| Some((named(*n)?, *cause))).collect();
    let next_slot = needs.greatest_unused(&plan.invalidate).and_then(named);
    let mut keeps = rules(policy, situation, &needs);
    keeps.extend(standbys(situation, &needs, holders));
    keeps.extend(slot_needs(situation, &needs, slots));
    keeps.sort_by_key(|keep| keep.from);
    let Situation { size, oldest, newest, .. } = *situation;
    Outlook { size, oldest, newest, plan, losing, next_slot, keeps }
}

fn rules(policy: &Policy, situation: &Situation<'_>, needs: &Needs<'_>) -> Vec<Keep> {
    let keep = |reason, from| Keep { reason, name: None, from, left: None };
    let mut keeps = vec![
        keep(KeepReason::NextStart, needs.firm()),
        keep(KeepReason::WalKeepSize, needs.by_size()),
    ];
    if !policy.wal_keep_time.is_zero() {
        keeps.push(keep(KeepReason::WalKeepTime, needs.by_time()));
    }
    let end = situation.newest.segment(situation.size);
    let unarchived = needs.archived_below(end);
    if unarchived < end {
        keeps.push(keep(KeepReason::Archive, unarchived));
    }
    if let Some(left) = needs.left_of_start() {
        let start = keep(KeepReason::Start, situation.oldest);
        keeps.push(Keep { left: Some(left), ..start });
    }
    keeps
}

fn standbys(situation: &Situation<'_>, needs: &Needs<'_>, holders: &[WalHolder]) -> Vec<Keep> {
    let keep = |holder: &WalHolder| {
        let from = holder.from.segment(situation.size);
        let (reason, from, left) = match (&holder.standby, holder.gone) {
            (None, _) => (KeepReason::Evidence, needs.limited(from), None),
            (Some(_), None) => (KeepReason::Standby, needs.limited(from), None),
            (Some(_), Some(gone)) => {
                (KeepReason::StandbyThatLeft, from, Some(needs.left_of_grace(gone)?))
            }
        };
        Some(Keep { reason, name: holder.standby.as_deref().map(str::to_owned), from, left })
    };
    holders.iter().filter_map(keep).collect()
}

fn slot_needs(situation: &Situation<'_>, needs: &Needs<'_>, slots: &[SlotName]) -> Vec<Keep> {
    let both = situation.slots.iter().zip(slots);
    let keep = |(slot, name): (&super::SlotNeed, &SlotName)| {
        let from = slot.from.segment(situation.size);
        let (reason, from, left) = match slot.activity {
            Activity::Used => (KeepReason::SlotInUse, needs.limited(from), None),
            Activity::Idle(idle) => match needs.left_of_grace(idle) {
                Some(left) => (KeepReason::SlotAwaited, from, Some(left)),
                None => (KeepReason::SlotUnused, needs.limited(from), None),
            },
        };
        Keep { reason, name: Some(name.to_string()), from, left }
    };
    both.map(keep).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{Needed, SlotNeed};
    use super::*;
    use std::sync::Arc;

    const MIB: u64 = 1 << 20;

    #[test]
    fn it_names_who_keeps_wal_and_for_how_long() {
        let size = SegmentSize::new(MIB).unwrap();
        let policy = Policy { grace: Duration::from_secs(90), ..Policy::default() };
        let seconds = Duration::from_secs;
        let at = |no: u64| Lsn::new(no * MIB);
        let names = ["away", "busy", "dead"].map(|name| SlotName::parse(name).unwrap());
        let slots = [
            SlotNeed { from: at(30), activity: Activity::Idle(seconds(60)) },
            SlotNeed { from: at(40), activity: Activity::Used },
            SlotNeed { from: at(50), activity: Activity::Idle(seconds(100)) },
        ];
        let holder = |name: Option<&str>, from, gone: Option<u64>| WalHolder {
            standby: name.map(Arc::from),
            from: at(from),
            gone: gone.map(seconds),
        };
        let holders = [
            holder(Some("s1"), 60, None),
            holder(Some("s2"), 20, Some(80)),
            holder(None, 70, None),
        ];
        let needed = Needed { standbys: Some(at(60)), gone: vec![(at(20), seconds(80))] };
        let situation = Situation {
            slots: &slots,
            needed,
            archived: &|no| no < SegmentNo::new(80),
            ..Situation::new(size, SegmentNo::new(10), at(100))
        };
        let outlook = outlook(&policy, &situation, &names, &holders);
        assert_eq!(outlook.plan.horizon, SegmentNo::new(20));
        let shown = |keep: &Keep| {
            let name = keep.name.clone().unwrap_or_default();
            let left = keep.left.map(|left| left.as_secs());
            (keep.reason.as_str(), name, keep.from.raw(), left)
        };
        let keeps: Vec<_> = outlook.keeps.iter().map(shown).collect();
        let expected = [
            ("standby_that_left", "s2", 20, Some(10)),
            ("slot_awaited", "away", 30, Some(30)),
            ("slot_in_use", "busy", 40, None),
            ("slot_unused", "dead", 50, None),
            ("standby", "s1", 60, None),
            ("evidence", "", 70, None),
            ("archive", "", 80, None),
            ("wal_keep_size", "", 84, None),
            ("next_start", "", 100, None),
        ];
        let expected = expected.map(|(why, name, from, left)| (why, name.to_owned(), from, left));
        assert_eq!(keeps, expected);
        assert_eq!(outlook.next_slot, None, "others keep more: its loss would free nothing");
        let started = Situation { running: seconds(70), ..situation };
        let first = super::outlook(&policy, &started, &names, &holders).keeps.remove(0);
        assert_eq!(shown(&first), ("start", String::new(), 10, Some(20)));
    }
}
