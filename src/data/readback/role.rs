//! The role itself. Standbys are served in the order in which they began to wait.

use super::blocks::{AtHand, BLOCK_SIZE, BlockId, BlockPool, HOT};
use super::files::{FileAnswer, Files};
use crate::archive::prove::{Reason, Unproved};
use crate::data::table::Key;
use crate::hub::Hub;
use crate::hub::page_rules::{KnownRules, NoRules};
use crate::keeper::CoreClient;
use crate::ring::{Buffer, ChunkReader, Fd, Ring};
use crate::store::scrub::SegmentDamage;
use crate::wal::{Lsn, SegmentName, SegmentNo, SegmentSize, TimelineId};
use crate::watermark::{Cell, CellId};
use crate::wire::refusal::Refusal;
use crate::wire::sqlstate;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use tracing::{error, warn};

/// Blocks that are read before a standby needs them: as many as one send takes.
const AHEAD: u64 = 2;

/// WAL that a standby needs next and that is neither in the cache nor in a block.
#[derive(Debug, Clone)]
pub struct Want {
    /// The standby that needs it.
    pub standby: Key,
    /// The timeline it streams.
    pub cell: Arc<Cell>,
    /// The first byte it needs.
    pub at: Lsn,
    /// The end of its unfinished message, 0/0 without one. A message begun before its timeline's
    /// end was known is finished with WAL past that end.
    pub message_end: Lsn,
}

impl Want {
    /// The block it waits for.
    pub fn block(&self) -> BlockId {
        BlockId::of(self.cell.id(), self.at)
    }

    /// The end of its valid WAL.
    fn valid_to(&self) -> Lsn {
        self.cell.limit().max(self.message_end)
    }

    fn is_in(&self, tli: TimelineId, no: SegmentNo, size: SegmentSize) -> bool {
        self.cell.tli() == tli && self.at.segment(size) == no
    }
}

/// The outcome of a standby's wait.
#[derive(Debug)]
pub enum Arrival {
    /// The block is loaded.
    Here(Key, BlockId),
    /// It cannot be read.
    Failed(Key, BlockId, ReadFault),
}

/// Why WAL cannot be read back.
#[derive(Debug, Clone)]
pub enum ReadFault {
    /// The segment's file is not there: it was removed.
    Removed(SegmentName),
    /// It is unreadable, or has the wrong contents.
    Unreadable(Refusal),
}

/// The outcome of an attempt to have a block read.
enum Fed {
    /// A read was started.
    Read,
    /// It is loaded.
    Here,
    /// It is already being read.
    Coming,
    /// The keeper is opening the file.
    FileComing,
    /// There is no place in the pool, or in the keeper's queue.
    Later,
    /// The WAL there is not proved.
    Unproved(Reason),
    /// A scrub has found that the WAL there is damaged.
    Damaged(SegmentDamage),
}

/// The blocks and files of one core, and the standbys that wait for them.
pub struct ReadBack {
    hub: Arc<Hub>,
    keeper: CoreClient,
    blocks: BlockPool,
    files: Files,
    /// What scrubs had changed when these were read and opened.
    changes: u64,
    rules: KnownRules,
    /// Standbys whose block is not being read yet.
    awaiting_read: VecDeque<Want>,
    /// Standbys whose file the keeper is opening.
    awaiting_file: BTreeMap<(TimelineId, SegmentNo), Vec<Want>>,
    /// Where the standbys that were sent from blocks in this pass continue.
    ahead: Vec<(Arc<Cell>, Lsn)>,
    /// The standbys that waited for a block that was loaded; empty between two blocks.
    waiting: Vec<Key>,
}

impl ReadBack {
    /// The read-back of one core, with nothing read yet.
    pub fn new(hub: Arc<Hub>, keeper: CoreClient) -> Self {
        Self {
            hub,
            keeper,
            blocks: BlockPool::default(),
            files: Files::default(),
            changes: 0,
            rules: KnownRules::default(),
            awaiting_read: VecDeque::new(),
            awaiting_file: BTreeMap::new(),
            ahead: Vec::new(),
            waiting: Vec::new(),
        }
    }

    /// Bytes at `at`, at most `max` and not past the block; `None` when they are not loaded.
    pub fn bytes(&self, cell: CellId, at: Lsn, max: usize) -> Option<&[u8]> {
        self.blocks.bytes(cell, at, max)
    }

    /// Notes that a standby was sent, or offered, the bytes `[from, to)`. Returns whether any of
    /// them are in a block.
    pub fn touch(&mut self, cell: CellId, from: Lsn, to: Lsn) -> bool {
        self.blocks.touch(cell, from, to)
    }

    /// A standby that was just sent from a block continues at `next`.
    pub fn note_ahead(&mut self, cell: &Arc<Cell>, next: Lsn) {
        self.ahead.push((Arc::clone(cell), next));
    }

    /// A standby has nothing at hand: it is queued.
    pub fn wait(&mut self, want: Want) {
        self.awaiting_read.push_back(want);
    }

    /// Is a standby queued whose block is not being read and whose file is not being opened?
    /// Perhaps the keeper's queue was full, and its answers go to other cores.
    pub fn is_behind(&self) -> bool {
        !self.awaiting_read.is_empty()
    }

    /// Starts reads for the standbys that have waited longest, while there is a place, and no more
    /// than fit the CPU's cache. It runs after a round, so that the standbys that waited for loaded
    /// blocks have used them. When none waits, it reads ahead for the standbys that were sent from
    /// blocks. Returns whether more can be read in another pass.
    pub fn feed<R: Ring>(
        &mut self,
        ring: &mut R,
        cache: &ChunkReader,
        still_wanted: impl Fn(&Want) -> bool,
        out: &mut Vec<Arrival>,
    ) -> bool {
        self.forget_what_changed();
        let mut reads = 0;
        while reads < HOT {
            let Some(want) = self.awaiting_read.pop_front() else { break };
            if !still_wanted(&want) {
                continue;
            }
            match self.read(ring, &want.cell, want.at, want.valid_to()) {
                fed @ (Fed::Read | Fed::Coming) => {
                    self.blocks.join(want.block(), want.standby);
                    reads += usize::from(matches!(fed, Fed::Read));
                }
                Fed::Here => out.push(Arrival::Here(want.standby, want.block())),
                Fed::FileComing => self.await_file(want),
                Fed::Unproved(why) => {
                    // The archive may be mended: it is asked again next time.
                    if let Some(size) = self.segment_size() {
                        self.files.forget(want.cell.tli(), want.at.segment(size));
                    }
                    let fault = unproved_fault(why);
                    out.push(Arrival::Failed(want.standby, want.block(), fault));
                }
                Fed::Damaged(damage) => {
                    let fault = damaged_fault(&damage);
                    out.push(Arrival::Failed(want.standby, want.block(), fault));
                }
                Fed::Later => {
                    self.awaiting_read.push_front(want);
                    break;
                }
            }
        }
        let mut ahead = std::mem::take(&mut self.ahead);
        for (cell, next) in ahead.drain(..) {
            if reads < HOT && self.awaiting_read.is_empty() {
                reads += self.read_ahead(ring, cache, &cell, next);
            }
        }
        self.ahead = ahead;
        reads >= HOT && !self.awaiting_read.is_empty()
    }

    /// What was read before damage was found in it, or before the segment got another file, is not
    /// sent any more.
    fn forget_what_changed(&mut self) {
        let changes = self.hub.holds.scrub.changes();
        if changes != std::mem::replace(&mut self.changes, changes) {
            self.files.close();
            self.blocks.forget_bytes();
        }
    }

    /// Has the block at `at` read from its file; its WAL is valid up to `valid_to`.
    fn read<R: Ring>(&mut self, ring: &mut R, cell: &Cell, at: Lsn, valid_to: Lsn) -> Fed {
        let Some(size) = self.segment_size() else { return Fed::Later };
        let valid_to = match self.hub.holds.scrub.damage(cell.tli(), at.segment(size)) {
            Some(damage) if at >= damage.from => return Fed::Damaged(damage),
            Some(damage) => valid_to.min(damage.from),
            None => valid_to,
        };
        match self.blocks.at_hand(cell.id(), at) {
            AtHand::Coming => return Fed::Coming,
            AtHand::Yes => return Fed::Here,
            AtHand::No if !self.blocks.has_place() => return Fed::Later,
            AtHand::No => {}
        }
        let id = BlockId::of(cell.id(), at);
        match self.files.file(cell.tli(), at.segment(size), &self.keeper) {
            FileAnswer::Open(file, unproved) => {
                let valid_to = match unproved {
                    Some(Unproved { from, why }) if at >= from => return Fed::Unproved(why),
                    Some(Unproved { from, .. }) => valid_to.min(from),
                    None => valid_to,
                };
                let place = (&file, id.start().segment_offset(size));
                self.blocks.load(ring, id, valid_to, place);
                Fed::Read
            }
            FileAnswer::Coming => Fed::FileComing,
            FileAnswer::Busy => Fed::Later,
        }
    }

    /// Has the next blocks of a standby read, unless the pool would have to grow. Returns how many
    /// reads were started.
    fn read_ahead<R: Ring>(
        &mut self,
        ring: &mut R,
        cache: &ChunkReader,
        cell: &Cell,
        next: Lsn,
    ) -> usize {
        let mut reads = 0;
        for at in (0..AHEAD).map(|n| next.saturating_add(n * BLOCK_SIZE as u64)) {
            if at >= cell.limit()
                || !self.blocks.has_free_place()
                || self.blocks.at_hand(cell.id(), at) != AtHand::No
                || cache.pin().bytes(cell.id(), at, 1).is_some()
            {
                continue;
            }
            reads += usize::from(matches!(self.read(ring, cell, at, cell.limit()), Fed::Read));
        }
        reads
    }

    fn await_file(&mut self, want: Want) {
        let Some(size) = self.segment_size() else { return };
        let file = (want.cell.tli(), want.at.segment(size));
        self.awaiting_file.entry(file).or_default().push(want);
    }

    fn segment_size(&self) -> Option<SegmentSize> {
        self.hub.identity().map(|identity| identity.segment_size)
    }

    /// The keeper opened a file, or could not.
    pub fn on_opened(
        &mut self,
        tli: TimelineId,
        no: SegmentNo,
        result: io::Result<Fd>,
        out: &mut Vec<Arrival>,
    ) {
        let waited = self.awaiting_file.remove(&(tli, no)).unwrap_or_default();
        match result {
            Ok(file) => {
                self.files.opened(tli, no, file, None);
                self.awaiting_read.extend(waited);
            }
            Err(error) => {
                self.files.forget(tli, no);
                let Some(size) = self.segment_size() else { return };
                let name = SegmentName { tli, no, size };
                match error.kind() {
                    // The keeper looked for it under all its names.
                    io::ErrorKind::NotFound => {
                        warn!("could not open file \"pg_wal/{name}\": No such file or directory");
                    }
                    // Whoever has seen what is in it has said so.
                    io::ErrorKind::InvalidData => {}
                    _ => warn!("could not open file \"pg_wal/{name}\": {error}"),
                }
                let fault = unopened(name, &error);
                let queued = extract(&mut self.awaiting_read, |want| want.is_in(tli, no, size));
                let all = waited.into_iter().chain(queued);
                out.extend(
                    all.map(|want| Arrival::Failed(want.standby, want.block(), fault.clone())),
                );
            }
        }
    }

    /// A segment from the archive may be read up to a position.
    pub fn on_opened_partly(
        &mut self,
        tli: TimelineId,
        no: SegmentNo,
        file: Fd,
        unproved: Unproved,
    ) {
        self.files.opened(tli, no, file, Some(unproved));
        self.awaiting_read.extend(self.awaiting_file.remove(&(tli, no)).unwrap_or_default());
    }

    /// A read completed. Every page of the block is checked before any of it can be sent.
    pub fn on_read(
        &mut self,
        slot: u32,
        result: io::Result<usize>,
        buffer: Buffer,
        out: &mut Vec<Arrival>,
    ) {
        let Some(id) = self.blocks.id_of(slot) else { return };
        let mut waiting = std::mem::take(&mut self.waiting);
        let fault = match self.rules.of(&self.hub, id.cell) {
            Ok(rules) => {
                let no = id.start().segment(rules.size);
                let name = SegmentName { tli: rules.tli, no, size: rules.size };
                let checked = self.blocks.loaded(slot, result, buffer, rules, &mut waiting);
                checked.err().map(|fault| {
                    error!("could not serve WAL segment {name} at {}: {fault}", id.start());
                    format!("could not read WAL segment {name}: {fault}")
                })
            }
            // The WAL was moved aside in the meantime: its streams are ended.
            Err(NoRules::NoCell) => {
                drop(self.blocks.forget(slot, buffer));
                None
            }
            Err(NoRules::NotKnown { tli, error }) => {
                waiting.extend(self.blocks.forget(slot, buffer));
                error!("could not serve WAL of timeline {tli}: {error}");
                Some(error)
            }
        };
        match fault {
            None => out.extend(waiting.drain(..).map(|key| Arrival::Here(key, id))),
            Some(text) => {
                let fault = ReadFault::Unreadable(Refusal::error(sqlstate::DATA_CORRUPTED, text));
                let queued = extract(&mut self.awaiting_read, |want| want.block() == id);
                let all = waiting.drain(..).chain(queued.into_iter().map(|want| want.standby));
                out.extend(all.map(|key| Arrival::Failed(key, id, fault.clone())));
            }
        }
        self.waiting = waiting;
    }

    /// Files were moved: each is asked for again.
    pub fn forget_files(&mut self) {
        self.files = Files::default();
    }

    /// Gives back what has not been used for a while.
    pub fn sweep(&mut self) {
        self.files.sweep();
        self.blocks.shrink();
    }

    /// Blocks that are being read.
    #[cfg(all(test, not(walhub_loom)))]
    pub fn loading(&self) -> usize {
        self.blocks.loading()
    }

    /// Forgets the loaded blocks, as if others had taken their places.
    #[cfg(all(test, not(walhub_loom)))]
    pub fn forget_blocks(&mut self) {
        self.blocks = BlockPool::default();
    }
}

/// Removes and returns those that `matches` picks, in order.
fn extract(queue: &mut VecDeque<Want>, matches: impl Fn(&Want) -> bool) -> VecDeque<Want> {
    let (out, rest) = std::mem::take(queue).into_iter().partition(matches);
    *queue = rest;
    out
}

/// A segment's file cannot be opened: a standby that waits for it gets PostgreSQL's error. Only a
/// missing file counts as removed: a standby that hears so may give up.
fn unopened(name: SegmentName, error: &io::Error) -> ReadFault {
    match error.kind() {
        io::ErrorKind::NotFound => ReadFault::Removed(name),
        // The file from the archive has the wrong contents.
        io::ErrorKind::InvalidData => {
            ReadFault::Unreadable(Refusal::error(sqlstate::DATA_CORRUPTED, error.to_string()))
        }
        _ => {
            let text = format!("could not open file \"pg_wal/{name}\": {error}");
            ReadFault::Unreadable(Refusal::error(sqlstate::IO_ERROR, text))
        }
    }
}

/// What is damaged is not sent.
fn damaged_fault(damage: &SegmentDamage) -> ReadFault {
    let SegmentDamage { name, from, what, .. } = damage;
    let text = format!("WAL segment {name} is damaged from {from} on: {what}");
    ReadFault::Unreadable(Refusal::error(sqlstate::DATA_CORRUPTED, text))
}

/// WAL from the archive is not proved. What is missing counts as removed.
fn unproved_fault(why: Reason) -> ReadFault {
    match why {
        Reason::Missing(name) => ReadFault::Removed(name),
        Reason::Damaged { .. } | Reason::NotWritten(_) => {
            ReadFault::Unreadable(Refusal::error(sqlstate::DATA_CORRUPTED, why.to_string()))
        }
    }
}

#[cfg(test)]
#[cfg(not(walhub_loom))]
mod tests {
    use super::*;
    use crate::hub::tests::hub;
    use crate::keeper::{AnswerInbox, Job, JobDone, Order, Orders, queue};
    use crate::ring::{Setup, Uring, chunks};

    const TLI: TimelineId = TimelineId::FIRST;
    const SEGMENT: u64 = 16 << 20;
    const START: Lsn = Lsn::new(4 * SEGMENT);

    /// The test answers itself.
    struct Nowhere;

    impl AnswerInbox for Nowhere {
        fn answer(&self, _: JobDone) {}
    }

    struct Scene {
        readback: ReadBack,
        ring: Uring,
        cache: ChunkReader,
        cell: Arc<Cell>,
        orders: Orders,
        arrivals: Vec<Arrival>,
    }

    impl Scene {
        /// Two segments of WAL, all of it durable and none of it in the cache.
        fn new() -> Self {
            let hub = Arc::new(hub("15.18"));
            let cell = Arc::new(Cell::new(TLI, START, START.saturating_add(2 * SEGMENT)));
            hub.push_cell(Arc::clone(&cell));
            let (keeper, orders) = queue(8);
            let readback = ReadBack::new(hub, keeper.for_core(Arc::new(Nowhere)));
            let ring = Uring::new(Setup::default()).unwrap();
            let cache = chunks(4 << 20, 1).unwrap().1.remove(0);
            Self { readback, ring, cache, cell, orders, arrivals: Vec::new() }
        }

        fn want(&self, standby: u32, offset: u64) -> Want {
            let standby = Key { index: standby, generation: 0 };
            let (cell, at) = (Arc::clone(&self.cell), START.saturating_add(offset));
            Want { standby, cell, at, message_end: Lsn::INVALID }
        }

        fn feed(&mut self, still_wanted: impl Fn(&Want) -> bool) {
            let Self { readback, ring, cache, arrivals, .. } = self;
            readback.feed(ring, cache, still_wanted, arrivals);
        }

        fn asked(&mut self) -> Vec<u64> {
            let jobs = std::iter::from_fn(|| self.orders.take());
            let number = |order: Order| match order.job {
                Job::Open { no, .. } => no.raw(),
                other => panic!("{other:?}"),
            };
            jobs.map(number).collect()
        }

        fn opened(&mut self, no: u64, result: io::Result<Fd>) {
            self.readback.on_opened(TLI, SegmentNo::new(no), result, &mut self.arrivals);
        }
    }

    #[test]
    fn a_file_that_cannot_be_had_fails_all_who_wait_for_it_and_nobody_else() {
        let mut scene = Scene::new();
        // Two in the first segment, one in the second.
        for (standby, offset) in [(1, 0), (2, 9 << 20), (3, SEGMENT)] {
            scene.readback.wait(scene.want(standby, offset));
        }
        scene.feed(|_| true);
        assert_eq!(scene.asked(), [4, 5], "each file once");
        // One more, which is still queued.
        scene.readback.wait(scene.want(4, 100));
        scene.opened(4, Err(io::ErrorKind::NotFound.into()));
        let failed = scene.arrivals.drain(..).map(|arrival| match arrival {
            Arrival::Failed(key, _, ReadFault::Removed(name)) => (key.index, name.no.raw()),
            other => panic!("{other:?}"),
        });
        assert_eq!(failed.collect::<Vec<_>>(), [(1, 4), (2, 4), (4, 4)]);
        assert!(!scene.readback.is_behind());
        // The other standby's file is opened, and its block is read.
        scene.opened(5, Ok(Arc::new(tempfile::tempfile().unwrap().into())));
        scene.feed(|_| true);
        assert_eq!(scene.readback.loading(), 1);
        assert!(scene.arrivals.is_empty());
    }

    #[test]
    fn what_is_not_proved_is_not_read_and_asked_for_again() {
        let mut scene = Scene::new();
        let name = |no| SegmentName {
            tli: TLI,
            no: SegmentNo::new(no),
            size: SegmentSize::new(SEGMENT).unwrap(),
        };
        let fault =
            crate::wal::WalkFault { at: START, kind: crate::wal::walk::FaultKind::Checksum };
        let damaged = Reason::Damaged { first: name(4), last: name(5), fault };
        for (why, removed) in [(damaged, false), (Reason::Missing(name(5)), true)] {
            let from = START.saturating_add(BLOCK_SIZE as u64 + 5000);
            scene.readback.wait(scene.want(1, BLOCK_SIZE as u64));
            scene.feed(|_| true);
            assert_eq!(scene.asked(), [4]);
            let file = Arc::new(tempfile::tempfile().unwrap().into());
            let unproved = Unproved { from, why };
            scene.readback.on_opened_partly(TLI, SegmentNo::new(4), file, unproved);
            // What lies before it is read.
            scene.feed(|_| true);
            assert_eq!((scene.readback.loading(), scene.arrivals.len()), (1, 0));
            scene.readback.forget_blocks();
            scene.readback.wait(scene.want(2, BLOCK_SIZE as u64 + 5000));
            scene.feed(|_| true);
            match scene.arrivals.pop() {
                Some(Arrival::Failed(_, _, ReadFault::Removed(of))) if removed => {
                    assert_eq!(of, name(5));
                }
                Some(Arrival::Failed(_, _, ReadFault::Unreadable(refusal))) if !removed => {
                    assert_eq!(refusal.sqlstate, sqlstate::DATA_CORRUPTED);
                }
                other => panic!("{other:?}"),
            }
            assert_eq!(scene.readback.loading(), 0);
        }
    }

    #[test]
    fn what_a_scrub_has_found_damaged_is_not_read() {
        let mut scene = Scene::new();
        let size = SegmentSize::new(SEGMENT).unwrap();
        let damage = SegmentDamage {
            name: SegmentName { tli: TLI, no: SegmentNo::new(4), size },
            from: START.saturating_add(BLOCK_SIZE as u64 + 5000),
            what: "torn".to_owned(),
            since: std::time::SystemTime::UNIX_EPOCH,
        };
        scene.readback.hub.holds.scrub.find(damage);
        // What lies before it is read.
        scene.readback.wait(scene.want(1, BLOCK_SIZE as u64));
        scene.feed(|_| true);
        scene.opened(4, Ok(Arc::new(tempfile::tempfile().unwrap().into())));
        scene.feed(|_| true);
        assert_eq!((scene.readback.loading(), scene.arrivals.len()), (1, 0));
        scene.readback.forget_blocks();
        scene.readback.wait(scene.want(2, BLOCK_SIZE as u64 + 5000));
        scene.feed(|_| true);
        let Some(Arrival::Failed(_, _, ReadFault::Unreadable(refusal))) = scene.arrivals.pop()
        else {
            panic!("it is read")
        };
        assert_eq!(refusal.sqlstate, sqlstate::DATA_CORRUPTED);
        assert_eq!(scene.readback.loading(), 0);
        scene.readback.hub.holds.scrub.mend(|_| false);
        scene.readback.wait(scene.want(3, BLOCK_SIZE as u64 + 5000));
        scene.feed(|_| true);
        assert_eq!((scene.readback.loading(), scene.arrivals.len()), (1, 0));
    }

    #[test]
    fn only_a_file_that_is_not_there_was_removed() {
        let name = SegmentName {
            tli: TLI,
            no: SegmentNo::new(4),
            size: SegmentSize::new(SEGMENT).unwrap(),
        };
        for (kind, state) in [
            (io::ErrorKind::InvalidData, sqlstate::DATA_CORRUPTED),
            (io::ErrorKind::PermissionDenied, sqlstate::IO_ERROR),
        ] {
            let ReadFault::Unreadable(refusal) = unopened(name, &kind.into()) else {
                panic!("{kind:?}")
            };
            assert_eq!(refusal.sqlstate, state);
        }
    }

    #[test]
    fn nothing_is_read_for_one_who_has_gone() {
        let mut scene = Scene::new();
        scene.readback.wait(scene.want(1, 0));
        scene.feed(|_| false);
        assert!(scene.asked().is_empty() && !scene.readback.is_behind());
    }
}
