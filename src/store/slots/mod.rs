//! Replication slots for standbys: they keep WAL while nobody is connected.
//!
//! As in PostgreSQL, a slot's position is what its user reports as flushed, and it is written to
//! disk later: after a crash it may be older, but never newer, than what was confirmed. All slots
//! are written together, as a generation, by turns to one of two files. Retention uses the older
//! of the positions in the two, so that it does not matter which of them the next start can read.

mod change;
mod files;
mod former;
mod generation;
mod holder;
mod name;
mod record;
mod shared;
mod slot;
mod table;

pub use change::{Loss, SlotChange};
pub use files::{FoundGenerations, SlotFiles};
pub use former::{read_former, remove_former};
pub use generation::Generation;
pub use holder::{SlotSession, SlotToken};
pub use name::{InvalidName, SlotName};
pub use record::{Cause, Origin, SlotRecord};
pub use shared::{SlotUse, Slots, TemporarySlots};
pub use slot::{Slot, WalStatus};
pub use table::{Create, InvalidSlots, SlotFault, SlotGrant, SlotTable};
