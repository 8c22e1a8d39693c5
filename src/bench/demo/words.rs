//! What the demo has shown, in plain words and measured figures.

use super::scene::Latencies;
use super::{STALL, STANDBYS, STORM};
use crate::bench::report::table::verdict;
use crate::bench::report::{RunReport, say};

/// The summary.
pub(super) fn words(report: &RunReport, latencies: Latencies) -> String {
    let results = &report.results;
    let mut parts = Vec::new();
    if report.verdict.interrupted {
        let seconds = say::digits(results.seconds);
        parts.push(format!("Interrupted after {seconds} s of measuring."));
    }
    let checked = report.verdict.received_bytes == report.verdict.verified_bytes;
    if report.verdict.is_good() && checked {
        parts.push(format!(
            "{STANDBYS} standbys have received {} of WAL from one hub, and every byte of it was what \
             the primary had written. The primary wrote {} and sent it once.",
            say::bytes(report.verdict.received_bytes),
            say::bytes(report.series.last().map_or(0, |sample| sample.wal_bytes)),
        ));
    } else {
        parts.push(verdict(report).join("\n"));
    }
    if let Some((p50, p99)) = latencies.calm {
        let mut text = format!(
            "Half of the commits had reached the last of {} standbys {} after they were due, 99 of a \
             hundred after {}: made durable on the hub's disk, sent, received.",
            STANDBYS - 1,
            say::nanos(p50),
            say::nanos(p99)
        );
        if let Some((_, p99)) = latencies.with_storm {
            text += &format!(
                " That is before the reconnect in second {}. With the commits that had to wait for it, \
                 it is 99 of a hundred after {}, the figure in the table.",
                STORM.as_secs(),
                say::nanos(p99)
            );
        }
        parts.push(text);
    }
    if !report.verdict.interrupted {
        let stall = STALL.as_secs();
        let mut text = format!(
            "From second {stall} on, one standby did not read. The figures above are those of the \
             others: the hub waits for nobody."
        );
        if let Some(Some(seconds)) = results.storms.first() {
            text += &format!(
                " In second {} the others disconnected and reconnected all at once; the last one \
                 streamed again {} ms later.",
                STORM.as_secs(),
                say::digits(seconds * 1000.0)
            );
        }
        parts.push(text);
    }
    if let (Some(cpu), Some(memory)) = (results.cpu, results.memory) {
        let each = memory.private_per_standby(STANDBYS).unwrap_or(0);
        let per = cpu.per_delivery.map_or_else(String::new, |per| {
            format!(", {} µs for each commit and standby", say::digits(per))
        });
        parts.push(format!(
            "The hub used {:.0} % of a CPU{per}, and {} of memory, {} of it for each standby. A \
             PostgreSQL server runs a process for each of {STANDBYS} standbys; the README (\"The \
             arithmetic\") says what those cost and how they slow down commits.",
            cpu.cores * 100.0,
            say::bytes(memory.end.private),
            say::bytes(each)
        ));
    }
    parts.push(
        "Next:\n  walhub bench run --profile giant --html report.html    more load, and a page with \
         plots\n  walhub bench run --target 'host=... port=... user=...' the same for a server of \
         yours\n  walhub serve --help                                    the real thing"
            .to_owned(),
    );
    let folded: Vec<String> = parts.iter().map(|part| fold(part)).collect();
    format!("{}\n", folded.join("\n\n"))
}

/// Wraps long lines; existing line breaks stay.
fn fold(text: &str) -> String {
    const WIDTH: usize = 78;
    let mut lines = Vec::new();
    for line in text.lines() {
        if line.starts_with(' ') {
            lines.push(line.to_owned());
            continue;
        }
        let mut current = String::new();
        for word in line.split(' ') {
            if !current.is_empty() && current.chars().count() + 1 + word.chars().count() > WIDTH {
                lines.push(std::mem::take(&mut current));
            }
            if !current.is_empty() {
                current.push(' ');
            }
            current += word;
        }
        lines.push(current);
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::{FaultReport, fixture};

    #[test]
    fn the_summary_has_the_measured_figures() {
        let latencies = Latencies {
            calm: Some((1_500_000, 9_000_000)),
            with_storm: Some((1_600_000, 505_000_000)),
        };
        let text = words(&fixture::report(), latencies);
        for part in [
            "24.4 GiB",
            "1.50 ms",
            "9.00 ms",
            "hundred after 505 ms, the figure",
            "50 % of a CPU",
            "200 ms later",
        ] {
            assert!(text.replace('\n', " ").contains(part), "{part} is not in\n{text}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    }

    #[test]
    fn an_interrupted_demo_says_so() {
        let mut report = fixture::report();
        report.verdict.interrupted = true;
        let text = words(&report, Latencies::default());
        assert!(text.starts_with("Interrupted after 10.0 s of measuring."), "{text}");
        assert!(!text.contains("reconnected"), "{text}");
    }

    #[test]
    fn what_is_false_is_said() {
        let mut report = fixture::report();
        report.verdict.faults = 1;
        let text = "byte at 0/3000123 differs: expected 00, received 80".to_owned();
        let fault = FaultReport { standby: 17, lsn: "0/3000123".to_owned(), text };
        report.verdict.first_faults = vec![fault];
        let text = words(&report, Latencies::default());
        assert!(text.starts_with("FAULTY: 1 fault seen\n"), "{text}");
        assert!(!text.contains("every byte"), "{text}");
    }
}
