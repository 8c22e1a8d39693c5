//! What was set aside in a hub's directory, and how much room that takes.

use super::layout::Layout;
use std::io;
use std::path::Path;

/// WAL that nothing reads any more.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SetAside {
    /// Its name below the hub's directory.
    pub name: String,
    /// The bytes in it.
    pub bytes: u64,
}

/// All of it, by name. What goes meanwhile is left out.
///
/// # Errors
/// The operating system's error.
pub fn all_set_aside(layout: &Layout) -> io::Result<Vec<SetAside>> {
    let mut all = Vec::new();
    for name in names(layout.root())?.into_iter().filter(|name| Layout::is_aside(name)) {
        all.push(SetAside { bytes: size(&layout.root().join(&name))?, name });
    }
    for folder in [layout.all_diverged(), layout.damaged()] {
        let shown = folder.file_name().map(|name| name.to_string_lossy().into_owned());
        for (name, shown) in names(&folder)?.into_iter().zip(std::iter::repeat(shown)) {
            let bytes = size(&folder.join(&name))?;
            all.push(SetAside { name: format!("{}/{name}", shown.unwrap_or_default()), bytes });
        }
    }
    for name in names(layout.wal())?.into_iter().filter(|name| Layout::is_stray(name)) {
        let bytes = size(&layout.wal().join(&name))?;
        all.push(SetAside { name: format!("pg_wal/{name}"), bytes });
    }
    all.sort();
    Ok(all)
}

/// The names in a directory; none when it is not there.
fn names(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.collect()
}

/// The bytes of a file, or of all files below a directory.
fn size(path: &Path) -> io::Result<u64> {
    let meta = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        meta => meta?,
    };
    if !meta.is_dir() {
        return Ok(meta.len());
    }
    let mut sum: u64 = 0;
    for name in names(path)? {
        sum = sum.saturating_add(size(&path.join(name))?);
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_was_set_aside_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path());
        assert_eq!(all_set_aside(&layout).unwrap(), []);
        let put = |name: &str, bytes: usize| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, vec![7; bytes]).unwrap();
        };
        put("pg_wal/000000010000000000000005", 1000);
        put("pg_wal/000000010000000000000006.partial.stray", 6);
        put("pg_wal.aside.2/archive_status/x", 1);
        put("pg_wal.aside.2/000000010000000000000001", 20);
        put("diverged/1-0_5000060/000000010000000000000005", 300);
        put("diverged/1-0_5000060/000000010000000000000006", 300);
        put("diverged/2-0_7000060/000000020000000000000007", 5);
        put("damaged/000000010000000000000003", 4);
        put("pg_wal.asides", 1000);
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
    }
}
