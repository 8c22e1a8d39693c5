//! Stage 4: who gets what next. Speaks of positions and sizes, never of bytes or
//! sockets.
#![forbid(unsafe_code)]

pub mod cursor;
pub mod due;
pub mod message;
pub mod round;

pub use cursor::Cursor;
pub use due::Due;
pub use message::Message;
