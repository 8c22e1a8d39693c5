//! What the hub reports about itself: asked of the data cores, a few standbys at a time, and put
//! into the words of `status`.

use super::Shared;
use super::registry::Client;
use crate::ctl::answer::Failure;
use crate::data::figures::{About, ReceiverFigures, StandbyFigures, StreamState};
use crate::data::handoff::ANSWER_DEADLINE;
use crate::hub::Hub;
use crate::hub::course::NamedBy;
use crate::log;
use crate::status::{
    AbandonedStatus, Ages, ArchiveTimelineStatus, ArchiverStatus, DivergedStandby, EvidenceStatus,
    FenceStatus, FollowedUpstream, HubStatus, KeptBy, LosingSlot, MissingWal, ProofOutcome,
    ProofStatus, RetentionStatus, ScrubStatus, SeamStatus, SetAsideStatus, SetBy, SlotStatus,
    StandbyStatus, StandbysStatus, UpstreamStatus,
};
use crate::store::archive_status::{ArchiveStatus, Attempt};
use crate::store::holes::Hole;
use crate::store::inspect::{
    abandoned_status, evidence_status, scrub_status, seam_status, set_aside_status, set_aside_total,
};
use crate::store::retention::{Keep, MIN_KEPT_SEGMENTS, Outlook, Policy, Receiving};
use crate::store::slots::{Origin, WalStatus};
use crate::store::switch::Switch;
use crate::upstream::proof::{Proof, Strength};
use crate::upstream::state::UpstreamState;
use crate::wal::{Lsn, SegmentSize};
use crate::wire::command::SlotLifetime;
use crate::wire::time::PgTime;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

/// The receive role's figures; `None` before the first WAL, or when its core does not answer.
pub(super) async fn receiver(shared: &Shared) -> Option<ReceiverFigures> {
    shared.mailboxes.first()?.ask(About::Receiver).await?.receiver
}

/// The figures of the standbys of all cores, by process ID.
pub(super) async fn standby_figures(
    shared: &Shared,
) -> Result<HashMap<u32, StandbyFigures>, Failure> {
    let mut all = HashMap::new();
    for (core, mailbox) in shared.mailboxes.iter().enumerate() {
        let mut from = Some(0);
        while let Some(place) = from {
            let answer = mailbox.ask(About::Standbys(place)).await;
            let figures = answer.ok_or_else(|| {
                Failure::new(format!("data core {core} did not answer within {ANSWER_DEADLINE:?}"))
            })?;
            all.extend(figures.standbys.iter().map(|standby| (standby.pid, *standby)));
            from = figures.next;
        }
    }
    Ok(all)
}

pub(super) fn status(shared: &Shared, receiver: Option<ReceiverFigures>) -> HubStatus {
    let hub = &shared.hub;
    let identity = hub.identity();
    let cell = hub.current_cell();
    let durable = cell.as_ref().map(|cell| cell.durable());
    let needed = receiver.and_then(|figures| figures.needed);
    let needed = needed.map(|need| need.message(PgTime::default()));
    let xid = |xid: Option<u32>| xid.filter(|xid| *xid != 0);
    let asides = hub.holds.asides.known();
    HubStatus {
        walhub_version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        started: shared.started_at,
        uptime: shared.started.elapsed(),
        instance_id: hub.instance,
        instance_path: hub.announced_path().ids().to_vec(),
        system_id: identity.as_ref().map(|identity| identity.system_id),
        server_version: identity.as_ref().map(|identity| identity.server_version().to_owned()),
        wal_segment_size: identity.as_ref().map(|identity| identity.segment_size),
        upstream: upstream_status(hub),
        fence: fence(hub),
        evidence: evidence(hub),
        abandoned: abandoned(hub),
        seams: seams(hub),
        archive_timelines: archive_timelines(hub),
        receiving_paused: hub.holds.too_full().map(|too_full| too_full.to_string()),
        timeline: cell.as_ref().map(|cell| cell.tli()),
        received_lsn: receiver.map(|figures| figures.received),
        written_lsn: receiver.map(|figures| figures.written),
        durable_lsn: durable,
        oldest_lsn: cell.is_some().then(|| hub.holds.oldest_kept()),
        missing: hub.holds.missing(durable.unwrap_or_default()).iter().map(missing).collect(),
        standbys: shared.registry.streams(),
        diverged: hub.diverged().len(),
        senders: hub.senders(),
        max_wal_senders: hub.config.max_wal_senders,
        slots: hub.holds.slots.lock().len(),
        max_replication_slots: hub.config.slots.max,
        xmin: xid(needed.map(|needed| needed.xmin)),
        catalog_xmin: xid(needed.map(|needed| needed.catalog_xmin)),
        archiver: hub.archive_status().map(|status| archiver(&status)),
        scrub: scrub(hub),
        set_aside: set_aside(hub),
        set_aside_total: asides.as_deref().map(set_aside_total),
        log_lines_lost: log::lost(),
    }
}

pub(super) fn scrub(hub: &Hub) -> ScrubStatus {
    scrub_status(&hub.holds.scrub.note(), hub.holds.scrub.under_way())
}

pub(super) fn set_aside(hub: &Hub) -> Vec<SetAsideStatus> {
    let keep = hub.config.retention.keep_set_aside;
    hub.holds.asides.known().map_or_else(Vec::new, |known| set_aside_status(&known, keep))
}

fn missing(hole: &Hole) -> MissingWal {
    MissingWal { segments: hole.to_string(), start_lsn: hole.start(), end_lsn: hole.end() }
}

fn archiver(status: &ArchiveStatus) -> ArchiverStatus {
    let wal = |attempt: Option<Attempt>| attempt.map(|attempt| attempt.file.to_string());
    let time = |attempt: Option<Attempt>| attempt.map(|attempt| attempt.at);
    ArchiverStatus {
        archived_count: status.archived_count,
        last_archived_wal: wal(status.last_archived),
        last_archived_time: time(status.last_archived),
        failed_count: status.failed_count,
        last_failed_wal: wal(status.last_failed),
        last_failed_time: time(status.last_failed),
        waiting_segments: status.waiting_segments,
        waiting_histories: status.waiting_histories,
        next_wal: status.next.map(|file| file.to_string()),
    }
}

fn upstream_status(hub: &Hub) -> UpstreamStatus {
    let standing = hub.course.standing();
    let state = &standing.state;
    let (proof, weak_joins) = hub.course.proof();
    let (host, timeline, start) = match state {
        UpstreamState::Streaming { host, tli, start } => (Some(host), Some(tli), Some(start)),
        UpstreamState::Waiting { host, .. }
        | UpstreamState::WaitingToStart { host, .. }
        | UpstreamState::Refused { host, .. }
        | UpstreamState::Unproved { host, .. } => (Some(host), None, None),
        _ => (None, None, None),
    };
    UpstreamStatus {
        state: state.name().to_owned(),
        since: standing.since,
        text: state.to_string(),
        host: host.cloned(),
        timeline: timeline.copied(),
        start_lsn: start.copied(),
        proof: proof.as_ref().map(proof_status),
        weak_joins,
    }
}

fn proof_status(proof: &Proof) -> ProofStatus {
    ProofStatus {
        outcome: match proof.strength {
            Strength::Proved { .. } => ProofOutcome::Proved,
            Strength::Weak { .. } => ProofOutcome::Weak,
        },
        timeline: proof.shared.tli,
        from_lsn: proof.from,
        to_lsn: proof.shared.end,
        text: proof.to_string(),
    }
}

pub(super) fn upstream(hub: &Hub) -> FollowedUpstream {
    let (upstream, named_by) = hub.course.upstream();
    let set_by = match named_by {
        NamedBy::Flag => SetBy::Flag,
        NamedBy::Ctl => SetBy::Ctl,
    };
    FollowedUpstream {
        conninfo: upstream.conninfo.shown(),
        set_by,
        flag: hub.course.flag().conninfo.shown(),
    }
}

pub(super) fn evidence(hub: &Hub) -> Option<EvidenceStatus> {
    evidence_status(&hub.course.evidence())
}

pub(super) fn abandoned(hub: &Hub) -> Vec<AbandonedStatus> {
    abandoned_status(&hub.course.abandoned())
}

pub(super) fn seams(hub: &Hub) -> Vec<SeamStatus> {
    seam_status(&hub.course.seams())
}

/// A switch of which nothing has come yet is not told.
fn archive_timelines(hub: &Hub) -> Vec<ArchiveTimelineStatus> {
    let seams = hub.course.seams();
    let own = hub.current_cell().map(|cell| cell.tli());
    let made =
        seams.unagreed().filter(|unagreed| own.is_some_and(|own| unagreed.switch.from < own));
    let one = |switch: Switch, since| ArchiveTimelineStatus {
        timeline: switch.to,
        from_timeline: switch.from,
        lsn: switch.at,
        since,
    };
    let made = made.map(|unagreed| one(unagreed.switch, Some(unagreed.since)));
    made.chain(seams.rejected().map(|switch| one(*switch, None))).collect()
}

pub(super) fn fence(hub: &Hub) -> Option<FenceStatus> {
    hub.course.fence().map(|fence| FenceStatus {
        timeline: fence.tli,
        lsn: fence.record_end,
        durable_lsn: fence.durable,
        since: fence.since,
    })
}

pub(super) fn standbys(
    shared: &Shared,
    figures: &HashMap<u32, StandbyFigures>,
    ages: &Ages,
) -> StandbysStatus {
    let hub = &shared.hub;
    let durable = hub.current_cell().map_or(Lsn::INVALID, |cell| cell.durable());
    let slots: HashMap<u32, String> = {
        let slots = hub.holds.slots.lock();
        slots.iter().filter_map(|slot| Some((slot.active_pid()?, slot.name.to_string()))).collect()
    };
    let now = Instant::now();
    let one = |client: Client| {
        let own = figures.get(&client.pid);
        let slot_name = slots.get(&client.pid).cloned();
        standby(client, own, slot_name, &Lags { durable, ages, now })
    };
    StandbysStatus {
        standbys: shared.registry.clients().into_iter().map(one).collect(),
        diverged: hub
            .diverged()
            .into_iter()
            .map(|diverged| DivergedStandby {
                application_name: diverged.application_name,
                peer: diverged.peer,
                timeline: diverged.tli,
                left_lsn: diverged.left.at(),
                lsn: diverged.at,
            })
            .collect(),
    }
}

/// What lags are measured against.
struct Lags<'a> {
    durable: Lsn,
    ages: &'a Ages,
    now: Instant,
}

impl Lags<'_> {
    fn bytes(&self, lsn: Lsn) -> u64 {
        self.durable.raw().saturating_sub(lsn.raw())
    }

    fn age(&self, lsn: Lsn) -> Option<Duration> {
        self.ages.behind(lsn, self.now)
    }
}

fn standby(
    client: Client,
    figures: Option<&StandbyFigures>,
    slot_name: Option<String>,
    lags: &Lags<'_>,
) -> StandbyStatus {
    let address: Option<SocketAddr> = client.peer.parse().ok();
    let said = |lsn: Lsn| (lsn != Lsn::INVALID).then_some(lsn);
    let position = |of: fn(&StandbyFigures) -> Lsn| figures.map(of).and_then(said);
    let [write, flush, replay] = [
        position(|figures| figures.positions.write),
        position(|figures| figures.positions.flush),
        position(|figures| figures.positions.apply),
    ];
    StandbyStatus {
        pid: client.pid,
        user: client.user,
        application_name: client.application_name,
        client_addr: address.map(|address| address.ip()),
        client_port: address.map(|address| address.port()),
        backend_start: client.since,
        instance_id: client.instance,
        state: figures.map_or("startup", |figures| state(figures.state)).to_owned(),
        timeline: figures.map(|figures| figures.tli),
        sent_lsn: figures.map(|figures| figures.sent),
        write_lsn: write,
        flush_lsn: flush,
        replay_lsn: replay,
        flush_lag_bytes: flush.map(|lsn| lags.bytes(lsn)),
        replay_lag_bytes: replay.map(|lsn| lags.bytes(lsn)),
        flush_lag: flush.and_then(|lsn| lags.age(lsn)),
        replay_lag: replay.and_then(|lsn| lags.age(lsn)),
        reply_time: figures.and_then(|figures| figures.reply_time).map(SystemTime::from),
        slot_name,
    }
}

const fn state(state: StreamState) -> &'static str {
    match state {
        StreamState::Catchup => "catchup",
        StreamState::Streaming => "streaming",
        StreamState::EndOfTimeline => "end of timeline",
        StreamState::Stopping => "stopping",
        StreamState::Leaving => "leaving",
    }
}

pub(super) fn slots(hub: &Hub) -> Vec<SlotStatus> {
    let size = hub.identity().map(|identity| identity.segment_size);
    let mut slots = hub.holds.slots.lock();
    // A slot with a hole in its WAL has lost some of it.
    let (oldest_kept, unbroken_from) = (hub.holds.oldest_kept(), hub.holds.unbroken_from());
    let newest = hub.current_cell().map_or(oldest_kept, |cell| cell.durable());
    let policy = &hub.config.retention;
    slots.absorb(oldest_kept);
    let rows = slots.iter().map(|slot| {
        let status = size.and_then(|size| slot.wal_status(policy, size, newest, unbroken_from));
        let safe = match (status, slot.restart_lsn, size) {
            (None | Some(WalStatus::Lost), _, _) => None,
            (_, Some(from), Some(size)) => safe_wal_size(policy, size, from, newest),
            _ => None,
        };
        SlotStatus {
            slot_name: slot.name.to_string(),
            temporary: slot.lifetime == SlotLifetime::Temporary,
            active: slot.is_used(),
            active_pid: slot.active_pid(),
            restart_lsn: slot.restart_lsn,
            wal_status: status.map(|status| status.to_string()),
            safe_wal_size: safe,
            invalidation_reason: slot.invalidated.map(|cause| cause.to_string()),
            inactive_since: slot.idle_since,
            auto_created: slot.origin == Origin::AutoCreated,
        }
    });
    rows.collect()
}

/// A plan that was not carried out, in the words of `walhub ctl retention`.
pub(super) fn retention(hub: &Hub, outlook: &Outlook) -> RetentionStatus {
    let Outlook { size, oldest, newest, plan, losing, next_slot, keeps } = outlook;
    let kept = |keep: &Keep| {
        let from = keep.from.max(*oldest).start(*size);
        KeptBy {
            reason: keep.reason.as_str().to_owned(),
            name: keep.name.clone(),
            from_lsn: from,
            bytes: newest.raw().saturating_sub(from.raw()),
            ends_in: keep.left,
        }
    };
    let losing = losing
        .iter()
        .map(|(name, cause)| LosingSlot { slot_name: name.to_string(), reason: cause.to_string() });
    let mut set_aside = set_aside(hub);
    set_aside.sort_by_key(|aside| {
        let left = aside.confirmed.and_then(|confirmed| confirmed.expires_in_seconds);
        left.unwrap_or(u64::MAX)
    });
    RetentionStatus {
        set_aside,
        oldest_lsn: oldest.start(*size),
        durable_lsn: *newest,
        removable_lsn: plan.horizon.max(*oldest).start(*size),
        removable_segments: plan.horizon.raw().saturating_sub(oldest.raw()),
        losing_slots: losing.collect(),
        next_slot: next_slot.as_ref().map(ToString::to_string),
        receiving: match plan.receiving {
            Receiving::Open => "open",
            Receiving::Paused => "paused",
        }
        .to_owned(),
        kept_by: keeps.iter().map(kept).collect(),
    }
}

/// How much more WAL may come before the segment of `from` may be removed.
fn safe_wal_size(policy: &Policy, size: SegmentSize, from: Lsn, newest: Lsn) -> Option<i64> {
    let limit = policy.max_slot_wal_keep_size?;
    let rules = policy.wal_keep_size.max(MIN_KEPT_SEGMENTS.saturating_mul(size.bytes()));
    let gone_at = from.segment(size).end(size).raw().saturating_add(limit.max(rules));
    let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    Some(match gone_at.checked_sub(newest.raw()) {
        Some(left) => signed(left),
        None => -signed(newest.raw() - gone_at),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_much_may_still_come() {
        let size = SegmentSize::new(1 << 20).unwrap();
        let mib = |n: u64| Lsn::new(n << 20);
        let policy = Policy { max_slot_wal_keep_size: Some(20 << 20), ..Policy::default() };
        let safe = |from, newest| safe_wal_size(&policy, size, mib(from), mib(newest));
        assert_eq!(safe(5, 10), Some(16 << 20));
        assert_eq!(safe(5, 30), Some(-4 << 20));
        assert_eq!(safe_wal_size(&Policy::default(), size, mib(5), mib(10)), None);
        // A slot also keeps what the rules keep for everybody.
        let little = Policy { max_slot_wal_keep_size: Some(0), ..Policy::default() };
        assert_eq!(safe_wal_size(&little, size, mib(5), mib(10)), Some(12 << 20));
    }
}
