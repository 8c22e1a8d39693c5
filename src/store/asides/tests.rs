//! What is seen of what was set aside, and which files may go.

use super::*;
use crate::store::layout::Layout;
use std::os::unix::fs::symlink;
use std::time::UNIX_EPOCH;

fn put(layout: &Layout, name: &str, bytes: usize) {
    let path = layout.root().join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, vec![7; bytes]).unwrap();
}

fn seen(layout: &Layout) -> Vec<Aside> {
    all_set_aside(layout, &Confirmations::default()).unwrap()
}

fn files(layout: &Layout, name: &str) -> Vec<AsideFile> {
    let mut walk = Some(AsideWalk::over_one(layout, name));
    let mut files = Vec::new();
    while let Some(open) = walk.take() {
        let (rest, seen) = open.step(1).unwrap();
        walk = rest;
        files.extend(seen.into_iter().filter_map(|seen| match seen.kind {
            SeenKind::File { bytes, mark } => {
                Some(AsideFile { aside: seen.aside, path: seen.path, bytes, mark })
            }
            _ => None,
        }));
    }
    files.sort_by(|one, other| one.path.cmp(&other.path));
    files
}

#[test]
fn everything_that_was_set_aside_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let layout = Layout::new(folder.path());
    assert_eq!(seen(&layout), []);
    put(&layout, "pg_wal/000000010000000000000005", 1000);
    put(&layout, "pg_wal/000000010000000000000006.partial.stray", 6);
    put(&layout, "pg_wal.aside.2/archive_status/x", 1);
    put(&layout, "pg_wal.aside.2/000000010000000000000001", 20);
    put(&layout, "diverged/1-0_5000060/000000010000000000000005", 300);
    put(&layout, "diverged/1-0_5000060/000000010000000000000006", 300);
    put(&layout, "diverged/2-0_7000060/000000020000000000000007", 5);
    put(&layout, "damaged/000000010000000000000003", 4);
    put(&layout, "pg_wal.asides", 1000);
    let found = seen(&layout);
    let found: Vec<_> =
        found.iter().map(|one| (one.name.as_str(), one.bytes, one.files.len())).collect();
    assert_eq!(
        found,
        [
            ("damaged/000000010000000000000003", 4, 1),
            ("diverged/1-0_5000060", 600, 2),
            ("diverged/2-0_7000060", 5, 1),
            ("pg_wal.aside.2", 21, 2),
            ("pg_wal/000000010000000000000006.partial.stray", 6, 1),
        ]
    );
    assert_eq!(files(&layout, "diverged/3-0_9"), []);
    let one: Vec<_> = files(&layout, "pg_wal.aside.2").into_iter().map(|file| file.mark).collect();
    let mut all = seen(&layout).into_iter().find(|one| one.name == "pg_wal.aside.2").unwrap().files;
    all.sort_unstable_by_key(|mark| one.iter().position(|other| other == mark));
    assert_eq!(one, all);
}

#[test]
fn a_step_looks_at_so_many_names() {
    let folder = tempfile::tempdir().unwrap();
    let layout = Layout::new(folder.path());
    for no in 0..100 {
        put(&layout, &format!("diverged/1-0_5/{no}"), 1);
    }
    let mut look = AsideLook::begin(&layout);
    let mut steps = 0;
    while let Some(walk) = look.walk.take() {
        let (rest, seen) = walk.step(10).unwrap();
        assert!(seen.len() <= 10);
        look.walk = rest;
        look.take_in(seen, &Confirmations::default());
        steps += 1;
    }
    assert!(steps >= 10);
    assert_eq!(look.end()[0].bytes, 100);
}

#[test]
fn other_files_have_another_mark() {
    let folder = tempfile::tempdir().unwrap();
    let layout = Layout::new(folder.path());
    put(&layout, "diverged/1-0_5/5", 300);
    let marks = |name| files(&layout, name).into_iter().map(|file| file.mark).collect::<Vec<_>>();
    let one = marks("diverged/1-0_5");
    assert_eq!(marks("diverged/1-0_5"), one);
    put(&layout, "diverged/1-0_5/6", 300);
    let both = marks("diverged/1-0_5");
    assert_eq!(both[0], one[0], "another one beside it changes nothing");
    // Another file of the same name and length.
    std::fs::remove_file(layout.root().join("diverged/1-0_5/5")).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    put(&layout, "diverged/1-0_5/5", 300);
    assert_ne!(marks("diverged/1-0_5")[0], one[0]);
}

#[test]
fn only_the_file_that_was_seen_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let layout = Layout::new(folder.path());
    put(&layout, "diverged/1-0_5/5", 300);
    put(&layout, "diverged/1-0_5/6", 300);
    put(&layout, "pg_wal/000000010000000000000006.partial.stray", 6);
    let [five, six] = &files(&layout, "diverged/1-0_5")[..] else { panic!() };
    std::thread::sleep(Duration::from_millis(20));
    std::fs::write(layout.root().join(&six.path), vec![8; 300]).unwrap();
    assert_eq!(remove_file(&layout, five).unwrap(), FileRemoval::Gone);
    assert_eq!(remove_file(&layout, five).unwrap(), FileRemoval::Gone);
    assert_eq!(remove_file(&layout, six).unwrap(), FileRemoval::Changed);
    let whole = Path::new("diverged/1-0_5");
    assert_eq!(remove_folder(&layout, whole).unwrap(), FolderRemoval::Stays);
    std::fs::remove_file(layout.root().join(&six.path)).unwrap();
    assert_eq!(remove_folder(&layout, whole).unwrap(), FolderRemoval::Gone);
    let stray = "pg_wal/000000010000000000000006.partial.stray";
    let stray = files(&layout, stray).remove(0);
    assert_eq!(remove_file(&layout, &stray).unwrap(), FileRemoval::Gone);
    let outside = AsideFile { path: PathBuf::from("diverged/../x"), ..five.clone() };
    assert!(remove_file(&layout, &outside).is_err());
}

#[test]
fn a_link_is_never_followed() {
    let folder = tempfile::tempdir().unwrap();
    let (hub, other) = (folder.path().join("hub"), folder.path().join("other"));
    let layout = Layout::new(&hub);
    put(&layout, "diverged/1-0_5/inside/5", 300);
    put(&layout, "diverged/1-0_5/6", 300);
    let [six, five] = &files(&layout, "diverged/1-0_5")[..] else { panic!() };
    // The folder moves out, with the file as it was, and a link takes its place.
    let inside = layout.root().join("diverged/1-0_5/inside");
    std::fs::rename(&inside, &other).unwrap();
    symlink(&other, &inside).unwrap();
    let names: Vec<_> = files(&layout, "diverged/1-0_5").into_iter().map(|one| one.path).collect();
    assert_eq!(names, std::slice::from_ref(&six.path), "the walk does not go there");
    assert!(remove_file(&layout, five).is_err());
    assert!(remove_folder(&layout, Path::new("diverged/1-0_5/inside")).is_err());
    assert!(other.join("5").exists() && inside.is_symlink());
    // A link in the place of a file goes no way either.
    std::fs::rename(layout.root().join(&six.path), folder.path().join("6")).unwrap();
    symlink(folder.path().join("6"), layout.root().join(&six.path)).unwrap();
    assert_eq!(remove_file(&layout, six).unwrap(), FileRemoval::Changed);
    assert!(folder.path().join("6").exists());
    let whole = seen(&layout).remove(0);
    assert_eq!((whole.files.len(), whole.left_out), (0, 2), "nothing of it can be confirmed");
}

#[test]
fn what_is_confirmed_is_seen_on_what_was_set_aside() {
    let folder = tempfile::tempdir().unwrap();
    let layout = Layout::new(folder.path());
    put(&layout, "diverged/1-0_5/5", 300);
    symlink("nowhere", layout.root().join("diverged/1-0_5/link")).unwrap();
    let before = seen(&layout).remove(0);
    assert_eq!((before.confirmed, before.left_out), (None, 2));
    let mut confirmed = Confirmations::default();
    confirmed.confirm(&before.name, &before.files, UNIX_EPOCH).unwrap();
    confirmed.advance(Duration::from_secs(5));
    let after = all_set_aside(&layout, &confirmed).unwrap().remove(0);
    assert_eq!((after.confirmed, after.left_out), (Some(Duration::from_secs(5)), 1));
    let mut judged = before;
    judged.judge(&confirmed);
    assert_eq!(judged, after);
}
