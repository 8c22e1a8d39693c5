//! What becomes of bytes that are replaced because they are damaged. They are kept in `damaged`, so
//! that somebody can look at what the disk has done. Nothing needs them: what replaces them is
//! proved. So there is a bound, and what does not fit is replaced all the same.

use super::work::Keeper;
use crate::store::disk::Disk;
use crate::store::durable::{failed_sync, read_full, remove, write_full};
use crate::store::layout::Layout;
use crate::wal::SegmentName;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// The most copies of one place. A place that is damaged again and again says no more by further
/// ones.
const COPIES: u32 = 4;

/// The most files in `damaged`.
const FILES: usize = 1000;

/// The most bytes in it, unless [`SEGMENTS`] are more.
const BYTES: u64 = 1 << 30;

/// So many segments may be in it, whatever their size.
const SEGMENTS: u64 = 16;

/// What became of damaged bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum KeptDamage {
    /// They are in this file.
    As(PathBuf),
    /// The bound is reached.
    Not(NotKept),
}

/// Why damaged bytes are not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotKept {
    /// There are [`COPIES`] of the place.
    Copies,
    /// `damaged` is full.
    Full,
}

impl fmt::Display for KeptDamage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::As(path) => write!(f, "kept as \"{}\"", path.display()),
            Self::Not(NotKept::Copies) => {
                write!(f, "not kept: there are {COPIES} copies of this place already")
            }
            Self::Not(NotKept::Full) => {
                f.write_str("not kept: the folder \"damaged\" holds as much as it may")
            }
        }
    }
}

impl<D: Disk> Keeper<D> {
    /// Gives a damaged segment's file a second name, durably.
    pub(super) async fn keep_damaged(&self, name: SegmentName) -> io::Result<KeptDamage> {
        if let Some(full) = self.is_full_of_damaged(name.size.bytes()).await? {
            return Ok(full);
        }
        let folder = self.folder_of_damaged().await?;
        for kept in names(&folder.join(name.to_string())) {
            match self.disk.link(&self.layout.segment(name), &kept).await {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                linked => {
                    linked?;
                    self.disk.sync_dir(&folder).await.map_err(failed_sync)?;
                    self.asides.note_damaged(name.size.bytes());
                    return Ok(KeptDamage::As(kept));
                }
            }
        }
        Ok(KeptDamage::Not(NotKept::Copies))
    }

    /// Keeps what a segment's file had from `offset` on. The same bytes of one place are kept once.
    pub(super) async fn keep_bytes(
        &self,
        name: SegmentName,
        offset: u64,
        bytes: Vec<u8>,
    ) -> io::Result<KeptDamage> {
        for kept in names(&self.layout.damaged_bytes(name, offset)) {
            match self.disk.open_read(&kept).await {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return self.write_damaged(kept, bytes).await;
                }
                file => {
                    // One byte more, to tell a file that is longer.
                    let has = read_full(&self.disk, &file?, bytes.len() + 1, 0).await?;
                    if has == bytes {
                        return Ok(KeptDamage::As(kept));
                    }
                }
            }
        }
        Ok(KeptDamage::Not(NotKept::Copies))
    }

    async fn write_damaged(&self, path: PathBuf, bytes: Vec<u8>) -> io::Result<KeptDamage> {
        let len = bytes.len() as u64;
        if let Some(full) = self.is_full_of_damaged(len).await? {
            return Ok(full);
        }
        let folder = self.folder_of_damaged().await?;
        let temporary = Layout::temporary(&path);
        let written = async {
            let file = self.disk.create(&temporary).await?;
            write_full(&self.disk, &file, bytes, 0).await?;
            self.disk.sync_data(&file).await.map_err(failed_sync)
        };
        if let Err(error) = written.await {
            // Nothing else ever removes it.
            drop(remove(&self.disk, &temporary).await);
            return Err(error);
        }
        self.disk.rename(&temporary, &path).await?;
        self.disk.sync_dir(&folder).await.map_err(failed_sync)?;
        self.asides.note_damaged(len);
        Ok(KeptDamage::As(path))
    }

    /// Is there no room for so many bytes more?
    async fn is_full_of_damaged(&self, more: u64) -> io::Result<Option<KeptDamage>> {
        if self.holds.asides.known().is_none() {
            self.look_at_asides((self.clock)()).await;
        }
        let most = BYTES.max(self.segment_size()?.bytes().saturating_mul(SEGMENTS));
        let (files, bytes) = self.asides.damaged();
        let is_full = files >= FILES || bytes.saturating_add(more) > most;
        Ok(is_full.then_some(KeptDamage::Not(NotKept::Full)))
    }

    /// Where what is damaged is kept. It is there, durably.
    async fn folder_of_damaged(&self) -> io::Result<PathBuf> {
        let folder = self.layout.damaged();
        match self.disk.mkdir(&folder).await {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made?,
        }
        // An earlier attempt may have made it and not come further.
        self.disk.sync_dir(self.layout.root()).await.map_err(failed_sync)?;
        Ok(folder)
    }
}

/// The names for copies of one place, in the order in which they are taken.
fn names(first: &Path) -> impl Iterator<Item = PathBuf> {
    let others = (1..COPIES).map(|number| Layout::numbered(first, number));
    std::iter::once(first.to_owned()).chain(others).collect::<Vec<_>>().into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::directory::Directory;
    use crate::store::disk::run_ready;
    use crate::store::layout::Listing;
    use crate::store::plain_disk::PlainDisk;
    use crate::store::retention::Holds;
    use crate::wal::{Lsn, SegmentNo, SegmentSize, TimelineId};
    use std::sync::Arc;

    fn keeper(folder: &Path) -> (Keeper<PlainDisk>, SegmentName) {
        let layout = Directory::open(&folder.join("hub")).unwrap().layout().clone();
        let size = SegmentSize::new(1 << 20).unwrap();
        let name = SegmentName { tli: TimelineId::FIRST, no: SegmentNo::new(4), size };
        let holds = Arc::new(Holds::new(Lsn::INVALID));
        let keeper = Keeper::new(PlainDisk, layout, holds, &Listing::default(), None, None);
        keeper.size.set(Some(size));
        (keeper, name)
    }

    fn number_kept(keeper: &Keeper<PlainDisk>) -> usize {
        std::fs::read_dir(keeper.layout.damaged()).map_or(0, Iterator::count)
    }

    #[test]
    fn the_same_bytes_are_kept_once_and_a_place_a_few_times() {
        let folder = tempfile::tempdir().unwrap();
        let (keeper, name) = keeper(folder.path());
        let keep = |bytes: &[u8]| run_ready(keeper.keep_bytes(name, 64, bytes.to_vec())).unwrap();
        let first = keep(b"first").unwrap();
        assert_eq!(first, KeptDamage::As(keeper.layout.damaged_bytes(name, 64)));
        assert_eq!(keep(b"first").unwrap(), first);
        assert_eq!(number_kept(&keeper), 1);
        for n in 1..100u8 {
            let kept = keep(&[n]).unwrap();
            assert_eq!(
                kept == KeptDamage::Not(NotKept::Copies),
                u32::from(n) >= COPIES,
                "{n}: {kept}"
            );
        }
        assert_eq!(number_kept(&keeper), COPIES as usize);
        assert_eq!(keep(b"first").unwrap(), first);

        std::fs::write(keeper.layout.segment(name), "damaged").unwrap();
        for _ in 0..10 {
            run_ready(keeper.keep_damaged(name)).unwrap().unwrap();
        }
        assert_eq!(number_kept(&keeper), 2 * COPIES as usize);
    }

    #[test]
    fn there_is_a_bound_for_all_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let (keeper, name) = keeper(folder.path());
        std::fs::create_dir(keeper.layout.damaged()).unwrap();
        for n in 0..FILES - 1 {
            std::fs::write(keeper.layout.damaged().join(n.to_string()), "x").unwrap();
        }
        let keep = |offset: u64| run_ready(keeper.keep_bytes(name, offset, vec![7])).unwrap();
        assert!(matches!(keep(1).unwrap(), KeptDamage::As(_)));
        assert_eq!(keep(2).unwrap(), KeptDamage::Not(NotKept::Full));
        assert!(matches!(keep(1).unwrap(), KeptDamage::As(_)), "it has been kept");
        // Somebody has looked at them and removed them.
        std::fs::remove_dir_all(keeper.layout.damaged()).unwrap();
        run_ready(keeper.look_at_asides((keeper.clock)())).unwrap();
        assert!(matches!(keep(2).unwrap(), KeptDamage::As(_)));

        let large = std::fs::File::create(keeper.layout.damaged().join("large")).unwrap();
        large.set_len(BYTES - name.size.bytes() / 2).unwrap();
        std::fs::write(keeper.layout.segment(name), "damaged").unwrap();
        run_ready(keeper.look_at_asides((keeper.clock)())).unwrap();
        let kept = run_ready(keeper.keep_damaged(name)).unwrap().unwrap();
        assert_eq!(kept, KeptDamage::Not(NotKept::Full));
    }
}
