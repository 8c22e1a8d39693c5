//! An operator's word that the upstream's history is the true one: `walhub ctl accept-history theirs`.
//! A primary is rolled back to a snapshot and goes on in other words; the hub and its standbys have
//! what it wrote before.

use crate::cluster::{Cluster, assert_converged};
use crate::hub::Hub;
use crate::load;
use crate::scene::Scene;
use crate::streaming::wait_connected;
use crate::wait;
use std::fs;
use std::time::Duration;
use walhub::wal::lsn::Lsn;

/// A primary that was rolled back, and a hub that has noticed.
struct Stage<'a> {
    primary: Cluster<'a>,
    hub: Hub<'a>,
    /// It was stopped at the snapshot, inside the segment in which the histories part, and has a slot.
    inside: Cluster<'a>,
    /// It has replayed what the primary no longer has.
    past: Cluster<'a>,
    /// Where the difference was found.
    place: Lsn,
    /// The end of the WAL that both have.
    shared: Lsn,
}

/// Rows that tell who wrote them.
fn write_rows(primary: &Cluster<'_>, writer: u32, rows: u32) {
    primary.sql(&format!(
        "insert into pgbench_history (tid, bid, aid, delta, mtime) \
         select 1, 1, n, {writer}, now() from generate_series(1, {rows}) n"
    ));
}

fn rows_of(server: &Cluster<'_>, writer: u32) -> u64 {
    server.count(&format!("select count(*) from pgbench_history where delta = {writer}"))
}

/// The primary's rows before it was rolled back, and after.
const FORMER: u32 = 1001;
const TRUE: u32 = 1002;

impl<'a> Stage<'a> {
    fn new(scene: &'a Scene) -> Self {
        Self::with(scene, &[])
    }

    /// The same with more flags of the hub.
    fn with(scene: &'a Scene, flags: &[&str]) -> Self {
        let mut primary = Cluster::primary_with_segments(scene, "primary", 1);
        let hub = Hub::new(scene, "hub", &primary.conninfo())
            .flag("--auto-create-slots=inside,limit=1")
            .flag("--reconnect-grace=2s");
        let hub = flags.iter().fold(hub, |hub, flag| hub.flag(flag)).started();
        load::prepare(scene, &primary);
        wait_connected(&primary);
        let mut inside = primary.standby_with("inside", &hub.conninfo(), "inside");
        let past = primary.standby("past", &hub.conninfo());
        load::write_mib(&primary, 3);
        primary.stop_fast();
        let shared = wait::eventually("everybody has the shutdown's checkpoint", || {
            let end = hub.inspect().record_end();
            (inside.replay_lsn() == end && past.replay_lsn() == end).then_some(end)
        });
        assert!(shared.raw() % (1 << 20) > 100, "not inside a segment: {shared}");
        inside.stop_fast();
        let snapshot = primary.snapshot("snapshot");
        primary.start();
        write_rows(&primary, FORMER, 20_000);
        wait::until("the other one has the rows", || rows_of(&past, FORMER) == 20_000);
        primary.kill();
        primary.roll_back_to(&snapshot);
        primary.start();
        write_rows(&primary, TRUE, 30_000);
        load::write_mib(&primary, 4);
        hub.wait_state("diverged");
        let place = hub.inspect().evidence().expect("a place");
        Self { primary, hub, inside, past, place, shared }
    }

    fn accept(&self) {
        let said = self.hub.told(&["accept-history", "theirs", &self.place.to_string()]);
        assert!(said["evidence"].is_null(), "{said}");
        self.hub.wait_state("streaming");
    }

    fn seam(&self) -> Lsn {
        let status = self.hub.told(&["status"])["status"].clone();
        let seams = status["seams"].as_array().unwrap();
        assert_eq!(seams.len(), 1, "{status}");
        seams[0]["lsn"].as_str().unwrap().parse().unwrap()
    }

    /// The one that is past the place stays as it is.
    fn past_stays(&self) {
        wait::stays(Duration::from_secs(1), "what it has is not mixed", || {
            rows_of(&self.past, FORMER) == 20_000 && rows_of(&self.past, TRUE) == 0
        });
    }
}

#[test]
fn a_standby_inside_the_segment_follows_and_one_past_the_place_is_refused() {
    let scene = Scene::new();
    let mut stage = Stage::new(&scene);
    stage.accept();
    let seam = stage.seam();
    assert!(stage.shared <= seam && seam <= stage.place, "{} {seam}", stage.shared);
    let status = stage.hub.told(&["status"])["status"].clone();
    assert!(status["abandoned"][0]["commits"].as_u64().unwrap() >= 1, "{status}");
    // One standby was connected past the place.
    assert_eq!(status["abandoned"][0]["standbys"], 1, "{status}");
    let sent: Lsn = status["abandoned"][0]["sent_lsn"].as_str().unwrap().parse().unwrap();
    assert!(sent > seam, "{status}");
    let aside = stage.hub.directory().join(status["abandoned"][0]["kept_in"].as_str().unwrap());
    assert!(aside.read_dir().unwrap().count() >= 2, "{}", aside.display());

    stage.inside.start();
    stage.inside.wait_streaming();
    assert_converged(&stage.primary, &[&stage.inside]);
    assert_eq!((rows_of(&stage.inside, TRUE), rows_of(&stage.inside, FORMER)), (30_000, 0));
    stage.hub.wait_log(&["standby has diverged", "past"]);
    stage.past_stays();

    // The rule outlives the hub. A slot past the place shows that its standby has followed.
    wait::until("the slot is past the seam on disk", || {
        stage.hub.slot_on_disk("inside").is_some_and(|at| at > seam)
    });
    stage.hub.kill();
    stage.hub.start();
    load::write_mib(&stage.primary, 2);
    assert_converged(&stage.primary, &[&stage.inside]);
    wait::until("it is refused again", || {
        let standbys = stage.hub.told(&["standbys"])["standbys"].clone();
        let diverged = standbys["diverged"].as_array().unwrap();
        diverged.iter().any(|standby| standby["application_name"] == "past")
    });
    stage.past_stays();
    assert_eq!(stage.seam(), seam);
}

#[test]
fn standbys_past_the_place_are_let_in_when_an_operator_confirms() {
    let scene = Scene::new();
    let mut stage = Stage::new(&scene);
    stage.accept();
    let seam = stage.seam();
    stage.hub.wait_log(&["standby has diverged", "past"]);
    // Made again, and past the place by its position.
    stage.past.kill();
    stage.primary.backup_again();
    let rebuilt = stage.primary.standby("rebuilt", &stage.hub.conninfo());
    stage.hub.wait_log(&["standby has diverged", "rebuilt"]);
    let seam = seam.to_string();
    let left = |said: &serde_json::Value| {
        ["abandoned", "seams"].map(|what| said[what].as_array().unwrap().len())
    };
    assert_eq!(left(&stage.hub.told(&["confirm"])), [1, 1]);
    // To know what was lost says nothing about standbys.
    assert_eq!(left(&stage.hub.told(&["confirm", &seam])), [0, 1]);
    let (code, refused) = stage.hub.ask(&["confirm", &seam]);
    assert_eq!(code, 1, "{refused}");
    let text = refused["error"]["message"].as_str().unwrap();
    assert!(text.contains(&format!("walhub ctl confirm seam {seam}")), "{text}");
    // Both have just asked, and one of them may have the former WAL.
    let refuses = |let_in: &[&str], named: &[&str]| {
        let command = [&["confirm", "seam", &seam], let_in].concat();
        let (code, refused) = stage.hub.ask(&command);
        assert_eq!(code, 1, "{refused}");
        let text = refused["error"]["message"].as_str().unwrap();
        for name in ["past", "rebuilt"] {
            let shown = format!("{name} (127.0.0.1:");
            assert_eq!(text.contains(&shown), named.contains(&name), "{text}");
        }
    };
    refuses(&[], &["past", "rebuilt"]);
    refuses(&["--let-in", "rebuilt"], &["past"]);
    let had = rebuilt.replay_lsn();
    load::write_mib(&stage.primary, 1);
    wait::stays(Duration::from_secs(1), "it is not let in", || rebuilt.replay_lsn() == had);
    let both = ["confirm", "seam", &seam, "--let-in=rebuilt", "--let-in=past"];
    assert_eq!(left(&stage.hub.told(&both)), [0, 0]);
    stage.hub.wait_log(&["WARN", "are let in again", "past (127.0.0.1:", "rebuilt (127.0.0.1:"]);
    stage.inside.start();
    load::write_mib(&stage.primary, 2);
    assert_converged(&stage.primary, &[&stage.inside, &rebuilt]);
    let status = stage.hub.told(&["status"])["status"].clone();
    assert_eq!(status["seams"].as_array().unwrap().len(), 0, "{status}");
    stage.hub.kill();
    stage.hub.start();
    assert_converged(&stage.primary, &[&stage.inside, &rebuilt]);
}

#[test]
fn without_an_upstream_that_differs_nothing_is_given_up() {
    let scene = Scene::new();
    let mut stage = Stage::new(&scene);
    let end = stage.hub.inspect().record_end();
    let place = stage.place.to_string();
    stage.primary.kill();
    let refused = stage.hub.ctl().args(["accept-history", "theirs", &place]).output().unwrap();
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let text = String::from_utf8(refused.stderr).unwrap();
    assert!(text.contains("no upstream shows the history that"), "{text}");
    let elsewhere = stage.place.saturating_add(1).to_string();
    let refused = stage.hub.ctl().args(["accept-history", "theirs", &elsewhere]).output().unwrap();
    let text = String::from_utf8(refused.stderr).unwrap();
    assert!(text.contains(&format!("at {place} on timeline 1")), "{text}");
    assert_eq!(stage.hub.inspect().record_end(), end);
    assert_eq!(stage.hub.inspect().evidence(), Some(stage.place));
    stage.past.wait_streaming();
    stage.inside.start();
    stage.inside.wait_replayed(end);
    assert_eq!(stage.inside.fingerprint(), stage.past.fingerprint());
}

/// Two servers were rolled back, and each went on in words of its own. The word is about the history
/// that the hub has seen.
#[test]
fn the_history_that_was_seen_is_taken_and_no_other() {
    const THIRD: u32 = 1003;
    let scene = Scene::new();
    let mut stage = Stage::new(&scene);
    stage.primary.stop_fast();
    let mut third = stage.primary.copy_of_files("third");
    stage.primary.start();
    third.roll_back_to(&scene.path("snapshot").join("data"));
    third.start();
    write_rows(&third, THIRD, 25_000);
    load::write_mib(&third, 4);
    let ports = format!("{},{}", third.port(), stage.primary.port());
    let both = format!("host=127.0.0.1,127.0.0.1 port={ports} user=postgres");
    stage.hub.told(&["upstream", &both]);
    stage.accept();
    stage.hub.wait_log(&["WARN", &third.port().to_string(), "has neither this hub's WAL at"]);
    stage.inside.start();
    assert_converged(&stage.primary, &[&stage.inside]);
    assert_eq!((rows_of(&stage.inside, TRUE), rows_of(&stage.inside, THIRD)), (30_000, 0));
    assert_eq!(rows_of(&stage.inside, FORMER), 0);
    stage.hub.assert_running();
}

#[test]
fn on_diverge_follow_gives_up_our_wal_by_itself_after_a_while() {
    let scene = Scene::new();
    let mut stage = Stage::with(&scene, &["--on-diverge=follow", "--on-diverge-after=12s"]);
    stage.hub.wait_log(&["WARN", "is out of recovery and has other WAL at"]);
    stage.hub.wait_log(&["WARN", "is the true one, by --on-diverge follow"]);
    stage.hub.wait_state("streaming");
    stage.inside.start();
    assert_converged(&stage.primary, &[&stage.inside]);
    assert_eq!((rows_of(&stage.inside, TRUE), rows_of(&stage.inside, FORMER)), (30_000, 0));
    assert!(stage.seam() <= stage.place);
    stage.hub.wait_log(&["standby has diverged", "past"]);
    stage.past_stays();
}

/// A standby of the server that was rolled back has its history, and is in recovery.
#[test]
fn on_diverge_follow_never_follows_a_server_in_recovery() {
    let scene = Scene::new();
    let mut stage = Stage::new(&scene);
    let end = stage.hub.inspect().record_end();
    let other = stage.primary.standby("other", &stage.primary.conninfo());
    other.wait_replayed(stage.primary.flush_lsn());
    stage.hub.stop();
    for flag in ["--on-diverge=follow", "--on-diverge-after=1s"] {
        stage.hub.set_flag(flag);
    }
    stage.hub.set_upstream(&other.conninfo());
    stage.hub.start();
    stage.hub.wait_state("diverged");
    wait::stays(Duration::from_secs(8), "the hub's WAL stays", || {
        stage.hub.inspect().record_end() == end
            && stage.hub.inspect().evidence() == Some(stage.place)
    });
    assert!(stage.hub.logged(&["is out of recovery"]).is_none());
}

/// A hub below has the former history, too. It finds out, and its operator says the same.
#[test]
fn a_hub_below_finds_out_and_follows_by_the_same_word() {
    let scene = Scene::new();
    let mut stage = Stage::new(&scene);
    let mut below =
        Hub::new(&scene, "below", &stage.hub.conninfo()).flag("--start-from=oldest").started();
    below.wait_state("streaming");
    let end = stage.hub.inspect().record_end();
    wait::until("the hub below has the former history", || below.inspect().record_end() == end);
    stage.accept();
    below.wait_state("diverged");
    let place = below.inspect().evidence().expect("a place");
    assert!(place >= stage.seam(), "{place}");
    assert_eq!(below.inspect().record_end(), end, "it has taken nothing");
    let said = below.told(&["accept-history", "theirs", &place.to_string()]);
    assert!(said["evidence"].is_null(), "{said}");
    below.wait_state("streaming");
    stage.inside.set(&format!("primary_conninfo={} application_name=inside", below.conninfo()));
    stage.inside.set("primary_slot_name=");
    stage.inside.start();
    load::write_mib(&stage.primary, 1);
    assert_converged(&stage.primary, &[&stage.inside]);
    assert_eq!((rows_of(&stage.inside, TRUE), rows_of(&stage.inside, FORMER)), (30_000, 0));
    below.assert_running();
}

/// An operator took the segments from the place on away, as for a damaged one. Standbys still have what
/// was in them.
#[test]
fn a_difference_outlives_the_wal_that_it_is_about() {
    let scene = Scene::new();
    let mut stage = Stage::new(&scene);
    stage.hub.kill();
    let (pg_wal, away) = (stage.hub.pg_wal(), scene.path("away"));
    fs::create_dir(&away).unwrap();
    let first = format!("0000000100000000{:08X}", stage.place.raw() >> 20);
    for entry in fs::read_dir(&pg_wal).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.starts_with("00000001") && name >= first {
            fs::rename(pg_wal.join(&name), away.join(&name)).unwrap();
        }
    }
    stage.hub.start();
    stage.hub.wait_log(&["ERROR", "before the difference at", &stage.place.to_string()]);
    stage.hub.wait_state("diverged");
    let end = stage.hub.inspect().record_end();
    assert!(end < stage.place, "{end} {}", stage.place);
    wait::stays(Duration::from_secs(3), "nothing is received", || {
        let found = stage.hub.inspect();
        found.record_end() == end && found.evidence() == Some(stage.place)
    });
    let status = stage.hub.told(&["status"])["status"].clone();
    assert!(status["upstream"]["text"].as_str().unwrap().contains("is lost"), "{status}");
    stage.past_stays();

    stage.accept();
    let seam = stage.seam();
    assert!(seam <= end, "{seam} {end}");
    let flushed = stage.primary.flush_lsn();
    wait::until("the hub has the true history", || stage.hub.inspect().record_end() >= flushed);
    stage.hub.wait_log(&["standby has diverged", "past"]);
    stage.past_stays();
    assert_eq!(stage.hub.inspect().evidence(), None);
    stage.hub.assert_running();
}
