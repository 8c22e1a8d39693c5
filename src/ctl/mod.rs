//! `walhub ctl`: the requests to a running hub, its answers, and the client. The hub's side is in
//! [`control`](crate::control).
#![forbid(unsafe_code)]

pub mod address;
pub mod answer;
mod client;
pub mod flags;
pub mod request;

pub use client::ctl;
