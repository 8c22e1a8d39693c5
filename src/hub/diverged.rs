//! Standbys that hold WAL which nobody follows: they were sent WAL of a timeline past its
//! switchpoint, or are past a seam. PostgreSQL cannot continue such a standby. An operator has to
//! rewind or rebuild it, and should learn of it here.

use crate::store::seams::Seam;
use crate::wal::{Lsn, TimelineId};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The most standbys that are remembered. One that is turned away again and again counts once.
const MOST: usize = 1024;

/// A standby that has not been seen for so long has stopped asking. PostgreSQL asks again after
/// `wal_retrieve_retry_interval`, 5 s by default.
pub const GONE_AFTER: Duration = Duration::from_secs(120);

/// The most standbys that one message names.
const MOST_NAMED: usize = 32;

/// A standby that left the history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diverged {
    /// `application_name`.
    pub application_name: String,
    /// Its most recent address.
    pub peer: String,
    /// The timeline it is on.
    pub tli: TimelineId,
    /// The position that it had, or asked for, on that timeline.
    pub at: Lsn,
    /// Where it left: WAL that it has from here on is its own.
    pub left: Left,
}

/// Where a standby left our history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// Where its timeline ended.
    Fork(Lsn),
    /// Where another history of its timeline, or of an ancestor, goes on. `pg_rewind` does not find
    /// this place: it compares timelines, not WAL.
    Seam(Seam),
}

impl Left {
    /// The position.
    pub const fn at(self) -> Lsn {
        match self {
            Self::Fork(end) => end,
            Self::Seam(seam) => seam.at,
        }
    }
}

/// A diverged standby, and when it was last refused or streamed such WAL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// Which.
    pub standby: Diverged,
    /// When.
    pub seen: Instant,
}

/// The list of diverged standbys.
#[derive(Debug, Default)]
pub struct DivergedStandbys {
    by_name: BTreeMap<(String, String), Sighting>,
}

impl DivergedStandbys {
    /// Notes one that is seen now; returns whether it is new. When the list is full, the one goes
    /// that was not seen for the longest time.
    pub fn note(&mut self, standby: Diverged, now: Instant) -> bool {
        let host = standby.peer.rsplit_once(':').map_or(standby.peer.as_str(), |(host, _)| host);
        let key = (standby.application_name.clone(), host.to_owned());
        let place = (standby.tli, standby.left);
        let known = self.by_name.insert(key, Sighting { standby, seen: now });
        if self.by_name.len() > MOST {
            let oldest = self.by_name.iter().min_by_key(|(_, sighting)| sighting.seen);
            let oldest = oldest.map(|(key, _)| key.clone());
            oldest.and_then(|key| self.by_name.remove(&key));
        }
        known.is_none_or(|Sighting { standby, .. }| (standby.tli, standby.left) != place)
    }

    /// A standby streams WAL of our history: it was rebuilt, or is another one.
    pub fn streams(&mut self, application_name: &str, peer: &str) {
        let host = peer.rsplit_once(':').map_or(peer, |(host, _)| host);
        self.by_name.remove(&(application_name.to_owned(), host.to_owned()));
    }

    /// All of them, by name.
    pub fn list(&self) -> impl Iterator<Item = &Diverged> {
        self.by_name.values().map(|sighting| &sighting.standby)
    }

    /// Those that left at a seam at `at`, by name.
    pub fn refused_at_seam(&self, at: Lsn) -> RefusedStandbys {
        let is_there = |sighting: &&Sighting| match sighting.standby.left {
            Left::Seam(seam) => seam.at == at,
            Left::Fork(_) => false,
        };
        RefusedStandbys(self.by_name.values().filter(is_there).cloned().collect())
    }
}

/// Standbys that were refused at one seam.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedStandbys(Vec<Sighting>);

impl RefusedStandbys {
    /// Is there none?
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those that still ask and are not called one of `names`.
    #[must_use]
    pub fn still_asking(&self, names: &[String], now: Instant) -> Self {
        let asks = |sighting: &&Sighting| {
            now.saturating_duration_since(sighting.seen) < GONE_AFTER
                && !names.contains(&sighting.standby.application_name)
        };
        Self(self.0.iter().filter(asks).cloned().collect())
    }

    /// Names them, and says when each was last seen.
    pub fn shown(&self, now: Instant) -> String {
        let one = |Sighting { standby, seen }: &Sighting| {
            let Diverged { application_name, peer, at, .. } = standby;
            let ago = now.saturating_duration_since(*seen).as_secs();
            format!("{application_name} ({peer}, at {at}, last seen {ago} s ago)")
        };
        let mut shown: Vec<_> = self.0.iter().take(MOST_NAMED).map(one).collect();
        let others = self.0.len().saturating_sub(MOST_NAMED);
        if others > 0 {
            shown.push(format!("and {others} more"));
        }
        shown.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standby(name: &str, port: u16, end: u64) -> Diverged {
        Diverged {
            application_name: name.into(),
            peer: format!("10.0.0.1:{port}"),
            tli: TimelineId::FIRST,
            at: Lsn::new(end + 100),
            left: Left::Fork(Lsn::new(end)),
        }
    }

    fn refused(name: &str, at: u64) -> Diverged {
        let seam = Seam { tli: TimelineId::FIRST, at: Lsn::new(at) };
        Diverged { left: Left::Seam(seam), ..standby(name, 5, at) }
    }

    #[test]
    fn each_is_news_once() {
        let (mut list, now) = (DivergedStandbys::default(), Instant::now());
        assert!(list.note(standby("a", 1, 50), now));
        assert!(!list.note(standby("a", 2, 50), now), "another connection of the same");
        assert!(list.note(standby("b", 3, 50), now));
        assert!(list.note(standby("a", 4, 70), now), "another end");
        assert!(list.note(refused("a", 70), now), "a seam there");
        assert_eq!(list.list().count(), 2);
        list.streams("a", "10.0.0.1:9");
        assert_eq!(list.list().map(|d| d.application_name.as_str()).collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn the_list_is_bounded_and_has_those_that_were_seen_last() {
        let (mut list, begin) = (DivergedStandbys::default(), Instant::now());
        let at = |n: usize| begin + Duration::from_secs(n as u64);
        for n in 0..2 * MOST {
            list.note(standby(&format!("s{n}"), 1, 50), at(n));
            list.note(standby("s0", 1, 50), at(n));
        }
        assert_eq!(list.list().count(), MOST);
        let has = |name: &str| list.list().any(|standby| standby.application_name == name);
        assert!(has("s0") && has("s2047") && !has("s1"));
    }

    #[test]
    fn those_that_were_refused_at_a_seam_ask_until_they_were_not_seen_for_a_while() {
        let (mut list, begin) = (DivergedStandbys::default(), Instant::now());
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        list.note(standby("fork", 1, 50), at(0));
        list.note(refused("elsewhere", 40), at(0));
        list.note(refused("b", 50), at(0));
        list.note(refused("a", 50), at(10));
        let there = list.refused_at_seam(Lsn::new(50));
        let shown = |names: &[&str], seconds: u64| {
            let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
            there.still_asking(&names, at(seconds)).shown(at(seconds))
        };
        let [a, b] = ["a", "b"].map(|name| format!("{name} (10.0.0.1:5, at 0/96, last seen "));
        assert_eq!(shown(&[], 12), format!("{a}2 s ago), {b}12 s ago)"));
        assert_eq!(shown(&["b", "c"], 12), format!("{a}2 s ago)"));
        assert_eq!(shown(&[], 125), format!("{a}115 s ago)"));
        assert_eq!(shown(&[], 130), "");
        assert!(!there.is_empty() && there.still_asking(&[], at(130)).is_empty());
    }

    #[test]
    fn a_message_names_so_many() {
        let (mut list, now) = (DivergedStandbys::default(), Instant::now());
        for n in 0..=MOST_NAMED {
            list.note(refused(&format!("s{n:02}"), 50), now);
        }
        let shown = list.refused_at_seam(Lsn::new(50)).shown(now);
        assert!(shown.contains("s31 (") && !shown.contains("s32"), "{shown}");
        assert!(shown.ends_with(", and 1 more"), "{shown}");
    }
}
