//! What the upstreams were heard to say, as far as it decides whether the archive's word counts.
//! A timeline that only the archive names may be that of a copy which was promoted for a test and
//! archives to the same place.

use super::difference::barred_by;
use super::link::{Link, LinkFault};
use crate::hub::Hub;
use crate::store::evidence::WalSource;
use crate::timeline::Forks;
use crate::upstream::judge::Seen;
use crate::upstream::state::UpstreamState;
use crate::wal::{Lsn, TimelineId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// The most switches that are remembered; the newest timelines stay.
const MOST: usize = 1024;

/// From one timeline, at its end, to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Named {
    next: TimelineId,
    from: TimelineId,
    at: Lsn,
}

/// What the upstreams were heard to say.
#[derive(Debug)]
pub(super) struct HeardUpstreams(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    last: Instant,
    named: BTreeSet<Named>,
    /// The last answer of each host that an operator must act on.
    alarms: BTreeMap<String, UpstreamState>,
}

/// Does the archive's word for a timeline count?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ArchiveWord {
    /// An upstream has named the timeline.
    Confirmed,
    /// No upstream has answered for that long.
    Alone(Duration),
    /// Not before so much more time without an answer.
    Waits(Duration),
}

impl HeardUpstreams {
    /// Nothing was heard before now.
    pub(super) fn new() -> Self {
        let (last, named, alarms) = (Instant::now(), BTreeSet::new(), BTreeMap::new());
        Self(Mutex::new(Inner { last, named, alarms }))
    }

    /// A server was asked for a connection. One that refuses it has answered.
    pub(super) fn link<S>(&self, asked: Result<Link<S>, LinkFault>) -> Result<Link<S>, LinkFault> {
        if let Ok(_) | Err(LinkFault::Server(_) | LinkFault::Login(_)) = asked {
            self.answer();
        }
        asked
    }

    /// A server has said who it is. What one of another cluster says of histories does not count, nor
    /// what one says that has yet to show our WAL where a difference was found.
    pub(super) fn server(&self, hub: &Hub, seen: &Seen, source: &WalSource) {
        let ours = hub.identity().is_none_or(|identity| identity.system_id == seen.system_id);
        let counts = ours && barred_by(hub, source).is_none();
        if let (true, Some(forks)) = (counts, &seen.forks) {
            self.history(seen.tli, forks);
        }
    }

    /// A server has answered, whatever it said.
    pub(super) fn answer(&self) {
        self.lock().last = Instant::now();
    }

    /// A host has answered; in `state` it could not be followed. Is that news on which somebody must
    /// act?
    pub(super) fn is_news(&self, host: &str, state: Option<&UpstreamState>) -> bool {
        let alarms = &mut self.lock().alarms;
        match state.filter(|state| state.is_alarm()) {
            None => {
                alarms.remove(host);
                false
            }
            Some(state) => alarms.insert(host.to_owned(), state.clone()).as_ref() != Some(state),
        }
    }

    /// A server of our cluster is on timeline `tli`, whose ancestors ended at `forks`.
    fn history(&self, tli: TimelineId, forks: &Forks) {
        let mut inner = self.lock();
        let later = forks.iter().skip(1).map(|(later, _)| *later).chain([tli]);
        inner.named.extend(forks.iter().zip(later).map(|(&(from, at), next)| Named {
            next,
            from,
            at,
        }));
        while inner.named.len() > MOST {
            inner.named.pop_first();
        }
    }

    /// Does the archive's word count, that timeline `next` follows at the end `at` of `from`?
    pub(super) fn archive_word(
        &self,
        (from, at): (TimelineId, Lsn),
        next: TimelineId,
        grace: Duration,
    ) -> ArchiveWord {
        let inner = self.lock();
        if inner.named.contains(&Named { next, from, at }) {
            return ArchiveWord::Confirmed;
        }
        let silent = inner.last.elapsed();
        match grace.checked_sub(silent) {
            None | Some(Duration::ZERO) => ArchiveWord::Alone(silent),
            Some(left) => ArchiveWord::Waits(left),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::evidence::{Difference, Evidence};

    fn tli(raw: u32) -> TimelineId {
        TimelineId::new(raw).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn the_archives_word_counts_when_an_upstream_says_the_same_or_none_says_anything() {
        const GRACE: Duration = Duration::from_secs(300);
        let heard = HeardUpstreams::new();
        let word = |heard: &HeardUpstreams, from: u32, at: u64, next: u32| {
            heard.archive_word((tli(from), Lsn::new(at)), tli(next), GRACE)
        };
        assert_eq!(word(&heard, 1, 50, 2), ArchiveWord::Waits(GRACE));
        tokio::time::advance(Duration::from_secs(299)).await;
        assert_eq!(word(&heard, 1, 50, 2), ArchiveWord::Waits(Duration::from_secs(1)));
        heard.answer();
        tokio::time::advance(Duration::from_secs(299)).await;
        assert_eq!(word(&heard, 1, 50, 2), ArchiveWord::Waits(Duration::from_secs(1)));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(word(&heard, 1, 50, 2), ArchiveWord::Alone(GRACE));

        heard.answer();
        heard.history(tli(4), &[(tli(1), Lsn::new(50)), (tli(2), Lsn::new(70))]);
        assert_eq!(word(&heard, 1, 50, 2), ArchiveWord::Confirmed);
        assert_eq!(word(&heard, 2, 70, 4), ArchiveWord::Confirmed);
        for (from, at, next) in [(1, 51, 2), (1, 50, 3), (2, 70, 3)] {
            assert_eq!(
                word(&heard, from, at, next),
                ArchiveWord::Waits(GRACE),
                "{from} {at} {next}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_upstream_that_has_other_wal_names_nothing() {
        let hub = crate::hub::tests::hub("15.18");
        let identity = hub.identity().unwrap();
        let seen = Seen {
            host: "copy:5432".to_owned(),
            system_id: identity.system_id,
            tli: tli(2),
            xlogpos: Lsn::new(90),
            segment_size: identity.segment_size,
            forks: Some(vec![(tli(1), Lsn::new(50))]),
            path: crate::cluster::instance::InstancePath::empty(),
        };
        let named = |differs_from: Option<&str>| {
            let source = |name: &str| WalSource { name: name.to_owned(), server: None };
            let (heard, at) = (HeardUpstreams::new(), Lsn::new(50));
            let difference = differs_from.map(|name| Difference {
                tli: tli(1),
                at: Lsn::new(40),
                source: source(name),
                since: std::time::UNIX_EPOCH,
                detail: String::new(),
                bytes: None,
                cleared: true,
            });
            hub.course.set_evidence(difference.map(Evidence::from).unwrap_or_default());
            heard.server(&hub, &seen, &source("copy:5432"));
            heard.archive_word((tli(1), at), tli(2), Duration::MAX) == ArchiveWord::Confirmed
        };
        assert_eq!([None, Some("gone"), Some("copy:5432")].map(named), [true, true, false]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_is_bounded() {
        let heard = HeardUpstreams::new();
        let forks: Vec<_> = (1..=2000).map(|raw| (tli(raw), Lsn::new(u64::from(raw)))).collect();
        heard.history(tli(2001), &forks);
        let word = |from: u32| {
            let at = Lsn::new(u64::from(from));
            heard.archive_word((tli(from), at), tli(from + 1), Duration::MAX)
        };
        assert_eq!(word(2000), ArchiveWord::Confirmed);
        assert!(matches!(word(1), ArchiveWord::Waits(_)));
        assert_eq!(heard.lock().named.len(), MOST);
    }
}
