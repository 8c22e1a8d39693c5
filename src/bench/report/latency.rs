//! A histogram of times, and the figures read from it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer as _, V2DeflateSerializer};
use serde::{Deserialize, Serialize};

/// Times, in nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// How many times.
    pub count: u64,
    /// The shortest.
    pub min: u64,
    /// Their mean.
    pub mean: u64,
    /// Half of them are no longer.
    pub p50: u64,
    /// Nine of ten are no longer.
    pub p90: u64,
    /// 99 of a hundred are no longer.
    pub p99: u64,
    /// 999 of a thousand are no longer.
    pub p999: u64,
    /// 9,999 of ten thousand are no longer.
    pub p9999: u64,
    /// The longest.
    pub max: u64,
    /// All times: HdrHistogram's V2 encoding, deflated, in base64, as in its log files. Empty when
    /// there are none.
    pub histogram: String,
}

impl From<&Histogram<u64>> for Latency {
    fn from(histogram: &Histogram<u64>) -> Self {
        if histogram.is_empty() {
            return Self::default();
        }
        let at = |quantile| histogram.value_at_quantile(quantile);
        Self {
            count: histogram.len(),
            min: histogram.min(),
            mean: histogram.mean() as u64,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            p9999: at(0.9999),
            max: histogram.max(),
            histogram: encode(histogram),
        }
    }
}

impl Latency {
    /// All the times; `None` when the text is not a histogram.
    pub fn to_histogram(&self) -> Option<Histogram<u64>> {
        let bytes = STANDARD.decode(&self.histogram).ok()?;
        Deserializer::new().deserialize(&mut bytes.as_slice()).ok()
    }
}

fn encode(histogram: &Histogram<u64>) -> String {
    let mut bytes = Vec::new();
    let written = V2DeflateSerializer::new().serialize(histogram, &mut bytes);
    written.expect("writing into memory does not fail, and counts of a run fit");
    STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_are_those_of_the_histogram() {
        let mut histogram = Histogram::new_with_bounds(1, 3_600_000_000_000, 3).unwrap();
        assert_eq!(Latency::from(&histogram), Latency::default());
        assert_eq!(Latency::default().to_histogram(), None);
        for n in 1..=100_000u64 {
            histogram.record(n * 1000).unwrap();
        }
        let latency = Latency::from(&histogram);
        let near = |value: u64, expected: u64| value.abs_diff(expected) <= expected / 1000;
        assert!(near(latency.p50, 50_000_000) && near(latency.p999, 99_900_000), "{latency:?}");
        assert_eq!(latency.count, 100_000);
        assert_eq!(latency.to_histogram(), Some(histogram));
    }
}
