//! The replication grammar: any text is a command or gets a refusal.
#![no_main]

use libfuzzer_sys::fuzz_target;
use walhub::wire::command::{ReplicationCommand, parse_command};

fuzz_target!(|text: &[u8]| {
    let (command, notices) = match parse_command(text) {
        Ok(parsed) => parsed,
        Err(fault) => return drop(fault.refusal()),
    };
    // A notice is about a name of 64 bytes at least.
    assert!(notices.len() * 64 <= text.len());
    let names = match command {
        ReplicationCommand::CreateSlot { name, .. }
        | ReplicationCommand::DropSlot { name, .. }
        | ReplicationCommand::AlterSlot(name)
        | ReplicationCommand::StartLogical { slot: name }
        | ReplicationCommand::StartPhysical { slot: Some(name), .. } => vec![name],
        ReplicationCommand::Show(name) | ReplicationCommand::ReadSlot(name) => {
            assert!(name.len() <= 3 * text.len());
            vec![]
        }
        _ => vec![],
    };
    // 63 bytes, each of which may have become U+FFFD.
    assert!(names.iter().all(|name| name.len() <= 3 * 63));
});
