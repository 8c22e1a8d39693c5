//! The digests of complete segments. They are computed in the background, a piece at a time, from
//! what is in the file by then. Those of segments that were removed stay, the newest of them: what
//! comes from the archive is compared with them.
//!
//! A digest is of one file's bytes. So it is forgotten, durably, before a file of that name is
//! written again or comes from the archive without being what the digest says. A removal need not be
//! durable at once: `gone` knows which are not. A segment from the archive gets no digest but the one
//! that it had: it was not received here.

use super::hashing::{DigestReason, UnfinishedDigest};
use super::job::Tended;
use super::work::Keeper;
use crate::store::append::is_no_space;
use crate::store::digest::{self, BlockHasher, DigestFile, ScannedWal, SegmentDigest, SegmentScan};
use crate::store::disk::Disk;
use crate::store::durable::{failed_sync, read_full};
use crate::wal::walk::WalkFault;
use crate::wal::{SegmentContents, SegmentName, SegmentSize};
use std::io;
use std::time::SystemTime;
use tracing::{debug, error, warn};

/// Bytes hashed in one step: few enough that a commit can wait for it, also where the CPU has no
/// instructions for it.
const STEP: u64 = 256 << 10;

/// So many removed digests wait for a sync of their directory.
const MOST_GONE: usize = 64;

/// So many digests of removed segments are kept.
pub(super) const MOST_REMOVED: usize = 4096;

impl<D: Disk> Keeper<D> {
    /// Other bytes come under this name. Afterwards no digest of it is there, durably.
    pub(super) async fn forget_digest(&self, name: SegmentName) -> io::Result<()> {
        self.holds.scrub.forget(name);
        self.remove_digest(name).await
    }

    /// The digest is not of what is going to be there. Afterwards there is none, durably.
    pub(super) async fn remove_digest(&self, name: SegmentName) -> io::Result<()> {
        digest::forget(&self.disk, &self.layout, name).await?;
        match self.digests.gone.borrow().contains(&(name.tli, name.no)) {
            true => {}
            false => return Ok(()),
        }
        self.sync_gone_digests().await.map_err(failed_sync)
    }

    /// The segment goes, and so does its digest. One that stays is harmless: see
    /// [`forget_digest`](Self::forget_digest).
    pub(super) async fn discard_digest(&self, name: SegmentName) {
        self.holds.scrub.forget(name);
        self.digests.gone.borrow_mut().insert((name.tli, name.no));
        if let Err(error) = digest::discard(&self.disk, &self.layout, name).await {
            warn!("could not remove the digest of WAL segment {name}: {error}");
        }
    }

    /// The segment goes, and its digest stays among those of removed ones.
    pub(super) async fn retire_digest(&self, name: SegmentName) {
        self.holds.scrub.forget(name);
        self.digests.gone.borrow_mut().insert((name.tli, name.no));
        match digest::retire(&self.disk, &self.layout, name).await {
            Ok(true) => {
                if let Some(removed) = &mut *self.digests.removed.borrow_mut() {
                    removed.insert((name.no, name.tli));
                }
            }
            Ok(false) => {}
            Err(error) => {
                warn!("could not keep the digest of WAL segment {name}: {error}");
                self.discard_digest(name).await;
            }
        }
    }

    /// The segment comes back from the archive with the bytes that its digest is of.
    pub(super) async fn bring_digest_back(&self, name: SegmentName) {
        if let Some(removed) = &mut *self.digests.removed.borrow_mut() {
            removed.remove(&(name.no, name.tli));
        }
        self.digests.gone.borrow_mut().insert((name.tli, name.no));
        if let Err(error) = digest::bring_back(&self.disk, &self.layout, name).await {
            warn!("could not use the digest of WAL segment {name} again: {error}");
        }
    }

    /// Removes the oldest digest of a removed segment when there are too many.
    async fn tend_removed(&self, size: SegmentSize) -> io::Result<Tended> {
        if self.digests.removed.borrow().is_none() {
            let names = digest::list_removed(&self.disk, &self.layout, size).await?;
            let names = names.into_iter().map(|name| (name.no, name.tli)).collect();
            self.digests.removed.replace(Some(names));
        }
        let oldest = match &mut *self.digests.removed.borrow_mut() {
            Some(removed) if removed.len() > MOST_REMOVED => removed.pop_first(),
            Some(_) | None => None,
        };
        let Some((no, tli)) = oldest else { return Ok(Tended::Idle) };
        self.digests.gone.borrow_mut().insert((tli, no));
        digest::drop_removed(&self.disk, &self.layout, SegmentName { tli, no, size }).await?;
        Ok(Tended::More)
    }

    async fn sync_gone_digests(&self) -> io::Result<()> {
        let gone = self.digests.gone.take();
        let synced = digest::sync_names(&self.disk, &self.layout).await;
        synced.inspect_err(|_| self.digests.gone.borrow_mut().extend(gone))
    }

    /// One step: syncs what was removed, or reads a piece of a segment and writes its digest after
    /// the last one. A segment that cannot be read stays without one.
    pub(super) async fn tend_digests(&self) -> io::Result<Tended> {
        if self.digests.gone.borrow().len() >= MOST_GONE {
            self.sync_gone_digests().await?;
        }
        if let Some(size) = self.size.get()
            && self.tend_removed(size).await? == Tended::More
        {
            return Ok(Tended::More);
        }
        let under_way = self.digests.under_way.take();
        let under_way = under_way.filter(|one| one.line == self.line() && self.is_here(one.name));
        let mut one = match under_way {
            Some(one) => one,
            None => match self.begin_digest().await {
                Some(one) => one,
                None if self.digests.waiting.borrow().is_empty() => return Ok(Tended::Idle),
                None => return Ok(Tended::More),
            },
        };
        let (at, size) = (one.scan.fed(), one.name.size.bytes());
        let len = STEP.min(size - at) as usize;
        match read_full(&self.disk, &one.file, len, at).await {
            Ok(piece) if piece.len() == len => one.scan.feed(&piece),
            Ok(_) => {
                self.say_unreadable(
                    one.name.tli,
                    one.name.no,
                    &io::ErrorKind::UnexpectedEof.into(),
                );
                return Ok(Tended::More);
            }
            Err(error) => {
                self.say_unreadable(one.name.tli, one.name.no, &error);
                return Ok(Tended::More);
            }
        }
        match one.scan.fed() == size {
            true => self.write_digest(one).await,
            false => *self.digests.under_way.borrow_mut() = Some(one),
        }
        Ok(Tended::More)
    }

    /// Opens the next segment, if it is still there.
    async fn begin_digest(&self) -> Option<UnfinishedDigest<D::File>> {
        let next = self.digests.waiting.borrow_mut().pop_first();
        let ((tli, no), reason) = next?;
        let name = self.name(tli, no).ok().filter(|name| self.is_here(*name))?;
        let line = self.line();
        // A segment that somebody has open is not recycled, so these bytes stay as they are.
        let file = match self.open(tli, no).await {
            Ok(file) => file,
            Err(error) => {
                self.say_unreadable(tli, no, &error);
                return None;
            }
        };
        let system_id = self.cluster.borrow().as_ref().map(|cluster| cluster.system_id)?;
        let scan = SegmentScan::begin(&self.disk, &self.layout, system_id, name).await;
        let completed = match reason {
            DigestReason::Completed(at) => Some(at),
            DigestReason::Found => self.completed_at(name).await.ok(),
        };
        let now = (self.clock)().time_of_day;
        let completed = completed.map(|at| at.min(now));
        Some(UnfinishedDigest { name, reason, completed, line, file, scan })
    }

    /// When a segment was completed: by its digest, or else its file's time, which a repair or a copy
    /// changes.
    pub(super) async fn completed_at(&self, name: SegmentName) -> io::Result<SystemTime> {
        let path = self.layout.segment(name);
        let written = self.disk.modified(&path).await?;
        let known = self.known_digest(name).await.and_then(|digest| digest.completed);
        Ok(known.unwrap_or(written))
    }

    async fn known_digest(&self, name: SegmentName) -> Option<SegmentDigest> {
        match digest::read(&self.disk, &self.layout, name).await {
            Ok(DigestFile::Known(digest)) => Some(*digest),
            Ok(DigestFile::Missing | DigestFile::Unreadable(_)) | Err(_) => None,
        }
    }

    /// What a segment says, with the epoch of its transaction IDs from the segment before it when it
    /// names none itself.
    async fn with_epoch(&self, name: SegmentName, contents: SegmentContents) -> SegmentContents {
        if contents.next_xid.is_some_and(|next| next.epoch.is_some()) {
            return contents;
        }
        let before = name.no.previous().map(|no| SegmentName { no, ..name });
        let before = before.filter(|before| self.is_here(*before));
        let Some(before) = before else { return contents };
        let known = self.known_digest(before).await.and_then(|digest| digest.contents);
        let Some(known) = known else { return contents };
        SegmentContents { next_xid: known.and(contents).next_xid, ..contents }
    }

    /// Bytes that are no whole WAL do not become the truth: there is no digest of them. The scrub, which
    /// knows what comes before and after, looks at the segment next.
    async fn leave_to_scrub(&self, name: SegmentName, reason: DigestReason, fault: WalkFault) {
        let had_one = !matches!(
            digest::read(&self.disk, &self.layout, name).await,
            Ok(DigestFile::Missing) | Err(_)
        );
        if had_one && let Err(error) = self.remove_digest(name).await {
            warn!("could not remove the digest of WAL segment {name}: {error}");
            return;
        }
        // Else the scrub has just seen it, without one, and found nothing wrong.
        if had_one || matches!(reason, DigestReason::Completed(_)) {
            warn!("WAL segment {name} gets no digest before it was verified: {fault}");
            self.holds.scrub.look_at(name);
        }
    }

    async fn write_digest(&self, one: UnfinishedDigest<D::File>) {
        let UnfinishedDigest { name, reason, completed, scan, .. } = one;
        let system_id = self.cluster.borrow().as_ref().map(|cluster| cluster.system_id);
        let (blocks, wal) = scan.finish();
        let contents = match wal {
            ScannedWal::Whole(contents) => contents,
            ScannedWal::Unknown => SegmentContents::default(),
            ScannedWal::Damaged(fault) => return self.leave_to_scrub(name, reason, fault).await,
        };
        let digest = system_id.and_then(|system_id| blocks.of_segment(system_id, name, completed));
        let Some(mut digest) = digest else { return };
        digest.contents = Some(self.with_epoch(name, contents).await);
        if !self.is_here(name) {
            return;
        }
        match digest::store(&self.disk, &self.layout, &digest).await {
            Ok(()) => {}
            Err(error) if is_no_space(&error) => {
                debug!("no space for the digest of WAL segment {name}: {error}");
            }
            Err(error) => warn!("could not write the digest of WAL segment {name}: {error}"),
        }
        // It may have been removed meanwhile.
        if !self.is_here(name) {
            self.discard_digest(name).await;
        }
    }

    /// A file that is none of those that the hub knows: somebody has copied a missing segment back. It
    /// has to be what the digest of ours says, if there is one.
    ///
    /// # Errors
    /// [`InvalidData`](io::ErrorKind::InvalidData) when it is not; the operating system's error.
    pub(super) async fn check_returned(&self, name: SegmentName, file: &D::File) -> io::Result<()> {
        let known = digest::read_removed(&self.disk, &self.layout, name).await?;
        let DigestFile::Known(digest) = known else { return Ok(()) };
        let (mut hasher, size) = (BlockHasher::default(), name.size.bytes());
        while hasher.fed() < size {
            let len = STEP.min(size - hasher.fed()) as usize;
            let piece = read_full(&self.disk, file, len, hasher.fed()).await?;
            hasher.feed(&piece);
            if piece.len() < len {
                break;
            }
        }
        let differing = digest.differing(&hasher.finish());
        let Some((from, to)) = differing.first() else { return Ok(()) };
        error!(
            "WAL segment {name} was copied back, and is another than the hub had: from {from} to \
             {to} it is not what its digest says; nothing of it is served"
        );
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("WAL segment {name} is not what its digest says"),
        ))
    }

    /// Is the segment here, complete and not about to go?
    pub(super) fn is_here(&self, name: SegmentName) -> bool {
        let SegmentName { tli, no, .. } = name;
        self.complete.contains(tli, no) || self.restored.contains(tli, no)
    }
}

#[cfg(test)]
#[cfg(not(walhub_loom))]
mod tests;
