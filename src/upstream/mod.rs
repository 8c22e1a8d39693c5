//! Stage 1: the connection to the upstream.
#![forbid(unsafe_code)]

pub mod apply;
pub mod credentials;
pub mod damage;
pub mod end;
pub mod follow;
pub mod judge;
pub mod login;
pub mod oldest;
pub mod place;
pub mod position;
pub mod proof;
pub mod state;
pub mod stream;
pub mod supervise;
