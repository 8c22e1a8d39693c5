//! What `inspect` finds in good and in damaged directories.

use super::*;
use crate::store::evidence::WalSource;
use crate::store::faulty_disk::FaultyDisk;
use crate::wal::synth::Synth;
use crate::wal::{Lsn, SystemId};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};

const MIB: u64 = 1 << 20;

fn hub() -> (tempfile::TempDir, Layout, Lsn) {
    hub_with(Lsn::new(6 * MIB + MIB / 3))
}

/// WAL up to `end`, or a little more, in segments 3 to 6.
fn hub_with(end: Lsn) -> (tempfile::TempDir, Layout, Lsn) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let layout = Layout::new(dir.path());
    std::fs::DirBuilder::new().mode(0o700).create(layout.wal()).unwrap();
    let size = SegmentSize::new(MIB).unwrap();
    let (system_id, start) = (SystemId::new(9), Lsn::new(3 * MIB));
    let mut synth = Synth::new(system_id, size, TimelineId::FIRST, 0xD110, start);
    while synth.position() < end {
        synth.record(&[1; 900]);
    }
    let (_, mut bytes) = synth.take_bytes();
    bytes.resize(4 * MIB as usize, 0);
    for (no, bytes) in (3..).zip(bytes.chunks(MIB as usize)) {
        let name = SegmentName { tli: TimelineId::FIRST, no: SegmentNo::new(no), size };
        let path = if no < 6 { layout.segment(name) } else { layout.partial(name) };
        std::fs::write(path, bytes).unwrap();
    }
    let cluster = Cluster {
        system_id,
        segment_size: size,
        data_directory_mode: "0700".to_owned(),
        parameters: vec![("server_version".to_owned(), "15.18".to_owned())],
        timeline: TimelineId::FIRST,
        start,
        sealed: Vec::new(),
    };
    let control = ControlFile { instance: InstanceId::new(5), cluster: Some(cluster) };
    std::fs::write(layout.control(), control.encode()).unwrap();
    (dir, layout, synth.position())
}

fn report(layout: &Layout) -> DirectoryStatus {
    inspect_now(layout).unwrap()
}

/// A hub completes its open segment while the file is looked for, and goes on in the next one.
#[test]
fn a_running_hub_may_rename_what_is_looked_at() {
    let (_dir, layout, _) = hub_with(Lsn::new(7 * MIB));
    let directory = Directory::open(layout.root()).unwrap();
    let size = SegmentSize::new(MIB).unwrap();
    let name = |no| SegmentName { tli: TimelineId::FIRST, no: SegmentNo::new(no), size };
    let (open, complete) = (layout.partial(name(6)), layout.segment(name(6)));
    let disk = FaultyDisk::default();
    let from = open.clone();
    // The first look measures the file, and then looks for the end of the WAL.
    let (again, rename) = (disk.clone(), move || std::fs::rename(from, complete).unwrap());
    let path = open.clone();
    disk.before_opening(&open, move || again.before_opening(&path, rename));
    let status = run_ready(inspect(&disk, &layout)).unwrap().unwrap();
    assert_eq!(status.wrong, Vec::<String>::new());
    assert!(!open.exists() && status.open.is_empty(), "{:?}", status.open);
    assert_eq!(status.end.unwrap().resume, Lsn::new(7 * MIB));
    drop(directory);
}

#[test]
fn tells_what_is_there() {
    let (_dir, layout, end) = hub();
    let report = report(&layout);
    assert_eq!(report.wrong, Vec::<String>::new());
    assert_eq!(report.running, LockStatus::No);
    assert_eq!(report.end.as_ref().unwrap().record_end, end);
    assert_eq!(report.segments[0].count, 3);
    let mut text = Vec::new();
    report.write_text(&mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains(&format!("End of WAL:            {end}")), "{text}");
    assert!(text.ends_with("Nothing is wrong.\n"), "{text}");
    let mut json = Vec::new();
    report.write_json(&mut json).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(json["cluster"]["system_id"], "9");
    assert_eq!(json["running"], "no");
}

#[test]
fn tells_what_is_wrong() {
    let (_dir, layout, _) = hub();
    let name = |no: u64| format!("{:024X}", (1u128 << 64) + u128::from(no));
    std::fs::remove_file(layout.wal().join(name(4))).unwrap();
    std::fs::write(layout.wal().join(name(3)), b"short").unwrap();
    std::fs::write(layout.wal().join("notes.txt"), b"").unwrap();
    std::fs::write(layout.wal().join(name(0xFFFF)), b"").unwrap();
    std::fs::write(layout.halted(), b"torn").unwrap();
    let wrong = report(&layout).wrong.join("\n");
    for part in [
        "gap on timeline 1 from 0/400000 to 0/500000",
        "has 5 bytes, should be 1048576",
        "\"notes.txt\" does not belong into pg_wal",
        "is no segment name of this cluster",
        "a sync failed",
    ] {
        assert!(wrong.contains(part), "{part} not in:\n{wrong}");
    }
    std::fs::write(layout.control(), b"walhub control 1 00000000\n{}").unwrap();
    let wrong = report(&layout).wrong.join("\n");
    assert!(wrong.contains("has checksum 00000000"), "{wrong}");
}

#[test]
fn tells_what_is_missing_before_the_open_segment() {
    let (_dir, layout, _) = hub();
    let size = SegmentSize::new(MIB).unwrap();
    let name = |no| SegmentName { tli: TimelineId::FIRST, no: SegmentNo::new(no), size };
    std::fs::remove_file(layout.segment(name(5))).unwrap();
    let found = report(&layout);
    let gap = "gap on timeline 1 from 0/500000 to 0/600000: 000000010000000000000005 missing";
    assert!(found.wrong.len() == 1 && found.wrong[0].starts_with(gap), "{:?}", found.wrong);
    assert_eq!(found.end.unwrap().durable, Lsn::new(5 * MIB));

    let open = layout.partial(name(6));
    std::fs::rename(&open, Layout::stray(&open)).unwrap();
    let aside = "\"000000010000000000000006.partial.stray\" was set aside by a start";
    let wrong = report(&layout).wrong;
    assert!(wrong.len() == 1 && wrong[0].starts_with(aside), "{wrong:?}");
}

/// The first look is at the names of these complete segments, and of the open ones. A running hub
/// then changes the directory. What is reported as missing after the second look?
fn missing_after(complete: &[u64], open: &[u64], change: impl FnOnce(&Layout)) -> Vec<String> {
    let (_dir, layout, _) = hub();
    let control = std::fs::read(layout.control()).unwrap();
    let cluster = ControlFile::decode(&control).unwrap().cluster.unwrap();
    let path = |layout: &Layout, no: &u64| layout.segment(segment(*no));
    let complete = complete.iter().map(|no| path(&layout, no));
    let open = open.iter().map(|no| layout.partial(segment(*no)));
    let names = complete.chain(open).map(|path| path.file_name().unwrap().to_owned());
    let names = names.map(|name| name.into_string().unwrap()).collect();
    change(&layout);
    let mut found = report(&layout);
    found.wrong.clear();
    run_ready(found.look_at_wal(&PlainDisk, &layout, &cluster, names)).unwrap();
    let gap = |line: &String| {
        let (_, range) = line.split_once("gap on timeline 1 from ")?;
        Some(range.split_once(':')?.0.to_owned())
    };
    found.wrong.iter().filter_map(gap).collect()
}

fn segment(no: u64) -> SegmentName {
    let size = SegmentSize::new(MIB).unwrap();
    SegmentName { tli: TimelineId::FIRST, no: SegmentNo::new(no), size }
}

fn lose(layout: &Layout, no: u64) {
    std::fs::remove_file(layout.segment(segment(no))).unwrap();
}

/// On disk are 3 to 5, and 6 is open.
#[test]
fn a_segment_that_is_named_between_two_looks_is_not_missing() {
    let none = Vec::<String>::new();
    assert_eq!(missing_after(&[3, 5], &[6], |_| ()), none);
    assert_eq!(missing_after(&[3, 4], &[6], |_| ()), none);
    let named = |layout: &Layout| {
        std::fs::rename(layout.partial(segment(6)), layout.segment(segment(6))).unwrap();
        let size = SegmentSize::new(MIB).unwrap();
        let start = Lsn::new(7 * MIB);
        let mut synth = Synth::new(SystemId::new(9), size, TimelineId::FIRST, 0xD110, start);
        synth.record(&[1; 900]);
        std::fs::write(layout.partial(segment(7)), synth.take_bytes().1).unwrap();
    };
    assert_eq!(missing_after(&[3, 4, 5], &[7], named), none);
    assert_eq!(missing_after(&[3, 4], &[6, 7], named), none);
}

#[test]
fn a_segment_that_is_removed_between_two_looks_is_not_missing() {
    let none = Vec::<String>::new();
    // The names are read while 3 and then 4 go: 3 is seen, and 4 is not.
    let removed = |layout: &Layout| {
        lose(layout, 3);
        lose(layout, 4);
    };
    assert_eq!(missing_after(&[3, 5], &[6], removed), none);
    assert_eq!(missing_after(&[4, 5], &[6], removed), none);
}

/// What changes beside a hole does not hide it, and is no part of it.
#[test]
fn a_segment_that_both_looks_miss_is_missing() {
    let four = ["0/400000 to 0/500000"];
    assert_eq!(missing_after(&[3, 5], &[6], |layout| lose(layout, 4)), four);
    // The first look misses 5, too, and so finds the WAL to end before the hole.
    assert_eq!(missing_after(&[3], &[6], |layout| lose(layout, 4)), four);
    let before_open = ["0/500000 to 0/600000"];
    assert_eq!(missing_after(&[3, 4], &[6], |layout| lose(layout, 5)), before_open);
    assert_eq!(missing_after(&[3], &[6], |layout| lose(layout, 5)), before_open);
}

#[test]
fn counts_what_waits_for_the_archive() {
    let (_dir, layout, _) = hub();
    assert_eq!(report(&layout).waiting_for_archive, None);
    std::fs::create_dir(layout.archive_status()).unwrap();
    for mark in ["000000010000000000000003.ready", "00000002.history.ready", "x.ready"] {
        std::fs::write(layout.archive_status().join(mark), b"").unwrap();
    }
    std::fs::write(layout.archive_status().join("000000010000000000000002.done"), b"").unwrap();
    let report = report(&layout);
    assert_eq!(report.waiting_for_archive, Some(2));
    assert!(report.wrong.is_empty(), "{:?}", report.wrong);
}

#[test]
fn a_copy_gets_an_id_of_its_own() {
    let (_dir, layout, _) = hub();
    let new = InstanceId::new(6);
    assert_eq!(replace_instance_id(&layout, new).unwrap(), InstanceId::new(5));
    let after = report(&layout);
    assert_eq!(after.instance_id, Some(new));
    assert_eq!(after.cluster.unwrap().system_id.raw(), 9);
    let _running = Directory::open(layout.root()).unwrap();
    let fault = replace_instance_id(&layout, new).unwrap_err();
    assert!(matches!(fault, RenameFault::Directory(DirectoryFault::Locked { .. })));
    assert_eq!(report(&layout).running, LockStatus::Yes(Some(std::process::id())));
    let empty = tempfile::tempdir().unwrap();
    let fault = replace_instance_id(&Layout::new(empty.path()), new).unwrap_err();
    assert!(matches!(fault, RenameFault::Unused(_)));
    assert_eq!(std::fs::read_dir(empty.path()).unwrap().count(), 0);
}

#[test]
fn seams_are_shown_and_one_under_way_is_wrong() {
    let (_dir, layout, end) = hub();
    let seam = crate::store::seams::Seam { tli: TimelineId::FIRST, at: end };
    let mut seams = Seams::default();
    seams.begin(crate::store::seams::Cut::Past(seam), &[seam]).unwrap();
    std::fs::write(layout.seams(), seams.encode()).unwrap();
    let found = report(&layout);
    assert_eq!(found.seams, [SeamStatus { timeline: seam.tli, lsn: end }]);
    assert!(found.wrong[0].contains("was being set aside"), "{:?}", found.wrong);
    seams.finish();
    std::fs::write(layout.seams(), seams.encode()).unwrap();
    let mut text = Vec::new();
    report(&layout).write_text(&mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains(&format!("walhub ctl confirm seam {end}")), "{text}");
    assert!(text.ends_with("Nothing is wrong.\n"), "{text}");
    std::fs::write(layout.seams(), "walhub seams 1").unwrap();
    assert!(report(&layout).wrong[0].contains("walhub.seams"));
}

/// A hub that cannot receive before somebody acts, as its last run wrote it down.
#[test]
fn a_state_that_needs_an_operator_is_wrong() {
    let (_dir, layout, _) = hub();
    for (state, is_wrong) in [
        ("diverged", true),
        ("gap", true),
        ("no space", true),
        ("streaming", false),
        ("disconnected", false),
    ] {
        let text = format!("{{\"state\":\"{state}\",\"why\":\"so\"}}");
        std::fs::write(layout.state(), text).unwrap();
        let report = report(&layout);
        assert_eq!(!report.wrong.is_empty(), is_wrong, "{state}: {:?}", report.wrong);
        let mut text = Vec::new();
        report.write_text(&mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        let said = format!("WRONG:                 {state}, why so\n");
        assert_eq!(text.contains(&said), is_wrong, "{text}");
        assert_eq!(text.contains("Nothing is wrong."), !is_wrong, "{text}");
    }
}

/// The hub receives nothing, until a source has its WAL there; then one source alone is barred.
#[test]
fn a_difference_is_wrong_until_it_stands_against_one_source_alone() {
    let (_dir, layout, _) = hub();
    let mut evidence = Evidence::default();
    let at = Lsn::new(5 * MIB);
    evidence.add(Difference {
        tli: TimelineId::FIRST,
        at,
        source: WalSource { name: "a:5432".to_owned(), server: None },
        since: std::time::UNIX_EPOCH,
        detail: "other".to_owned(),
        cleared: false,
        bytes: None,
    });
    std::fs::write(layout.evidence(), evidence.encode()).unwrap();
    let wrong = report(&layout).wrong;
    assert_eq!(wrong, ["a:5432 has another history from 0/500000 on timeline 1 on"]);
    evidence.clear(at).unwrap();
    std::fs::write(layout.evidence(), evidence.encode()).unwrap();
    assert_eq!(report(&layout).wrong, Vec::<String>::new());
}

#[test]
fn wal_that_was_durable_at_a_fence_is_missed() {
    let (_dir, layout, end) = hub();
    let fence = |record_end| FenceNote {
        tli: TimelineId::FIRST,
        record_end,
        durable: record_end,
        since: std::time::UNIX_EPOCH,
    };
    std::fs::write(layout.fence(), fence(end).encode()).unwrap();
    assert_eq!(report(&layout).wrong, Vec::<String>::new());
    let open = layout.partial(segment(6));
    let mut bytes = std::fs::read(&open).unwrap();
    bytes[MIB as usize / 4] ^= 1;
    std::fs::write(&open, &bytes).unwrap();
    let wrong = report(&layout).wrong;
    assert!(wrong.len() == 2, "{wrong:?}");
    assert!(wrong[0].contains(&format!("before the fence at {end}")), "{wrong:?}");
    std::fs::remove_file(layout.fence()).unwrap();
    let wrong = report(&layout).wrong;
    assert!(wrong.len() == 1 && wrong[0].contains("there are whole records, from"), "{wrong:?}");
    // This may be what a crash has left.
    bytes[MIB as usize / 4..].fill(0);
    std::fs::write(&open, bytes).unwrap();
    assert_eq!(report(&layout).wrong, Vec::<String>::new());
}
