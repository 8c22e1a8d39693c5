//! A segment is missing in the middle of pg_wal when the hub starts: what lies before it
//! stays as long as the rules say, is served up to the hole, and is archived. One is missing
//! before the open segment, or is none: nothing is lost by that.

use crate::archiving::Archive;
use crate::client::Client;
use crate::cluster::Cluster;
use crate::hub::Hub;
use crate::load;
use crate::scene::Scene;
use crate::segments::{assert_identical, complete_segments};
use crate::streaming::wait_connected;
use crate::wait;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use walhub::wal::lsn::Lsn;

const MIB: u64 = 1 << 20;

/// Several of retention's passes, which come every second and with each segment.
const PASSES: Duration = Duration::from_secs(4);

/// The first position of a segment of 1 MiB.
fn start_of(name: &str) -> Lsn {
    Lsn::new(u64::from_str_radix(&name[16..], 16).unwrap() * MIB)
}

fn wait_received(primary: &Cluster<'_>, hub: &Hub<'_>) {
    let end = primary.flush_lsn();
    wait::until("the hub has it all", || {
        let status = &hub.told(&["status"])["status"];
        status["durable_lsn"].as_str().is_some_and(|at| at.parse::<Lsn>().unwrap() >= end)
    });
}

fn durable(hub: &Hub<'_>) -> Lsn {
    hub.told(&["status"])["status"]["durable_lsn"].as_str().unwrap().parse().unwrap()
}

/// Takes a segment out of a stopped hub's pg_wal; where it is now.
fn take_out(scene: &Scene, hub: &Hub<'_>, name: &str) -> PathBuf {
    let aside = scene.path(&format!("taken-{}-{name}", hub.port()));
    fs::rename(hub.pg_wal().join(name), &aside).unwrap();
    aside
}

/// These segments are here, and stay so over passes of retention.
#[track_caller]
fn stay(hub: &Hub<'_>, names: &[String]) {
    wait::stays(PASSES, &format!("all of {names:?} are here"), || {
        let here = complete_segments(&hub.pg_wal());
        names.iter().all(|name| here.contains(name))
    });
}

#[test]
fn a_start_keeps_what_lies_before_a_hole() {
    let scene = Scene::new();
    let primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let hub = |name: &str, flag: &str| Hub::new(&scene, name, &primary.conninfo()).flag(flag);
    let mut by_slot = hub("slot", "--wal-keep-size=1MB").started();
    let mut by_size = hub("size", "--wal-keep-size=1GB").started();
    let mut by_time = hub("time", "--wal-keep-size=1MB").flag("--wal-keep-time=1h").started();
    let mut by_none = hub("none", "--wal-keep-size=1MB").started();
    for hub in [&by_slot, &by_size, &by_time, &by_none] {
        hub.wait_state("streaming");
    }
    Client::connect(by_slot.port())
        .query("CREATE_REPLICATION_SLOT standby PHYSICAL (RESERVE_WAL)")
        .unwrap();
    load::write_mib(&primary, 30);
    for hub in [&by_slot, &by_size, &by_time, &by_none] {
        wait_received(&primary, hub);
    }

    let mut held = Vec::new();
    for hub in [&mut by_slot, &mut by_size, &mut by_time, &mut by_none] {
        hub.stop();
        let mut names = complete_segments(&hub.pg_wal());
        let missing = names.remove(names.len() - 8);
        let aside = take_out(&scene, hub, &missing);
        hub.start();
        hub.wait_log(&["WARN", "missing", &missing]);
        held.push((names, missing, aside));
    }
    for (hub, (names, ..)) in [&by_slot, &by_size, &by_time].into_iter().zip(&held) {
        assert!(names.len() > 20, "{names:?}");
        stay(hub, names);
    }
    // The rules keep the newest 16, of which one is missing and one is open.
    let (names, ..) = &held[3];
    stay(&by_none, &names[names.len() - 14..]);
    // Over more WAL as well.
    load::write_mib(&primary, 2);
    for (hub, (names, missing, aside)) in [&by_slot, &by_size, &by_time].into_iter().zip(&held) {
        wait_received(&primary, hub);
        stay(hub, names);
        assert_told(hub, missing);
        serves_up_to_the_hole(hub, &names[0], missing, aside);
    }
}

fn assert_told(hub: &Hub<'_>, missing: &str) {
    let status = &hub.told(&["status"])["status"];
    assert_eq!(status["missing"][0]["segments"], missing, "{status}");
    assert_eq!(status["missing"].as_array().map(Vec::len), Some(1));
    let looked = crate::hub::command().arg("inspect").arg(hub.directory()).output().unwrap();
    let text = String::from_utf8(looked.stdout).unwrap();
    assert_eq!(looked.status.code(), Some(2), "{text}");
    assert!(text.contains(&format!("{missing} missing")), "{text}");
}

/// A standby before the hole gets what is here, hears what a PostgreSQL server would say,
/// and goes on when the segment was copied back.
fn serves_up_to_the_hole(hub: &Hub<'_>, first: &str, missing: &str, aside: &PathBuf) {
    let (from, hole) = (start_of(first), start_of(missing));
    let mut client = Client::connect(hub.port());
    client.start_replication(from, 1).unwrap();
    client.read_wal(from, hole);
    let error = client.next_wal().unwrap_err();
    let removed = format!("requested WAL segment {missing} has already been removed");
    assert_eq!((error.sqlstate.as_str(), error.message), ("58P01", removed));

    fs::copy(aside, hub.pg_wal().join(missing)).unwrap();
    let mut client = Client::connect(hub.port());
    client.start_replication(hole, 1).unwrap();
    let wal = client.read_wal(hole, hole.saturating_add(2 * MIB));
    assert!(wal.starts_with(&fs::read(aside).unwrap()));
}

/// The newest complete segment is missing, and the open one has what was acknowledged last. That
/// cannot be proven, so the hub goes back, says so, and loses nothing by it.
#[test]
fn a_hole_before_the_open_segment_is_told_and_filled() {
    let scene = Scene::new();
    let primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let mut hub = Hub::run(&scene, "hub", &primary.conninfo());
    hub.wait_state("streaming");
    load::write_mib(&primary, 6);
    wait_received(&primary, &hub);
    let end = durable(&hub);
    hub.stop();
    let newest = complete_segments(&hub.pg_wal()).pop().unwrap();
    let open = hub.pg_wal().join(name_after(&newest) + ".partial");
    let acknowledged = fs::read(&open).unwrap();

    let aside = take_out(&scene, &hub, &newest);
    hub.set_upstream("host=/nonexistent");
    hub.start();
    hub.wait_log(&["WARN", "missing", &newest]);
    assert_eq!(durable(&hub), start_of(&newest));
    assert_told(&hub, &newest);
    hub.stop();

    // What is put back is all there again.
    fs::copy(&aside, hub.pg_wal().join(&newest)).unwrap();
    hub.start();
    assert!(durable(&hub) >= end, "{} of {end}", durable(&hub));
    assert_eq!(hub.told(&["status"])["status"]["missing"].as_array().map(Vec::len), Some(0));
    hub.stop();

    // WAL that comes in fills the hole; what was acknowledged is kept beside it.
    fs::remove_file(hub.pg_wal().join(&newest)).unwrap();
    hub.set_upstream(&primary.conninfo());
    hub.start();
    wait_received(&primary, &hub);
    let stray = open.with_extension("partial.stray");
    hub.wait_log(&["WARN", "set aside", stray.to_str().unwrap()]);
    assert!(fs::read(&stray).unwrap() == acknowledged, "what was acknowledged is gone");
    assert_eq!(hub.told(&["status"])["status"]["missing"].as_array().map(Vec::len), Some(0));
    wait::until("the hole is filled", || {
        fs::read(hub.pg_wal().join(&newest)).is_ok_and(|bytes| bytes == fs::read(&aside).unwrap())
    });
}

/// The name of the segment after this one, of 1 MiB, in the same 4 GiB.
fn name_after(name: &str) -> String {
    format!("{}{:08X}", &name[..16], u32::from_str_radix(&name[16..], 16).unwrap() + 1)
}

fn names_in(folder: &Path) -> BTreeSet<OsString> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect()
}

/// Whatever a start refuses, it leaves as it was: once the fault is mended, all is there.
#[test]
fn a_start_that_is_refused_loses_nothing() {
    let scene = Scene::new();
    let primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let mut hub = Hub::new(&scene, "hub", &primary.conninfo()).flag("--archive-command=false");
    hub.start();
    hub.wait_state("streaming");
    load::write_mib(&primary, 4);
    wait_received(&primary, &hub);
    let end = durable(&hub);
    hub.stop();
    hub.set_upstream("host=/nonexistent");
    let newest = complete_segments(&hub.pg_wal()).pop().unwrap();
    let path = |name: &str| hub.pg_wal().join(name);
    let whole = fs::read(path(&newest)).unwrap();
    let later = format!("{}00000FFF", &newest[..16]);
    let (before, marks) = (names_in(&hub.pg_wal()), hub.pg_wal().join("archive_status"));
    let marked = names_in(&marks);

    fs::write(path(&newest), &whole[..500_000]).unwrap();
    assert!(hub.refuses_to_start().contains("has 500000 bytes"));
    fs::write(path(&newest), &whole).unwrap();
    for bogus in [&vec![0; whole.len()], &whole] {
        fs::write(path(&later), bogus).unwrap();
        assert!(hub.refuses_to_start().contains(&later));
        fs::remove_file(path(&later)).unwrap();
    }
    // A pipe makes nobody wait.
    let (fence, history) = (hub.directory().join("walhub.fence"), path("00000001.history"));
    let names = [path(&later), path(&format!("{later}.partial")), fence, history];
    for pipe in &names {
        let made = Command::new("mkfifo").arg(pipe).status().unwrap();
        assert!(made.success());
        let reason = format!("{}\": it is a named pipe", pipe.display());
        assert!(hub.refuses_to_start().contains(&reason), "{reason}");
        fs::remove_file(pipe).unwrap();
    }
    // A link whose target is away is no missing file: it may lead to a fence.
    for link in &names {
        std::os::unix::fs::symlink("/nonexistent/file", link).unwrap();
        let reason = format!("{}\": it is a symbolic link", link.display());
        assert!(hub.refuses_to_start().contains(&reason), "{reason}");
        fs::remove_file(link).unwrap();
    }
    assert_eq!(names_in(&hub.pg_wal()), before);
    assert_eq!(names_in(&marks), marked);
    assert!(!hub.directory().join("halted").exists());
    hub.start();
    assert!(durable(&hub) >= end, "{} of {end}", durable(&hub));
}

/// What waits for the archive stays before a hole, too, and goes when it is archived.
#[test]
fn what_waits_before_a_hole_is_archived() {
    let scene = Scene::new();
    let primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let archive = Archive::new(&scene, "archive", None);
    let switch = scene.path("on");
    let mut hub = Hub::new(&scene, "hub", &primary.conninfo())
        .flag("--wal-keep-size=1MB")
        .flag(&format!("--archive-command=test -e {} && {}", switch.display(), archive.command()));
    hub.start();
    wait_connected(&primary);
    load::write_mib(&primary, 30);
    wait_received(&primary, &hub);
    hub.stop();
    let mut names = complete_segments(&hub.pg_wal());
    let missing = names.remove(6);
    take_out(&scene, &hub, &missing);
    hub.start();
    stay(&hub, &names);
    fs::write(&switch, "").unwrap();
    hub.stop();
    hub.start();
    for name in &names {
        archive.wait_for(name);
    }
    assert!(!archive.path(&missing).exists());
    wait::until("archived WAL goes by the rules", || {
        !complete_segments(&hub.pg_wal()).contains(&names[0])
    });
}

/// The way on with a damaged segment, as docs/operations.md tells it.
#[test]
fn a_damaged_segment_is_copied_back_or_received_again() {
    let scene = Scene::new();
    let primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let mut hub = Hub::run(&scene, "hub", &primary.conninfo());
    hub.wait_state("streaming");
    load::write_mib(&primary, 8);
    wait_received(&primary, &hub);
    hub.stop();
    let newest = complete_segments(&hub.pg_wal()).pop().unwrap();
    let path = hub.pg_wal().join(&newest);
    let good = fs::read(&path).unwrap();
    let mut bad = good.clone();
    bad[(MIB / 2) as usize..][..8192].fill(0x5A);
    fs::write(&path, &bad).unwrap();
    let log = hub.refuses_to_start();
    assert!(log.contains("is damaged") && log.contains("\"A damaged file\""), "{log}");

    // The same file from elsewhere.
    fs::write(&path, &good).unwrap();
    hub.start();
    hub.wait_state("streaming");
    hub.stop();

    // Without one: this segment and all later ones leave, and the upstream is asked again.
    fs::write(&path, &bad).unwrap();
    for entry in fs::read_dir(hub.pg_wal()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.starts_with("00000001") && name.as_str() >= newest.as_str() {
            take_out(&scene, &hub, &name);
        }
    }
    hub.start();
    load::write_mib(&primary, 4);
    wait_received(&primary, &hub);
    hub.wait_state("streaming");
    assert_identical(&hub.pg_wal(), &primary.pg_wal(), 4);
}
