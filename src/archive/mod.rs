//! The WAL archive: what `restore_command` brings, what `archive_command` takes away.

pub mod check;
pub mod restore;
pub mod shell;
pub mod template;
