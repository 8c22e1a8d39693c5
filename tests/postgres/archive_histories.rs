//! An archive that a rolled-back primary has written to: where the job runs again, its WAL is the
//! hub's byte for byte, but for the times.

use crate::archiving::Archive;
use crate::cluster::Cluster;
use crate::hub::Hub;
use crate::load;
use crate::scene::Scene;
use crate::segments::complete_segments;
use crate::streaming::wait_connected;
use crate::wait;
use std::fs;
use std::path::Path;
use std::time::Duration;
use walhub::wal::lsn::Lsn;

const MIB: u64 = 1 << 20;

/// A primary with an archive, a copy of it from before the job, and a hub with a standby.
struct Stage<'a> {
    primary: Cluster<'a>,
    /// It has the same archive, and the hub does not know it.
    rolled_back: Cluster<'a>,
    archive: Archive,
    hub: Hub<'a>,
    standby: Cluster<'a>,
}

impl<'a> Stage<'a> {
    fn new(scene: &'a Scene, flags: &[&str]) -> Self {
        let mut primary = Cluster::primary_with_segments(scene, "primary", 1);
        let archive = Archive::new(scene, "archive", primary.programs.account());
        archive_to(&mut primary, &archive);
        primary.stop_fast();
        primary.start();
        let mut hub = Hub::new(scene, "hub", &primary.conninfo())
            .flag(&format!("--restore-command={}", archive.restore_command()));
        flags.iter().for_each(|flag| hub.set_flag(flag));
        hub.start();
        primary.sql("create table t (n int, at timestamptz)");
        wait_connected(&primary);
        let standby = primary.standby("standby", &hub.conninfo());
        standby.wait_streaming();
        load::switch_segment(&primary);
        primary.stop_fast();
        let mut rolled_back = primary.copy_of_files("rolled_back");
        archive_to(&mut rolled_back, &archive);
        primary.start();
        hub.wait_state("streaming");
        Self { primary, rolled_back, archive, hub, standby }
    }

    /// The job runs, everybody has its WAL, and the primary is lost. Rolled back, it runs the same
    /// job again, and goes on from there.
    fn run_lose_and_run_again(&mut self, job: fn(&Cluster<'_>)) -> Lsn {
        job(&self.primary);
        let end = self.primary.flush_lsn();
        wait::until("the hub has it all", || self.hub.inspect().record_end() >= end);
        self.standby.wait_replayed(end);
        self.primary.kill();
        self.rolled_back.start();
        job(&self.rolled_back);
        assert_eq!(self.rolled_back.flush_lsn(), end, "the same job gives as much WAL");
        end
    }

    fn stays_apart(&self, end: Lsn, rows: u64) {
        wait::stays(Duration::from_secs(2), "nothing of the other history is taken", || {
            self.hub.inspect().record_end() == end && self.standby.replay_lsn() <= end
        });
        assert_eq!(self.standby.count("select count(*) from t"), rows);
    }

    fn outcome(&self) -> String {
        let status = self.hub.told(&["status"])["status"]["upstream"].clone();
        status["proof"]["outcome"].as_str().unwrap_or("none").to_owned()
    }
}

fn archive_to(server: &mut Cluster<'_>, archive: &Archive) {
    server.set("archive_mode=on");
    server.set(&format!("archive_command={}", archive.command()));
    server.set("checkpoint_timeout=1h");
}

/// Adds a row, and ends the segment.
fn add_row(server: &Cluster<'_>, n: u32) {
    server.sql(&format!("insert into t values ({n}, clock_timestamp())"));
    server.sql("select pg_switch_wal()");
}

/// Two rows in a segment that is ended.
fn ended_segment(server: &Cluster<'_>) {
    server.sql("insert into t values (1, clock_timestamp())");
    add_row(server, 2);
}

/// A row, and then 1.5 MiB in which nothing says what time it is.
fn open_segment(server: &Cluster<'_>) {
    server.sql("insert into t values (1, clock_timestamp())");
    server.sql(
        "select count(pg_logical_emit_message(false, 'job', repeat('x', 1000))) \
         from generate_series(1, 1500)",
    );
    wait::until("the job is flushed", || {
        server.sql("select pg_current_wal_insert_lsn() = pg_current_wal_flush_lsn()") == "t"
    });
}

/// The segment file before a position.
fn file_before(at: Lsn) -> String {
    format!("{:08X}{:08X}{:08X}", 1, 0, at.raw().div_ceil(MIB) - 1)
}

#[test]
fn another_history_in_the_archive_is_not_joined_at_a_segments_boundary() {
    let scene = Scene::new();
    let mut stage = Stage::new(&scene, &[]);
    let end = stage.run_lose_and_run_again(ended_segment);
    assert_eq!(end.raw() % MIB, 0);
    add_row(&stage.rolled_back, 3);
    add_row(&stage.rolled_back, 4);
    stage.hub.wait_state("archive differs");
    stage.hub.wait_log(&["ERROR", "archive differs", &file_before(end)]);
    stage.stays_apart(end, 2);
}

#[test]
fn another_history_in_the_archive_is_not_joined_inside_a_segment() {
    let scene = Scene::new();
    let mut stage = Stage::new(&scene, &["--require-proof"]);
    let end = stage.run_lose_and_run_again(open_segment);
    assert!(end.raw() % MIB > 100_000, "{end}");
    add_row(&stage.rolled_back, 3);
    add_row(&stage.rolled_back, 4);
    stage.hub.wait_state("archive differs");
    stage.stays_apart(end, 1);
}

/// An archive that begins at the hub's end shows nothing.
#[test]
fn what_the_archive_gave_unproved_is_no_proof_of_its_history() {
    let scene = Scene::new();
    let mut stage = Stage::new(&scene, &["--require-proof"]);
    let end = stage.run_lose_and_run_again(ended_segment);
    let before = file_before(end);
    wait::until("it is archived", || {
        stage.rolled_back.sql("select last_archived_wal from pg_stat_archiver") == before
    });
    for entry in fs::read_dir(stage.archive.folder()).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    add_row(&stage.rolled_back, 3);
    for n in 4..8 {
        load::write_mib(&stage.rolled_back, 1);
        add_row(&stage.rolled_back, n);
    }
    let goes_on = stage.rolled_back.flush_lsn();
    stage.archive.wait_for(&file_before(goes_on));
    stage.hub.wait_state("upstream not proved");
    stage.stays_apart(end, 2);

    stage.hub.stop();
    stage.hub.remove_flag("--require-proof");
    stage.hub.start();
    wait::until("it is taken all the same", || stage.hub.inspect().record_end() >= goes_on);
    let why = format!("the archive has no file \"{before}\"");
    stage.hub.wait_log(&["WARN", "it is not proved that the archive has", &why]);
    assert_eq!(stage.outcome(), "weak");
    // There are times in the MiB before the end now, and all of them are the archive's.
    stage.hub.told(&["upstream", &stage.rolled_back.conninfo()]);
    stage.hub.wait_state("diverged");
    let found = stage.hub.inspect().evidence().unwrap();
    assert!(found < end, "{found}, {end}");
}

/// As above, but it is the hub's own history that the archive has.
#[test]
fn what_the_archive_gave_unproved_is_proved_later() {
    let scene = Scene::new();
    let mut stage = Stage::new(&scene, &[]);
    ended_segment(&stage.primary);
    let end = stage.primary.flush_lsn();
    wait::until("the hub has it all", || stage.hub.inspect().record_end() >= end);
    stage.archive.wait_for(&file_before(end));
    stage.hub.stop();
    for n in 3..8 {
        load::write_mib(&stage.primary, 1);
        add_row(&stage.primary, n);
    }
    let goes_on = stage.primary.flush_lsn();
    stage.archive.wait_for(&file_before(goes_on));
    let before = stage.archive.path(&file_before(end));
    fs::remove_file(&before).unwrap();
    stage.primary.stop_fast();
    stage.hub.start();
    wait::until("it is taken", || stage.hub.inspect().record_end() >= goes_on);
    assert_eq!(stage.outcome(), "weak");
    stage.primary.start();
    stage.hub.wait_state("streaming");
    assert_eq!(stage.outcome(), "proved");
    add_row(&stage.primary, 9);
    stage.standby.wait_replayed(stage.primary.flush_lsn());
}

/// What has left the hub's disk comes from the archive for a standby that lags, and the rolled-back
/// primary has written over it. Positions and links are the same.
#[test]
fn wal_of_another_history_is_not_served_in_place_of_ours() {
    let scene = Scene::new();
    let mut stage = Stage::new(&scene, &["--wal-keep-size=1MB", "--wal-buffers=8MB"]);
    (1..4).for_each(|n| add_row(&stage.primary, n));
    let stopped = stage.primary.flush_lsn();
    stage.standby.wait_replayed(stopped);
    stage.standby.stop_fast();
    (4..44).for_each(|n| add_row(&stage.primary, n));
    let end = stage.primary.flush_lsn();
    stage.archive.wait_for(&file_before(end));
    let near = file_before(Lsn::new(stopped.raw() + 8 * MIB));
    wait::until("old WAL goes", || complete_segments(&stage.hub.pg_wal())[0] > near);
    stage.primary.kill();
    let truth = scene.path("truth");
    copy_files(stage.archive.folder(), &truth);
    stage.rolled_back.start();
    (1..46).for_each(|n| add_row(&stage.rolled_back, n));
    stage.archive.wait_for(&file_before(stage.rolled_back.flush_lsn()));
    stage.hub.wait_state("archive differs");

    // What its cache holds is gone then.
    stage.hub.stop();
    stage.hub.start();
    stage.standby.start();
    stage.hub.wait_log(&["ERROR", "is of another history or damaged", "not served"]);
    let none_is_served = |standby: &Cluster<'_>| {
        let rows = || standby.count("select count(*) from t");
        wait::stays(Duration::from_secs(2), "nothing of it is served", || rows() == 3);
    };
    none_is_served(&stage.standby);
    // When nothing is known of what was received, the evidence counts.
    stage.hub.stop();
    let digests = stage.hub.pg_wal().join("digests/removed");
    let kept = scene.path("removed");
    fs::rename(&digests, &kept).unwrap();
    stage.hub.start();
    stage.hub.wait_log(&["ERROR", "cannot be shown to be of this hub's history", "is served"]);
    none_is_served(&stage.standby);

    // With the hub's own WAL in the archive again, the standby goes on.
    stage.hub.stop();
    drop(fs::remove_dir_all(&digests));
    fs::rename(&kept, &digests).unwrap();
    stage.rolled_back.kill();
    fs::remove_dir_all(stage.archive.folder()).unwrap();
    copy_files(&truth, stage.archive.folder());
    stage.hub.start();
    stage.standby.wait_replayed(end);
    assert_eq!(stage.standby.count("select count(*) from t"), 43);
    let found = stage.hub.inspect();
    let wrong = found.wrong();
    assert!(wrong.iter().all(|wrong| !wrong.contains("digest")), "{wrong:?}");
}

fn copy_files(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}
