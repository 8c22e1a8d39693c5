//! Several lines that are redrawn. Where that is impossible, one line is written from time to time.

use super::status::columns;
use std::io::{self, IsTerminal as _, Stdout, Write as _};
use std::time::{Duration, Instant};

/// The lines.
pub struct LiveLines {
    out: Stdout,
    terminal: bool,
    every: Duration,
    last: Option<Instant>,
    /// Lines on the screen now.
    drawn: usize,
}

impl LiveLines {
    /// On a terminal all lines are drawn each time; elsewhere a line is written at the interval
    /// `every`.
    pub fn new(out: Stdout, every: Duration) -> Self {
        let terminal = out.is_terminal();
        Self { out, terminal, every, last: None, drawn: 0 }
    }

    /// Replaces the previous lines.
    pub fn draw(&mut self, lines: &[String]) {
        let text = if self.terminal {
            self.redraw(lines)
        } else if self.last.is_none_or(|last| last.elapsed() >= self.every) {
            self.last = Some(Instant::now());
            // A single line, so that a log stays readable.
            let words = lines.iter().map(|line| line.trim()).filter(|line| !line.is_empty());
            words.collect::<Vec<_>>().join(" | ") + "\n"
        } else {
            return;
        };
        // If the output was closed, nobody reads it.
        drop(self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush()));
    }

    fn redraw(&mut self, lines: &[String]) -> String {
        use std::fmt::Write as _;
        let mut text = String::new();
        if self.drawn > 0 {
            write!(text, "\x1b[{}A", self.drawn).expect("writing to a string does not fail");
        }
        // Lines are never wider than the terminal: a wrapped line cannot be redrawn.
        let width = columns(&self.out).saturating_sub(1);
        for line in lines {
            text.extend("\r\x1b[K".chars().chain(line.chars().take(width)).chain(['\n']));
        }
        // Clears lines left over from a longer drawing.
        text += "\x1b[J";
        self.drawn = lines.len();
        text
    }

    /// Leaves the lines as they are; later output goes below them.
    pub fn finish(&mut self) {
        let end: io::Result<()> = self.out.write_all(b"\n").and_then(|()| self.out.flush());
        drop(end);
        self.drawn = 0;
    }
}

/// A one-line plot.
pub fn sparkline(values: impl Iterator<Item = f64> + Clone) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let most = values.clone().fold(0.0, f64::max);
    let bar = |value: f64| {
        let place = if most > 0.0 { value / most * 7.0 } else { 0.0 };
        BARS.get(place.round() as usize).copied().unwrap_or('█')
    };
    values.map(bar).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_value_is_the_highest_bar() {
        assert_eq!(sparkline([0.0, 50.0, 100.0].into_iter()), "▁▅█");
        assert_eq!(sparkline([0.0, 0.0].into_iter()), "▁▁");
    }
}
