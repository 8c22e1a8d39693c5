//! `walhub ctl`: what a running hub can be asked, its answers, and the program that asks.
//! The hub's side is in [`control`](crate::control).
#![forbid(unsafe_code)]

pub mod address;
pub mod answer;
mod client;
pub mod flags;
pub mod request;

pub use client::ctl;
