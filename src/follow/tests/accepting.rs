//! An operator's word about two histories.

use super::{PATIENCE, Scene, differed, host, receiving};
use crate::data::handoff::ToCore;
use crate::follow::{Steer, UpstreamOrder};
use crate::upstream::end::UpstreamEnd;
use crate::wal::Lsn;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

const PLACE: Lsn = Lsn::new(0x500_2100);

impl Scene {
    /// Gives an order and waits for what comes of it. The core has no stream when it is recalled.
    fn order(&self, steer: Steer) -> Result<(), String> {
        let (answer, mut answered) = oneshot::channel();
        self.orders.blocking_send(UpstreamOrder { steer, answer }).unwrap();
        let end = Instant::now() + PATIENCE;
        loop {
            if let Ok(answer) = answered.try_recv() {
                return answer;
            }
            match self.inbox.take() {
                Some(ToCore::RecallUpstream) => self.end(UpstreamEnd::Recalled),
                Some(other) => panic!("{other:?}"),
                None => std::thread::sleep(Duration::from_millis(1)),
            }
            assert!(Instant::now() < end, "no answer");
        }
    }
}

#[test]
fn ours_leaves_a_difference_against_its_source_alone() {
    let directory = tempfile::tempdir().unwrap();
    let scene = receiving(directory.path(), 0xAA);
    let gone = host("gone:5432");
    {
        // It no longer has the place, so it cannot show whose bytes it had there.
        let mut server = scene.server.lock().unwrap();
        (server.wal, server.oldest) = (Some(0xAA), Lsn::new(0x500_2000));
    }
    scene.hub.course.set_evidence(differed(gone.clone(), PLACE, false));
    scene.end(UpstreamEnd::TimedOut);
    scene.wait_for_state("segment removed");

    let other = Lsn::new(0x500_2101);
    let refused = scene.order(Steer::AcceptOurs(other)).unwrap_err();
    for part in ["at 0/5002101; there is", "at 0/5002100 on timeline 1, from gone:5432"] {
        assert!(refused.contains(part), "{refused}");
    }
    assert!(scene.inbox.is_empty());

    assert_eq!(scene.order(Steer::AcceptOurs(PLACE)), Ok(()));
    let saved = scene.saved().urgent;
    assert!(saved.contains(&"evidence 1 0/5002100 cleared".to_owned()), "{saved:?}");
    assert_eq!(*scene.hub.course.evidence(), differed(gone, PLACE, true));
    assert_eq!(scene.stream().start, Lsn::new(0x500_2000));
    // Once more changes nothing, and ends no stream.
    assert_eq!(scene.order(Steer::AcceptOurs(PLACE)), Ok(()));
    assert!(scene.inbox.is_empty());
}
