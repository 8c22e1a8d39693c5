//! The end of what was set aside: an operator has confirmed that nobody needs it, and
//! `--keep-set-aside` has passed since while the hub ran. One file goes in a step.

use super::asides::Expiry;
use super::gate::FinalStep;
use super::job::Tended;
use super::work::Keeper;
use crate::store::asides::{
    AsideFile, AsideWalk, Confirmations, FileMark, FileRemoval, FolderRemoval, NAMES_A_STEP,
    SeenAside, SeenKind, read_confirmed, remove_file, remove_folder,
};
use crate::store::disk::{Disk, parent};
use crate::store::durable::replace_durably;
use crate::store::now::Now;
use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use tracing::{error, info, warn};

impl<D: Disk> Keeper<D> {
    /// Reads what was confirmed. Without it nothing is removed, so a file that cannot be read keeps
    /// no hub from starting.
    pub(super) async fn load_confirmed(&self) {
        let now = (self.clock)();
        match read_confirmed(&self.disk, &self.layout).await {
            Ok(confirmed) => self.asides.set_confirmed(confirmed, now),
            Err(fault) => warn!("{fault}; nothing that was set aside counts as confirmed"),
        }
        self.asides.count(now);
    }

    /// Confirms all files of what was set aside under this name, as they were seen last.
    pub(super) async fn confirm_aside(&self, name: &str) -> io::Result<()> {
        let now = (self.clock)();
        let known = self.holds.asides.known();
        let known =
            known.ok_or_else(|| io::Error::other("nothing was looked at yet: ask again"))?;
        let unknown = || io::Error::other(format!("nothing called \"{name}\" was set aside"));
        let seen = known.get(name).ok_or_else(unknown)?;
        self.asides.count(now);
        let before = self.asides.confirmed();
        let mut confirmed = (*before).clone();
        let added = confirmed.confirm(name, &seen.files, now.time_of_day);
        let added = added.map_err(io::Error::other)?;
        if confirmed == *before {
            return Ok(());
        }
        self.replace_making_room(&self.layout.confirmed(), confirmed.encode()).await?;
        info!("confirmed, by walhub ctl: nobody needs \"{name}\" any more ({added} more files)");
        self.asides.set_confirmed(confirmed, now);
        self.holds.asides.judge(name, &self.asides.confirmed());
        Ok(())
    }

    /// Counts the time since the last look, and writes it down now and then.
    pub(super) async fn count_confirmed(&self, now: Now) {
        self.asides.count(now);
        if self.asides.take_save_due(now)
            && let Err(error) = self.save_confirmed(&self.asides.confirmed()).await
        {
            warn!("could not write down for how long confirmed files were kept: {error}");
        }
    }

    async fn save_confirmed(&self, confirmed: &Confirmations) -> io::Result<()> {
        replace_durably(&self.disk, &self.layout.confirmed(), confirmed.encode()).await
    }

    /// Removes one file whose time is up, or looks for such files.
    pub(super) async fn expire_a_step(&self, now: Now) -> Tended {
        let under_way = self.asides.expiry.take();
        let Some(mut expiry) = under_way.or_else(|| self.begin_expiry(now)) else {
            return Tended::Idle;
        };
        if let Some(file) = expiry.files.pop() {
            self.expire_file(&mut expiry, file).await;
        } else if let Some(walk) = expiry.walk.take() {
            if let Err(error) = self.find_expired(&mut expiry, walk).await {
                warn!("could not look at what is in \"{}\": {error}", expiry.name);
                expiry.failed += 1;
            }
        } else if let Some(folder) = expiry.folders.pop() {
            self.expire_folder(&mut expiry, folder).await;
        } else {
            self.end_expiry(expiry, now).await;
            return Tended::More;
        }
        self.asides.expiry.replace(Some(expiry));
        Tended::More
    }

    fn begin_expiry(&self, now: Now) -> Option<Expiry> {
        let keep = self.policy.keep_set_aside;
        let confirmed = self.asides.confirmed();
        let mut all = confirmed.due(keep).filter(|_| !keep.is_zero());
        let due = all.find(|due| !self.asides.is_put_off(due.number, now))?;
        self.gate(&FinalStep::ExpireAside(due)).ok().map(drop)?;
        let name = due.name.clone();
        let whole = self.layout.root().join(&name);
        Some(Expiry {
            number: due.number,
            walk: Some(AsideWalk::over_one(&self.layout, &name)),
            files: Vec::new(),
            folders: Vec::new(),
            to_sync: BTreeSet::from([parent(&whole).to_owned()]),
            gone: 0,
            bytes: 0,
            failed: 0,
            name,
        })
    }

    /// Looks at so many names. What no confirmation covers whose time is up is passed over.
    async fn find_expired(&self, expiry: &mut Expiry, walk: AsideWalk) -> io::Result<()> {
        let step = self.disk.apart(move || walk.step(NAMES_A_STEP)).await?;
        let Some((rest, seen)) = step.transpose()? else { return Ok(()) };
        expiry.walk = rest;
        for SeenAside { aside, path, kind, .. } in seen {
            match kind {
                SeenKind::Folder => expiry.folders.push(path),
                SeenKind::File { bytes, mark } if self.has_expired(&aside, mark) => {
                    expiry.files.push(AsideFile { aside, path, bytes, mark });
                }
                SeenKind::File { .. } | SeenKind::Other { .. } => {}
            }
        }
        Ok(())
    }

    /// Is a file confirmed, and its time up?
    pub(super) fn has_expired(&self, aside: &str, mark: FileMark) -> bool {
        let keep = self.policy.keep_set_aside;
        let counted = self.asides.confirmed().of(aside, mark);
        !keep.is_zero() && counted.is_some_and(|counted| counted >= keep)
    }

    async fn expire_file(&self, expiry: &mut Expiry, file: AsideFile) {
        let Ok(_leave) = self.gate(&FinalStep::ExpireFile(&file)) else { return };
        let whole = self.layout.root().join(&file.path);
        let (layout, bytes) = (self.layout.clone(), file.bytes);
        let removed = self.disk.apart(move || remove_file(&layout, &file)).await;
        match removed.and_then(Option::transpose) {
            Ok(Some(FileRemoval::Gone)) => {
                expiry.gone += 1;
                expiry.bytes += bytes;
                expiry.to_sync.insert(parent(&whole).to_owned());
            }
            Ok(Some(FileRemoval::Changed)) => {
                warn!("\"{}\" has changed since it was confirmed, and stays", whole.display());
            }
            Ok(None) => expiry.failed += 1,
            Err(error) => {
                warn!("could not remove \"{}\", which was set aside: {error}", whole.display());
                expiry.failed += 1;
            }
        }
    }

    /// A folder goes only when nothing is in it.
    async fn expire_folder(&self, expiry: &mut Expiry, folder: PathBuf) {
        let whole = self.layout.root().join(&folder);
        let layout = self.layout.clone();
        let removed = self.disk.apart(move || remove_folder(&layout, &folder)).await;
        match removed.and_then(Option::transpose) {
            Ok(Some(FolderRemoval::Gone)) => drop(expiry.to_sync.remove(&whole)),
            Ok(Some(FolderRemoval::Stays) | None) => {}
            Err(error) => {
                warn!("could not remove \"{}\", which was set aside: {error}", whole.display());
            }
        }
    }

    /// The removals are durable before the confirmation goes: nothing comes back without it.
    async fn end_expiry(&self, expiry: Expiry, now: Now) {
        let Expiry { number, name, to_sync, gone, bytes, failed, .. } = expiry;
        self.asides.note_move();
        for folder in to_sync {
            match self.disk.sync_dir(&folder).await {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    error!(
                        "could not sync \"{}\": {error}; nothing more that was set aside is \
                         removed before the next start",
                        folder.display()
                    );
                    return self.asides.stop();
                }
                Ok(()) => {}
            }
        }
        info!("removed {gone} files, {bytes} bytes, of \"{name}\", which was set aside");
        if failed > 0 {
            return self.asides.put_off(number, now);
        }
        let mut confirmed = (*self.asides.confirmed()).clone();
        confirmed.end(number);
        match self.save_confirmed(&confirmed).await {
            Ok(()) => self.asides.set_confirmed(confirmed, now),
            Err(error) => {
                warn!("could not write down that \"{name}\" is gone: {error}");
                self.asides.put_off(number, now);
            }
        }
    }
}

#[cfg(test)]
#[cfg(not(walhub_loom))]
mod tests;
