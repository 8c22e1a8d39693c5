//! The vocabulary of the wire: PostgreSQL's messages in both directions, the replication grammar,
//! connection strings and setting values. No I/O, no clock.
//!
//! Everything a peer can send is read through [`reader::Reader`] and the lexers here. Foreign bytes
//! never cause a panic (I11) and never make us allocate more than their length.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

pub mod backend;
pub mod backend_read;
pub mod command;
pub mod command_phase;
pub mod conninfo;
pub mod copy;
pub mod date;
pub mod frame;
pub mod frontend;
pub mod frontend_read;
pub mod passfile;
pub mod reader;
pub mod refusal;
pub mod secret;
pub mod sqlstate;
pub mod startup;
pub mod time;
pub mod units;
