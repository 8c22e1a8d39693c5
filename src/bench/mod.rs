//! The load generator: a synthetic primary that writes valid WAL, thousands of
//! synthetic standbys that verify it, and what is measured between the two.
#![forbid(unsafe_code)]

pub mod cli;
pub mod clock;
pub mod commits;
pub mod demo;
pub mod measure;
pub mod primary;
pub mod profile;
pub mod random;
pub mod report;
pub mod run;
pub mod schedule;
pub mod sql;
pub mod standbys;
pub mod terminal;
pub mod truth;
