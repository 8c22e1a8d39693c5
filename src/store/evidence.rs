//! Evidence of two histories: positions at which upstreams or the archive had other bytes than
//! this hub. It is kept in `walhub.evidence`, beside the control file, so that neither the
//! next connection nor a restart forgets it. Bytes that were compared once are not necessarily
//! compared again, and from a later position on two histories can look the same.

use super::sealed_text::{Unreadable, seal, unseal};
use crate::wal::{Lsn, TimelineId};
use serde::{Deserialize, Serialize};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The most differences that are kept. There is one for each source, so more than a conninfo has
/// hosts.
pub const MOST: usize = 64;

/// The archive as a source, whichever of its files had the other bytes.
pub const ARCHIVE: &str = "archive";

/// What the name of an archive's file as a source begins with.
const ARCHIVE_FILE: &str = "archive file ";

/// A source of WAL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalSource {
    /// The host as in the log, or the archive or one of its files.
    pub name: String,
    /// What the server says of itself, whichever name it is reached by; `None` when it says
    /// nothing, and for the archive.
    pub server: Option<String>,
}

impl WalSource {
    /// The archive.
    pub fn archive() -> Self {
        Self { name: ARCHIVE.to_owned(), server: None }
    }

    /// A file of the archive.
    pub fn archive_file(file: &str) -> Self {
        Self { name: format!("{ARCHIVE_FILE}\"{file}\""), server: None }
    }

    /// Is it the same source by its name? The archive is one, whichever file is named.
    fn has_name_of(&self, other: &Self) -> bool {
        let origin = |name: &str| name.starts_with(ARCHIVE_FILE) || name == ARCHIVE;
        self.name == other.name || origin(&self.name) && origin(&other.name)
    }

    /// Is it the same source, as far as is known? What servers say of themselves counts when both
    /// say something, and else their names.
    fn is(&self, other: &Self) -> bool {
        match (&self.server, &other.server) {
            (Some(own), Some(other)) => own == other,
            _ => self.has_name_of(other),
        }
    }
}

/// Where another source had other bytes than we.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The timeline whose file holds the position.
    pub tli: TimelineId,
    /// The first position that was seen to differ. We hold WAL there.
    pub at: Lsn,
    /// The source of the other bytes.
    pub source: WalSource,
    /// When that was found.
    pub since: SystemTime,
    /// What differed.
    pub detail: String,
    /// Another source was seen to have our bytes there: this stands against `source` alone.
    pub cleared: bool,
}

impl Difference {
    /// Is nothing received from `source` before it has shown our bytes at the place?
    pub fn bars(&self, source: &WalSource) -> bool {
        !self.cleared || self.source.is(source)
    }
}

/// What followed when a source was seen to have our bytes at the place of a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agreement {
    /// It was the source of the other bytes: the difference is gone.
    Resolved,
    /// It was another source, or perhaps the same under another name: the difference stands against
    /// the name of its source alone.
    Cleared,
}

/// Every difference that stands: at most one that is not cleared, and one for each source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    differences: Vec<Difference>,
}

impl Evidence {
    /// All of them, those first that are not cleared, then the newest.
    pub fn iter(&self) -> impl Iterator<Item = &Difference> {
        let standing = self.differences.iter().filter(|difference| !difference.cleared);
        standing.chain(self.differences.iter().rev().filter(|difference| difference.cleared))
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.differences.is_empty()
    }

    /// The difference because of which nothing is received from `source`.
    pub fn against(&self, source: &WalSource) -> Option<&Difference> {
        self.iter().find(|difference| difference.bars(source))
    }

    /// Adds a difference. Returns the oldest one when there are too many: it is not kept.
    pub fn add(&mut self, difference: Difference) -> Option<Difference> {
        let lost = (self.differences.len() >= MOST).then(|| self.differences.remove(0));
        self.differences.push(difference);
        lost
    }

    /// Removes those that `is_gone`, and returns them.
    pub fn remove(&mut self, is_gone: impl Fn(&Difference) -> bool) -> Vec<Difference> {
        let (gone, stay) = self.differences.drain(..).partition(is_gone);
        self.differences = stay;
        gone
    }

    /// `source` has our bytes at the place of the difference that bars it. Returns that difference
    /// and what has become of it; `None` when none bars it.
    pub fn agree(&mut self, source: &WalSource) -> Option<(Difference, Agreement)> {
        let barring = self.against(source)?.clone();
        let place = self.differences.iter().position(|difference| *difference == barring)?;
        if barring.source.is(source) && barring.source.has_name_of(source) {
            return Some((self.differences.remove(place), Agreement::Resolved));
        }
        let difference = self.differences.get_mut(place)?;
        if difference.source.is(source) {
            // What it says of itself does not tell servers apart, or it has our history now and
            // may be called by its old name again.
            difference.source.server = None;
        }
        difference.cleared = true;
        Some((difference.clone(), Agreement::Cleared))
    }

    /// Ours is the true history at `at`, by an operator's word: a difference there stands against
    /// its source alone. Returns the source; `None` when there is no difference at `at`.
    pub fn clear(&mut self, at: Lsn) -> Option<WalSource> {
        let place = self.iter().find(|difference| difference.at == at)?.clone();
        let difference = self.differences.iter_mut().find(|difference| **difference == place)?;
        difference.cleared = true;
        Some(place.source)
    }

    /// The difference at `at` stands against everybody.
    pub fn bar_all(&mut self, at: Lsn) {
        for difference in self.differences.iter_mut().filter(|difference| difference.at == at) {
            difference.cleared = false;
        }
    }

    /// The file's bytes. A single difference has the form that earlier versions read too.
    pub fn encode(&self) -> Vec<u8> {
        match self.differences.as_slice() {
            [only] => seal("evidence", 1, &Text::of(only)),
            all => seal("evidence", 2, &all.iter().map(Text::of).collect::<Vec<_>>()),
        }
    }

    /// Reads the file's bytes.
    ///
    /// # Errors
    /// Fails when the bytes are not those of such a file.
    pub fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        let texts = match unseal::<Text>("evidence", 1, bytes) {
            Err(Unreadable::Version { .. }) => unseal::<Vec<Text>>("evidence", 2, bytes)?,
            only => vec![only?],
        };
        let differences = texts.into_iter().map(Text::read).collect::<Result<_, _>>()?;
        Ok(Self { differences })
    }
}

impl From<Difference> for Evidence {
    fn from(only: Difference) -> Self {
        Self { differences: vec![only] }
    }
}

#[derive(Serialize, Deserialize)]
struct Text {
    timeline: u32,
    at: String,
    upstream: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    server: Option<String>,
    since_unix_ms: u64,
    detail: String,
    #[serde(default)]
    cleared: bool,
}

impl Text {
    fn of(difference: &Difference) -> Self {
        let since = difference.since.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            timeline: difference.tli.raw(),
            at: difference.at.to_string(),
            upstream: difference.source.name.clone(),
            server: difference.source.server.clone(),
            since_unix_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            detail: difference.detail.clone(),
            cleared: difference.cleared,
        }
    }

    fn read(self) -> Result<Difference, Unreadable> {
        let wrong = |field: &str| Unreadable::Content(format!("invalid {field}"));
        let since = UNIX_EPOCH.checked_add(Duration::from_millis(self.since_unix_ms));
        Ok(Difference {
            tli: TimelineId::new(self.timeline).ok_or_else(|| wrong("timeline"))?,
            at: self.at.parse().map_err(|_| wrong("at"))?,
            source: WalSource { name: self.upstream, server: self.server },
            since: since.ok_or_else(|| wrong("since_unix_ms"))?,
            detail: self.detail,
            cleared: self.cleared,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(name: &str, server: Option<&str>) -> WalSource {
        WalSource { name: name.to_owned(), server: server.map(str::to_owned) }
    }

    fn difference(source: WalSource, at: u64, cleared: bool) -> Difference {
        Difference {
            tli: TimelineId::FIRST,
            at: Lsn::new(at),
            source,
            since: UNIX_EPOCH + Duration::from_millis(1_790_000_000_123),
            detail: "a \"b\"".to_owned(),
            cleared,
        }
    }

    fn host(name: &str) -> WalSource {
        source(name, None)
    }

    #[test]
    fn cleared_evidence_bars_its_author_alone() {
        let of_db1 = |cleared| difference(host("db1:5432"), 7, cleared);
        for source in [host("db1:5432"), host("db2:5432"), WalSource::archive()] {
            assert!(of_db1(false).bars(&source), "{source:?}");
            assert_eq!(of_db1(true).bars(&source), source.name == "db1:5432", "{source:?}");
        }
        // The archive is one source, whichever file it was.
        let of_archive = difference(WalSource::archive_file("000000010000000000000005"), 7, true);
        assert!(of_archive.bars(&WalSource::archive()));
        assert!(of_archive.bars(&WalSource::archive_file("000000010000000000000006")));
        assert!(!of_archive.bars(&host("db1:5432")));
    }

    #[test]
    fn a_server_is_known_under_each_of_its_names() {
        let of_a = difference(source("db1:5432", Some("a")), 7, true);
        assert!(of_a.bars(&source("10.0.0.1:5432", Some("a"))));
        assert!(!of_a.bars(&source("db2:5432", Some("b"))));
        // Another server has taken over the name.
        assert!(!of_a.bars(&source("db1:5432", Some("b"))));
        // A server that says nothing is known by its name.
        assert!(of_a.bars(&host("db1:5432")));
        assert!(!of_a.bars(&host("10.0.0.1:5432")));
    }

    #[test]
    fn each_source_has_a_difference_of_its_own() {
        let mut evidence = Evidence::default();
        assert_eq!(evidence.add(difference(host("a"), 7, false)), None);
        let cleared = evidence.agree(&host("c"));
        assert!(matches!(cleared, Some((_, Agreement::Cleared))));
        evidence.add(difference(host("b"), 9, false));
        let place = |evidence: &Evidence, name: &str| {
            evidence.against(&host(name)).map(|difference| difference.at.raw())
        };
        // The one that is not cleared comes first, and bars everybody.
        assert_eq!(["a", "b", "c"].map(|name| place(&evidence, name)), [Some(9); 3]);
        assert!(matches!(evidence.agree(&host("c")), Some((_, Agreement::Cleared))));
        let places = ["a", "b", "c"].map(|name| place(&evidence, name));
        assert_eq!(places, [Some(7), Some(9), None], "neither is forgotten");
        assert!(matches!(evidence.agree(&host("a")), Some((_, Agreement::Resolved))));
        let places = ["a", "b", "c"].map(|name| place(&evidence, name));
        assert_eq!(places, [None, Some(9), None]);
        assert_eq!(evidence.agree(&host("a")), None);
    }

    #[test]
    fn an_operator_clears_one_place() {
        let mut evidence = Evidence::from(difference(host("a"), 7, true));
        evidence.add(difference(host("b"), 9, false));
        let before = evidence.clone();
        assert_eq!(evidence.clear(Lsn::new(8)), None);
        assert_eq!(evidence.clear(Lsn::new(7)), Some(host("a")));
        assert_eq!(evidence, before, "it was cleared before");
        assert_eq!(evidence.clear(Lsn::new(9)), Some(host("b")));
        let place = |name: &str| evidence.against(&host(name)).map(|found| found.at.raw());
        assert_eq!(["a", "b", "c"].map(place), [Some(7), Some(9), None]);
    }

    #[test]
    fn agreement_under_another_name_leaves_the_first_one_barred() {
        let first = source("db1:5432", Some("main"));
        let mut evidence = Evidence::from(difference(first.clone(), 7, false));
        let second = source("db2:5432", Some("main"));
        assert!(matches!(evidence.agree(&second), Some((_, Agreement::Cleared))));
        assert_eq!(evidence.against(&second), None);
        assert!(evidence.against(&first).is_some());
        assert!(matches!(evidence.agree(&first), Some((_, Agreement::Resolved))));
        assert!(evidence.is_empty());
    }

    #[test]
    fn the_list_is_bounded() {
        let mut evidence = Evidence::default();
        let lost = (0..=MOST as u64)
            .filter_map(|n| evidence.add(difference(host(&format!("db{n}")), n + 1, true)));
        assert_eq!(lost.map(|difference| difference.at.raw()).collect::<Vec<_>>(), [1]);
        assert_eq!(evidence.iter().count(), MOST);
    }

    #[test]
    fn evidence_without_the_field_stands_against_everybody() {
        let text = Text::of(&difference(host("db1:5432"), 7, false));
        let mut text = serde_json::to_value(text).unwrap();
        text.as_object_mut().unwrap().remove("cleared");
        let evidence = Evidence::decode(&seal("evidence", 1, &text)).unwrap();
        assert!(evidence.iter().all(|difference| !difference.cleared));
        assert_eq!(evidence.iter().count(), 1);
    }

    #[test]
    fn round_trip() {
        let one = Evidence::from(difference(source("db1:5432", Some("a")), 7, true));
        let mut two = one.clone();
        two.add(difference(host("db2:5432"), 9, false));
        for known in [one, two, Evidence::default()] {
            assert_eq!(Evidence::decode(&known.encode()), Ok(known.clone()));
            let mut bytes = known.encode();
            let last = bytes.len() - 2;
            bytes[last] ^= 1;
            assert!(Evidence::decode(&bytes).is_err());
        }
        assert!(Evidence::decode(b"").is_err());
    }

    #[test]
    fn a_single_difference_is_stored_as_before() {
        let bytes = Evidence::from(difference(host("db1:5432"), 7, true)).encode();
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.starts_with("walhub evidence 1 "), "{text}");
        assert!(!text.contains("server"), "{text}");
    }
}
