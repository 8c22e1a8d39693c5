//! Answers of every kind, byte by byte: programs read the JSON, people the text.

use super::*;
use crate::cluster::instance::InstanceId;
use crate::status::{
    ArchiveTimelineStatus, ArchiverStatus, DamagedSegment, DivergedStandby, EvidenceStatus,
    MissingWal, ProofOutcome, ProofStatus, SeamStatus, SetAsideStatus, SetAsideTotal, SetBy,
    StandbyStatus, UpstreamStatus,
};
use crate::wal::{Lsn, SegmentSize, SystemId, TimelineId};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The JSON of earlier answers, each with its text for people below it.
const SNAPSHOT: &str = include_str!("snapshot.txt");

/// 2 January 2026, 03:04:05, plus this many milliseconds.
fn time(millis: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(1_767_323_045_000 + millis)
}

fn lsn(low: u64) -> Lsn {
    Lsn::new(1 << 32 | low)
}

fn fence() -> FenceStatus {
    FenceStatus {
        timeline: TimelineId::new(3).unwrap(),
        lsn: lsn(0x10),
        durable_lsn: lsn(0x20),
        since: time(1),
    }
}

fn archiver() -> ArchiverStatus {
    ArchiverStatus {
        archived_count: 9,
        last_archived_wal: Some("00000003.history".to_owned()),
        last_archived_time: Some(time(4)),
        failed_count: 2,
        last_failed_wal: Some("000000030000000100000000".to_owned()),
        last_failed_time: Some(time(5)),
        waiting_segments: 3,
        waiting_histories: 1,
        next_wal: Some("000000030000000100000001".to_owned()),
    }
}

fn abandoned() -> AbandonedStatus {
    AbandonedStatus {
        timeline: TimelineId::new(2).unwrap(),
        start_lsn: lsn(0x10),
        end_lsn: lsn(0x14),
        next_timeline: TimelineId::new(3).unwrap(),
        records: Some(5),
        commits: Some(1),
        first_commit_time: Some(time(1)),
        last_commit_time: Some(time(1)),
        since: time(8),
        kept_in: "diverged/2-1_10".to_owned(),
        standbys: Some(2),
        sent_lsn: Some(lsn(0x13)),
    }
}

fn scrub() -> ScrubStatus {
    ScrubStatus {
        stale_in_archive: vec![],
        last_ended: Some(time(10)),
        last_segments: Some(70),
        segments_read: Some(3),
        segments: Some(71),
        damaged: vec![DamagedSegment {
            segment: "000000030000000100000000".to_owned(),
            from_lsn: lsn(0),
            text: "torn".to_owned(),
            since: time(11),
        }],
    }
}

/// A hub of which everything is known.
fn full() -> HubStatus {
    HubStatus {
        walhub_version: "0.1.0".to_owned(),
        pid: 7,
        started: time(2),
        uptime: Duration::from_secs(90_061),
        instance_id: InstanceId::new(0xE),
        instance_path: [0xE, 0xF].map(InstanceId::new).to_vec(),
        system_id: Some(SystemId::new(7_000_000_000_000_000_001)),
        server_version: Some("17.2 (Debian)".to_owned()),
        wal_segment_size: SegmentSize::new(16 << 20),
        upstream: UpstreamStatus {
            state: "streaming".to_owned(),
            since: time(3),
            text: "streaming from a".to_owned(),
            host: Some("a:5432".to_owned()),
            timeline: TimelineId::new(3),
            start_lsn: Some(lsn(0)),
            proof: Some(ProofStatus {
                outcome: ProofOutcome::Weak,
                timeline: TimelineId::new(3).unwrap(),
                from_lsn: Some(lsn(8)),
                to_lsn: lsn(0x10),
                text: "weak: nothing older".to_owned(),
            }),
            weak_joins: 1,
        },
        fence: Some(fence()),
        evidence: Some(EvidenceStatus {
            our_bytes: None,
            their_bytes: None,
            timeline: TimelineId::new(3).unwrap(),
            lsn: lsn(0x18),
            upstream: "b:5432".to_owned(),
            since: time(9),
            detail: "other bytes".to_owned(),
            cleared: false,
            also: vec![],
        }),
        abandoned: vec![abandoned()],
        seams: vec![SeamStatus { timeline: TimelineId::new(3).unwrap(), lsn: lsn(0x14) }],
        archive_timelines: vec![
            ArchiveTimelineStatus {
                timeline: TimelineId::new(3).unwrap(),
                from_timeline: TimelineId::new(2).unwrap(),
                lsn: lsn(0x12),
                since: Some(time(9)),
            },
            ArchiveTimelineStatus {
                timeline: TimelineId::new(2).unwrap(),
                from_timeline: TimelineId::FIRST,
                lsn: lsn(0x11),
                since: None,
            },
        ],
        receiving_paused: Some("full".to_owned()),
        timeline: TimelineId::new(3),
        received_lsn: Some(lsn(0x40)),
        written_lsn: Some(lsn(0x30)),
        durable_lsn: Some(lsn(0x20)),
        oldest_lsn: Some(Lsn::new(0x100_0000)),
        missing: vec![MissingWal {
            segments: "000000030000000000000002".to_owned(),
            start_lsn: Lsn::new(0x200_0000),
            end_lsn: Lsn::new(0x300_0000),
        }],
        standbys: 2,
        diverged: 1,
        senders: 3,
        max_wal_senders: 4000,
        slots: 1,
        max_replication_slots: 10,
        xmin: Some(700),
        catalog_xmin: Some(699),
        archiver: Some(archiver()),
        scrub: scrub(),
        set_aside: vec![SetAsideStatus {
            name: "diverged/2-1_10".to_owned(),
            bytes: 16 << 20,
            since: Some(time(12)),
            confirmed: None,
        }],
        set_aside_total: Some(SetAsideTotal { number: 3, bytes: 40 << 20 }),
        log_lines_lost: 4,
    }
}

/// A hub that has just started.
fn bare() -> HubStatus {
    HubStatus {
        system_id: None,
        server_version: None,
        wal_segment_size: None,
        upstream: UpstreamStatus {
            state: "connecting".to_owned(),
            since: time(3),
            text: "connecting".to_owned(),
            host: None,
            timeline: None,
            start_lsn: None,
            proof: None,
            weak_joins: 0,
        },
        fence: None,
        evidence: None,
        abandoned: vec![],
        seams: vec![],
        archive_timelines: vec![],
        receiving_paused: None,
        timeline: None,
        received_lsn: None,
        written_lsn: None,
        durable_lsn: None,
        oldest_lsn: None,
        missing: vec![],
        xmin: None,
        catalog_xmin: None,
        archiver: None,
        scrub: ScrubStatus::default(),
        set_aside: vec![],
        set_aside_total: None,
        log_lines_lost: 0,
        ..full()
    }
}

fn standbys() -> StandbysStatus {
    let streams = StandbyStatus {
        pid: 11,
        user: "u".to_owned(),
        application_name: "s1".to_owned(),
        client_addr: "2001:db8::1".parse().ok(),
        client_port: Some(5),
        backend_start: time(6),
        instance_id: Some(InstanceId::new(0xA)),
        state: "end of timeline".to_owned(),
        timeline: TimelineId::new(3),
        sent_lsn: Some(lsn(9)),
        write_lsn: Some(lsn(8)),
        flush_lsn: Some(lsn(7)),
        replay_lsn: Some(lsn(6)),
        flush_lag_bytes: Some(1),
        replay_lag_bytes: Some(2),
        flush_lag: Some(Duration::from_millis(12_500)),
        replay_lag: Some(Duration::ZERO),
        reply_time: Some(time(7)),
        slot_name: Some("slot_1".to_owned()),
    };
    let starts = StandbyStatus {
        client_addr: None,
        client_port: None,
        instance_id: None,
        state: "startup".to_owned(),
        timeline: None,
        sent_lsn: None,
        write_lsn: None,
        flush_lsn: None,
        replay_lsn: None,
        flush_lag_bytes: None,
        replay_lag_bytes: None,
        flush_lag: None,
        replay_lag: None,
        reply_time: None,
        slot_name: None,
        ..streams.clone()
    };
    let diverged = DivergedStandby {
        application_name: "d".to_owned(),
        peer: "10.0.0.1:5".to_owned(),
        timeline: TimelineId::new(2).unwrap(),
        left_lsn: Lsn::new(0x300_0060),
        lsn: Lsn::new(0x500_0000),
    };
    StandbysStatus { standbys: vec![streams, starts], diverged: vec![diverged] }
}

fn slots() -> Vec<SlotStatus> {
    let used = SlotStatus {
        slot_name: "slot_1".to_owned(),
        temporary: false,
        active: true,
        active_pid: Some(11),
        restart_lsn: Some(lsn(5)),
        wal_status: Some("extended".to_owned()),
        safe_wal_size: Some(-5),
        invalidation_reason: Some("wal_removed".to_owned()),
        inactive_since: Some(time(8)),
        auto_created: true,
    };
    let idle = SlotStatus {
        temporary: true,
        active: false,
        active_pid: None,
        restart_lsn: None,
        wal_status: None,
        safe_wal_size: None,
        invalidation_reason: None,
        inactive_since: None,
        auto_created: false,
        ..used.clone()
    };
    vec![used, idle]
}

fn all() -> Vec<Said> {
    let upstream = FollowedUpstream {
        conninfo: "host=b password=****".to_owned(),
        set_by: SetBy::Ctl,
        flag: "host=a".to_owned(),
    };
    vec![
        Said::Status(Box::new(full())),
        Said::Status(Box::new(bare())),
        Said::Standbys(standbys()),
        Said::Slots(slots()),
        Said::Upstream(upstream),
        Said::Fence(Some(fence())),
        Said::Fence(None),
        Said::Abandoned(vec![abandoned()]),
        Said::Abandoned(vec![]),
        Said::Evidence(full().evidence),
        Said::Evidence(None),
        Said::Scrub(scrub()),
        Said::Dropped(Dropped { slot_name: "slot_1".to_owned() }),
        Said::Error(Failure::new("no").with_hint("do")),
    ]
}

#[test]
fn every_answer_is_what_it_was() {
    let mut out = Vec::new();
    let unfenced = Answer::new(Said::Fence(None)).with_note("unfenced; now: connecting");
    let followed = all().into_iter().find(|said| matches!(said, Said::Upstream(_)));
    let followed = Answer::new(followed.unwrap()).with_note("now: connecting");
    for answer in all().into_iter().map(Answer::new).chain([unfenced, followed]) {
        let line = answer.encode();
        assert_eq!(Answer::parse(&line).unwrap(), answer);
        out.extend(line);
        answer.write_text(&mut out).unwrap();
    }
    let out = String::from_utf8(out).unwrap();
    for (n, (now, before)) in out.lines().zip(SNAPSHOT.lines()).enumerate() {
        assert_eq!(now, before, "line {}", n + 1);
    }
    assert_eq!(out, SNAPSHOT);
}

#[test]
fn a_newer_hub_may_say_more() {
    let more = r#"{"version":1,"fence":null,"mood":"good"}"#;
    assert!(Answer::parse(more.as_bytes()).is_ok());
    let state = String::from_utf8(Answer::new(Said::Status(Box::new(full()))).encode()).unwrap();
    let state = state.replace("\"streaming\"", "\"pausing\"");
    assert!(Answer::parse(state.as_bytes()).is_ok(), "a state that this program does not know");
    let newer = Answer::parse(br#"{"version":2,"fence":{}}"#).unwrap_err();
    assert_eq!(newer.to_string(), "the hub's answer has version 2, this program knows version 1");
}

#[test]
fn what_an_older_hub_leaves_out_is_not_known() {
    let older = r#"{"version":1,"slots":[{"slot_name":"s","temporary":false,"active":false,"auto_created":false}]}"#;
    let Said::Slots(slots) = Answer::parse(older.as_bytes()).unwrap().said else { panic!() };
    assert_eq!((slots[0].restart_lsn, slots[0].inactive_since), (None, None));
}

#[test]
fn senseless_values_are_no_answer() {
    for line in [
        r#"{"version":1,"fence":{"timeline":0,"lsn":"0/0","durable_lsn":"0/0","since":"2026-01-01T00:00:00.000Z"}}"#,
        r#"{"version":1,"fence":{"timeline":1,"lsn":"5","durable_lsn":"0/0","since":"2026-01-01T00:00:00.000Z"}}"#,
        r#"{"version":1,"fence":{"timeline":1,"lsn":"0/0","durable_lsn":"0/0","since":"now"}}"#,
    ] {
        assert!(matches!(Answer::parse(line.as_bytes()), Err(NoAnswer::Invalid(_))), "{line}");
    }
}
