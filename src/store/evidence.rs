//! Evidence of two histories: positions at which upstreams or the archive had other bytes than
//! this hub. It is kept in `walhub.evidence`, beside the control file, so that neither the
//! next connection nor a restart forgets it. Bytes that were compared once are not necessarily
//! compared again, and from a later position on two histories can look the same.

use super::sealed_text::{Unreadable, seal, unseal};
use super::seams::Seam;
use crate::wal::{Lsn, TimelineId};
use serde::{Deserialize, Serialize};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The most differences that are kept. There is one for each source, so more than a conninfo has
/// hosts.
pub const MOST: usize = 64;

/// How much of both sides is kept from the place on.
pub const MOST_BYTES: usize = 64;

/// With fewer bytes than these two histories may look the same.
const FEWEST_BYTES: usize = 16;

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
    /// What both had there; `None` while only the place is known.
    pub bytes: Option<PlaceBytes>,
    /// Another source was seen to have our bytes there: this stands against `source` alone.
    pub cleared: bool,
}

impl Difference {
    /// Is nothing received from `source` before it has shown our bytes at the place?
    pub fn bars(&self, source: &WalSource) -> bool {
        !self.cleared || self.source.is(source)
    }

    /// Was this found at `source`?
    pub fn is_of(&self, source: &WalSource) -> bool {
        self.source.is(source)
    }

    /// What is known of our own WAL from the place on, as long as it tells our history from the
    /// source's: enough of it to know it again when it was lost.
    pub fn noted(&self) -> Option<&[u8]> {
        let bytes = self.bytes.as_ref().filter(|bytes| bytes.differ())?;
        (bytes.ours.len() >= FEWEST_BYTES).then_some(&bytes.ours)
    }

    /// Does `source`, which has `theirs` from the place on, have the history that was seen there?
    /// While it is not known what was seen, or only a little of it, no other than the source of the
    /// difference has, under the same name: a copy of a server may say the same of itself.
    pub fn is_history_of(&self, source: &WalSource, theirs: &[u8]) -> bool {
        let is_its_source = self.is_of(source) && self.source.has_name_of(source);
        match self.bytes.as_ref().filter(|bytes| bytes.differ()) {
            Some(PlaceBytes { theirs: seen, .. }) => {
                theirs.starts_with(seen) && (seen.len() >= FEWEST_BYTES || is_its_source)
            }
            None => is_its_source,
        }
    }
}

/// What we and a source have from a place on, [`MOST_BYTES`] at most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlaceBytes {
    /// Ours.
    pub ours: Vec<u8>,
    /// The source's.
    pub theirs: Vec<u8>,
}

impl PlaceBytes {
    /// What two pieces of WAL, which begin at one position, hold from byte `n` on.
    pub fn of(ours: &[u8], theirs: &[u8], n: usize) -> Self {
        let cut = |wal: &[u8]| {
            let rest = wal.get(n..).unwrap_or_default();
            rest.iter().take(MOST_BYTES).copied().collect()
        };
        Self { ours: cut(ours), theirs: cut(theirs) }
    }

    /// Do the bytes tell the two apart? Where a source's WAL does not continue ours, they may not.
    fn differ(&self) -> bool {
        self.ours.iter().zip(&self.theirs).any(|(ours, theirs)| ours != theirs)
    }
}

/// What the source of a difference shows at its place now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lesson {
    /// What it had, or more of it.
    Same,
    /// Something else: it has another history than it had.
    Changed,
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

    /// Removes those about WAL past `seam`, which was set aside, and returns them.
    pub fn remove_past(&mut self, seam: Seam) -> Vec<Difference> {
        self.remove(|difference| difference.tli == seam.tli && difference.at >= seam.at)
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

    /// `source` is compared once more at the place of the difference that bars it, and shows `bytes`.
    /// They are kept if the difference is its own. Returns what they say of it then.
    pub fn learn(
        &mut self,
        source: &WalSource,
        bytes: &PlaceBytes,
        now: SystemTime,
    ) -> Option<Lesson> {
        let barring = self.against(source).filter(|barring| barring.is_of(source))?.clone();
        let own = self.differences.iter_mut().find(|difference| **difference == barring)?;
        let lesson = match &own.bytes {
            Some(known) if known.theirs.starts_with(&bytes.theirs) => return Some(Lesson::Same),
            Some(known) if !bytes.theirs.starts_with(&known.theirs) => Lesson::Changed,
            Some(_) | None => Lesson::Same,
        };
        own.bytes = Some(bytes.clone());
        if lesson == Lesson::Changed {
            own.since = now;
        }
        Some(lesson)
    }

    /// The difference at `at` that an operator is shown first.
    pub fn at(&self, at: Lsn) -> Option<&Difference> {
        self.iter().find(|difference| difference.at == at)
    }

    /// Ours is the true history at `at`, by an operator's word: a difference there stands against
    /// its source alone. Returns the source; `None` when there is no difference at `at`.
    pub fn clear(&mut self, at: Lsn) -> Option<WalSource> {
        let place = self.at(at)?.clone();
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
    /// In hexadecimal, as what follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ours: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    theirs: Option<String>,
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
            ours: difference.bytes.as_ref().map(|bytes| to_hex(&bytes.ours)),
            theirs: difference.bytes.as_ref().map(|bytes| to_hex(&bytes.theirs)),
            cleared: difference.cleared,
        }
    }

    fn read(self) -> Result<Difference, Unreadable> {
        let wrong = |field: &str| Unreadable::Content(format!("invalid {field}"));
        let since = UNIX_EPOCH.checked_add(Duration::from_millis(self.since_unix_ms));
        let bytes = match (&self.ours, &self.theirs) {
            (Some(ours), Some(theirs)) => Some(PlaceBytes {
                ours: from_hex(ours).ok_or_else(|| wrong("ours"))?,
                theirs: from_hex(theirs).ok_or_else(|| wrong("theirs"))?,
            }),
            _ => None,
        };
        Ok(Difference {
            tli: TimelineId::new(self.timeline).ok_or_else(|| wrong("timeline"))?,
            at: self.at.parse().map_err(|_| wrong("at"))?,
            source: WalSource { name: self.upstream, server: self.server },
            since: since.ok_or_else(|| wrong("since_unix_ms"))?,
            detail: self.detail,
            bytes,
            cleared: self.cleared,
        })
    }
}

/// Bytes as two hexadecimal digits each.
pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks(2);
    let byte = |digits: &[u8]| {
        let &[high, low] = digits else { return None };
        let value = |digit: u8| char::from(digit).to_digit(16);
        u8::try_from(value(high)? << 4 | value(low)?).ok()
    };
    digits.map(byte).collect()
}

#[cfg(test)]
mod tests;
