//! An axis with the ticks we want, and no others.

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use std::ops::Range;

/// How values are spaced along an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scale {
    Linear,
    Logarithmic,
}

/// Ticks and their labels.
pub(super) type Ticks = Vec<(f64, String)>;

/// An axis.
#[derive(Debug, Clone)]
pub(super) struct Axis {
    scale: Scale,
    from: f64,
    to: f64,
    ticks: Ticks,
}

impl Axis {
    pub(super) fn new(scale: Scale, from: f64, to: f64, ticks: Ticks) -> Self {
        Self { scale, from, to, ticks }
    }

    /// How many ticks it has.
    pub(super) fn ticks(&self) -> usize {
        self.ticks.len()
    }

    fn place(&self, value: f64) -> f64 {
        let (from, to, value) = match self.scale {
            Scale::Linear => (self.from, self.to, value),
            Scale::Logarithmic => (self.from.ln(), self.to.ln(), value.max(self.from).ln()),
        };
        ((value - from) / (to - from)).clamp(0.0, 1.0)
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        from + (self.place(*value) * f64::from(to - from)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.ticks.iter().map(|(value, _)| *value).collect()
    }

    fn range(&self) -> Range<f64> {
        self.from..self.to
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, value: &f64) -> String {
        let tick = self.ticks.iter().find(|(tick, _)| tick.total_cmp(value).is_eq());
        tick.map(|(_, label)| label.clone()).unwrap_or_default()
    }
}

/// About six ticks at round values.
pub(super) fn steps(from: f64, to: f64, label: impl Fn(f64) -> String) -> Ticks {
    const WANTED: f64 = 6.0;
    let rough = ((to - from) / WANTED).max(1e-9);
    let power = 10f64.powf(rough.log10().floor());
    let round = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power);
    let step = round.into_iter().find(|step| *step >= 0.8 * rough).unwrap_or(rough);
    let (first, last) = ((from / step).ceil() as i64, (to / step).floor() as i64);
    // Steps below one are computed by division: 3 * 0.1 is not 0.3.
    let at = |n: i64| if step < 1.0 { n as f64 / (1.0 / step).round() } else { n as f64 * step };
    (first..=last).map(|n| (at(n), label(at(n)))).collect()
}

/// 1, 2 and 5 of each power of ten of milliseconds; only the powers when there are many.
pub(super) fn decades(from: f64, to: f64) -> Ticks {
    let factors: &[f64] = if to / from > 2000.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
    let powers = (from.log10().floor() as i32)..=(to.log10().ceil() as i32);
    let values = powers.flat_map(|power| factors.iter().map(move |f| f * 10f64.powi(power)));
    let label = |ms: f64| match ms {
        v if v < 0.999 => format!("{:.0} µs", v * 1000.0),
        v if v < 999.0 => format!("{v:.0} ms"),
        v => format!("{:.0} s", v / 1000.0),
    };
    values.filter(|v| (from..=to).contains(v)).map(|value| (value, label(value))).collect()
}

/// A tick at each nine: `0%`, `90%`, `99%`.
pub(super) fn nines(nines: f64) -> Ticks {
    let label = |n: i32| match n {
        0 => "0%".to_owned(),
        1 => "90%".to_owned(),
        2 => "99%".to_owned(),
        n => format!("99.{}%", "9".repeat(usize::try_from(n - 2).unwrap_or(0))),
    };
    let whole = (0..=nines.floor() as i32).map(|n| (f64::from(n), label(n)));
    let half = (2f64.log10(), "50%".to_owned());
    whole.chain([half]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(ticks: Ticks) -> String {
        ticks.into_iter().map(|(_, label)| label).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(labels(steps(-2.1, 10.0, |v| v.to_string())), "-2 0 2 4 6 8 10");
        assert_eq!(labels(steps(0.0, 0.52, |v| v.to_string())), "0 0.1 0.2 0.3 0.4 0.5");
        assert_eq!(labels(decades(0.08, 12.0)), "100 µs 200 µs 500 µs 1 ms 2 ms 5 ms 10 ms");
        assert_eq!(labels(decades(0.05, 3000.0)), "100 µs 1 ms 10 ms 100 ms 1 s");
        assert_eq!(labels(nines(3.3)), "0% 90% 99% 99.9% 50%");
    }

    #[test]
    fn values_lie_where_the_scale_says() {
        let linear = Axis::new(Scale::Linear, 0.0, 10.0, Vec::new());
        assert_eq!([0.0, 5.0, 20.0].map(|v| linear.map(&v, (100, 0))), [100, 50, 0]);
        let logarithmic = Axis::new(Scale::Logarithmic, 1.0, 100.0, Vec::new());
        assert_eq!([0.0, 10.0, 100.0].map(|v| logarithmic.map(&v, (0, 100))), [0, 50, 100]);
    }
}
