//! Several lines that change; where lines cannot change, one of them now and then.

use super::status::columns;
use std::io::{self, IsTerminal as _, Stdout, Write as _};
use std::time::{Duration, Instant};

/// The lines.
pub struct Board {
    out: Stdout,
    terminal: bool,
    every: Duration,
    last: Option<Instant>,
    /// On the screen now.
    drawn: usize,
}

impl Board {
    /// On a terminal all lines are drawn each time, elsewhere so often.
    pub fn new(out: Stdout, every: Duration) -> Self {
        let terminal = out.is_terminal();
        Self { out, terminal, every, last: None, drawn: 0 }
    }

    /// Shows them instead of those before.
    pub fn draw(&mut self, lines: &[String]) {
        let text = if self.terminal {
            self.redraw(lines)
        } else if self.last.is_none_or(|last| last.elapsed() >= self.every) {
            self.last = Some(Instant::now());
            // One line, so that a log of it can be read.
            let words = lines.iter().map(|line| line.trim()).filter(|line| !line.is_empty());
            words.collect::<Vec<_>>().join(" | ") + "\n"
        } else {
            return;
        };
        // Whoever closed our output does not want to know.
        drop(self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush()));
    }

    fn redraw(&mut self, lines: &[String]) -> String {
        use std::fmt::Write as _;
        let mut text = String::new();
        if self.drawn > 0 {
            write!(text, "\x1b[{}A", self.drawn).expect("writing to a string does not fail");
        }
        // Never wider than the terminal: a wrapped line cannot be taken back.
        let width = columns(&self.out).saturating_sub(1);
        for line in lines {
            text.extend("\r\x1b[K".chars().chain(line.chars().take(width)).chain(['\n']));
        }
        // Fewer than before: the rest goes.
        text += "\x1b[J";
        self.drawn = lines.len();
        text
    }

    /// They stay as they are; what comes is below.
    pub fn finish(&mut self) {
        let end: io::Result<()> = self.out.write_all(b"\n").and_then(|()| self.out.flush());
        drop(end);
        self.drawn = 0;
    }
}

/// A plot of one line.
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
