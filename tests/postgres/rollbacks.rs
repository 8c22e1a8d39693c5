//! A primary whose storage is rolled back to a snapshot: it runs the same job again, and
//! what it writes is ours again where our WAL ends. Only further back the two differ.

use crate::archiving::Archive;
use crate::cluster::{Cluster, assert_converged};
use crate::hub::Hub;
use crate::load;
use crate::scene::Scene;
use crate::segments::{complete_segments, flip};
use crate::streaming::wait_connected;
use crate::wait;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;
use walhub::wal::lsn::Lsn;

/// A primary that stands at the beginning of a segment, with a hub and a standby of it.
struct Stage<'a> {
    scene: &'a Scene,
    primary: Cluster<'a>,
    /// A place for a second server; it does not run.
    other: Cluster<'a>,
    hub: Hub<'a>,
    standby: Cluster<'a>,
    snapshot: PathBuf,
}

impl<'a> Stage<'a> {
    /// `conninfo` names the hub's upstreams, from the ports of the primary and the other.
    fn new(scene: &'a Scene, conninfo: impl FnOnce(u16, u16) -> String) -> Self {
        let mut primary = Cluster::primary_with_segments(scene, "primary", 1);
        primary.set("log_replication_commands=on");
        primary.stop_fast();
        let other = primary.copy_of_files("other");
        primary.start();
        let hub = Hub::run(scene, "hub", &conninfo(primary.port(), other.port()));
        load::prepare(scene, &primary);
        wait_connected(&primary);
        let standby = primary.standby("standby", &hub.conninfo());
        standby.wait_streaming();
        load::switch_segment(&primary);
        primary.stop_fast();
        let snapshot = primary.snapshot("snapshot");
        Self { scene, primary, other, hub, standby, snapshot }
    }

    /// The job: not a byte of it depends on the time, but the letter it begins with.
    fn run_job(&mut self, letter: char) -> Lsn {
        self.run_job_of(letter, 200)
    }

    /// The same with so many records of 1 kB.
    fn run_job_of(&mut self, letter: char, records: u32) -> Lsn {
        self.primary.start();
        self.primary.sql(&format!(
            "select count(pg_logical_emit_message(false, 'job', \
             case n when 1 then repeat('{letter}', 1000) else repeat('x', 1000) end)) \
             from generate_series(1, {records}) n"
        ));
        wait::until("the job is flushed", || {
            self.primary.sql("select pg_current_wal_insert_lsn() = pg_current_wal_flush_lsn()")
                == "t"
        });
        self.primary.flush_lsn()
    }

    /// The job runs, and everybody has its WAL; then the primary is rolled back, and it runs
    /// again. The hub, restarted, has more to compare than the last page.
    fn run_roll_back_and_run_again(&mut self) -> (Lsn, PathBuf) {
        let end = self.run_job('a');
        self.standby.wait_replayed(end);
        wait::until("the hub has it all", || self.hub.inspect().record_end() >= end);
        self.primary.kill();
        let truth = self.primary.snapshot("truth");
        self.hub.kill();
        self.primary.roll_back_to(&self.snapshot);
        assert_eq!(self.run_job('b'), end, "the same job gives as much WAL");
        load::write_mib(&self.primary, 3);
        self.hub.start();
        self.hub.wait_state("diverged");
        (end, truth)
    }

    /// Waits until the hub has asked for a stream twice more, and has taken nothing.
    fn stays_apart(&self, end: Lsn) {
        let log = self.scene.path("primary.log");
        let asked =
            || fs::read_to_string(&log).unwrap().matches("command: START_REPLICATION").count();
        let before = asked();
        wait::until("the hub has asked twice more", || {
            assert_eq!(self.hub.inspect().record_end(), end, "the hub has joined two histories");
            asked() >= before + 2
        });
        wait::stays(Duration::from_secs(1), "nothing of the other history is taken", || {
            self.hub.inspect().record_end() == end && self.standby.replay_lsn() <= end
        });
        self.hub.wait_state("diverged");
    }
}

#[test]
fn a_primary_that_was_rolled_back_is_never_joined() {
    let scene = Scene::new();
    let mut stage =
        Stage::new(&scene, |port, _| format!("host=127.0.0.1 port={port} user=postgres"));
    let (end, truth) = stage.run_roll_back_and_run_again();
    stage.stays_apart(end);
    stage.hub.kill();
    stage.hub.start();
    stage.stays_apart(end);

    let status = stage.hub.told(&["status"])["status"].clone();
    assert_eq!(status["evidence"]["timeline"], 1, "{status}");
    let at: Lsn = status["evidence"]["lsn"].as_str().unwrap().parse().unwrap();
    assert!(at.raw() >> 20 == end.raw() >> 20 && at < end, "{at}, {end}");
    let port = stage.primary.port().to_string();
    assert!(status["evidence"]["upstream"].as_str().unwrap().contains(&port), "{status}");
    let text = stage.hub.ctl().arg("status").output().unwrap().stdout;
    assert!(String::from_utf8(text).unwrap().contains("Evidence:"));
    let found = stage.hub.inspect();
    assert_eq!(found.evidence(), Some(at));
    let named = format!("has another history from {at} on timeline 1 on");
    assert!(found.wrong().iter().any(|wrong| wrong.contains(&named)), "{:?}", found.wrong());

    // The true history comes back.
    stage.primary.kill();
    stage.primary.roll_back_to(&truth);
    stage.primary.start();
    wait_connected(&stage.primary);
    load::write_mib(&stage.primary, 2);
    assert_converged(&stage.primary, &[&stage.standby]);
    let status = stage.hub.told(&["status"])["status"].clone();
    assert!(status["evidence"].is_null(), "{status}");
    assert!(!stage.hub.pg_wal().with_file_name("walhub.evidence").exists());
    let found = stage.hub.inspect();
    assert_eq!((found.evidence(), found.wrong()), (None, vec![]));
    stage.hub.assert_running();
}

/// The hub runs on, and has nothing but the page of its last record to compare in its cache; the
/// job's WAL differs 2 MB before.
#[test]
fn a_rollback_is_found_whose_job_is_longer_than_any_overlap() {
    let scene = Scene::new();
    let mut stage =
        Stage::new(&scene, |port, _| format!("host=127.0.0.1 port={port} user=postgres"));
    let end = stage.run_job_of('a', 2600);
    stage.standby.wait_replayed(end);
    wait::until("the hub has it all", || stage.hub.inspect().record_end() >= end);
    stage.primary.kill();
    stage.primary.roll_back_to(&stage.snapshot);
    // Nobody sees the primary while it is behind the hub.
    let port = stage.primary.port();
    stage.hub.told(&["upstream", "host=/nonexistent user=postgres"]);
    assert_eq!(stage.run_job_of('b', 2600), end, "the same job gives as much WAL");
    load::write_mib(&stage.primary, 3);
    stage.hub.told(&["upstream", &format!("host=127.0.0.1 port={port} user=postgres")]);
    stage.hub.wait_state("diverged");
    let place = stage.hub.inspect().evidence().expect("a place");
    assert!(end.bytes_since(place) > 2 << 20, "{place} {end}");
    stage.stays_apart(end);
}

/// A primary that was rolled back to before the hub's end is no server that catches up.
#[test]
fn an_upstream_that_was_rolled_back_behind_the_hub_diverges() {
    let scene = Scene::new();
    let mut stage =
        Stage::new(&scene, |port, _| format!("host=127.0.0.1 port={port} user=postgres"));
    let end = stage.run_to_the_end();
    stage.primary.roll_back_to(&stage.snapshot);
    stage.primary.start();
    stage.write('b', 20);
    assert!(stage.primary.flush_lsn() < end);
    stage.hub.wait_state("diverged");
    let place = stage.hub.inspect().evidence().expect("a place");
    assert!(place < stage.primary.flush_lsn(), "{place}");
    assert_eq!(stage.hub.inspect().record_end(), end);
}

/// One host's difference does not stop another that has our bytes.
#[test]
fn another_host_that_has_our_bytes_is_followed() {
    let scene = Scene::new();
    let mut stage = Stage::new(&scene, |primary, other| {
        format!("host=127.0.0.1,127.0.0.1 port={primary},{other} user=postgres")
    });
    let (end, truth) = stage.run_roll_back_and_run_again();
    stage.stays_apart(end);
    stage.other.roll_back_to(&truth);
    stage.other.start();
    wait_connected(&stage.other);
    load::write_mib(&stage.other, 2);
    assert_converged(&stage.other, &[&stage.standby]);
    assert!(complete_segments(&stage.hub.pg_wal()).len() > 2);
    let status = stage.hub.told(&["status"])["status"].clone();
    assert_eq!(status["evidence"]["cleared"], true, "{status}");
}

/// Another host that has our bytes, and nothing new, vouches for itself alone: from where our
/// WAL ends the two histories look the same.
#[test]
fn a_host_that_differed_is_not_followed_after_another_that_agreed() {
    let scene = Scene::new();
    let mut stage = Stage::new(&scene, |primary, other| {
        format!("host=127.0.0.1,127.0.0.1 port={primary},{other} user=postgres")
    });
    let (end, truth) = stage.run_roll_back_and_run_again();
    stage.stays_apart(end);
    let place = stage.hub.inspect().evidence();
    stage.other.roll_back_to(&truth);
    stage.other.make_standby();
    stage.other.start();
    wait_connected(&stage.other);
    stage.hub.wait_state("streaming");
    assert_eq!(stage.hub.inspect().evidence(), place, "it stands against its author");

    stage.other.kill();
    stage.stays_apart(end);
    stage.hub.kill();
    stage.hub.start();
    stage.stays_apart(end);
    assert_eq!(stage.hub.inspect().evidence(), place);

    // The true history comes back at its author.
    stage.primary.kill();
    stage.primary.roll_back_to(&truth);
    stage.primary.start();
    wait_connected(&stage.primary);
    load::write_mib(&stage.primary, 2);
    assert_converged(&stage.primary, &[&stage.standby]);
    assert_eq!(stage.hub.inspect().evidence(), None);
}

/// The archive of before the rollback has our bytes. What else is in an archive nobody knows, so it clears
/// nothing.
#[test]
fn an_archive_that_has_our_bytes_clears_nothing() {
    let scene = Scene::new();
    let mut stage =
        Stage::new(&scene, |port, _| format!("host=127.0.0.1 port={port} user=postgres"));
    let (end, truth) = stage.run_roll_back_and_run_again();
    let place = stage.hub.inspect().evidence();
    stage.hub.kill();
    let archive = truth.join("pg_wal");
    stage.hub.set_flag(&format!("--restore-command=cp {}/%f %p", archive.display()));
    stage.hub.start();
    stage.hub.wait_log(&["WARN", "the archive shows nothing", "and may have archived it"]);
    stage.stays_apart(end);
    assert_eq!(stage.hub.inspect().evidence(), place, "it stands");
    let status = stage.hub.told(&["status"])["status"].clone();
    assert_eq!(status["evidence"]["cleared"], false, "{status}");
}

/// The server archives with the usual command, which keeps what is there. Rolled back, it archives
/// another history's files after ours.
#[test]
fn an_archive_of_two_histories_is_no_source() {
    let scene = Scene::new();
    let mut stage =
        Stage::new(&scene, |port, _| format!("host=127.0.0.1 port={port} user=postgres"));
    let archive = Archive::new(&scene, "archive", stage.primary.programs.account());
    let file = archive.folder().join("%f");
    let command = format!("test -f {0} || cp %p {0}", file.display());
    stage.hub.kill();
    stage.hub.set_flag(&format!("--restore-command={}", archive.restore_command()));
    stage.hub.start();
    let archived = |stage: &Stage<'_>, writer: u32, segments: u32| {
        for _ in 0..segments {
            stage.primary.sql(&format!(
                "insert into pgbench_history (tid, bid, aid, delta, mtime) \
                 values (1, 1, 1, {writer}, now())"
            ));
            load::switch_segment(&stage.primary);
        }
        let end = stage.primary.flush_lsn();
        archive.wait_for(&format!("0000000100000000{:08X}", (end.raw() >> 20) - 1));
        end
    };
    let rows = |stage: &Stage<'_>, writer: u32| {
        stage.standby.count(&format!("select count(*) from pgbench_history where delta = {writer}"))
    };
    for setting in ["archive_mode=on", &format!("archive_command={command}")] {
        stage.primary.set(setting);
    }
    stage.primary.start();
    let end = archived(&stage, 1001, 3);
    stage.standby.wait_replayed(end);
    wait::until("the hub has it all", || stage.hub.inspect().record_end() >= end);
    let end = stage.hub.inspect().record_end();
    stage.primary.kill();
    stage.primary.roll_back_to(&stage.snapshot);
    for setting in ["archive_mode=on", &format!("archive_command={command}")] {
        stage.primary.set(setting);
    }
    stage.primary.start();
    assert!(archived(&stage, 1002, 6) > end);
    stage.hub.wait_state("diverged");
    let stays = |stage: &Stage<'_>| {
        wait::stays(Duration::from_secs(4), "nothing of the other history is taken", || {
            stage.hub.inspect().record_end() == end && rows(stage, 1002) == 0
        });
        assert_eq!(rows(stage, 1001), 3);
    };
    stays(&stage);
    let status = stage.hub.told(&["status"])["status"].clone();
    assert_eq!(status["evidence"]["cleared"], false, "{status}");

    // The operator's word makes no source of it either.
    let place = stage.hub.inspect().evidence().expect("a place").to_string();
    stage.hub.told(&["accept-history", "ours", &place]);
    stays(&stage);
    stage.hub.wait_log(&["WARN", "the archive shows nothing", "and may have archived it"]);
}

/// What the hub has archived itself is no witness of its WAL, whether it still archives or not.
#[test]
fn what_the_hub_has_archived_itself_clears_nothing() {
    let scene = Scene::new();
    let mut stage =
        Stage::new(&scene, |port, _| format!("host=127.0.0.1 port={port} user=postgres"));
    let archive = Archive::new(&scene, "archive", None);
    stage.hub.kill();
    stage.hub.set_flag(&format!("--archive-command={}", archive.command()));
    stage.hub.set_flag(&format!("--restore-command={}", archive.restore_command()));
    stage.hub.start();
    let end = stage.run_job_of('a', 2600);
    stage.standby.wait_replayed(end);
    let archived = complete_segments(&stage.hub.pg_wal());
    archive.wait_for(archived.last().expect("the job fills segments"));
    stage.primary.kill();
    stage.primary.roll_back_to(&stage.snapshot);
    assert_eq!(stage.run_job_of('b', 2600), end, "the same job gives as much WAL");
    load::write_mib(&stage.primary, 3);
    stage.hub.wait_state("diverged");
    let place = stage.hub.inspect().evidence().expect("a place");
    assert!(archived.iter().any(|name| archive.path(name).exists()), "{place}");
    let shows_nothing = |stage: &Stage<'_>| {
        stage.hub.wait_log(&["WARN", "the archive shows nothing", "and may have archived it"]);
        stage.stays_apart(end);
        let status = stage.hub.told(&["status"])["status"].clone();
        assert_eq!(status["evidence"]["cleared"], false, "{status}");
        assert_eq!(stage.hub.inspect().evidence(), Some(place));
    };
    shows_nothing(&stage);
    stage.hub.stop();
    stage.hub.remove_flag("--archive-command");
    stage.hub.start();
    shows_nothing(&stage);
}

/// A file of the archive differs, and then the hub's own copy is there again.
#[test]
fn a_copy_of_the_hubs_own_ends_no_difference_of_the_archive() {
    let scene = Scene::new();
    let mut stage =
        Stage::new(&scene, |port, _| format!("host=127.0.0.1 port={port} user=postgres"));
    let archive = Archive::new(&scene, "archive", None);
    stage.hub.kill();
    stage.hub.set_flag(&format!("--archive-command={}", archive.command()));
    stage.hub.set_flag(&format!("--restore-command={}", archive.restore_command()));
    stage.hub.start();
    let end = stage.run_job_of('a', 2600);
    stage.standby.wait_replayed(end);
    let archived = complete_segments(&stage.hub.pg_wal());
    let last = archived.last().expect("the job fills segments");
    archive.wait_for(last);
    stage.hub.stop();
    // The archive has more than the hub, so its files are compared with what the hub has.
    load::switch_segment(&stage.primary);
    stage.primary.kill();
    let open = format!("0000000100000000{:08X}", end.raw() >> 20);
    fs::copy(stage.primary.pg_wal().join(&open), archive.path(&open)).unwrap();
    let mend = flip(&archive.path(last), 1_038_000);
    stage.hub.start();
    stage.hub.wait_state("archive differs");
    mend();
    stage.hub.wait_log(&["WARN", "may have archived it itself"]);
    let place = stage.hub.inspect().evidence().expect("a place");
    stage.hub.stop();
    stage.hub.remove_flag("--archive-command");
    stage.hub.start();
    wait::stays(Duration::from_secs(3), "its mark shows whose copy it is", || {
        stage.hub.inspect().evidence() == Some(place)
    });

    // Somebody else's copy counts.
    for name in &archived {
        drop(fs::remove_file(stage.hub.pg_wal().join(format!("archive_status/{name}.done"))));
    }
    wait::until("it has ended", || stage.hub.inspect().evidence().is_none());
}

/// An operator says that the hub's history is the true one: nobody else has to show its WAL, and its
/// source is not followed all the same.
#[test]
fn ours_leaves_the_place_standing_against_its_author() {
    let scene = Scene::new();
    let mut stage =
        Stage::new(&scene, |port, _| format!("host=127.0.0.1 port={port} user=postgres"));
    let (end, _) = stage.run_roll_back_and_run_again();
    let place = stage.hub.inspect().evidence().expect("a place");

    let elsewhere = place.saturating_add(1).to_string();
    let said = stage.hub.ctl().args(["accept-history", "ours", &elsewhere]).output().unwrap();
    assert_eq!(said.status.code(), Some(1), "{said:?}");
    let text = String::from_utf8(said.stderr).unwrap();
    let port = stage.primary.port().to_string();
    assert!(text.contains(&format!("at {place} on timeline 1")) && text.contains(&port), "{text}");
    assert_eq!(stage.hub.told(&["status"])["status"]["evidence"]["cleared"], false);

    for _ in 0..2 {
        let said = stage.hub.told(&["accept-history", "ours", &place.to_string()]);
        assert_eq!(said["evidence"]["cleared"], true, "{said}");
    }
    stage.hub.wait_log(&["WARN", "this hub's history is the true one", "stands against"]);
    stage.stays_apart(end);
    stage.hub.kill();
    stage.hub.start();
    let status = stage.hub.told(&["status"])["status"].clone();
    assert_eq!(status["evidence"]["cleared"], true, "{status}");
    stage.stays_apart(end);
}

impl Stage<'_> {
    /// A job writes messages of a letter.
    fn write(&self, letter: char, records: u32) {
        self.primary.sql(&format!(
            "select count(pg_logical_emit_message(false, 'job', repeat('{letter}', 1000))) \
             from generate_series(1, {records}) n"
        ));
        wait::until("the job is flushed", || {
            self.primary.sql("select pg_current_wal_insert_lsn() = pg_current_wal_flush_lsn()")
                == "t"
        });
    }

    /// The job runs on a primary and is received. Returns the hub's end; the primary is away.
    fn run_to_the_end(&mut self) -> Lsn {
        self.primary.start();
        self.write('a', 400);
        let end = self.primary.flush_lsn();
        self.standby.wait_replayed(end);
        wait::until("the hub has it all", || self.hub.inspect().record_end() >= end);
        let end = self.hub.inspect().record_end();
        self.primary.kill();
        end
    }

    /// The primary is rolled back, writes less than before and something else, and is promoted.
    /// Returns the switchpoint.
    fn roll_back_and_promote(&mut self) -> Lsn {
        self.primary.roll_back_to(&self.snapshot);
        self.primary.start();
        self.write('b', 20);
        self.primary.stop_fast();
        self.primary.make_standby();
        self.primary.start();
        self.primary.promote();
        load::write_mib(&self.primary, 2);
        let history = fs::read_to_string(self.primary.pg_wal().join("00000002.history")).unwrap();
        history.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

/// The primary is rolled back, writes something else and is promoted: its new timeline leaves ours
/// before the place where a difference was found, and what precedes the fork is not ours either.
#[test]
fn a_fork_before_a_difference_is_not_followed_with_other_wal_before_it() {
    let scene = Scene::new();
    let mut stage =
        Stage::new(&scene, |port, _| format!("host=127.0.0.1 port={port} user=postgres"));
    // A second snapshot, after half of the job.
    stage.primary.start();
    stage.write('a', 200);
    stage.primary.stop_fast();
    let later = stage.primary.snapshot("later");
    let end = stage.run_to_the_end();
    stage.primary.roll_back_to(&later);
    stage.primary.start();
    stage.write('b', 400);
    load::write_mib(&stage.primary, 3);
    stage.hub.wait_state("diverged");
    let place = stage.hub.inspect().evidence().expect("a place");

    stage.primary.kill();
    let fork = stage.roll_back_and_promote();
    assert!(fork < place, "{fork} {place}");
    stage.stays_apart(end);
    assert_eq!(stage.hub.told(&["status"])["status"]["timeline"], 1);
}

/// The same, and no difference was found before: the rolled back primary had not come as far as the
/// hub when it was promoted.
#[test]
fn a_rolled_back_primary_that_is_promoted_is_not_followed() {
    let scene = Scene::new();
    let mut stage =
        Stage::new(&scene, |port, _| format!("host=127.0.0.1 port={port} user=postgres"));
    let end = stage.run_to_the_end();
    let fork = stage.roll_back_and_promote();
    assert!(fork < end, "{fork} {end}");
    stage.hub.wait_state("diverged");
    let place = stage.hub.inspect().evidence().expect("a place");
    assert!(place < fork, "{place} {fork}");
    stage.stays_apart(end);
    assert_eq!(stage.hub.told(&["status"])["status"]["timeline"], 1);
}

/// The upstream no longer has the place: what it had there is not forgotten by that.
#[test]
fn a_place_that_the_upstream_has_removed_is_no_proof() {
    let scene = Scene::new();
    let mut stage =
        Stage::new(&scene, |port, _| format!("host=127.0.0.1 port={port} user=postgres"));
    let (end, _) = stage.run_roll_back_and_run_again();
    for setting in ["wal_keep_size=0", "min_wal_size=2MB", "max_wal_size=2MB"] {
        stage.primary.set(setting);
    }
    stage.primary.stop_fast();
    stage.primary.start();
    for _ in 0..4 {
        load::write_mib(&stage.primary, 4);
        stage.primary.sql("checkpoint");
    }
    stage.hub.wait_log(&["diverged", "has already been removed"]);
    stage.stays_apart(end);
}

/// A disk has changed our WAL before the place, and a start finds its end there. A host that has what the
/// hub had at the place is followed.
#[test]
fn a_host_that_shows_what_was_lost_is_followed() {
    let scene = Scene::new();
    let mut stage = Stage::new(&scene, |primary, other| {
        format!("host=127.0.0.1,127.0.0.1 port={primary},{other} user=postgres")
    });
    let (end, truth) = stage.run_roll_back_and_run_again();
    let place = stage.hub.inspect().evidence().expect("a place");
    stage.hub.kill();
    let open = format!("0000000100000000{:08X}.partial", place.raw() >> 20);
    drop(flip(&stage.hub.pg_wal().join(open), place.raw() % (1 << 20) - 60));
    stage.hub.start();
    stage.hub.wait_log(&["ERROR", "before the difference at", &place.to_string()]);
    stage.hub.wait_state("diverged");
    let left = stage.hub.inspect().record_end();
    assert!(left < place, "{left} {place}");
    wait::stays(Duration::from_secs(3), "nothing of the other history is taken", || {
        stage.hub.inspect().record_end() == left && stage.standby.replay_lsn() == end
    });
    assert_eq!(stage.hub.inspect().evidence(), Some(place));

    stage.other.roll_back_to(&truth);
    stage.other.start();
    wait_connected(&stage.other);
    load::write_mib(&stage.other, 2);
    assert_converged(&stage.other, &[&stage.standby]);
    let status = stage.hub.told(&["status"])["status"].clone();
    assert_eq!(status["evidence"]["cleared"], true, "{status}");
}
