//! Numbers by subject and measure, in the order in which they first came.

use serde::ser::{Serialize, SerializeMap, Serializer};

/// The median; of an even number the mean of the middle two.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN);
    if sorted.len() % 2 == 1 {
        return upper;
    }
    let lower = sorted.len().checked_sub(2).and_then(|n| sorted.get(n / 2)).copied();
    (lower.unwrap_or(f64::NAN) + upper) / 2.0
}

/// All samples of a row.
#[derive(Debug, Clone, Default)]
pub(crate) struct Samples {
    subjects: Vec<Subject>,
    measures: Vec<String>,
}

#[derive(Debug, Clone)]
struct Subject {
    name: String,
    /// By place in `measures`.
    values: Vec<Vec<f64>>,
}

/// What is known of one measure of one subject.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

impl Samples {
    pub(crate) fn add(&mut self, subject: &str, measure: &str, value: f64) {
        let place = self.measures.iter().position(|known| known == measure).unwrap_or_else(|| {
            self.measures.push(measure.to_owned());
            self.measures.len() - 1
        });
        let who =
            self.subjects.iter().position(|known| known.name == subject).unwrap_or_else(|| {
                self.subjects.push(Subject { name: subject.to_owned(), values: Vec::new() });
                self.subjects.len() - 1
            });
        let values = &mut self.subjects[who].values;
        if values.len() <= place {
            values.resize(place + 1, Vec::new());
        }
        values[place].push(value);
    }

    /// Takes over some measures of another row's samples.
    pub(crate) fn take(&mut self, other: &Self, measures: &[&str]) {
        for subject in other.subjects() {
            for measure in measures {
                for value in other.values(subject, measure) {
                    self.add(subject, measure, *value);
                }
            }
        }
    }

    /// All values, in the order in which they came.
    pub(crate) fn values(&self, subject: &str, measure: &str) -> &[f64] {
        let place = self.measures.iter().position(|known| known == measure);
        let subject = self.subjects.iter().find(|known| known.name == subject);
        let values = subject.zip(place).and_then(|(subject, place)| subject.values.get(place));
        values.map_or(&[], Vec::as_slice)
    }

    /// The median; not a number when there is none.
    pub(crate) fn median(&self, subject: &str, measure: &str) -> f64 {
        median(self.values(subject, measure))
    }

    pub(super) fn spread(&self, subject: &str, measure: &str) -> Option<Spread> {
        let values = self.values(subject, measure);
        let extreme = |pick: fn(f64, f64) -> f64| values.iter().copied().reduce(pick);
        Some(Spread { median: median(values), min: extreme(f64::min)?, max: extreme(f64::max)? })
    }

    pub(super) fn subjects(&self) -> impl Iterator<Item = &str> {
        self.subjects.iter().map(|subject| subject.name.as_str())
    }

    pub(super) fn measures(&self) -> impl Iterator<Item = &str> {
        self.measures.iter().map(String::as_str)
    }
}

/// `{subject: {measure: {median, min, max, values}}}`
impl Serialize for Samples {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(serde::Serialize)]
        struct Cell<'a> {
            #[serde(flatten)]
            spread: Spread,
            values: &'a [f64],
        }
        let mut map = serializer.serialize_map(Some(self.subjects.len()))?;
        for subject in self.subjects() {
            let cells: serde_json::Map<String, serde_json::Value> = self
                .measures()
                .filter_map(|measure| {
                    let values = self.values(subject, measure);
                    let spread = self.spread(subject, measure)?;
                    let cell = serde_json::to_value(Cell { spread, values }).ok()?;
                    Some((measure.to_owned(), cell))
                })
                .collect();
            map.serialize_entry(subject, &cells)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert!(median(&[]).is_nan());
        for (values, expected) in [(&[3.0][..], 3.0), (&[4.0, 1.0], 2.5), (&[9.0, 1.0, 2.0], 2.0)] {
            assert!((median(values) - expected).abs() < 1e-9, "{values:?}");
        }
        assert!((median(&[1.0, 2.0, 3.0, 10.0]) - 2.5).abs() < 1e-9);
    }

    #[test]
    fn samples_are_found_again() {
        let mut samples = Samples::default();
        samples.add("hub", "cpu", 2.0);
        samples.add("pg", "memory", 7.0);
        samples.add("hub", "cpu", 4.0);
        assert_eq!(samples.values("hub", "cpu"), [2.0, 4.0]);
        assert_eq!(samples.values("pg", "cpu"), [0.0; 0]);
        let json = serde_json::to_value(&samples).unwrap_or_default();
        assert_eq!(json["hub"]["cpu"]["median"], 3.0);
        assert_eq!(json["pg"]["memory"]["values"][0], 7.0);
    }
}
