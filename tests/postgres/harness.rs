//! The tests' own tools, with nothing between primary and standby: what fails here is
//! not the hub's fault.

use crate::client::Client;
use crate::cluster::{Cluster, assert_converged};
use crate::load::{self, Load};
use crate::process::{Process, family, is_running};
use crate::receivewal::{Receiver, until_lsn};
use crate::scene::Scene;
use crate::segments::{assert_identical, complete_segments, last_record_by_waldump};
use crate::streaming::wait_connected;
use crate::wait;
use std::fs;
use std::process::Command;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;
use walhub::wal::lsn::Lsn;

#[test]
fn a_direct_standby_converges_through_kills_stops_and_frost() {
    let scene = Scene::new();
    let mut primary = Cluster::primary_with_segments(&scene, "primary", 1);
    load::prepare(&scene, &primary);
    let standby = primary.standby("standby", &primary.unix_conninfo());
    standby.wait_streaming();

    let work = Load::start(&scene, &primary);
    standby.freeze();
    load::write_mib(&primary, 4);
    standby.thaw();
    primary.kill();
    drop(work);
    primary.start();
    wait_connected(&primary);
    assert_converged(&primary, &[&standby]);
    assert!(primary.stop_fast() < Duration::from_secs(5));
    let copy = primary.copy_of_files("copy").started();
    assert_eq!(copy.fingerprint(), standby.fingerprint());
}

#[test]
fn direct_receivers_are_byte_identical() {
    let scene = Scene::new();
    let primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let start = Lsn::new(primary.flush_lsn().raw() & !0xF_FFFF);
    load::write_mib(&primary, 3);
    load::switch_segment(&primary);
    let end = primary.flush_lsn();
    load::write_mib(&primary, 1);

    let options = [until_lsn(end)];
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let conninfo = primary.conninfo();
    let mut client = Client::connect(primary.port());
    client.start_replication(start, 1).unwrap();
    let wal = client.read_wal(start, end);
    let mut receiver = Receiver::start(&scene, primary.programs, "received", &conninfo, &options);
    receiver.wait_end();
    assert_identical(receiver.folder(), &primary.pg_wal(), 0);

    // The stream, the file and pg_waldump are about the same bytes.
    let first = std::fs::read(primary.pg_wal().join(&complete_segments(&primary.pg_wal())[0]));
    assert!(wal.starts_with(&first.unwrap()));
    if let Some(last) = last_record_by_waldump(&scene, primary.programs, &primary.pg_wal()) {
        assert!(last >= end);
    }
}

#[test]
fn a_test_that_fails_leaves_logs_and_no_processes() {
    let (tell, told) = channel();
    let failing = thread::spawn(move || {
        let scene = Scene::new();
        fs::create_dir(scene.path("data")).unwrap();
        fs::write(scene.path("data/base"), vec![0; 2 << 20]).unwrap();
        fs::write(scene.path("image"), vec![0; 2 << 20]).unwrap();
        let (log, out, err) = scene.log("server");
        let mut shell = Command::new("sh");
        shell.args(["-c", "sleep 600 & yes walhub | head -c 3000000; wait"]);
        let server = Process::start(shell.stdout(out).stderr(err));
        wait::until("it has logged a lot", || fs::metadata(&log).unwrap().len() == 3_000_000);
        tell.send((scene.root().to_owned(), family(server.pid()))).unwrap();
        panic!("this test fails on purpose");
    });
    assert!(failing.join().is_err());
    let (folder, family) = told.recv().unwrap();
    assert!(family.len() >= 2, "the shell and its sleep: {family:?}");
    assert!(!family.iter().any(|pid| is_running(*pid)), "something is left running");
    let left: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap()).collect();
    let names: Vec<_> = left.iter().map(|entry| entry.file_name()).collect();
    assert_eq!(names, ["server.log"]);
    assert_eq!(left[0].metadata().unwrap().len(), 1 << 20, "its end");
    fs::remove_dir_all(folder).unwrap();
}
