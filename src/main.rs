//! The `walhub` binary.
fn main() {}
