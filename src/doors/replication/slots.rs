//! The commands about replication slots. What must be durable before the answer goes to the keeper
//! first: see [`SlotTask`].

use super::start::start_physical;
use super::step::{SlotDone, SlotTask, Step};
use crate::hub::Hub;
use crate::standby::answers::row;
use crate::standby::client::Session;
use crate::standby::refusals::{self, quoted};
use crate::store::slots::{
    Create, InvalidName, InvalidSlots, Origin, SlotFault, SlotName, SlotSession, SlotUse,
};
use crate::wal::Lsn;
use crate::watermark::Cell;
use crate::wire::backend::{self, Column};
use crate::wire::command::{NewSlot, SlotLifetime, WhenActive};
use crate::wire::refusal::Refusal;
use crate::wire::sqlstate;
use bytes::BytesMut;

/// What START_REPLICATION starts with.
#[derive(Debug)]
pub(super) enum Acquired {
    /// The slot it named, if any.
    Slot(Option<SlotUse>),
    /// The slot must be created first (`--auto-create-slots`).
    CreateFirst(SlotName),
}

/// CREATE_REPLICATION_SLOT
pub(super) fn create(
    hub: &Hub,
    session: SlotSession,
    name: &str,
    lifetime: SlotLifetime,
    kind: NewSlot,
    out: &mut BytesMut,
) -> Result<Step, Refusal> {
    let major = server_major(hub);
    if kind == NewSlot::Logical {
        return Err(refusals::no_logical_decoding(major));
    }
    let name = SlotName::parse(name).map_err(invalid_name)?;
    let mut slots = hub.holds.slots.lock();
    let reserve = (kind == NewSlot::PhysicalReserved).then(|| reservation(hub));
    let reserve = reserve.filter(|from| is_before_seams(hub, *from));
    let origin = Origin::Asked;
    let create = Create { name: name.clone(), lifetime, origin, reserve, session };
    slots.create(create, hub.config.slots.max).map_err(|fault| refusal(fault, major))?;
    drop(slots);
    match lifetime {
        SlotLifetime::Persistent => Ok(Step::Slot(SlotTask::Create { name })),
        SlotLifetime::Temporary => {
            created(&name, out);
            Ok(Step::Answered)
        }
    }
}

fn created(name: &SlotName, out: &mut BytesMut) {
    let columns = ["slot_name", "consistent_point", "snapshot_name", "output_plugin"];
    backend::row_description(out, &columns.map(Column::text));
    row(out, &[Some(name.as_str()), Some("0/0"), None, None]);
    backend::command_complete(out, "CREATE_REPLICATION_SLOT");
}

/// Where a slot that reserves WAL starts to keep it: at the oldest WAL available without a hole,
/// because a hub knows no checkpoints. Under a limit only half of that is used at once.
fn reservation(hub: &Hub) -> Lsn {
    let oldest = hub.holds.unbroken_from();
    let newest = hub.current_cell().map_or(oldest, |cell| cell.limit());
    match hub.config.retention.max_slot_wal_keep_size {
        Some(max) => oldest.max(newest.saturating_sub(max / 2)),
        None => oldest,
    }
}

/// A slot past a seam shows that its standby has followed over it. So one that is created there
/// keeps no WAL before its standby has reported.
fn is_before_seams(hub: &Hub, from: Lsn) -> bool {
    hub.course.seams().iter().all(|seam| from <= seam.at)
}

/// DROP_REPLICATION_SLOT
pub(super) fn drop_slot(
    hub: &Hub,
    session: SlotSession,
    name: &str,
    when_active: WhenActive,
    out: &mut BytesMut,
) -> Result<Step, Refusal> {
    let mut slots = hub.holds.slots.lock();
    match slots.begin_drop(name, session) {
        Ok(SlotLifetime::Temporary) => {
            drop(slots);
            hub.holds.slots.tell_freed();
            backend::command_complete(out, "DROP_REPLICATION_SLOT");
            Ok(Step::Answered)
        }
        Ok(SlotLifetime::Persistent) => {
            let name = SlotName::parse(name).map_err(invalid_name)?;
            Ok(Step::Slot(SlotTask::Drop { name }))
        }
        Err(SlotFault::InUse { .. }) if when_active == WhenActive::Wait => {
            Ok(Step::Slot(SlotTask::AwaitFree { name: name.to_owned() }))
        }
        Err(fault) => Err(refusal(fault, server_major(hub))),
    }
}

/// ALTER_REPLICATION_SLOT: its options are all for logical slots.
pub(super) fn alter(hub: &Hub, name: &str) -> Refusal {
    match hub.holds.slots.lock().get(name) {
        Some(_) => Refusal::error(
            sqlstate::FEATURE_NOT_SUPPORTED,
            "cannot use ALTER_REPLICATION_SLOT with a physical replication slot",
        ),
        None => refusal(SlotFault::Unknown(name.to_owned()), server_major(hub)),
    }
}

/// READ_REPLICATION_SLOT
pub(super) fn read(hub: &Hub, name: &str, current: &Cell, out: &mut BytesMut) {
    let columns =
        [Column::text("slot_type"), Column::text("restart_lsn"), Column::int8("restart_tli")];
    backend::row_description(out, &columns);
    let mut slots = hub.holds.slots.lock();
    // A plan moves it under the slots' lock: a position that is gone is not taken over.
    slots.absorb(hub.holds.oldest_kept());
    let restart_lsn = slots.get(name).map(|slot| slot.restart_lsn);
    drop(slots);
    let history = hub.read_history(current.tli()).ok().flatten();
    let tli_at = |lsn: Lsn| history.as_ref().map_or(current.tli(), |history| history.tli_at(lsn));
    let kind = restart_lsn.map(|_| "physical");
    let lsn = restart_lsn.flatten();
    let (lsn, tli) = (lsn.map(|lsn| lsn.to_string()), lsn.map(|lsn| tli_at(lsn).to_string()));
    row(out, &[kind, lsn.as_deref(), tli.as_deref()]);
    backend::command_complete(out, "READ_REPLICATION_SLOT");
}

/// Gives the session the slot that START_REPLICATION names.
pub(super) fn acquire(
    hub: &Hub,
    session: SlotSession,
    name: Option<String>,
    start: Lsn,
) -> Result<Acquired, Refusal> {
    let Some(name) = name else { return Ok(Acquired::Slot(None)) };
    let major = server_major(hub);
    let invalid = if major >= 18 { InvalidSlots::Refuse } else { InvalidSlots::Accept };
    let fault = match hub.holds.use_slot(&name, session, invalid) {
        Ok(slot) => return Ok(Acquired::Slot(Some(slot))),
        Err(fault) => fault,
    };
    match SlotName::parse(&name) {
        Ok(name) if matches!(fault, SlotFault::Unknown(_)) && is_automatic(hub, &name) => {
            let mut slots = hub.holds.slots.lock();
            // It needs the WAL from its start on.
            let reserve = Some(start).filter(|start| *start >= hub.holds.oldest_kept());
            let reserve = reserve.filter(|from| is_before_seams(hub, *from));
            let create = Create {
                name: name.clone(),
                lifetime: SlotLifetime::Persistent,
                origin: Origin::AutoCreated,
                reserve,
                session,
            };
            slots.create(create, hub.config.slots.max).map_err(|fault| refusal(fault, major))?;
            Ok(Acquired::CreateFirst(name))
        }
        _ => Err(refusal(fault, major)),
    }
}

/// Does `--auto-create-slots` create a slot of this name, and one more?
fn is_automatic(hub: &Hub, name: &SlotName) -> bool {
    let Some(auto) = &hub.config.slots.auto_create else { return false };
    if !auto.fits(name) {
        return false;
    }
    let room = hub.holds.slots.lock().auto_created() < auto.limit;
    if !room {
        tracing::warn!(
            "could not create replication slot \"{name}\" automatically: there are {} such slots \
             already (--auto-create-slots limit)",
            auto.limit
        );
    }
    room
}

/// Continues after a task.
pub(super) fn resume(
    hub: &Hub,
    session: &Session,
    own: SlotSession,
    done: SlotDone,
    out: &mut BytesMut,
) -> Result<Step, Refusal> {
    let SlotDone { task, result } = done;
    let failed = |what: &str, name: &SlotName| {
        let what = format!("could not {what} replication slot \"{name}\"");
        move |error: String| Refusal::error(sqlstate::IO_ERROR, format!("{what}: {error}"))
    };
    match task {
        SlotTask::Create { name } => {
            result.map_err(failed("save", &name))?;
            tracing::info!(pid = session.pid, "created replication slot \"{name}\"");
            created(&name, out);
            Ok(Step::Answered)
        }
        SlotTask::CreateThenStart { name, start, timeline } => {
            result.map_err(failed("save", &name))?;
            tracing::info!(pid = session.pid, "created replication slot \"{name}\" automatically");
            let name = name.as_str().to_owned();
            match acquire(hub, own, Some(name), start)? {
                Acquired::Slot(slot) => start_physical(hub, session, slot, timeline, start, out),
                // The slot was dropped in the meantime, so it is created again.
                Acquired::CreateFirst(name) => {
                    Ok(Step::Slot(SlotTask::CreateThenStart { name, start, timeline }))
                }
            }
        }
        SlotTask::Drop { name } => {
            result.map_err(failed("remove", &name))?;
            tracing::info!(pid = session.pid, "dropped replication slot \"{name}\"");
            backend::command_complete(out, "DROP_REPLICATION_SLOT");
            Ok(Step::Answered)
        }
        SlotTask::AwaitFree { name } => drop_slot(hub, own, &name, WhenActive::Wait, out),
    }
}

fn server_major(hub: &Hub) -> u32 {
    hub.identity().map_or(0, |identity| identity.server_major())
}

fn invalid_name(fault: InvalidName) -> Refusal {
    let text = fault.to_string();
    match fault {
        InvalidName::TooShort(_) => Refusal::error(sqlstate::INVALID_NAME, text),
        InvalidName::TooLong(_) => Refusal::error(sqlstate::NAME_TOO_LONG, text),
        InvalidName::InvalidCharacter(_) => Refusal::error(sqlstate::INVALID_NAME, text).with_hint(
            "Replication slot names may only contain lower case letters, numbers, and the \
                 underscore character.",
        ),
    }
}

fn refusal(fault: SlotFault, server_major: u32) -> Refusal {
    let text = fault.to_string();
    match fault {
        SlotFault::Unknown(name) => refusals::no_such_slot(&name),
        SlotFault::Exists(_) => Refusal::error(sqlstate::DUPLICATE_OBJECT, text),
        SlotFault::InUse { .. } => Refusal::error(sqlstate::OBJECT_IN_USE, text),
        SlotFault::Full => {
            let setting = quoted("max_replication_slots", server_major);
            Refusal::error(sqlstate::CONFIGURATION_LIMIT_EXCEEDED, text)
                .with_hint(format!("Free one or increase {setting}."))
        }
        SlotFault::Invalidated { cause, .. } => {
            Refusal::error(sqlstate::OBJECT_NOT_IN_PREREQUISITE_STATE, text).with_detail(format!(
                "This replication slot has been invalidated due to \"{cause}\"."
            ))
        }
    }
}

#[cfg(test)]
mod tests;
