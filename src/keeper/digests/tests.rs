//! Which segments have a digest, and for how long.

use super::*;
use crate::cluster::instance::InstanceId;
use crate::keeper::{Job, JobDone, ShownBy};
use crate::store::control_file::{Cluster, ControlFile};
use crate::store::digest::{DigestComparison, DigestFile, compare, hash_file, read};
use crate::store::directory::Directory;
use crate::store::disk::run_ready;
use crate::store::faulty_disk::{Failing, FaultyDisk};
use crate::store::layout::{Layout, Listing};
use crate::store::plain_disk::PlainDisk;
use crate::store::retention::{Holds, MIN_KEPT_SEGMENTS};
use crate::wal::record::RM_XLOG;
use crate::wal::synth::Synth;
use crate::wal::{Lsn, NextXid, SegmentNo, SegmentSize, Stamp, SystemId, TimelineId};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

const MIB: u64 = 1 << 20;
const TLI: TimelineId = TimelineId::FIRST;
const SYSTEM: SystemId = SystemId::new(7);

fn name(no: u64) -> SegmentName {
    SegmentName { tli: TLI, no: SegmentNo::new(no), size: SegmentSize::new(MIB).unwrap() }
}

/// A segment of WAL, with this byte in its records.
fn wal_of(no: u64, byte: u8) -> Vec<u8> {
    let mut synth = Synth::new(SYSTEM, name(no).size, TLI, 0xD110, Lsn::new(no * MIB));
    for _ in 0..11 {
        synth.record(&[byte; 100_000]);
    }
    let mut wal = synth.take_bytes().1;
    wal.truncate(MIB as usize);
    wal
}

struct World {
    _folder: tempfile::TempDir,
    layout: Layout,
    disk: FaultyDisk,
    keeper: Keeper<FaultyDisk>,
}

impl World {
    /// A keeper of an empty directory.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let layout = Directory::open(&folder.path().join("hub")).unwrap().layout().clone();
        let disk = FaultyDisk::default();
        let cluster = Cluster {
            system_id: SYSTEM,
            segment_size: name(5).size,
            data_directory_mode: "0700".into(),
            parameters: Vec::new(),
            timeline: TLI,
            start: Lsn::new(5 * MIB),
            sealed: Vec::new(),
        };
        let control = ControlFile { instance: InstanceId::new(5), cluster: Some(cluster.clone()) };
        std::fs::write(layout.control(), control.encode()).unwrap();
        let holds = Arc::new(Holds::new(Lsn::new(5 * MIB)));
        let listing = Listing::default();
        let (shown, of) = (layout.clone(), Some(cluster));
        let keeper = Keeper::new(disk.clone(), shown, holds, &listing, None, of);
        Self { _folder: folder, layout, disk, keeper }
    }

    fn run(&self, job: Job) -> JobDone {
        run_ready(self.keeper.run(job)).unwrap()
    }

    /// Writes a segment and completes it.
    fn complete(&self, no: u64, byte: u8) {
        self.complete_with(no, &wal_of(no, byte));
    }

    fn complete_with(&self, no: u64, bytes: &[u8]) {
        let keep = Lsn::new(no * MIB);
        let JobDone::Prepared { file, .. } =
            self.run(Job::Prepare { tli: TLI, no: SegmentNo::new(no), keep })
        else {
            panic!("not prepared")
        };
        let file = File::from(file.try_clone().unwrap());
        file.write_all_at(bytes, 0).unwrap();
        let done = self.run(Job::Finalize { tli: TLI, no: SegmentNo::new(no) });
        assert!(matches!(done, JobDone::Finalized { .. }), "{done:?}");
    }

    fn restore(&self, no: u64) {
        self.restore_as(no, 9, ShownBy::Records);
    }

    fn restore_as(&self, no: u64, byte: u8, shown: ShownBy) {
        std::fs::write(self.layout.restoring(&name(no).to_string()), wal_of(no, byte)).unwrap();
        let done = self.run(Job::Adopt { tli: TLI, no: SegmentNo::new(no), shown });
        assert!(matches!(done, JobDone::Adopted { result: Ok(_), .. }), "{done:?}");
    }

    /// Is its digest among those of removed segments?
    fn is_kept(&self, no: u64) -> bool {
        self.layout.removed_digest(name(no)).exists()
    }

    /// Does background work until there is none.
    fn tend(&self) {
        while run_ready(self.keeper.tend()).unwrap().unwrap() == Tended::More {}
    }

    fn digest(&self, no: u64) -> DigestFile {
        run_ready(read(&PlainDisk, &self.layout, name(no))).unwrap().unwrap()
    }

    fn known(&self, no: u64) -> SegmentDigest {
        let DigestFile::Known(digest) = self.digest(no) else { panic!("no digest of {no}") };
        *digest
    }

    /// Is there a digest, and is it of the bytes that are there?
    fn is_known(&self, no: u64) -> bool {
        let DigestFile::Known(digest) = self.digest(no) else { return false };
        assert_eq!(digest.system_id, SYSTEM);
        let file = File::open(self.layout.segment(name(no))).unwrap();
        let found = hash_file(&file, name(no), |_| Ok(())).unwrap();
        let compared = compare(&self.layout, name(no), &found).unwrap();
        assert!(matches!(compared, DigestComparison::Same(_)), "{compared:?}");
        true
    }
}

#[test]
fn a_segment_gets_a_digest_in_the_background() {
    let world = World::new();
    world.complete(5, 1);
    assert_eq!(world.digest(5), DigestFile::Missing, "nothing waits for it");
    world.tend();
    assert!(world.is_known(5));
    let DigestFile::Known(digest) = world.digest(5) else { panic!("no digest") };
    let age = digest.completed.unwrap().elapsed().unwrap();
    assert!(age.as_secs() < 60, "{age:?}");
    let names = run_ready(PlainDisk.list(world.layout.wal())).unwrap().unwrap();
    let listing = Listing::of(names, name(5).size);
    assert_eq!((listing.other, listing.temporary), (Vec::<String>::new(), Vec::new()));
    let digests = std::fs::read_dir(world.layout.digests()).unwrap();
    assert_eq!(digests.count(), 1);
}

#[test]
fn a_restored_segment_has_the_digest_that_it_had() {
    let world = World::new();
    for no in 5..8 {
        world.complete(no, no as u8);
    }
    world.tend();
    world.keeper.give_up_before(SegmentNo::new(6), name(5).size);
    world.tend();
    assert!(world.is_kept(5) && world.digest(5) == DigestFile::Missing);
    let reader = world.keeper.holds.hold_restorable(Lsn::new(4 * MIB + 5));
    // Nobody knows of one what was received.
    world.restore(4);
    world.run(Job::Digest { tli: TLI, no: SegmentNo::new(4) });
    world.restore_as(5, 5, ShownBy::Digest);
    world.tend();
    assert_eq!(world.digest(4), DigestFile::Missing);
    assert!(world.is_known(5) && !world.is_kept(5));
    drop(reader);
    world.run(Job::Retain { tli: TLI, newest: Lsn::new(8 * MIB) });
    world.tend();
    assert!(!world.layout.segment(name(5)).exists());
    assert!(world.is_kept(5) && !world.is_kept(4));
}

#[test]
fn the_newest_digests_of_removed_segments_are_kept() {
    let world = World::new();
    let last = 5 + MOST_REMOVED as u64 + 2;
    std::fs::create_dir_all(world.layout.removed_digests()).unwrap();
    for no in 5..=last {
        std::fs::write(world.layout.removed_digest(name(no)), "").unwrap();
    }
    world.tend();
    let kept: Vec<_> = (5..=last).filter(|no| world.is_kept(*no)).collect();
    assert_eq!((kept.len(), kept[0]), (MOST_REMOVED, 8));
    // One that goes now makes room for itself.
    world.complete(last + 1, 1);
    world.tend();
    world.keeper.give_up_before(SegmentNo::new(last + 2), name(5).size);
    world.tend();
    assert!(world.is_kept(last + 1) && !world.is_kept(8) && world.is_kept(9));
}

#[test]
fn the_digest_of_a_segment_that_is_removed_or_recycled_is_kept() {
    let world = World::new();
    let last = 5 + MIN_KEPT_SEGMENTS + 3;
    for no in 5..=last {
        world.complete(no, no as u8);
    }
    world.tend();
    world.run(Job::Retain { tli: TLI, newest: Lsn::new((last + 1) * MIB) });
    world.tend();
    let gone: Vec<_> = (5..=last).filter(|no| !world.layout.segment(name(*no)).exists()).collect();
    assert!(gone.len() >= 3, "{gone:?}");
    for no in 5..=last {
        assert_eq!(world.is_known(no), !gone.contains(&no), "{no}");
        assert_eq!(world.is_kept(no), gone.contains(&no), "{no}");
    }
}

/// Both would read other bytes under the old name.
#[test]
fn a_segment_that_goes_while_it_is_read_gets_none() {
    let world = World::new();
    world.complete(5, 1);
    world.complete(6, 2);
    while world.keeper.digests.under_way.borrow().is_none() {
        run_ready(world.keeper.tend()).unwrap().unwrap();
    }
    world.keeper.give_up_before(SegmentNo::new(6), name(5).size);
    world.tend();
    assert_eq!(world.digest(5), DigestFile::Missing);
    assert!(world.is_known(6));

    let world = World::new();
    world.complete(5, 1);
    while world.keeper.digests.under_way.borrow().is_none() {
        run_ready(world.keeper.tend()).unwrap().unwrap();
    }
    world.run(Job::SetAside(InstanceId::new(5)));
    world.tend();
    assert!(!world.layout.digests().exists());
}

#[test]
fn wal_that_is_moved_aside_keeps_its_digests() {
    let world = World::new();
    world.complete(5, 1);
    world.tend();
    world.run(Job::SetAside(InstanceId::new(5)));
    assert_eq!(world.digest(5), DigestFile::Missing);
    let aside = world.layout.aside(1).join("digests").join(format!("{}.digest", name(5)));
    assert!(aside.exists());
}

#[test]
fn a_name_that_is_used_again_has_no_digest_before_anything_is_written() {
    let world = World::new();
    world.complete(5, 1);
    world.tend();
    // Somebody took the file away, and its digest stayed.
    std::fs::remove_file(world.layout.segment(name(5))).unwrap();
    world.disk.take_synced_dirs();
    let (no, keep) = (SegmentNo::new(5), Lsn::new(5 * MIB));
    let done = world.run(Job::Prepare { tli: TLI, no, keep });
    assert!(matches!(done, JobDone::Prepared { .. }), "{done:?}");
    assert_eq!(world.digest(5), DigestFile::Missing);
    let synced = world.disk.take_synced_dirs();
    let (digests, wal) = (world.layout.digests(), world.layout.wal().to_owned());
    assert_eq!(synced, [digests, wal], "the digest first");
}

/// A digest that was removed a moment ago could come back after a loss of power.
#[test]
fn a_name_that_is_used_again_waits_for_the_removal_of_its_digest() {
    let world = World::new();
    world.complete(5, 1);
    world.complete(6, 2);
    world.tend();
    world.keeper.give_up_before(SegmentNo::new(6), name(5).size);
    world.tend();
    world.disk.take_synced_dirs();
    world.restore(5);
    let synced = world.disk.take_synced_dirs();
    let (digests, removed) = (world.layout.digests(), world.layout.removed_digests());
    assert!(synced.contains(&digests) && synced.contains(&removed), "{synced:?}");
    assert!(!world.is_kept(5));
    world.restore(4);
    assert!(!world.disk.take_synced_dirs().contains(&world.layout.digests()), "no need");
}

#[test]
fn without_space_there_is_no_digest_and_nothing_else_is_wrong() {
    let world = World::new();
    world.complete(5, 1);
    world.disk.fail(Failing::Writes, 28);
    world.tend();
    world.disk.heal();
    assert_eq!(world.digest(5), DigestFile::Missing);
    world.complete(6, 2);
    world.tend();
    assert!(world.is_known(6));
}

/// Three segments of WAL: a checkpoint of epoch 7 in the first, and commits in each.
fn wal() -> (Vec<u8>, Vec<Stamp>) {
    let mut synth = Synth::new(SYSTEM, name(5).size, TLI, 0xD110, Lsn::new(5 * MIB));
    let mut checkpoint = vec![255, 88];
    checkpoint.resize(90, 0);
    checkpoint[2 + 24..2 + 32].copy_from_slice(&((7_u64 << 32) | 100).to_le_bytes());
    // 2000-01-01.
    checkpoint[2 + 64..2 + 72].copy_from_slice(&946_684_800_u64.to_le_bytes());
    let mut stamps = vec![Stamp { at: synth.raw_record(RM_XLOG, 0x10, &checkpoint), time: 0 }];
    for n in 1..30 {
        let time = i64::from(n) * 1000;
        stamps.push(Stamp { at: synth.commit(100 + n, time), time });
        synth.record(&[7; 100_000]);
    }
    (synth.take_bytes().1, stamps)
}

fn complete_wal(world: &World) -> Vec<Stamp> {
    let (wal, stamps) = wal();
    for no in 5..7 {
        let at = ((no - 5) * MIB) as usize;
        world.complete_with(no, &wal[at..at + MIB as usize]);
    }
    stamps
}

#[test]
fn what_the_wal_says_stands_beside_the_digest() {
    let world = World::new();
    let stamps = complete_wal(&world);
    world.tend();
    let mut before = 0;
    for no in 5..7 {
        let contents = world.known(no).contents.unwrap();
        let is_in = |stamp: &&Stamp| stamp.at.segment(name(5).size).raw() == no;
        let here: Vec<_> = stamps.iter().filter(is_in).collect();
        let (first, last) = contents.stamps.unwrap();
        assert_eq!((first, last), (*here[0], **here.last().unwrap()), "{no}");
        // Of the second segment's own records none says it.
        let next = contents.next_xid.unwrap();
        assert_eq!(next.epoch, Some(7), "{no}");
        assert_eq!(i64::from(next.xid), 101 + last.time / 1000, "{no}");
        assert!(next.xid > before);
        before = next.xid;
    }
    world.complete(7, 1);
    world.tend();
    let nothing = world.known(7).contents.unwrap();
    assert_eq!(nothing.stamps, None);
    assert_eq!(nothing.next_xid, Some(NextXid { epoch: Some(7), xid: before }));
}

/// It says nothing of the contents, and keeps the time that it has.
#[test]
fn a_digest_of_the_version_before_is_written_anew() {
    let world = World::new();
    complete_wal(&world);
    world.tend();
    let mut good = world.known(6);
    let completed = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_790_000_000);
    good.completed = Some(completed);
    let mut old = good.clone();
    old.contents = None;
    std::fs::write(world.layout.digest(name(6)), old.encode()).unwrap();
    assert_eq!(world.known(6), old);
    world.run(Job::Digest { tli: TLI, no: SegmentNo::new(6) });
    world.tend();
    assert_eq!(world.known(6), good);
}

/// A digest of them would say for ever that they are as they should be.
#[test]
fn damaged_bytes_get_no_digest_and_the_scrub_looks_at_them() {
    let world = World::new();
    let mut bytes = wal_of(5, 1);
    bytes[500_000] ^= 4;
    world.complete_with(5, &bytes);
    world.complete(6, 2);
    world.tend();
    assert_eq!(world.digest(5), DigestFile::Missing);
    assert!(world.is_known(6));
    assert_eq!(world.keeper.holds.scrub.take_wanted(), Some(name(5)));
    assert_eq!(world.keeper.holds.scrub.take_wanted(), None);
    // The scrub, which knows more, finds nothing wrong: it need not look once more.
    world.run(Job::Digest { tli: TLI, no: SegmentNo::new(5) });
    world.tend();
    assert_eq!(world.digest(5), DigestFile::Missing);
    assert_eq!(world.keeper.holds.scrub.take_wanted(), None);
}

/// An earlier version has written it, of bytes that it did not verify.
#[test]
fn a_digest_of_damaged_bytes_is_removed() {
    let world = World::new();
    world.complete(5, 1);
    world.tend();
    let mut old = world.known(5);
    old.contents = None;
    std::fs::write(world.layout.digest(name(5)), old.encode()).unwrap();
    let file = File::options().write(true).open(world.layout.segment(name(5))).unwrap();
    file.write_all_at(&[0xE7; 8], 500_000).unwrap();
    world.run(Job::Digest { tli: TLI, no: SegmentNo::new(5) });
    world.tend();
    assert_eq!(world.digest(5), DigestFile::Missing);
    assert_eq!(world.keeper.holds.scrub.take_wanted(), Some(name(5)));
}

/// A server whose storage was rolled back has a file of that name, too.
#[test]
fn a_segment_that_is_copied_back_has_to_be_ours() {
    let world = World::new();
    world.complete(5, 1);
    world.complete(6, 2);
    world.tend();
    let ours = std::fs::read(world.layout.segment(name(5))).unwrap();
    std::fs::remove_file(world.layout.segment(name(5))).unwrap();
    let listing = Listing::of(vec![name(6).to_string()], name(6).size);
    world.keeper.complete.replace(&listing, None);
    let open = || run_ready(world.keeper.open(TLI, SegmentNo::new(5))).unwrap();
    assert_eq!(open().unwrap_err().kind(), io::ErrorKind::NotFound);
    std::fs::write(world.layout.segment(name(5)), wal_of(5, 3)).unwrap();
    assert_eq!(open().unwrap_err().kind(), io::ErrorKind::InvalidData);
    std::fs::write(world.layout.segment(name(5)), &ours[..9000]).unwrap();
    assert_eq!(open().unwrap_err().kind(), io::ErrorKind::InvalidData);
    std::fs::write(world.layout.segment(name(5)), &ours).unwrap();
    open().unwrap();
}
