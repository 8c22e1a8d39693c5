//! A small disk that fills up under load, and gets room again.

use crate::client::Client;
use crate::cluster::{Cluster, assert_converged};
use crate::hub::Hub;
use crate::load;
use crate::programs::are_we_root;
use crate::scene::Scene;
use crate::segments::assert_identical;
use crate::streaming::wait_connected;
use crate::wait;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
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

/// A file system of its own, in a file.
struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// None where that is not allowed, with the reason printed.
    fn mount(scene: &Scene, mib: u64) -> Option<Self> {
        if !are_we_root() {
            eprintln!("skipped: mounting a small disk needs root");
            return None;
        }
        let image = scene.path("disk.img");
        let path = scene.folder("disk", None);
        File::create(&image).unwrap().set_len(mib << 20).unwrap();
        let done = run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image))
            && run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&path));
        if !done {
            eprintln!("skipped: no loop-mounted disk here");
        }
        done.then_some(Self { path })
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
