//! Replication slots for standbys: who keeps WAL although nobody is connected.
//!
//! As in PostgreSQL a slot's position is what its user reports as flushed, and is
//! written down later: after a crash it may be older, never newer than was confirmed.
//! Retention goes by what is on disk. One file per slot, `slots/<name>`.

mod file;
mod name;
mod shared;
mod slot;
mod table;

pub use file::{Cause, Origin, SlotFile};
pub use name::{InvalidName, SlotName};
pub use shared::{SlotUse, Slots};
pub use slot::{Slot, WalStatus};
pub use table::{Create, InvalidSlots, SlotFault, SlotTable};
