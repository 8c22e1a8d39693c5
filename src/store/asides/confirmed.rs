//! What an operator has confirmed of what was set aside: nobody needs these files any more. Each
//! stands in `walhub.confirmed`, beside the control file, until it is gone. The time that they are
//! kept for counts while the hub runs.

use super::FileMark;
use crate::store::disk::Disk;
use crate::store::durable::read_full;
use crate::store::fault::{StoreFault, failed};
use crate::store::layout::Layout;
use crate::store::sealed_text::{Unreadable, seal, unseal};
use crate::wire::date::date_millis;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The most confirmations.
const MOST: usize = 4096;

/// The most files in all of them.
const MOST_FILES: usize = 500_000;

/// More than all of them need.
const MAX_LEN: u64 = 32 << 20;

/// Files of one that was set aside, which were confirmed together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confirmation {
    /// No other has this number.
    pub number: u64,
    /// The name of what was set aside.
    pub name: String,
    /// The files, in order.
    files: Vec<FileMark>,
    /// How long the hub has run since.
    pub counted: Duration,
    /// When it was given.
    pub since: SystemTime,
}

impl Confirmation {
    /// How many files it covers.
    pub fn file_count(&self) -> usize {
        self.files.len()
    }

    fn covers(&self, name: &str, mark: FileMark) -> bool {
        self.name == name && self.files.binary_search(&mark).is_ok()
    }
}

impl fmt::Display for Confirmation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, files, since, .. } = self;
        write!(f, "\"{name}\" ({} files, confirmed at {})", files.len(), date_millis(*since))
    }
}

/// Why something is not confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotConfirmed {
    /// There is no place for more.
    #[error(
        "{MOST} confirmations and {MOST_FILES} files are the most that can be confirmed at one \
         time; remove some of the files by hand"
    )]
    TooMany,
}

/// All that is confirmed and not gone, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Confirmations {
    entries: Vec<Confirmation>,
}

impl Confirmations {
    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How long ago a file was confirmed, by the time that counts; `None` when it was not.
    pub fn of(&self, name: &str, mark: FileMark) -> Option<Duration> {
        let entry = self.entries.iter().find(|entry| entry.covers(name, mark))?;
        Some(entry.counted)
    }

    /// Confirms files. Those that were confirmed before keep their time. Returns how many are new.
    ///
    /// # Errors
    /// Nothing was confirmed.
    pub fn confirm(
        &mut self,
        name: &str,
        files: &[FileMark],
        since: SystemTime,
    ) -> Result<usize, NotConfirmed> {
        let is_new = |mark: &FileMark| self.of(name, *mark).is_none();
        let mut new: Vec<_> = files.iter().copied().filter(is_new).collect();
        new.sort_unstable();
        new.dedup();
        let is_known = self.entries.iter().any(|entry| entry.name == name);
        // Something without a file in it is confirmed, too.
        if new.is_empty() && (is_known || !files.is_empty()) {
            return Ok(0);
        }
        let all: usize = self.entries.iter().map(Confirmation::file_count).sum();
        if self.entries.len() >= MOST || all + new.len() > MOST_FILES {
            return Err(NotConfirmed::TooMany);
        }
        let count = new.len();
        let number = self.entries.last().map_or(0, |last| last.number) + 1;
        let name = name.to_owned();
        let entry = Confirmation { number, name, files: new, counted: Duration::ZERO, since };
        self.entries.push(entry);
        Ok(count)
    }

    /// The hub has run for so long.
    pub fn advance(&mut self, by: Duration) {
        for entry in &mut self.entries {
            entry.counted = entry.counted.saturating_add(by);
        }
    }

    /// Those whose time is up.
    pub fn due(&self, keep: Duration) -> impl Iterator<Item = &Confirmation> {
        self.entries.iter().filter(move |entry| entry.counted >= keep)
    }

    /// Its files are gone.
    pub fn end(&mut self, number: u64) {
        self.entries.retain(|entry| entry.number != number);
    }

    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        seal("confirmed", 1, &self.entries.iter().map(Text::of).collect::<Vec<_>>())
    }

    /// Reads the file's bytes.
    ///
    /// # Errors
    /// Fails when the bytes are not those of such a file.
    pub fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        let texts = unseal::<Vec<Text>>("confirmed", 1, bytes)?;
        let entries = texts.into_iter().map(Text::read).collect::<Result<_, _>>()?;
        Ok(Self { entries })
    }
}

/// What is confirmed, as it is on disk.
///
/// # Errors
/// The file is there and cannot be read.
pub async fn read_confirmed<D: Disk>(
    disk: &D,
    layout: &Layout,
) -> Result<Confirmations, StoreFault> {
    let path = layout.confirmed();
    let file = match disk.open_read(&path).await {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Confirmations::default());
        }
        opened => opened.map_err(failed("open file", &path))?,
    };
    let len = disk.len(&file).await.map_err(failed("read file", &path))?.min(MAX_LEN);
    let read = read_full(disk, &file, len as usize, 0).await;
    let bytes = read.map_err(failed("read file", &path))?;
    Confirmations::decode(&bytes).map_err(|fault| StoreFault::Unreadable { path, fault })
}

#[derive(Serialize, Deserialize)]
struct Text {
    number: u64,
    name: String,
    /// 16 digits for each.
    files: String,
    counted_ms: u64,
    since_unix_ms: u64,
}

impl Text {
    fn of(entry: &Confirmation) -> Self {
        let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let digits = entry.files.iter().map(|mark| format!("{mark:?}"));
        Self {
            number: entry.number,
            name: entry.name.clone(),
            files: digits.collect(),
            counted_ms: millis(entry.counted),
            since_unix_ms: millis(entry.since.duration_since(UNIX_EPOCH).unwrap_or_default()),
        }
    }

    fn read(self) -> Result<Confirmation, Unreadable> {
        let wrong = |field: &str| Unreadable::Content(format!("invalid {field}"));
        let (marks, []) = self.files.as_bytes().as_chunks::<16>() else {
            return Err(wrong("files"));
        };
        let mark = |digits: &[u8; 16]| {
            let digits = std::str::from_utf8(digits).ok()?;
            u64::from_str_radix(digits, 16).ok().map(FileMark)
        };
        let files: Option<Vec<_>> = marks.iter().map(mark).collect();
        let files = files.filter(|files| files.is_sorted()).ok_or_else(|| wrong("files"))?;
        let since = UNIX_EPOCH.checked_add(Duration::from_millis(self.since_unix_ms));
        Ok(Confirmation {
            number: self.number,
            name: self.name,
            files,
            counted: Duration::from_millis(self.counted_ms),
            since: since.ok_or_else(|| wrong("since_unix_ms"))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: SystemTime = UNIX_EPOCH;

    fn marks(numbers: &[u64]) -> Vec<FileMark> {
        numbers.iter().copied().map(FileMark).collect()
    }

    #[test]
    fn what_comes_later_is_not_covered_and_resets_nothing() {
        let mut all = Confirmations::default();
        assert_eq!(all.confirm("a", &marks(&[5, 3]), NOW), Ok(2));
        all.advance(Duration::from_secs(60));
        assert_eq!(all.of("a", FileMark(4)), None);
        assert_eq!(all.of("b", FileMark(3)), None, "of another that was set aside");
        assert_eq!(all.confirm("a", &marks(&[3, 4, 5]), NOW), Ok(1));
        assert_eq!(all.confirm("a", &marks(&[3, 4, 5]), NOW), Ok(0));
        all.advance(Duration::from_secs(1));
        let counted = |mark| all.of("a", FileMark(mark)).map(|time| time.as_secs());
        assert_eq!([3, 4, 5].map(counted), [Some(61), Some(1), Some(61)]);
        let due = all.due(Duration::from_secs(61)).map(|due| (due.number, due.file_count()));
        assert_eq!(due.collect::<Vec<_>>(), [(1, 2)]);
        all.end(1);
        assert_eq!(all.of("a", FileMark(3)), None);
        assert!(all.due(Duration::from_secs(61)).next().is_none() && !all.is_empty());
    }

    #[test]
    fn a_folder_without_files_is_confirmed_once() {
        let mut all = Confirmations::default();
        assert_eq!(all.confirm("a", &[], NOW), Ok(0));
        assert_eq!(all.confirm("a", &[], NOW), Ok(0));
        all.advance(Duration::from_secs(1));
        assert_eq!(all.due(Duration::from_secs(1)).count(), 1);
        all.end(1);
        assert!(all.is_empty());
    }

    #[test]
    fn there_is_a_bound() {
        let mut all = Confirmations::default();
        let many: Vec<_> = (0..=MOST_FILES as u64).map(FileMark).collect();
        assert_eq!(all.confirm("a", &many, NOW), Err(NotConfirmed::TooMany));
        assert_eq!(all.confirm("a", &many[1..], NOW), Ok(MOST_FILES));
        assert_eq!(all.confirm("b", &marks(&[1]), NOW), Err(NotConfirmed::TooMany));
    }

    #[test]
    fn round_trip() {
        let mut all = Confirmations::default();
        assert_eq!(Confirmations::decode(&all.encode()), Ok(all.clone()));
        all.confirm("diverged/1-0_5", &marks(&[7, u64::MAX]), NOW).unwrap();
        all.advance(Duration::from_millis(1234));
        all.confirm("pg_wal.aside.1", &[], NOW).unwrap();
        assert_eq!(Confirmations::decode(&all.encode()), Ok(all.clone()));
        let mut bytes = all.encode();
        let last = bytes.len() - 2;
        bytes[last] ^= 1;
        assert!(Confirmations::decode(&bytes).is_err());
        let text = r#"[{"number":1,"name":"a","files":"12","counted_ms":0,"since_unix_ms":0}]"#;
        let short = crate::store::sealed_text::seal_json("confirmed", 1, text.as_bytes());
        assert!(Confirmations::decode(&short).is_err());
    }
}
