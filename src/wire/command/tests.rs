//! The grammar of all versions, and what each refuses.

use super::*;
use proptest::prelude::*;

fn command(text: &str) -> Result<ReplicationCommand, CommandFault> {
    parse_command(text.as_bytes()).map(|(command, _)| command)
}

fn start(
    slot: Option<&str>,
    start: u64,
    timeline: Option<u32>,
) -> Result<ReplicationCommand, CommandFault> {
    Ok(ReplicationCommand::StartPhysical {
        slot: slot.map(str::to_owned),
        start: Lsn::new(start),
        timeline: timeline.and_then(TimelineId::new),
    })
}

#[test]
fn what_clients_send() {
    assert_eq!(command("IDENTIFY_SYSTEM"), Ok(ReplicationCommand::IdentifySystem));
    assert_eq!(command(" \tIDENTIFY_SYSTEM\r\n ; "), Ok(ReplicationCommand::IdentifySystem));
    assert_eq!(
        command("SHOW data_directory_mode"),
        Ok(ReplicationCommand::Show("data_directory_mode".to_owned()))
    );
    assert_eq!(
        command("SHOW Walhub.\"Instance_Id\""),
        Ok(ReplicationCommand::Show("walhub.Instance_Id".to_owned()))
    );
    assert_eq!(
        command("TIMELINE_HISTORY 3"),
        Ok(ReplicationCommand::TimelineHistory(TimelineId::new(3).unwrap()))
    );
    assert_eq!(
        command("START_REPLICATION SLOT \"slot_15\" 0/600000 TIMELINE 1"),
        start(Some("slot_15"), 0x60_0000, Some(1))
    );
    assert_eq!(
        command("START_REPLICATION PHYSICAL 16/b374d848;"),
        start(None, 0x16_b374_d848, None)
    );
    assert_eq!(
        command("START_REPLICATION SLOT s LOGICAL 0/0 (proto_version '1', x)"),
        Ok(ReplicationCommand::StartLogical { slot: "s".to_owned() })
    );
    assert_eq!(command("UPLOAD_MANIFEST"), Ok(ReplicationCommand::UploadManifest));
    for text in [
        "BASE_BACKUP",
        "BASE_BACKUP LABEL 'pg_basebackup base backup' PROGRESS FAST NOWAIT MANIFEST 'yes' ;",
        "BASE_BACKUP ( LABEL 'x;y', PROGRESS, CHECKPOINT 'fast', WAIT 0)",
    ] {
        assert_eq!(command(text), Ok(ReplicationCommand::BaseBackup), "{text}");
    }
}

#[test]
fn slots_in_both_syntaxes() {
    let create = |kind, lifetime| {
        Ok(ReplicationCommand::CreateSlot { name: "s".to_owned(), lifetime, kind })
    };
    use NewSlot::*;
    use SlotLifetime::*;
    for (text, kind, lifetime) in [
        ("s PHYSICAL", Physical, Persistent),
        ("\"s\" TEMPORARY PHYSICAL RESERVE_WAL", PhysicalReserved, Temporary),
        ("s TEMPORARY PHYSICAL ( RESERVE_WAL)", PhysicalReserved, Temporary),
        ("s PHYSICAL (RESERVE_WAL true)", PhysicalReserved, Persistent),
        ("s PHYSICAL (reserve_wal 'OFF')", Physical, Persistent),
        ("s PHYSICAL (reserve_wal 0)", Physical, Persistent),
        ("s LOGICAL pgoutput NOEXPORT_SNAPSHOT TWO_PHASE", Logical, Persistent),
        ("s LOGICAL pgoutput (SNAPSHOT 'nothing', FAILOVER)", Logical, Persistent),
    ] {
        assert_eq!(
            command(&format!("CREATE_REPLICATION_SLOT {text}")),
            create(kind, lifetime),
            "{text}"
        );
    }
    let fault = |text: &str| command(&format!("CREATE_REPLICATION_SLOT {text}")).unwrap_err();
    assert_eq!(fault("s PHYSICAL RESERVE_WAL RESERVE_WAL"), CommandFault::ConflictingOptions);
    assert_eq!(fault("s PHYSICAL USE_SNAPSHOT"), CommandFault::ConflictingOptions);
    assert_eq!(fault("s PHYSICAL USE_SNAPSHOT 0"), CommandFault::Syntax, "first of all");
    assert_eq!(fault("s PHYSICAL (foo)"), CommandFault::UnrecognizedOption("foo".to_owned()));
    assert_eq!(
        fault("s PHYSICAL (RESERVE_WAL 2)"),
        CommandFault::NotBoolean("reserve_wal".to_owned())
    );
    for text in [
        "",
        "s",
        "s PHYSICAL ()",
        "s PHYSICAL (a,)",
        "SLOT PHYSICAL",
        "s PHYSICAL WAIT",
        "s LOGICAL",
    ] {
        assert_eq!(fault(text), CommandFault::Syntax, "{text}");
    }
    let drop = |when_active| Ok(ReplicationCommand::DropSlot { name: "s".to_owned(), when_active });
    assert_eq!(command("DROP_REPLICATION_SLOT s"), drop(WhenActive::Refuse));
    assert_eq!(command("DROP_REPLICATION_SLOT s WAIT"), drop(WhenActive::Wait));
    assert_eq!(
        command("READ_REPLICATION_SLOT S"),
        Ok(ReplicationCommand::ReadSlot("s".to_owned()))
    );
    assert_eq!(
        command("ALTER_REPLICATION_SLOT s ( FAILOVER )"),
        Ok(ReplicationCommand::AlterSlot("s".to_owned()))
    );
}

#[test]
fn everything_else_is_sql() {
    for text in [
        "",
        ";",
        " ",
        "identify_system",
        "show x",
        "SELECT 1",
        "-- IDENTIFY_SYSTEM",
        "SLOT",
        "PHYSICAL",
        "'x'",
        "\"IDENTIFY_SYSTEM\"",
        "0/0",
        "1",
        "IDENTIFY_SYSTEMS",
        "(",
    ] {
        assert_eq!(command(text), Err(CommandFault::Sql), "{text:?}");
    }
    let refusal = CommandFault::Sql.refusal();
    assert_eq!(refusal.sqlstate, "0A000");
}

#[test]
fn syntax_errors() {
    for text in [
        "IDENTIFY_SYSTEM;;",
        "IDENTIFY_SYSTEM IDENTIFY_SYSTEM",
        "SHOW",
        "SHOW a.",
        "SHOW a b",
        "SHOW 'a'",
        "TIMELINE_HISTORY",
        "TIMELINE_HISTORY x",
        "TIMELINE_HISTORY -1",
        "START_REPLICATION",
        "START_REPLICATION 0",
        "START_REPLICATION 0/",
        "START_REPLICATION 0/0 TIMELINE",
        "START_REPLICATION LOGICAL 0/0",
        "START_REPLICATION SLOT SLOT 0/0",
        "START_REPLICATION SLOT s LOGICAL 0/0 ()",
        "START_REPLICATION 0/1G",
        "UPLOAD_MANIFEST x",
    ] {
        assert_eq!(command(text), Err(CommandFault::Syntax), "{text}");
    }
    for text in ["SHOW 'a", "SHOW \"a", "IDENTIFY_SYSTEM '", "'x", "BASE_BACKUP LABEL 'x''"] {
        assert_eq!(command(text), Err(CommandFault::UnterminatedQuote), "{text}");
    }
    for text in
        ["TIMELINE_HISTORY 0", "TIMELINE_HISTORY 4294967296", "START_REPLICATION 0/0 TIMELINE 0"]
    {
        assert_eq!(command(text), Err(CommandFault::InvalidTimeline), "{text}");
    }
}

#[test]
fn numbers_overflow_as_in_c() {
    assert_eq!(command("START_REPLICATION 100000002/1"), start(None, 2 << 32 | 1, None));
    assert_eq!(command("START_REPLICATION 0/123456789ABCDEF01"), start(None, 0xffff_ffff, None));
    assert_eq!(command("START_REPLICATION 0/0 TIMELINE 4294967299"), start(None, 0, Some(3)));
    assert_eq!(command("START_REPLICATION 0000000000/00000000000A"), start(None, 10, None));
}

#[test]
fn long_names_are_cut_with_a_notice() {
    let long = "N".repeat(64);
    let (command, notices) = parse_command(format!("SHOW {long}").as_bytes()).unwrap();
    assert_eq!(command, ReplicationCommand::Show("n".repeat(63)));
    let [notice] = notices.as_slice() else { panic!("{notices:?}") };
    assert_eq!(notice.sqlstate, "42622");
    assert_eq!(
        notice.message,
        format!("identifier \"{}\" will be truncated to \"{}\"", "n".repeat(64), "n".repeat(63))
    );
    let (_, notices) = parse_command(format!("SHOW \"{}\"", "N".repeat(63)).as_bytes()).unwrap();
    assert!(notices.is_empty());
}

#[test]
fn quotes() {
    assert_eq!(command("BASE_BACKUP LABEL 'a''b'"), Ok(ReplicationCommand::BaseBackup));
    assert_eq!(command("SHOW \"a\"\"b\""), Err(CommandFault::Syntax), "not those of names");
    assert_eq!(command("SHOW \"\""), Ok(ReplicationCommand::Show(String::new())));
    assert_eq!(command("SHOW a\0b"), Ok(ReplicationCommand::Show("a".to_owned())));
}

proptest! {
    #[test]
    fn starts_round_trip(
        slot in proptest::option::of("[a-z0-9_]{1,63}"),
        at in any::<u64>(),
        timeline in proptest::option::of(1u32..),
    ) {
        let mut text = "START_REPLICATION ".to_owned();
        if let Some(slot) = &slot {
            text += &format!("SLOT \"{slot}\" ");
        }
        text += &Lsn::new(at).to_string();
        if let Some(tli) = timeline {
            text += &format!(" TIMELINE {tli}");
        }
        prop_assert_eq!(command(&text), start(slot.as_deref(), at, timeline));
    }

    #[test]
    fn quoted_names_round_trip(name in "[^\0\"]{0,15}") {
        let text = format!("SHOW \"{name}\"");
        prop_assert_eq!(command(&text), Ok(ReplicationCommand::Show(name)));
    }

    #[test]
    fn garbage_never_panics(
        bytes in proptest::collection::vec(any::<u8>(), 0..80),
        words in proptest::collection::vec(proptest::sample::select(vec![
            "START_REPLICATION", "SLOT", "CREATE_REPLICATION_SLOT", "PHYSICAL", "LOGICAL", "a",
            "(", ")", ",", "'", "\"", "0/0", "7", "TIMELINE", "RESERVE_WAL", ";", "SHOW", ".",
        ]), 0..10),
    ) {
        std::hint::black_box(parse_command(&bytes).is_ok());
        std::hint::black_box(parse_command(words.join(" ").as_bytes()).is_ok());
    }
}
