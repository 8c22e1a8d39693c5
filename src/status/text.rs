//! The model for people: tables, and lines that fit a terminal.

use super::table::{self, Align, Give, Heading, WIDTH};
use super::{
    AbandonedStatus, ArchiverStatus, EvidenceStatus, FenceStatus, FollowedUpstream, HubStatus,
    LosingSlot, RetentionStatus, ScrubStatus, SeamStatus, SetAsideStatus, SetBy, SlotStatus,
    StandbyStatus, StandbysStatus,
};
use crate::wire::date::date_millis;
use std::fmt::Display;
use std::io::{self, Write};
use std::time::Duration;

const fn name(head: &'static str) -> Heading {
    Heading { head, align: Align::Left, give: Give::Way }
}

const fn word(head: &'static str) -> Heading {
    Heading { head, align: Align::Left, give: Give::Nothing }
}

const fn number(head: &'static str) -> Heading {
    Heading { head, align: Align::Right, give: Give::Nothing }
}

/// Stands for what is unknown.
const NONE: &str = "-";

fn or_none<T: Display>(value: Option<T>) -> String {
    value.map_or_else(|| NONE.to_owned(), |value| value.to_string())
}

/// The column where the values of a status begin.
const HEAD: usize = 18;

/// Splits a text into lines of at most this many characters, between words where possible.
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
                let after = rest.chars().skip(width).collect();
                let head: String = rest.chars().take(width).collect();
                rest = after;
                lines.pop();
                lines.push(head);
            }
            lines.push(String::new());
        }
    }
    lines
}

/// The hub's state, in lines.
pub fn write_hub(status: &HubStatus, out: &mut impl Write) -> io::Result<()> {
    let mut line = |head: &str, text: String| {
        let mut head = format!("{head}:");
        for piece in wrapped(&text, WIDTH - HEAD) {
            writeln!(out, "{head:<HEAD$}{piece}")?;
            head.clear();
        }
        Ok::<_, io::Error>(())
    };
    let up = span(status.uptime);
    let hub = format!("walhub {}, pid {}, up {up}", status.walhub_version, status.pid);
    line("Hub", hub)?;
    line("Instance", status.instance_id.to_string())?;
    for above in status.instance_path.iter().skip(1) {
        line("  below", above.to_string())?;
    }
    line("System", or_none(status.system_id))?;
    line("Server version", or_none(status.server_version.as_ref()))?;
    line("Upstream", status.upstream.text.clone())?;
    line("  since", date_millis(status.upstream.since))?;
    if let Some(proof) = &status.upstream.proof {
        line("  history", proof.text.clone())?;
    }
    if status.upstream.weak_joins > 0 {
        line("  weak proofs", format!("{} since the start", status.upstream.weak_joins))?;
    }
    if let Some(fence) = &status.fence {
        line("Fence", fence_text(fence))?;
    }
    if let Some(evidence) = &status.evidence {
        line("Evidence", evidence_text(evidence))?;
        for other in &evidence.also {
            line("  and", evidence_text(other))?;
        }
    }
    for abandoned in &status.abandoned {
        line("Abandoned", abandoned.in_words())?;
    }
    for seam in &status.seams {
        line("Seam", seam.in_words())?;
    }
    for timeline in &status.archive_timelines {
        line("Archive's word", timeline.in_words())?;
    }
    if let Some(why) = &status.receiving_paused {
        line("Receiving", format!("paused: {why}"))?;
    }
    line("Timeline", or_none(status.timeline))?;
    line("Received", or_none(status.received_lsn))?;
    line("Written", or_none(status.written_lsn))?;
    line("Durable", or_none(status.durable_lsn))?;
    line("Oldest WAL kept", or_none(status.oldest_lsn))?;
    for missing in &status.missing {
        line("  missing", missing.segments.clone())?;
    }
    line("Standbys", format!("{} streaming, {} diverged", status.standbys, status.diverged))?;
    line("Senders", format!("{} of {}", status.senders, status.max_wal_senders))?;
    line("Slots", format!("{} of {}", status.slots, status.max_replication_slots))?;
    let (xmin, catalog_xmin) = (or_none(status.xmin), or_none(status.catalog_xmin));
    line("Feedback", format!("xmin {xmin}, catalog {catalog_xmin}"))?;
    if let Some(archiver) = &status.archiver {
        line("Archive", archiver_text(archiver))?;
    }
    line("Scrub", status.scrub.in_words())?;
    for damaged in &status.scrub.damaged {
        line("  damaged", damaged.in_words())?;
    }
    for aside in &status.set_aside {
        line("Set aside", aside_text(aside))?;
    }
    let shown = status.set_aside.len();
    if let Some(all) = status.set_aside_total.and_then(|total| total.beyond(shown)) {
        line("  in all", all)?;
    }
    match status.log_lines_lost {
        0 => Ok(()),
        lost => line("Log", format!("{lost} lines lost: standard error did not accept them")),
    }
}

fn aside_text(aside: &SetAsideStatus) -> String {
    format!("{} in {}, {}", size(aside.bytes), aside.name, confirmed_text(aside))
}

/// What is confirmed of what was set aside.
pub(super) fn confirmed_text(aside: &SetAsideStatus) -> String {
    let Some(confirmed) = aside.confirmed else { return "not confirmed".to_owned() };
    let span = |seconds| span(Duration::from_secs(seconds));
    let words = match confirmed.expires_in_seconds {
        Some(left) => format!("confirmed, goes in {}", span(left)),
        None => format!("confirmed, {} ago", span(confirmed.counted_seconds)),
    };
    match confirmed.left_out {
        0 => words,
        left_out => format!("{words}; files not confirmed: {left_out}"),
    }
}

fn evidence_text(evidence: &EvidenceStatus) -> String {
    format!(
        "other WAL at {} on timeline {}, found at {} at {}; {}",
        evidence.lsn,
        evidence.timeline,
        evidence.upstream,
        date_millis(evidence.since),
        evidence.consequence()
    )
}

fn archiver_text(archiver: &ArchiverStatus) -> String {
    let waiting = match archiver.waiting_segments + archiver.waiting_histories {
        0 => "nothing waits".to_owned(),
        1 => "1 file waits".to_owned(),
        files => format!("{files} files wait"),
    };
    let last = match &archiver.last_archived_wal {
        Some(wal) => format!("{} archived, the last one {wal}", archiver.archived_count),
        None => "none archived yet".to_owned(),
    };
    let failed = match (&archiver.last_failed_wal, archiver.last_failed_time) {
        (Some(wal), Some(time)) => {
            let (count, time) = (archiver.failed_count, date_millis(time));
            let attempts = if count == 1 { "attempt" } else { "attempts" };
            format!("; {count} failed {attempts}, the last one for {wal} at {time}")
        }
        _ => String::new(),
    };
    format!("{waiting}; {last}{failed}")
}

fn fence_text(fence: &FenceStatus) -> String {
    format!("at {} on timeline {}, since {}", fence.lsn, fence.timeline, date_millis(fence.since))
}

/// A time span in the two largest units.
fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

/// The upstream in force.
pub fn write_upstream(upstream: &FollowedUpstream, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{}", upstream.conninfo)?;
    match upstream.set_by {
        SetBy::Ctl => writeln!(out, "(set by walhub ctl instead of: {})", upstream.flag),
        SetBy::Flag => Ok(()),
    }
}

/// The fence, for people and for scripts that read the last word of a line.
pub fn write_fence(fence: Option<&FenceStatus>, out: &mut impl Write) -> io::Result<()> {
    let Some(fence) = fence else { return writeln!(out, "not fenced") };
    writeln!(out, "fenced")?;
    writeln!(out, "timeline: {}", fence.timeline)?;
    writeln!(out, "lsn: {}", fence.lsn)?;
    writeln!(out, "durable lsn: {}", fence.durable_lsn)?;
    writeln!(out, "since: {}", date_millis(fence.since))
}

/// What was abandoned, which seams stand and what was set aside, as long as they are not confirmed, a
/// line each.
pub fn write_unconfirmed(
    abandoned: &[AbandonedStatus],
    seams: &[SeamStatus],
    set_aside: &[SetAsideStatus],
    out: &mut impl Write,
) -> io::Result<()> {
    if abandoned.is_empty() && seams.is_empty() && set_aside.is_empty() {
        return writeln!(out, "nothing is left to confirm");
    }
    abandoned.iter().try_for_each(|entry| writeln!(out, "{}", entry.in_words()))?;
    seams.iter().try_for_each(|seam| writeln!(out, "{}", seam.in_words()))?;
    set_aside.iter().try_for_each(|aside| {
        let (text, name) = (aside_text(aside), &aside.name);
        writeln!(out, "{text}; when nobody needs it: walhub ctl confirm aside {name}")
    })
}

/// The evidence of other histories, a line for each source.
pub fn write_evidence(evidence: Option<&EvidenceStatus>, out: &mut impl Write) -> io::Result<()> {
    let Some(first) = evidence else { return writeln!(out, "no evidence of another history") };
    let mut all = std::iter::once(first).chain(&first.also);
    all.try_for_each(|one| writeln!(out, "{}", evidence_text(one)))
}

/// The connected standbys, and below them those that have diverged.
pub fn write_standbys(standbys: &StandbysStatus, out: &mut impl Write) -> io::Result<()> {
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
    writeln!(out, "\nDiverged: hold WAL that nobody follows, and need a new backup")?;
    let columns = [name("NAME"), name("CLIENT"), number("TLI"), word("LEFT AT"), word("HAS UP TO")];
    let rows = standbys.diverged.iter().map(|standby| {
        vec![
            standby.application_name.clone(),
            standby.peer.clone(),
            standby.timeline.to_string(),
            standby.left_lsn.to_string(),
            standby.lsn.to_string(),
        ]
    });
    table::write(&columns, &rows.collect::<Vec<_>>(), out)
}

fn standby_row(standby: &StandbyStatus) -> Vec<String> {
    // A standby that replays nothing lags by what it has not flushed.
    let (bytes, lag) = match standby.replay_lag_bytes {
        Some(bytes) => (Some(bytes), standby.replay_lag),
        None => (standby.flush_lag_bytes, standby.flush_lag),
    };
    vec![
        standby.pid.to_string(),
        standby.application_name.clone(),
        standby.client_addr.map_or_else(|| "local".to_owned(), |address| address.to_string()),
        standby.state.clone(),
        or_none(standby.timeline),
        or_none(standby.flush_lsn),
        or_none(standby.replay_lsn),
        or_none(bytes.map(size)),
        or_none(lag.map(|lag| format!("{:.0}s", lag.as_secs_f64()))),
        or_none(standby.slot_name.as_ref()),
    ]
}

/// A size in the largest unit that leaves at least two digits.
fn size(bytes: u64) -> String {
    let units = [(1 << 40, "TB"), (1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "kB")];
    let unit = units.into_iter().find(|(unit, _)| bytes >= 10 * unit);
    unit.map_or_else(|| format!("{bytes}B"), |(unit, name)| format!("{}{name}", bytes / unit))
}

/// Why a slot lost its WAL; for one whose WAL can be had again, why it once did.
fn invalid(slot: &SlotStatus) -> Option<String> {
    let reason = slot.invalidation_reason.as_ref()?;
    match slot.wal_status.as_deref() {
        None | Some("lost") => Some(reason.clone()),
        Some(_) => Some(format!("was {reason}")),
    }
}

/// The replication slots.
pub fn write_slots(slots: &[SlotStatus], out: &mut impl Write) -> io::Result<()> {
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
            or_none(slot.active_pid),
            or_none(slot.restart_lsn),
            or_none(slot.wal_status.as_ref()),
            or_none(safe),
            or_none(invalid(slot)),
            or_none(slot.inactive_since.map(date_millis)),
            made.to_owned(),
        ]
    });
    table::write(&columns, &rows.collect::<Vec<_>>(), out)
}

/// What scrubs have found.
pub fn write_scrub(scrub: &ScrubStatus, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "scrub: {}", scrub.in_words())?;
    scrub.damaged.iter().try_for_each(|damaged| writeln!(out, "damaged: {}", damaged.in_words()))
}

/// What would be removed next, and who keeps what.
pub fn write_retention(
    retention: Option<&RetentionStatus>,
    out: &mut impl Write,
) -> io::Result<()> {
    let Some(retention) = retention else { return writeln!(out, "there is no WAL yet") };
    let removable = match retention.removable_segments {
        0 => "nothing".to_owned(),
        segments => format!("{segments} segments, up to {}", retention.removable_lsn),
    };
    writeln!(out, "WAL:              {} to {}", retention.oldest_lsn, retention.durable_lsn)?;
    writeln!(out, "Would go now:     {removable}")?;
    for LosingSlot { slot_name, reason } in &retention.losing_slots {
        writeln!(out, "Would lose WAL:   slot {slot_name} ({reason})")?;
    }
    if let Some(slot) = &retention.next_slot {
        writeln!(out, "Next when full:   slot {slot}")?;
    }
    writeln!(out, "Receiving:        {}", retention.receiving)?;
    for aside in &retention.set_aside {
        writeln!(out, "Set aside:        {}", aside_text(aside))?;
    }
    let columns = [word("KEPT BY"), name("NAME"), word("FROM"), number("KEEPS"), number("ENDS IN")];
    let rows = retention.kept_by.iter().map(|kept| {
        vec![
            kept.reason.replace('_', " "),
            or_none(kept.name.as_ref()),
            kept.from_lsn.to_string(),
            size(kept.bytes),
            or_none(kept.ends_in.map(|left| format!("{:.0}s", left.as_secs_f64()))),
        ]
    });
    table::write(&columns, &rows.collect::<Vec<_>>(), out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{ConfirmedStatus, DivergedStandby};
    use crate::wal::{Lsn, TimelineId};
    use proptest::prelude::*;
    use std::time::UNIX_EPOCH;

    fn standby(application_name: &str) -> StandbyStatus {
        let lsn = Some(Lsn::new(0x1AB_3F00_0060));
        StandbyStatus {
            pid: 2_000_123_456,
            user: "replicator".to_owned(),
            application_name: application_name.to_owned(),
            client_addr: "2001:db8:1234:5678:9abc:def0:1234:5678".parse().ok(),
            client_port: Some(54321),
            backend_start: UNIX_EPOCH,
            instance_id: None,
            state: "end of timeline".to_owned(),
            timeline: TimelineId::new(12),
            sent_lsn: lsn,
            write_lsn: lsn,
            flush_lsn: lsn,
            replay_lsn: lsn,
            flush_lag_bytes: Some(1 << 34),
            replay_lag_bytes: Some(1 << 34),
            flush_lag: Some(Duration::from_millis(12_500)),
            replay_lag: Some(Duration::from_millis(3_725_250)),
            reply_time: None,
            slot_name: Some("a_slot_with_a_name_of_some_length".to_owned()),
        }
    }

    fn written(write: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> String {
        let mut out = Vec::new();
        write(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn standbys_fit_a_terminal() {
        let diverged = DivergedStandby {
            application_name: "lost".to_owned(),
            peer: "10.0.0.1:55555".to_owned(),
            timeline: TimelineId::FIRST,
            left_lsn: Lsn::new(0x300_0060),
            lsn: Lsn::new(0x500_0000),
        };
        let standbys = vec![standby("s1"), standby(&"name".repeat(15))];
        let all = StandbysStatus { standbys, diverged: vec![diverged] };
        let all = written(|out| write_standbys(&all, out));
        for line in all.lines() {
            assert!(line.chars().count() <= WIDTH, "{line}");
        }
        assert!(all.contains("1AB/3F000060  1AB/3F000060 "), "{all}");
        assert!(all.contains("16GB") && all.contains("3725s"), "{all}");
        assert!(all.contains("lost  10.0.0.1:55555    1  0/3000060  0/5000000"), "{all}");
        let nobody = written(|out| write_standbys(&StandbysStatus::default(), out));
        assert!(!nobody.contains("iverged"));
    }

    #[test]
    fn a_fence_is_easy_to_read_by_scripts() {
        let fence = FenceStatus {
            timeline: TimelineId::new(3).unwrap(),
            lsn: Lsn::new(0x500_0060),
            durable_lsn: Lsn::new(0x500_2000),
            since: UNIX_EPOCH,
        };
        let up = written(|out| write_fence(Some(&fence), out));
        assert_eq!(
            up,
            "fenced\ntimeline: 3\nlsn: 0/5000060\ndurable lsn: 0/5002000\n\
             since: 1970-01-01T00:00:00.000Z\n"
        );
        assert_eq!(written(|out| write_fence(None, out)), "not fenced\n");
    }

    #[test]
    fn a_slot_that_came_back_does_not_read_as_lost() {
        let slot = |status: Option<&str>| SlotStatus {
            slot_name: "s".to_owned(),
            temporary: false,
            active: true,
            active_pid: Some(7),
            restart_lsn: None,
            wal_status: status.map(str::to_owned),
            safe_wal_size: None,
            invalidation_reason: Some("idle_timeout".to_owned()),
            inactive_since: None,
            auto_created: false,
        };
        assert_eq!(invalid(&slot(Some("reserved"))).unwrap(), "was idle_timeout");
        assert_eq!(invalid(&slot(Some("lost"))).unwrap(), "idle_timeout");
    }

    #[test]
    fn what_was_set_aside_says_when_it_goes() {
        let text = |confirmed: Option<(Option<u64>, usize)>| {
            let confirmed = confirmed.map(|(expires_in_seconds, left_out)| ConfirmedStatus {
                counted_seconds: 7_260,
                expires_in_seconds,
                left_out,
            });
            let name = "diverged/1-0_5".to_owned();
            aside_text(&SetAsideStatus { name, bytes: 20 << 20, since: None, confirmed })
        };
        assert_eq!(text(None), "20MB in diverged/1-0_5, not confirmed");
        assert_eq!(
            text(Some((Some(200_000), 0))),
            "20MB in diverged/1-0_5, confirmed, goes in 2 d 7 h"
        );
        assert_eq!(
            text(Some((None, 3))),
            "20MB in diverged/1-0_5, confirmed, 2 h 1 min ago; files not confirmed: 3"
        );
        let aside =
            SetAsideStatus { name: "damaged/x".to_owned(), bytes: 5, since: None, confirmed: None };
        assert_eq!(
            written(|out| write_unconfirmed(&[], &[], &[aside], out)),
            "5B in damaged/x, not confirmed; when nobody needs it: walhub ctl confirm aside \
             damaged/x\n"
        );
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
        let spans = [0, 5, 65, 7_260, 200_000].map(|s| span(Duration::from_secs(s)));
        assert_eq!(spans, ["0 s", "5 s", "1 min 5 s", "2 h 1 min", "2 d 7 h"]);
    }
}
