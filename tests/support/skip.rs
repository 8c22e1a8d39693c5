//! What cannot run here, said where somebody sees it.

use std::io::Write as _;

/// Says why this test, or a part of it, does not run: on a line of its own, past what the test
/// harness keeps to itself of a test that passes.
pub(crate) fn skipped(why: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    // There is nobody to tell that nobody can be told.
    drop(writeln!(std::io::stderr(), "skipped: {test}: {why}"));
}
