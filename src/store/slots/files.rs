//! The two files that hold the slots.
//!
//! Each holds all slots, with the number of its generation. A save writes the next generation over
//! the older of the two and syncs it; the newer one stays as it is. So whatever a crash leaves of
//! the write, one whole generation is on disk. A start takes the newest that is whole.
//!
//! A file that could not be written or synced is not written over: Linux has marked its pages
//! clean, so nobody knows what the disk holds. The next generation for that place is a new file
//! with a temporary name, renamed when it is durable.

use super::generation::Generation;
use super::record::SlotRecord;
use crate::store::StoreFault;
use crate::store::disk::Disk;
use crate::store::durable::{failed_sync, read_full, remove, replace_durably, write_full};
use crate::store::fault::failed;
use crate::store::layout::Layout;
use crate::store::sealed_text::Unreadable;
use crate::wal::Lsn;
use std::cell::Cell;
use std::io;
use std::path::{Path, PathBuf};
use tracing::warn;

/// More than the greatest number of slots needs.
const MAX_LEN: u64 = 256 << 20;

/// What is known of the two files.
#[derive(Debug, Default)]
pub struct SlotFiles {
    state: Cell<State>,
}

#[derive(Debug, Clone, Copy, Default)]
struct State {
    /// The number of the newest generation.
    newest: u64,
    files: [FileState; 2],
}

#[derive(Debug, Clone, Copy, Default)]
enum FileState {
    /// There is none, or what the disk holds of it is not known.
    #[default]
    Unusable,
    /// Whole and durable.
    Whole { generation: u64, len: u64 },
}

/// The generations that a start found, the newest first. Both are missing before the first slot.
pub type FoundGenerations = [Option<Generation>; 2];

impl SlotFiles {
    /// Reads both files from the disk, not from the cache. One that cannot be read is replaced by
    /// the next save.
    ///
    /// # Errors
    /// Fails when there are files and none can be read, or when a newer version wrote one: the
    /// slots might keep WAL.
    pub async fn read<D: Disk>(
        &self,
        disk: &D,
        layout: &Layout,
    ) -> Result<FoundGenerations, StoreFault> {
        sync_dir(disk, layout.root()).await?;
        let (mut state, mut found) = (State::default(), Vec::new());
        let mut faults = Vec::new();
        for (path, place) in layout.slots().into_iter().zip(&mut state.files) {
            match read_one(disk, &path).await? {
                None => {}
                Some(Ok((generation, len))) => {
                    *place = FileState::Whole { generation: generation.number, len };
                    state.newest = state.newest.max(generation.number);
                    found.push(generation);
                }
                Some(Err(fault @ Unreadable::Version { .. })) => {
                    return Err(StoreFault::Unreadable { path, fault });
                }
                Some(Err(fault)) => faults.push((path, fault)),
            }
        }
        found.sort_unstable_by_key(|generation| std::cmp::Reverse(generation.number));
        let mut found = found.into_iter();
        let found = [found.next(), found.next()];
        for (path, fault) in faults {
            let [Some(newest), _] = &found else {
                return Err(StoreFault::Unreadable { path, fault });
            };
            warn!(
                "file \"{}\" {fault}: replication slots are taken from the other file, \
                 generation {}",
                path.display(),
                newest.number
            );
        }
        self.state.set(state);
        Ok(found)
    }

    /// On a full disk: removes what a write that failed has left, which no start needs. Its space is
    /// enough for the next generation, unless that is longer.
    ///
    /// # Errors
    /// The operating system's error.
    pub async fn give_up_remains<D: Disk>(&self, disk: &D, layout: &Layout) -> io::Result<()> {
        let state = self.state.get();
        let place = state.next_place();
        let is_whole = |file: &FileState| matches!(file, FileState::Whole { .. });
        if is_whole(&state.files[place]) || !state.files.iter().any(is_whole) {
            return Ok(());
        }
        let path = &layout.slots()[place];
        remove(disk, path).await?;
        remove(disk, &Layout::temporary(path)).await
    }

    /// Makes the next generation durable. It takes the place of the older one. One call at a time.
    ///
    /// # Errors
    /// The operating system's error. A failed sync of a file that was written over never looks
    /// like a full disk.
    pub async fn write<D: Disk>(
        &self,
        disk: &D,
        layout: &Layout,
        slots: &[SlotRecord],
        standbys_from: Option<Lsn>,
    ) -> io::Result<()> {
        let mut state = self.state.get();
        let place = state.next_place();
        let paths = layout.slots();
        let (path, before) = (&paths[place], state.files[place]);
        let generation =
            Generation { number: state.newest + 1, standbys_from, slots: slots.to_vec() };
        // So it stays when anything fails.
        state.files[place] = FileState::Unusable;
        self.state.set(state);
        let len = match before {
            FileState::Unusable => build(disk, path, generation.encode(0)).await?,
            FileState::Whole { len, .. } => {
                let len = usize::try_from(len).map_err(io::Error::other)?;
                write_over(disk, path, generation.encode(len)).await?
            }
        };
        state.newest = generation.number;
        state.files[place] = FileState::Whole { generation: generation.number, len };
        self.state.set(state);
        Ok(())
    }
}

impl State {
    /// Where the next generation goes: never where the only whole one is.
    fn next_place(&self) -> usize {
        match self.files {
            [FileState::Unusable, _] => 0,
            [_, FileState::Unusable] => 1,
            [
                FileState::Whole { generation: first, .. },
                FileState::Whole { generation: second, .. },
            ] => usize::from(second < first),
        }
    }
}

/// Writes over a file of at most this length.
async fn write_over<D: Disk>(disk: &D, path: &Path, bytes: Vec<u8>) -> io::Result<u64> {
    let len = bytes.len() as u64;
    let file = disk.open_write(path).await?;
    write_full(disk, &file, bytes, 0).await?;
    disk.sync_data(&file).await.map_err(failed_sync)?;
    Ok(len)
}

/// Puts a new file in the place of the one that is there, if any. What an earlier attempt left
/// under the temporary name is not used again: its sync may have failed. A new file that could not
/// be synced is thrown away, so here a full disk is only that.
async fn build<D: Disk>(disk: &D, path: &Path, bytes: Vec<u8>) -> io::Result<u64> {
    let len = bytes.len() as u64;
    remove(disk, &Layout::temporary(path)).await?;
    replace_durably(disk, path, bytes).await?;
    Ok(len)
}

/// Returns `None` when there is no such file. After a kill its content may only be cached, and
/// after a failed sync the cache may hold what the disk does not.
async fn read_one<D: Disk>(
    disk: &D,
    path: &Path,
) -> Result<Option<Result<(Generation, u64), Unreadable>>, StoreFault> {
    let file = match disk.open_read(path).await {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed("open file", path))?,
    };
    let synced = disk.sync_data(&file).await;
    synced.map_err(|error| StoreFault::Sync { path: path.to_owned(), error })?;
    disk.drop_cache(&file).await.map_err(failed("drop cached pages of file", path))?;
    let len = disk.len(&file).await.map_err(failed("look at file", path))?;
    if len > MAX_LEN {
        let fault = Unreadable::Content(format!("{len} bytes are too many"));
        return Ok(Some(Err(fault)));
    }
    Ok(Some(match read_full(disk, &file, len as usize, 0).await {
        Ok(bytes) => Generation::decode(&bytes).map(|generation| (generation, len)),
        Err(error) => Err(Unreadable::Content(error.to_string())),
    }))
}

pub(super) async fn sync_dir<D: Disk>(disk: &D, dir: &Path) -> Result<(), StoreFault> {
    let synced = disk.sync_dir(dir).await;
    synced.map_err(|error| StoreFault::Sync { path: PathBuf::from(dir), error })
}

#[cfg(test)]
mod tests;
