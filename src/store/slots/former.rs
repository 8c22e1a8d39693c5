//! What earlier versions wrote: a file for each slot, `slots/<name>`.

use super::files::sync_dir;
use super::name::SlotName;
use super::record::{SlotRecord, SlotText};
use crate::store::StoreFault;
use crate::store::disk::Disk;
use crate::store::durable::read_small;
use crate::store::fault::failed;
use crate::store::layout::{Layout, TEMPORARY};
use crate::store::sealed_text::{Unreadable, unseal};
use std::io;

const KIND: &str = "slot";
const VERSION: u32 = 1;

/// The slots that have a file of their own; none when there is no such directory. An earlier start
/// may have been cut off after it removed some of them: that becomes durable before anything is
/// changed that they would be taken to be newer than.
///
/// # Errors
/// Fails when one cannot be read: it might keep WAL.
pub async fn read_former<D: Disk>(
    disk: &D,
    layout: &Layout,
) -> Result<Vec<SlotRecord>, StoreFault> {
    let folder = layout.former_slots();
    let names = match disk.list(&folder).await {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed("list directory", &folder))?,
    };
    sync_dir(disk, &folder).await?;
    let mut records = Vec::new();
    for name in names {
        let path = folder.join(&name);
        if name.ends_with(TEMPORARY) {
            disk.unlink(&path).await.map_err(failed("remove file", &path))?;
            continue;
        }
        let Ok(name) = SlotName::parse(&name) else { continue };
        let bytes = read_small(disk, &path).await.map_err(failed("read file", &path))?;
        let record = decode(&bytes.unwrap_or_default(), &name);
        records.push(record.map_err(|fault| StoreFault::Unreadable { path, fault })?);
    }
    Ok(records)
}

/// Removes the files of these slots, durably. The directory stays.
pub async fn remove_former<D: Disk>(
    disk: &D,
    layout: &Layout,
    records: &[SlotRecord],
) -> Result<(), StoreFault> {
    let folder = layout.former_slots();
    for record in records {
        let path = folder.join(record.name.as_str());
        disk.unlink(&path).await.map_err(failed("remove file", &path))?;
    }
    sync_dir(disk, &folder).await
}

fn decode(bytes: &[u8], name: &SlotName) -> Result<SlotRecord, Unreadable> {
    let record = unseal::<SlotText>(KIND, VERSION, bytes)?.parse()?;
    match record.name == *name {
        true => Ok(record),
        false => Err(Unreadable::Content(format!("is slot \"{}\"", record.name))),
    }
}
