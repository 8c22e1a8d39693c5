//! One primary and the ways from it to a fleet of standbys.
//!
//! The servers of a way run only while it is measured, so that no way pays for another.

use super::cluster::Cluster;
use super::hub::{self, Hub};
use super::programs::Programs;
use super::workplace::Workplace;
use crate::fault::Outcome;
use crate::process::Workers;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

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
pub(crate) struct Birth<'a> {
    pub(crate) place: &'a Workplace,
    pub(crate) programs: &'a Programs,
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

/// The servers of a row. The primary runs.
#[derive(Debug)]
pub(crate) struct Bed<'a> {
    pub(crate) place: &'a Workplace,
    pub(crate) primary: Cluster,
    cascade: Option<Cluster>,
    pub(crate) hub: Hub,
    senders: usize,
}

/// A server that a fleet can be pointed at.
#[derive(Debug, Clone)]
pub(crate) struct Serving {
    pub(crate) address: SocketAddr,
    pub(crate) workers: Workers,
}

impl<'a> Bed<'a> {
    pub(crate) fn new(birth: &Birth<'a>) -> Outcome<Self> {
        let Birth { place, programs, .. } = *birth;
        for leftover in ["primary", "primary-s", "standby", "standby-s", hub::NAME] {
            place.clear(leftover)?;
        }
        let senders = birth.standbys + SPARE_SENDERS;
        let mut primary = Cluster::primary(place, programs, "primary", senders, birth.segment_mib)?;
        if let Some(segment) = birth.first_segment {
            primary.begin_wal_at(place, segment)?;
        }
        primary.start(place)?;
        let mut hub = Hub::new(place, &birth.walhub, &primary.conninfo(), hub::NAME)?;
        hub.flag(&format!("--max-wal-senders={}", senders.max(4000)));
        // As much as the servers beside it keep.
        hub.flag("--wal-keep-size=16GB");
        for flag in &birth.serve_flags {
            hub.flag(flag);
        }
        Ok(Self { place, primary, cascade: None, hub, senders })
    }

    /// Starts what a way needs, and waits until it has all WAL.
    pub(crate) fn open(&mut self, way: Way) -> Outcome<Serving> {
        match way {
            Way::Direct => {}
            Way::Cascade => {
                let standby = match self.cascade.take() {
                    Some(standby) => standby,
                    None => self.primary.standby(self.place, "standby", self.senders)?,
                };
                self.cascade.insert(standby).start(self.place)?;
                self.primary.wait_follower("walreceiver")?;
            }
            Way::Hub => {
                self.hub.start(self.place)?;
                self.primary.wait_follower(hub::NAME)?;
            }
        }
        sleep(SETTLING);
        Ok(self.serving(way))
    }

    /// How the open way is reached, and who works there.
    fn serving(&self, way: Way) -> Serving {
        let (port, workers) = match (way, &self.cascade) {
            (Way::Cascade, Some(standby)) => (standby.port(), Workers::Cascade(standby.pid())),
            (Way::Hub, _) => (self.hub.port(), Workers::Process(self.hub.pid())),
            (Way::Direct | Way::Cascade, _) => {
                (self.primary.port(), Workers::Walsenders(self.primary.pid()))
            }
        };
        Serving { address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)), workers }
    }

    /// Stops and starts the server of a way, without waiting until it listens if that is
    /// the hub.
    pub(crate) fn restart(&mut self, way: Way) -> Outcome<Serving> {
        match (way, &mut self.cascade) {
            (Way::Cascade, Some(standby)) => {
                standby.stop()?;
                standby.start(self.place)?;
            }
            (Way::Hub, _) => {
                self.hub.stop()?;
                self.hub.spawn(self.place)?;
            }
            (Way::Direct | Way::Cascade, _) => {
                self.primary.stop()?;
                self.primary.start(self.place)?;
            }
        }
        Ok(self.serving(way))
    }

    /// Stops what [`Bed::open`] started.
    pub(crate) fn close(&mut self, way: Way) -> Outcome {
        match (way, &mut self.cascade) {
            (Way::Cascade, Some(standby)) => standby.stop(),
            (Way::Hub, _) => self.hub.stop(),
            (Way::Direct | Way::Cascade, _) => Ok(()),
        }
    }
}
