//! The bench's sources of load beside the real programs: what the synthetic primary
//! writes is read by pg_receivewal, pg_waldump and the hub; commits on a real primary
//! stand where they are said to stand.
//!
//! `WALHUB_PG_MAJORS` names the majors whose tools read the synthetic WAL, beside 15.

use crate::client::Client;
use crate::cluster::Cluster;
use crate::hub::Hub;
use crate::programs::Programs;
use crate::receivewal::Receiver;
use crate::scene::Scene;
use crate::segments::assert_identical;
use crate::wait;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use walhub::bench::clock::Clock;
use walhub::bench::commits::Commits;
use walhub::bench::primary::{Primary, PrimaryPlan, ServerVersion, start};
use walhub::bench::profile::{CommitSize, Figures, Images, Load, Profile, Rate};
use walhub::bench::sql::{self, SqlPlan};
use walhub::bench::truth::Truth;
use walhub::wal::{Lsn, SegmentSize, SystemId};
use walhub::wire::conninfo::Conninfo;

const MIB: u64 = 1 << 20;
const START: Lsn = Lsn::new(16 * MIB);
const WINDOW: u64 = 64 * MIB;

/// A primary, and what it tells of its WAL.
struct Source {
    primary: Primary,
    truth: Arc<Truth>,
    commits: Arc<Commits>,
}

impl Source {
    fn start(major: u32, load: Load, write_wal: Option<&Path>) -> Self {
        let truth = Arc::new(Truth::new(START, WINDOW));
        let commits = Arc::new(Commits::new(1 << 20));
        let primary = start(PrimaryPlan {
            listen: ([127, 0, 0, 1], 0).into(),
            server_version: ServerVersion::new(major).unwrap(),
            system_id: SystemId::new(7_000_000_000_000_000_001),
            segment_size: SegmentSize::new(MIB).unwrap(),
            start: START,
            load,
            window: WINDOW,
            write_wal: write_wal.map(Path::to_owned),
            clock: Clock::start(),
            truth: Arc::clone(&truth),
            commits: Arc::clone(&commits),
        });
        Self { primary: primary.unwrap(), truth, commits }
    }

    fn conninfo(&self) -> String {
        format!("host=127.0.0.1 port={} user=bench", self.primary.address().port())
    }

    /// Runs the load to its end, which is the WAL's.
    fn run(&self) -> Lsn {
        self.primary.begin();
        wait::until("the load has been made", || {
            let progress = self.primary.progress();
            assert_eq!(progress.fault, None);
            progress.finished
        });
        self.primary.progress().end
    }

    fn wal(&self, from: Lsn, to: Lsn) -> Vec<u8> {
        let mut pieces = Vec::new();
        assert!(self.truth.gather(from, to, &mut pieces));
        pieces.concat()
    }
}

/// Every kind of record there is, and switches of segments.
fn colourful() -> Load {
    let figures = Figures {
        rate: Some(Rate::PerSecond(40 * MIB)),
        commit_size: Some(CommitSize::Between(40, 20_000)),
        total: Some(8 * MIB),
        ..Figures::default()
    };
    Load {
        images: Some(Images {
            every: Duration::from_millis(50),
            lasts: Duration::from_millis(20),
            percent: 60,
        }),
        switch_every: Some(Duration::from_millis(40)),
        ..Load::new(Profile::Custom, &figures).unwrap()
    }
}

/// Start of each record between the two, and what pg_waldump says of it.
fn waldump(programs: &Programs, folder: &Path, from: Lsn, to: Lsn) -> Option<Vec<(Lsn, String)>> {
    let mut waldump = programs.waldump()?;
    let output = waldump
        .arg("-p")
        .arg(folder)
        .args(["-s", &from.to_string(), "-e", &to.to_string()])
        .output()
        .unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && complaint.is_empty(), "pg_waldump: {complaint}");
    let records = String::from_utf8(output.stdout).unwrap();
    let record = |line: &str| {
        let (at, what) = line.split_once("lsn: ").unwrap().1.split_once(',').unwrap();
        (at.parse().unwrap(), what.to_owned())
    };
    Some(records.lines().map(record).collect())
}

#[test]
fn real_tools_read_the_synthetic_wal() {
    let others = std::env::var("WALHUB_PG_MAJORS").unwrap_or_default();
    let others = others.split_whitespace().map(|major| major.parse().unwrap());
    for major in [15].into_iter().chain(others) {
        is_read_by(Programs::of(major));
    }
}

fn is_read_by(programs: &'static Programs) {
    let scene = Scene::new();
    let written = scene.path("written");
    let source = Source::start(programs.major, colourful(), Some(&written));
    let psql = |query: &str| {
        let conninfo = format!("{} replication=1", source.conninfo());
        let mut psql = programs.client("psql");
        let output = psql.args(["-XAtq", "-d", &conninfo, "-c", query]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    };
    let end = source.truth.end();
    assert_eq!(psql("IDENTIFY_SYSTEM"), format!("7000000000000000001|1|{end}|"));
    assert_eq!(psql("SHOW wal_segment_size"), "1MB");

    let conninfo = source.conninfo();
    let options = ["--create-slot", "--slot=r", "--if-not-exists"];
    let created = programs.client("pg_receivewal").args(options).args(["-d", &conninfo]).status();
    assert!(created.unwrap().success());
    let mut receiver = Receiver::start(&scene, programs, "received", &conninfo, &["--slot=r"]);
    receiver.wait_begun();
    let end = source.run();
    wait::until("pg_receivewal says that it has everything", || {
        let receivers = source.primary.progress().receivers;
        receivers.iter().any(|receiver| receiver.write == end)
    });
    receiver.stop();
    assert_identical(receiver.folder(), &written, 7);

    let Some(records) = waldump(programs, &written, START, end) else { return };
    let count = |what: &str| records.iter().filter(|(_, text)| text.contains(what)).count();
    assert_eq!(count("COMMIT") as u64, source.commits.count());
    assert!(count("FPI") > 50, "{} images", count("FPI"));
    assert!(count("SWITCH") >= 2, "{} switches", count("SWITCH"));
    assert!(count("NOOP") > 1000, "{} records", count("NOOP"));
}

#[test]
fn the_hub_takes_a_synthetic_primary_for_a_real_one() {
    let scene = Scene::new();
    let source = Source::start(16, colourful(), None);
    let hub = Hub::run(&scene, "hub", &source.conninfo());
    wait::until("the hub streams", || !source.primary.progress().receivers.is_empty());
    let end = source.run();
    let mut client = Client::connect(hub.port());
    assert_eq!(client.parameters["server_version"], "16.0 (walhub bench)");
    client.start_replication(START, 1).unwrap();
    let wal = client.read_wal(START, end);
    assert!(wal == source.wal(START, end), "the hub sends what the primary wrote");
    assert!(source.primary.stop().receivers.is_empty(), "the hub was told that it is the end");
}

#[test]
fn commits_on_a_real_primary_are_where_they_are_said_to_be() {
    let scene = Scene::new();
    let primary = Cluster::primary(&scene, "primary");
    let figures = Figures {
        commit_size: Some("1kB-8kB".parse().unwrap()),
        commits_per_second: Some(300),
        total: Some(MIB),
        ..Figures::default()
    };
    let commits = Arc::new(Commits::new(1 << 20));
    let plan = SqlPlan {
        target: Conninfo::parse(&primary.conninfo(), &|_| None).unwrap(),
        load: Load::new(Profile::Custom, &figures).unwrap(),
        clients: 4,
        clock: Clock::start(),
        commits: Arc::clone(&commits),
    };
    let before = primary.flush_lsn();
    let sql = sql::start(plan).unwrap();
    sql.begin();
    wait::until("all are committed", || {
        let progress = sql.progress();
        assert_eq!(progress.fault, None);
        progress.finished
    });
    sql.pause();
    wait::until("the end of WAL is known", || commits.known() >= primary.flush_lsn());
    let result = sql.stop();
    let progress = &result.progress;
    let count = commits.count();
    assert_eq!(
        (progress.commits, result.latency.len(), result.service.len()),
        (count, count, count)
    );
    assert!(result.latency.min() >= result.service.min());
    assert!((MIB..2 * MIB).contains(&progress.bytes), "{} bytes", progress.bytes);

    let mut all = Vec::new();
    commits.collect(0, progress.end, &mut all);
    assert_eq!(all.len() as u64, count, "in the order of the WAL");
    let Some(records) = waldump(primary.programs, &primary.pg_wal(), before, progress.end) else {
        return;
    };
    let starts: BTreeSet<Lsn> = records.iter().map(|(at, _)| *at).collect();
    for commit in &all {
        let next = commit.end.align8();
        let header = match next.page_offset() {
            0 if next.segment_offset(SegmentSize::new(16 * MIB).unwrap()) == 0 => 40,
            0 => 24,
            _ => 0,
        };
        let next = next.saturating_add(header);
        assert!(starts.contains(&next), "no record after {}", commit.end);
    }
}

#[test]
fn a_primary_that_dies_ends_the_load_with_a_reason() {
    let scene = Scene::new();
    let mut primary = Cluster::primary(&scene, "primary");
    let figures = Figures {
        rate: Some(Rate::Max),
        commit_size: Some(CommitSize::Fixed(64 << 10)),
        ..Figures::default()
    };
    let plan = |target: &str| SqlPlan {
        target: Conninfo::parse(target, &|_| None).unwrap(),
        load: Load::new(Profile::Custom, &figures).unwrap(),
        clients: 2,
        clock: Clock::start(),
        commits: Arc::new(Commits::new(1000)),
    };
    let sql = sql::start(plan(&primary.unix_conninfo())).unwrap();
    sql.begin();
    wait::until("there are commits", || sql.progress().commits > 10);
    sql.mark();
    primary.kill();
    wait::until("the loss is seen", || sql.progress().fault.is_some());
    let result = sql.stop();
    assert!(result.latency.len() < result.progress.commits, "counted from the mark on");
    let refused = sql::start(plan(&primary.conninfo())).unwrap_err().to_string();
    assert!(refused.contains("could not connect to 127.0.0.1"), "{refused}");
}
