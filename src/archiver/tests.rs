//! The archiver over real files and shell commands.

use super::*;
use crate::store::directory::Directory;
use crate::wal::{Lsn, SegmentName, SegmentNo, SegmentSize, TimelineId};
use std::time::Instant;

/// A hub's directory, and a folder that commands archive to.
struct World {
    folder: tempfile::TempDir,
    layout: Layout,
    holds: Arc<Holds>,
}

fn segment(no: u64) -> ArchiveFile {
    let size = SegmentSize::new(1 << 20).unwrap();
    ArchiveFile::Segment(SegmentName { tli: TimelineId::FIRST, no: SegmentNo::new(no), size })
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let layout = Directory::open(&folder.path().join("hub")).unwrap().layout().clone();
        std::fs::create_dir(layout.archive_status()).unwrap();
        std::fs::create_dir(folder.path().join("to")).unwrap();
        let holds = Arc::new(Holds::new(Lsn::INVALID));
        holds.backlog.use_size(SegmentSize::new(1 << 20).unwrap());
        Self { folder, layout, holds }
    }

    /// Adds a file that waits, whose content is its own name.
    fn add(&self, file: ArchiveFile) {
        std::fs::write(self.layout.archived(file), file.to_string()).unwrap();
        std::fs::write(self.layout.mark(file, Mark::Ready), "").unwrap();
        self.holds.backlog.add(file);
    }

    fn start(&self, command: &str) -> Archiver {
        let command = command.replace("TO", &self.to("").display().to_string());
        let command = Template::parse(&command, &['f', 'p']).unwrap();
        start(command, self.layout.clone(), Arc::clone(&self.holds)).unwrap()
    }

    fn to(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join("to").join(name)
    }

    #[track_caller]
    fn wait(&self, what: impl Fn() -> bool) {
        let limit = Instant::now() + Duration::from_secs(30);
        while !what() {
            assert!(Instant::now() < limit, "it did not happen");
            std::thread::yield_now();
        }
    }

    fn wait_for_all(&self) {
        self.wait(|| self.holds.backlog.is_empty());
    }
}

#[test]
fn histories_then_segments_by_name_from_the_hubs_directory() {
    let world = World::new();
    let history = ArchiveFile::History(TimelineId::new(2).unwrap());
    for file in [segment(8), segment(7), history] {
        world.add(file);
    }
    let archiver = world.start("cp %p TO/%f && echo %p %f 100%% >> TO/order");
    world.wait_for_all();
    world.add(segment(9));
    world.wait_for_all();
    archiver.finish();
    let lines: String = [history, segment(7), segment(8), segment(9)]
        .map(|file| format!("pg_wal/{file} {file} 100%\n"))
        .concat();
    assert_eq!(std::fs::read_to_string(world.to("order")).unwrap(), lines);
    for file in [history, segment(9)] {
        let copy = std::fs::read_to_string(world.to(&file.to_string())).unwrap();
        assert_eq!(copy, file.to_string());
        assert!(world.layout.mark(file, Mark::Done).exists());
        assert!(!world.layout.mark(file, Mark::Ready).exists());
    }
    let status = world.holds.backlog.status();
    assert_eq!((status.archived_count, status.failed_count, status.next), (4, 0, None));
    assert_eq!(status.last_archived.unwrap().file, segment(9));
}

#[test]
fn a_command_that_fails_is_tried_again_and_loses_nothing() {
    let world = World::new();
    world.add(segment(7));
    let archiver = world.start("echo %f >> TO/tried; test -e TO/on && cp %p TO/%f");
    let tried = || std::fs::read_to_string(world.to("tried")).unwrap_or_default();
    world.wait(|| world.holds.backlog.status().failed_count == 3);
    // From now on nothing is tried for a minute, unless another file comes.
    std::fs::write(world.to("on"), "").unwrap();
    world.add(segment(8));
    world.wait_for_all();
    archiver.finish();
    let (seven, eight) = (segment(7), segment(8));
    assert_eq!(tried(), format!("{seven}\n{seven}\n{seven}\n{seven}\n{eight}\n"));
    let status = world.holds.backlog.status();
    assert_eq!(status.last_failed.unwrap().file, seven);
    assert_eq!((status.archived_count, status.failed_count), (2, 3));
}

/// PostgreSQL's archiver ends then; nothing is tried until it would be back.
#[test]
fn a_broken_command_is_left_alone_for_a_while() {
    let world = World::new();
    world.add(segment(7));
    let archiver = world.start("echo %f >> TO/tried; kill -9 $$");
    world.wait(|| world.holds.backlog.status().failed_count == 1);
    world.add(segment(8));
    std::thread::sleep(Duration::from_millis(300));
    archiver.finish();
    let tried = std::fs::read_to_string(world.to("tried")).unwrap();
    assert_eq!(tried.lines().count(), 1);
    assert_eq!(world.holds.backlog.len(), 2);
}

#[test]
fn marks_made_by_hand_and_files_that_have_gone() {
    let world = World::new();
    for no in 7..11 {
        world.add(segment(no));
    }
    let [skipped, gone, unmarked, usual] = [7, 8, 9, 10].map(segment);
    let mark = |file, mark| world.layout.mark(file, mark);
    std::fs::rename(mark(skipped, Mark::Ready), mark(skipped, Mark::Done)).unwrap();
    std::fs::remove_file(world.layout.archived(gone)).unwrap();
    std::fs::remove_file(mark(unmarked, Mark::Ready)).unwrap();
    let archiver = world.start("cp %p TO/%f");
    world.wait_for_all();
    archiver.finish();
    for (file, archived) in [(skipped, false), (gone, false), (unmarked, true), (usual, true)] {
        assert_eq!(world.to(&file.to_string()).exists(), archived, "{file}");
    }
    assert!(mark(unmarked, Mark::Done).exists());
    assert_eq!(world.holds.backlog.status().archived_count, 2);
}

/// A command gets time to end by itself, but no more than that.
#[test]
fn the_end_of_the_hub_waits_for_a_command_but_not_for_long() {
    let world = World::new();
    world.add(segment(7));
    world.add(segment(8));
    let archiver = world.start("echo > TO/began; sleep 0.5; cp %p TO/%f");
    world.wait(|| world.to("began").exists());
    archiver.finish();
    assert!(world.layout.mark(segment(7), Mark::Done).exists());
    assert!(world.layout.mark(segment(8), Mark::Ready).exists(), "nothing more is begun");

    let world = World::new();
    world.add(segment(7));
    let archiver = world.start("echo > TO/began; sleep 1000");
    world.wait(|| world.to("began").exists());
    let begun = Instant::now();
    archiver.finish();
    let took = begun.elapsed();
    assert!(took >= PATIENCE && took < PATIENCE * 2, "it took {took:?}");
    assert!(world.layout.mark(segment(7), Mark::Ready).exists());
}
