//! Standbys that hold WAL which nobody follows: they were sent WAL of a timeline past its
//! switchpoint. PostgreSQL cannot continue such a standby. An operator has to rewind or rebuild
//! it, and should learn of it here.

use crate::wal::{Lsn, TimelineId};
use std::collections::BTreeMap;

/// The most standbys that are remembered. One that is turned away again and again counts once.
const MOST: usize = 1024;

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
    /// Where the timeline ended, or another history of it goes on: WAL that it has from here on is
    /// its own.
    pub end: Lsn,
}

/// The list of diverged standbys.
#[derive(Debug, Default)]
pub struct DivergedStandbys {
    by_name: BTreeMap<(String, String), Diverged>,
}

impl DivergedStandbys {
    /// Notes one; returns whether it is new.
    pub fn note(&mut self, standby: Diverged) -> bool {
        let host = standby.peer.rsplit_once(':').map_or(standby.peer.as_str(), |(host, _)| host);
        let key = (standby.application_name.clone(), host.to_owned());
        let known = self.by_name.get(&key);
        let news = known.is_none_or(|known| (known.tli, known.end) != (standby.tli, standby.end));
        if known.is_some() || self.by_name.len() < MOST {
            self.by_name.insert(key, standby);
        }
        news
    }

    /// A standby streams WAL of our history: it was rebuilt, or is another one.
    pub fn streams(&mut self, application_name: &str, peer: &str) {
        let host = peer.rsplit_once(':').map_or(peer, |(host, _)| host);
        self.by_name.remove(&(application_name.to_owned(), host.to_owned()));
    }

    /// All of them, by name.
    pub fn list(&self) -> impl Iterator<Item = &Diverged> {
        self.by_name.values()
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
            end: Lsn::new(end),
        }
    }

    #[test]
    fn each_is_news_once() {
        let mut list = DivergedStandbys::default();
        assert!(list.note(standby("a", 1, 50)));
        assert!(!list.note(standby("a", 2, 50)), "another connection of the same");
        assert!(list.note(standby("b", 3, 50)));
        assert!(list.note(standby("a", 4, 70)), "another end");
        assert_eq!(list.list().count(), 2);
        list.streams("a", "10.0.0.1:9");
        assert_eq!(list.list().map(|d| d.application_name.as_str()).collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn the_list_is_bounded() {
        let mut list = DivergedStandbys::default();
        for n in 0..2 * MOST {
            list.note(standby(&format!("s{n}"), 1, 50));
        }
        assert_eq!(list.list().count(), MOST);
    }
}
