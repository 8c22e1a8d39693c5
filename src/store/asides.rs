//! What was set aside in a hub's directory, and how much room that takes. This looks at the disk,
//! for as long as that takes; the [board](AsideBoard) has what was seen last.

mod board;

pub use board::{AsideBoard, KnownAsides, MOST_SHOWN};

use super::layout::Layout;
use sha2::{Digest, Sha256};
use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// WAL that nothing reads any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aside {
    /// Its name below the hub's directory.
    pub name: String,
    /// The bytes in it.
    pub bytes: u64,
    /// When it was put there: when its names were changed last.
    pub since: SystemTime,
    /// Stands for what is in it.
    pub content: ContentMark,
}

/// Stands for the files in something that was set aside: for their names, their lengths, and when
/// each was written last. Any other files have another mark, also those that come under the same
/// names later.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ContentMark([u8; 16]);

impl fmt::Display for ContentMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ContentMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// All of it, by name. What goes meanwhile is left out.
///
/// # Errors
/// The operating system's error.
pub fn all_set_aside(layout: &Layout) -> io::Result<Vec<Aside>> {
    let mut found = names(layout.root())?;
    found.retain(|name| Layout::is_aside(name));
    for folder in [layout.all_diverged(), layout.damaged()] {
        let shown = folder.file_name().map(|name| name.to_string_lossy().into_owned());
        let shown = shown.unwrap_or_default();
        found.extend(names(&folder)?.into_iter().map(|name| format!("{shown}/{name}")));
    }
    let strays = names(layout.wal())?.into_iter().filter(|name| Layout::is_stray(name));
    found.extend(strays.map(|name| format!("pg_wal/{name}")));
    found.sort();
    let mut all = Vec::with_capacity(found.len());
    for name in found {
        all.extend(one_set_aside(layout, &name)?);
    }
    Ok(all)
}

/// What was set aside under one name; `None` when it is not there any more.
///
/// # Errors
/// The operating system's error.
pub fn one_set_aside(layout: &Layout, name: &str) -> io::Result<Option<Aside>> {
    let path = layout.root().join(name);
    let Some(meta) = found(std::fs::symlink_metadata(&path))? else { return Ok(None) };
    let mut sum = Sum { bytes: 0, hash: Sha256::new() };
    sum.add(&path, &path)?;
    let [hash, _] = *sum.hash.finalize().as_chunks().0 else { return Ok(None) };
    Ok(Some(Aside {
        name: name.to_owned(),
        bytes: sum.bytes,
        since: changed(&meta),
        content: ContentMark(hash),
    }))
}

/// When the system changed something about a file or a directory last, its name included.
fn changed(meta: &std::fs::Metadata) -> SystemTime {
    let seconds = u64::try_from(meta.ctime()).unwrap_or_default();
    let nanos = u32::try_from(meta.ctime_nsec()).unwrap_or_default();
    UNIX_EPOCH + Duration::new(seconds, nanos)
}

/// All files below a directory, or one file.
struct Sum {
    bytes: u64,
    hash: Sha256,
}

impl Sum {
    fn add(&mut self, root: &Path, path: &Path) -> io::Result<()> {
        let Some(meta) = found(std::fs::symlink_metadata(path))? else { return Ok(()) };
        if !meta.is_dir() {
            self.bytes = self.bytes.saturating_add(meta.len());
            let name = path.strip_prefix(root).unwrap_or(path).as_os_str().as_encoded_bytes();
            self.hash.update((name.len() as u64).to_le_bytes());
            self.hash.update(name);
            for number in [meta.len().cast_signed(), meta.mtime(), meta.mtime_nsec()] {
                self.hash.update(number.to_le_bytes());
            }
            return Ok(());
        }
        let mut inside = names(path)?;
        inside.sort();
        inside.iter().try_for_each(|name| self.add(root, &path.join(name)))
    }
}

/// The names in a directory; none when it is not there.
fn names(folder: &Path) -> io::Result<Vec<String>> {
    let Some(entries) = found(std::fs::read_dir(folder))? else { return Ok(Vec::new()) };
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.collect()
}

/// `None` when there is no such file.
fn found<T>(looked: io::Result<T>) -> io::Result<Option<T>> {
    match looked {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(layout: &Layout, name: &str, bytes: usize) {
        let path = layout.root().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, vec![7; bytes]).unwrap();
    }

    #[test]
    fn everything_that_was_set_aside_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path());
        assert_eq!(all_set_aside(&layout).unwrap(), []);
        put(&layout, "pg_wal/000000010000000000000005", 1000);
        put(&layout, "pg_wal/000000010000000000000006.partial.stray", 6);
        put(&layout, "pg_wal.aside.2/archive_status/x", 1);
        put(&layout, "pg_wal.aside.2/000000010000000000000001", 20);
        put(&layout, "diverged/1-0_5000060/000000010000000000000005", 300);
        put(&layout, "diverged/1-0_5000060/000000010000000000000006", 300);
        put(&layout, "diverged/2-0_7000060/000000020000000000000007", 5);
        put(&layout, "damaged/000000010000000000000003", 4);
        put(&layout, "pg_wal.asides", 1000);
        let found = all_set_aside(&layout).unwrap();
        let found: Vec<_> = found.iter().map(|one| (one.name.as_str(), one.bytes)).collect();
        assert_eq!(
            found,
            [
                ("damaged/000000010000000000000003", 4),
                ("diverged/1-0_5000060", 600),
                ("diverged/2-0_7000060", 5),
                ("pg_wal.aside.2", 21),
                ("pg_wal/000000010000000000000006.partial.stray", 6),
            ]
        );
        assert_eq!(one_set_aside(&layout, "diverged/3-0_9").unwrap(), None);
    }

    #[test]
    fn other_files_have_another_mark() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path());
        let name = "diverged/1-0_5000060";
        let (first, second) = (format!("{name}/5"), format!("{name}/6"));
        let mark = || one_set_aside(&layout, name).unwrap().unwrap().content;
        put(&layout, &first, 300);
        let one = mark();
        assert_eq!(mark(), one);
        put(&layout, &second, 300);
        let both = mark();
        assert_ne!(both, one);
        std::fs::remove_file(layout.root().join(&second)).unwrap();
        assert_eq!(mark(), one);
        // Another file of the same name and length.
        std::fs::remove_file(layout.root().join(&first)).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        put(&layout, &first, 300);
        assert_ne!(mark(), one);
        // It is moved, as a whole.
        let moved = "diverged/1-0_7000060";
        let now = mark();
        std::fs::rename(layout.root().join(name), layout.root().join(moved)).unwrap();
        assert_eq!(one_set_aside(&layout, moved).unwrap().unwrap().content, now);
    }
}
