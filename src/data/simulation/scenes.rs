//! Single scenes, in worlds where nothing else goes wrong.

use super::kernel::{MILLISECOND, SECOND};
use super::world::World;

#[test]
fn an_idle_standby_is_told_that_its_timeline_has_ended() {
    for seed in 0..20 {
        World::at_rest(seed).end_timeline();
    }
}

/// The excess over the quota, 36 kB, is read in a tenth of a second, not in a whole one.
#[test]
fn a_burst_of_replies_is_read_at_once() {
    let mut world = World::at_rest(1);
    let (standbys, kernel) = world.standbys();
    standbys[0].chatter(&mut kernel.borrow_mut(), (100 << 10) / 39);
    let deadline = world.now() + MILLISECOND * 300;
    let heard = world.run_until(deadline, |world| {
        let (standbys, kernel) = world.standbys();
        standbys[0].unheard(&mut kernel.borrow_mut()) == 0
    });
    assert!(heard, "replies are left unread");
}

/// A flood is read at its limited rate, and WAL for others is not late.
#[test]
fn a_flood_of_replies_hurts_nobody() {
    const FLOOD: usize = 5 << 20;
    let mut world = World::at_rest(1);
    let (standbys, kernel) = world.standbys();
    standbys[0].chatter(&mut kernel.borrow_mut(), FLOOD / 39);
    let second = world.now() + SECOND;
    world.run_until(second, |_| false);
    let (standbys, kernel) = world.standbys();
    let unheard = standbys[0].unheard(&mut kernel.borrow_mut());
    assert!(FLOOD - unheard < 600 << 10, "{} bytes were read in a second", FLOOD - unheard);
    assert!(world.standbys().0.len() > 1, "there are others");
    assert!(world.commit_is_sent_in(MILLISECOND * 20), "a commit comes late");
}
