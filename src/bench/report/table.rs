//! A report as a table for the terminal.

use super::{Latency, Mode, RunReport, say};
use std::fmt::Write as _;

/// The report in some twenty lines.
pub fn table(report: &RunReport) -> String {
    let mut text = String::new();
    let plan = &report.plan;
    line(&mut text, format!("{}, {}", say::of(plan.standbys as u64, "standby"), plan.server));
    line(&mut text, plan.load.clone());
    for behaviour in &plan.behaviours {
        line(&mut text, behaviour.clone());
    }
    line(&mut text, String::new());
    for row in verdict(report) {
        line(&mut text, row);
    }
    line(&mut text, String::new());
    latencies(&mut text, report);
    for (name, row) in rows(report) {
        line(&mut text, format!("{name:<14}{row}"));
    }
    text
}

/// Whether the WAL was correct, and what else was wrong.
pub fn verdict(report: &RunReport) -> Vec<String> {
    let verdict = &report.verdict;
    let (received, verified) = (verdict.received_bytes, verdict.verified_bytes);
    let mut lines = Vec::new();
    match (verdict.faults, report.plan.verify.as_str()) {
        (0, "off") => lines.push(format!(
            "{} received in order; the bytes were not verified (--verify=off)",
            say::bytes(received)
        )),
        (0, _) if received == verified => {
            lines.push(format!("{} received, every byte of it verified", say::bytes(received)));
        }
        (0, _) => {
            lines.push(format!(
                "{} received, {} of it verified, nothing false in it; not verified:",
                say::bytes(received),
                say::bytes(verified)
            ));
            let parts = verdict.unverified.iter();
            lines.extend(parts.map(|part| format!("  {} {}", say::bytes(part.bytes), part.text)));
        }
        (faults, _) => {
            lines.push(format!("FAULTY: {} seen", say::of(faults, "fault")));
            let first = verdict.first_faults.iter().take(10);
            lines.extend(first.map(|fault| format!("  standby {}: {}", fault.standby, fault.text)));
        }
    }
    lines.extend(verdict.problems.iter().map(|problem| format!("PROBLEM: {problem}")));
    if verdict.interrupted {
        lines.push("interrupted before the end".to_owned());
    }
    lines
}

fn latencies(text: &mut String, report: &RunReport) {
    let results = &report.results;
    let mut rows: Vec<(&str, &Latency)> = vec![
        ("first standby", &results.first),
        ("each standby", &results.each),
        ("last standby", &results.last),
    ];
    rows.extend(results.commit.as_ref().map(|commit| ("the client", commit)));
    let groups = results.groups.iter().filter(|group| group.name != "good");
    rows.extend(groups.map(|group| (group.name.as_str(), &group.each)));
    rows.retain(|(_, latency)| latency.count > 0);
    if rows.is_empty() {
        return;
    }
    let heads = ["p50", "p90", "p99", "p99.9", "max"].map(|head| format!("{head:>11}"));
    line(text, format!("{:<18}{}", "commit to", heads.concat()));
    for (name, latency) in rows {
        let Latency { p50, p90, p99, p999, max, .. } = *latency;
        let cells = [p50, p90, p99, p999, max].map(|value| format!("{:>11}", say::nanos(value)));
        line(text, format!("  {name:<16}{}", cells.concat()));
    }
    line(text, String::new());
}

/// Names and figures.
pub(super) fn rows(report: &RunReport) -> Vec<(&'static str, String)> {
    let results = &report.results;
    let seconds = results.seconds;
    // A server that keeps up needs only a moment for the last bytes.
    let drain = match results.drained_after {
        late if late < 0.5 => String::new(),
        late => format!(", and {} s until the last byte had arrived", say::digits(late)),
    };
    let mut rows = vec![("measured", format!("{} s{drain}", say::digits(seconds)))];
    if report.plan.mode == Mode::Live {
        let commits = match results.commits {
            // Commits of other clients are not counted.
            0 => String::new(),
            commits => format!(
                "; {}, {}/s",
                say::of(commits, "commit"),
                say::digits(commits as f64 / seconds.max(f64::MIN_POSITIVE))
            ),
        };
        let rate = say::rate(results.wal_bytes, seconds);
        let row = format!("{} of WAL, {rate}{commits}", say::bytes(results.wal_bytes));
        rows.push(("written", row));
    }
    rows.push((
        "received",
        format!(
            "{} by all standbys, {}; {}, {} sent",
            say::bytes(results.delivered_bytes),
            say::rate(results.delivered_bytes, results.receiving_seconds()),
            say::of(results.messages, "message"),
            if results.replies == 1 {
                "1 reply".to_owned()
            } else {
                say::count(results.replies) + " replies"
            },
        ),
    ));
    if let Some(ingest) = results.ingest {
        let cpu = ingest
            .cpu_seconds
            .map_or_else(String::new, |cpu| format!(", {} CPU s", say::digits(cpu)));
        let row = format!(
            "{} in {} s, {}{cpu}",
            say::bytes(ingest.bytes),
            say::digits(ingest.seconds),
            say::rate(ingest.bytes, ingest.seconds)
        );
        rows.push(("taken before", row));
    }
    if let Some(cpu) = results.cpu {
        let per = |value: Option<f64>, unit: &str| {
            value.map_or_else(String::new, |value| format!(", {} {unit}", say::digits(value)))
        };
        rows.push((
            "server's CPU",
            format!(
                "{} s, {} cores{}{}{}",
                say::digits(cpu.seconds),
                say::digits(cpu.cores),
                per(cpu.per_gib, "s per GiB"),
                per(cpu.per_delivery, "µs per commit and standby"),
                per(cpu.per_message, "µs per message")
            ),
        ));
    }
    if let Some(memory) = results.memory {
        let each = memory
            .private_per_standby(report.plan.standbys)
            .map_or_else(String::new, |each| format!(" ({} for each standby)", say::bytes(each)));
        rows.push((
            "its memory",
            format!(
                "{} private with all standbys{each}, {} at the end; TCP buffers of the host {} at most",
                say::bytes(memory.streaming.private),
                say::bytes(memory.end.private),
                say::bytes(memory.tcp_most)
            ),
        ));
    }
    rows.extend(connections(report));
    if results.generator_late > 0 {
        let row = format!("at most {} behind its schedule", say::nanos(results.generator_late));
        rows.push(("the load was", row));
    }
    if results.incomplete_commits > 0 {
        let row = say::of(results.incomplete_commits, "commit");
        rows.push(("not by all", format!("{row} did not reach all good standbys in time")));
    }
    rows
}

fn connections(report: &RunReport) -> Vec<(&'static str, String)> {
    let results = &report.results;
    let mut rows = Vec::new();
    if results.connect.count > 0 {
        let all = results.all_streaming.map_or_else(String::new, |seconds| {
            format!("all streaming after {} s; ", say::digits(seconds))
        });
        let (p50, max) = (say::nanos(results.connect.p50), say::nanos(results.connect.max));
        rows.push(("connections", format!("{all}connect to stream p50 {p50}, max {max}")));
    }
    if results.reconnects > 0 {
        rows.push(("reconnects", say::count(results.reconnects)));
    }
    for storm in &results.storms {
        let row = match storm {
            Some(seconds) => format!("all streaming again after {} s", say::digits(*seconds)),
            None => "not all came back".to_owned(),
        };
        rows.push(("storm", row));
    }
    rows
}

fn line(text: &mut String, line: String) {
    writeln!(text, "{line}").expect("writing to a string does not fail");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::{FaultReport, UnverifiedReport, fixture};

    #[test]
    fn the_figures_stand_in_the_table() {
        let text = table(&fixture::report());
        for part in [
            "50 standbys, walhub 0.1.0",
            "24.4 GiB received, every byte of it verified",
            "last standby",
            "50.0 MiB/s; 64,000 commits, 6400/s",
            "0.20 s per GiB, 1.56 µs per commit and standby",
            "(20.5 KiB for each standby)",
            "all streaming again after 0.20 s",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }

    #[test]
    fn faults_are_said_first() {
        let mut report = fixture::report();
        report.verdict.faults = 2;
        let text = "byte at 0/3000123 differs: expected 00, received 80".to_owned();
        let fault = FaultReport { standby: 17, lsn: "0/3000123".to_owned(), text };
        report.verdict.first_faults = vec![fault];
        let lines = verdict(&report);
        assert_eq!(lines[0], "FAULTY: 2 faults seen");
        assert!(lines[1].contains("standby 17: byte at 0/3000123 differs"));
        report.verdict.faults = 0;
        report.verdict.verified_bytes -= 1;
        let (reason, text) = ("cut".to_owned(), "cut off".to_owned());
        report.verdict.unverified = vec![UnverifiedReport { reason, text, bytes: 1 }];
        let lines = verdict(&report);
        assert!(lines[0].ends_with("of it verified, nothing false in it; not verified:"));
        assert_eq!(lines[1], "  1 B cut off");
        report.plan.verify = "off".to_owned();
        assert!(verdict(&report)[0].contains("(--verify=off)"));
    }
}
