//! Spare files have the size of a whole segment and were written once, so that the receive
//! role's fdatasync has no metadata to write. They are made in small steps between jobs, or
//! recycled from segments that nobody needs any more.

use super::job::Tended;
use crate::store::append::is_no_space;
use crate::store::disk::Disk;
use crate::store::durable::{failed_sync, write_full};
use crate::store::layout::Layout;
use crate::wal::SegmentSize;
use crate::wal::page::PAGE_SIZE;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use tokio::sync::Mutex;

/// How many are made ahead of need.
const MADE_AHEAD: usize = 1;

/// The most that are kept; further recycled ones are removed.
const MAX_SPARES: usize = 4;

/// Bytes written in one step: few enough that a job can wait for it.
const STEP: u64 = 1 << 20;

/// The spares of a directory. A spare in use is in none of the lists: it is taken out before the
/// first wait.
#[derive(Debug)]
pub(super) struct Spares {
    ready: RefCell<VecDeque<u64>>,
    /// Recycled, but a crash might still give them their WAL names back: their content
    /// stays until the directory is synced.
    unsynced: RefCell<Vec<u64>>,
    next: Cell<u64>,
    /// The spare that is being written under a temporary name, if any. Locked during a step.
    making: Mutex<Option<Making>>,
    /// The disk was full at the last attempt to make one ahead.
    paused: Cell<bool>,
    /// The disk is above its watermark: its space is for WAL.
    unwanted: Cell<bool>,
}

/// A spare that is not whole.
#[derive(Clone, Copy, Debug)]
struct Making {
    number: u64,
    /// How many bytes it has.
    written: u64,
}

impl Spares {
    pub(super) fn new(found: &[u64]) -> Self {
        let next = found.iter().max().map_or(1, |max| max.saturating_add(1));
        // Recovery has synced the directory, so these names are ours.
        Self {
            ready: RefCell::new(found.iter().copied().collect()),
            unsynced: RefCell::default(),
            next: Cell::new(next),
            making: Mutex::new(None),
            paused: Cell::new(false),
            unwanted: Cell::new(false),
        }
    }

    /// A spare, ready for a WAL name: full size, first page zero, synced. When there is none, it
    /// is made on the spot, from the one that is being made ahead if there is one.
    pub(super) async fn take<D: Disk>(
        &self,
        disk: &D,
        layout: &Layout,
        size: SegmentSize,
    ) -> io::Result<(u64, D::File)> {
        self.paused.set(false);
        loop {
            if let Some(spare) = self.take_ready(disk, layout, size).await? {
                return Ok(spare);
            }
            let mut making = self.making.lock().await;
            // The step that was waited for may have been the last.
            if self.has_one() {
                continue;
            }
            let number = loop {
                if let Some(number) = self.make_some(disk, layout, size, &mut making).await? {
                    break number;
                }
            };
            // It is all zeros and synced already, so it needs no preparation.
            return Ok((number, disk.open_write(&layout.spare(number)).await?));
        }
    }

    /// Prepares one that is there.
    async fn take_ready<D: Disk>(
        &self,
        disk: &D,
        layout: &Layout,
        size: SegmentSize,
    ) -> io::Result<Option<(u64, D::File)>> {
        loop {
            let Some(number) = self.pop_ready() else { return Ok(None) };
            match prepare(disk, layout, size, number).await {
                Ok(Some(file)) => return Ok(Some((number, file))),
                Ok(None) => {}
                Err(error) => {
                    self.ready.borrow_mut().push_front(number);
                    return Err(error);
                }
            }
        }
    }

    fn pop_ready(&self) -> Option<u64> {
        self.ready.borrow_mut().pop_front()
    }

    /// Is there one that need not be written first?
    pub(super) fn has_one(&self) -> bool {
        !self.ready.borrow().is_empty()
    }

    /// A spare could not be given its WAL name.
    pub(super) fn give_back(&self, number: u64) {
        self.ready.borrow_mut().push_back(number);
    }

    /// Writes part of a spare, if one is wanted and nobody else is at it.
    pub(super) async fn tend<D: Disk>(
        &self,
        disk: &D,
        layout: &Layout,
        size: SegmentSize,
    ) -> io::Result<Tended> {
        if self.paused.get() || self.unwanted.get() || self.count() >= MADE_AHEAD {
            return Ok(Tended::Idle);
        }
        let Ok(mut making) = self.making.try_lock() else { return Ok(Tended::Idle) };
        match self.make_some(disk, layout, size, &mut making).await {
            Ok(whole) => {
                self.ready.borrow_mut().extend(whole);
                Ok(Tended::More)
            }
            // Room for WAL comes before room for a spare: try again when one is taken.
            Err(error) if is_no_space(&error) => {
                self.paused.set(true);
                Ok(Tended::Idle)
            }
            Err(error) => {
                self.paused.set(true);
                Err(error)
            }
        }
    }

    fn count(&self) -> usize {
        self.ready.borrow().len() + self.unsynced.borrow().len()
    }

    /// The number for a recycled segment, if one more spare is wanted.
    pub(super) fn place_for_recycled(&self) -> Option<u64> {
        (self.count() < MAX_SPARES && !self.unwanted.get()).then(|| self.new_number())
    }

    /// The disk has no room to spare. Removes those that are there, and none is made or kept until
    /// [`welcome`](Self::welcome). Returns how many there were.
    pub(super) async fn give_up_all<D: Disk>(
        &self,
        disk: &D,
        layout: &Layout,
    ) -> io::Result<usize> {
        self.unwanted.set(true);
        let mut gone = 0;
        while self.give_up_one(disk, layout).await?.is_some() {
            gone += 1;
        }
        Ok(gone)
    }

    /// The disk has room again.
    pub(super) fn welcome(&self) {
        self.unwanted.set(false);
    }

    /// May a removed segment become one?
    pub(super) fn are_wanted(&self) -> bool {
        !self.unwanted.get()
    }

    fn new_number(&self) -> u64 {
        self.next.replace(self.next.get() + 1)
    }

    /// Removes a spare, to free its space. Returns its number; `None` when there is none.
    pub(super) async fn give_up_one<D: Disk>(
        &self,
        disk: &D,
        layout: &Layout,
    ) -> io::Result<Option<u64>> {
        while let Some(number) = self.pop_ready() {
            match disk.unlink(&layout.spare(number)).await {
                // Somebody else removed it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => return other.map(|()| Some(number)),
            }
        }
        Ok(None)
    }

    /// A segment was renamed to the spare of this number.
    pub(super) fn recycled(&self, number: u64) {
        self.unsynced.borrow_mut().push(number);
    }

    /// Are there recycled ones that wait for a sync of the directory?
    pub(super) fn wait_for_sync(&self) -> bool {
        !self.unsynced.borrow().is_empty()
    }

    /// Those that a sync of the directory that begins now makes ours. What is recycled during the
    /// sync waits for the next one. After a failed sync they are left to the next start.
    pub(super) fn take_unsynced(&self) -> Vec<u64> {
        self.unsynced.take()
    }

    /// The directory was synced, so these are ours.
    pub(super) fn names_synced(&self, recycled: Vec<u64>) {
        self.ready.borrow_mut().extend(recycled);
        self.paused.set(false);
    }

    /// All of them were moved aside with the rest of `pg_wal`.
    pub(super) async fn clear(&self) {
        self.ready.borrow_mut().clear();
        self.unsynced.borrow_mut().clear();
        *self.making.lock().await = None;
        self.paused.set(false);
    }

    /// Writes one more step of a spare; returns its number when it is whole. On failure
    /// everything written is removed.
    async fn make_some<D: Disk>(
        &self,
        disk: &D,
        layout: &Layout,
        size: SegmentSize,
        making: &mut Option<Making>,
    ) -> io::Result<Option<u64>> {
        let one = making.take();
        let Making { number, written } =
            one.unwrap_or_else(|| Making { number: self.new_number(), written: 0 });
        let path = layout.spare(number);
        let temporary = Layout::temporary(&path);
        match write_step(disk, &temporary, written, size).await {
            Ok(written) if written < size.bytes() => {
                *making = Some(Making { number, written });
                Ok(None)
            }
            Ok(_) => {
                disk.rename(&temporary, &path).await?;
                Ok(Some(number))
            }
            Err(error) => {
                // This frees the space. If it fails too, the next start removes the file.
                drop(disk.unlink(&temporary).await);
                Err(error)
            }
        }
    }
}

/// Clears the first page of a spare. Returns `None` when it is not there, or is none. A file that has
/// another name, too, is somebody's copy, and is not written to.
async fn prepare<D: Disk>(
    disk: &D,
    layout: &Layout,
    size: SegmentSize,
    number: u64,
) -> io::Result<Option<D::File>> {
    let path = layout.spare(number);
    let opened = match disk.has_other_names(&path).await {
        Ok(true) => {
            disk.unlink(&path).await?;
            return Ok(None);
        }
        Ok(false) => disk.open_write(&path).await,
        Err(error) => Err(error),
    };
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if disk.len(&file).await? != size.bytes() {
        disk.unlink(&path).await?;
        return Ok(None);
    }
    write_full(disk, &file, vec![0; PAGE_SIZE], 0).await?;
    disk.sync_data(&file).await.map_err(failed_sync)?;
    Ok(Some(file))
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
