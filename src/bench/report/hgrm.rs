//! A histogram in the text form that HdrHistogram's own plotters read (`.hgrm`).

use hdrhistogram::Histogram;
use std::fmt::Write as _;

/// Lines for each halving of the remaining values.
const TICKS: u32 = 5;

/// The times in milliseconds, by percentile.
pub fn hgrm(histogram: &Histogram<u64>) -> String {
    let ms = |nanos: f64| nanos / 1e6;
    let mut text = format!(
        "{:>12} {:>14} {:>10} {:>14}\n\n",
        "Value", "Percentile", "TotalCount", "1/(1-Percentile)"
    );
    let mut line = |line: std::fmt::Arguments<'_>| {
        text.write_fmt(line).expect("writing to a string does not fail");
    };
    for step in histogram.iter_quantiles(TICKS) {
        let (value, quantile) = (ms(step.value_iterated_to() as f64), step.quantile_iterated_to());
        let count = histogram.count_between(0, step.value_iterated_to());
        line(format_args!("{value:12.3} {quantile:2.12} {count:10}"));
        // The last line has no such number.
        if quantile < 1.0 {
            line(format_args!(" {:14.2}", 1.0 / (1.0 - quantile)));
        }
        line(format_args!("\n"));
    }
    line(format_args!(
        "#[Mean    = {:12.3}, StdDeviation   = {:12.3}]\n",
        ms(histogram.mean()),
        ms(histogram.stdev())
    ));
    line(format_args!(
        "#[Max     = {:12.3}, Total count    = {:12}]\n",
        ms(histogram.max() as f64),
        histogram.len()
    ));
    line(format_args!(
        "#[Buckets = {:12}, SubBuckets     = {:12}]\n",
        histogram.buckets(),
        sub_buckets(histogram.sigfig())
    ));
    text
}

/// The smallest power of two that distinguishes values of `digits` digits.
fn sub_buckets(digits: u8) -> u32 {
    (2 * 10u32.pow(u32::from(digits))).next_power_of_two()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_is_hdrhistograms() {
        let mut histogram = Histogram::new_with_bounds(1, 3_600_000_000_000, 3).unwrap();
        for n in 1..=1000u64 {
            histogram.record(n * 1_000_000).unwrap();
        }
        let text = hgrm(&histogram);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "       Value     Percentile TotalCount 1/(1-Percentile)");
        assert!(
            lines[2].starts_with("       1.0") && lines[2].contains(" 0.000000000000 "),
            "{text}"
        );
        let last = lines.iter().rposition(|line| !line.starts_with('#')).unwrap();
        let words: Vec<&str> = lines[last].split_whitespace().collect();
        assert_eq!(words[1..], ["1.000000000000", "1000"], "{text}");
        let mut counts = lines[2..=last]
            .iter()
            .map(|line| line.split_whitespace().nth(2).unwrap().parse::<u64>().unwrap());
        assert!(counts.clone().is_sorted() && counts.next() == Some(1), "{text}");
        assert!(text.contains("Total count    =         1000]\n"), "{text}");
        assert!(text.ends_with("SubBuckets     =         2048]\n"), "{text}");
    }
}
