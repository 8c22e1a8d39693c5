//! Spare files have the size of a whole segment and were written once, so that the receive
//! role's fdatasync has no metadata to write. They are made in small steps between jobs, or
//! recycled from segments that nobody needs any more.

use super::work::Tended;
use crate::store::append::is_no_space;
use crate::store::disk::Disk;
use crate::store::durable::failed_sync;
use crate::store::durable::write_full;
use crate::store::layout::Layout;
use crate::wal::SegmentSize;
use crate::wal::page::PAGE_SIZE;
use std::collections::VecDeque;
use std::io;

/// How many are made ahead of need.
const MADE_AHEAD: usize = 1;

/// The most that are kept; further recycled ones are removed.
const MAX_SPARES: usize = 4;

/// Bytes written in one step: few enough that a job can wait for it.
const STEP: u64 = 1 << 20;

/// The spares of a directory.
#[derive(Debug)]
pub(super) struct Spares {
    ready: VecDeque<u64>,
    /// Recycled, but a crash might still give them their WAL names back: their content
    /// stays until the directory is synced.
    unsynced: Vec<u64>,
    next: u64,
    /// A spare that is being written under a temporary name, and how many bytes it has.
    making: Option<(u64, u64)>,
    /// The disk was full at the last attempt to make one ahead.
    paused: bool,
}

impl Spares {
    pub(super) fn new(found: &[u64]) -> Self {
        let next = found.iter().max().map_or(1, |max| max.saturating_add(1));
        // Recovery has synced the directory, so these names are ours.
        Self {
            ready: found.iter().copied().collect(),
            unsynced: Vec::new(),
            next,
            making: None,
            paused: false,
        }
    }

    /// A spare, ready for a WAL name: full size, first page zero, synced. It is made on the spot
    /// when there is none.
    pub(super) async fn take<D: Disk>(
        &mut self,
        disk: &D,
        layout: &Layout,
        size: SegmentSize,
    ) -> io::Result<(u64, D::File)> {
        while let Some(number) = self.ready.front().copied() {
            let path = layout.spare(number);
            let file = match disk.open_write(&path).await {
                Ok(file) if disk.len(&file).await? == size.bytes() => file,
                Ok(_) => {
                    self.ready.pop_front();
                    disk.unlink(&path).await?;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.ready.pop_front();
                    continue;
                }
                Err(error) => return Err(error),
            };
            write_full(disk, &file, vec![0; PAGE_SIZE], 0).await?;
            disk.sync_data(&file).await.map_err(failed_sync)?;
            self.ready.pop_front();
            self.paused = false;
            return Ok((number, file));
        }
        self.paused = false;
        loop {
            match self.make_some(disk, layout, size).await? {
                Made::Part => {}
                Made::Whole => {
                    // It is all zeros and synced already, so it needs no preparation.
                    let number = self.ready.pop_back().unwrap_or_default();
                    return Ok((number, disk.open_write(&layout.spare(number)).await?));
                }
            }
        }
    }

    /// Is there one that need not be written first?
    pub(super) fn has_one(&self) -> bool {
        !self.ready.is_empty()
    }

    /// A spare could not be given its WAL name.
    pub(super) fn give_back(&mut self, number: u64) {
        self.ready.push_back(number);
    }

    /// Writes part of a spare, if one is wanted.
    pub(super) async fn tend<D: Disk>(
        &mut self,
        disk: &D,
        layout: &Layout,
        size: SegmentSize,
    ) -> io::Result<Tended> {
        if self.paused || self.ready.len() + self.unsynced.len() >= MADE_AHEAD {
            return Ok(Tended::Idle);
        }
        match self.make_some(disk, layout, size).await {
            Ok(_) => Ok(Tended::More),
            // Room for WAL comes before room for a spare: try again when one is taken.
            Err(error) if is_no_space(&error) => {
                self.paused = true;
                Ok(Tended::Idle)
            }
            Err(error) => {
                self.paused = true;
                Err(error)
            }
        }
    }

    /// The number for a recycled segment, if one more spare is wanted.
    pub(super) fn place_for_recycled(&mut self) -> Option<u64> {
        if self.ready.len() + self.unsynced.len() >= MAX_SPARES {
            return None;
        }
        let number = self.next;
        self.next += 1;
        Some(number)
    }

    /// Removes a spare, if there is one, to free its space.
    pub(super) async fn give_up_one<D: Disk>(
        &mut self,
        disk: &D,
        layout: &Layout,
    ) -> io::Result<()> {
        match self.ready.pop_front() {
            Some(number) => disk.unlink(&layout.spare(number)).await,
            None => Ok(()),
        }
    }

    /// A segment was renamed to the spare of this number.
    pub(super) fn recycled(&mut self, number: u64) {
        self.unsynced.push(number);
    }

    /// The directory was synced, so recycled files are ours.
    pub(super) fn names_synced(&mut self) {
        self.ready.extend(self.unsynced.drain(..));
        self.paused = false;
    }

    /// Writes one more step of a spare; on failure everything written is removed.
    async fn make_some<D: Disk>(
        &mut self,
        disk: &D,
        layout: &Layout,
        size: SegmentSize,
    ) -> io::Result<Made> {
        let (number, written) = self.making.unwrap_or_else(|| {
            self.next += 1;
            (self.next - 1, 0)
        });
        let path = layout.spare(number);
        let temporary = Layout::temporary(&path);
        self.making = None;
        match write_step(disk, &temporary, written, size).await {
            Ok(written) if written < size.bytes() => {
                self.making = Some((number, written));
                Ok(Made::Part)
            }
            Ok(_) => {
                disk.rename(&temporary, &path).await?;
                self.ready.push_back(number);
                Ok(Made::Whole)
            }
            Err(error) => {
                // This frees the space. If it fails too, the next start removes the file.
                drop(disk.unlink(&temporary).await);
                Err(error)
            }
        }
    }
}

enum Made {
    Part,
    Whole,
}

/// Writes zeros from `written` on and returns how long the file is now; the last step syncs.
async fn write_step<D: Disk>(
    disk: &D,
    path: &std::path::Path,
    written: u64,
    size: SegmentSize,
) -> io::Result<u64> {
    let file = if written == 0 { disk.create(path).await? } else { disk.open_write(path).await? };
    let len = STEP.min(size.bytes() - written);
    write_full(disk, &file, vec![0; len as usize], written).await?;
    if written + len == size.bytes() {
        // A file that could not be synced is thrown away, so here a full disk is only that.
        disk.sync_data(&file).await?;
    }
    Ok(written + len)
}
