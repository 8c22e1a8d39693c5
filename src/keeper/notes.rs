//! What was decided, or found, about the upstream while the hub ran. It is on disk before it
//! takes effect.

use super::job::Note;
use super::work::Keeper;
use crate::store::cut::read_seams;
use crate::store::disk::Disk;
use crate::store::durable::{failed_sync, remove};
use std::io;

impl<D: Disk> Keeper<D> {
    /// Replaces a note, or removes it. A full disk must not delay a failover.
    pub(super) async fn save_note(&self, note: Note, bytes: Option<Vec<u8>>) -> io::Result<()> {
        let path = match note {
            Note::Fence => self.layout.fence(),
            Note::Upstream => self.layout.auto(),
            Note::Evidence => self.layout.evidence(),
            Note::Abandoned => self.layout.abandoned(),
            Note::Seams => self.layout.seams(),
            Note::Scrub => self.layout.scrub(),
        };
        match bytes {
            Some(bytes) => self.replace_making_room(&path, bytes).await?,
            None => {
                remove(&self.disk, &path).await?;
                self.disk.sync_dir(self.layout.root()).await.map_err(failed_sync)?;
            }
        }
        if note == Note::Seams {
            self.let_go(&read_seams(&self.disk, &self.layout).await?).await;
        }
        Ok(())
    }
}
