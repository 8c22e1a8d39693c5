//! Replication slots, in memory: enough for clients that require one. They keep no WAL: a bench's
//! primary has only the WAL of its window.

use crate::wal::Lsn;
use crate::wire::refusal::Refusal;
use crate::wire::sqlstate;
use std::collections::BTreeMap;

/// `NAMEDATALEN - 1`
const MAX_NAME: usize = 63;

/// All slots of the primary.
#[derive(Debug, Default)]
pub(super) struct PrimarySlots(BTreeMap<String, Slot>);

/// A physical slot.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Slot {
    /// Dropped when this connection ends.
    pub(super) temporary_of: Option<u32>,
    /// Streams to this connection.
    pub(super) active: Option<u32>,
    /// Where a real primary would start to keep WAL.
    pub(super) restart: Option<Lsn>,
}

impl PrimarySlots {
    pub(super) fn get(&self, name: &str) -> Option<&Slot> {
        self.0.get(name)
    }

    pub(super) fn create(&mut self, name: &str, slot: Slot) -> Result<(), Refusal> {
        let bad = |byte: u8| !matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_');
        if name.is_empty() {
            return Err(Refusal::error(
                sqlstate::INVALID_NAME,
                "replication slot name \"\" is too short",
            ));
        }
        if name.len() > MAX_NAME {
            let message = format!("replication slot name \"{name}\" is too long");
            return Err(Refusal::error(sqlstate::NAME_TOO_LONG, message));
        }
        if name.bytes().any(bad) {
            let message = format!("replication slot name \"{name}\" contains invalid character");
            return Err(Refusal::error(sqlstate::INVALID_NAME, message).with_hint(
                "Replication slot names may only contain lower case letters, numbers, and the \
                 underscore character.",
            ));
        }
        if self.0.contains_key(name) {
            let message = format!("replication slot \"{name}\" already exists");
            return Err(Refusal::error(sqlstate::DUPLICATE_OBJECT, message));
        }
        self.0.insert(name.to_owned(), slot);
        Ok(())
    }

    pub(super) fn drop_slot(&mut self, name: &str) -> Result<(), Refusal> {
        free(name, self.0.get(name))?;
        self.0.remove(name);
        Ok(())
    }

    /// Takes a slot for the stream of a connection.
    pub(super) fn acquire(&mut self, name: &str, pid: u32) -> Result<(), Refusal> {
        free(name, self.0.get(name))?;
        if let Some(slot) = self.0.get_mut(name) {
            slot.active = Some(pid);
        }
        Ok(())
    }

    /// The stream of a connection with a slot has ended; the receiver had flushed up to `flush`.
    pub(super) fn release(&mut self, name: &str, flush: Lsn) {
        if let Some(slot) = self.0.get_mut(name) {
            slot.active = None;
            if !flush.is_invalid() {
                slot.restart = Some(flush);
            }
        }
    }

    /// The connection has ended.
    pub(super) fn forget(&mut self, pid: u32) {
        self.0.retain(|_, slot| slot.temporary_of != Some(pid));
    }
}

fn free(name: &str, slot: Option<&Slot>) -> Result<(), Refusal> {
    let slot = slot.ok_or_else(|| {
        Refusal::error(
            sqlstate::UNDEFINED_OBJECT,
            format!("replication slot \"{name}\" does not exist"),
        )
    })?;
    slot.active.map_or(Ok(()), |pid| {
        let message = format!("replication slot \"{name}\" is active for PID {pid}");
        Err(Refusal::error(sqlstate::OBJECT_IN_USE, message))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_for_one_and_may_go_with_its_session() {
        let mut slots = PrimarySlots::default();
        let state = |result: Result<(), Refusal>| result.err().map(|refusal| refusal.sqlstate);
        assert_eq!(state(slots.create("s1", Slot::default())), None);
        assert_eq!(state(slots.create("s1", Slot::default())), Some("42710"));
        assert_eq!(state(slots.create("S1", Slot::default())), Some("42602"));
        assert_eq!(state(slots.create("", Slot::default())), Some("42602"));
        assert_eq!(state(slots.create(&"x".repeat(64), Slot::default())), Some("42622"));
        assert_eq!(state(slots.acquire("nosuch", 7)), Some("42704"));
        assert_eq!(state(slots.acquire("s1", 7)), None);
        assert_eq!(state(slots.acquire("s1", 8)), Some("55006"));
        assert_eq!(state(slots.drop_slot("s1")), Some("55006"));
        slots.release("s1", Lsn::new(9));
        assert_eq!(slots.get("s1").unwrap().restart, Some(Lsn::new(9)));
        let temporary = Slot { temporary_of: Some(7), ..Slot::default() };
        assert_eq!(state(slots.create("t", temporary)), None);
        slots.forget(7);
        assert!(slots.get("t").is_none() && slots.get("s1").is_some());
        assert_eq!(state(slots.drop_slot("s1")), None);
        assert_eq!(state(slots.drop_slot("s1")), Some("42704"));
    }
}
