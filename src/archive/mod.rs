//! The WAL archive: what `restore_command` fetches and `archive_command` stores.

pub mod another;
pub mod check;
pub mod copies;
pub mod prove;
pub mod restore;
pub mod shell;
pub mod template;
