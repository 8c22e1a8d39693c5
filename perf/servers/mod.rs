//! The servers that are compared: PostgreSQL 15 and the hub, run as an operator would.

mod bed;
mod cluster;
mod hub;
mod programs;
mod workplace;

pub(crate) use bed::{Bed, Birth, Serving, Way};
pub(crate) use hub::Hub;
pub(crate) use programs::Programs;
pub(crate) use workplace::Workplace;

/// The user of every connection.
pub(crate) const USER: &str = "postgres";
