//! Stage 4: which standby gets what next. Works with positions and sizes, never with bytes or
//! sockets.
#![forbid(unsafe_code)]

pub mod cursor;
pub mod due;
pub mod message;
pub mod round;

pub use cursor::Cursor;
pub use due::DueStandbys;
pub use message::Message;
