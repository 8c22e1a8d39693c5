//! Copies of segments from the scripted server.

use super::{SERVER, Server, differed, host, start};
use crate::cluster::identity::Identity;
use crate::follow::{CopyPart, System, copies, copy_segments};
use crate::hub::course::Upstream;
use crate::hub::{Hub, tests};
use crate::store::course::FenceNote;
use crate::wal::{Lsn, SegmentName, SegmentNo, SegmentSize, SystemId, TimelineId};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

const SEGMENT: u64 = 16 << 20;

/// Asks the only host of this upstream for segment 4; the bytes, and what came after them.
fn copy(hub: &Arc<Hub>, port: u16) -> (Vec<u8>, Option<CopyPart>) {
    let (client, requests) = copies();
    let upstream =
        Arc::new(Upstream::parse(&format!("host=127.0.0.1 port={port} user=me")).unwrap());
    let (mailbox, _inbox) = crate::data::handoff::mailbox(1, Arc::new(|| {}));
    let system = System { hub: Arc::clone(hub), receiver: mailbox };
    let answering = Arc::clone(hub);
    let task = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(copy_segments(answering, system, requests));
    });
    let size = SegmentSize::new(SEGMENT).unwrap();
    let name = SegmentName { tli: TimelineId::FIRST, no: SegmentNo::new(4), size };
    let (mut answer, mut wal) = (client.ask(&upstream, 0, name), Vec::new());
    let end = loop {
        match answer.blocking_recv() {
            Some(CopyPart::Wal(more)) => wal.extend(more),
            end => break end,
        }
    };
    assert_eq!(answer.blocking_recv(), None);
    drop(client);
    task.join().unwrap();
    (wal, end)
}

/// A hub of the server's cluster.
fn hub() -> Arc<Hub> {
    let hub = tests::hub("15.18");
    let identity = hub.identity().unwrap();
    let segment_size = SegmentSize::new(SEGMENT).unwrap();
    let system_id = SystemId::new(77);
    hub.set_identity(Arc::new(Identity { system_id, segment_size, ..Identity::clone(&identity) }));
    Arc::new(hub)
}

fn server(server: Server) -> (u16, Arc<Mutex<Vec<String>>>) {
    let asked = Arc::default();
    (start(Arc::new(Mutex::new(server)), Arc::clone(&asked)), asked)
}

#[test]
fn a_segment_is_copied_by_a_stream_of_its_own_without_a_slot() {
    let (port, asked) = server(Server { wal: Some(0xAB), ..SERVER });
    let (wal, end) = copy(&hub(), port);
    assert_eq!(end, Some(CopyPart::End));
    assert!(wal == [0xAB; SEGMENT as usize], "{}", wal.len());
    let asked = asked.lock().unwrap();
    assert_eq!(asked.last().unwrap(), "START_REPLICATION 0/4000000 TIMELINE 1");
}

#[test]
fn what_is_not_there_or_not_allowed_is_not_copied() {
    let refused = |hub: &Arc<Hub>, port| match copy(hub, port) {
        (wal, Some(CopyPart::Refused(why))) => {
            assert!(wal.is_empty());
            why
        }
        other => panic!("{other:?}"),
    };
    let (port, _) = server(Server { oldest: Lsn::new(0x500_0000), ..SERVER });
    assert!(refused(&hub(), port).contains("segment removed"));
    let (port, asked) = server(Server { wal: Some(0xAB), ..SERVER });
    let other = tests::hub("15.18");
    let identity = other.identity().unwrap();
    let system_id = SystemId::new(78);
    other.set_identity(Arc::new(Identity { system_id, ..Identity::clone(&identity) }));
    assert!(refused(&Arc::new(other), port).contains("another cluster"));
    // Evidence that another source's bytes stand against bars this one, too.
    let barred = hub();
    barred.course.set_evidence(differed(host("gone:5432"), Lsn::new(0x400_2000), false));
    assert!(refused(&barred, port).contains("evidence of another history"));
    let fenced = hub();
    let at = Lsn::new(0x500_0000);
    let since = SystemTime::UNIX_EPOCH;
    let fence = FenceNote { tli: TimelineId::FIRST, record_end: at, durable: at, since };
    fenced.course.set_fence(Some(fence));
    asked.lock().unwrap().clear();
    assert!(refused(&fenced, port).contains("fenced"));
    assert!(asked.lock().unwrap().is_empty());
    assert!(!hub().course.evidence().iter().any(|_| true));
}

#[test]
fn a_host_that_does_not_answer_is_said_to_be_unreachable() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (wal, end) = copy(&hub(), nobody);
    assert!(wal.is_empty());
    assert!(matches!(end, Some(CopyPart::Unreachable(_))), "{end:?}");
}
