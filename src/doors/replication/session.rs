//! A replication connection between startup and stream: messages in, answers out. It does no I/O:
//! answers are bytes appended to a buffer.

use super::show::{Asker, show};
use super::slots::{self, Acquired};
use super::start::start_physical;
use super::step::{SlotDone, SlotTask, Step};
use crate::cluster::identity::Identity;
use crate::hub::Hub;
use crate::standby::answers::{MAX_MESSAGE, row};
use crate::standby::client::Session;
use crate::standby::{parameters, refusals};
use crate::store::slots::{SlotSession, TemporarySlots};
use crate::wal::TimelineId;
use crate::watermark::Cell;
use crate::wire::backend::{self, BYTEA_OID, Column, TEXT_OID};
use crate::wire::command::{ReplicationCommand, parse_command};
use crate::wire::command_phase::{Asked, CommandPhase};
use crate::wire::frame::{Frame, next_frame};
use crate::wire::refusal::{Refusal, Severity};
use bytes::{Buf, BytesMut};

/// The conversation with one client, from its first command to its last. Its temporary slots go
/// with it.
#[derive(Debug)]
pub struct Conversation {
    phase: CommandPhase,
    slots: TemporarySlots,
}

/// Who asks, and of which hub.
#[derive(Clone, Copy)]
struct Caller<'a> {
    hub: &'a Hub,
    session: &'a Session,
    slots: &'a TemporarySlots,
}

/// Everything from AuthenticationOk to the first ReadyForQuery.
pub fn welcome(hub: &Hub, identity: &Identity, session: &Session, key: u32, out: &mut BytesMut) {
    backend::auth_ok(out);
    let path = hub.announced_path();
    for (name, value) in
        parameters::statuses(identity, &session.user, &session.application_name, &path)
    {
        backend::parameter_status(out, &name, &value);
    }
    backend::backend_key_data(out, session.pid, key);
    backend::ready_for_query(out);
}

impl Conversation {
    /// A new one.
    pub fn new(hub: &Hub, session: &Session) -> Self {
        Self { phase: CommandPhase::default(), slots: hub.holds.slots.enter(session.pid) }
    }

    /// Takes one message from the front of `unread` and answers it.
    pub fn take(
        &mut self,
        hub: &Hub,
        session: &Session,
        unread: &mut BytesMut,
        out: &mut BytesMut,
    ) -> Step {
        let (step, len) = match next_frame(unread, MAX_MESSAGE) {
            Ok(None) => return Step::Read,
            Ok(Some(frame)) => (self.answer(hub, session, &frame, out), frame.len),
            Err(malformed) => {
                backend::error(out, &malformed.refusal());
                return Step::Close;
            }
        };
        unread.advance(len);
        step
    }

    /// A slot task has been carried out, or has failed.
    pub fn resume(&self, hub: &Hub, session: &Session, done: SlotDone, out: &mut BytesMut) -> Step {
        let caller = self.caller(hub, session);
        let answered = slots::resume(hub, session, self.slots.session(), done, out);
        finish(caller, answered, out)
    }

    /// Whose temporary slots its own are.
    pub const fn slots(&self) -> SlotSession {
        self.slots.session()
    }

    /// The stream ended with an error.
    pub fn stream_failed(&self) {
        self.slots.drop_all();
    }

    /// The archive was asked for a history file: the file is known now, or unavailable.
    pub fn tell_history(
        &self,
        hub: &Hub,
        session: &Session,
        tli: TimelineId,
        out: &mut BytesMut,
    ) -> Step {
        let major = hub.identity().map_or(0, |identity| identity.server_major());
        let told = timeline_history(hub, tli, major, out).map(|()| Step::Answered);
        finish(self.caller(hub, session), told, out)
    }

    fn answer(
        &mut self,
        hub: &Hub,
        session: &Session,
        frame: &Frame<'_>,
        out: &mut BytesMut,
    ) -> Step {
        let asked = self.phase.take(frame);
        let caller = self.caller(hub, session);
        match asked {
            Asked::Command(text) => return command(caller, text, out),
            Asked::Nothing => {}
            Asked::Ready => backend::ready_for_query(out),
            Asked::Extended => fail(caller, &refusals::extended_query(), out),
            Asked::Fastpath => {
                fail(caller, &refusals::fastpath(), out);
                backend::ready_for_query(out);
            }
            Asked::Terminate => return Step::Close,
            Asked::Malformed(malformed) => {
                backend::error(out, &malformed.refusal());
                return Step::Close;
            }
            Asked::UnknownType(tag) => {
                backend::error(out, &refusals::invalid_message_type(tag));
                return Step::Close;
            }
        }
        Step::Answered
    }

    const fn caller<'a>(&'a self, hub: &'a Hub, session: &'a Session) -> Caller<'a> {
        Caller { hub, session, slots: &self.slots }
    }
}

fn command(caller: Caller<'_>, text: &[u8], out: &mut BytesMut) -> Step {
    let done = match parse_command(text) {
        Ok((command, notices)) => {
            for notice in &notices {
                backend::error(out, notice);
            }
            execute(caller, command, out)
        }
        Err(fault) => Err(fault.refusal()),
    };
    finish(caller, done, out)
}

/// Answers with an error, which drops the session's temporary slots.
fn fail(caller: Caller<'_>, refusal: &Refusal, out: &mut BytesMut) {
    caller.slots.drop_all();
    backend::error(out, refusal);
}

/// What follows the answer to a command.
fn finish(caller: Caller<'_>, done: Result<Step, Refusal>, out: &mut BytesMut) -> Step {
    match done {
        Ok(Step::Answered) => {}
        Ok(step) => return step,
        Err(refusal) => {
            fail(caller, &refusal, out);
            if refusal.severity == Severity::Fatal {
                return Step::Close;
            }
        }
    }
    backend::ready_for_query(out);
    Step::Answered
}

/// `Ok(Answered)` and `Err` are followed by ReadyForQuery, unless the error ends the session.
fn execute(
    caller: Caller<'_>,
    command: ReplicationCommand,
    out: &mut BytesMut,
) -> Result<Step, Refusal> {
    let Caller { hub, session, slots } = caller;
    let own = slots.session();
    // Both existed when the connection was admitted. But after a gap our WAL may have been moved
    // aside, and until the next stream begins the hub is a new one.
    let (Some(identity), Some(current)) = (hub.identity(), hub.current_cell()) else {
        return Err(refusals::starting_up());
    };
    let major = identity.server_major();
    match command {
        ReplicationCommand::IdentifySystem => identify_system(&identity, &current, out),
        ReplicationCommand::Show(name) => {
            let asker = Asker {
                application_name: &session.application_name,
                wal_sender_timeout: session.wal_sender_timeout,
            };
            let (name, value) = show(&name, &identity, &hub.config, asker)?;
            backend::row_description(out, &[Column::text(&name)]);
            row(out, &[Some(&value)]);
            backend::command_complete(out, "SHOW");
        }
        ReplicationCommand::TimelineHistory(tli) => {
            let unknown = tli < current.tli() && hub.history(tli).is_none();
            if unknown && tli != TimelineId::FIRST && hub.config.restore.is_some() {
                return Ok(Step::History(tli));
            }
            timeline_history(hub, tli, major, out)?;
        }
        ReplicationCommand::ReadSlot(name) => slots::read(hub, &name, &current, out),
        ReplicationCommand::CreateSlot { name, lifetime, kind } => {
            return slots::create(hub, own, &name, lifetime, kind, out);
        }
        ReplicationCommand::DropSlot { name, when_active } => {
            return slots::drop_slot(hub, own, &name, when_active, out);
        }
        ReplicationCommand::AlterSlot(name) => return Err(slots::alter(hub, &name)),
        ReplicationCommand::StartLogical { .. } => {
            return Err(refusals::no_logical_decoding(major));
        }
        ReplicationCommand::BaseBackup => return Err(refusals::no_base_backup("BASE_BACKUP")),
        ReplicationCommand::UploadManifest => {
            return Err(refusals::no_base_backup("UPLOAD_MANIFEST"));
        }
        ReplicationCommand::StartPhysical { slot, start, timeline } => {
            let slot = match slots::acquire(hub, own, slot, start)? {
                Acquired::Slot(slot) => slot,
                Acquired::CreateFirst(name) => {
                    return Ok(Step::Slot(SlotTask::CreateThenStart { name, start, timeline }));
                }
            };
            return start_physical(hub, session, slot, timeline, start, out);
        }
    }
    Ok(Step::Answered)
}

fn identify_system(identity: &Identity, current: &Cell, out: &mut BytesMut) {
    let timeline = if identity.server_major() >= 16 { Column::int8 } else { Column::int4 };
    let columns = [
        Column::text("systemid"),
        timeline("timeline"),
        Column::text("xlogpos"),
        Column::text("dbname"),
    ];
    backend::row_description(out, &columns);
    let (system, tli) = (identity.system_id.to_string(), current.tli().to_string());
    row(out, &[Some(&system), Some(&tli), Some(&current.limit().to_string()), None]);
    backend::command_complete(out, "IDENTIFY_SYSTEM");
}

fn timeline_history(
    hub: &Hub,
    tli: TimelineId,
    server_major: u32,
    out: &mut BytesMut,
) -> Result<(), Refusal> {
    // PostgreSQL describes the row before it opens the file.
    let content_type = if server_major >= 14 { TEXT_OID } else { BYTEA_OID };
    let typmod = if server_major >= 16 { -1 } else { 0 };
    let column = |name, type_oid| Column { name, type_oid, typlen: -1, typmod };
    backend::row_description(out, &[column("filename", TEXT_OID), column("content", content_type)]);
    let content = hub.history(tli).ok_or_else(|| refusals::no_history_file(tli))?;
    let file = format!("{:08X}.history", tli.raw());
    backend::data_row(out, &[Some(file.as_bytes()), Some(&content)]);
    backend::command_complete(out, "TIMELINE_HISTORY");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::tests::hub;
    use crate::standby::answers::after_stream;
    use crate::standby::client::StreamEnd;
    use crate::wal::Lsn;
    use bytes::Bytes;
    use proptest::prelude::*;
    use std::sync::Arc;

    const SEGMENT: u64 = 16 << 20;

    fn session() -> Session {
        Session {
            pid: 7,
            user: "replicator".into(),
            application_name: "standby1".into(),
            peer: "[local]".into(),
            wal_sender_timeout: std::time::Duration::from_secs(4),
            instance: None,
        }
    }

    /// A hub on timeline 3, which forked off 1 in segment 5; WAL from segment 4 on.
    fn serving(version: &str) -> Hub {
        let hub = hub(version);
        let tli = TimelineId::new(3).unwrap();
        let start = Lsn::new(4 * SEGMENT);
        hub.holds.begin(start);
        hub.push_cell(Arc::new(Cell::new(tli, start, Lsn::new(6 * SEGMENT + 0x28))));
        hub.set_history(tli, Bytes::from_static(b"1\t0/5000060\tno recovery target specified\n\n"));
        hub
    }

    fn query(text: &str) -> BytesMut {
        let mut bytes = BytesMut::from(&b"Q"[..]);
        bytes.extend_from_slice(&(text.len() as u32 + 5).to_be_bytes());
        bytes.extend_from_slice(text.as_bytes());
        bytes.extend_from_slice(b"\0");
        bytes
    }

    /// The answer in short: message types, with the texts that matter.
    fn shorten(out: &[u8]) -> String {
        let (mut at, mut words) = (0, Vec::new());
        while let Some(frame) = next_frame(&out[at..], 1 << 20).unwrap() {
            at += frame.len;
            let fields = frame.body.split(|b| *b == 0).map(String::from_utf8_lossy);
            let field = |code: char| {
                let found = fields.clone().find_map(|f| f.strip_prefix(code).map(str::to_owned));
                found.unwrap_or_default()
            };
            words.push(match frame.tag {
                b'E' => format!("E[{} {} {}]", field('S'), field('C'), field('M')),
                b'N' => format!("N[{}]", field('C')),
                b'C' => format!("C[{}]", fields.clone().next().unwrap()),
                b'D' => {
                    let mut rest = &frame.body[2..];
                    let mut values = Vec::new();
                    while let Some((len, tail)) = rest.split_first_chunk::<4>() {
                        rest = tail;
                        let len = i32::from_be_bytes(*len);
                        if len < 0 {
                            values.push("NULL".to_owned());
                            continue;
                        }
                        let (value, tail) = rest.split_at(len as usize);
                        values.push(String::from_utf8_lossy(value).into_owned());
                        rest = tail;
                    }
                    format!("D[{}]", values.join("|"))
                }
                tag => char::from(tag).to_string(),
            });
        }
        assert_eq!(at, out.len(), "whole messages only");
        words.join(" ")
    }

    fn ask(hub: &Hub, text: &str) -> String {
        let mut out = BytesMut::new();
        let step =
            Conversation::new(hub, &session()).take(hub, &session(), &mut query(text), &mut out);
        match step {
            Step::Stream(accepted) => {
                assert!(out.is_empty(), "the core writes CopyBothResponse");
                format!("stream {:?} {}", accepted.cell.tli(), accepted.start)
            }
            step => {
                assert!(matches!(step, Step::Answered), "{step:?}");
                shorten(&out)
            }
        }
    }

    #[test]
    fn what_walreceivers_and_pg_receivewal_ask() {
        let hub = serving("15.18");
        assert_eq!(
            ask(&hub, "IDENTIFY_SYSTEM"),
            "T D[7000000000000000001|3|0/6000028|NULL] C[IDENTIFY_SYSTEM] Z"
        );
        assert_eq!(ask(&hub, "SHOW data_directory_mode"), "T D[0700] C[SHOW] Z");
        assert_eq!(ask(&hub, "SHOW wal_segment_size;"), "T D[16MB] C[SHOW] Z");
        assert_eq!(ask(&hub, "SHOW server_version_num"), "T D[150018] C[SHOW] Z");
        assert_eq!(ask(&hub, "SHOW wal_sender_timeout"), "T D[4s] C[SHOW] Z");
        assert_eq!(ask(&hub, "SHOW timezone"), "T D[Europe/Berlin] C[SHOW] Z");
        assert_eq!(
            ask(&hub, "SHOW nosuch"),
            "E[ERROR 42704 unrecognized configuration parameter \"nosuch\"] Z"
        );
        assert_eq!(
            ask(&hub, "TIMELINE_HISTORY 3"),
            "T D[00000003.history|1\t0/5000060\tno recovery target specified\n\n] \
             C[TIMELINE_HISTORY] Z"
        );
        assert_eq!(
            ask(&hub, "TIMELINE_HISTORY 77"),
            "T E[ERROR 58P01 could not open file \"pg_wal/0000004D.history\": No such file or \
             directory] Z"
        );
    }

    #[test]
    fn without_wal_any_more_a_session_ends() {
        let hub = serving("15.18");
        hub.set_cells(Vec::new());
        let mut out = BytesMut::new();
        let mut asked = query("IDENTIFY_SYSTEM");
        let step = Conversation::new(&hub, &session()).take(&hub, &session(), &mut asked, &mut out);
        assert!(matches!(step, Step::Close), "{step:?}");
        assert_eq!(shorten(&out), "E[FATAL 57P03 the database system is starting up]");
    }

    #[test]
    fn starts() {
        let hub = serving("15.18");
        assert_eq!(ask(&hub, "START_REPLICATION 0/6000000 TIMELINE 3"), "stream TLI 3 0/6000000");
        assert_eq!(ask(&hub, "START_REPLICATION PHYSICAL 0/7000000"), "stream TLI 3 0/7000000");
        assert_eq!(
            ask(&hub, "START_REPLICATION 0/3000000 TIMELINE 3"),
            "W E[ERROR 58P01 requested WAL segment 000000030000000000000003 has already been \
             removed] Z"
        );
        assert_eq!(
            ask(&hub, "START_REPLICATION 0/4000000 TIMELINE 1"),
            "W E[ERROR 58P01 requested WAL segment 000000010000000000000004 has already been \
             removed] Z"
        );
        assert_eq!(
            ask(&hub, "START_REPLICATION 0/5000060 TIMELINE 1"),
            "T D[3|0/5000060] C[START_STREAMING] C[START_REPLICATION] Z"
        );
        assert_eq!(
            ask(&hub, "START_REPLICATION FF/0"),
            "W E[ERROR XX000 requested starting point FF/0 is ahead of the WAL flush position of \
             this server 0/6000028] Z"
        );
        assert_eq!(
            ask(&hub, "START_REPLICATION SLOT \"s\" 0/6000000"),
            "E[ERROR 42704 replication slot \"s\" does not exist] Z"
        );
        assert_eq!(hub.holds.count(), 0, "nothing is held for those that were refused");
    }

    #[test]
    fn what_a_hub_does_not_do() {
        let hub = serving("16.14");
        let sql =
            "E[ERROR 0A000 cannot execute SQL commands in WAL sender for physical replication] Z";
        for text in ["SELECT 1", "", ";", "identify_system", "BEGIN"] {
            assert_eq!(ask(&hub, text), sql, "{text}");
        }
        let starts = |text: &str, with: &str| {
            let answer = ask(&hub, text);
            assert!(answer.starts_with(with) && answer.ends_with(" Z"), "{text}: {answer}");
        };
        starts("CREATE_REPLICATION_SLOT s LOGICAL x", "E[ERROR 55000 ");
        starts("ALTER_REPLICATION_SLOT s ( FAILOVER )", "E[ERROR 42704 ");
        starts("DROP_REPLICATION_SLOT s", "E[ERROR 42704 ");
        starts("READ_REPLICATION_SLOT s", "T D[NULL|NULL|NULL] C[READ_REPLICATION_SLOT]");
        starts("BASE_BACKUP ( LABEL 'x' )", "E[ERROR 0A000 ");
        starts("UPLOAD_MANIFEST", "E[ERROR 0A000 ");
        starts("START_REPLICATION SLOT s LOGICAL 0/0", "E[ERROR 55000 ");
        starts("IDENTIFY_SYSTEM;;", "E[ERROR 42601 syntax error]");
        starts("TIMELINE_HISTORY 0", "E[ERROR 42601 invalid timeline 0]");
    }

    #[test]
    fn extended_protocol_is_skipped_to_sync() {
        let hub = serving("15.18");
        let mut conversation = Conversation::new(&hub, &session());
        let mut unread = BytesMut::from(&b"P\0\0\0\x08\0\0\0\0B\0\0\0\x04"[..]);
        unread.unsplit(query("IDENTIFY_SYSTEM"));
        unread.extend_from_slice(b"S\0\0\0\x04");
        unread.unsplit(query("SHOW server_version"));
        unread.extend_from_slice(b"d\0\0\0\x04c\0\0\0\x04F\0\0\0\x04?\0\0\0\x04");
        let mut out = BytesMut::new();
        let last = loop {
            match conversation.take(&hub, &session(), &mut unread, &mut out) {
                Step::Answered => {}
                step => break step,
            }
        };
        assert!(matches!(last, Step::Close));
        assert_eq!(
            shorten(&out),
            "E[ERROR 08P01 extended query protocol not supported in a replication connection] Z T \
             D[15.18] C[SHOW] Z E[ERROR 08P01 fastpath function calls not supported in a \
             replication connection] Z E[FATAL 08P01 invalid frontend message type 63]"
        );
    }

    #[test]
    fn ends_of_streams() {
        let end = |ended| {
            let mut out = BytesMut::new();
            after_stream(&ended, &mut out);
            shorten(&out)
        };
        let two = "C[START_STREAMING] C[START_REPLICATION] Z";
        assert_eq!(end(StreamEnd::ClientDone), two);
        let (next, at) = (TimelineId::new(2).unwrap(), Lsn::new(0x6E_25B8));
        assert_eq!(end(StreamEnd::Timeline { next, at }), format!("T D[2|0/6E25B8] {two}"));
        assert_eq!(
            end(StreamEnd::Failed(refusals::cancelled())),
            "E[ERROR 57014 canceling statement due to user request] Z"
        );
    }

    proptest! {
        #[test]
        fn garbage_is_answered_or_ends_the_session(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..200),
            tag in proptest::sample::select(&b"QSPXdF?"[..]),
            framed in any::<bool>(),
        ) {
            let hub = serving("15.18");
            if framed {
                let len = (bytes.len() as u32 + 4).to_be_bytes();
                bytes.splice(0..0, std::iter::once(tag).chain(len));
            }
            let (mut unread, mut out) = (BytesMut::from(&bytes[..]), BytesMut::new());
            let mut conversation = Conversation::new(&hub, &session());
            while let Step::Answered = conversation.take(&hub, &session(), &mut unread, &mut out) {}
            shorten(&out);
        }
    }
}
