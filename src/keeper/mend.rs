//! A damaged segment is replaced by a file that was fetched, proved and synced under a temporary
//! name. The damaged one keeps its name until then, and a second name in `damaged` after that.

use super::gate::FinalStep;
use super::work::Keeper;
use crate::store::disk::Disk;
use crate::store::durable::{failed_sync, remove};
use crate::wal::{SegmentNo, TimelineId};
use std::io;

impl<D: Disk> Keeper<D> {
    /// Fails with [`io::ErrorKind::NotFound`] when the segment is not here any more, or other bytes
    /// have come under its name since it was found damaged.
    pub(super) async fn mend(&self, tli: TimelineId, no: SegmentNo) -> io::Result<()> {
        let name = self.name(tli, no)?;
        let fetched = self.layout.mending(name);
        // What is known of its damage is forgotten before other bytes come.
        if !self.is_here(name) || self.holds.scrub.damage(tli, no).is_none() {
            remove(&self.disk, &fetched).await?;
            return Err(io::ErrorKind::NotFound.into());
        }
        // Nothing is changed without it.
        drop(self.disk.open_read(&fetched).await?);
        let kept = self.keep_damaged(name).await?;
        let _leave = self.gate(&FinalStep::Replace(name, &kept))?;
        self.disk.rename(&fetched, &self.layout.segment(name)).await?;
        self.disk.sync_dir(self.layout.wal()).await.map_err(failed_sync)?;
        // Who opens it from now on gets the new file.
        self.open.forget(tli, no);
        self.holds.scrub.replaced(name);
        Ok(())
    }
}

#[cfg(test)]
#[cfg(not(walhub_loom))]
mod tests {
    use super::*;
    use crate::keeper::{Job, JobDone};
    use crate::store::directory::Directory;
    use crate::store::disk::run_ready;
    use crate::store::faulty_disk::FaultyDisk;
    use crate::store::layout::Listing;
    use crate::store::retention::Holds;
    use crate::store::scrub::SegmentDamage;
    use crate::wal::{Lsn, SegmentName, SegmentSize};
    use std::sync::Arc;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_damaged_file_has_its_name_until_the_new_one_takes_it() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Directory::open(&folder.path().join("hub")).unwrap().layout().clone();
        let size = SegmentSize::new(MIB).unwrap();
        let (tli, no) = (TimelineId::FIRST, SegmentNo::new(5));
        let name = SegmentName { tli, no, size };
        std::fs::write(layout.segment(name), "bad").unwrap();
        let names = vec![name.to_string()];
        let holds = Arc::new(Holds::new(Lsn::new(5 * MIB)));
        let (disk, listing) = (FaultyDisk::default(), Listing::of(names, size));
        let shared = Arc::clone(&holds);
        let keeper = Keeper::new(disk.clone(), layout.clone(), shared, &listing, None, None);
        keeper.size.set(Some(size));
        let open = || {
            let done = run_ready(keeper.run(Job::Open { tli, no })).unwrap();
            let JobDone::Opened { result: Ok(file), .. } = done else { panic!("{done:?}") };
            std::io::read_to_string(std::fs::File::from(file.try_clone().unwrap())).unwrap()
        };
        let held = keeper.open(tli, no);
        let held = run_ready(held).unwrap().unwrap();
        let mend = || run_ready(keeper.run(Job::Mend { tli, no })).unwrap();
        assert!(matches!(mend(), JobDone::Failed { .. }), "nothing was fetched");
        assert_eq!(std::fs::read_to_string(layout.segment(name)).unwrap(), "bad");

        std::fs::write(layout.mending(name), "good").unwrap();
        assert!(matches!(mend(), JobDone::Failed { .. }), "it is not known to be damaged");
        assert_eq!(std::fs::read_to_string(layout.segment(name)).unwrap(), "bad");
        assert!(!layout.mending(name).exists());

        let damage = SegmentDamage {
            name,
            from: Lsn::new(5 * MIB),
            what: "torn".to_owned(),
            since: std::time::SystemTime::UNIX_EPOCH,
        };
        holds.scrub.find(damage);
        std::fs::write(layout.mending(name), "good").unwrap();
        disk.take_synced_dirs();
        assert!(matches!(mend(), JobDone::Done(_)));
        let kept = layout.damaged().join(name.to_string());
        assert_eq!(std::fs::read_to_string(&kept).unwrap(), "bad");
        let synced = [layout.root().to_owned(), layout.damaged(), layout.wal().to_owned()];
        assert_eq!(disk.take_synced_dirs(), synced);
        assert_eq!(holds.scrub.damage(tli, no), None);
        assert_eq!(open(), "good", "also while somebody has the damaged one open");
        drop(held);

        // A segment that was removed meanwhile does not come back.
        std::fs::write(layout.mending(name), "good").unwrap();
        keeper.give_up_before(no.next(), size);
        while run_ready(keeper.tend()).unwrap().unwrap() == crate::keeper::Tended::More {}
        assert!(matches!(mend(), JobDone::Failed { .. }));
        assert!(!layout.segment(name).exists() && !layout.mending(name).exists());
    }
}
