//! Engine: reads all complete segments again, from the disk and at a limited rate, on a thread of
//! its own. What bits do to files over years is found while the archive still has the right ones.
//!
//! A damaged segment is fetched from the archive or from an upstream, and the keeper puts it in its
//! place.
//!
//! A segment with a digest is compared with it. One without is walked like WAL from an archive, and
//! gets a digest when all of it is proved. A digest that an earlier version wrote is written anew.
//! Damage is said at once, and written down.
#![forbid(unsafe_code)]

mod archived;
mod look;
mod pace;
mod repair;

use self::look::{Finding, Looker};
use self::repair::{RepairOutcome, Repairer, UnreachableHosts};
use crate::archive::restore::RestoreCommand;
use crate::config::ScrubSettings;
use crate::follow::CopyClient;
use crate::hub::Hub;
use crate::keeper::{Job, KeeperClient, Note};
use crate::store::layout::{FileKind, Layout};
use crate::store::scrub::{LastScrub, ScrubCall, ScrubProgress, SegmentDamage};
use crate::wal::{SegmentName, SegmentSize};
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};
use tracing::{error, info, warn};

/// When the first scrub of a directory begins, after the start. Right after it, everybody else
/// needs the disk.
const FIRST_SCRUB: Duration = Duration::from_secs(3600);

/// How soon after a start one that is overdue begins.
const OVERDUE: Duration = Duration::from_secs(300);

/// How often it is written down how far a scrub is. After a crash it goes on there.
const SAVE_EVERY: Duration = Duration::from_secs(60);

/// A running scrubber.
pub struct Scrubber {
    hub: Arc<Hub>,
    /// Ends a command that fetches from the archive.
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

/// Starts the thread. It reads nothing before a scrub is due or asked for.
///
/// # Errors
/// The thread could not be started.
pub fn start(
    settings: ScrubSettings,
    layout: Layout,
    hub: Arc<Hub>,
    keeper: KeeperClient,
    upstreams: CopyClient,
) -> io::Result<Scrubber> {
    let stop = Arc::new(AtomicBool::new(false));
    let command = hub.config.restore.as_ref().map(|restore| restore.command.clone());
    let repairer = Repairer {
        hub: Arc::clone(&hub),
        command: command.map(|command| RestoreCommand::new(command, layout.root())),
        upstreams,
        layout: layout.clone(),
        keeper: keeper.clone(),
        rate: settings.rate,
        stop: Arc::clone(&stop),
    };
    let work = Scrub { settings, layout, hub: Arc::clone(&hub), keeper, repairer };
    let thread = std::thread::Builder::new().name("scrub".to_owned());
    let thread = thread.spawn(move || work.run())?;
    Ok(Scrubber { hub, stop, thread })
}

impl Scrubber {
    /// Has the thread end, which takes no longer than one read, and waits for that until
    /// `deadline`.
    pub fn finish(self, deadline: Instant) {
        self.stop.store(true, Ordering::Relaxed);
        self.hub.holds.scrub.stop();
        while !self.thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

struct Scrub {
    settings: ScrubSettings,
    layout: Layout,
    hub: Arc<Hub>,
    keeper: KeeperClient,
    repairer: Repairer,
}

/// The hub shuts down.
struct Stopped;

impl Scrub {
    fn run(self) {
        // Retention has removed some since this was written down.
        self.mend(|name| self.layout.segment(name).exists());
        let after = |long: Duration| Instant::now().checked_add(long);
        let mut due = self.first_due().and_then(after);
        loop {
            let left = due.map(|due| due.saturating_duration_since(Instant::now()));
            let done = match self.hub.holds.scrub.wait(left) {
                ScrubCall::Stopped => return,
                ScrubCall::Look(name) => {
                    let mut looker = self.looker();
                    self.look_again(&mut looker, name, &mut UnreachableHosts::new())
                }
                call @ (ScrubCall::Asked | ScrubCall::Due) => {
                    let unfinished = self.hub.holds.scrub.note().unfinished();
                    let done = self.read_all(unfinished.filter(|_| call == ScrubCall::Due));
                    let interval = self.settings.interval;
                    due = (!interval.is_zero()).then_some(interval).and_then(after);
                    done
                }
            };
            if done.is_err() {
                return;
            }
        }
    }

    fn looker(&self) -> Looker<'_> {
        Looker::new(&self.hub, &self.layout, self.settings.rate)
    }

    /// Looks at a segment, and at the archive's copy when it was mended.
    fn look_again(
        &self,
        looker: &mut Looker<'_>,
        name: SegmentName,
        unreachable: &mut UnreachableHosts,
    ) -> Result<(), Stopped> {
        self.look(looker, name, unreachable)?;
        let damage = self.hub.holds.scrub.damage(name.tli, name.no);
        if damage.is_none() && self.layout.segment(name).exists() {
            self.look_at_archived(name);
        }
        Ok(())
    }

    /// Looks at a segment, and repairs it if it is damaged.
    fn look(
        &self,
        looker: &mut Looker<'_>,
        name: SegmentName,
        unreachable: &mut UnreachableHosts,
    ) -> Result<(), Stopped> {
        let finding = looker.look_at(name).ok_or(Stopped)?;
        self.act_on(name, &finding);
        if let Finding::Damaged { parts, .. } = &finding {
            return self.repair(looker, name, parts, unreachable);
        }
        Ok(())
    }

    /// How long after the start a scrub is due.
    fn first_due(&self) -> Option<Duration> {
        let interval = self.settings.interval;
        if self.hub.holds.scrub.note().unfinished().is_some() {
            return Some(if interval.is_zero() { OVERDUE } else { OVERDUE.min(interval) });
        }
        if interval.is_zero() {
            return None;
        }
        let Some(last) = self.hub.holds.scrub.note().last else {
            return Some(FIRST_SCRUB.min(interval));
        };
        // One that lies ahead, by a clock that was set, counts as now.
        let age = SystemTime::now().duration_since(last.ended).unwrap_or_default();
        Some(interval.saturating_sub(age).max(OVERDUE.min(interval)))
    }

    /// Reads all segments that are there now, or those from one on to which an earlier scrub came.
    fn read_all(&self, from: Option<SegmentName>) -> Result<(), Stopped> {
        let board = &self.hub.holds.scrub;
        let Some(identity) = self.hub.identity() else { return Ok(()) };
        let names = match self.names(identity.segment_size) {
            Ok(names) => names,
            Err(error) => {
                let path = self.layout.wal().display();
                warn!("could not list directory \"{path}\": {error}; nothing is scrubbed");
                return Ok(());
            }
        };
        let (begun, segments) = (Instant::now(), names.len() as u64);
        let left: Vec<_> =
            names.into_iter().filter(|name| from.is_none_or(|from| *name >= from)).collect();
        let done = segments.saturating_sub(left.len() as u64);
        match from {
            None => info!("reading {segments} complete WAL segments to verify them"),
            Some(from) => info!(
                "reading {} of {segments} complete WAL segments to verify them, from {from} on, to \
                 which the scrub before had come",
                left.len()
            ),
        }
        board.begin(ScrubProgress { done, segments });
        if self.read_each(&left).is_err() {
            board.end(None);
            self.save();
            return Err(Stopped);
        }
        self.mend(|name| self.layout.segment(name).exists());
        self.look_at_stale();
        let ended = SystemTime::now();
        board.end(Some(LastScrub { ended, segments }));
        self.save();
        let damaged = board.note().damage().len();
        info!("read {segments} WAL segments in {:?}, {damaged} are damaged", begun.elapsed());
        Ok(())
    }

    /// Reads segments one by one, and those before the next that were changed in place.
    fn read_each(&self, names: &[SegmentName]) -> Result<(), Stopped> {
        let board = &self.hub.holds.scrub;
        let (mut looker, mut unreachable) = (self.looker(), UnreachableHosts::new());
        let mut saved = Instant::now();
        for name in names {
            board.come_to(*name);
            if saved.elapsed() >= SAVE_EVERY {
                self.save();
                saved = Instant::now();
            }
            while let Some(wanted) = board.take_wanted() {
                self.look_again(&mut looker, wanted, &mut unreachable)?;
            }
            self.look(&mut looker, *name, &mut unreachable)?;
            board.advance();
        }
        Ok(())
    }

    /// Complete segments, in the order of their names.
    fn names(&self, size: SegmentSize) -> io::Result<BTreeSet<SegmentName>> {
        let mut names = BTreeSet::new();
        for entry in std::fs::read_dir(self.layout.wal())? {
            if let FileKind::Segment(name) =
                FileKind::of(&entry?.file_name().to_string_lossy(), size)
            {
                names.insert(name);
            }
        }
        Ok(names)
    }

    /// Repairs what can be repaired.
    fn repair(
        &self,
        looker: &mut Looker<'_>,
        name: SegmentName,
        parts: &[SegmentName],
        unreachable: &mut UnreachableHosts,
    ) -> Result<(), Stopped> {
        for part in parts {
            match self.repairer.repair(&looker.own(), *part, unreachable) {
                RepairOutcome::Replaced(source) => {
                    info!("WAL segment {part} was repaired from {source}");
                    self.look_at_archived(*part);
                }
                RepairOutcome::DigestOnly(source) => {
                    warn!("{source} has the same WAL segment {part}: its digest was of others");
                    self.act_on(*part, &Finding::Proved);
                    return Ok(());
                }
                RepairOutcome::No(why) => {
                    error!("WAL segment {part} was not repaired: {why}");
                    continue;
                }
            }
            let again = looker.look_at(name).ok_or(Stopped)?;
            self.act_on(name, &again);
            if matches!(again, Finding::Whole | Finding::Unindexed | Finding::Proved) {
                break;
            }
        }
        Ok(())
    }

    fn act_on(&self, name: SegmentName, finding: &Finding) {
        match finding {
            // It was removed meanwhile.
            Finding::Gone => {}
            Finding::Whole => self.mend(|damaged| damaged != name),
            Finding::Unindexed | Finding::Proved => {
                self.mend(|damaged| damaged != name);
                self.keeper.give(Job::Digest { tli: name.tli, no: name.no });
            }
            Finding::Damaged { from, what, .. } => {
                let (from, what, since) = (*from, what.clone(), SystemTime::now());
                error!("WAL segment {name} is damaged from {from} on: {what}");
                self.hub.holds.scrub.find(SegmentDamage { name, from, what, since });
                self.save();
            }
        }
    }

    /// Only what is still `damaged` stays.
    fn mend(&self, damaged: impl Fn(SegmentName) -> bool) {
        let before = self.hub.holds.scrub.note();
        if self.hub.holds.scrub.mend(&damaged) {
            for known in before.damage().iter().filter(|known| !damaged(known.name)) {
                info!("WAL segment {} is not damaged any more, or not here", known.name);
            }
            self.save();
        }
    }

    fn save(&self) {
        let bytes = Some(self.hub.holds.scrub.note().encode());
        self.keeper.give(Job::SaveNote { note: Note::Scrub, bytes });
    }
}

#[cfg(test)]
#[cfg(not(walhub_loom))]
mod tests;
