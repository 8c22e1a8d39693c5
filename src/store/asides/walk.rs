//! A walk over what was set aside, by plain system calls, so many names at a time. No symbolic link
//! is followed below the hub's directory and `pg_wal`.

use super::{FileMark, found};
use crate::store::layout::Layout;
use std::fs::{DirEntry, Metadata, ReadDir};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Where a walk is.
#[derive(Debug)]
pub struct AsideWalk {
    root: PathBuf,
    /// Directories that are to be read; the last one is next.
    waiting: Vec<(PathBuf, Within)>,
    open: Option<(ReadDir, Within)>,
    /// What is to be seen first.
    first: Option<Arc<str>>,
}

/// What the names in a directory are.
#[derive(Debug, Clone)]
enum Within {
    /// Those that pass were set aside, each by itself. Their names begin with this.
    Top(&'static str, fn(&str) -> bool),
    /// All belong to this one.
    Aside(Arc<str>),
}

/// Something that a walk has seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenAside {
    /// The name of what was set aside.
    pub aside: Arc<str>,
    /// The path below the hub's directory of what was seen: of the whole, or of something in it.
    pub path: PathBuf,
    /// When the system changed something about it last, its name included.
    pub since: SystemTime,
    /// What it is.
    pub kind: SeenKind,
}

/// What was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeenKind {
    /// A directory. It is seen before what is in it.
    Folder,
    /// A regular file.
    File {
        /// Its length.
        bytes: u64,
        /// Stands for it.
        mark: FileMark,
    },
    /// A symbolic link, or something else that the hub never makes.
    Other {
        /// Its length.
        bytes: u64,
    },
}

impl AsideWalk {
    /// Over everything that was set aside.
    pub fn over_all(layout: &Layout) -> Self {
        let any: fn(&str) -> bool = |_| true;
        let waiting = vec![
            (layout.wal().to_owned(), Within::Top("pg_wal/", Layout::is_stray)),
            (layout.damaged(), Within::Top("damaged/", any)),
            (layout.all_diverged(), Within::Top("diverged/", any)),
            (layout.root().to_owned(), Within::Top("", Layout::is_aside)),
        ];
        Self { root: layout.root().to_owned(), waiting, open: None, first: None }
    }

    /// Over what was set aside under this name.
    pub fn over_one(layout: &Layout, name: &str) -> Self {
        let first = Some(name.into());
        Self { root: layout.root().to_owned(), waiting: Vec::new(), open: None, first }
    }

    /// Goes on, by at most `most` names. Returns the rest of the walk, if there is more, and what
    /// was seen.
    ///
    /// # Errors
    /// The operating system's error.
    pub fn step(mut self, most: usize) -> io::Result<(Option<Self>, Vec<SeenAside>)> {
        let mut seen = Vec::new();
        if let Some(aside) = self.first.take() {
            let path = self.root.join(&*aside);
            if let Some(meta) = found(path.symlink_metadata())? {
                seen.push(self.see(aside, path, &meta));
            }
        }
        for _ in 0..most {
            let Some((names, within)) = &mut self.open else {
                if self.open_next()? { continue } else { return Ok((None, seen)) }
            };
            let within = within.clone();
            match names.next() {
                None => self.open = None,
                Some(entry) => seen.extend(self.look(&entry?, &within)?),
            }
        }
        Ok((Some(self), seen))
    }

    /// Returns whether there was one.
    fn open_next(&mut self) -> io::Result<bool> {
        let Some((folder, within)) = self.waiting.pop() else { return Ok(false) };
        // A link that took the place of a folder leads out of what was set aside.
        let may_be_link = matches!(within, Within::Top("" | "pg_wal/", _));
        let is_folder = || folder.symlink_metadata().map(|meta| meta.is_dir());
        if !may_be_link && found(is_folder())? != Some(true) {
            return Ok(true);
        }
        self.open = found(std::fs::read_dir(&folder))?.map(|names| (names, within));
        Ok(true)
    }

    /// What a name in a directory stands for, if it belongs to something that was set aside.
    fn look(&mut self, entry: &DirEntry, within: &Within) -> io::Result<Option<SeenAside>> {
        let aside = match within {
            Within::Aside(aside) => Arc::clone(aside),
            Within::Top(prefix, is_aside) => {
                let name = entry.file_name();
                let name = name.to_string_lossy();
                if !is_aside(&name) {
                    return Ok(None);
                }
                format!("{prefix}{name}").into()
            }
        };
        let meta = found(entry.metadata())?;
        Ok(meta.map(|meta| self.see(aside, entry.path(), &meta)))
    }

    fn see(&mut self, aside: Arc<str>, whole: PathBuf, meta: &Metadata) -> SeenAside {
        let path = whole.strip_prefix(&self.root).unwrap_or(&whole).to_owned();
        let kind = kind_of(meta, &aside, &path);
        if kind == SeenKind::Folder {
            self.waiting.push((whole, Within::Aside(Arc::clone(&aside))));
        }
        SeenAside { aside, path, since: changed(meta), kind }
    }
}

fn kind_of(meta: &Metadata, aside: &str, path: &Path) -> SeenKind {
    let bytes = meta.len();
    if meta.is_dir() {
        return SeenKind::Folder;
    }
    if !meta.is_file() {
        return SeenKind::Other { bytes };
    }
    let name = path.strip_prefix(aside).unwrap_or(path);
    SeenKind::File { bytes, mark: FileMark::of(name, bytes, (meta.ctime(), meta.ctime_nsec())) }
}

/// When the system changed something about a file or a directory last, its name included.
fn changed(meta: &Metadata) -> SystemTime {
    let seconds = u64::try_from(meta.ctime()).unwrap_or_default();
    let nanos = u32::try_from(meta.ctime_nsec()).unwrap_or_default();
    UNIX_EPOCH + Duration::new(seconds, nanos)
}
