//! Answers for people.

use super::answer::{Archiver, Fence, OtherHistory, Said, Slot, Standby, Standbys, Status};
use super::table::{self, Align, Column, Give, WIDTH};
use crate::wire::units::format_duration;
use std::io::{self, Write};
use std::time::Duration;

const fn name(head: &'static str) -> Column {
    Column { head, align: Align::Left, give: Give::Way }
}

const fn word(head: &'static str) -> Column {
    Column { head, align: Align::Left, give: Give::Nothing }
}

const fn number(head: &'static str) -> Column {
    Column { head, align: Align::Right, give: Give::Nothing }
}

/// Writes an answer; an error is none.
pub(super) fn write(said: &Said, out: &mut impl Write) -> io::Result<()> {
    match said {
        Said::Status(status) => write_status(status, out),
        Said::Standbys(standbys) => write_standbys(standbys, out),
        Said::Slots(slots) => write_slots(slots, out),
        Said::Dropped(dropped) => writeln!(out, "dropped slot {}", dropped.slot_name),
        Said::Upstream(upstream) => {
            writeln!(out, "{}", upstream.conninfo)?;
            if upstream.set_by == "ctl" {
                writeln!(out, "(set by walhub ctl instead of: {})", upstream.flag)?;
            }
            Ok(())
        }
        Said::Fence(Some(fence)) => {
            writeln!(out, "fenced")?;
            writeln!(out, "timeline: {}", fence.timeline)?;
            writeln!(out, "lsn: {}", fence.lsn)
        }
        Said::Fence(None) => writeln!(out, "not fenced"),
        Said::Error(_) => Ok(()),
    }
}

/// What is not known.
const NONE: &str = "-";

fn or_none(text: &Option<String>) -> String {
    text.clone().unwrap_or_else(|| NONE.to_owned())
}

/// Where the values of a status begin.
const HEAD: usize = 18;

/// A text in lines of at most so many characters, cut between words where it has any.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let mut rest = word.to_owned();
        loop {
            let line = lines.last().map_or(0, |line| line.chars().count());
            let blank = usize::from(line > 0);
            if line + blank + rest.chars().count() <= width {
                if let Some(last) = lines.last_mut() {
                    last.push_str(if blank > 0 { " " } else { "" });
                    last.push_str(&rest);
                }
                break;
            }
            if line == 0 {
                let behind = rest.chars().skip(width).collect();
                let head: String = rest.chars().take(width).collect();
                rest = behind;
                lines.pop();
                lines.push(head);
            }
            lines.push(String::new());
        }
    }
    lines
}

fn write_status(status: &Status, out: &mut impl Write) -> io::Result<()> {
    let mut line = |head: &str, text: String| {
        let mut head = format!("{head}:");
        for piece in wrapped(&text, WIDTH - HEAD) {
            writeln!(out, "{head:<HEAD$}{piece}")?;
            head.clear();
        }
        Ok::<_, io::Error>(())
    };
    let up = Duration::from_secs(status.uptime_seconds);
    let hub = format!("walhub {}, pid {}, up {}", status.walhub_version, status.pid, span(up));
    line("Hub", hub)?;
    line("Instance", status.instance_id.clone())?;
    for above in status.instance_path.iter().skip(1) {
        line("  below", above.clone())?;
    }
    line("System", or_none(&status.system_id))?;
    line("Server version", or_none(&status.server_version))?;
    line("Upstream", status.upstream.text.clone())?;
    line("  since", status.upstream.since.clone())?;
    if let Some(fence) = &status.fence {
        line("Fence", fence_text(fence))?;
    }
    if let Some(evidence) = &status.evidence {
        line("Evidence", evidence_text(evidence))?;
    }
    if let Some(why) = &status.receiving_paused {
        line("Receiving", format!("paused: {why}"))?;
    }
    line("Timeline", status.timeline.map_or_else(|| NONE.to_owned(), |tli| tli.to_string()))?;
    line("Received", or_none(&status.received_lsn))?;
    line("Written", or_none(&status.written_lsn))?;
    line("Durable", or_none(&status.durable_lsn))?;
    line("Oldest WAL kept", or_none(&status.oldest_lsn))?;
    for missing in &status.missing {
        line("  missing", missing.segments.clone())?;
    }
    line("Standbys", format!("{} streaming, {} diverged", status.standbys, status.diverged))?;
    line("Senders", format!("{} of {}", status.senders, status.max_wal_senders))?;
    line("Slots", format!("{} of {}", status.slots, status.max_replication_slots))?;
    let xid = |xid: Option<u32>| xid.map_or_else(|| NONE.to_owned(), |xid| xid.to_string());
    line("Feedback", format!("xmin {}, catalog {}", xid(status.xmin), xid(status.catalog_xmin)))?;
    if let Some(archiver) = &status.archiver {
        line("Archive", archiver_text(archiver))?;
    }
    match status.log_lines_lost {
        0 => Ok(()),
        lost => line("Log", format!("{lost} lines lost: standard error did not take them")),
    }
}

fn evidence_text(evidence: &OtherHistory) -> String {
    format!(
        "other WAL at {} on timeline {}, found at {} at {}; nothing is received before a source \
         has ours there",
        evidence.lsn, evidence.timeline, evidence.upstream, evidence.since
    )
}

fn archiver_text(archiver: &Archiver) -> String {
    let waiting = match archiver.waiting_segments + archiver.waiting_histories {
        0 => "nothing waits".to_owned(),
        1 => "1 file waits".to_owned(),
        files => format!("{files} files wait"),
    };
    let last = match &archiver.last_archived_wal {
        Some(wal) => format!("{} archived, the last one {wal}", archiver.archived_count),
        None => "none archived yet".to_owned(),
    };
    let failed = match (&archiver.last_failed_wal, &archiver.last_failed_time) {
        (Some(wal), Some(time)) => {
            format!("; {} failed attempts, the last one for {wal} at {time}", archiver.failed_count)
        }
        _ => String::new(),
    };
    format!("{waiting}; {last}{failed}")
}

fn fence_text(fence: &Fence) -> String {
    format!("at {} on timeline {}, since {}", fence.lsn, fence.timeline, fence.since)
}

/// A time span in the two largest units.
fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format_duration(Duration::from_secs(seconds)),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

fn write_standbys(standbys: &Standbys, out: &mut impl Write) -> io::Result<()> {
    let columns = [
        number("PID"),
        name("NAME"),
        name("CLIENT"),
        name("STATE"),
        number("TLI"),
        word("FLUSH"),
        word("REPLAY"),
        number("LAG"),
        number("BEHIND"),
        name("SLOT"),
    ];
    let rows: Vec<_> = standbys.standbys.iter().map(standby_row).collect();
    table::write(&columns, &rows, out)?;
    if standbys.diverged.is_empty() {
        return Ok(());
    }
    writeln!(out, "\nDiverged: hold WAL that nobody follows, and need pg_rewind or a new backup")?;
    let columns = [name("NAME"), name("CLIENT"), number("TLI"), word("LEFT AT"), word("HAS UP TO")];
    let rows = standbys.diverged.iter().map(|standby| {
        vec![
            standby.application_name.clone(),
            standby.peer.clone(),
            standby.timeline.to_string(),
            standby.left_lsn.clone(),
            standby.lsn.clone(),
        ]
    });
    table::write(&columns, &rows.collect::<Vec<_>>(), out)
}

fn standby_row(standby: &Standby) -> Vec<String> {
    // Who replays nothing lags by what it has not flushed.
    let (bytes, seconds) = match standby.replay_lag_bytes {
        Some(bytes) => (Some(bytes), standby.replay_lag_seconds),
        None => (standby.flush_lag_bytes, standby.flush_lag_seconds),
    };
    vec![
        standby.pid.to_string(),
        standby.application_name.clone(),
        standby.client_addr.clone().unwrap_or_else(|| "local".to_owned()),
        standby.state.clone(),
        standby.timeline.map_or_else(|| NONE.to_owned(), |tli| tli.to_string()),
        or_none(&standby.flush_lsn),
        or_none(&standby.replay_lsn),
        bytes.map_or_else(|| NONE.to_owned(), size),
        seconds.map_or_else(|| NONE.to_owned(), |seconds| format!("{seconds:.0}s")),
        or_none(&standby.slot_name),
    ]
}

/// A size in the largest unit that leaves at least two digits.
fn size(bytes: u64) -> String {
    let units = [(1 << 40, "TB"), (1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "kB")];
    let unit = units.into_iter().find(|(unit, _)| bytes >= 10 * unit);
    unit.map_or_else(|| format!("{bytes}B"), |(unit, name)| format!("{}{name}", bytes / unit))
}

fn write_slots(slots: &[Slot], out: &mut impl Write) -> io::Result<()> {
    let columns = [
        name("SLOT"),
        number("PID"),
        word("RESTART"),
        word("STATUS"),
        number("SAFE"),
        word("INVALID"),
        name("UNUSED SINCE"),
        name("MADE"),
    ];
    let rows = slots.iter().map(|slot| {
        let safe = slot.safe_wal_size.map(|safe| match u64::try_from(safe) {
            Ok(safe) => size(safe),
            Err(_) => format!("-{}", size(safe.unsigned_abs())),
        });
        let made = match (slot.temporary, slot.auto_created) {
            (true, _) => "temporary",
            (false, true) => "automatically",
            (false, false) => "asked for",
        };
        vec![
            slot.slot_name.clone(),
            slot.active_pid.map_or_else(|| NONE.to_owned(), |pid| pid.to_string()),
            or_none(&slot.restart_lsn),
            or_none(&slot.wal_status),
            or_none(&safe),
            or_none(&slot.invalidation_reason),
            or_none(&slot.inactive_since),
            made.to_owned(),
        ]
    });
    table::write(&columns, &rows.collect::<Vec<_>>(), out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::answer::Diverged;
    use proptest::prelude::*;

    fn standby(application_name: &str) -> Standby {
        let lsn = || Some("1AB/3F000060".to_owned());
        Standby {
            pid: 2_000_123_456,
            user: "replicator".to_owned(),
            application_name: application_name.to_owned(),
            client_addr: Some("2001:db8:1234:5678:9abc:def0:1234:5678".to_owned()),
            client_port: Some(54321),
            backend_start: "2026-01-01T00:00:00.000Z".to_owned(),
            instance_id: None,
            state: "end of timeline".to_owned(),
            timeline: Some(12),
            sent_lsn: lsn(),
            write_lsn: lsn(),
            flush_lsn: lsn(),
            replay_lsn: lsn(),
            flush_lag_bytes: Some(1 << 34),
            replay_lag_bytes: Some(1 << 34),
            flush_lag_seconds: Some(12.5),
            replay_lag_seconds: Some(3725.25),
            reply_time: None,
            slot_name: Some("a_slot_with_a_name_of_some_length".to_owned()),
        }
    }

    fn text(said: &Said) -> String {
        let mut out = Vec::new();
        write(said, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn standbys_fit_a_terminal() {
        let diverged = Diverged {
            application_name: "lost".to_owned(),
            peer: "10.0.0.1:55555".to_owned(),
            timeline: 1,
            left_lsn: "0/3000060".to_owned(),
            lsn: "0/5000000".to_owned(),
        };
        let standbys = vec![standby("s1"), standby(&"name".repeat(15))];
        let all = text(&Said::Standbys(Standbys { standbys, diverged: vec![diverged] }));
        for line in all.lines() {
            assert!(line.chars().count() <= WIDTH, "{line}");
        }
        assert!(all.contains("1AB/3F000060  1AB/3F000060 "), "{all}");
        assert!(all.contains("16GB") && all.contains("3725s"), "{all}");
        assert!(all.contains("lost  10.0.0.1:55555    1  0/3000060  0/5000000"), "{all}");
        assert!(!text(&Said::Standbys(Standbys::default())).contains("iverged"));
    }

    #[test]
    fn a_fence_is_easy_to_read_by_scripts() {
        let fence = Fence {
            timeline: 3,
            lsn: "0/5000060".to_owned(),
            durable_lsn: "0/5002000".to_owned(),
            since: String::new(),
        };
        assert_eq!(text(&Said::Fence(Some(fence))), "fenced\ntimeline: 3\nlsn: 0/5000060\n");
        assert_eq!(text(&Said::Fence(None)), "not fenced\n");
    }

    #[test]
    fn long_texts_are_wrapped_between_words() {
        assert_eq!(wrapped("one two three", 9), ["one two", "three"]);
        assert_eq!(wrapped("short", 9), ["short"]);
        assert_eq!(wrapped("", 9), [""]);
        assert_eq!(wrapped("a 123456789012 b", 9), ["a", "123456789", "012 b"]);
    }

    proptest! {
        #[test]
        fn wrapping_loses_nothing(text in "[a-z ]{0,300}", width in 1usize..100) {
            let lines = wrapped(&text, width);
            prop_assert!(lines.iter().all(|line| line.chars().count() <= width));
            let bare = |text: &str| text.replace(' ', "");
            prop_assert_eq!(bare(&lines.concat()), bare(&text));
        }
    }

    #[test]
    fn sizes_and_spans() {
        assert_eq!([0, 10_239, 10_240, 1 << 30].map(size), ["0B", "10239B", "10kB", "1024MB"]);
        let spans = [5, 65, 7_260, 200_000].map(|s| span(Duration::from_secs(s)));
        assert_eq!(spans, ["5s", "1 min 5 s", "2 h 1 min", "2 d 7 h"]);
    }
}
