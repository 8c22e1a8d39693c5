//! `walhub bench run` at servers that are there: a primary, and a hub behind it.

use crate::cluster::Cluster;
use crate::hub::{self, Hub};
use crate::scene::Scene;
use serde_json::Value;
use std::fs;

/// The report of a run that went well.
fn run(args: &[&str]) -> Value {
    let mut command = hub::command();
    let output = command.args(["bench", "run", "--json=-", "--quiet"]).args(args).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {errors}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let verdict = &report["verdict"];
    assert_eq!(verdict["received_bytes"], verdict["verified_bytes"], "{verdict}");
    report
}

#[test]
fn commits_are_measured_from_the_client_to_the_last_standby() {
    let scene = Scene::new();
    let primary = Cluster::primary(&scene, "primary");
    let hub = Hub::run(&scene, "hub", &primary.conninfo());
    hub.wait_state("streaming");
    let data = primary.pg_wal().parent().unwrap().to_owned();
    let lock = fs::read_to_string(data.join("postmaster.pid")).unwrap();
    let postmaster = format!("--server-pid={}", lock.lines().next().unwrap());
    let commits = format!("--commits-on={}", primary.conninfo());
    let load = ["--commits-per-second=100", "--commit-size=1kB", "--standbys=5"];
    let span = ["--warm-up=300ms", "--duration=2s"];
    for (target, walsenders) in [(primary.conninfo(), 6), (hub.conninfo(), 1)] {
        let target = format!("--target={target}");
        let mut args = vec![target.as_str(), &commits, &postmaster];
        args.push("--server-match=postgres: walsender");
        args.extend(load.iter().chain(&span));
        let report = run(&args);
        let results = &report["results"];
        let at = |name: &str| results[name]["p50"].as_u64().unwrap();
        // Nobody receives what was not flushed, and the client waits for no more than that.
        assert!(at("commit") > 50_000 && at("first") > 50_000, "{results}");
        assert!(at("last") >= at("first") && at("last") < 10_000_000_000, "{results}");
        let committed = results["commits"].as_u64().unwrap();
        assert!((150..=250).contains(&committed), "{results}");
        assert_eq!(results["incomplete_commits"], 0, "{results}");
        let processes = results["memory"]["streaming"]["processes"].as_u64();
        assert_eq!(processes, Some(walsenders), "{results}");
        assert!(results["cpu"]["per_delivery"].as_f64().unwrap() > 0.1, "{results}");
    }
}

#[test]
fn a_catch_up_can_be_with_what_a_server_has() {
    let scene = Scene::new();
    let primary = Cluster::primary_with_segments(&scene, "primary", 1);
    primary.sql("create table t as select g, repeat('x', 500) from generate_series(1, 40000) g");
    let target = format!("--target={}", primary.conninfo());
    let report = run(&[&target, "--catch-up=8MB", "--standbys=4"]);
    let received = report["results"]["delivered_bytes"].as_u64().unwrap();
    // Each begins with a page's beginning.
    assert!(received.abs_diff(4 * (8 << 20)) <= 4 * 8192, "{received}");

    let commits = format!("--commits-on={}", primary.conninfo());
    let args = [&target, &commits, "--catch-up=8MB", "--commit-size=64kB", "--standbys=4"];
    let report = run(&args);
    let received = report["results"]["delivered_bytes"].as_u64().unwrap();
    assert!(received >= 4 * (8 << 20), "{received}");
}
