//! One primary and the ways from it to a fleet of standbys.
//!
//! The servers of a way run only while it is measured, so that no way pays for another.

use crate::fault::{During, Outcome};
use crate::support::cluster::{Birth, Cluster};
use crate::support::hub::Hub;
use crate::support::scene::Scene;
use crate::support::wait;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;
use walhub::bench::measure::Servers;
use walhub::wal::Lsn;
use walhub::wire::conninfo::Conninfo;

/// How standbys are fed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Way {
    /// Every standby has a walsender of the primary.
    Direct,
    /// Every standby has a walsender of a standby of the primary.
    Cascade,
    /// The hub.
    Hub,
}

impl Way {
    /// Its name in tables.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Direct => "PostgreSQL, direct",
            Self::Cascade => "PostgreSQL, cascade",
            Self::Hub => "walhub",
        }
    }
}

/// What tells a bed from another.
#[derive(Debug)]
pub(crate) struct Making<'a> {
    pub(crate) scene: &'a Scene,
    pub(crate) walhub: PathBuf,
    pub(crate) serve_flags: Vec<String>,
    /// The largest fleet.
    pub(crate) standbys: usize,
    pub(crate) segment_mib: u64,
    /// Segment name at which the WAL begins, when not where initdb begins it.
    pub(crate) first_segment: Option<&'a str>,
}

/// Walsenders beside those of the fleet: the hub's, the cascading standby's, a base
/// backup's two, and some that have not noticed yet that their client went.
const SPARE_SENDERS: usize = 20;

/// What a start leaves to be done (spare segments, the first buffers) is no part of a load.
const SETTLING: Duration = Duration::from_secs(1);

/// What the hub calls itself upstream.
pub(crate) const HUB: &str = "walhub";
const STANDBY: &str = "standby";

/// What all PostgreSQL servers of a comparison share, beside the settings of any test.
const SETTINGS: [&str; 9] = [
    // Syncs are what everybody has to pay.
    "fsync=on",
    "synchronous_commit=on",
    "wal_level=replica",
    "hot_standby=on",
    "shared_buffers=128MB",
    "max_connections=60",
    // No checkpoint falls into one measurement and not into another.
    "max_wal_size=16GB",
    "wal_keep_size=16GB",
    "wal_receiver_status_interval=10s",
];

/// The servers of a row. The primary runs.
#[derive(Debug)]
pub(crate) struct Bed<'a> {
    pub(crate) primary: Cluster<'a>,
    cascade: Option<Cluster<'a>>,
    pub(crate) hub: Hub<'a>,
    senders: usize,
}

/// A server that a fleet can be pointed at.
#[derive(Debug, Clone)]
pub(crate) struct Serving {
    pub(crate) target: Conninfo,
    /// The processes that do the work whose price is asked for.
    pub(crate) workers: Servers,
}

impl<'a> Bed<'a> {
    pub(crate) fn new(making: &Making<'a>) -> Self {
        let Making { scene, .. } = *making;
        for leftover in ["primary", "primary-s", "primary-backup", STANDBY, "standby-s", HUB] {
            scene.clear(leftover);
        }
        let senders = making.standbys + SPARE_SENDERS;
        let birth = Birth { segment_mib: making.segment_mib, ..Birth::default() };
        let mut primary = Cluster::unborn(scene, "primary", &birth);
        set_all(&mut primary, senders);
        if let Some(segment) = making.first_segment {
            primary.reset_wal(segment);
        }
        primary.start();
        let mut hub = Hub::new(scene, HUB, &primary.conninfo()).with_program(&making.walhub);
        hub.set_flag(&format!("--max-wal-senders={}", senders.max(4000)));
        // As much as the servers beside it keep.
        hub.set_flag("--wal-keep-size=16GB");
        making.serve_flags.iter().for_each(|flag| hub.set_flag(flag));
        // Nobody else's pages are written back while something is measured.
        rustix::fs::sync();
        Self { primary, cascade: None, hub, senders }
    }

    /// Starts what a way needs, and waits until it has all WAL.
    pub(crate) fn open(&mut self, way: Way) -> Outcome<Serving> {
        match way {
            Way::Direct => {}
            Way::Cascade => {
                match &mut self.cascade {
                    Some(standby) => standby.start(),
                    None => self.cascade = Some(self.new_cascade()),
                }
                wait_follower(&self.primary, STANDBY);
            }
            Way::Hub => {
                self.hub.start();
                wait_follower(&self.primary, HUB);
            }
        }
        sleep(SETTLING);
        self.serving(way)
    }

    /// A standby with the settings of its primary.
    fn new_cascade(&self) -> Cluster<'a> {
        let mut standby = self.primary.new_standby(STANDBY, &self.primary.conninfo());
        set_all(&mut standby, self.senders);
        standby.start();
        rustix::fs::sync();
        standby
    }

    /// How the open way is reached, and who works there.
    fn serving(&self, way: Way) -> Outcome<Serving> {
        let matching = |server: &Cluster<'_>, workers: &[&str]| {
            let names = workers.iter().map(|name| format!("postgres: {name}")).collect();
            Servers::Matching(vec![server.pid()], names)
        };
        let (conninfo, workers) = match (way, &self.cascade) {
            // The startup process, which replays, is nobody's part in passing WAL on.
            (Way::Cascade, Some(standby)) => {
                (standby.conninfo(), matching(standby, &["walsender", "walreceiver"]))
            }
            (Way::Hub, _) => (self.hub.conninfo(), Servers::One(self.hub.pid())),
            (Way::Direct | Way::Cascade, _) => {
                (self.primary.conninfo(), matching(&self.primary, &["walsender"]))
            }
        };
        Ok(Serving { target: conninfo_of(&conninfo)?, workers })
    }

    /// Stops and starts the server of a way, without waiting until it listens if that is
    /// the hub.
    pub(crate) fn restart(&mut self, way: Way) -> Outcome<Serving> {
        match (way, &mut self.cascade) {
            (Way::Cascade, Some(standby)) => restart(standby),
            (Way::Hub, _) => {
                self.hub.stop();
                self.hub.launch();
            }
            (Way::Direct | Way::Cascade, _) => restart(&mut self.primary),
        }
        self.serving(way)
    }

    /// Stops what [`Bed::open`] started.
    pub(crate) fn close(&mut self, way: Way) {
        match (way, &mut self.cascade) {
            (Way::Cascade, Some(standby)) => drop(standby.stop_fast()),
            (Way::Hub, _) => self.hub.stop(),
            (Way::Direct | Way::Cascade, _) => {}
        }
    }
}

fn set_all(server: &mut Cluster<'_>, senders: usize) {
    SETTINGS.iter().for_each(|setting| server.set(setting));
    server.set(&format!("max_wal_senders={senders}"));
}

fn restart(server: &mut Cluster<'_>) {
    server.stop_fast();
    server.start();
}

/// A connection string as the product reads it, with nothing from the environment.
pub(crate) fn conninfo_of(text: &str) -> Outcome<Conninfo> {
    Conninfo::parse(text, &|_| None).during(text)
}

/// Waits until somebody who calls himself so streams from here and has flushed all.
fn wait_follower(primary: &Cluster<'_>, name: &str) {
    let query = format!(
        "select count(*) from pg_stat_replication where application_name = '{name}' \
         and state = 'streaming' and flush_lsn >= pg_current_wal_flush_lsn()"
    );
    wait::until(&format!("{name} streams"), || primary.count(&query) > 0);
}

/// Writes at least so much WAL, in commits of 4 MiB.
pub(crate) fn write_wal(primary: &Cluster<'_>, mib: u64) {
    let message = "repeat(md5(i::text), 2048)";
    let commits = mib.div_ceil(4);
    primary.sql(&format!(
        "do $$ begin for c in 1..{commits} loop \
         perform pg_logical_emit_message(true, 'walhub', {message}) \
         from generate_series(1, 64) i; commit; end loop; end $$"
    ));
}

/// The beginning of the segment in which the flushed WAL ends.
pub(crate) fn segment_start(primary: &Cluster<'_>) -> Lsn {
    let size = primary.count("select pg_size_bytes(current_setting('wal_segment_size'))");
    let at = primary.flush_lsn();
    at.saturating_sub(at.raw() % size.max(1))
}

/// A folder of a scene for programs of PostgreSQL, empty.
pub(crate) fn fresh_folder(scene: &Scene, name: &str, primary: &Cluster<'_>) -> PathBuf {
    scene.clear(name);
    scene.folder(name, primary.programs.account())
}

/// The greatest number of a segment that has its final name.
pub(crate) fn newest_segment(folder: &Path) -> Option<u64> {
    let names = std::fs::read_dir(folder).ok()?;
    names.filter_map(|entry| segment_number(entry.ok()?.file_name().to_str()?)).max()
}

/// The number of a segment of 16 MiB, by its final name.
pub(crate) fn segment_number(name: &str) -> Option<u64> {
    let (high, low) = (name.get(8..16)?, name.get(16..24)?);
    let hex = |text| u64::from_str_radix(text, 16).ok();
    (name.len() == 24).then_some((hex(high)? << 8) | hex(low)?)
}
