//! One line that is redrawn. Where that is impossible, lines are written from time to time.

use crate::bench::run::{Moment, Watch};
use std::io::{self, IsTerminal as _, Write as _};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// The time between two lines in a file.
const IN_A_FILE: Duration = Duration::from_secs(5);

/// How much is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verbosity {
    /// Nothing.
    Quiet,
    /// The progress.
    Progress,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Where {
    Nowhere,
    Terminal,
    File,
}

/// A status line on the standard error output.
#[derive(Debug)]
pub struct Status {
    to: Where,
    last: Option<Instant>,
    open: bool,
}

impl Status {
    /// Shown or not, depending on `verbosity`.
    pub fn new(verbosity: Verbosity) -> Self {
        let to = match verbosity {
            Verbosity::Quiet => Where::Nowhere,
            Verbosity::Progress if io::stderr().is_terminal() => Where::Terminal,
            Verbosity::Progress => Where::File,
        };
        Self { to, last: None, open: false }
    }

    /// Changes the line.
    pub fn show(&mut self, text: &str) {
        match self.to {
            Where::Nowhere => {}
            Where::Terminal => {
                // The line is never wider than the terminal: a wrapped line cannot be redrawn.
                let width = columns(io::stderr()).saturating_sub(1);
                let text: String = text.chars().take(width).collect();
                say(&format!("\r\x1b[K{text}"));
                self.open = true;
            }
            Where::File => {
                if self.last.is_none_or(|last| last.elapsed() >= IN_A_FILE) {
                    say(&format!("{text}\n"));
                    self.last = Some(Instant::now());
                }
            }
        }
    }

    /// Writes a line that stays.
    pub fn step(&mut self, text: &str) {
        match self.to {
            Where::Nowhere => {}
            Where::Terminal => self.show(text),
            Where::File => say(&format!("{text}\n")),
        }
    }

    /// Nothing more to show.
    pub fn finish(&mut self) {
        if std::mem::take(&mut self.open) {
            say("\r\x1b[K");
        }
    }
}

/// The columns of the terminal, or a number that every terminal has.
pub(super) fn columns(terminal: impl AsFd) -> usize {
    let size = rustix::termios::tcgetwinsize(terminal);
    match size {
        Ok(size) if size.ws_col > 0 => usize::from(size.ws_col),
        _ => 80,
    }
}

/// Writes to the standard error output. If that was closed, nobody reads it.
fn say(text: &str) {
    drop(io::stderr().write_all(text.as_bytes()));
}

/// A run in one line.
#[derive(Debug)]
pub struct Progress {
    status: Status,
}

impl Progress {
    /// Shown or not, depending on `verbosity`.
    pub fn new(verbosity: Verbosity) -> Self {
        Self { status: Status::new(verbosity) }
    }

    /// The run is over.
    pub fn finish(&mut self) {
        self.status.finish();
    }
}

impl Watch for Progress {
    fn step(&mut self, text: &str) {
        self.status.step(text);
    }

    fn moment(&mut self, moment: &Moment) {
        self.status.show(&moment.line());
    }
}
