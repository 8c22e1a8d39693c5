//! WAL that was here and is not part of the history that goes on: what a timeline had past its
//! switchpoint. Commits in it may have been acknowledged. What was abandoned stands in
//! `walhub.abandoned`, beside the control file, until an operator has confirmed that it is known.

use super::sealed_text::{Unreadable, seal, unseal};
use crate::wal::{Lsn, TimelineId};
use crate::wire::time::PgTime;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The most entries that are kept; the oldest one goes.
pub const MOST: usize = 64;

/// WAL of one timeline that was abandoned at its switchpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AbandonedWal {
    /// The timeline that ended.
    pub tli: TimelineId,
    /// Its switchpoint.
    pub from: Lsn,
    /// The end of its last whole record that was here.
    pub to: Lsn,
    /// The timeline that followed.
    pub next: TimelineId,
    /// What lay between; `None` when that could not be read.
    pub content: Option<Content>,
    /// When it was abandoned.
    pub since: SystemTime,
    /// Who had some of it; `None` when that is not known.
    pub holders: Option<Holders>,
}

/// The standbys that were connected when WAL was abandoned and had been sent some of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holders {
    /// How many.
    pub standbys: u64,
    /// How far the furthest had been sent WAL; `None` when there are none.
    pub sent: Option<Lsn>,
}

/// What abandoned WAL consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    /// Whole records.
    pub records: u64,
    /// Transactions that commit in them.
    pub commits: u64,
    /// The earliest and the latest time of such a commit.
    pub commit_times: Option<(PgTime, PgTime)>,
}

impl AbandonedWal {
    /// May transactions be lost by it?
    pub fn has_commits(&self) -> bool {
        self.content.is_none_or(|content| content.commits > 0)
    }

    fn is_of(&self, tli: TimelineId, from: Lsn) -> bool {
        (self.tli, self.from) == (tli, from)
    }
}

impl fmt::Display for AbandonedWal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tli, from, to, next, content, .. } = self;
        match next == tli {
            true => write!(f, "timeline {tli} goes on from {from} with another history; of ours ")?,
            false => write!(f, "timeline {next} goes on from {from} on timeline {tli}, of which ")?,
        }
        match content {
            None => f.write_str("WAL past that position was here; it could not be counted"),
            Some(Content { records, commits, .. }) => {
                let records = counted(*records, "record");
                write!(f, "WAL up to {to} was here: {records}, {}", counted(*commits, "commit"))
            }
        }
    }
}

fn counted(number: u64, what: &str) -> String {
    match number {
        1 => format!("1 {what}"),
        _ => format!("{number} {what}s"),
    }
}

/// Everything that was abandoned and is not confirmed, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Abandoned {
    entries: Vec<AbandonedWal>,
}

impl Abandoned {
    /// All of it.
    pub fn iter(&self) -> impl Iterator<Item = &AbandonedWal> {
        self.entries.iter()
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Is what timeline `tli` had past `from` among it?
    pub fn has(&self, tli: TimelineId, from: Lsn) -> bool {
        self.entries.iter().any(|entry| entry.is_of(tli, from))
    }

    /// Adds an entry, unless there is one of the same switch. Returns the oldest one when there are too
    /// many: it is not kept.
    pub fn add(&mut self, entry: AbandonedWal) -> Option<AbandonedWal> {
        if self.has(entry.tli, entry.from) {
            return None;
        }
        let lost = (self.entries.len() >= MOST).then(|| self.entries.remove(0));
        self.entries.push(entry);
        lost
    }

    /// Notes who had what timeline `tli` had past `from`, unless that is known. Returns the entry, if
    /// there is one that it is news of.
    pub fn note_holders(
        &mut self,
        tli: TimelineId,
        from: Lsn,
        holders: Holders,
    ) -> Option<AbandonedWal> {
        let mut entries = self.entries.iter_mut();
        let entry = entries.find(|entry| entry.is_of(tli, from) && entry.holders.is_none())?;
        entry.holders = Some(holders);
        Some(*entry)
    }

    /// Removes what was abandoned at a switchpoint, and returns it.
    pub fn confirm(&mut self, from: Lsn) -> Vec<AbandonedWal> {
        let (confirmed, rest) = self.entries.drain(..).partition(|entry| entry.from == from);
        self.entries = rest;
        confirmed
    }

    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        seal("abandoned", 1, &self.entries.iter().map(Text::of).collect::<Vec<_>>())
    }

    /// Reads the file's bytes.
    ///
    /// # Errors
    /// Fails when the bytes are not those of such a file.
    pub fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        let texts = unseal::<Vec<Text>>("abandoned", 1, bytes)?;
        let entries = texts.into_iter().map(Text::read).collect::<Result<_, _>>()?;
        Ok(Self { entries })
    }
}

#[derive(Serialize, Deserialize)]
struct Text {
    timeline: u32,
    from: String,
    to: String,
    next_timeline: u32,
    content: Option<ContentText>,
    since_unix_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    holders: Option<HoldersText>,
}

#[derive(Serialize, Deserialize)]
struct HoldersText {
    standbys: u64,
    sent: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct ContentText {
    records: u64,
    commits: u64,
    /// Microseconds since 2000.
    commit_times: Option<(i64, i64)>,
}

impl Text {
    fn of(entry: &AbandonedWal) -> Self {
        let since = entry.since.duration_since(UNIX_EPOCH).unwrap_or_default();
        let content = entry.content.map(|content| ContentText {
            records: content.records,
            commits: content.commits,
            commit_times: content.commit_times.map(|(first, last)| (first.raw(), last.raw())),
        });
        Self {
            timeline: entry.tli.raw(),
            from: entry.from.to_string(),
            to: entry.to.to_string(),
            next_timeline: entry.next.raw(),
            content,
            since_unix_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            holders: entry.holders.map(|Holders { standbys, sent }| HoldersText {
                standbys,
                sent: sent.map(|sent| sent.to_string()),
            }),
        }
    }

    fn read(self) -> Result<AbandonedWal, Unreadable> {
        let wrong = |field: &str| Unreadable::Content(format!("invalid {field}"));
        let since = UNIX_EPOCH.checked_add(Duration::from_millis(self.since_unix_ms));
        let content = self.content.map(|content| Content {
            records: content.records,
            commits: content.commits,
            commit_times: content
                .commit_times
                .map(|(first, last)| (PgTime::new(first), PgTime::new(last))),
        });
        let sent = |sent: &String| sent.parse().map_err(|_| wrong("sent"));
        let holders = match self.holders {
            Some(HoldersText { standbys, sent: upto }) => {
                Some(Holders { standbys, sent: upto.as_ref().map(sent).transpose()? })
            }
            None => None,
        };
        Ok(AbandonedWal {
            tli: TimelineId::new(self.timeline).ok_or_else(|| wrong("timeline"))?,
            from: self.from.parse().map_err(|_| wrong("from"))?,
            to: self.to.parse().map_err(|_| wrong("to"))?,
            next: TimelineId::new(self.next_timeline).ok_or_else(|| wrong("next_timeline"))?,
            content,
            since: since.ok_or_else(|| wrong("since_unix_ms"))?,
            holders,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(from: u64, commits: Option<u64>) -> AbandonedWal {
        let content = commits.map(|commits| Content {
            records: 7,
            commits,
            commit_times: (commits > 0).then_some((PgTime::new(-5), PgTime::new(9))),
        });
        AbandonedWal {
            tli: TimelineId::FIRST,
            from: Lsn::new(from),
            to: Lsn::new(from + 100),
            next: TimelineId::new(2).unwrap(),
            content,
            since: UNIX_EPOCH + Duration::from_millis(1_790_000_000_123),
            holders: None,
        }
    }

    #[test]
    fn each_switch_stands_once_until_it_is_confirmed() {
        let mut all = Abandoned::default();
        all.add(entry(50, Some(3)));
        all.add(entry(50, Some(1)));
        all.add(entry(70, None));
        assert_eq!(all.iter().copied().collect::<Vec<_>>(), [entry(50, Some(3)), entry(70, None)]);
        assert!(all.has(TimelineId::FIRST, Lsn::new(50)));
        assert_eq!(all.confirm(Lsn::new(60)), []);
        assert_eq!(all.confirm(Lsn::new(50)), [entry(50, Some(3))]);
        assert!(!all.has(TimelineId::FIRST, Lsn::new(50)));
        assert_eq!(all.confirm(Lsn::new(70)), [entry(70, None)]);
        assert!(all.is_empty());
    }

    #[test]
    fn who_had_it_is_noted_once_and_kept() {
        let mut all = Abandoned::default();
        all.add(entry(50, Some(3)));
        all.add(entry(70, None));
        let mut note = |from: u64, standbys, sent: Option<u64>| {
            let holders = Holders { standbys, sent: sent.map(Lsn::new) };
            all.note_holders(TimelineId::FIRST, Lsn::new(from), holders)
        };
        assert_eq!(note(60, 1, Some(61)), None);
        assert!(note(50, 2, Some(90)).is_some_and(|entry| entry.holders.is_some()));
        assert_eq!(note(50, 0, None), None, "it is known");
        assert!(note(70, 0, None).is_some());
        assert_eq!(Abandoned::decode(&all.encode()), Ok(all));
    }

    #[test]
    fn what_is_unknown_may_hold_commits() {
        let all = [(None, true), (Some(0), false), (Some(1), true)];
        for (commits, may) in all {
            assert_eq!(entry(50, commits).has_commits(), may);
        }
    }

    #[test]
    fn the_list_is_bounded() {
        let mut all = Abandoned::default();
        let lost = (0..=MOST as u64).filter_map(|from| all.add(entry(from, Some(0))));
        assert_eq!(lost.collect::<Vec<_>>(), [entry(0, Some(0))]);
        assert_eq!(all.iter().count(), MOST);
        assert_eq!(all.iter().next(), Some(&entry(1, Some(0))));
    }

    #[test]
    fn round_trip() {
        let mut all = Abandoned::default();
        for known in [entry(50, Some(3)), entry(60, Some(0)), entry(70, None)] {
            all.add(known);
            assert_eq!(Abandoned::decode(&all.encode()), Ok(all.clone()));
        }
        let mut bytes = all.encode();
        let last = bytes.len() - 2;
        bytes[last] ^= 1;
        assert!(Abandoned::decode(&bytes).is_err());
        assert!(Abandoned::decode(b"").is_err());
    }

    #[test]
    fn in_words() {
        for (commits, words) in [
            (
                Some(1),
                "timeline 2 goes on from 0/50 on timeline 1, of which WAL up to 0/B4 was here: \
                 7 records, 1 commit",
            ),
            (
                None,
                "timeline 2 goes on from 0/50 on timeline 1, of which WAL past that position was \
                 here; it could not be counted",
            ),
        ] {
            assert_eq!(entry(0x50, commits).to_string(), words);
        }
    }
}
