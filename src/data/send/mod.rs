//! The send role: the standbys of one core, what they are sent, and what they say.
//!
//! From the bottom up: a stream's [`state`] and its [`sender`], which may stand before a `seam`; the `senders` of the core, with
//! everything that happens to one of them; on top of these, what standbys say (`listen`), orders
//! from elsewhere (`orders`), sends without a copy (`zerocopy`) and rounds of sends (`round`, which
//! sends what `payload` composes). [`SendRole`] holds all of them.

#[cfg(walhub_flip)]
mod flip;
mod listen;
mod orders;
mod payload;
mod quota;
mod role;
mod round;
mod seam;
pub mod sender;
mod senders;
pub mod state;
mod zerocopy;

pub use orders::HUB_PAUSE;
pub use role::SendRole;
pub use round::Slice;
