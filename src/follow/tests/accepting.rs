//! An operator's word about two histories.

use super::{FirstWords, PATIENCE, Scene, behind_a_fork, differed, host, receiving};
use crate::data::handoff::ToCore;
use crate::follow::{Steer, UpstreamOrder};
use crate::hub::diverged::{Diverged, Left};
use crate::store::course::FenceNote;
use crate::store::evidence::{Difference, Evidence, PlaceBytes, WalSource};
use crate::store::seams::{Cut, Seam, Seams};
use crate::store::switch::Switch;
use crate::upstream::end::UpstreamEnd;
use crate::upstream::position::Position;
use crate::wal::{Lsn, TimelineId};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::oneshot;

const PLACE: Lsn = Lsn::new(0x500_2100);

/// A source that had nothing but `theirs` at the place.
fn seen(source: WalSource, theirs: u8) -> Evidence {
    let mut evidence = differed(source.clone(), PLACE, false);
    let bytes = PlaceBytes { ours: vec![0xAA; 64], theirs: vec![theirs; 64] };
    evidence.learn(&source, &bytes, SystemTime::UNIX_EPOCH);
    evidence
}

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
                // A stream that began after the answer, or before the order.
                Some(ToCore::Upstream(_)) => {}
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

#[test]
fn theirs_needs_an_upstream_that_differs_there() {
    let directory = tempfile::tempdir().unwrap();
    let scene = receiving(directory.path(), 0xAA);
    scene.server.lock().unwrap().wal = Some(0xAA);
    // It has our bytes, and may not clear the place meanwhile: it is barred by its own name.
    let own = host("gone:5432");
    scene.hub.course.set_evidence(differed(own.clone(), PLACE, false));
    let elsewhere = scene.order(Steer::AcceptTheirs(Lsn::new(0x500_2101))).unwrap_err();
    assert!(elsewhere.contains("at 0/5002100 on timeline 1, from gone:5432"), "{elsewhere}");
    let refused = scene.order(Steer::AcceptTheirs(PLACE)).unwrap_err();
    for part in ["shows the history that gone:5432 had at 0/5002100", "has this hub's WAL at"] {
        assert!(refused.contains(part), "{refused}");
    }
    let saved = scene.saved().urgent;
    assert!(!saved.iter().any(|job| job.contains("Cut")), "{saved:?}");

    // It has removed the place.
    scene.hub.course.set_evidence(differed(own.clone(), PLACE, false));
    {
        let mut server = scene.server.lock().unwrap();
        (server.wal, server.oldest) = (Some(0xBB), Lsn::new(0x500_2000));
    }
    let refused = scene.order(Steer::AcceptTheirs(PLACE)).unwrap_err();
    assert!(refused.contains("segment removed"), "{refused}");

    // It has other bytes there, and it is not known what the other server had.
    scene.server.lock().unwrap().oldest = Lsn::INVALID;
    let refused = scene.order(Steer::AcceptTheirs(PLACE)).unwrap_err();
    assert!(refused.contains("what gone:5432 had there at 1970-01-01"), "{refused}");
    assert!(refused.contains("is not known"), "{refused}");

    // It has yet another history.
    scene.hub.course.set_evidence(seen(own.clone(), 0xCC));
    let refused = scene.order(Steer::AcceptTheirs(PLACE)).unwrap_err();
    assert!(refused.contains("has neither this hub's WAL at 0/5002100 nor what"), "{refused}");

    // It has the bytes that the other one had there, and nothing of ours before.
    scene.hub.course.set_evidence(seen(own, 0xBB));
    let refused = scene.order(Steer::AcceptTheirs(PLACE)).unwrap_err();
    assert!(refused.contains("this hub's own WAL before 0/5000000 cannot be read"), "{refused}");
    let saved = scene.saved().urgent;
    assert!(!saved.iter().any(|job| job.contains("Cut")), "{saved:?}");
    assert!(scene.hub.current_cell().is_none(), "the scene has none");
}

/// What the source of a difference had is kept, as soon as it was compared.
#[test]
fn a_difference_is_kept_with_what_both_have_there() {
    let directory = tempfile::tempdir().unwrap();
    let scene = receiving(directory.path(), 0xAA);
    scene.server.lock().unwrap().wal = Some(0xBB);
    scene.end(UpstreamEnd::Diverged { at: PLACE, detail: "other".to_owned() });
    let known = || {
        let evidence = scene.hub.course.evidence();
        evidence.at(PLACE).and_then(|difference| difference.bytes.clone())
    };
    scene.wait_until("its bytes are known", || known().is_some());
    let bytes = PlaceBytes { ours: vec![0xAA; 64], theirs: vec![0xBB; 64] };
    assert_eq!(known(), Some(bytes.clone()));

    // It has yet another history: an operator's next word is about that.
    scene.server.lock().unwrap().wal = Some(0xCC);
    scene.wait_until("it shows something else", || {
        known() == Some(PlaceBytes { theirs: vec![0xCC; 64], ..bytes.clone() })
    });
}

/// The last word counts, whatever the first one still waits for.
#[test]
fn ours_after_theirs_ends_the_order() {
    let directory = tempfile::tempdir().unwrap();
    let scene = receiving(directory.path(), 0xAA);
    // No host of the conninfo answers.
    scene.server.lock().unwrap().says_first = FirstWords::Nothing;
    scene.server.lock().unwrap().wal = None;
    scene.hub.course.set_evidence(differed(host("gone:5432"), PLACE, false));
    let (answer, mut theirs) = oneshot::channel();
    let order = UpstreamOrder { steer: Steer::AcceptTheirs(PLACE), answer };
    scene.orders.blocking_send(order).unwrap();
    assert_eq!(scene.order(Steer::AcceptOurs(PLACE)), Ok(()));
    let end = Instant::now() + PATIENCE;
    let refused = loop {
        match theirs.try_recv() {
            Ok(answer) => break answer.unwrap_err(),
            Err(_) => assert!(Instant::now() < end, "the order is still in force"),
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    assert!(refused.contains("another order"), "{refused}");
    let saved = scene.saved().urgent;
    assert!(!saved.iter().any(|job| job.contains("Cut")), "{saved:?}");
}

#[test]
fn theirs_is_refused_while_the_hub_is_fenced() {
    let directory = tempfile::tempdir().unwrap();
    let scene = receiving(directory.path(), 0xAA);
    scene.server.lock().unwrap().wal = Some(0xBB);
    let fence = FenceNote {
        tli: TimelineId::FIRST,
        record_end: PLACE,
        durable: PLACE,
        since: SystemTime::UNIX_EPOCH,
    };
    scene.hub.course.set_evidence(differed(host("gone:5432"), PLACE, true));
    scene.hub.course.set_fence(Some(fence));
    let refused = scene.order(Steer::AcceptTheirs(PLACE)).unwrap_err();
    assert!(refused.contains("fenced"), "{refused}");
}

/// Where timeline 3 left timeline 1.
const FORK: Lsn = Lsn::new(0x300_0000);

/// A hub that went on with timeline 3 by the archive's word alone.
fn on_the_archives_word(directory: &std::path::Path) -> Scene {
    let scene = behind_a_fork(directory, 0xAA);
    let tli = TimelineId::new(3).unwrap();
    let (durable, start) = (Lsn::new(0x300_0100), Lsn::new(0x2FF_E000));
    scene.hub.set_position(Position::At { tli, durable, start });
    let mut seams = Seams::default();
    let switch = Switch { from: TimelineId::FIRST, to: tli, at: FORK };
    seams.take(switch, SystemTime::UNIX_EPOCH).unwrap();
    scene.hub.course.set_seams(seams);
    scene
}

#[test]
fn an_upstream_that_is_followed_on_a_timeline_agrees_to_it() {
    let directory = tempfile::tempdir().unwrap();
    let scene = on_the_archives_word(directory.path());
    scene.server.lock().unwrap().wal = Some(0xAA);
    scene.end(UpstreamEnd::TimedOut);
    scene.stream();
    scene.wait_until("it has agreed", || *scene.hub.course.seams() == Seams::default());
    let saved = scene.saved().urgent;
    assert!(saved.contains(&"SaveNote { note: Seams, bytes: None }".to_owned()), "{saved:?}");
    let refused = scene.order(Steer::AcceptOurs(FORK)).unwrap_err();
    assert!(refused.contains("no evidence"), "{refused}");
}

#[test]
fn the_way_back_is_kept_while_the_hub_is_fenced() {
    let directory = tempfile::tempdir().unwrap();
    let scene = on_the_archives_word(directory.path());
    let (tli, since) = (TimelineId::new(3).unwrap(), SystemTime::UNIX_EPOCH);
    let fence = FenceNote { tli, record_end: FORK, durable: FORK, since };
    scene.hub.course.set_fence(Some(fence));
    let refused = scene.order(Steer::AcceptOurs(FORK)).unwrap_err();
    assert!(refused.contains("fenced"), "{refused}");
    let saved = scene.saved().urgent;
    assert!(!saved.iter().any(|job| job.contains("Cut")), "{saved:?}");
}

/// The word is about the difference: whether ours or another's of this timeline is the true history.
#[test]
fn a_difference_at_the_fork_goes_before_the_way_back() {
    let directory = tempfile::tempdir().unwrap();
    let scene = on_the_archives_word(directory.path());
    let tli = TimelineId::new(3).unwrap();
    let difference = differed(host("gone:5432"), FORK, false).at(FORK).cloned().unwrap();
    scene.hub.course.set_evidence(Evidence::from(Difference { tli, ..difference }));
    for _ in 0..2 {
        assert_eq!(scene.order(Steer::AcceptOurs(FORK)), Ok(()));
    }
    let saved = scene.saved().urgent;
    assert!(!saved.iter().any(|job| job.contains("Cut")), "{saved:?}");
}

#[test]
fn what_was_undone_is_not_undone_twice() {
    let directory = tempfile::tempdir().unwrap();
    let scene = receiving(directory.path(), 0xAA);
    let mut seams = Seams::default();
    let (from, to) = (TimelineId::FIRST, TimelineId::new(2).unwrap());
    seams.begin(Cut::Back(Switch { from, to, at: PLACE }), &[]).unwrap();
    seams.finish();
    scene.hub.course.set_seams(seams);
    assert_eq!(scene.order(Steer::AcceptOurs(PLACE)), Ok(()));
    assert!(scene.inbox.is_empty(), "no stream ends");
}

/// Standbys with the former WAL ask again and again, and would be let in at once.
#[test]
fn a_seam_is_not_confirmed_while_standbys_that_were_refused_there_still_ask() {
    let directory = tempfile::tempdir().unwrap();
    let scene = receiving(directory.path(), 0xAA);
    let seam = Seam { tli: TimelineId::FIRST, at: PLACE };
    let mut seams = Seams::default();
    seams.begin(Cut::Past(seam), &[seam]).unwrap();
    seams.finish();
    scene.hub.course.set_seams(seams);
    for (name, left) in
        [("a", Left::Seam(seam)), ("b", Left::Seam(seam)), ("fork", Left::Fork(PLACE))]
    {
        scene.hub.note_diverged(Diverged {
            application_name: name.to_owned(),
            peer: "10.0.0.1:5".to_owned(),
            tli: TimelineId::FIRST,
            at: Lsn::new(0x500_3000),
            left,
        });
    }
    let confirm = |let_in: &[&str]| {
        let let_in = let_in.iter().map(|name| (*name).to_owned()).collect();
        scene.order(Steer::ConfirmSeam { at: PLACE, let_in })
    };
    let refused = confirm(&[]).unwrap_err();
    for part in ["a (10.0.0.1:5, at 0/5003000, last seen 0 s ago), b (", "120 s", "--let-in NAME"] {
        assert!(refused.contains(part), "{refused}");
    }
    assert!(!refused.contains("fork"), "{refused}");
    let refused = confirm(&["a"]).unwrap_err();
    assert!(refused.contains("WAL: b (10.0.0.1:5"), "{refused}");
    let saved = |scene: &Scene| scene.saved().urgent.iter().any(|job| job.contains("Seams"));
    assert!(!saved(&scene) && !scene.hub.course.seams().is_empty());
    assert_eq!(confirm(&["a", "b"]), Ok(()));
    assert!(saved(&scene) && scene.hub.course.seams().is_empty());
}
