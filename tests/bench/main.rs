//! `walhub bench` and `walhub demo` as their users run them, without a PostgreSQL.
#![expect(
    clippy::unwrap_used,
    reason = "a test's helpers fail by panicking, as the test itself does"
)]

mod command;
#[path = "../support/mod.rs"]
mod support;

use command::{Finished, bench, bench_in_background, hubs_of};
use rustix::process::{Pid, Signal};
use serde_json::Value;
use std::fs;
use std::time::{Duration, Instant};
use support::process::is_running;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// What all good runs have in common.
fn check_verdict(report: &Value) {
    let verdict = &report["verdict"];
    assert_eq!(verdict["faults"], 0, "{verdict}");
    assert_eq!(verdict["problems"].as_array().unwrap().len(), 0, "{verdict}");
    let received = verdict["received_bytes"].as_u64().unwrap();
    assert_eq!(received, verdict["verified_bytes"].as_u64().unwrap() + unverified(verdict));
    assert!(received > 0, "{verdict}");
}

/// Bytes that nothing is known of.
fn unverified(verdict: &Value) -> u64 {
    let parts = verdict["unverified"].as_array().unwrap().iter();
    parts.map(|part| part["bytes"].as_u64().unwrap()).sum()
}

#[test]
fn a_run_measures_a_hub() {
    let folder = tempfile::tempdir().unwrap();
    let (html, hgrm) = (folder.path().join("a.html"), folder.path().join("a"));
    let scratch = folder.path().join("scratch");
    fs::create_dir(&scratch).unwrap();
    let run = bench(&[
        "run",
        "--standbys=20",
        "--rate=4MB",
        "--commit-size=1kB",
        "--warm-up=500ms",
        "--duration=3s",
        "--json=-",
        &format!("--html={}", html.display()),
        &format!("--hgrm={}", hgrm.display()),
        &format!("--directory={}", scratch.display()),
    ]);
    assert_eq!(run.code, Some(0), "{run}");
    let report = json(&run.stdout);
    check_verdict(&report);
    assert_eq!(unverified(&report["verdict"]), 0, "{}", report["verdict"]);
    let results = &report["results"];
    let count = |latency: &Value| latency["count"].as_u64().unwrap();
    let commits = results["commits"].as_u64().unwrap();
    // The load is 4096 commits a second, and an open loop.
    assert!((11_000..14_000).contains(&commits), "{results}");
    let last = count(&results["last"]);
    assert_eq!((last, last * 20), (count(&results["first"]), count(&results["each"])));
    assert!(last.abs_diff(commits) < 1000, "{last} of {commits}");
    for quantile in ["p50", "p99", "max"] {
        let at = |name: &str| results[name][quantile].as_u64().unwrap();
        assert!(0 < at("first") && at("first") <= at("last"), "{results}");
    }
    assert!(results["cpu"]["seconds"].as_f64().unwrap() > 0.0);
    assert!(results["memory"]["before"]["private"].as_u64().unwrap() > 1 << 20);
    assert!(report["series"].as_array().unwrap().len() > 10);

    let html = fs::read_to_string(html).unwrap();
    assert!(html.contains("every byte of it verified") && html.contains("<polyline"));
    for name in ["each", "first", "last"] {
        let text = fs::read_to_string(folder.path().join(format!("a-{name}.hgrm"))).unwrap();
        assert!(text.contains("#[Mean"), "{text}");
    }
    assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0, "the run cleans up");

    // The same report on both sides: every ratio is 1.
    let path = folder.path().join("a.json");
    fs::write(&path, &run.stdout).unwrap();
    let path = path.to_str().unwrap();
    let table = bench(&["compare", path, path]);
    assert_eq!(table.code, Some(0), "{table}");
    let line = table.stdout.lines().find(|line| line.starts_with("last standby p99 ")).unwrap();
    assert!(line.ends_with("1.00"), "{table}");
}

#[test]
fn those_who_misbehave_do_not_hurt_the_others() {
    let run = bench(&[
        "run",
        "--standbys=20",
        "--threads=2",
        "--rate=4MB",
        "--slow=2",
        "--stalled=2:1s",
        "--flapping=2:200ms-1s",
        "--storm=2s",
        // The slow ones fall out of it, and some of the others before they are back.
        "--window=1MB",
        "--warm-up=500ms",
        "--duration=4s",
        "--json=-",
    ]);
    assert_eq!(run.code, Some(0), "{run}");
    let report = json(&run.stdout);
    check_verdict(&report);
    let verdict = &report["verdict"];
    let (rest, received) = (unverified(verdict), verdict["received_bytes"].as_u64().unwrap());
    assert!(rest < received / 100, "{verdict}");
    let results = &report["results"];
    assert_eq!(results["incomplete_commits"], 0, "{results}");
    assert!(results["storms"][0].as_f64().unwrap() < 5.0, "{}", results["storms"]);
    // Fourteen good ones in the storm, two that flap.
    assert!(results["reconnects"].as_u64().unwrap() > 14, "{results}");
    let groups: Vec<_> = results["groups"].as_array().unwrap().iter().collect();
    let names: Vec<_> = groups.iter().map(|group| group["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["good", "slow", "stalled", "flapping"]);
}

#[test]
fn a_catch_up_ends_with_its_wal() {
    for spread in [None, Some("--spread")] {
        let mut args =
            vec!["run", "--catch-up=64MB", "--standbys=6", "--json=-", "--wal-segment-size=4MB"];
        args.extend(spread);
        let run = bench(&args);
        assert_eq!(run.code, Some(0), "{run}");
        let report = json(&run.stdout);
        check_verdict(&report);
        assert_eq!(unverified(&report["verdict"]), 0, "{}", report["verdict"]);
        let received = report["results"]["delivered_bytes"].as_u64().unwrap();
        let all = 6 * (64u64 << 20);
        match spread {
            // A commit more or less.
            None => assert!(received.abs_diff(all) < 1 << 20, "{received} of {all}"),
            // From 0, 1/6, ... 5/6: the mean is 5/12.
            Some(_) => assert!(received.abs_diff(all * 7 / 12) < 1 << 20, "{received} of {all}"),
        }
        assert!(report["results"]["ingest"]["seconds"].as_f64().unwrap() > 0.0);
    }
}

#[test]
fn the_hubs_flags_can_be_given_again() {
    let run = bench(&[
        "run",
        "--standbys=2",
        "--rate=1MB",
        "--warm-up=0",
        "--duration=500ms",
        "--cores=1",
        "--json=-",
        "--serve-arg=--cores=1",
        "--serve-arg=--max-wal-senders",
        "--serve-arg=7",
        "--serve-arg=--wal-retrieve-retry-interval=1s",
    ]);
    assert_eq!(run.code, Some(0), "{run}");
    check_verdict(&json(&run.stdout));
}

#[test]
fn whoever_closes_our_output_hears_no_complaint() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.json");
    let json = format!("--json={}", path.display());
    let run = bench(&["run", "--standbys=1", "--warm-up=0", "--duration=300ms", "--quiet", &json]);
    assert_eq!(run.code, Some(0), "{run}");
    let path = path.to_str().unwrap();
    for args in [
        &["compare", path, path][..],
        &["run", "--standbys=1", "--warm-up=0", "--duration=300ms", "--quiet"],
    ] {
        let run = command::bench_without_output(args);
        assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "{args:?}");
    }
}

#[test]
fn a_server_that_is_not_there_is_no_run() {
    for args in [
        &["run", "--target=host=127.0.0.1 port=1 user=u"][..],
        &["standbys", "--target=host=127.0.0.1 port=1 user=u"],
        &["run", "--serve-arg=--no-such-flag"],
        &["run", "--standbys=0"],
        &["run", "--no-such-flag"],
    ] {
        let run = bench(args);
        assert_eq!(run.code, Some(2), "{args:?}: {run}");
        assert!(!run.stderr.is_empty());
    }
}

#[test]
fn ctrl_c_ends_a_run_with_its_report() {
    let mut run = bench_in_background(&["run", "--standbys=5", "--rate=1MB", "--duration=10min"]);
    run.wait_for_line("measuring");
    run.signal(Signal::INT);
    let run: Finished = run.finish();
    assert_eq!(run.code, Some(0), "{run}");
    assert!(run.stdout.contains("interrupted") && run.stdout.contains("last standby"), "{run}");
}

#[test]
fn a_hub_does_not_outlive_its_run() {
    let mut run = bench_in_background(&["run", "--standbys=5", "--rate=1MB", "--duration=10min"]);
    run.wait_for_line("measuring");
    let hubs = hubs_of(run.pid());
    assert_eq!(hubs.len(), 1, "{hubs:?}");
    let scratch = command::scratch_of(hubs[0]);
    run.signal(Signal::KILL);
    run.finish();
    let deadline = Instant::now() + Duration::from_secs(10);
    while hubs.iter().any(|hub: &Pid| is_running(*hub)) {
        assert!(Instant::now() < deadline, "the hub is still there");
        std::thread::sleep(Duration::from_millis(20));
    }
    // Whoever is killed cannot clean up.
    fs::remove_dir_all(scratch).unwrap();
}

#[test]
fn a_primary_serves_standbys() {
    let mut primary = bench_in_background(&[
        "primary",
        "--listen=127.0.0.1:0",
        "--total=8MB",
        "--rate=max",
        "--wait-for=3",
    ]);
    let line = primary.wait_for_line("A synthetic primary");
    let address = line.split(" on ").nth(1).unwrap().split(';').next().unwrap();
    let port = address.rsplit(':').next().unwrap();
    let target = format!("--target=host=127.0.0.1 port={port} user=u");
    let fleet = bench(&["standbys", &target, "--standbys=3", "--duration=3s", "--json=-"]);
    assert_eq!(fleet.code, Some(0), "{fleet}");
    let report = json(&fleet.stdout);
    check_verdict(&report);
    assert!(report["verdict"]["received_bytes"].as_u64().unwrap() >= 3 * (8 << 20), "{fleet}");
    let primary = primary.finish();
    assert_eq!(primary.code, Some(0), "{primary}");
    assert!(primary.stdout.contains("8.0") || primary.stdout.contains("8.1"), "{primary}");
}

#[test]
fn the_demo_works_alone() {
    let demo = command::walhub(&["demo"]);
    assert_eq!(demo.code, Some(0), "{demo}");
    for part in ["every byte of it", "one standby did not read", "walhub bench run"] {
        assert!(demo.stdout.replace('\n', " ").contains(part), "{part}: {demo}");
    }
}
