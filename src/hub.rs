//! What the engines of one hub share: its identity, what it holds, which standbys are connected.
//!
//! Bytes sent from the cache do not pass through here: a data core uses this when a stream
//! begins or ends, and the control thread when it is asked something. A block of WAL that is
//! read back from a file is checked by the rules of its timeline. A core derives them from the
//! cells and the histories, and again when one of these changes.
#![forbid(unsafe_code)]

pub mod chain;
pub mod course;
pub mod diverged;
pub mod feedback;
pub mod fleet;
pub mod page_rules;

use self::course::{Course, Upstream};
use crate::cluster::identity::Identity;
use crate::cluster::instance::{InstanceId, InstancePath};
use crate::config::Config;
use crate::hub::diverged::{Diverged, DivergedStandbys, Left, RefusedStandbys};
use crate::hub::fleet::Fleet;
use crate::store::archive_status::ArchiveStatus;
use crate::store::retention::{Holds, Receiving};
use crate::timeline::{Forks, History, HistoryFault};
use crate::upstream::position::Position;
use crate::wal::{Lsn, TimelineId};
use crate::watermark::{Cell, CellId, Quiescence};
use crate::wire::secret::Secret;
use bytes::Bytes;
use crossbeam::utils::CachePadded;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Instant;
use tracing::warn;

/// One hub. Shared by all its threads.
pub struct Hub {
    /// The settings.
    pub config: Arc<Config>,
    /// This hub's own ID.
    pub instance: InstanceId,
    /// Positions that connected standbys still need.
    pub holds: Arc<Holds>,
    /// The connected standbys, as far as they are reported upstream.
    pub fleet: Arc<Fleet>,
    /// Which upstream is followed, if any.
    pub course: Course,
    identity: RwLock<Option<Arc<Identity>>>,
    cells: RwLock<Vec<Arc<Cell>>>,
    histories: RwLock<BTreeMap<u32, Bytes>>,
    /// How often the cluster, the cells or the histories have changed.
    lineage: AtomicU64,
    position: RwLock<Position>,
    above: RwLock<InstancePath>,
    diverged: RwLock<DivergedStandbys>,
    /// For each timeline that this process has left: where its last whole record ended.
    record_ends: RwLock<BTreeMap<u32, Lsn>>,
    senders: Arc<AtomicUsize>,
    /// WAL bytes that each data core has sent.
    sent: Box<[CachePadded<AtomicU64>]>,
    rest: Quiescence,
}

impl Hub {
    /// A hub that does not know its cluster yet.
    pub fn new(config: Arc<Config>, instance: InstanceId, holds: Arc<Holds>) -> Self {
        let cores = config.cores.get();
        let sent = (0..cores).map(|_| CachePadded::new(AtomicU64::new(0))).collect();
        let fleet = Fleet::new(config.feedback.clone());
        let conninfo = config.primary_conninfo.clone();
        let course = Course::new(Upstream { text: Secret::new(""), conninfo });
        Self {
            config,
            instance,
            holds,
            fleet,
            course,
            identity: RwLock::new(None),
            cells: RwLock::new(Vec::new()),
            histories: RwLock::new(BTreeMap::new()),
            lineage: AtomicU64::new(0),
            position: RwLock::new(Position::Empty),
            above: RwLock::new(InstancePath::empty()),
            diverged: RwLock::default(),
            record_ends: RwLock::default(),
            senders: Arc::new(AtomicUsize::new(0)),
            sent,
            rest: Quiescence::default(),
        }
    }

    /// The cluster, once it is known.
    pub fn identity(&self) -> Option<Arc<Identity>> {
        read(&self.identity).clone()
    }

    /// Remembers the cluster (in memory; the control file is its durable form).
    pub fn set_identity(&self, identity: Arc<Identity>) {
        *write(&self.identity) = Some(identity);
        self.lineage_changed();
    }

    /// The cell that grows, the last of its line; `None` before the first WAL.
    pub fn current_cell(&self) -> Option<Arc<Cell>> {
        read(&self.cells).last().cloned()
    }

    /// The cell with this ID, unless its WAL was moved aside.
    pub fn cell(&self, id: CellId) -> Option<Arc<Cell>> {
        read(&self.cells).iter().find(|cell| cell.id() == id).cloned()
    }

    /// The cell of a timeline.
    pub fn cell_of(&self, tli: TimelineId) -> Option<Arc<Cell>> {
        read(&self.cells).iter().rev().find(|cell| cell.tli() == tli).cloned()
    }

    /// The cell of an ancestor of which no file was ever here, made with those between: its WAL is in
    /// the archive, or at the beginning of a descendant's file. `forks` are the current timeline's.
    pub fn past_cell(&self, tli: TimelineId, forks: &Forks) -> Option<Arc<Cell>> {
        let mut cells = write(&self.cells);
        let mut next = cells.last().cloned()?;
        for (ancestor, end) in forks.iter().rev() {
            let known = cells.iter().rev().find(|cell| cell.tli() == *ancestor).cloned();
            let cell = known.unwrap_or_else(|| {
                let cell = Arc::new(Cell::new(*ancestor, Lsn::INVALID, *end));
                cell.seal(*end);
                cell.link(Arc::clone(&next));
                let place = cells.iter().position(|cell| cell.id() == next.id());
                cells.insert(place.unwrap_or(0), Arc::clone(&cell));
                cell
            });
            if cell.tli() == tli {
                return Some(cell);
            }
            next = cell;
        }
        None
    }

    /// All cells, oldest first.
    pub fn cells(&self) -> Vec<Arc<Cell>> {
        read(&self.cells).clone()
    }

    /// Adds the cell of a newer timeline, which becomes the current one.
    pub fn push_cell(&self, cell: Arc<Cell>) {
        write(&self.cells).push(cell);
        self.lineage_changed();
    }

    /// Replaces all cells: after recovery, and when the hub begins anew after a gap.
    pub fn set_cells(&self, cells: Vec<Arc<Cell>>) {
        *write(&self.cells) = cells;
        self.lineage_changed();
    }

    /// The content of a timeline's history file, as it was received.
    pub fn history(&self, tli: TimelineId) -> Option<Bytes> {
        read(&self.histories).get(&tli.raw()).cloned()
    }

    /// A timeline's history; `None` when there is no file of it.
    ///
    /// # Errors
    /// The file is not one that PostgreSQL would accept.
    pub fn read_history(&self, tli: TimelineId) -> Result<Option<History>, HistoryFault> {
        self.history(tli).map(|content| History::parse(tli, content)).transpose()
    }

    /// Where `from` ended, according to the history of `to`; `None` when there is no such file, or
    /// when it does not name `from`.
    ///
    /// # Errors
    /// The file is not one that PostgreSQL would accept.
    pub fn switchpoint(
        &self,
        from: TimelineId,
        to: TimelineId,
    ) -> Result<Option<Lsn>, HistoryFault> {
        Ok(self.read_history(to)?.and_then(|history| history.switchpoint_of(from)))
    }

    /// Makes a history file known that is on disk already.
    pub fn set_history(&self, tli: TimelineId, content: Bytes) {
        write(&self.histories).insert(tli.raw(), content);
        self.lineage_changed();
    }

    /// Counts the changes of the cluster, of the cells and of the histories. While it stays the
    /// same, so does what was derived from them.
    pub fn lineage(&self) -> u64 {
        self.lineage.load(Ordering::Acquire)
    }

    // After the change: whoever sees the new number sees the change, and whoever derived something
    // from half of it has the old number.
    fn lineage_changed(&self) {
        self.lineage.fetch_add(1, Ordering::AcqRel);
    }

    /// The receive role's position.
    pub fn position(&self) -> Position {
        *read(&self.position)
    }

    /// Sets the receive role's position, before the role reports that a stream ended.
    pub fn set_position(&self, position: Position) {
        *write(&self.position) = position;
    }

    /// The hubs above this one.
    pub fn above(&self) -> InstancePath {
        read(&self.above).clone()
    }

    /// Notes the hubs above this one and returns those noted before.
    pub fn set_above(&self, path: InstancePath) -> InstancePath {
        std::mem::replace(&mut *write(&self.above), path)
    }

    /// A standby has, or asks for, WAL of a timeline past its end or past a seam.
    pub fn note_diverged(&self, standby: Diverged) {
        if !write(&self.diverged).note(standby.clone(), Instant::now()) {
            return;
        }
        let Diverged { application_name, peer, tli, at, left } = standby;
        let what = match left {
            Left::Fork(end) => format!(
                "what it has of timeline {tli} past {end} is not in this hub's history; make it again \
                 from a base backup, or run pg_rewind on it if the history goes on on another timeline"
            ),
            Left::Seam(seam) => format!(
                "past the seam at {seam}, where another history goes on, it may have the former one; \
                 make it again from a base backup: pg_rewind cannot tell the two apart"
            ),
        };
        warn!(application_name, peer, timeline = %tli, "standby has diverged: it is at {at}, and {what}");
    }

    /// Sets where our last whole record of a timeline ends; called before it is sealed.
    pub fn set_record_end(&self, tli: TimelineId, record_end: Lsn) {
        write(&self.record_ends).insert(tli.raw(), record_end);
    }

    /// May a standby have got a record from us that lies past the timeline's end? The beginning
    /// of a record does not count: it was never replayed, and the next timeline's WAL overwrites
    /// it.
    pub fn has_records_past(&self, tli: TimelineId, end: Lsn) -> bool {
        read(&self.record_ends).get(&tli.raw()).is_none_or(|record_end| *record_end > end)
    }

    /// A standby streams the current timeline, or is not past the end of its own, nor past a seam.
    pub fn note_streaming(&self, application_name: &str, peer: &str) {
        write(&self.diverged).streams(application_name, peer);
    }

    /// Standbys that hold WAL which nobody follows.
    pub fn diverged(&self) -> Vec<Diverged> {
        read(&self.diverged).list().cloned().collect()
    }

    /// Those of them that were refused at a seam at `at`.
    pub fn refused_at_seam(&self, at: Lsn) -> RefusedStandbys {
        read(&self.diverged).refused_at_seam(at)
    }

    /// The path this hub announces to its clients: itself and those above.
    pub fn announced_path(&self) -> InstancePath {
        self.above().announced_by(self.instance)
    }

    /// The current number of replication connections.
    pub fn senders(&self) -> usize {
        self.senders.load(Ordering::Relaxed)
    }

    /// How archiving is going; `None` without an `archive_command`.
    pub fn archive_status(&self) -> Option<ArchiveStatus> {
        self.config.archive_command.as_ref().map(|_| self.holds.backlog.status())
    }

    /// May WAL come in?
    pub fn receiving(&self) -> Receiving {
        self.holds.receiving()
    }

    /// Why no WAL can be stored: the watermark, or the disk itself.
    pub fn no_space(&self) -> String {
        let directory = self.config.directory.display();
        match self.holds.too_full() {
            Some(too_full) => {
                format!(
                    "the disk of \"{directory}\" is above --disk-high-watermark {}",
                    too_full.mark
                )
            }
            None => format!("the disk of \"{directory}\" is full"),
        }
    }

    /// Shutdown: no watermark moves any more. Called by the receive role, which wakes the other
    /// cores afterwards.
    pub fn come_to_rest(&self) {
        self.rest.come();
    }

    /// Does no watermark move any more?
    pub fn is_at_rest(&self) -> bool {
        self.rest.has_come()
    }

    /// Adds to the WAL bytes that a data core has sent; called once per round.
    pub fn note_sent(&self, core: usize, bytes: u64) {
        if let Some(sent) = self.sent.get(core) {
            sent.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// WAL bytes that each data core has sent since the start.
    pub fn sent(&self) -> impl Iterator<Item = u64> {
        self.sent.iter().map(|sent| sent.load(Ordering::Relaxed))
    }

    /// A place among `max_wal_senders`; `None` when all are taken.
    pub fn take_sender(&self) -> Option<SenderPermit> {
        let max = self.config.max_wal_senders;
        self.senders
            .try_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < max).then_some(n + 1))
            .ok()
            .map(|_| SenderPermit(Arc::clone(&self.senders)))
    }
}

/// A replication connection's place among `max_wal_senders`, freed on drop.
#[derive(Debug)]
pub struct SenderPermit(Arc<AtomicUsize>);

impl Drop for SenderPermit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

// A thread that panics takes the process with it (`panic = "abort"`). Only tests can see a
// poisoned lock, and its value is whole.
fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::config::{AUTHENTICATION_TIMEOUT, MissingSlot, OnDiverge, OnGap, PinCores};
    use crate::config::{
        FeedbackSettings, ScrubSettings, SlotSettings, TcpSettings, WeakProof, Zerocopy,
    };
    use crate::store::retention::Policy;
    use crate::upstream::position::StartFrom;
    use crate::wire::conninfo::Conninfo;
    use std::num::NonZeroUsize;
    use std::time::Duration;

    /// Settings for tests; nothing listens yet.
    pub(crate) fn config(primary_conninfo: &str) -> Config {
        Config {
            directory: "/nonexistent".into(),
            primary_conninfo: Conninfo::parse(primary_conninfo, &|_| None).unwrap(),
            primary_slot_name: None,
            missing_slot: MissingSlot::Refuse,
            start_from: StartFrom::Current,
            on_gap: OnGap::Stop,
            on_diverge: OnDiverge::Stop,
            weak_proof: WeakProof::Accept,
            listen_addresses: vec![],
            port: 0,
            unix_socket_directories: vec![],
            cores: NonZeroUsize::MIN,
            pin_cores: PinCores::Off,
            zerocopy: Zerocopy::Off,
            tcp: TcpSettings::default(),
            wal_buffers: 1 << 20,
            max_send_size: 1 << 18,
            archive_command: None,
            retention: Policy { wal_keep_size: 1 << 30, ..Policy::default() },
            slots: SlotSettings { max: 10, auto_create: None },
            feedback: FeedbackSettings::default(),
            restore: None,
            scrub: ScrubSettings { interval: Duration::ZERO, rate: 1 << 20 },
            max_wal_senders: 10,
            wal_sender_timeout: Duration::from_secs(60),
            wal_receiver_timeout: Duration::from_secs(60),
            wal_receiver_status_interval: Duration::from_secs(10),
            wal_retrieve_retry_interval: Duration::from_secs(5),
            cluster_name: "walhub".into(),
            log_level: "info".into(),
            authentication_timeout: AUTHENTICATION_TIMEOUT,
        }
    }

    /// A hub that knows its cluster and has no WAL yet.
    pub(crate) fn hub(server_version: &str) -> Hub {
        let config = Arc::new(config("host=/nonexistent user=walhub"));
        let holds = Arc::new(Holds::new(Lsn::INVALID));
        let hub = Hub::new(config, InstanceId::new(0xE), holds);
        hub.set_identity(Arc::new(crate::standby::parameters::tests::identity(server_version)));
        hub
    }

    #[test]
    fn senders_are_counted() {
        let hub = hub("15.18");
        let mut permits: Vec<_> = std::iter::from_fn(|| hub.take_sender()).collect();
        assert_eq!((permits.len(), hub.senders()), (10, 10));
        permits.pop();
        assert!(hub.take_sender().is_some());
        drop(permits);
        assert_eq!(hub.senders(), 0);
    }

    #[test]
    fn part_of_a_record_is_none() {
        let hub = hub("15.18");
        let (tli, end) = (TimelineId::FIRST, Lsn::new(0x500_0060));
        assert!(hub.has_records_past(tli, end), "nobody knows");
        hub.set_record_end(tli, end);
        assert!(!hub.has_records_past(tli, end));
        assert!(hub.has_records_past(tli, Lsn::new(0x500_0028)));
    }
}
