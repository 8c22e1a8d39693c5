//! Segment files compared byte for byte, and the end of WAL as pg_waldump sees it.

use crate::programs::Programs;
use crate::scene::Scene;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use walhub::wal::lsn::Lsn;

/// Names of the complete segments in a folder, in order.
pub(crate) fn complete_segments(folder: &Path) -> Vec<String> {
    let is_segment =
        |name: &String| name.len() == 24 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(is_segment)
        .collect();
    names.sort();
    names
}

/// Flips a bit; returns what mends it.
pub(crate) fn flip(path: &Path, at: u64) -> impl FnOnce() + use<> {
    let (path, good) = (path.to_owned(), fs::read(path).unwrap());
    let mut bad = good.clone();
    bad[usize::try_from(at).unwrap()] ^= 1;
    fs::write(&path, bad).unwrap();
    move || fs::write(path, good).unwrap()
}

/// Every complete segment of `copy` is the primary's, and there are at least so many. One that a
/// running hub removes meanwhile does not count.
pub(crate) fn assert_identical(copy: &Path, original: &Path, at_least: usize) {
    let names = complete_segments(copy);
    let mut compared = 0;
    for name in &names {
        let (copied, meant) = (copy.join(name), original.join(name));
        let bytes = match fs::read(&copied) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            bytes => bytes.unwrap(),
        };
        if let Some(at) = first_difference(&bytes, &fs::read(&meant).unwrap()) {
            panic!("{} differs from {} at byte {at}", copied.display(), meant.display());
        }
        compared += 1;
    }
    assert!(
        compared >= at_least,
        "{} holds only {compared} complete segments: {names:?}",
        copy.display()
    );
    assert_no_hole(&names);
}

/// Segments of one timeline follow each other.
fn assert_no_hole(names: &[String]) {
    for pair in names.windows(2) {
        let [earlier, later] = pair else { continue };
        if earlier[..8] == later[..8] {
            // Only the last part counts within 4 GiB, which no test leaves.
            let number = |name: &String| u32::from_str_radix(&name[16..], 16).unwrap();
            assert_eq!(number(earlier) + 1, number(later), "a hole between {earlier} and {later}");
        }
    }
}

fn first_difference(left: &[u8], right: &[u8]) -> Option<usize> {
    if left.len() != right.len() {
        return Some(left.len().min(right.len()));
    }
    left.iter().zip(right).position(|(left, right)| left != right)
}

/// The start of the last complete record in a hub's pg_wal, as pg_waldump sees it; none
/// when there is no pg_waldump of this major.
pub(crate) fn last_record_by_waldump(
    scene: &Scene,
    programs: &Programs,
    pg_wal: &Path,
) -> Option<Lsn> {
    let mut waldump = programs.waldump()?;
    // pg_waldump wants final names: a view of the folder where the open segment has one.
    let view = scene.folder("waldump", programs.account());
    for entry in fs::read_dir(pg_wal).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let named = name.strip_suffix(".partial").unwrap_or(&name);
        if named.len() == 24 {
            fs::copy(pg_wal.join(&name), view.join(named)).unwrap();
        }
    }
    let names = complete_segments(&view);
    for name in &names {
        let path = view.join(name);
        if let Some(account) = programs.account() {
            std::os::unix::fs::chown(&path, Some(account.uid), Some(account.gid)).unwrap();
        }
    }
    // A few segments before the end suffice.
    let first = names.get(names.len().saturating_sub(3))?;
    let output = waldump.arg("-p").arg(&view).arg(first).arg(names.last()?).output().unwrap();
    fs::remove_dir_all(&view).unwrap();
    let records = String::from_utf8_lossy(&output.stdout);
    let last = records.lines().rev().find_map(|line| line.split_once("lsn: "));
    let said = || String::from_utf8_lossy(&output.stderr).into_owned();
    let (_, last) = last.unwrap_or_else(|| panic!("no record in {names:?}: {}", said()));
    Some(last.split_once(',').unwrap().0.parse().unwrap())
}
