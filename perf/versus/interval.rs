//! An interval for the median of pairs' ratios that assumes no distribution.
//!
//! Each ratio lies above the true median with probability one half, so the number of
//! those that do is binomial, and order statistics enclose the median with a probability
//! that is known.

use crate::report::median;
use serde::Serialize;

/// What an interval is to enclose the median with.
const CONFIDENCE: f64 = 0.9;

/// A median and what is known of it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Interval {
    pub(super) median: f64,
    pub(super) low: f64,
    pub(super) high: f64,
    /// The probability that such an interval encloses the true median: at least 0.9.
    pub(super) confidence: f64,
}

impl Interval {
    /// Returns `None` when there are too few values for any interval: fewer than five.
    pub(super) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (rank, confidence) = rank(sorted.len())?;
        let low = *sorted.get(rank - 1)?;
        let high = *sorted.get(sorted.len() - rank)?;
        Some(Self { median: median(values), low, high, confidence })
    }
}

/// The greatest rank, from 1, whose order statistic and its mirror image enclose the
/// median of so many values with enough confidence, and how much that is.
fn rank(count: usize) -> Option<(usize, f64)> {
    let (mut best, mut below, mut term) = (None, 0.0, 0.5f64.powi(i32::try_from(count).ok()?));
    for rank in 1..=count / 2 {
        // P(fewer than `rank` values lie below the median).
        below += term;
        let confidence = 1.0 - 2.0 * below;
        if confidence < CONFIDENCE {
            break;
        }
        best = Some((rank, confidence));
        term *= (count - rank + 1) as f64 / rank as f64;
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_those_of_the_binomial_tables() {
        // Conover, Practical Nonparametric Statistics: quantile tests with p = 1/2.
        for (count, expected, confidence) in
            [(5, 1, 0.9375), (8, 2, 0.9297), (10, 2, 0.9785), (20, 6, 0.9586), (30, 11, 0.9013)]
        {
            let (rank, found) = rank(count).unwrap();
            assert_eq!(rank, expected, "{count}");
            assert!((found - confidence).abs() < 1e-4, "{count}: {found}");
        }
        assert_eq!((rank(0), rank(4)), (None, None));
    }

    #[test]
    fn outliers_move_nothing() {
        let mut values: Vec<f64> = (1..=20).map(f64::from).collect();
        values.swap(0, 13);
        let interval = Interval::of(&values).unwrap();
        assert_eq!((interval.median, interval.low, interval.high), (10.5, 6.0, 15.0));
        values.iter_mut().filter(|value| **value == 20.0).for_each(|value| *value = 1e9);
        assert_eq!(Interval::of(&values), Some(interval));
        assert_eq!(Interval::of(&[1.0, 2.0]), None);
    }
}
