//! What the hub refuses, in PostgreSQL's words and SQLSTATEs wherever it has some.

use crate::cluster::instance::InstanceId;
use crate::wal::{Lsn, SegmentName, TimelineId};
use crate::wire::refusal::Refusal;
use crate::wire::sqlstate;

/// No WAL, and perhaps no cluster, is known yet. libpq goes to the next host.
pub fn starting_up() -> Refusal {
    Refusal::fatal(sqlstate::CANNOT_CONNECT_NOW, "the database system is starting up")
}

/// The hub is shutting down.
pub fn shutting_down() -> Refusal {
    Refusal::fatal(sqlstate::CANNOT_CONNECT_NOW, "the database system is shutting down")
}

/// The hub is shutting down, which ends this connection.
pub fn administrator_command() -> Refusal {
    Refusal::fatal(sqlstate::ADMIN_SHUTDOWN, "terminating connection due to administrator command")
}

/// A client asked for an ordinary connection.
pub fn not_a_database() -> Refusal {
    Refusal::fatal(sqlstate::FEATURE_NOT_SUPPORTED, "walhub serves replication connections only")
        .with_detail("This is a WAL hub; there is no database behind this port.")
        .with_hint(
            "Connect to the PostgreSQL server itself for SQL. Replication clients use \
             \"replication=true\".",
        )
}

/// All of `max_wal_senders` are taken; 17 and later quote the setting.
pub fn too_many_senders(max: usize, server_major: u32) -> Refusal {
    let name = quoted("max_wal_senders", server_major);
    Refusal::fatal(
        sqlstate::TOO_MANY_CONNECTIONS,
        format!("number of requested standby connections exceeds {name} (currently {max})"),
    )
}

/// Too many connections have not yet said what they want.
pub fn too_many_clients() -> Refusal {
    Refusal::fatal(sqlstate::TOO_MANY_CONNECTIONS, "sorry, too many clients already")
}

/// A hub in our own path wants our WAL.
pub fn loop_below(client: InstanceId) -> Refusal {
    Refusal::fatal(
        sqlstate::OBJECT_NOT_IN_PREREQUISITE_STATE,
        format!("walhub instance {client} cannot receive from this hub"),
    )
    .with_detail("It is this hub itself, or this hub gets its WAL through it: a loop.")
    .with_hint("Point primary_conninfo at a server nearer to the primary.")
}

/// A setting's value is invalid.
pub fn invalid_parameter_value(name: &str, value: &str) -> Refusal {
    Refusal::fatal(
        sqlstate::INVALID_PARAMETER_VALUE,
        format!("invalid value for parameter \"{name}\": \"{value}\""),
    )
}

/// A message of the extended query protocol.
pub fn extended_query() -> Refusal {
    Refusal::error(
        sqlstate::PROTOCOL_VIOLATION,
        "extended query protocol not supported in a replication connection",
    )
}

/// A FunctionCall message.
pub fn fastpath() -> Refusal {
    Refusal::error(
        sqlstate::PROTOCOL_VIOLATION,
        "fastpath function calls not supported in a replication connection",
    )
}

/// A message type that does not exist.
pub fn invalid_message_type(tag: u8) -> Refusal {
    Refusal::fatal(sqlstate::PROTOCOL_VIOLATION, format!("invalid frontend message type {tag}"))
}

/// SHOW of an unknown name.
pub fn unknown_setting(name: &str) -> Refusal {
    Refusal::error(
        sqlstate::UNDEFINED_OBJECT,
        format!("unrecognized configuration parameter \"{name}\""),
    )
}

/// SHOW of a setting with secrets in it.
pub fn secret_setting(name: &str, server_major: u32) -> Refusal {
    if server_major < 16 {
        return Refusal::error(
            sqlstate::INSUFFICIENT_PRIVILEGE,
            format!(
                "must be superuser or have privileges of pg_read_all_settings to examine \"{name}\""
            ),
        );
    }
    Refusal::error(
        sqlstate::INSUFFICIENT_PRIVILEGE,
        format!("permission denied to examine \"{name}\""),
    )
    .with_detail(
        "Only roles with privileges of the \"pg_read_all_settings\" role may examine this \
         parameter.",
    )
}

/// TIMELINE_HISTORY of a timeline without a file.
pub fn no_history_file(tli: TimelineId) -> Refusal {
    Refusal::error(
        sqlstate::UNDEFINED_FILE,
        format!(
            "could not open file \"pg_wal/{:08X}.history\": No such file or directory",
            tli.raw()
        ),
    )
}

/// A slot that does not exist.
pub fn no_such_slot(name: &str) -> Refusal {
    Refusal::error(
        sqlstate::UNDEFINED_OBJECT,
        format!("replication slot \"{name}\" does not exist"),
    )
}

/// Logical decoding; 17 and later quote the setting.
pub fn no_logical_decoding(server_major: u32) -> Refusal {
    let (name, value) = (quoted("wal_level", server_major), quoted("logical", server_major));
    Refusal::error(
        sqlstate::OBJECT_NOT_IN_PREREQUISITE_STATE,
        format!("logical decoding requires {name} >= {value}"),
    )
}

/// BASE_BACKUP and UPLOAD_MANIFEST.
pub fn no_base_backup(command: &str) -> Refusal {
    Refusal::error(sqlstate::FEATURE_NOT_SUPPORTED, format!("walhub does not serve {command}"))
        .with_hint("Take the backup from the primary, then point primary_conninfo here.")
}

/// A timeline of another branch.
pub fn timeline_not_in_history(tli: TimelineId) -> Refusal {
    Refusal::error(
        sqlstate::INTERNAL_ERROR,
        format!("requested timeline {tli} is not in this server's history"),
    )
}

/// A position past the end of its timeline.
pub fn start_past_fork(start: Lsn, tli: TimelineId, end: Lsn) -> Refusal {
    Refusal::error(
        sqlstate::INTERNAL_ERROR,
        format!(
            "requested starting point {start} on timeline {tli} is not in this server's history"
        ),
    )
    .with_detail(format!("This server's history forked from timeline {tli} at {end}."))
}

/// The same, of a standby that may have the former WAL past a seam before that end.
pub fn start_past_fork_and_seam(
    start: Lsn,
    (tli, end): (TimelineId, Lsn),
    (seam_tli, seam): (TimelineId, Lsn),
) -> Refusal {
    start_past_fork(start, tli, end).with_hint(format!(
        "{} A standby with the former WAL has to be made again from a base backup; pg_rewind cannot tell \
         the two apart.",
        other_history(seam_tli, seam)
    ))
}

/// A position past a seam.
pub fn start_past_seam(start: Lsn, tli: TimelineId, seam: Lsn) -> Refusal {
    past_seam(format!("requested starting point {start}"), tli, seam)
}

/// The standby has WAL past a seam.
pub fn reported_past_seam(at: Lsn, tli: TimelineId, seam: Lsn) -> Refusal {
    past_seam(format!("reported position {at}"), tli, seam)
}

fn past_seam(what: String, tli: TimelineId, seam: Lsn) -> Refusal {
    Refusal::error(
        sqlstate::INTERNAL_ERROR,
        format!("{what} on timeline {tli} is not in this server's history"),
    )
    .with_detail(other_history(tli, seam))
    .with_hint(format!(
        "When no standby has the former WAL any more, \"walhub ctl confirm seam {seam}\" lets in those that \
         are past {seam}; --let-in names one that was just made again. A standby with the former WAL has \
         to be made again from a base backup; pg_rewind cannot tell the two histories apart."
    ))
}

/// A standby did not say whether it is past a seam.
pub fn silent_before_seam(tli: TimelineId, seam: Lsn) -> Refusal {
    Refusal::error(
        sqlstate::OBJECT_NOT_IN_PREREQUISITE_STATE,
        "standby did not report its flush and replay positions",
    )
    .with_detail(other_history(tli, seam))
}

fn other_history(tli: TimelineId, seam: Lsn) -> String {
    format!("This server's history of timeline {tli} was replaced by another one from {seam} on.")
}

/// A position we do not have yet.
pub fn ahead_of_flush(start: Lsn, durable: Lsn) -> Refusal {
    Refusal::error(
        sqlstate::INTERNAL_ERROR,
        format!(
            "requested starting point {start} is ahead of the WAL flush position of this server \
             {durable}"
        ),
    )
}

/// A position we no longer have, or never had.
pub fn segment_removed(segment: SegmentName) -> Refusal {
    Refusal::error(
        sqlstate::UNDEFINED_FILE,
        format!("requested WAL segment {segment} has already been removed"),
    )
}

/// A stream was cancelled by its client's CancelRequest.
pub fn cancelled() -> Refusal {
    Refusal::error(sqlstate::QUERY_CANCELED, "canceling statement due to user request")
}

/// A setting's name as PostgreSQL's messages show it: 17 and later quote it.
pub fn quoted(name: &str, server_major: u32) -> String {
    if server_major >= 17 { format!("\"{name}\"") } else { name.to_owned() }
}
