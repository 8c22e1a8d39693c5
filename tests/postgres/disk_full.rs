//! A small disk that fills up under load and gets room again, or answers nobody.

use crate::archiving::{Archive, end_segment};
use crate::client::Client;
use crate::cluster::{Cluster, assert_converged};
use crate::hub::Hub;
use crate::load;
use crate::programs::are_we_root;
use crate::scene::Scene;
use crate::segments::{assert_identical, complete_segments};
use crate::skip::skipped;
use crate::streaming::wait_connected;
use crate::wait;
use rustix::process::Signal;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use walhub::wal::lsn::Lsn;

#[test]
fn a_full_disk_is_waited_out() {
    let scene = Scene::new();
    let Some(disk) = SmallDisk::mount(&scene, 64) else { return };
    let primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let mut hub = Hub::new(&scene, "hub", &primary.conninfo())
        .in_directory(&disk.path.join("hub"))
        .flag("--wal-keep-size=16MB")
        .started();
    wait_connected(&primary);
    let start = Lsn::new(primary.flush_lsn().raw() & !0xF_FFFF);
    let standby = primary.standby("standby", &hub.conninfo());
    standby.wait_streaming();
    load::write_mib(&primary, 4);
    standby.wait_replayed(primary.flush_lsn());

    let filler = disk.fill();
    load::prepare(&scene, &primary);
    load::write_mib(&primary, 8);
    hub.wait_log(&["space"]);
    // It lives, serves, and acknowledges nothing that it could not write.
    let end = primary.flush_lsn();
    let behind = format!("select count(*) from pg_stat_replication where flush_lsn >= '{end}'");
    wait::stays(Duration::from_secs(2), "nothing false is acknowledged", || {
        hub.assert_running();
        primary.count(&behind) == 0
    });
    let mut client = Client::connect(hub.port());
    client.start_replication(start, 1).unwrap();
    drop(client.read_wal(start, start.saturating_add(2 << 20)));
    drop(client);

    fs::remove_file(filler).unwrap();
    assert_converged(&primary, &[&standby]);
    assert_identical(&hub.pg_wal(), &primary.pg_wal(), 8);
    drop(hub);
}

/// Above the watermark, what is not archived keeps WAL from coming in, and nobody from being
/// served; and so does not the other way around.
#[test]
fn the_archive_makes_room_on_a_small_disk() {
    let scene = Scene::new();
    let Some(disk) = SmallDisk::mount(&scene, 64) else { return };
    let primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let archive = Archive::new(&scene, "archive", None);
    let switch = scene.path("on");
    let first = primary.sql("select pg_walfile_name(pg_current_wal_insert_lsn())");
    // It hangs: nothing but the archive may mind that.
    let command =
        format!("while ! test -e {}; do sleep 0.1; done; {}", switch.display(), archive.command());
    let mut hub = Hub::new(&scene, "hub", &primary.conninfo())
        .in_directory(&disk.path.join("hub"))
        .flag("--wal-keep-size=1GB")
        .flag("--wal-buffers=8MB")
        .flag("--disk-high-watermark=20MB")
        .flag(&format!("--archive-command={command}"))
        .started();
    wait_connected(&primary);
    let start = Lsn::new(primary.flush_lsn().raw() & !0xF_FFFF);
    let standby = primary.standby("standby", &hub.conninfo());
    standby.wait_streaming();
    load::prepare(&scene, &primary);
    load::write_mib(&primary, 50);
    hub.wait_log(&["--disk-high-watermark", "receiving is paused"]);
    hub.wait_state("no space");
    let status = hub.told(&["status"]);
    let paused = status["status"]["receiving_paused"].as_str().unwrap();
    assert!(paused.contains("--disk-high-watermark is 20MB: "), "{paused}");
    let state = status["status"]["upstream"]["text"].as_str().unwrap();
    assert!(state.contains("is above --disk-high-watermark 20MB"), "{state}");
    let end = hub.inspect().record_end();
    assert!(end < primary.flush_lsn());
    assert!(disk.free() > 12 << 20, "{} bytes are free", disk.free());
    standby.wait_replayed(end);
    let mut client = Client::connect(hub.port());
    client.start_replication(start, 1).unwrap();
    drop(client.read_wal(start, end));
    wait::stays(Duration::from_secs(2), "nothing goes, nothing comes", || {
        hub.assert_running();
        hub.pg_wal().join(&first).exists() && hub.inspect().record_end() == end
    });

    fs::write(&switch, "").unwrap();
    hub.wait_log(&["receiving continues"]);
    assert_converged(&primary, &[&standby]);
    let last = end_segment(&primary);
    archive.wait_for(&last);
    assert!(archive.path(&first).exists());
    assert_identical(archive.folder(), &primary.pg_wal(), 60);
    assert!(!hub.pg_wal().join(&first).exists());
    assert!(disk.free() > 12 << 20, "{} bytes are free", disk.free());
}

/// Of slots, those that nobody uses give way to new WAL.
#[test]
fn on_a_small_disk_idle_slots_give_way_and_used_ones_do_not() {
    let scene = Scene::new();
    let Some(disk) = SmallDisk::mount(&scene, 64) else { return };
    let primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let hub = Hub::new(&scene, "hub", &primary.conninfo())
        .in_directory(&disk.path.join("hub"))
        .flag("--wal-keep-size=1MB")
        .flag("--wal-buffers=8MB")
        .flag("--disk-high-watermark=20MB")
        .started();
    wait_connected(&primary);
    hub.wait_state("streaming");
    let mut client = Client::connect(hub.port());
    client.query("CREATE_REPLICATION_SLOT idle PHYSICAL ( RESERVE_WAL )").unwrap();
    load::write_mib(&primary, 4);
    client.query("CREATE_REPLICATION_SLOT used PHYSICAL").unwrap();
    let from = Lsn::new(primary.flush_lsn().raw() & !0xF_FFFF);
    wait::until("the hub has the start", || hub.inspect().record_end() >= from);
    let mut user = Client::connect(hub.port());
    user.start_with_slot("used", from).unwrap();
    user.send_status(from);
    load::write_mib(&primary, 60);
    hub.wait_log(&["invalidating", "\"idle\""]);
    hub.wait_log(&["--disk-high-watermark", "receiving is paused"]);
    hub.wait_state("no space");
    let end = hub.inspect().record_end();
    let oldest = complete_segments(&hub.pg_wal()).remove(0);
    let number = u64::from_str_radix(&oldest[16..], 16).unwrap();
    assert_eq!(Lsn::new(number << 20), from, "the idle slot's WAL has gone, the other's not");
    // It is all sent to the one that holds it, and to others.
    drop(user.read_wal(from, end));
    let mut other = Client::connect(hub.port());
    other.start_replication(from, 1).unwrap();
    drop(other.read_wal(from, end));
    assert!(hub.logged(&["invalidating", "\"used\""]).is_none());

    user.send_status(end);
    hub.wait_log(&["receiving continues"]);
    let end = primary.flush_lsn();
    wait::until("the hub has it all", || hub.inspect().record_end() >= end);
    assert_identical(&hub.pg_wal(), &primary.pg_wal(), 16);
    assert!(hub.logged(&["invalidating", "\"used\""]).is_none());
}

/// Writes that never end hold up neither the end of the hub nor what it says about it.
/// The process itself goes when the kernel lets go of its writes.
#[test]
fn a_hung_disk_does_not_hold_up_the_shutdown() {
    let scene = Scene::new();
    let Some(disk) = SmallDisk::mount(&scene, 64) else { return };
    let primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let mut hub =
        Hub::new(&scene, "hub", &primary.conninfo()).in_directory(&disk.path.join("hub")).started();
    hub.wait_state("streaming");
    let mut client = Client::connect(hub.port());
    client.start_replication(Lsn::new(primary.flush_lsn().raw() & !0xF_FFFF), 1).unwrap();
    let Some(frost) = disk.freeze() else { return };
    load::write_mib(&primary, 1);
    let received = format!(
        "select count(*) from pg_stat_replication where sent_lsn >= '{}'",
        primary.flush_lsn()
    );
    wait::until("the hub has been sent it", || primary.count(&received) == 1);

    hub.signal(Signal::TERM);
    let begun = Instant::now();
    hub.wait_log(&["shutdown did not finish"]);
    let took = begun.elapsed();
    assert!(took < Duration::from_millis(5500), "it took {took:?}");
    drop(frost);
    let (status, _) = hub.wait_exit();
    assert_eq!(status.code(), Some(1));
    hub.start();
    wait_connected(&primary);
    let end = primary.flush_lsn();
    wait::until("the hub has it all", || hub.inspect().record_end() >= end);
}

/// A file system of its own, in a file.
struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// None where that is not allowed, with the reason printed.
    fn mount(scene: &Scene, mib: u64) -> Option<Self> {
        if !are_we_root() {
            skipped("mounting a small disk needs root");
            return None;
        }
        let image = scene.path("disk.img");
        let path = scene.folder("disk", None);
        File::create(&image).unwrap().set_len(mib << 20).unwrap();
        let done = run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image))
            && run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&path));
        if !done {
            skipped("no disk can be mounted from a file here");
        }
        done.then_some(Self { path })
    }

    /// Bytes that are left.
    fn free(&self) -> u64 {
        let disk = rustix::fs::statvfs(&self.path).unwrap();
        disk.f_bavail * disk.f_frsize
    }

    /// From now on nothing that is written comes to an end.
    fn freeze(&self) -> Option<Frost<'_>> {
        let frozen = run(Command::new("fsfreeze").arg("-f").arg(&self.path));
        if !frozen {
            skipped("no disk can be frozen here");
        }
        frozen.then_some(Frost(self))
    }

    /// Takes all the room there is.
    fn fill(&self) -> PathBuf {
        let path = self.path.join("filler");
        let mut file = File::create(&path).unwrap();
        for block in [1 << 20, 4096, 512] {
            while file.write_all(&vec![1; block]).and_then(|()| file.sync_data()).is_ok() {}
        }
        path
    }
}

/// A disk that is frozen until this is dropped.
struct Frost<'a>(&'a SmallDisk);

impl Drop for Frost<'_> {
    fn drop(&mut self) {
        run(Command::new("fsfreeze").arg("-u").arg(&self.0.path));
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        unmount(&self.path);
    }
}

fn unmount(path: &Path) {
    // Lazily: a process that was killed may not be quite gone.
    run(Command::new("umount").arg("-l").arg(path));
}

fn run(command: &mut Command) -> bool {
    command.status().is_ok_and(|status| status.success())
}
