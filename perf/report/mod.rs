//! What a row says: samples, ratios, and whether its targets are met.

mod keep;
mod plot;
mod samples;
mod summary;
mod table;

pub(crate) use keep::{Keeper, KeptPlot, usual_folder};
pub(crate) use plot::{Curve, plot};
pub(crate) use samples::{Samples, median};
pub(crate) use summary::summary;
pub(crate) use table::{number, table};

use crate::machine::load_average;
use serde::{Deserialize, Serialize};

/// A number that has to be on one side of another.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

impl Bound {
    fn is_kept(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::AtLeast(least) => value >= least,
        }
    }
}

/// A target of the design with what was measured.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Goal {
    pub(crate) what: String,
    pub(crate) measured: f64,
    pub(crate) must: Bound,
    pub(crate) stretch: Option<Bound>,
    verdict: Verdict,
}

/// How a target came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Missed,
    MustMet,
    StretchMet,
    /// One of the two figures is missing.
    Unknown,
}

impl Verdict {
    const fn words(self) -> &'static str {
        match self {
            Self::Missed => "MISSED",
            Self::MustMet => "must met",
            Self::StretchMet => "stretch met",
            Self::Unknown => "not measured",
        }
    }
}

impl Goal {
    fn new(what: String, measured: f64, must: Bound, stretch: Option<Bound>) -> Self {
        let verdict = if !measured.is_finite() {
            Verdict::Unknown
        } else if !must.is_kept(measured) {
            Verdict::Missed
        } else if stretch.is_some_and(|bound| bound.is_kept(measured)) {
            Verdict::StretchMet
        } else {
            Verdict::MustMet
        };
        Self { what, measured, must, stretch, verdict }
    }
}

/// One figure divided by another, of medians.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Ratio {
    pub(crate) what: String,
    pub(crate) value: f64,
}

/// The outcome of a row.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Report {
    pub(crate) row: String,
    pub(crate) title: String,
    /// What was done, so that it can be judged and done again.
    pub(crate) how: String,
    /// When the row began: a machine with other work makes poor figures.
    pub(crate) load_average: String,
    pub(crate) samples: Samples,
    pub(crate) ratios: Vec<Ratio>,
    pub(crate) goals: Vec<Goal>,
    #[serde(skip)]
    pub(crate) plots: Vec<KeptPlot>,
}

impl Report {
    pub(crate) fn new(row: &str, title: &str, how: impl Into<String>) -> Self {
        Self {
            row: row.to_owned(),
            title: title.to_owned(),
            how: how.into(),
            load_average: load_average(),
            samples: Samples::default(),
            ratios: Vec::new(),
            goals: Vec::new(),
            plots: Vec::new(),
        }
    }

    /// A measure of one subject divided by that of another; kept when both are there.
    pub(crate) fn ratio(&mut self, measure: &str, of: &str, to: &str) -> f64 {
        let value = self.samples.median(of, measure) / self.samples.median(to, measure);
        if value.is_finite() {
            self.ratios.push(Ratio { what: format!("{measure}: {of} / {to}"), value });
        }
        value
    }

    /// A target for any number.
    pub(crate) fn goal(&mut self, what: &str, measured: f64, must: Bound, stretch: Bound) {
        self.goals.push(Goal::new(what.to_owned(), measured, must, Some(stretch)));
    }

    /// A target for a measure of one subject.
    pub(crate) fn target(&mut self, subject: &str, measure: &str, must: Bound, stretch: Bound) {
        let measured = self.samples.median(subject, measure);
        self.goal(&format!("{subject}, {measure}"), measured, must, stretch);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_judged_by_their_bounds() {
        let goal = |measured, must, stretch| Goal::new(String::new(), measured, must, stretch);
        let most = |value| goal(value, Bound::AtMost(7.0), Some(Bound::AtMost(5.0))).verdict;
        assert_eq!(most(7.1), Verdict::Missed);
        assert_eq!(most(7.0), Verdict::MustMet);
        assert_eq!(most(5.0), Verdict::StretchMet);
        assert_eq!(most(f64::NAN), Verdict::Unknown);
        let least = |value| goal(value, Bound::AtLeast(0.8), None).verdict;
        assert_eq!((least(0.7), least(0.9)), (Verdict::Missed, Verdict::MustMet));
    }

    #[test]
    fn ratios_are_of_medians() {
        let mut report = Report::new("row", "title", "how");
        for (a, b) in [(1.0, 10.0), (2.0, 20.0), (9.0, 90.0)] {
            report.samples.add("a", "cpu", a);
            report.samples.add("b", "cpu", b);
        }
        assert!((report.ratio("cpu", "a", "b") - 0.1).abs() < 1e-9);
        assert!(report.ratio("cpu", "a", "nobody").is_nan());
        assert_eq!(report.ratios.len(), 1);
    }
}
