//! WAL that is set aside past a place, cut off at each of its steps: either nothing has happened, or a
//! start finishes it, and no byte is lost.

use crate::fake_disk::FakeDisk;
use crate::starts::{OPEN, START, STEPS, Scene, drive, each_step_from, name, size};
use std::sync::Arc;
use std::time::SystemTime;
use walhub::keeper::{Job, JobDone, Keeper, Note, open};
use walhub::store::Recovered;
use walhub::store::evidence::{Difference, Evidence, WalSource};
use walhub::store::retention::{Holds, Policy};
use walhub::store::seams::{Cut, Seam, UnagreedSwitch};
use walhub::store::slots::{Create, Origin, SlotName};
use walhub::store::switch::Switch;
use walhub::wal::{Lsn, TimelineId};
use walhub::wire::command::SlotLifetime;

const MIB: u64 = 1 << 20;

/// At each step there are as many losses of power.
const ROUNDS: u64 = 4;

/// A record's end in the middle of a segment.
fn seam(scene: &Scene, no: u64) -> Seam {
    let at = scene.ends.iter().copied().find(|end| *end > Lsn::new(no * MIB + MIB / 5));
    Seam { tli: TimelineId::FIRST, at: at.unwrap() }
}

type Opened = (Keeper<FakeDisk>, Recovered, Arc<Holds>);

fn start(scene: &Scene, polls: usize) -> Option<Opened> {
    let opened = drive(open(scene.disk.clone(), &scene.layout, Policy::default()), polls)?;
    Some(opened.unwrap())
}

fn slot_at((keeper, _, holds): &Opened, slot: &str, at: Lsn) {
    let name = SlotName::parse(slot).unwrap();
    let create = async {
        let session = holds.slots.lock().enter(1);
        let (lifetime, origin) = (SlotLifetime::Persistent, Origin::Asked);
        let create = Create { name: name.clone(), lifetime, origin, reserve: Some(at), session };
        holds.slots.lock().create(create, 10).unwrap();
        let done = keeper.run(Job::SaveSlot(name.clone())).await;
        assert!(matches!(done, JobDone::Done(_)), "not saved");
    };
    drive(create, STEPS).unwrap();
}

/// A difference at the end of our WAL.
fn evidence(scene: &Scene, seam: Seam) -> Evidence {
    Evidence::from(Difference {
        tli: seam.tli,
        at: scene.ends[scene.ends.len() - 2],
        source: WalSource::archive(),
        since: SystemTime::UNIX_EPOCH,
        detail: "other".to_owned(),
        bytes: None,
        cleared: false,
    })
}

fn note(keeper: &Keeper<FakeDisk>, evidence: &Evidence) {
    let save = async {
        let bytes = Some(evidence.encode());
        let done = keeper.run(Job::SaveNote { note: Note::Evidence, bytes }).await;
        assert!(matches!(done, JobDone::Done(_)), "not saved");
    };
    drive(save, STEPS).unwrap();
}

/// What a start finds: all of our WAL, or what was to be left of it. Nothing is lost.
fn check(scene: &Scene, seam: Seam, when: &str) -> bool {
    let (_, recovered, holds) = start(scene, STEPS).unwrap();
    let durable = recovered.wal.unwrap().durable;
    assert!(durable == scene.end || durable == seam.at, "{when}: {durable}");
    let is_cut = durable == seam.at;
    let stands: Vec<_> = recovered.seams.iter().copied().collect();
    assert_eq!(stands, Vec::from_iter(is_cut.then_some(seam)), "{when}");
    assert_eq!(recovered.seams.under_way(), None, "{when}");
    let found = scene.disk.views(&scene.layout.evidence()).1;
    let stands = (!is_cut).then(|| evidence(scene, seam).encode());
    assert_eq!(found, stands, "{when}: the evidence goes with the WAL that it is about");
    let first = seam.at.segment(size()).raw();
    for no in START..=OPEN {
        let mut paths = vec![scene.layout.segment(name(no)), scene.layout.partial(name(no))];
        if is_cut && no >= first {
            let folder = scene.layout.diverged(seam.tli, seam.at);
            paths = paths.iter().map(|path| folder.join(path.file_name().unwrap())).collect();
        }
        let whole = |path| scene.disk.views(path).1.as_deref() == Some(scene.bytes(no));
        assert!(paths.iter().any(|path| whole(path)), "{when}: segment {no} is lost");
    }
    let slots = holds.slots.lock();
    let at = |slot: &str| slots.get(slot).unwrap().restart_lsn;
    assert_eq!(at("before"), Some(Lsn::new(START * MIB)), "{when}");
    assert_eq!(at("past"), (!is_cut).then_some(scene.end), "{when}");
    is_cut
}

fn cut_off_at_each_step(no: u64, seed: u64) {
    let mut outcomes = [false; 2];
    each_step_from(seed, |scene, polls| {
        let seam = seam(scene, no);
        let opened = start(scene, STEPS).unwrap();
        slot_at(&opened, "before", Lsn::new(START * MIB));
        slot_at(&opened, "past", scene.end);
        let (keeper, ..) = opened;
        note(&keeper, &evidence(scene, seam));
        let work = async {
            let cut = Cut::Past(seam);
            for job in [Job::PrepareCut(cut), Job::DecideCut(cut), Job::Cut(cut)] {
                let done = keeper.run(job).await;
                if let JobDone::Failed { job, error } = done {
                    panic!("could not {job}: {error}");
                }
            }
        };
        let ended = drive(work, polls).is_some();
        drop(keeper);
        scene.crash();
        // The start that finishes it is cut off somewhere, too.
        drop(start(scene, polls % 37));
        scene.crash();
        let is_cut = check(scene, seam, &format!("cut off at {polls}"));
        assert!(is_cut || !ended, "it was answered, and has not happened");
        assert_eq!(check(scene, seam, "started once more"), is_cut);
        outcomes[usize::from(is_cut)] = true;
        ended
    });
    assert_eq!(outcomes, [true; 2]);
}

#[test]
fn a_cut_in_the_open_segment_happens_as_a_whole() {
    for round in 0..ROUNDS {
        cut_off_at_each_step(OPEN, round * 2 * STEPS as u64);
    }
}

#[test]
fn a_cut_in_a_complete_segment_happens_as_a_whole() {
    for round in 0..ROUNDS {
        cut_off_at_each_step(OPEN - 2, round * 2 * STEPS as u64);
    }
}

/// Timeline 2 follows where our WAL ends, by the archive's word.
fn switch(scene: &Scene) -> Switch {
    Switch { from: TimelineId::FIRST, to: TimelineId::new(2).unwrap(), at: scene.end }
}

/// Switches so that it can be undone.
fn switching(scene: &Scene) -> Vec<Job> {
    let switch = switch(scene);
    let bytes = format!("1\t{}\tno recovery target\n", switch.at).into_bytes();
    let taken = UnagreedSwitch { switch, since: SystemTime::UNIX_EPOCH };
    vec![Job::SaveHistory { tli: switch.to, bytes }, Job::KeepLeft(taken), Job::Switch(switch)]
}

/// And goes back.
fn going_back(scene: &Scene) -> Vec<Job> {
    let cut = Cut::Back(switch(scene));
    vec![Job::PrepareCut(cut), Job::DecideCut(cut), Job::Cut(cut)]
}

async fn run(keeper: &Keeper<FakeDisk>, jobs: Vec<Job>) {
    for job in jobs {
        let done = keeper.run(job).await;
        if let JobDone::Failed { job, error } = done {
            panic!("could not {job}: {error}");
        }
    }
}

/// The timeline on which a start finds the hub. All of our WAL is there.
fn timeline(scene: &Scene, when: &str) -> u32 {
    let (_, recovered, _) = start(scene, STEPS).unwrap();
    let cluster = recovered.control.unwrap().cluster.unwrap();
    assert_eq!(recovered.wal.unwrap().durable, scene.end, "{when}");
    assert_eq!(recovered.seams.under_way(), None, "{when}");
    let is_rejected = recovered.seams.rejected().any(|known| *known == switch(scene));
    if cluster.timeline == TimelineId::FIRST {
        assert!(cluster.sealed.is_empty(), "{when}");
        let own = scene.disk.views(&scene.layout.partial(name(OPEN))).1;
        assert!(own.as_deref() == Some(scene.bytes(OPEN)), "{when}: the open segment is another");
    } else {
        assert!(!is_rejected, "{when}");
    }
    cluster.timeline.raw()
}

/// Wherever a switch is cut off: the hub is on one timeline or the other, and there is a way back.
#[test]
fn a_switch_can_be_undone_wherever_it_was_cut_off() {
    let mut timelines = [false; 2];
    each_step_from(0, |scene, polls| {
        let (keeper, ..) = start(scene, STEPS).unwrap();
        let ended = drive(run(&keeper, switching(scene)), polls).is_some();
        drop(keeper);
        scene.crash();
        let when = format!("cut off at {polls}");
        let found = timeline(scene, &when);
        if found == 2 {
            let (keeper, recovered, _) = start(scene, STEPS).unwrap();
            let unagreed: Vec<_> = recovered.seams.unagreed().map(|one| one.switch).collect();
            assert_eq!(unagreed, [switch(scene)], "{when}");
            drive(run(&keeper, going_back(scene)), 2 * STEPS).unwrap();
            drop(keeper);
            scene.crash();
            assert_eq!(timeline(scene, &when), 1);
        }
        timelines[usize::from(found == 2)] = true;
        ended
    });
    assert_eq!(timelines, [true; 2]);
}

#[test]
fn the_way_back_is_taken_as_a_whole() {
    let mut timelines = [false; 2];
    each_step_from(0, |scene, polls| {
        let (keeper, ..) = start(scene, STEPS).unwrap();
        drive(run(&keeper, switching(scene)), 2 * STEPS).unwrap();
        let ended = drive(run(&keeper, going_back(scene)), polls).is_some();
        drop(keeper);
        scene.crash();
        // The start that finishes it is cut off somewhere, too.
        drop(start(scene, polls % 37));
        scene.crash();
        let when = format!("cut off at {polls}");
        let found = timeline(scene, &when);
        assert!(found == 1 || !ended, "it was answered, and has not happened");
        assert_eq!(timeline(scene, "started once more"), found);
        timelines[usize::from(found == 2)] = true;
        ended
    });
    assert_eq!(timelines, [true; 2]);
}
