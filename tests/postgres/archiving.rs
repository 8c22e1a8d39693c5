//! `--archive-command`: what the hub archives is what the primary archives itself, nothing is
//! left out whatever happens, and a server comes back from it.

use crate::cluster::Cluster;
use crate::hub::Hub;
use crate::load::{self, Load};
use crate::programs::Account;
use crate::scene::Scene;
use crate::segments::{assert_identical, complete_segments};
use crate::streaming::wait_connected;
use crate::wait::{self, from_environment};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

/// A folder that WAL is archived in; everybody may read it.
pub(crate) struct Archive(PathBuf);

impl Archive {
    pub(crate) fn new(scene: &Scene, name: &str, owner: Option<Account>) -> Self {
        let path = scene.path(name);
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        if let Some(owner) = owner {
            chown(&path, Some(owner.uid), Some(owner.gid)).unwrap();
        }
        Self(path)
    }

    /// A command that copies there, so that a name means a whole file.
    pub(crate) fn command(&self) -> String {
        let to = self.0.display();
        format!("install -m 644 %p {to}/%f.copy && mv {to}/%f.copy {to}/%f")
    }

    pub(crate) fn restore_command(&self) -> String {
        format!("cp {}/%f %p", self.0.display())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn folder(&self) -> &PathBuf {
        &self.0
    }

    #[track_caller]
    pub(crate) fn wait_for(&self, name: &str) {
        wait::until(&format!("{name} is archived"), || self.path(name).exists());
    }

    /// Everything that is there.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// Ends the segment that the primary writes, and gives its name.
pub(crate) fn end_segment(primary: &Cluster<'_>) -> String {
    load::write_mib(primary, 1);
    let name = current_segment(primary);
    load::switch_segment(primary);
    name
}

fn current_segment(primary: &Cluster<'_>) -> String {
    primary.sql("select pg_walfile_name(pg_current_wal_insert_lsn())")
}

/// What `walhub ctl status` says of archiving.
fn archiver(hub: &Hub<'_>) -> Value {
    hub.told(&["status"])["status"]["archiver"].clone()
}

fn marks(hub: &Hub<'_>, ending: &str) -> usize {
    let entries = fs::read_dir(hub.pg_wal().join("archive_status")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(ending)).count()
}

/// The primary archives, too: the two archives are the same.
#[test]
fn the_hubs_archive_is_the_primarys() {
    let scene = Scene::new();
    let mut primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let own = Archive::new(&scene, "own", primary.programs.account());
    primary.set("archive_mode=on");
    primary.set(&format!("archive_command={}", own.command()));
    primary.stop_fast();
    primary.start();
    let archive = Archive::new(&scene, "archive", None);
    let first = current_segment(&primary);
    let hub = Hub::new(&scene, "hub", &primary.conninfo())
        .flag(&format!("--archive-command={}", archive.command()))
        .started();
    wait_connected(&primary);
    load::write_mib(&primary, 12);
    let last = end_segment(&primary);
    for archive in [&own, &archive] {
        archive.wait_for(&last);
    }
    assert!(archive.path(&first).exists(), "{first} is left out");
    assert_identical(archive.folder(), own.folder(), 12);
    let complete = complete_segments(&hub.pg_wal()).len();
    wait::until("all are marked as archived", || {
        (marks(&hub, ".ready"), marks(&hub, ".done")) == (0, complete)
    });
    assert!(hub.inspect().wrong().is_empty(), "{:?}", hub.inspect().wrong());
}

/// WAL that is not archived stays beyond `--wal-keep-size`, and goes when it is.
#[test]
fn while_the_command_fails_wal_is_kept() {
    let scene = Scene::new();
    let primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let archive = Archive::new(&scene, "archive", None);
    let switch = scene.path("on");
    let first = current_segment(&primary);
    let mut hub = Hub::new(&scene, "hub", &primary.conninfo())
        .flag("--wal-keep-size=1MB")
        .flag(&format!("--archive-command=test -e {} && {}", switch.display(), archive.command()));
    hub.start();
    wait_connected(&primary);
    load::write_mib(&primary, 40);
    let end = primary.flush_lsn();
    wait::until("the hub has it all", || hub.inspect().record_end() >= end);
    hub.wait_log(&["archive command failed with exit code 1", &first]);
    hub.wait_log(&[&first, "failed too many times, will try again later"]);
    hub.wait_log(&["files wait to be archived"]);
    // Over a restart, too.
    hub.kill();
    hub.start();
    wait_connected(&primary);
    load::write_mib(&primary, 4);
    let end = primary.flush_lsn();
    wait::until("the hub has it all", || hub.inspect().record_end() >= end);
    wait::until("nothing goes", || complete_segments(&hub.pg_wal()).len() >= 44);
    assert!(hub.pg_wal().join(&first).exists());
    assert!(archive.names().is_empty());
    let waits = archiver(&hub);
    assert!(waits["waiting_segments"].as_u64().unwrap() >= 44, "{waits}");
    assert_eq!(
        (waits["next_wal"].as_str(), waits["archived_count"].as_u64()),
        (Some(&*first), Some(0))
    );
    wait::until("it was tried", || archiver(&hub)["last_failed_wal"] == *first);

    fs::write(&switch, "").unwrap();
    let last = end_segment(&primary);
    archive.wait_for(&last);
    assert!(archive.path(&first).exists());
    assert_identical(archive.folder(), &primary.pg_wal(), 44);
    hub.wait_log(&["no files are waiting to be archived any more"]);
    assert_eq!(archiver(&hub)["waiting_segments"], 0);
    wait::until("old WAL goes", || complete_segments(&hub.pg_wal()).len() <= 18);
    wait::until("and its marks", || marks(&hub, ".done") <= 18);
}

/// `WALHUB_KILLS` asks for more.
#[test]
fn nothing_is_left_out_when_the_hub_is_killed() {
    let scene = Scene::new();
    let primary = Cluster::primary_with_segments(&scene, "primary", 1);
    load::prepare(&scene, &primary);
    let archive = Archive::new(&scene, "archive", None);
    let first = current_segment(&primary);
    // The keeper removes as soon as it may.
    let mut hub = Hub::new(&scene, "hub", &primary.conninfo())
        .flag("--wal-keep-size=1MB")
        .flag(&format!("--archive-command=sleep 0.1; {}", archive.command()));
    hub.start();
    wait_connected(&primary);
    let work = Load::start(&scene, &primary);
    let kills = from_environment("WALHUB_KILLS", 4);
    for round in 0..kills {
        load::write_mib(&primary, 8);
        thread::sleep(Duration::from_millis(150 + round % 7 * 40));
        hub.kill();
        hub.start();
        wait_connected(&primary);
    }
    work.stop(&primary);
    let last = end_segment(&primary);
    // Nearly all files are waiting still, and each takes its time.
    let limit = wait::PATIENCE + Duration::from_millis(250) * (8 * kills) as u32;
    wait::within(limit, &format!("{last} is archived"), || {
        archive.path(&last).exists().then_some(())
    });
    assert!(archive.path(&first).exists(), "{first} is left out");
    assert_identical(archive.folder(), &primary.pg_wal(), 32);
}

/// The history file goes before the segments of its timeline; a base backup from before the
/// failover comes back from this archive alone, over both timelines, up to the end.
#[test]
fn a_server_comes_back_from_the_hubs_archive() {
    let scene = Scene::new();
    let old = Cluster::primary_with_segments(&scene, "old", 1);
    let archive = Archive::new(&scene, "archive", None);
    let order = scene.path("order");
    let middle = old.standby("middle", &old.conninfo());
    middle.wait_streaming();
    let hub = Hub::new(&scene, "hub", &middle.conninfo())
        .flag(&format!("--archive-command=echo %f >> {}; {}", order.display(), archive.command()))
        .started();
    wait_connected(&middle);
    let backup = old.backup("backup");
    load::prepare(&scene, &old);
    middle.wait_replayed(old.flush_lsn());
    middle.promote();
    load::write_mib(&middle, 2);
    middle.sql("update pgbench_accounts set abalance = aid where aid < 1000");
    let expected = middle.fingerprint();
    let last = end_segment(&middle);
    archive.wait_for(&last);
    hub.wait_log(&["timeline 1 ended"]);

    let history = fs::read(archive.path("00000002.history")).unwrap();
    assert_eq!(history, fs::read(middle.pg_wal().join("00000002.history")).unwrap());
    let order = fs::read_to_string(&order).unwrap();
    let place = |name: &str| order.lines().position(|line| line == name);
    let second = order.lines().position(|line| line.starts_with("000000020")).unwrap();
    assert!(place("00000002.history").unwrap() < second, "{order}");
    // Of the segment in which the timeline ended there is the child's only.
    let names = complete_segments(archive.folder());
    let fork = names.iter().find(|name| name.starts_with("00000002")).unwrap();
    assert!(!names.contains(&format!("00000001{}", &fork[8..])), "{names:?}");
    assert!(archive.names().iter().all(|name| !name.contains(".partial")));
    assert_identical(archive.folder(), &middle.pg_wal(), 15);

    let restored = backup.restored(&archive.restore_command());
    wait::until("recovery ends", || restored.sql("select pg_is_in_recovery()") == "f");
    assert_eq!(restored.fingerprint(), expected);
    assert_eq!(restored.count("select timeline_id from pg_control_checkpoint()"), 3);
}

/// What lies past the switchpoint when nobody has archived it yet waits no more, and what
/// lies before it still does.
#[test]
fn wal_that_nobody_follows_is_not_archived() {
    let scene = Scene::new();
    let old = Cluster::primary_with_segments(&scene, "old", 1);
    let archive = Archive::new(&scene, "archive", None);
    let switch = scene.path("on");
    let mut new = old.standby("new", &old.conninfo());
    new.wait_streaming();
    let first = current_segment(&old);
    let command = format!("test -e {} && {}", switch.display(), archive.command());
    let mut hub =
        Hub::new(&scene, "hub", &old.conninfo()).flag(&format!("--archive-command={command}"));
    hub.start();
    hub.wait_state("streaming");
    load::write_mib(&old, 3);
    new.wait_replayed(old.flush_lsn());
    new.kill();
    load::write_mib(&old, 3);
    let tail = old.flush_lsn();
    wait::until("the hub has the tail", || hub.inspect().record_end() >= tail);
    drop(old);
    new.set("primary_conninfo=");
    new.start();
    new.promote();
    hub.kill();
    hub.set_upstream(&new.conninfo());
    hub.start();
    hub.wait_log(&["timeline 1 ended"]);

    fs::write(&switch, "").unwrap();
    let last = end_segment(&new);
    archive.wait_for(&last);
    let names = complete_segments(archive.folder());
    let of = |tli: &str| {
        let of = names.iter().filter(|name| name.starts_with(tli));
        of.map(|name| name[8..].to_owned()).collect::<Vec<_>>()
    };
    let (before, after) = (of("00000001"), of("00000002"));
    assert_eq!(before.first().unwrap(), &first[8..]);
    assert!(before.last() < after.first(), "{names:?}");
    assert!(archive.path("00000002.history").exists());
    assert_identical(archive.folder(), &new.pg_wal(), 4);
    wait::until("no mark is left of the rest", || {
        (marks(&hub, ".ready"), marks(&hub, ".done")) == (0, names.len() + 1)
    });
}
