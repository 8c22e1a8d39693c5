//! The WAL archive: what `restore_command` brings, what `archive_command` takes away.

pub mod shell;
pub mod template;
