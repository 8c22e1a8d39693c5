//! What was decided, or found, about the upstream while the hub ran. It is on disk before it
//! takes effect.

use super::job::Note;
use super::work::Keeper;
use crate::store::append::is_no_space;
use crate::store::disk::Disk;
use crate::store::durable::failed_sync;
use crate::store::durable::replace_durably;
use std::io;

impl<D: Disk> Keeper<D> {
    /// Replaces a note, or removes it. A full disk must not delay a failover, so removing a
    /// spare makes room.
    pub(super) async fn save_note(&self, note: Note, bytes: Option<Vec<u8>>) -> io::Result<()> {
        let path = match note {
            Note::Fence => self.layout.fence(),
            Note::Upstream => self.layout.auto(),
            Note::Evidence => self.layout.evidence(),
        };
        let Some(bytes) = bytes else {
            match self.disk.unlink(&path).await {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
            return self.disk.sync_dir(self.layout.root()).await.map_err(failed_sync);
        };
        match replace_durably(&self.disk, &path, bytes.clone()).await {
            Err(error) if is_no_space(&error) => {
                self.spares.give_up_one(&self.disk, &self.layout).await?;
                replace_durably(&self.disk, &path, bytes).await
            }
            other => other,
        }
    }
}
