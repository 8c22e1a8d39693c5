//! What is known, as it is told.

use super::super::Shared;
use super::super::registry::Client;
use super::ages::Ages;
use crate::ctl::answer::{
    Archiver, Diverged, Fence, MissingWal, OtherHistory, Slot, Standby, Standbys, Status, Upstream,
    UpstreamState,
};
use crate::data::figures::{ReceiverFigures, StandbyFigures, StreamState};
use crate::hub::Hub;
use crate::hub::course::NamedBy;
use crate::log;
use crate::store::archive_status::{ArchiveStatus, Attempt};
use crate::store::holes::Hole;
use crate::store::retention::{MIN_KEPT_SEGMENTS, Policy, Receiving};
use crate::store::slots::WalStatus;
use crate::upstream::state::UpstreamState as State;
use crate::wal::{Lsn, SegmentSize};
use crate::wire::command::SlotLifetime;
use crate::wire::date::date_millis;
use crate::wire::time::PgTime;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Instant, SystemTime};

pub(super) fn status(shared: &Shared, receiver: Option<ReceiverFigures>) -> Status {
    let hub = &shared.hub;
    let identity = hub.identity();
    let cell = hub.current_cell();
    let text = |lsn: Option<Lsn>| lsn.map(|lsn| lsn.to_string());
    let needed = receiver.and_then(|figures| figures.needed);
    let needed = needed.map(|need| need.message(PgTime::default()));
    let xid = |xid: Option<u32>| xid.filter(|xid| *xid != 0);
    let paused = hub.receiving() == Receiving::Paused;
    Status {
        walhub_version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        started: date_millis(shared.started_at),
        uptime_seconds: shared.started.elapsed().as_secs(),
        instance_id: hub.instance.to_string(),
        instance_path: hub.announced_path().to_string().split(',').map(str::to_owned).collect(),
        system_id: identity.as_ref().map(|identity| identity.system_id.to_string()),
        server_version: identity.as_ref().map(|identity| identity.server_version().to_owned()),
        wal_segment_size: identity.as_ref().map(|identity| identity.segment_size.bytes()),
        upstream: upstream_state(hub),
        fence: fence(hub),
        evidence: hub.course.evidence().map(|evidence| OtherHistory {
            timeline: evidence.tli.raw(),
            lsn: evidence.at.to_string(),
            upstream: evidence.upstream.clone(),
            since: date_millis(evidence.since),
            detail: evidence.detail.clone(),
        }),
        receiving_paused: paused.then(|| "the disk is above --disk-high-watermark".to_owned()),
        timeline: cell.as_ref().map(|cell| cell.tli().raw()),
        received_lsn: text(receiver.map(|figures| figures.received)),
        written_lsn: text(receiver.map(|figures| figures.written)),
        durable_lsn: text(cell.as_ref().map(|cell| cell.durable())),
        oldest_lsn: text(cell.is_some().then(|| hub.holds.oldest_kept())),
        missing: hub.holds.holes().iter().map(missing).collect(),
        standbys: shared.registry.streams(),
        diverged: hub.diverged().len(),
        senders: hub.senders(),
        max_wal_senders: hub.config.max_wal_senders,
        slots: hub.holds.slots.lock().len(),
        max_replication_slots: hub.config.slots.max,
        xmin: xid(needed.map(|needed| needed.xmin)),
        catalog_xmin: xid(needed.map(|needed| needed.catalog_xmin)),
        archiver: hub.archive_status().map(|status| archiver(&status)),
        log_lines_lost: log::lost(),
    }
}

fn missing(hole: &Hole) -> MissingWal {
    MissingWal {
        segments: hole.to_string(),
        start_lsn: hole.start().to_string(),
        end_lsn: hole.end().to_string(),
    }
}

fn archiver(status: &ArchiveStatus) -> Archiver {
    let wal = |attempt: Option<Attempt>| attempt.map(|attempt| attempt.file.to_string());
    let time = |attempt: Option<Attempt>| attempt.map(|attempt| date_millis(attempt.at));
    Archiver {
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

fn upstream_state(hub: &Hub) -> UpstreamState {
    let standing = hub.course.standing();
    let state = &standing.state;
    let (host, timeline, start) = match state {
        State::Streaming { host, tli, start } => (Some(host), Some(tli), Some(start)),
        State::Waiting { host, .. } | State::Refused { host, .. } => (Some(host), None, None),
        _ => (None, None, None),
    };
    UpstreamState {
        state: state.name().to_owned(),
        since: date_millis(standing.since),
        text: state.to_string(),
        host: host.cloned(),
        timeline: timeline.map(|tli| tli.raw()),
        start_lsn: start.map(Lsn::to_string),
    }
}

pub(super) fn upstream(hub: &Hub) -> Upstream {
    let (upstream, named_by) = hub.course.upstream();
    let set_by = match named_by {
        NamedBy::Flag => "flag",
        NamedBy::Ctl => "ctl",
    };
    Upstream {
        conninfo: upstream.conninfo.shown(),
        set_by: set_by.to_owned(),
        flag: hub.course.flag().conninfo.shown(),
    }
}

pub(super) fn fence(hub: &Hub) -> Option<Fence> {
    hub.course.fence().map(|fence| Fence {
        timeline: fence.tli.raw(),
        lsn: fence.record_end.to_string(),
        durable_lsn: fence.durable.to_string(),
        since: date_millis(fence.since),
    })
}

pub(super) fn standbys(
    shared: &Shared,
    figures: &HashMap<u32, StandbyFigures>,
    ages: &Ages,
) -> Standbys {
    let hub = &shared.hub;
    let durable = hub.current_cell().map_or(Lsn::INVALID, |cell| cell.durable());
    let slots: HashMap<u32, String> = {
        let slots = hub.holds.slots.lock();
        slots.iter().filter_map(|slot| Some((slot.user?, slot.name.to_string()))).collect()
    };
    let now = Instant::now();
    let one = |client: Client| {
        let own = figures.get(&client.pid);
        let slot_name = slots.get(&client.pid).cloned();
        standby(client, own, slot_name, &Lags { durable, ages, now })
    };
    Standbys {
        standbys: shared.registry.clients().into_iter().map(one).collect(),
        diverged: hub
            .diverged()
            .into_iter()
            .map(|diverged| Diverged {
                application_name: diverged.application_name,
                peer: diverged.peer,
                timeline: diverged.tli.raw(),
                left_lsn: diverged.end.to_string(),
                lsn: diverged.at.to_string(),
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

    fn seconds(&self, lsn: Lsn) -> Option<f64> {
        // More than a millisecond would be a claim.
        let millis = self.ages.behind(lsn, self.now)?.as_millis();
        Some(u32::try_from(millis).map_or(f64::from(u32::MAX), f64::from) / 1000.0)
    }
}

fn standby(
    client: Client,
    figures: Option<&StandbyFigures>,
    slot_name: Option<String>,
    lags: &Lags<'_>,
) -> Standby {
    let address: Option<SocketAddr> = client.peer.parse().ok();
    let said = |lsn: Lsn| (lsn != Lsn::INVALID).then_some(lsn);
    let position = |of: fn(&StandbyFigures) -> Lsn| figures.map(of).and_then(said);
    let [write, flush, replay] = [
        position(|figures| figures.positions.write),
        position(|figures| figures.positions.flush),
        position(|figures| figures.positions.apply),
    ];
    let text = |lsn: Option<Lsn>| lsn.map(|lsn| lsn.to_string());
    Standby {
        pid: client.pid,
        user: client.user,
        application_name: client.application_name,
        client_addr: address.map(|address| address.ip().to_string()),
        client_port: address.map(|address| address.port()),
        backend_start: date_millis(client.since),
        instance_id: client.instance.map(|instance| instance.to_string()),
        state: figures.map_or("startup", |figures| state(figures.state)).to_owned(),
        timeline: figures.map(|figures| figures.tli.raw()),
        sent_lsn: text(figures.map(|figures| figures.sent)),
        write_lsn: text(write),
        flush_lsn: text(flush),
        replay_lsn: text(replay),
        flush_lag_bytes: flush.map(|lsn| lags.bytes(lsn)),
        replay_lag_bytes: replay.map(|lsn| lags.bytes(lsn)),
        flush_lag_seconds: flush.and_then(|lsn| lags.seconds(lsn)),
        replay_lag_seconds: replay.and_then(|lsn| lags.seconds(lsn)),
        reply_time: figures
            .and_then(|figures| figures.reply_time)
            .map(|time| date_millis(SystemTime::from(time))),
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

pub(super) fn slots(hub: &Hub) -> Vec<Slot> {
    // A slot whose WAL has a hole has lost some.
    let (oldest_kept, unbroken_from) = (hub.holds.oldest_kept(), hub.holds.unbroken_from());
    let newest = hub.current_cell().map_or(oldest_kept, |cell| cell.durable());
    let size = hub.identity().map(|identity| identity.segment_size);
    let policy = &hub.config.retention;
    let mut slots = hub.holds.slots.lock();
    slots.absorb(oldest_kept);
    let rows = slots.iter().map(|slot| {
        let status = size.and_then(|size| slot.wal_status(policy, size, newest, unbroken_from));
        let safe = match (status, slot.restart_lsn, size) {
            (None | Some(WalStatus::Lost), _, _) => None,
            (_, Some(from), Some(size)) => safe_wal_size(policy, size, from, newest),
            _ => None,
        };
        Slot {
            slot_name: slot.name.to_string(),
            temporary: slot.lifetime == SlotLifetime::Temporary,
            active: slot.user.is_some(),
            active_pid: slot.user,
            restart_lsn: slot.restart_lsn.map(|lsn| lsn.to_string()),
            wal_status: status.map(|status| status.to_string()),
            safe_wal_size: safe,
            invalidation_reason: slot.invalidated.map(|cause| cause.to_string()),
            inactive_since: slot.idle_since.map(date_millis),
            auto_created: slot.origin == crate::store::slots::Origin::AutoCreated,
        }
    });
    rows.collect()
}

/// WAL that may still come until the segment of `from` may go.
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
        // What the rules keep for everybody, a slot keeps, too.
        let little = Policy { max_slot_wal_keep_size: Some(0), ..Policy::default() };
        assert_eq!(safe_wal_size(&little, size, mib(5), mib(10)), Some(12 << 20));
    }
}
