//! The end of a file that was set aside. It goes only if it is the one that was seen, and no symbolic
//! link is followed on the way to it: not even one that takes the place of a folder meanwhile.

use super::{AsideFile, FileMark, found};
use crate::store::layout::Layout;
use crate::store::plain_disk::PlainDisk;
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path};

/// What became of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileRemoval {
    /// It is gone.
    Gone,
    /// Another file has its name, or it was changed: it stays.
    Changed,
}

/// What became of a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FolderRemoval {
    /// It is gone.
    Gone,
    /// Something is in it.
    Stays,
}

/// Removes a file if it is still the one that was seen.
///
/// # Errors
/// The operating system's error.
pub fn remove_file(layout: &Layout, file: &AsideFile) -> io::Result<FileRemoval> {
    let Some((folder, name)) = found(open_parent(layout, &file.path))? else {
        return Ok(FileRemoval::Gone);
    };
    let looked = rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW);
    let Some(stat) = found(looked.map_err(io::Error::from))? else {
        return Ok(FileRemoval::Gone);
    };
    let below = file.path.strip_prefix(&*file.aside).unwrap_or(&file.path);
    let len = u64::try_from(stat.st_size).unwrap_or_default();
    let changed = (stat.st_ctime, stat.st_ctime_nsec.cast_signed());
    let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    if !is_file || FileMark::of(below, len, changed) != file.mark {
        return Ok(FileRemoval::Changed);
    }
    found(rustix::fs::unlinkat(&folder, name, AtFlags::empty()).map_err(io::Error::from))?;
    Ok(FileRemoval::Gone)
}

/// Removes a folder below the hub's directory if nothing is in it.
///
/// # Errors
/// The operating system's error.
pub fn remove_folder(layout: &Layout, path: &Path) -> io::Result<FolderRemoval> {
    let Some((folder, name)) = found(open_parent(layout, path))? else {
        return Ok(FolderRemoval::Gone);
    };
    match rustix::fs::unlinkat(&folder, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(FolderRemoval::Gone),
        Err(rustix::io::Errno::NOTEMPTY | rustix::io::Errno::EXIST) => Ok(FolderRemoval::Stays),
        Err(error) => Err(error.into()),
    }
}

/// Opens the directory of a name below the hub's directory, one component after the other. The hub's
/// directory and `pg_wal` may themselves be links.
fn open_parent<'p>(layout: &Layout, path: &'p Path) -> io::Result<(OwnedFd, &'p OsStr)> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name),
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        }
    }
    let name = names.pop().ok_or(io::ErrorKind::InvalidInput)?;
    let (start, names) = match names.split_first() {
        Some((first, rest)) if *first == "pg_wal" => (layout.wal(), rest),
        _ => (layout.root(), names.as_slice()),
    };
    let mut folder = PlainDisk::open_dir(start)?;
    for name in names {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        folder = rustix::fs::openat(&folder, *name, flags, Mode::empty())?;
    }
    Ok((folder, name))
}
