//! What must hold of a hub's directory: after a start, a switch, a look at old WAL.

use crate::hub::{Ground, Process};
use crate::shared::promise;
use std::path::{Path, PathBuf};
use walhub::store::control_file::{Cluster, ControlFile};
use walhub::store::layout::FileKind;
use walhub::store::retention::Holds;
use walhub::store::slots::{Generation, SlotName};
use walhub::store::switch::{Switch, heirs};
use walhub::store::{Recovered, RecoveredWal};
use walhub::wal::{Lsn, SegmentName, SegmentNo, TimelineId};

impl Process {
    /// A slot was created: from where on it keeps WAL is its own choice.
    pub(crate) fn note_created(&self, name: &SlotName) {
        let slots = self.hub.holds.slots.lock();
        let reserve = slots.get(name.as_str()).and_then(|slot| slot.restart_lsn);
        let key = (self.ground.id, name.to_string());
        let mut promised = self.shared().promised.borrow_mut();
        promised.insert(key, reserve.unwrap_or(Lsn::INVALID));
    }
}

impl Ground {
    fn medium(&self, path: &Path) -> Option<Vec<u8>> {
        self.disk.disk.views(path).1
    }

    fn cluster(&self) -> Option<Cluster> {
        ControlFile::decode(&self.medium(&self.layout.control())?).unwrap().cluster
    }

    /// At the moment when a start publishes what it found.
    pub(crate) fn check_start(&self, recovered: &Recovered, holds: &Holds) {
        let (shared, id) = (&self.shared, self.id);
        let mut model = self.model.borrow_mut();
        let Some(wal) = &recovered.wal else {
            let published = model.published;
            promise!(shared, published.is_none(), "hub {id}: lost what it had, {published:?}");
            return;
        };
        let tli = wal.walker.rules().tli;
        shared
            .trace(|| format!("hub {id} starts: {:?}, kept {}", wal.complete, holds.oldest_kept()));
        let truth = shared.truth.borrow();
        if let Some((before, upto)) = model.published {
            // What of a timeline that has ended since lies behind its end is aside.
            let ended = wal.ended.iter().find(|ended| ended.tli == before).map(|ended| ended.end);
            let floor = truth.surely_ended(before, upto.min(ended.unwrap_or(Lsn::MAX)));
            promise!(
                shared,
                tli == before || ended.is_some() && tli > before,
                "hub {id}: was on timeline {before}, is on {tli}"
            );
            promise!(
                shared,
                wal.durable >= floor,
                "hub {id}: published {upto} of timeline {before}, found {} of {tli}",
                wal.durable
            );
            if tli != before {
                shared.seen("switch finished by a start");
            }
        }
        let acknowledged = shared.acknowledged.borrow().get(&(id, tli)).copied();
        if let Some(flush) = acknowledged {
            promise!(
                shared,
                wal.durable >= truth.surely_ended(tli, flush),
                "hub {id}: acknowledged {flush} of timeline {tli}, found {}",
                wal.durable
            );
            let kept = truth.surely_kept(tli, flush);
            promise!(
                shared,
                wal.resume >= kept.segment_start(truth.size),
                "hub {id}: acknowledged {flush}, resumes at {}",
                wal.resume
            );
        }
        for ended in &wal.ended {
            model.ended.insert(ended.tli, ended.end);
            let due = truth.history(tli).switchpoint_of(ended.tli);
            promise!(
                shared,
                due == Some(ended.end),
                "hub {id}: {} ends at {}",
                ended.tli,
                ended.end
            );
        }
        model.published = Some((tli, wal.durable));
        model.released = model.released.max(holds.oldest_kept());
        drop(model);
        drop(truth);
        self.check_names();
        self.check_served(wal, holds.unbroken_from());
        self.check_slots(holds);
        if !wal.ended.is_empty() {
            shared.seen("started on a later timeline");
        }
    }

    /// Everything that can be served is what was written, for readers and on the medium.
    fn check_served(&self, wal: &RecoveredWal, kept: Lsn) {
        let Some(cluster) = self.cluster() else { return };
        let current = (cluster.timeline, wal.oldest, wal.durable);
        let ended = wal.ended.iter().map(|ended| (ended.tli, ended.oldest, ended.end));
        for (tli, oldest, end) in ended.chain([current]) {
            let mut at = oldest.max(kept);
            while at < end {
                let no = at.segment(cluster.segment_size);
                let to = no.end(cluster.segment_size).min(end);
                self.check_piece(&cluster, (tli, no), (at, to));
                at = to;
            }
        }
    }

    fn check_piece(
        &self,
        cluster: &Cluster,
        (tli, no): (TimelineId, SegmentNo),
        (from, to): (Lsn, Lsn),
    ) {
        let (shared, id, size) = (&self.shared, self.id, cluster.segment_size);
        let mut places = Vec::new();
        for tli in [tli].into_iter().chain(heirs(cluster, tli, no)) {
            let name = SegmentName { tli, no, size };
            places.extend([self.layout.segment(name), self.layout.partial(name)]);
        }
        let there = |path: &&PathBuf| self.disk.disk.views(path).0.is_some();
        let Some(path) = places.iter().find(there) else {
            return shared.broken(format!("hub {id}: segment {} of {tli} is missing", no.raw()));
        };
        let (cached, medium) = self.disk.disk.views(path);
        for (view, bytes) in [("cache", cached), ("medium", medium)] {
            let offset = from.segment_offset(size) as usize;
            let bytes = bytes.unwrap_or_default();
            let found = bytes.get(offset..offset + to.bytes_since(from) as usize);
            let wrong = match found {
                Some(found) => shared.truth.borrow().first_false(tli, from, found),
                None => Some(from),
            };
            promise!(
                shared,
                wrong.is_none(),
                "hub {id}: {} is false in the {view} from {wrong:?} on",
                path.display()
            );
        }
    }

    /// A final name means complete and durable.
    fn check_names(&self) {
        let truth = self.shared.truth.borrow();
        for path in self.disk.disk.names() {
            if path.parent() != Some(self.layout.wal()) {
                continue;
            }
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let FileKind::Segment(name) = FileKind::of(name, truth.size) else { continue };
            let (cached, medium) = self.disk.disk.views(&path);
            for bytes in [cached, medium].into_iter().flatten() {
                let start = name.no.start(truth.size);
                let wrong = truth.first_false(name.tli, start, &bytes);
                let whole = bytes.len() as u64 == truth.size.bytes();
                promise!(
                    self.shared,
                    whole && wrong.is_none(),
                    "hub {}: {name} is not complete, first at {wrong:?}",
                    self.id
                );
            }
        }
    }

    /// Is a switch under way, and not yet done for the core?
    pub(crate) fn is_switching(&self) -> bool {
        let published = self.model.borrow().published.map(|(tli, _)| tli);
        published.is_some() && self.disk.newest_child() > published
    }

    /// Behind a switch: the child has all of the parent before the switchpoint, and in its
    /// first segment nothing else.
    pub(crate) fn check_switched(&self, plan: Switch, wal: &RecoveredWal, holds: &Holds) {
        let (shared, id) = (&self.shared, self.id);
        let Some((before, upto)) = self.model.borrow().published else {
            return shared.broken(format!("hub {id}: a switch without WAL"));
        };
        let due = shared.truth.borrow().history(plan.to).switchpoint_of(plan.from);
        promise!(shared, due == Some(plan.at), "hub {id}: switches by {plan:?}");
        promise!(
            shared,
            plan.at <= upto && before == plan.from,
            "hub {id}: switches at {} with a hole, {before} is durable up to {upto}",
            plan.at
        );
        promise!(
            shared,
            wal.durable == plan.at,
            "hub {id}: timeline {} begins with {} durable, the switchpoint is {}",
            plan.to,
            wal.durable,
            plan.at
        );
        let size = shared.truth.borrow().size;
        let name = SegmentName { tli: plan.to, no: plan.at.segment(size), size };
        let offset = plan.at.segment_offset(size) as usize;
        if let Some(bytes) = self.medium(&self.layout.partial(name)) {
            let behind = bytes.get(offset..).unwrap_or_default().iter().position(|byte| *byte != 0);
            promise!(
                shared,
                behind.is_none(),
                "hub {id}: {name} holds bytes past the switchpoint {}",
                plan.at
            );
        }
        self.check_served(wal, holds.unbroken_from());
    }

    /// Old WAL was given up.
    pub(crate) fn check_retained(&self, holds: &Holds, oldest_kept: Lsn) {
        let mut model = self.model.borrow_mut();
        if oldest_kept > model.released {
            self.shared.seen("WAL removed");
            model.released = oldest_kept;
        }
        drop(model);
        self.check_slots(holds);
    }

    /// Whichever generation of the slots a start reads: a slot is not ahead of what its user said,
    /// and the WAL from there on is here.
    fn check_slots(&self, holds: &Holds) {
        let paths = self.layout.slots();
        let files: Vec<_> = paths.iter().filter_map(|path| self.medium(path)).collect();
        let read = files.iter().filter_map(|bytes| Generation::decode(bytes).ok());
        let generations: Vec<_> = read.collect();
        promise!(
            self.shared,
            files.is_empty() || !generations.is_empty(),
            "hub {}: no file of the slots can be read",
            self.id
        );
        for generation in &generations {
            self.check_generation(generation, holds);
        }
    }

    fn check_generation(&self, generation: &Generation, holds: &Holds) {
        let (shared, id) = (&self.shared, self.id);
        let (kept, size) = (holds.oldest_kept(), shared.truth.borrow().size);
        for record in &generation.slots {
            let name = record.name.as_str();
            let Some(restart) = record.restart_lsn else {
                if record.invalidated.is_some() {
                    shared.seen("slot invalidated");
                }
                continue;
            };
            let promised = shared.promised.borrow().get(&(id, name.to_owned())).copied();
            promise!(
                shared,
                promised.is_some_and(|promised| restart <= promised),
                "hub {id}: slot {name} is at {restart} on disk, its user was at {promised:?}"
            );
            // One that was dropped may be in a generation that is going to be replaced.
            let is_there = holds.slots.lock().get(name).is_some();
            promise!(
                shared,
                !is_there || kept.segment(size) <= restart.segment(size),
                "hub {id}: slot {name} needs WAL from {restart} on, kept is {kept}"
            );
        }
    }
}
