//! Scrubs of directories of synthetic WAL.

use super::*;
use crate::archive::template::Template;
use crate::cluster::identity::Identity;
use crate::config::Config;
use crate::follow::{CopyPart, copies};
use crate::hub::course::Upstream;
use crate::hub::tests::hub;
use crate::keeper::{Keeper, LaneQueue, Orders, queue, serve};
use crate::store::control_file::Cluster;
use crate::store::digest::{self, hash_file};
use crate::store::directory::Directory;
use crate::store::disk::run_ready;
use crate::store::layout::{ArchiveFile, Listing};
use crate::store::plain_disk::PlainDisk;
use crate::store::scrub::{ScrubBoard, ScrubNote};
use crate::wal::synth::Synth;
use crate::wal::{Lsn, SegmentContents, SegmentNo, SystemId, TimelineId};
use crate::watermark::Cell;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;

const MIB: u64 = 1 << 20;
const FIRST: u64 = 5;
const SYSTEM: SystemId = SystemId::new(77);

fn name(no: u64) -> SegmentName {
    let size = SegmentSize::new(MIB).unwrap();
    SegmentName { tli: TimelineId::FIRST, no: SegmentNo::new(no), size }
}

struct World {
    _folder: tempfile::TempDir,
    layout: Layout,
    scrub: Scrub,
    orders: Orders,
    segments: u64,
}

impl World {
    /// A hub with so many complete segments, and an open one.
    fn new(segments: u64) -> Self {
        Self::of(segments, hub("15.18"))
    }

    fn of(segments: u64, hub: Hub) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let layout = Directory::open(&folder.path().join("hub")).unwrap().layout().clone();
        let (size, start) = (name(FIRST).size, Lsn::new(FIRST * MIB));
        let mut synth = Synth::new(SYSTEM, size, TimelineId::FIRST, 0xD110, start);
        while synth.position() < Lsn::new((FIRST + segments) * MIB + MIB / 3) {
            // Its length is a multiple of eight: no byte of it is padding.
            synth.record(&[7; 4003]);
        }
        let end = synth.position();
        let mut wal = synth.take_bytes().1;
        wal.resize(((segments + 1) * MIB) as usize, 0);
        for (no, bytes) in (FIRST..).zip(wal.chunks(MIB as usize)) {
            let path = match no == FIRST + segments {
                true => layout.partial(name(no)),
                false => layout.segment(name(no)),
            };
            std::fs::write(path, bytes).unwrap();
        }
        let hub = Arc::new(hub);
        let identity = hub.identity().unwrap();
        hub.set_identity(Arc::new(Identity {
            system_id: SYSTEM,
            segment_size: size,
            ..Identity::clone(&identity)
        }));
        hub.set_cells(vec![Arc::new(Cell::new(TimelineId::FIRST, start, end))]);
        let (keeper, orders) = queue(1024);
        let settings = ScrubSettings { interval: Duration::ZERO, rate: 1 << 40 };
        let repairer = Repairer {
            hub: Arc::clone(&hub),
            command: None,
            // Nobody answers.
            upstreams: copies().0,
            layout: layout.clone(),
            keeper: keeper.clone(),
            rate: settings.rate,
            stop: Arc::default(),
        };
        let scrub = Scrub { settings, layout: layout.clone(), hub, keeper, repairer };
        Self { _folder: folder, layout, scrub, orders, segments }
    }

    fn all(&self) -> std::ops::Range<u64> {
        FIRST..FIRST + self.segments
    }

    fn digest(&self, no: u64) {
        let file = File::open(self.layout.segment(name(no))).unwrap();
        let blocks = hash_file(&file, name(no), |_| Ok(())).unwrap();
        let mut digest = blocks.of_segment(SYSTEM, name(no), None).unwrap();
        digest.contents = Some(SegmentContents::default());
        run_ready(digest::store(&PlainDisk, &self.layout, &digest)).unwrap().unwrap();
    }

    /// Scrubs. Returns what is damaged then, and which segments are to get a digest.
    fn scrub(&mut self) -> (Vec<u64>, Vec<u64>) {
        assert!(self.scrub.read_all(None).is_ok());
        let note = self.scrub.hub.holds.scrub.note();
        assert_eq!(note.last.unwrap().segments, self.segments);
        let damaged = note.damage().iter().map(|damage| damage.name.no.raw()).collect();
        let mut digests = Vec::new();
        let next = |lane: &mut LaneQueue| lane.take().map(|order| order.job);
        while let Some(job) = next(&mut self.orders.patient) {
            let Job::Digest { no, .. } = job else { panic!("{job:?}") };
            digests.push(no.raw());
        }
        while let Some(job) = next(&mut self.orders.urgent) {
            assert!(matches!(job, Job::SaveNote { note: Note::Scrub, .. }), "{job:?}");
        }
        (damaged, digests)
    }
}

fn flip(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

#[test]
fn what_is_whole_and_has_no_digest_gets_one() {
    let mut world = World::new(4);
    assert_eq!(world.scrub(), (vec![], world.all().collect()));
    for no in world.all() {
        world.digest(no);
    }
    assert_eq!(world.scrub(), (vec![], vec![]));
}

#[test]
fn a_bit_in_each_of_fifty_segments_is_found_and_named() {
    let mut world = World::new(50);
    for no in world.all() {
        world.digest(no);
        // The third is padding of the first page's header, which has no checksum.
        let at = [MIB / 2 + 100 * no, MIB - 8, 20][(no % 3) as usize];
        flip(&world.layout.segment(name(no)), at);
    }
    assert_eq!(world.scrub(), (world.all().collect(), vec![]));
    let damage = world.scrub.hub.holds.scrub.damage(TimelineId::FIRST, SegmentNo::new(FIRST));
    let damage = damage.unwrap();
    assert_eq!(damage.from, Lsn::new(FIRST * MIB));
    assert!(damage.what.contains("is not what it was"), "{}", damage.what);
    // Somebody put the right files in their places, and one has gone.
    std::fs::remove_file(world.layout.segment(name(FIRST))).unwrap();
    for no in world.all().skip(1) {
        let at = [MIB / 2 + 100 * no, MIB - 8, 20][(no % 3) as usize];
        flip(&world.layout.segment(name(no)), at);
    }
    world.segments -= 1;
    assert_eq!(world.scrub(), (vec![], vec![]));
}

#[test]
fn without_digests_records_say_what_is_damaged() {
    let mut world = World::new(5);
    flip(&world.layout.segment(name(FIRST + 1)), MIB / 2);
    // In the record that both share.
    flip(&world.layout.segment(name(FIRST + 3)), MIB - 8);
    let digests = vec![FIRST, FIRST + 2, FIRST + 4];
    assert_eq!(world.scrub(), (vec![FIRST + 1, FIRST + 3], digests));
    let board = &world.scrub.hub.holds.scrub;
    let shared = board.damage(TimelineId::FIRST, SegmentNo::new(FIRST + 3)).unwrap();
    let parts = format!("parts in {} to {}", name(FIRST + 3), name(FIRST + 4));
    assert!(shared.what.ends_with(&parts), "{}", shared.what);
    assert!(shared.from > Lsn::new((FIRST + 4) * MIB - 8192), "{}", shared.from);
    std::fs::write(world.layout.segment(name(FIRST)), "short").unwrap();
    assert_eq!(world.scrub().0, [FIRST + 1, FIRST + 3, FIRST]);
}

#[test]
fn a_stop_ends_a_scrub_between_two_reads() {
    let world = World::new(4);
    let slow = ScrubSettings { interval: Duration::ZERO, rate: 1 << 20 };
    let World { layout, scrub: Scrub { hub, keeper, .. }, _folder, .. } = world;
    hub.holds.scrub.ask(None);
    let running = start(slow, layout, Arc::clone(&hub), keeper, copies().0).unwrap();
    while hub.holds.scrub.under_way().is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let begun = Instant::now();
    running.finish(begun + Duration::from_secs(60));
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    let note = hub.holds.scrub.note();
    assert_eq!((note.last, hub.holds.scrub.under_way()), (None, None));
    assert!(note.unfinished().is_some(), "the next one goes on there");
}

/// In the order of the names, without what it had read before.
#[test]
fn a_scrub_that_was_cut_short_goes_on_where_it_was() {
    let mut world = World::new(5);
    for no in world.all() {
        world.digest(no);
    }
    for no in [FIRST, FIRST + 3] {
        flip(&world.layout.segment(name(no)), MIB / 2);
    }
    let board = Arc::clone(&world.scrub.hub);
    let board = &board.holds.scrub;
    board.begin(ScrubProgress { done: 2, segments: 5 });
    board.come_to(name(FIRST + 2));
    board.end(None);
    let written = board.note().encode();
    board.resume(ScrubNote::decode(&written).unwrap());
    assert_eq!(world.scrub.first_due(), Some(OVERDUE), "although no interval is set");
    assert!(world.scrub.read_all(board.note().unfinished()).is_ok());
    let damaged = |board: &ScrubBoard| -> Vec<u64> {
        board.note().damage().iter().map(|damage| damage.name.no.raw()).collect()
    };
    assert_eq!(damaged(board), [FIRST + 3]);
    assert_eq!((board.note().last.unwrap().segments, board.note().unfinished()), (5, None));
    // One that is asked for reads all.
    assert!(world.scrub.read_all(None).is_ok());
    assert_eq!(damaged(board), [FIRST + 3, FIRST]);
    world.orders = queue(1).1;
}

#[test]
fn when_the_first_scrub_is_due() {
    let mut world = World::new(1);
    assert_eq!(world.scrub.first_due(), None);
    let day = Duration::from_secs(24 * 3600);
    world.scrub.settings.interval = 7 * day;
    assert_eq!(world.scrub.first_due(), Some(FIRST_SCRUB));
    for (age, due) in [(day, 6 * day), (8 * day, OVERDUE)] {
        let ended = SystemTime::now() - age;
        world.scrub.hub.holds.scrub.end(Some(LastScrub { ended, segments: 1 }));
        let found = world.scrub.first_due().unwrap();
        assert!(found <= due && found + Duration::from_secs(60) > due, "{found:?}");
    }
    let ended = SystemTime::now() + 100 * day;
    world.scrub.hub.holds.scrub.end(Some(LastScrub { ended, segments: 1 }));
    assert_eq!(world.scrub.first_due(), Some(7 * day));
}

/// Serves the orders until nobody gives any.
fn serve_orders(world: &mut World) -> std::thread::JoinHandle<()> {
    let orders = std::mem::replace(&mut world.orders, queue(1).1);
    let (layout, holds) = (world.layout.clone(), Arc::clone(&world.scrub.hub.holds));
    std::thread::spawn(move || {
        let names = std::fs::read_dir(layout.wal()).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        let cluster = Cluster {
            system_id: SYSTEM,
            segment_size: name(FIRST).size,
            data_directory_mode: "0700".to_owned(),
            parameters: Vec::new(),
            timeline: TimelineId::FIRST,
            start: Lsn::new(FIRST * MIB),
            sealed: Vec::new(),
        };
        let listing = Listing::of(names, cluster.segment_size);
        let keeper = Keeper::new(PlainDisk, layout, holds, &listing, None, Some(cluster));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(serve(&keeper, orders, None));
    })
}

/// A world with an archive that has what its segments have now.
fn archived(segments: u64) -> (World, std::thread::JoinHandle<()>) {
    archived_of(World::new(segments))
}

fn archived_of(mut world: World) -> (World, std::thread::JoinHandle<()>) {
    let archive = world.layout.root().join("../archive");
    std::fs::create_dir(&archive).unwrap();
    for no in world.all() {
        let file = world.layout.segment(name(no));
        std::fs::copy(file, archive.join(name(no).to_string())).unwrap();
    }
    let command = Template::parse("cp ../archive/%f %p 2>/dev/null", &['f', 'p', 'r']).unwrap();
    world.scrub.repairer.command = Some(RestoreCommand::new(command, world.layout.root()));
    let keeper = serve_orders(&mut world);
    (world, keeper)
}

fn in_archive(world: &World, no: u64) -> std::path::PathBuf {
    world.layout.root().join("../archive").join(name(no).to_string())
}

#[test]
fn a_bit_in_each_of_fifty_segments_is_repaired_from_the_archive() {
    let (mut world, keeper) = archived(50);
    for no in world.all() {
        // Without a digest, the records say what is damaged.
        let at = match no % 5 {
            0 => MIB / 2,
            _ => {
                world.digest(no);
                [MIB / 2 + 100 * no, MIB - 8, 20][(no % 3) as usize]
            }
        };
        flip(&world.layout.segment(name(no)), at);
    }
    assert_eq!(world.scrub().0, [0; 0]);
    for no in world.all() {
        let ours = std::fs::read(world.layout.segment(name(no))).unwrap();
        let good = std::fs::read(in_archive(&world, no)).unwrap();
        assert!(ours == good, "{no}");
        let kept = std::fs::read(world.layout.damaged().join(name(no).to_string())).unwrap();
        assert!(kept != good, "{no}");
    }
    drop(world);
    keeper.join().unwrap();
}

#[test]
fn what_the_archive_lacks_or_has_damaged_is_not_taken() {
    let (mut world, keeper) = archived(6);
    for no in world.all() {
        world.digest(no);
    }
    let damaged = [FIRST + 1, FIRST + 3, FIRST + 5];
    for no in damaged {
        flip(&world.layout.segment(name(no)), MIB / 2);
    }
    std::fs::remove_file(in_archive(&world, FIRST + 1)).unwrap();
    flip(&in_archive(&world, FIRST + 3), MIB / 3);
    flip(&in_archive(&world, FIRST + 5), MIB / 2);
    assert_eq!(world.scrub().0, damaged);
    assert!(!world.layout.damaged().exists());
    for no in world.all() {
        assert!(!world.layout.mending(name(no)).exists());
    }
    drop(world);
    keeper.join().unwrap();
}

/// The archive has our bytes, and all records are whole.
#[test]
fn a_digest_of_other_bytes_is_made_anew() {
    let (mut world, keeper) = archived(3);
    let path = world.layout.segment(name(FIRST + 1));
    flip(&path, 20);
    world.digest(FIRST + 1);
    flip(&path, 20);
    assert_eq!(world.scrub().0, [0; 0]);
    let file = File::open(&path).unwrap();
    let found = hash_file(&file, name(FIRST + 1), |_| Ok(())).unwrap();
    let compared = || digest::compare(&world.layout, name(FIRST + 1), &found).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !matches!(compared(), digest::DigestComparison::Same(_)) {
        assert!(Instant::now() < deadline, "{:?}", compared());
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(!world.layout.damaged().exists());
    drop(world);
    keeper.join().unwrap();
}

/// Has a world's upstreams answer for each host of theirs and a segment's number. Nothing is in the
/// archive.
fn upstreams(
    world: &mut World,
    answer: impl Fn(usize, u64) -> Vec<CopyPart> + Send + 'static,
) -> std::thread::JoinHandle<()> {
    for no in world.all() {
        std::fs::remove_file(in_archive(world, no)).unwrap();
    }
    let upstream = Upstream::parse("host=first,second user=me").unwrap();
    world.scrub.hub.course.set_upstream(Some(Arc::new(upstream)));
    world.scrub.hub.course.follow_proved("first:5432");
    let (client, requests) = copies();
    world.scrub.repairer.upstreams = client;
    std::thread::spawn(move || requests.answer_with(|host, name| answer(host, name.no.raw())))
}

/// What the world has, as an upstream sends it.
fn sent(world: &World) -> BTreeMap<u64, Vec<u8>> {
    world.all().map(|no| (no, std::fs::read(world.layout.segment(name(no))).unwrap())).collect()
}

fn in_pieces(wal: &[u8]) -> Vec<CopyPart> {
    let pieces = wal.chunks(100_000).map(|piece| CopyPart::Wal(piece.to_vec()));
    pieces.chain([CopyPart::End]).collect()
}

/// The archive has none of them.
#[test]
fn a_bit_in_each_of_fifty_segments_is_repaired_from_an_upstream() {
    let (mut world, keeper) = archived(50);
    let good = sent(&world);
    let theirs = good.clone();
    let answering = upstreams(&mut world, move |host, no| match host {
        0 => in_pieces(&theirs[&no]),
        _ => panic!("nobody asks for a second copy"),
    });
    for no in world.all() {
        // Without a digest, the records say what is damaged.
        let at = match no % 5 {
            0 => MIB / 2,
            _ => {
                world.digest(no);
                [MIB / 2 + 100 * no, MIB - 8, 20][(no % 3) as usize]
            }
        };
        flip(&world.layout.segment(name(no)), at);
    }
    assert_eq!(world.scrub().0, [0; 0]);
    for no in world.all() {
        let ours = std::fs::read(world.layout.segment(name(no))).unwrap();
        assert!(ours == good[&no], "{no}");
        let kept = std::fs::read(world.layout.damaged().join(name(no).to_string())).unwrap();
        assert!(kept != good[&no], "{no}");
        assert!(!world.layout.mending(name(no)).exists());
    }
    drop(world);
    keeper.join().unwrap();
    answering.join().unwrap();
}

/// Records of another history are whole, too.
#[test]
fn without_a_digest_an_upstream_counts_that_is_followed() {
    let (mut world, keeper) = archived(6);
    let theirs = sent(&world);
    let answering = upstreams(&mut world, move |_, no| in_pieces(&theirs[&no]));
    world.scrub.hub.course.follow_proved("third:5432");
    world.digest(FIRST + 1);
    for no in [FIRST + 1, FIRST + 3, FIRST + 5] {
        flip(&world.layout.segment(name(no)), MIB / 2);
    }
    assert_eq!(world.scrub().0, [FIRST + 3, FIRST + 5]);
    world.scrub.hub.course.follow_proved("second:5432");
    assert_eq!(world.scrub().0, [0; 0]);
    drop(world);
    keeper.join().unwrap();
    answering.join().unwrap();
}

#[test]
fn an_upstream_that_does_not_answer_or_has_other_bytes_repairs_nothing() {
    let (mut world, keeper) = archived(6);
    for no in world.all().filter(|no| *no != FIRST + 1) {
        world.digest(no);
    }
    let theirs = sent(&world);
    let asked = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&asked);
    let answering = upstreams(&mut world, move |host, no| {
        noted.lock().unwrap().push((host, no));
        if host == 0 {
            return vec![CopyPart::Unreachable("nobody is there".to_owned())];
        }
        let mut wal = theirs[&no].clone();
        match no - FIRST {
            // Damaged itself, with a digest of ours and without one.
            0 | 1 => wal[MIB as usize / 3] ^= 1,
            2 => return in_pieces(&wal[..MIB as usize / 2]),
            3 => {
                let refused = CopyPart::Refused("it was removed".to_owned());
                return vec![CopyPart::Wal(wal[..1000].to_vec()), refused];
            }
            _ => {}
        }
        in_pieces(&wal)
    });
    for no in world.all() {
        flip(&world.layout.segment(name(no)), MIB / 2);
    }
    let damaged: Vec<_> = (FIRST..FIRST + 4).collect();
    assert_eq!(world.scrub().0, damaged);
    let asked = asked.lock().unwrap().clone();
    let first = asked.iter().filter(|(host, _)| *host == 0).count();
    assert_eq!(first, 1, "who does not answer is asked once: {asked:?}");
    for no in world.all() {
        assert!(!world.layout.mending(name(no)).exists());
        let kept = world.layout.damaged().join(name(no).to_string());
        assert_eq!(kept.exists(), no >= FIRST + 4, "{no}");
    }
    drop(world);
    keeper.join().unwrap();
    answering.join().unwrap();
}

/// A hub that archives.
fn archiving() -> Hub {
    let mut hub = hub("15.18");
    let archive_command = Some(Template::parse("false %f %p", &['f', 'p']).unwrap());
    hub.config = Arc::new(Config { archive_command, ..Config::clone(&hub.config) });
    hub
}

#[test]
fn what_was_archived_before_it_was_mended_is_said_until_the_archive_has_it() {
    let (mut world, keeper) = archived_of(World::of(5, archiving()));
    let board = Arc::clone(&world.scrub.hub);
    let stale = || -> Vec<u64> {
        board.holds.scrub.note().stale().iter().map(|name| name.no.raw()).collect()
    };
    // The archive's copies are damaged as ours were, but for one, and one is not there. The last
    // waits behind another.
    for no in [FIRST, FIRST + 1, FIRST + 4] {
        flip(&in_archive(&world, no), MIB / 2);
    }
    std::fs::remove_file(in_archive(&world, FIRST + 3)).unwrap();
    for no in [FIRST + 2, FIRST + 4] {
        board.holds.backlog.add(ArchiveFile::Segment(name(no)));
    }
    for no in [FIRST + 1, FIRST + 2, FIRST + 3, FIRST + 4] {
        let mut looker = world.scrub.looker();
        let looked = world.scrub.look_again(&mut looker, name(no), &mut UnreachableHosts::new());
        assert!(looked.is_ok());
    }
    assert_eq!(stale(), [FIRST + 1, FIRST + 3]);
    // They are said after a restart, too.
    let note = board.holds.scrub.note();
    assert_eq!(ScrubNote::decode(&note.encode()), Ok(note));
    flip(&in_archive(&world, FIRST + 1), MIB / 2);
    world.scrub();
    assert_eq!(stale(), [FIRST + 3]);
    std::fs::copy(world.layout.segment(name(FIRST + 3)), in_archive(&world, FIRST + 3)).unwrap();
    world.scrub();
    assert_eq!(stale(), [0; 0]);
    drop(board);
    drop(world);
    keeper.join().unwrap();
}

/// Without waiting for the next scrub, and with an archive of its own only after that.
#[test]
fn a_segment_that_was_mended_in_place_is_looked_at_next() {
    let mut world = World::new(4);
    flip(&world.layout.segment(name(FIRST + 2)), MIB / 2);
    let (layout, settings) = (world.layout.clone(), world.scrub.settings.clone());
    let (hub, keeper) = (Arc::clone(&world.scrub.hub), world.scrub.keeper.clone());
    let running = start(settings, layout, Arc::clone(&hub), keeper, copies().0).unwrap();
    hub.holds.scrub.rewritten(name(FIRST + 1));
    hub.holds.scrub.rewritten(name(FIRST + 2));
    let deadline = Instant::now() + Duration::from_secs(60);
    let no = name(FIRST + 2).no;
    while hub.holds.scrub.damage(TimelineId::FIRST, no).is_none() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(1));
    }
    running.finish(deadline);
    let order = world.orders.patient.take().unwrap();
    assert!(matches!(order.job, Job::Digest { no, .. } if no == name(FIRST + 1).no));
    assert_eq!(hub.holds.scrub.note().last, None, "it is no scrub of all");
}
