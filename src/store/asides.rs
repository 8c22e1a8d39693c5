//! What was set aside in a hub's directory, and how much room that takes. A [look](AsideLook) goes
//! over the disk in steps; the [board](AsideBoard) has what was seen last.

mod board;
mod confirmed;
mod removal;
mod walk;

pub use board::{AsideBoard, KnownAsides, MOST_SHOWN};
pub use confirmed::{Confirmation, Confirmations, NotConfirmed, read_confirmed};
pub use removal::{FileRemoval, FolderRemoval, remove_file, remove_folder};
pub use walk::{AsideWalk, SeenAside, SeenKind};

use super::layout::Layout;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// How many names one step looks at.
pub const NAMES_A_STEP: usize = 1000;

/// WAL that nothing reads any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aside {
    /// Its name below the hub's directory.
    pub name: String,
    /// The bytes in it.
    pub bytes: u64,
    /// When it was put there: when its names were changed last.
    pub since: SystemTime,
    /// The files in it.
    pub files: Vec<FileMark>,
    /// How long ago the files among them were confirmed that were confirmed first; `None` when none
    /// was.
    pub confirmed: Option<Duration>,
    /// How many of its files, and of what is no file, no confirmation covers.
    pub left_out: usize,
    /// How many links and the like are in it, which can never be confirmed.
    others: usize,
}

impl Aside {
    /// One that has just been seen.
    pub fn new(name: &str, since: SystemTime) -> Self {
        let (name, files) = (name.to_owned(), Vec::new());
        Self { name, bytes: 0, since, files, confirmed: None, left_out: 0, others: 0 }
    }

    /// One more file is in it; without a mark it is none that may ever go. It was confirmed that long
    /// ago.
    fn add(&mut self, bytes: u64, mark: Option<FileMark>, confirmed: Option<Duration>) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.files.extend(mark);
        self.confirmed = self.confirmed.max(confirmed);
        self.left_out += usize::from(confirmed.is_none());
        self.others += usize::from(mark.is_none());
    }

    /// Compares all of its files with what is confirmed.
    pub fn judge(&mut self, confirmed: &Confirmations) {
        let of = |mark: &FileMark| confirmed.of(&self.name, *mark);
        let times: Vec<_> = self.files.iter().map(of).collect();
        self.left_out = self.others + times.iter().filter(|time| time.is_none()).count();
        self.confirmed = times.into_iter().flatten().max();
    }
}

/// Stands for one file: for its name, its length, and when the system changed something about it
/// last. Any other file has another mark, also one that comes under the same name later.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileMark(u64);

impl FileMark {
    /// The mark of a file with this name below what was set aside; empty for a file that was set
    /// aside itself. `changed` is its ctime, in seconds and nanoseconds.
    pub(super) fn of(name: &Path, len: u64, changed: (i64, i64)) -> Self {
        let name = name.as_os_str().as_encoded_bytes();
        let mut hash = Sha256::new();
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name);
        hash.update(len.to_le_bytes());
        hash.update(changed.0.to_le_bytes());
        hash.update(changed.1.to_le_bytes());
        let [mark, ..] = *hash.finalize().as_chunks().0 else { return Self(0) };
        Self(u64::from_le_bytes(mark))
    }
}

impl fmt::Debug for FileMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A file in something that was set aside, or one that was set aside itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AsideFile {
    /// The name of what it is in.
    pub aside: Arc<str>,
    /// Its path below the hub's directory.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// Stands for it as it was seen.
    pub mark: FileMark,
}

/// A look at everything that was set aside, in steps.
#[derive(Debug)]
pub struct AsideLook {
    /// Where it goes on; `None` at its end.
    pub walk: Option<AsideWalk>,
    seen: BTreeMap<Arc<str>, Aside>,
}

impl AsideLook {
    /// At all of it.
    pub fn begin(layout: &Layout) -> Self {
        Self { walk: Some(AsideWalk::over_all(layout)), seen: BTreeMap::new() }
    }

    /// Takes in what a step has seen.
    pub fn take_in(&mut self, seen: Vec<SeenAside>, confirmed: &Confirmations) {
        for SeenAside { aside, since, kind, .. } in seen {
            let entry = self.seen.entry(Arc::clone(&aside));
            let entry = entry.or_insert_with(|| Aside::new(&aside, since));
            match kind {
                SeenKind::Folder => {}
                SeenKind::Other { bytes } => entry.add(bytes, None, None),
                SeenKind::File { bytes, mark } => {
                    entry.add(bytes, Some(mark), confirmed.of(&aside, mark));
                }
            }
        }
    }

    /// What was seen, by name.
    pub fn end(self) -> Vec<Aside> {
        self.seen.into_values().collect()
    }
}

/// All of it at once, by name. What goes meanwhile is left out.
///
/// # Errors
/// The operating system's error.
pub fn all_set_aside(layout: &Layout, confirmed: &Confirmations) -> io::Result<Vec<Aside>> {
    let mut look = AsideLook::begin(layout);
    while let Some(walk) = look.walk.take() {
        let (rest, seen) = walk.step(NAMES_A_STEP)?;
        look.walk = rest;
        look.take_in(seen, confirmed);
    }
    Ok(look.end())
}

/// `None` when there is no such file.
fn found<T>(looked: io::Result<T>) -> io::Result<Option<T>> {
    match looked {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

#[cfg(test)]
mod tests;
