//! The WAL archive as a source: for standbys that need what has left the hub's disk, and
//! for the hub itself while its upstream is away.

use crate::client::{Client, ServerError};
use crate::cluster::{Cluster, assert_converged};
use crate::hub::Hub;
use crate::load;
use crate::scene::Scene;
use crate::segments::{complete_segments, flip};
use crate::streaming::wait_connected;
use crate::wait;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use walhub::wal::lsn::Lsn;

const MIB: u64 = 1 << 20;

/// A folder of complete segments and history files, and who has fetched what from it.
struct Archive {
    folder: PathBuf,
    fetched: PathBuf,
}

impl Archive {
    /// An archive to which this server copies its WAL; the server is started again.
    fn of(scene: &Scene, server: &mut Cluster<'_>) -> Self {
        let folder = scene.folder("archive", server.programs.account());
        let archive = Self { folder, fetched: scene.path("fetched") };
        archive.take_from(server);
        server.stop_fast();
        server.start();
        archive
    }

    /// Another server copies its WAL here, too, from its next start on.
    fn take_from(&self, server: &mut Cluster<'_>) {
        server.set("archive_mode=on");
        let copy = self.folder.join("%f.copying");
        let (copy, file) = (copy.display(), self.folder.join("%f"));
        server.set(&format!("archive_command=cp %p {copy} && mv {copy} {}", file.display()));
    }

    /// `--restore-command`, which notes what it is asked for and has.
    fn restore_command(&self) -> String {
        let (folder, fetched) = (self.folder.display(), self.fetched.display());
        format!("--restore-command=cp {folder}/%f %p 2>/dev/null && echo %f >> {fetched}")
    }

    /// How often each file was fetched.
    fn fetched(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for name in fs::read_to_string(&self.fetched).unwrap_or_default().lines() {
            *counts.entry(name.to_owned()).or_default() += 1;
        }
        counts
    }

    fn file(&self, segment: u64) -> PathBuf {
        self.folder.join(name(1, segment))
    }

    /// Waits until everything before this position is archived.
    fn wait_archived(&self, tli: u32, end: Lsn) {
        let name = name(tli, end.raw() / MIB - 1);
        wait::until(&format!("{name} is archived"), || self.folder.join(&name).exists());
    }
}

/// The file name of a segment of 1 MiB.
fn name(tli: u32, segment: u64) -> String {
    format!("{tli:08X}{:08X}{:08X}", segment >> 12, segment & 0xFFF)
}

fn number(name: &str) -> u64 {
    u64::from_str_radix(&name[16..], 16).unwrap()
}

/// Fills the segment that is being written; where the next one begins.
fn fill_segment(server: &Cluster<'_>) -> Lsn {
    load::switch_segment(server);
    Lsn::new(server.flush_lsn().raw() / MIB * MIB)
}

/// The oldest segment in a folder.
fn oldest(folder: &Path) -> u64 {
    number(&complete_segments(folder)[0])
}

/// A hub that keeps the fewest segments.
fn small_hub<'a>(scene: &'a Scene, upstream: &Cluster<'_>) -> Hub<'a> {
    let hub = Hub::new(scene, "hub", &upstream.conninfo());
    hub.flag("--wal-keep-size=1MB").flag("--wal-buffers=8MB")
}

/// The same, with an archive.
fn hub_with<'a>(scene: &'a Scene, upstream: &Cluster<'_>, archive: &Archive) -> Hub<'a> {
    small_hub(scene, upstream).flag(&archive.restore_command())
}

/// Nothing is known any more of what the hub received before: only records and their links count.
fn forget_digests(hub: &Hub<'_>) {
    fs::remove_dir_all(hub.pg_wal().join("digests/removed")).unwrap();
}

/// The error with which a stream from this segment ends.
fn refusal(port: u16, segment: u64) -> ServerError {
    let mut client = Client::connect(port);
    client.start_replication(Lsn::new(segment * MIB), 1).unwrap();
    loop {
        match client.next_wal() {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ended without an error"),
            Err(error) => return error,
        }
    }
}

#[test]
fn standbys_whose_wal_has_left_the_disk_catch_up_over_the_stream() {
    let scene = Scene::new();
    let mut primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let archive = Archive::of(&scene, &mut primary);
    let hub = hub_with(&scene, &primary, &archive).started();
    wait_connected(&primary);
    let mut standbys = ["a", "b", "c"].map(|name| primary.standby(name, &hub.conninfo()));
    for standby in &mut standbys {
        standby.wait_streaming();
        standby.stop_fast();
    }
    let stopped = primary.flush_lsn();
    load::write_mib(&primary, 60);
    let end = fill_segment(&primary);
    archive.wait_archived(1, end);
    wait::until("old WAL goes", || oldest(&hub.pg_wal()) > stopped.raw() / MIB + 30);
    assert!(archive.fetched().is_empty());

    for standby in &mut standbys {
        standby.start();
    }
    for standby in &standbys {
        standby.wait_replayed(end);
        standby.wait_streaming();
    }
    let fetched = archive.fetched();
    assert!(fetched.len() >= 30, "{fetched:?}");
    // They are close together, and the files near them stay.
    let twice = fetched.values().filter(|count| **count > 1).count();
    assert!(twice <= fetched.len() / 3, "fetched for one alone: {fetched:?}");
    wait::until("restored segments go again", || {
        fetched.keys().all(|name| !hub.pg_wal().join(name).exists())
    });
    load::write_mib(&primary, 1);
    let end = primary.flush_lsn();
    for standby in &standbys {
        standby.wait_replayed(end);
    }
}

/// A slot that keeps no more than it may is not lost while the archive has its WAL.
#[test]
fn a_slot_whose_wal_is_in_the_archive_is_not_lost() {
    let scene = Scene::new();
    let mut primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let archive = Archive::of(&scene, &mut primary);
    let hub = hub_with(&scene, &primary, &archive).flag("--max-slot-wal-keep-size=20MB").started();
    wait_connected(&primary);
    load::write_mib(&primary, 1);
    let mut client = Client::connect(hub.port());
    client.query("CREATE_REPLICATION_SLOT s PHYSICAL ( RESERVE_WAL )").unwrap();
    let mut standby = primary.standby_with("standby", &hub.conninfo(), "s");
    standby.wait_streaming();
    standby.stop_fast();
    load::write_mib(&primary, 60);
    let end = fill_segment(&primary);
    archive.wait_archived(1, end);
    let restart = |client: &mut Client| {
        let text = client.query_value_of("READ_REPLICATION_SLOT s", 1);
        text.parse::<Lsn>().unwrap()
    };
    let at = restart(&mut client).raw() / MIB;
    wait::until("old WAL goes", || oldest(&hub.pg_wal()) > at + 20);
    assert_eq!(restart(&mut client).raw() / MIB, at);
    assert_eq!(hub.logged(&["invalidating"]), None);
    standby.start();
    standby.wait_replayed(end);
    wait::until("the slot follows", || restart(&mut client) >= end);
}

#[test]
fn what_is_not_in_the_archive_is_removed_and_what_is_wrong_is_named() {
    let scene = Scene::new();
    let mut primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let archive = Archive::of(&scene, &mut primary);
    let mut hub = hub_with(&scene, &primary, &archive).started();
    wait_connected(&primary);
    let begun = primary.flush_lsn().raw() / MIB;
    load::write_mib(&primary, 50);
    archive.wait_archived(1, fill_segment(&primary));
    wait::until("old WAL goes", || oldest(&hub.pg_wal()) > begun + 25);
    forget_digests(&hub);

    // Not there.
    fs::rename(archive.file(begun + 2), scene.path("away")).unwrap();
    let error = refusal(hub.port(), begun + 2);
    let text =
        |segment| format!("requested WAL segment {} has already been removed", name(1, segment));
    assert_eq!((error.sqlstate.as_str(), error.message), ("58P01", text(begun + 2)));
    // Up to there everything is served.
    let error = refusal(hub.port(), begun + 1);
    assert_eq!((error.sqlstate.as_str(), error.message), ("58P01", text(begun + 2)));

    // One byte is another.
    let damaged = archive.file(begun + 5);
    let file = fs::File::options().read(true).write(true).open(&damaged).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 777_777).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 777_777).unwrap();
    let error = refusal(hub.port(), begun + 5);
    assert_eq!(error.sqlstate, "XX001");
    assert!(error.message.contains(&name(1, begun + 5)), "{}", error.message);
    hub.wait_log(&["ERROR", &name(1, begun + 5), "not served"]);

    // Full in size, half in content.
    let half = archive.file(begun + 8);
    let file = fs::File::options().write(true).open(&half).unwrap();
    file.set_len(MIB / 2).unwrap();
    file.set_len(MIB).unwrap();
    let error = refusal(hub.port(), begun + 8);
    assert_eq!(error.sqlstate, "XX001");

    // Another cluster's: the system identifier lies in the first page's header.
    let stranger = archive.file(begun + 11);
    let file = fs::File::options().write(true).open(&stranger).unwrap();
    file.write_all_at(&7u64.to_le_bytes(), 24).unwrap();
    let error = refusal(hub.port(), begun + 11);
    assert_eq!(error.sqlstate, "XX001");
    assert!(error.message.contains("from different database system"), "{}", error.message);

    // The command itself is broken: nothing is known of the WAL.
    hub.stop();
    let hub = small_hub(&scene, &primary);
    let hub = hub.flag("--restore-command=/nonexistent/program %f %p").started();
    let error = refusal(hub.port(), begun + 3);
    assert_eq!(error.sqlstate, "58030");
    assert!(error.message.contains("command not found"), "{}", error.message);
    drop(hub);

    // No archive at all. What was fetched before is here until retention lets it go.
    let hub = small_hub(&scene, &primary).started();
    let error = refusal(hub.port(), begun + 20);
    assert_eq!((error.sqlstate.as_str(), error.message), ("58P01", text(begun + 20)));
}

/// What a stream from `from` brings before it ends, and its error.
fn read_to_error(port: u16, from: Lsn) -> (Vec<u8>, ServerError) {
    let mut client = Client::connect(port);
    client.start_replication(from, 1).unwrap();
    let mut bytes = Vec::new();
    loop {
        match client.next_wal() {
            Ok(Some(wal)) => bytes.extend(wal.bytes),
            Ok(None) => panic!("the stream ended without an error"),
            Err(error) => return (bytes, error),
        }
    }
}

/// Does the segment begin with the rest of a record?
fn begins_inside_a_record(path: &Path) -> bool {
    let page = fs::read(path).unwrap();
    page[2] & 1 != 0 && page[16..20] != [0; 4]
}

/// A record that crosses from one segment into the next is proved by both files; nothing of it is
/// served when one of them is damaged.
#[test]
fn a_flipped_bit_in_a_record_across_segments_is_not_served() {
    let scene = Scene::new();
    let mut primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let archive = Archive::of(&scene, &mut primary);
    let hub = hub_with(&scene, &primary, &archive).started();
    wait_connected(&primary);
    let mut standby = primary.standby("standby", &hub.conninfo());
    standby.wait_streaming();
    standby.stop_fast();
    let begun = fill_segment(&primary).raw() / MIB;
    primary.sql("select pg_logical_emit_message(false, 'long', repeat('x', 4000000))");
    let rows = fill_segment(&primary).raw() / MIB;
    load::write_mib(&primary, 50);
    let end = fill_segment(&primary);
    archive.wait_archived(1, end);
    wait::until("old WAL goes", || oldest(&hub.pg_wal()) > rows + 20);
    forget_digests(&hub);
    let truth = |from: u64, to: u64| -> Vec<u8> {
        (from..to).flat_map(|no| fs::read(archive.file(no)).unwrap()).collect()
    };
    let is_crossed = |no: &u64| begins_inside_a_record(&archive.file(no + 1));
    let ordinary = (rows + 2..rows + 10).find(is_crossed).unwrap();
    // Those near the first one will have been restored by then.
    let other = (ordinary + 6..rows + 20).find(is_crossed).unwrap();

    for (damaged, at, first, last) in [
        // The middle of a record of 4 MB.
        (begun + 2, MIB / 2, begun, begun + 1),
        // The last record of a segment of ordinary rows, and its rest in the next one.
        (ordinary, MIB - 20, ordinary - 1, ordinary + 1),
        (other + 1, 42, other - 1, other + 1),
    ] {
        let good = truth(first, last);
        let mend = flip(&archive.file(damaged), at);
        let (bytes, error) = read_to_error(hub.port(), Lsn::new(first * MIB));
        assert_eq!(error.sqlstate, "XX001", "{}", error.message);
        // Of many segments in one record, the first and the last are named.
        let named = if damaged == begun + 2 { begun } else { damaged };
        assert!(error.message.contains(&name(1, named)), "{}", error.message);
        // All that is proved, and no byte of the record.
        assert!(bytes.len() < good.len() && bytes[..] == good[..bytes.len()], "{damaged}");
        if damaged != begun + 2 {
            assert!(good.len() - bytes.len() < 20_000, "{} of {}", bytes.len(), good.len());
        }
        hub.wait_log(&["ERROR", &name(1, named), "not served"]);
        mend();
    }
    // With the archive mended, the standby goes on.
    standby.start();
    standby.wait_replayed(end);
}

/// A hub that began after a failover serves a standby that was off since before it: both
/// timelines come from the archive, by the child's file where they part.
#[test]
fn an_earlier_timeline_comes_from_the_archive() {
    let scene = Scene::new();
    let mut old = Cluster::primary_with_segments(&scene, "old", 1);
    let archive = Archive::of(&scene, &mut old);
    load::prepare(&scene, &old);
    let mut new = old.standby("new", &old.conninfo());
    new.wait_streaming();
    archive.take_from(&mut new);
    new.stop_fast();
    new.start();
    let mut late = old.standby("late", &old.conninfo());
    late.wait_streaming();
    late.stop_fast();
    load::write_mib(&old, 10);
    new.wait_replayed(old.flush_lsn());
    old.stop_fast();
    new.promote();
    load::write_mib(&new, 10);
    archive.wait_archived(2, fill_segment(&new));

    let hub = hub_with(&scene, &new, &archive).started();
    wait_connected(&new);
    late.set(&format!("primary_conninfo={} application_name=late", hub.conninfo()));
    late.start();
    assert_converged(&new, &[&late]);
    assert!(archive.fetched().keys().any(|name| name.starts_with("00000001")));
    load::write_mib(&new, 1);
    assert_converged(&new, &[&late]);
}

/// The hub's end is where the primary's WAL ends.
fn wait_end(hub: &Hub<'_>, end: Lsn) {
    wait::until(&format!("the hub has WAL up to {end}"), || hub.inspect().record_end() >= end);
}

/// Its upstream is stopped, and more WAL than it has is only in the archive: the standbys
/// behind it reach its end. The archive ends with a segment; streaming goes on from there.
#[test]
fn the_archive_stands_in_for_a_stopped_upstream() {
    let scene = Scene::new();
    let mut primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let archive = Archive::of(&scene, &mut primary);
    load::prepare(&scene, &primary);
    let mut hub = hub_with(&scene, &primary, &archive).started();
    wait_connected(&primary);
    let standbys = ["a", "b", "c"].map(|name| primary.standby(name, &hub.conninfo()));
    for standby in &standbys {
        standby.wait_streaming();
    }
    hub.stop();
    load::write_mib(&primary, 30);
    let end = fill_segment(&primary);
    let expected = primary.fingerprint();
    archive.wait_archived(1, end);
    primary.stop_fast();

    hub.start();
    for standby in &standbys {
        standby.wait_replayed(end);
        assert_eq!(standby.fingerprint(), expected);
    }
    hub.wait_state("restoring");
    primary.start();
    hub.wait_state("streaming");
    load::write_mib(&primary, 3);
    assert_converged(&primary, &[&standbys[0], &standbys[1], &standbys[2]]);
    let left = fs::read_dir(hub.pg_wal()).unwrap().filter(|entry| {
        let name = entry.as_ref().unwrap().file_name().into_string().unwrap();
        name.ends_with(".tmp")
    });
    assert_eq!(left.count(), 0);
}

/// A segment that was archived before it was full counts up to the end of its WAL; from
/// there the upstream goes on, and so does the archive when it has all of it.
#[test]
fn a_half_valid_segment_counts_up_to_its_end() {
    let scene = Scene::new();
    let mut primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let archive = Archive::of(&scene, &mut primary);
    load::prepare(&scene, &primary);
    let mut hub = hub_with(&scene, &primary, &archive).started();
    wait_connected(&primary);
    let standby = primary.standby("standby", &hub.conninfo());
    standby.wait_streaming();
    hub.stop();
    load::write_mib(&primary, 5);
    primary.sql("create table t as select generate_series(1, 1000) n");
    let end = primary.flush_lsn();
    let open = name(1, end.raw() / MIB);
    assert_ne!(end.raw() % MIB, 0);
    archive.wait_archived(1, Lsn::new(end.raw() / MIB * MIB));
    primary.kill();
    fs::copy(primary.pg_wal().join(&open), archive.folder.join(&open)).unwrap();

    hub.start();
    standby.wait_replayed(end);
    assert_eq!(standby.count("select count(*) from t"), 1000);
    let held = hub.inspect().record_end();
    hub.wait_log(&[&open, "holds WAL up to"]);
    primary.start();
    hub.wait_state("streaming");
    load::write_mib(&primary, 3);
    assert_converged(&primary, &[&standby]);
    assert!(held >= end);
}

#[test]
fn a_damaged_or_foreign_file_is_refused_and_named() {
    let scene = Scene::new();
    let mut primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let archive = Archive::of(&scene, &mut primary);
    let mut hub = hub_with(&scene, &primary, &archive).started();
    wait_connected(&primary);
    load::write_mib(&primary, 1);
    wait_end(&hub, primary.flush_lsn());
    hub.stop();
    let has = hub.inspect().record_end();
    load::write_mib(&primary, 8);
    let end = fill_segment(&primary);
    archive.wait_archived(1, end);
    primary.stop_fast();
    let first = has.raw() / MIB;
    let change = |segment: u64, at: u64, bytes: &[u8]| {
        let path = archive.file(segment);
        let good = fs::read(&path).unwrap();
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.write_all_at(bytes, at).unwrap();
        move || fs::write(path, good).unwrap()
    };
    let damaged = change(first + 2, 500_000, &[0xE7; 8]);
    let foreign = change(first + 4, 24, &7u64.to_le_bytes());
    // One of the bytes that the hub holds.
    assert!(has.raw() % MIB > 9000, "{has}");
    let differs = change(first, 5000, &[0xE7; 8]);

    hub.start();
    hub.wait_state("archive differs");
    hub.wait_log(&["ERROR", "archive differs", &name(1, first)]);
    assert_eq!(hub.inspect().record_end(), has);
    differs();
    hub.wait_log(&["ERROR", &name(1, first + 2), "not the WAL that belongs there"]);
    let half = Lsn::new((first + 2) * MIB + 500_000);
    wait::until("it comes near the damage", || {
        let end = hub.inspect().record_end();
        assert!(end <= half, "{end}");
        half.raw() - end.raw() < 20_000
    });
    damaged();
    hub.wait_log(&["ERROR", &name(1, first + 4), "different database system"]);
    // What comes before it was handed over, and may not be written yet.
    let foreign_at = Lsn::new((first + 4) * MIB);
    wait::until("all that comes before it is here", || {
        let end = hub.inspect().record_end();
        assert!(end <= foreign_at, "{end}");
        foreign_at.raw() - end.raw() < 20_000
    });
    foreign();
    wait_end(&hub, end);
}

/// A standby that archives to the same place once it is promoted.
fn archiving_standby<'a>(primary: &Cluster<'a>, name: &str, archive: &Archive) -> Cluster<'a> {
    let mut standby = primary.standby(name, &primary.conninfo());
    archive.take_from(&mut standby);
    standby.stop_fast();
    standby.start();
    standby.wait_streaming();
    standby
}

/// The failover is known to the archive alone: its history file, and the segments of the
/// new timeline.
#[test]
fn a_failover_is_followed_through_the_archive() {
    let scene = Scene::new();
    let mut old = Cluster::primary_with_segments(&scene, "old", 1);
    let archive = Archive::of(&scene, &mut old);
    load::prepare(&scene, &old);
    let new = archiving_standby(&old, "new", &archive);
    let hub = hub_with(&scene, &old, &archive).flag("--archive-timeline-grace=2s");
    let mut hub = hub.started();
    wait_connected(&old);
    let standby = old.standby("standby", &hub.conninfo());
    standby.wait_streaming();
    load::write_mib(&old, 2);
    wait_end(&hub, old.flush_lsn());
    hub.kill();
    load::write_mib(&old, 5);
    let flush = old.flush_lsn();
    new.wait_replayed(flush);
    // What the old primary has not archived by now, nobody archives.
    archive.wait_archived(1, Lsn::new(flush.raw() / MIB * MIB));
    old.kill();
    new.promote();
    load::write_mib(&new, 5);
    let end = fill_segment(&new);
    let expected = new.fingerprint();
    archive.wait_archived(2, end);

    hub.start();
    standby.wait_replayed(end);
    assert_eq!(standby.fingerprint(), expected);
    hub.wait_log(&["ERROR", "timeline 2", "on the archive's word alone"]);
    hub.wait_log(&["timeline 1 ended"]);
    hub.stop();
    hub.set_upstream(&new.conninfo());
    hub.start();
    hub.wait_state("streaming");
    load::write_mib(&new, 2);
    assert_converged(&new, &[&standby]);
}

/// A copy of the primary was promoted for a test and archives to the same place. The primary is only
/// being started again.
#[test]
fn a_copys_timeline_is_not_followed_on_the_archives_word() {
    let scene = Scene::new();
    let mut old = Cluster::primary_with_segments(&scene, "old", 1);
    let archive = Archive::of(&scene, &mut old);
    load::prepare(&scene, &old);
    let copy = archiving_standby(&old, "copy", &archive);
    let mut hub = hub_with(&scene, &old, &archive).started();
    wait_connected(&old);
    let standby = old.standby("standby", &hub.conninfo());
    standby.wait_streaming();
    wait_end(&hub, old.flush_lsn());
    hub.kill();
    load::write_mib(&old, 3);
    let flush = old.flush_lsn();
    copy.wait_replayed(flush);
    archive.wait_archived(1, Lsn::new(flush.raw() / MIB * MIB));
    // Before it can send more to the copy.
    old.kill();
    copy.promote();
    load::write_mib(&copy, 3);
    archive.wait_archived(2, fill_segment(&copy));

    hub.start();
    hub.wait_log(&["timeline 2", "no upstream has named it", "--archive-timeline-grace"]);
    old.start();
    hub.wait_state("streaming");
    load::write_mib(&old, 3);
    assert_converged(&old, &[&standby]);
    assert_eq!(hub.told(&["status"])["status"]["timeline"], 1);
}

/// The same, and nobody answers for the grace: the hub follows the copy. When the primary is back, an
/// operator says that its timeline is the true one.
#[test]
fn a_copys_timeline_is_left_again_by_an_operators_word() {
    let scene = Scene::new();
    let mut old = Cluster::primary_with_segments(&scene, "old", 1);
    let archive = Archive::of(&scene, &mut old);
    load::prepare(&scene, &old);
    let copy = archiving_standby(&old, "copy", &archive);
    let mut hub = hub_with(&scene, &old, &archive).flag("--archive-timeline-grace=2s").started();
    wait_connected(&old);
    let mut behind = old.standby("behind", &hub.conninfo());
    let mut follows = old.standby("follows", &hub.conninfo());
    for standby in [&mut behind, &mut follows] {
        standby.wait_streaming();
    }
    wait_end(&hub, old.flush_lsn());
    hub.kill();
    behind.stop_fast();
    load::write_mib(&old, 3);
    let flush = old.flush_lsn();
    copy.wait_replayed(flush);
    archive.wait_archived(1, Lsn::new(flush.raw() / MIB * MIB));
    // Before it can send more to the copy.
    old.kill();
    copy.promote();
    load::write_mib(&copy, 25);
    let end = fill_segment(&copy);
    archive.wait_archived(2, end);

    hub.start();
    follows.wait_replayed(end);
    let word = |hub: &Hub<'_>| hub.told(&["status"])["status"]["archive_timelines"][0].clone();
    let told = word(&hub);
    assert_eq!((&told["timeline"], &told["from_timeline"]), (&2.into(), &1.into()), "{told}");
    assert!(told["since"].is_string(), "{told}");
    let fork = told["lsn"].as_str().unwrap().to_owned();
    hub.wait_log(&["ERROR", "on the archive's word alone", &format!("accept-history ours {fork}")]);
    let first = name(1, fork.parse::<Lsn>().unwrap().raw() / MIB - 1);
    wait::until("nothing of the primary's is left", || !hub.pg_wal().join(&first).exists());

    old.start();
    hub.wait_state("upstream refused");
    old.kill();
    hub.told(&["accept-history", "ours", &fork]);
    let status = hub.told(&["status"])["status"].clone();
    assert_eq!(
        (&status["timeline"], &status["durable_lsn"]),
        (&1.into(), &told["lsn"]),
        "{status}"
    );
    assert_eq!(status["seams"][0]["timeline"], 2, "{status}");
    // The archive still has it, and nobody answers.
    hub.told(&["confirm", "seam", &fork]);
    hub.stop();
    hub.start();
    hub.wait_log(&["timeline 2 in the archive is not followed", "was undone"]);
    wait::stays(Duration::from_secs(6), "it stays on timeline 1", || {
        hub.told(&["status"])["status"]["timeline"] == 1
    });
    assert_eq!(word(&hub)["since"], serde_json::Value::Null);
    hub.told(&["accept-history", "ours", &fork]);

    old.start();
    hub.wait_state("streaming");
    behind.start();
    load::write_mib(&old, 3);
    assert_converged(&old, &[&behind]);
    // What has followed has to be made again.
    assert_eq!(follows.walreceiver(), None);
    follows.stop_fast();
    let again = old.backup_standby("again", &hub.conninfo());
    again.wait_streaming();
    load::write_mib(&old, 1);
    assert_converged(&old, &[&behind, &again]);
}

/// An upstream that takes connections and says nothing does not hold up the archive, nor
/// does a command that hangs hold up the hub's end.
#[test]
fn a_frozen_upstream_does_not_hold_up_the_archive() {
    let scene = Scene::new();
    let mut primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let archive = Archive::of(&scene, &mut primary);
    let mut hub = hub_with(&scene, &primary, &archive).started();
    wait_connected(&primary);
    load::write_mib(&primary, 1);
    wait_end(&hub, primary.flush_lsn());
    hub.stop();
    load::write_mib(&primary, 10);
    let end = fill_segment(&primary);
    archive.wait_archived(1, end);
    primary.freeze();
    hub.start();
    wait_end(&hub, end);
    // The next one hangs.
    let next = archive.file(end.raw() / MIB);
    let made = std::process::Command::new("mkfifo").arg(&next).status().unwrap();
    assert!(made.success());
    let opened = fs::File::options().write(true).open(&next).unwrap();
    hub.stop();
    drop(opened);
    fs::remove_file(&next).unwrap();
    primary.thaw();
    hub.start();
    hub.wait_state("streaming");
    load::write_mib(&primary, 1);
    wait_end(&hub, primary.flush_lsn());
}

/// A command that hangs is not waited for when the upstream is back.
#[test]
fn a_command_that_hangs_does_not_keep_the_hub_from_its_upstream() {
    let scene = Scene::new();
    let mut primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let asked = scene.path("asked");
    let command = format!("--restore-command=touch {}; sleep 1000", asked.display());
    let hub = small_hub(&scene, &primary).flag(&command).started();
    wait_connected(&primary);
    primary.stop_fast();
    wait::until("the archive is asked", || asked.exists());
    primary.start();
    hub.wait_state("streaming");
    load::write_mib(&primary, 1);
    wait_end(&hub, primary.flush_lsn());
}

/// As long as nobody can say whether the timeline has ended, none of it is taken.
#[test]
fn nothing_is_taken_while_the_next_timelines_history_cannot_be_read() {
    let scene = Scene::new();
    let mut primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let archive = Archive::of(&scene, &mut primary);
    let history = scene.path("history");
    // What `ssh` says when there is no connection; later an empty file, as of a copy that has
    // just begun.
    let command = format!(
        "case %f in *.history) cp {} %p 2>/dev/null || exit 255;; *) cp {}/%f %p 2>/dev/null;; esac",
        history.display(),
        archive.folder.display()
    );
    let mut hub =
        small_hub(&scene, &primary).flag(&format!("--restore-command={command}")).started();
    wait_connected(&primary);
    load::write_mib(&primary, 1);
    wait_end(&hub, primary.flush_lsn());
    hub.stop();
    let has = hub.inspect().record_end();
    load::write_mib(&primary, 5);
    let end = fill_segment(&primary);
    archive.wait_archived(1, end);
    primary.stop_fast();
    hub.start();
    let not_read = "while the history of timeline 2 cannot be read";
    hub.wait_log(&["nothing is taken from the archive", not_read]);
    hub.stop();
    fs::write(&history, "").unwrap();
    hub.start();
    hub.wait_log(&[not_read, "is not complete"]);
    assert_eq!(hub.inspect().record_end(), has);
    assert!(!hub.pg_wal().join("00000002.history").exists());
    hub.stop();
    // It was never there.
    let command = archive.restore_command();
    let mut hub = small_hub(&scene, &primary).flag(&command);
    hub.start();
    wait_end(&hub, end);
}

/// The upstream is there and has removed what comes next.
#[test]
fn the_archive_closes_a_gap_at_the_upstream() {
    let scene = Scene::new();
    let mut primary = Cluster::primary_with_segments(&scene, "primary", 1);
    for setting in ["wal_keep_size=0", "min_wal_size=2MB", "max_wal_size=8MB"] {
        primary.set(setting);
    }
    let archive = Archive::of(&scene, &mut primary);
    let mut hub =
        hub_with(&scene, &primary, &archive).flag("--on-gap=restart-at-current").started();
    wait_connected(&primary);
    load::write_mib(&primary, 1);
    let has = primary.flush_lsn();
    wait_end(&hub, has);
    hub.stop();
    load::write_mib(&primary, 30);
    archive.wait_archived(1, fill_segment(&primary));
    wait::until("the primary has removed it", || {
        primary.sql("checkpoint");
        oldest(&primary.pg_wal()) > has.raw() / MIB + 1
    });
    hub.start();
    hub.wait_log(&["restoring from the archive"]);
    wait_end(&hub, primary.flush_lsn());
    hub.wait_state("streaming");
    load::write_mib(&primary, 1);
    wait_end(&hub, primary.flush_lsn());
    assert!(!hub.pg_wal().with_file_name("pg_wal.aside.1").exists());
}

/// Neither whose WAL it is nor where it begins is in an archive.
#[test]
fn an_empty_directory_waits_for_the_upstream() {
    let scene = Scene::new();
    let mut primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let archive = Archive::of(&scene, &mut primary);
    load::write_mib(&primary, 2);
    primary.stop_fast();
    let hub = hub_with(&scene, &primary, &archive).started();
    hub.wait_log(&["the directory is empty"]);
    assert!(archive.fetched().is_empty());
    primary.start();
    hub.wait_state("streaming");
}
