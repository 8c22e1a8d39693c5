//! `--zerocopy on` over loopback. The kernel copies here all the same, so this shows that
//! the bytes are right and the memory is kept, not that anything is saved.

use crate::client::Client;
use crate::cluster::{Cluster, assert_converged};
use crate::hub::Hub;
use crate::load;
use crate::programs::are_we_root;
use crate::receivewal::Receiver;
use crate::scene::Scene;
use crate::segments::{assert_identical, complete_segments};
use crate::skip::skipped;
use crate::streaming::wait_connected;
use crate::wait;
use rustix::process::{Resource, getrlimit};
use std::fs;
use std::time::Duration;
use walhub::wal::lsn::Lsn;

/// What a hub with `--wal-buffers=8MB` locks for sends without a copy.
const LOCKED: u64 = 12 << 20;

/// May the hub lock so much memory? Otherwise that is said.
fn may_lock() -> bool {
    let limit = getrlimit(Resource::Memlock).current;
    let may = are_we_root() || limit.is_none_or(|limit| limit >= LOCKED);
    if !may {
        skipped("12288 kB of memory are to be locked and may not be (ulimit -l)");
    }
    may
}

/// A hub whose cache goes round after 8 MiB and that tells of its sends.
fn hub<'a>(scene: &'a Scene, primary: &Cluster<'_>) -> Hub<'a> {
    Hub::new(scene, "hub", &primary.conninfo())
        .flag("--zerocopy=on")
        .flag("--wal-buffers=8MB")
        .flag("--log-level=debug")
        .started()
}

/// The start of the segment that is being written.
fn segment_start(primary: &Cluster<'_>) -> Lsn {
    Lsn::new(primary.flush_lsn().raw() & !0xF_FFFF)
}

/// Zero-copy sends, as the last stream that ended has told.
fn sends(hub: &Hub<'_>) -> u64 {
    let text = hub.log_text();
    let told = text.lines().rev().find_map(|line| Some(line.split_once(" zero-copy sends (")?.0));
    let number = told.and_then(|before| before.rsplit(' ').next());
    number.map_or(0, |number| number.parse().unwrap())
}

#[test]
fn receivers_are_byte_identical_while_one_reads_nothing() {
    if !may_lock() {
        return;
    }
    let scene = Scene::new();
    let primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let mut hub = hub(&scene, &primary);
    wait_connected(&primary);
    load::prepare(&scene, &primary);
    let standby = primary.standby("standby", &hub.conninfo());
    standby.wait_streaming();
    let mut receiver = Receiver::start(&scene, primary.programs, "received", &hub.conninfo(), &[]);
    receiver.wait_begun();

    // One asks and does not read: what it was sent lies in the hub's memory only.
    let start = segment_start(&primary);
    let mut silent = Client::connect(hub.port());
    silent.start_replication(start, 1).unwrap();
    load::write_mib(&primary, 12);
    // One is killed in the middle.
    let killed = Receiver::start(&scene, primary.programs, "killed", &hub.conninfo(), &[]);
    killed.wait_begun();
    load::write_mib(&primary, 4);
    drop(killed);
    load::write_mib(&primary, 12);
    let last = primary.sql("select pg_walfile_name(pg_current_wal_insert_lsn())");
    load::switch_segment(&primary);
    let end = segment_start(&primary);
    load::write_mib(&primary, 1);
    receiver.wait_segment(&last);
    hub.assert_running();

    // The cache has gone round meanwhile; the silent one gets what was there.
    let mut wal = silent.read_wal(start, end);
    wal.truncate(end.bytes_since(start) as usize);
    drop(silent);
    wait::until("the hub has ended the segment", || hub.pg_wal().join(&last).exists());
    let mut files = complete_segments(&hub.pg_wal());
    files.retain(|name| *name <= last);
    let begin = files.len() - wal.len() / (1 << 20);
    for (name, sent) in files[begin..].iter().zip(wal.chunks(1 << 20)) {
        assert!(fs::read(hub.pg_wal().join(name)).unwrap() == sent, "{name} was sent otherwise");
    }

    assert_converged(&primary, &[&standby]);
    receiver.stop();
    assert_identical(receiver.folder(), &primary.pg_wal(), 2);
    assert_identical(&hub.pg_wal(), &primary.pg_wal(), 2);
    wait::until("the hub tells of sends without a copy", || sends(&hub) > 50);
    hub.stop();
}

#[test]
fn a_hub_that_is_killed_or_stopped_meanwhile_comes_back() {
    if !may_lock() {
        return;
    }
    let scene = Scene::new();
    let primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let mut hub = hub(&scene, &primary);
    wait_connected(&primary);
    load::prepare(&scene, &primary);
    let standby = primary.standby("standby", &hub.conninfo());
    standby.wait_streaming();
    for round in 0..3 {
        let start = segment_start(&primary);
        let mut silent = Client::connect(hub.port());
        silent.start_replication(start, 1).unwrap();
        load::write_mib(&primary, 6);
        if round == 0 {
            hub.kill();
        } else {
            // In time, although one reads nothing.
            hub.signal(rustix::process::Signal::TERM);
            let (status, took) = hub.wait_exit();
            assert!(status.success() && took < Duration::from_secs(6), "{status} in {took:?}");
        }
        hub.start();
        wait_connected(&primary);
        drop(silent);
    }
    load::write_mib(&primary, 3);
    assert_converged(&primary, &[&standby]);
    assert!(sends(&hub) > 0);
}
