//! What was set aside: looked at after the start, after each move, and every minute, so many names
//! at a time. Whoever asks is told what was seen last, and does not wait for the disk.

use super::job::Tended;
use super::work::Keeper;
use crate::store::asides::{Aside, AsideLook, KnownAsides, NAMES_A_STEP};
use crate::store::disk::Disk;
use crate::store::now::Now;
use std::io;
use tracing::warn;

impl<D: Disk> Keeper<D> {
    /// One step of work on what was set aside: looks at some of it, or removes one file that was
    /// confirmed and whose time is up.
    pub async fn tend_asides(&self) -> Tended {
        let now = (self.clock)();
        self.count_confirmed(now).await;
        if self.asides.look.borrow().is_none() && self.asides.is_due(now) {
            self.begin_look(now);
        }
        match self.look_a_step().await {
            Tended::More => Tended::More,
            Tended::Idle => self.in_turn(self.expire_a_step(now)).await,
        }
    }

    fn begin_look(&self, now: Now) {
        self.asides.begin_look(now);
        self.asides.look.replace(Some(AsideLook::begin(&self.layout)));
    }

    /// Looks at all of it now. What cannot be looked at stays as it was seen last.
    pub(super) async fn look_at_asides(&self, now: Now) {
        self.begin_look(now);
        while self.look_a_step().await == Tended::More {}
    }

    async fn look_a_step(&self) -> Tended {
        let Some(mut look) = self.asides.look.take() else { return Tended::Idle };
        let Some(walk) = look.walk.take() else { return self.end_look(look) };
        let step = self.disk.apart(move || walk.step(NAMES_A_STEP)).await;
        match step.and_then(Option::transpose) {
            Ok(Some((rest, seen))) => {
                look.walk = rest;
                look.take_in(seen, &self.asides.confirmed());
                self.asides.look.replace(Some(look));
                Tended::More
            }
            Ok(None) => self.end_look(look),
            Err(error) => {
                say_unseen(&error);
                Tended::Idle
            }
        }
    }

    fn end_look(&self, look: AsideLook) -> Tended {
        let all = look.end();
        self.asides.see_damaged(damaged(&all));
        self.holds.asides.see(KnownAsides::of(all));
        Tended::Idle
    }
}

fn say_unseen(error: &io::Error) {
    warn!("could not look at what was set aside: {error}");
}

fn damaged(all: &[Aside]) -> (usize, u64) {
    let damaged = all.iter().filter(|aside| aside.name.starts_with("damaged/"));
    damaged.fold((0, 0), |(files, sum), aside| (files + 1, aside.bytes.saturating_add(sum)))
}

#[cfg(test)]
#[cfg(not(walhub_loom))]
mod tests {
    use super::*;
    use crate::cluster::instance::InstanceId;
    use crate::keeper::asides::LOOK_EVERY;
    use crate::keeper::{Job, Keeper, queue, serve};
    use crate::store::directory::Directory;
    use crate::store::disk::run_ready;
    use crate::store::faulty_disk::FaultyDisk;
    use crate::store::layout::{Layout, Listing};
    use crate::store::retention::Holds;
    use crate::wal::Lsn;
    use std::cell::Cell;
    use std::path::Path;
    use std::sync::Arc;

    fn keeper(folder: &Path) -> (Keeper<FaultyDisk>, Layout, FaultyDisk) {
        let layout = Directory::open(&folder.join("hub")).unwrap().layout().clone();
        let (disk, holds) = (FaultyDisk::default(), Arc::new(Holds::new(Lsn::INVALID)));
        let listing = Listing::default();
        (Keeper::new(disk.clone(), layout.clone(), holds, &listing, None, None), layout, disk)
    }

    fn seen(keeper: &Keeper<FaultyDisk>) -> Vec<String> {
        let known = keeper.holds.asides.known().unwrap();
        known.newest().iter().map(|aside| aside.name.clone()).collect()
    }

    #[test]
    fn it_is_seen_at_the_start_after_a_move_and_when_time_has_passed() {
        let folder = tempfile::tempdir().unwrap();
        let (keeper, layout, _) = keeper(folder.path());
        let clock = std::rc::Rc::new(Cell::new(Now::by_system()));
        let told = std::rc::Rc::clone(&clock);
        let keeper = keeper.with_clock(move || told.get());
        let serve = |jobs: Vec<Job>| {
            let (client, orders) = queue(4);
            // The patient lane has a turn.
            client.note(Job::SaveState("{}".to_owned()));
            jobs.into_iter().for_each(|job| client.note(job));
            drop(client);
            run_ready(serve(&keeper, orders, None)).unwrap();
            // It ends with the last order, and a look takes several steps.
            while run_ready(keeper.tend_asides()).unwrap() == Tended::More {}
        };
        serve(Vec::new());
        assert_eq!(seen(&keeper), [""; 0]);
        serve(vec![Job::SetAside(InstanceId::new(5))]);
        serve(Vec::new());
        assert_eq!(seen(&keeper), ["pg_wal.aside.1"]);
        std::fs::remove_dir_all(layout.aside(1)).unwrap();
        serve(Vec::new());
        assert_eq!(seen(&keeper), ["pg_wal.aside.1"], "nothing has moved");
        let now = clock.get();
        clock.set(Now { instant: now.instant + LOOK_EVERY, ..now });
        serve(Vec::new());
        assert_eq!(seen(&keeper), [""; 0]);
    }

    /// A disk that hangs: what was seen before is told, and a commit does not wait.
    #[test]
    fn nobody_waits_for_the_look() {
        use std::pin::pin;
        use std::task::{Context, Waker};
        let folder = tempfile::tempdir().unwrap();
        let (keeper, layout, disk) = keeper(folder.path());
        std::fs::create_dir(layout.aside(1)).unwrap();
        while run_ready(keeper.tend_asides()).unwrap() == Tended::More {}
        disk.stick_apart();
        keeper.asides.note_move();
        let (client, orders) = queue(4);
        let mut serving = pin!(serve(&keeper, orders, None));
        let mut turn = || {
            let turn = serving.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            assert!(turn.is_pending());
        };
        turn();
        assert_eq!(disk.waiting(), 1);
        let saved = client.save_history(crate::wal::TimelineId::FIRST, b"1\n".to_vec());
        let mut saved = pin!(saved);
        for _ in 0..50 {
            let is_saved = saved.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            if is_saved.is_ready() {
                break;
            }
            turn();
        }
        assert!(layout.history(crate::wal::TimelineId::FIRST).exists());
        assert_eq!(seen(&keeper), ["pg_wal.aside.1"]);
    }
}
