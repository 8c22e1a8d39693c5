//! Replication slots for standbys: they keep WAL while nobody is connected.
//!
//! As in PostgreSQL, a slot's position is what its user reports as flushed, and it is written to
//! disk later: after a crash it may be older, but never newer, than what was confirmed.
//! Retention uses the position on disk. One file per slot, `slots/<name>`.

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
