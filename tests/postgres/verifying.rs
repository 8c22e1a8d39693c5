//! Old WAL is what it was: digests of a running hub's segments, and who finds that one does not
//! agree.

use crate::client::Client;
use crate::cluster::Cluster;
use crate::hub::{self, Hub};
use crate::load;
use crate::scene::Scene;
use crate::segments::complete_segments;
use crate::wait;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Output;
use std::time::SystemTime;
use walhub::wal::lsn::Lsn;
use walhub::wire::date::date_millis;

const MIB: u64 = 1 << 20;

/// Every complete segment has a digest.
fn wait_digests(hub: &Hub<'_>) {
    wait::until("every complete segment has a digest", || {
        let digest = |name: &String| hub.pg_wal().join(format!("digests/{name}.digest"));
        complete_segments(&hub.pg_wal()).iter().all(|name| digest(name).exists())
    });
}

/// Flips a bit, in place.
fn flip(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

fn verify(hub: &Hub<'_>, flags: &[&str]) -> (Option<i32>, String) {
    let mut command = hub::command();
    let Output { status, stdout, .. } =
        command.arg("verify").arg(hub.directory()).args(flags).output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap())
}

#[test]
fn segments_get_digests_and_a_flipped_bit_is_named() {
    let scene = Scene::new();
    let primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let mut hub = Hub::run(&scene, "hub", &primary.conninfo());
    hub.wait_state("streaming");
    let before = (primary.count("select txid_current()"), SystemTime::now());
    load::write_mib(&primary, 6);
    primary.sql("checkpoint");
    load::write_mib(&primary, 6);
    wait::until("segments are complete", || complete_segments(&hub.pg_wal()).len() >= 10);
    wait_digests(&hub);
    let after = (primary.count("select txid_current()"), SystemTime::now());
    assert!(hub.inspect().wrong().is_empty());
    // What the WAL says of itself stands beside the digests.
    let contents = hub.inspect().contents().clone();
    let next = contents["next_xid"].as_u64().unwrap();
    assert!(before.0 < next && next <= after.0, "{before:?} {after:?} {contents}");
    assert_eq!(contents["next_xid_epoch"], 0, "the checkpoint says it: {contents}");
    let [before, after] = [before.1, after.1].map(date_millis);
    for time in ["last_time", "last_completed"] {
        let time = contents[time].as_str().unwrap();
        assert!(before.as_str() <= time && time <= after.as_str(), "{before} {after} {contents}");
    }
    hub.stop();
    let names = complete_segments(&hub.pg_wal());
    let (code, said) = verify(&hub, &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains(&format!("\nnext transaction ID 0:{next}\n")), "{said}");
    assert!(said.contains(contents["last_time"].as_str().unwrap()), "{said}");
    assert!(said.ends_with(&format!("{} complete segments, 0 damaged\n", names.len())), "{said}");
    // In the header of a page, where no checksum is.
    flip(&hub.pg_wal().join(&names[4]), MIB / 2 + 20);
    let (code, said) = verify(&hub, &[]);
    assert_eq!(code, Some(2), "{said}");
    let line = said.lines().find(|line| line.starts_with(&names[4])).unwrap();
    assert!(line.contains("is not what it was when the segment was completed"), "{said}");
    fs::remove_file(hub.pg_wal().join(format!("digests/{}.digest", names[4]))).unwrap();
    let (code, said) = verify(&hub, &[]);
    assert_eq!(code, Some(0), "a walk does not see it: {said}");
    assert!(said.ends_with(", 1 without a digest\n"), "{said}");
}

/// What the hub says of its scrubs when one is over.
fn scrubbed(hub: &Hub<'_>) -> Value {
    let last = |status: &Value| status["last_ended"].as_str().map(str::to_owned);
    let status = || hub.told(&["status"])["status"]["scrub"].clone();
    let before = last(&status());
    hub.told(&["verify"]);
    wait::eventually("a scrub is over", || {
        let status = status();
        let is_over = status["segments_read"].is_null() && last(&status) != before;
        is_over.then_some(status)
    })
}

/// What a scrub has found is written down after it was told.
fn wait_nothing_wrong(hub: &Hub<'_>) {
    wait::until("inspect finds nothing wrong", || {
        let looked = hub::command().arg("inspect").arg(hub.directory()).output().unwrap();
        looked.status.code() == Some(0)
    });
}

fn damaged(scrub: &Value) -> Vec<String> {
    let all = scrub["damaged"].as_array().unwrap().iter();
    all.map(|one| one["segment"].as_str().unwrap().to_owned()).collect()
}

/// The first position of a segment of 1 MiB.
fn start_of(name: &str) -> Lsn {
    Lsn::new(u64::from_str_radix(&name[16..], 16).unwrap() * MIB)
}

#[test]
fn a_running_hub_finds_what_is_damaged_and_serves_nothing_of_it() {
    let scene = Scene::new();
    let primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let mut hub = Hub::new(&scene, "hub", &primary.conninfo())
        .flag("--wal-buffers=8MB")
        .flag("--scrub-rate=1GB")
        .started();
    hub.wait_state("streaming");
    load::write_mib(&primary, 40);
    wait::until("segments are complete", || complete_segments(&hub.pg_wal()).len() >= 36);
    wait_digests(&hub);
    let scrub = scrubbed(&hub);
    assert_eq!(damaged(&scrub), [""; 0], "{scrub}");
    assert!(scrub["last_segments"].as_u64().unwrap() >= 36, "{scrub}");
    let names = complete_segments(&hub.pg_wal());
    let wrong = [names[4].clone(), names[7].clone()];
    // In the header of a page, where no checksum is, and in a record.
    let flips =
        [(hub.pg_wal().join(&wrong[0]), MIB / 2 + 20), (hub.pg_wal().join(&wrong[1]), 9000)];
    // While it is fenced, no upstream is asked for the right bytes.
    hub.told(&["fence"]);
    flips.iter().for_each(|(path, at)| flip(path, *at));
    assert_eq!(damaged(&scrubbed(&hub)), wrong);
    hub.wait_log(&["ERROR", &wrong[0], "damaged"]);
    hub.wait_log(&["ERROR", &wrong[1], "was not repaired", "fenced"]);

    let refused = |hub: &Hub<'_>| {
        let (from, bad) = (start_of(&names[3]), start_of(&wrong[0]));
        let mut client = Client::connect(hub.port());
        client.start_replication(from, 1).unwrap();
        client.read_wal(from, bad);
        let error = client.next_wal().unwrap_err();
        assert_eq!(error.sqlstate, "XX001", "{}", error.message);
        assert!(error.message.contains(&wrong[0]), "{}", error.message);
    };
    refused(&hub);
    // It is known after a restart.
    hub.stop();
    let looked = hub::command().arg("inspect").arg(hub.directory()).output().unwrap();
    let text = String::from_utf8(looked.stdout).unwrap();
    assert_eq!(looked.status.code(), Some(2), "{text}");
    assert!(text.contains(&format!("damaged: {}", wrong[1])), "{text}");
    hub.start();
    refused(&hub);

    flips.iter().for_each(|(path, at)| flip(path, *at));
    assert_eq!(damaged(&scrubbed(&hub)), [""; 0]);
    let mut client = Client::connect(hub.port());
    client.start_replication(start_of(&names[3]), 1).unwrap();
    client.read_wal(start_of(&names[3]), start_of(&names[9]));
    wait_nothing_wrong(&hub);
}

/// What was fetched takes the place of the damaged file, also for who has that open.
#[test]
fn a_running_hub_repairs_from_the_archive() {
    let scene = Scene::new();
    let primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let saved = scene.path("saved");
    fs::create_dir(&saved).unwrap();
    let hub = Hub::new(&scene, "hub", &primary.conninfo())
        .flag("--wal-buffers=8MB")
        .flag("--scrub-rate=1GB")
        .flag(&format!("--restore-command=cp {}/%f %p 2>/dev/null", saved.display()))
        .started();
    hub.wait_state("streaming");
    load::write_mib(&primary, 40);
    wait::until("segments are complete", || complete_segments(&hub.pg_wal()).len() >= 36);
    wait_digests(&hub);
    let names = complete_segments(&hub.pg_wal());
    for name in &names {
        fs::copy(hub.pg_wal().join(name), saved.join(name)).unwrap();
    }
    // A standby has read some of it.
    let mut client = Client::connect(hub.port());
    client.start_replication(start_of(&names[3]), 1).unwrap();
    client.read_wal(start_of(&names[3]), start_of(&names[4]));
    let wrong = &names[3..8];
    for name in wrong {
        flip(&hub.pg_wal().join(name), MIB / 2 + 20);
    }
    // One of them has no digest: its records are all whole.
    fs::remove_file(hub.pg_wal().join(format!("digests/{}.digest", names[5]))).unwrap();
    flip(&hub.pg_wal().join(&names[5]), MIB / 2 + 100);
    assert_eq!(damaged(&scrubbed(&hub)), [""; 0]);
    for name in wrong {
        hub.wait_log(&[name, "was repaired from the archive"]);
        let good = fs::read(saved.join(name)).unwrap();
        assert!(fs::read(hub.pg_wal().join(name)).unwrap() == good, "{name}");
        let kept = fs::read(hub.directory().join("damaged").join(name)).unwrap();
        assert!(kept != good, "{name}");
    }
    let shown = || {
        let status = hub.told(&["status"])["status"].clone();
        assert_eq!(status["set_aside_total"]["bytes"].as_u64().map(|bytes| bytes % MIB), Some(0));
        let names = status["set_aside"].as_array().unwrap().iter();
        names.map(|aside| aside["name"].as_str().unwrap().to_owned()).collect::<BTreeSet<_>>()
    };
    let kept: BTreeSet<_> = wrong.iter().map(|name| format!("damaged/{name}")).collect();
    wait::until("the hub has seen what is kept", || shown() == kept);
    let (from, to) = (start_of(&names[3]), start_of(&names[9]));
    let truth: Vec<u8> =
        names[3..9].iter().flat_map(|name| fs::read(saved.join(name)).unwrap()).collect();
    let mut client = Client::connect(hub.port());
    client.start_replication(from, 1).unwrap();
    assert!(client.read_wal(from, to) == truth);
    wait_nothing_wrong(&hub);
}

/// Without an archive the upstream is asked, beside its stream: for WAL of the timeline that it was
/// promoted from, for the segment of the promotion, and for WAL of its own.
#[test]
fn a_running_hub_repairs_from_the_upstream() {
    let scene = Scene::new();
    let old = Cluster::primary_with_segments(&scene, "old", 1);
    let upstream = old.standby("upstream", &old.conninfo());
    upstream.wait_streaming();
    let hub = Hub::new(&scene, "hub", &upstream.conninfo()).flag("--scrub-rate=1GB").started();
    hub.wait_state("streaming");
    load::write_mib(&old, 10);
    let end = old.flush_lsn();
    wait::until("the hub has it all", || hub.inspect().record_end() >= end);
    upstream.promote();
    load::write_mib(&upstream, 10);
    let end = upstream.flush_lsn();
    wait::until("the hub has it all", || hub.inspect().record_end() >= end);
    wait_digests(&hub);

    let names = complete_segments(&hub.pg_wal());
    let (first, second): (Vec<_>, Vec<_>) =
        names.iter().partition(|name| name.starts_with("00000001"));
    assert!(first.len() >= 8 && second.len() >= 8, "{names:?}");
    // The newest is proved with the open segment.
    let wrong: Vec<&String> =
        first[first.len() - 5..].iter().chain(&second[..4]).copied().collect();
    for (n, name) in wrong.iter().enumerate() {
        // In a page's header, where no checksum is, or without a digest in a record.
        let at = match n % 2 {
            0 => MIB / 2 + 20,
            _ => {
                fs::remove_file(hub.pg_wal().join(format!("digests/{name}.digest"))).unwrap();
                MIB / 2 + 100
            }
        };
        flip(&hub.pg_wal().join(name), at);
    }
    assert_eq!(damaged(&scrubbed(&hub)), [""; 0]);
    for name in wrong {
        hub.wait_log(&[name, "was repaired from the upstream"]);
        let good = fs::read(upstream.pg_wal().join(name)).unwrap();
        assert!(fs::read(hub.pg_wal().join(name)).unwrap() == good, "{name}");
        assert!(fs::read(hub.directory().join("damaged").join(name)).unwrap() != good, "{name}");
    }
    hub.wait_state("streaming");
    wait_nothing_wrong(&hub);
    // What the upstream no longer has cannot be repaired.
    fs::remove_file(upstream.pg_wal().join(&names[0])).unwrap();
    flip(&hub.pg_wal().join(&names[0]), MIB / 2 + 20);
    assert_eq!(damaged(&scrubbed(&hub)), [names[0].clone()]);
    hub.wait_log(&["ERROR", &names[0], "was not repaired", "has already been removed"]);
}
