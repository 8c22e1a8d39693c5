//! The log never stops the hub, whatever standard error is; and output that nobody reads ends
//! a program quietly.

use crate::client::Client;
use crate::cluster::Cluster;
use crate::hub::Hub;
use crate::load;
use crate::scene::Scene;
use crate::wait;
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::process::Signal;
use std::fs::File;
use std::io::{self, PipeReader, Read, Write};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;
use walhub::wal::lsn::Lsn;

/// So many lines are lost so far.
fn lost(hub: &Hub<'_>) -> u64 {
    hub.told(&["status"])["status"]["log_lines_lost"].as_u64().unwrap_or_default()
}

/// The stream goes on, new clients are heard, and SIGTERM ends it in time.
fn lives(mut hub: Hub<'_>, primary: &Cluster<'_>) {
    hub.wait_state("streaming");
    let start = Lsn::new(primary.flush_lsn().raw() & !0xF_FFFF);
    let mut standby = Client::connect(hub.port());
    standby.start_replication(start, 1).unwrap();
    load::write_mib(primary, 4);
    let end = primary.flush_lsn();
    drop(standby.read_wal(start, end));
    for _ in 0..50 {
        let mut client = Client::connect(hub.port());
        client.start_replication(start, 1).unwrap();
    }
    let mut client = Client::connect(hub.port());
    assert_eq!(client.query_value("SHOW wal_segment_size"), "1MB");
    load::write_mib(primary, 2);
    drop(standby.read_wal(end, primary.flush_lsn()));
    hub.assert_running();
    hub.signal(Signal::TERM);
    let (status, took) = hub.wait_exit();
    assert!(status.success(), "{status}");
    assert!(took < Duration::from_secs(5), "ended after {took:?}");
}

#[test]
fn a_log_on_a_full_disk_costs_lines_only() {
    let scene = Scene::new();
    let primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let full = File::options().write(true).open("/dev/full").unwrap();
    let hub = Hub::new(&scene, "hub", &primary.conninfo()).logging_to(full).started();
    wait::until("lines are lost", || lost(&hub) > 0);
    let text = hub.ctl().arg("status").output().unwrap().stdout;
    assert!(String::from_utf8_lossy(&text).contains("lines lost"));
    lives(hub, &primary);
}

#[test]
fn a_log_in_a_closed_pipe_costs_lines_only() {
    let scene = Scene::new();
    let primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    let hub = Hub::new(&scene, "hub", &primary.conninfo()).logging_to(writer).started();
    wait::until("lines are lost", || lost(&hub) > 0);
    lives(hub, &primary);
}

/// A pipe without room.
fn full_pipe() -> (PipeReader, io::PipeWriter) {
    let (reader, mut writer) = io::pipe().unwrap();
    fcntl_setfl(&writer, OFlags::NONBLOCK).unwrap();
    while writer.write(&[b'\n'; 4096]).is_ok() {}
    while writer.write(b"\n").is_ok() {}
    fcntl_setfl(&writer, OFlags::empty()).unwrap();
    (reader, writer)
}

#[test]
fn a_log_that_nobody_reads_costs_lines_only() {
    let scene = Scene::new();
    let primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let (reader, writer) = full_pipe();
    let hub = Hub::new(&scene, "hub", &primary.conninfo())
        .flag("--log-level=debug")
        .logging_to(writer)
        .started();
    lives(hub, &primary);
    drop(reader);
}

/// Whoever comes to read later learns what was lost.
#[test]
fn what_was_lost_is_said_when_the_log_is_read_again() {
    let scene = Scene::new();
    let primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let (mut reader, writer) = full_pipe();
    let mut hub = Hub::new(&scene, "hub", &primary.conninfo())
        .flag("--log-level=debug")
        .logging_to(writer)
        .started();
    hub.wait_state("streaming");
    let start = Lsn::new(primary.flush_lsn().raw() & !0xF_FFFF);
    wait::until("what waits has no place any more", || {
        for _ in 0..200 {
            let mut client = Client::connect(hub.port());
            client.start_replication(start, 1).unwrap();
        }
        lost(&hub) > 0
    });

    let read = Arc::new(Mutex::new(String::new()));
    let to = Arc::clone(&read);
    thread::spawn(move || {
        let mut piece = [0; 65_536];
        while let Ok(n @ 1..) = reader.read(&mut piece) {
            to.lock().unwrap().push_str(&String::from_utf8_lossy(&piece[..n]));
        }
    });
    // Not of the first such line alone: more may be lost before the reader has caught up.
    let said = || {
        let text = read.lock().unwrap();
        let (before, _) = text.rsplit_once(" log lines were lost so far")?;
        let (level, number) = before.lines().next_back()?.rsplit_once(' ')?;
        assert!(level.contains("ERROR"), "{level}");
        number.parse().ok()
    };
    wait::until("it says how many", || said() == Some(lost(&hub)));
    hub.stop();
    wait::until("the last line is read", || read.lock().unwrap().contains("walhub is shut down"));
}

/// Without threads there is no log. The one line that there is then is said without it.
#[test]
fn a_start_without_threads_says_why() {
    let scene = Scene::new();
    let output = crate::hub::command()
        .args(["serve", "--primary-conninfo=host=127.0.0.1", "--directory"])
        .arg(scene.path("hub"))
        // No thread gets a stack of that size.
        .env("RUST_MIN_STACK", (1_u64 << 60).to_string())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.starts_with("walhub: could not catch signals: "), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

/// What a command prints is in the log, and a log that is stuck does not hold it up.
#[test]
fn a_commands_output_goes_through_the_log() {
    let scene = Scene::new();
    let primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let command = "echo archiving %f; echo to nowhere >&2; head -c 200000 /dev/zero; true";
    let flag = format!("--archive-command={command}");
    let logged = Hub::new(&scene, "logged", &primary.conninfo()).flag(&flag).started();
    let (reader, writer) = full_pipe();
    let stuck = Hub::new(&scene, "stuck", &primary.conninfo()).flag(&flag).logging_to(writer);
    let stuck = stuck.started();
    for hub in [&logged, &stuck] {
        hub.wait_state("streaming");
    }
    load::write_mib(&primary, 3);
    for hub in [&logged, &stuck] {
        wait::until("segments are archived", || {
            let status = hub.told(&["status"]);
            status["status"]["archiver"]["archived_count"].as_u64() >= Some(2)
        });
    }
    logged.wait_log(&["INFO", "archiving 0000000100"]);
    logged.wait_log(&["INFO", "to nowhere"]);
    drop(reader);
}

/// `walhub inspect | head`, and the like.
#[test]
fn output_that_nobody_reads_ends_quietly() {
    let scene = Scene::new();
    let primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let mut hub = Hub::run(&scene, "hub", &primary.conninfo());
    hub.wait_state("streaming");
    let ended = |args: &[&str], stdout: Stdio| {
        let output = crate::hub::command().args(args).stdout(stdout).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let closed = || {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        Stdio::from(writer)
    };
    let full = || Stdio::from(File::options().write(true).open("/dev/full").unwrap());
    let directory = hub.directory().to_str().unwrap().to_owned();
    let quiet = String::new();
    assert_eq!(ended(&["inspect", &directory], closed()), (Some(141), quiet.clone()));
    assert_eq!(ended(&["inspect", &directory, "--json"], closed()), (Some(141), quiet.clone()));
    assert_eq!(ended(&["ctl", "-D", &directory, "status"], closed()), (Some(0), quiet.clone()));
    assert_eq!(ended(&["--help"], closed()).1, quiet);
    // A disk that is full is said.
    for args in [&["inspect", &directory][..], &["ctl", "-D", &directory, "status"]] {
        let (code, said) = ended(args, full());
        assert_eq!(code, Some(1), "{said}");
        assert!(said.starts_with("walhub: ") && said.contains("No space left"), "{said}");
    }
    hub.stop();
}
