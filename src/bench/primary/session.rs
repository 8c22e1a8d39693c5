//! The primary's side of a conversation up to a stream: messages in, answers out, no I/O.

use super::slots::{PrimarySlots, Slot};
use super::version::ServerVersion;
use crate::standby::parameters::clean_name;
use crate::standby::refusals;
use crate::wal::{Lsn, SegmentName, SegmentSize, SystemId, TimelineId};
use crate::wire::backend::{self, Column};
use crate::wire::command::{NewSlot, ReplicationCommand, SlotLifetime, parse_command};
use crate::wire::command_phase::{Asked, CommandPhase};
use crate::wire::frame::Frame;
use crate::wire::refusal::Refusal;
use crate::wire::sqlstate;
use crate::wire::startup::{ReplicationMode, Startup};
use crate::wire::units::{TimeUnit, format_bytes, format_duration, parse_duration};
use bytes::BytesMut;
use std::time::Duration;

/// `wal_sender_timeout`'s default.
const WAL_SENDER_TIMEOUT: Duration = Duration::from_secs(60);

/// What all connections share.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) version: ServerVersion,
    pub(super) system: SystemId,
    pub(super) size: SegmentSize,
    pub(super) slots: PrimarySlots,
}

/// The timeline of all the WAL.
pub(super) const TIMELINE: TimelineId = TimelineId::FIRST;

/// The WAL that is available.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extent {
    pub(super) oldest: Lsn,
    pub(super) end: Lsn,
}

/// An admitted client.
#[derive(Debug, Clone)]
pub(super) struct Session {
    pub(super) pid: u32,
    pub(super) application_name: String,
    pub(super) wal_sender_timeout: Duration,
    phase: CommandPhase,
}

/// What comes after a message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum AfterMessage {
    /// Another message.
    Message,
    /// A stream, after the CopyBothResponse that was written.
    Stream { start: Lsn, slot: Option<String> },
    /// Nothing: the connection closes when the answer is sent.
    Close,
}

impl Session {
    /// Admits a client, or returns why not.
    pub(super) fn open(
        server: &Server,
        startup: &Startup,
        pid: u32,
        out: &mut BytesMut,
    ) -> Result<Self, Refusal> {
        let refuse = |fault: crate::wire::startup::StartupFault| {
            let unsaid = || Refusal::protocol_violation("invalid startup packet");
            fault.refusal().unwrap_or_else(unsaid)
        };
        let user = startup.user().map_err(refuse)?;
        if startup.replication().map_err(refuse)? != ReplicationMode::Physical {
            return Err(Refusal::fatal(
                sqlstate::FEATURE_NOT_SUPPORTED,
                "this is a synthetic primary: it serves physical replication connections only",
            ));
        }
        let mut session = Self {
            pid,
            application_name: String::new(),
            wal_sender_timeout: WAL_SENDER_TIMEOUT,
            phase: CommandPhase::default(),
        };
        for (name, value) in startup.settings().map_err(refuse)? {
            match name.to_ascii_lowercase().as_str() {
                "application_name" => session.application_name = clean_name(&value),
                "wal_sender_timeout" => {
                    session.wal_sender_timeout = parse_duration(&value, TimeUnit::Millisecond)
                        .map_err(|_| refusals::invalid_parameter_value(&name, &value))?;
                }
                // A server's full list of settings is not known here; none of the others would
                // change what a physical walsender does.
                _ => {}
            }
        }
        if let Some(negotiation) = startup.negotiation() {
            backend::negotiate_protocol_version(out, negotiation.minor, &negotiation.unknown);
        }
        backend::auth_ok(out);
        for (name, value) in server.version.statuses(user, &session.application_name) {
            backend::parameter_status(out, name, &value);
        }
        // Nothing can be cancelled here, so the key has no use.
        backend::backend_key_data(out, pid, pid);
        backend::ready_for_query(out);
        Ok(session)
    }

    /// Takes one message.
    pub(super) fn take(
        &mut self,
        server: &mut Server,
        extent: Extent,
        frame: &Frame<'_>,
        out: &mut BytesMut,
    ) -> AfterMessage {
        match self.phase.take(frame) {
            Asked::Command(text) => return self.command(server, extent, text, out),
            Asked::Nothing => {}
            Asked::Ready => backend::ready_for_query(out),
            Asked::Extended => backend::error(out, &refusals::extended_query()),
            Asked::Fastpath => {
                backend::error(out, &refusals::fastpath());
                backend::ready_for_query(out);
            }
            Asked::Terminate => return AfterMessage::Close,
            Asked::Malformed(malformed) => {
                backend::error(out, &malformed.refusal());
                return AfterMessage::Close;
            }
            Asked::UnknownType(tag) => {
                backend::error(out, &refusals::invalid_message_type(tag));
                return AfterMessage::Close;
            }
        }
        AfterMessage::Message
    }

    fn command(
        &self,
        server: &mut Server,
        extent: Extent,
        text: &[u8],
        out: &mut BytesMut,
    ) -> AfterMessage {
        let done = match parse_command(text) {
            Ok((command, notices)) => {
                for notice in &notices {
                    backend::error(out, notice);
                }
                self.execute(server, extent, command, out)
            }
            Err(fault) => Err(fault.refusal()),
        };
        match done {
            Ok(AfterMessage::Message) => {}
            Ok(next) => return next,
            Err(refusal) => {
                // An error takes the session's temporary slots with it.
                server.slots.forget(self.pid);
                backend::error(out, &refusal);
            }
        }
        backend::ready_for_query(out);
        AfterMessage::Message
    }

    fn execute(
        &self,
        server: &mut Server,
        extent: Extent,
        command: ReplicationCommand,
        out: &mut BytesMut,
    ) -> Result<AfterMessage, Refusal> {
        let major = server.version.major();
        let tag = match command {
            ReplicationCommand::IdentifySystem => identify_system(server, extent, out),
            ReplicationCommand::Show(name) => {
                let (name, value) = self.show(server, &name)?;
                backend::row_description(out, &[Column::text(&name)]);
                row(out, &[Some(&value)]);
                "SHOW"
            }
            // The first timeline has none.
            ReplicationCommand::TimelineHistory(tli) => return Err(refusals::no_history_file(tli)),
            ReplicationCommand::ReadSlot(name) if major >= 15 => read_slot(server, &name, out),
            ReplicationCommand::ReadSlot(_) => {
                return Err(crate::wire::command::CommandFault::Syntax.refusal());
            }
            ReplicationCommand::CreateSlot { kind: NewSlot::Logical, .. }
            | ReplicationCommand::StartLogical { .. } => {
                return Err(refusals::no_logical_decoding(major));
            }
            ReplicationCommand::CreateSlot { name, lifetime, kind } => {
                let slot = Slot {
                    temporary_of: (lifetime == SlotLifetime::Temporary).then_some(self.pid),
                    active: None,
                    restart: (kind == NewSlot::PhysicalReserved).then_some(extent.end),
                };
                server.slots.create(&name, slot)?;
                let names = ["slot_name", "consistent_point", "snapshot_name", "output_plugin"];
                backend::row_description(out, &names.map(Column::text));
                row(out, &[Some(&name), Some("0/0"), None, None]);
                "CREATE_REPLICATION_SLOT"
            }
            ReplicationCommand::DropSlot { name, .. } => {
                server.slots.drop_slot(&name)?;
                "DROP_REPLICATION_SLOT"
            }
            ReplicationCommand::AlterSlot(name) => return Err(refusals::no_such_slot(&name)),
            ReplicationCommand::BaseBackup => return Err(no_backup("BASE_BACKUP")),
            ReplicationCommand::UploadManifest => return Err(no_backup("UPLOAD_MANIFEST")),
            ReplicationCommand::StartPhysical { slot, start, timeline } => {
                if let Some(tli) = timeline.filter(|tli| *tli != TIMELINE) {
                    return Err(refusals::timeline_not_in_history(tli));
                }
                if let Some(name) = &slot {
                    server.slots.acquire(name, self.pid)?;
                }
                backend::copy_both(out);
                if let Err(refusal) = can_start(server.size, extent, start) {
                    if let Some(name) = &slot {
                        server.slots.release(name, Lsn::INVALID);
                    }
                    return Err(refusal);
                }
                return Ok(AfterMessage::Stream { start, slot });
            }
        };
        backend::command_complete(out, tag);
        Ok(AfterMessage::Message)
    }

    /// The setting's real name, and its value.
    fn show(&self, server: &Server, name: &str) -> Result<(String, String), Refusal> {
        let lower = name.to_ascii_lowercase();
        let fixed = |text: &str| Ok(text.to_owned());
        let value = match lower.as_str() {
            "data_directory_mode" => fixed("0700"),
            "wal_segment_size" => Ok(format_bytes(server.size.bytes())),
            "wal_block_size" => fixed("8192"),
            "wal_level" => fixed("replica"),
            "wal_sender_timeout" => Ok(format_duration(self.wal_sender_timeout)),
            "server_version_num" => Ok(server.version.num().to_string()),
            "hot_standby" => fixed("on"),
            "transaction_read_only" => fixed("off"),
            "summarize_wal" if server.version.major() >= 17 => fixed("off"),
            _ => {
                let statuses = server.version.statuses("", &self.application_name);
                let known = |(known, _): &(&str, String)| known.eq_ignore_ascii_case(name);
                return match statuses.into_iter().find(known) {
                    Some((known, value)) if known != "session_authorization" => {
                        Ok((known.to_owned(), value))
                    }
                    _ => Err(refusals::unknown_setting(name)),
                };
            }
        };
        value.map(|value| (lower, value))
    }
}

/// The WAL from `start` on is gone.
pub(super) fn removed(size: SegmentSize, start: Lsn) -> Refusal {
    refusals::segment_removed(SegmentName { tli: TIMELINE, no: start.segment(size), size })
}

fn can_start(size: SegmentSize, extent: Extent, start: Lsn) -> Result<(), Refusal> {
    if start > extent.end {
        return Err(refusals::ahead_of_flush(start, extent.end));
    }
    if start < extent.oldest {
        return Err(removed(size, start));
    }
    Ok(())
}

fn no_backup(command: &str) -> Refusal {
    Refusal::error(
        sqlstate::FEATURE_NOT_SUPPORTED,
        format!("a synthetic primary has no data directory for {command}"),
    )
}

fn timeline_column(server: &Server, name: &'static str) -> Column<'static> {
    if server.version.major() >= 16 { Column::int8(name) } else { Column::int4(name) }
}

fn identify_system(server: &Server, extent: Extent, out: &mut BytesMut) -> &'static str {
    let columns = [
        Column::text("systemid"),
        timeline_column(server, "timeline"),
        Column::text("xlogpos"),
        Column::text("dbname"),
    ];
    backend::row_description(out, &columns);
    let (system, tli, end) =
        (server.system.to_string(), TIMELINE.to_string(), extent.end.to_string());
    row(out, &[Some(&system), Some(&tli), Some(&end), None]);
    "IDENTIFY_SYSTEM"
}

fn read_slot(server: &Server, name: &str, out: &mut BytesMut) -> &'static str {
    let columns = [
        Column::text("slot_type"),
        Column::text("restart_lsn"),
        timeline_column(server, "restart_tli"),
    ];
    backend::row_description(out, &columns);
    let slot = server.slots.get(name);
    let restart = slot.and_then(|slot| slot.restart).map(|at| at.to_string());
    let tli = restart.as_ref().map(|_| TIMELINE.to_string());
    row(out, &[slot.map(|_| "physical"), restart.as_deref(), tli.as_deref()]);
    "READ_REPLICATION_SLOT"
}

fn row(out: &mut BytesMut, values: &[Option<&str>]) {
    let values: Vec<_> = values.iter().map(|value| value.map(str::as_bytes)).collect();
    backend::data_row(out, &values);
}
