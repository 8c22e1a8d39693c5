//! Everything that a run needs besides its standbys.

use super::hub::HubProcess;
use super::interrupt::Interrupt;
use super::source::{Source, SourceProgress};
use super::{FleetOptions, RunFault, RunPlan, ServerPlan};
use crate::bench::clock::Clock;
use crate::bench::commits::Commits;
use crate::bench::measure::{CpuMeter, Machine, Memory, Servers};
use crate::bench::primary::{self, PrimaryPlan};
use crate::bench::profile::Load;
use crate::bench::sql::{self, SqlPlan};
use crate::bench::standbys::{FleetPlan, Identity, TruthFrom, identify};
use crate::bench::truth::Truth;
use crate::wal::{Lsn, SystemId};
use crate::wire::conninfo::Conninfo;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

/// The default size of the WAL kept for comparison.
const WINDOW: u64 = 256 << 20;

/// Commits that the run remembers for its slowest standbys.
const COMMITS: usize = 1 << 20;

/// The server, the source of its WAL, and what both share with the standbys.
#[derive(Debug)]
pub(super) struct Rig {
    pub(super) clock: Clock,
    pub(super) truth: Arc<Truth>,
    pub(super) commits: Arc<Commits>,
    pub(super) source: Source,
    pub(super) target: Conninfo,
    pub(super) truth_from: TruthFrom,
    /// The server before the load begins.
    pub(super) identity: Identity,
    /// Its description for the report.
    pub(super) server: String,
    hub: Option<HubProcess>,
    meter: Option<CpuMeter>,
    /// End of the WAL when the run began.
    start: Lsn,
}

impl Rig {
    /// Builds it; nothing is written yet.
    pub(super) fn build(
        plan: &RunPlan,
        load: Load,
        interrupt: &Interrupt,
    ) -> Result<Self, RunFault> {
        match &plan.server {
            ServerPlan::Hub { .. } => Self::own(plan, load, interrupt),
            ServerPlan::Target { .. } => Self::foreign(plan, load),
        }
    }

    fn own(plan: &RunPlan, load: Load, interrupt: &Interrupt) -> Result<Self, RunFault> {
        let ServerPlan::Hub { version, segment_size, hub } = &plan.server else {
            return Err(RunFault::Plan("a hub of our own needs its options".to_owned()));
        };
        // The first segment of a cluster's WAL is never used.
        let start = Lsn::new(segment_size.bytes());
        let window = window(plan, load.total);
        let (clock, commits) = (Clock::start(), Arc::new(Commits::new(COMMITS)));
        let truth = Arc::new(Truth::new(start, window));
        let system = |what: &'static str| move |error| RunFault::System(what, error);
        let mut number = [0; 8];
        getrandom::fill(&mut number)
            .map_err(|e| RunFault::System("draw a number", std::io::Error::other(e.to_string())))?;
        let primary = primary::start(PrimaryPlan {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            server_version: *version,
            system_id: SystemId::new(u64::from_le_bytes(number)),
            segment_size: *segment_size,
            start,
            load,
            window,
            write_wal: None,
            clock,
            truth: Arc::clone(&truth),
            commits: Arc::clone(&commits),
        })
        .map_err(system("start the primary"))?;
        let hub = HubProcess::start(hub, primary.address(), plan.fleet.standbys, interrupt)?;
        let target = hub.conninfo().clone();
        let identity = reach(&target)?;
        Ok(Self {
            clock,
            truth,
            commits,
            source: Source::Primary(primary),
            target,
            truth_from: TruthFrom::Primary,
            identity,
            server: format!(
                "walhub {} behind a synthetic primary (PostgreSQL {})",
                env!("CARGO_PKG_VERSION"),
                version.major()
            ),
            meter: Some(CpuMeter::start(Servers::One(hub.pid()))),
            hub: Some(hub),
            start,
        })
    }

    fn foreign(plan: &RunPlan, load: Load) -> Result<Self, RunFault> {
        let ServerPlan::Target { target, text, commits: on, servers } = &plan.server else {
            return Err(RunFault::Plan("a server of somebody else needs its address".to_owned()));
        };
        let identity = reach(target)?;
        let (clock, commits) = (Clock::start(), Arc::new(Commits::new(COMMITS)));
        let source = match on {
            None => Source::Others,
            Some((primary, clients)) => {
                let commits = sql::start(SqlPlan {
                    target: (**primary).clone(),
                    load,
                    clients: *clients,
                    clock,
                    commits: Arc::clone(&commits),
                });
                Source::Sql(commits.map_err(|fault| RunFault::Unreachable(fault.to_string()))?)
            }
        };
        let version = identity.server_version_num;
        Ok(Self {
            clock,
            truth: Arc::new(Truth::new(Lsn::INVALID, window(plan, None))),
            commits,
            source,
            target: (**target).clone(),
            truth_from: TruthFrom::FirstReceiver,
            server: format!("{text} (server version {}.{})", version / 10_000, version % 10_000),
            hub: None,
            meter: servers.clone().map(CpuMeter::start),
            start: identity.xlogpos,
            identity,
        })
    }

    /// The plan of a fleet for this server, according to the options.
    pub(super) fn fleet(&self, options: &FleetOptions) -> FleetPlan {
        let mut plan = FleetPlan::new(
            self.target.clone(),
            options.standbys,
            self.clock,
            Arc::clone(&self.truth),
            Arc::clone(&self.commits),
        );
        plan.threads = options.threads;
        plan.verify = options.verify;
        plan.replies = options.replies;
        plan.behaviours = options.behaviours.clone();
        plan.names.clone_from(&options.names);
        plan.slots = options.slots.clone();
        plan.connect_rate = options.connect_rate;
        plan.truth_from = self.truth_from;
        plan.seed = options.seed;
        plan
    }

    /// CPU seconds of the server since the run began, if its processes are known.
    pub(super) fn cpu(&mut self) -> Option<f64> {
        Some(self.meter.as_mut()?.used().as_secs_f64())
    }

    /// Memory of the server, if its processes are known.
    pub(super) fn memory(&self) -> Option<Memory> {
        Some(Memory::of(self.meter.as_ref()?.servers()))
    }

    /// WAL written since the run began: for our own primary, what the source reports; otherwise,
    /// what was received.
    pub(super) fn wal_bytes(&self, written: &SourceProgress) -> u64 {
        match self.source {
            Source::Others => self.truth.end().bytes_since(self.start),
            _ => written.bytes,
        }
    }

    /// What ended the run early.
    pub(super) fn trouble(&mut self, written: &SourceProgress) -> Option<String> {
        let load = written.fault.as_ref().map(|fault| format!("the load: {fault}"));
        load.or_else(|| self.hub.as_mut()?.ended())
    }

    /// Stops everything. The second value is what went wrong when the hub stopped.
    pub(super) fn stop(self) -> (Option<hdrhistogram::Histogram<u64>>, Option<String>) {
        let hub = self.hub.and_then(HubProcess::stop);
        (self.source.stop(), hub)
    }
}

fn reach(target: &Conninfo) -> Result<Identity, RunFault> {
    identify(std::slice::from_ref(target)).map_err(|error| RunFault::Unreachable(error.to_string()))
}

/// The whole catch-up if memory allows: standbys outside the window must walk what they receive,
/// which takes CPU time from the measured machine.
fn window(plan: &RunPlan, total: Option<u64>) -> u64 {
    if let Some(window) = plan.window {
        return window;
    }
    let all = total.map_or(0, |total| total.saturating_add(64 << 20));
    if all <= Machine::available_memory() / 4 { WINDOW.max(all) } else { WINDOW }
}
