//! `--on-diverge follow`: an upstream out of recovery that has another history is followed without an
//! operator once it has been seen so for long enough. What is seen once may be a server that somebody
//! is about to stop, and the archive is no server.

use super::Task;
use super::difference::place_of;
use super::environment::Environment;
use super::outcome::AttemptFailure;
use super::questions::{IdentifiedServer, nature};
use crate::config::OnDiverge;
use crate::store::evidence::{Difference, WalSource};
use crate::upstream::place::Place;
use std::time::Duration;
use tokio::time::Instant;

/// When the server has not been seen for so long, its time counts from the beginning.
const LONGEST_GAP: Duration = Duration::from_secs(60);

/// How long one server out of recovery has been seen with other bytes at one place.
#[derive(Debug, Default)]
pub(super) struct Sightings {
    now: Option<Sighting>,
}

#[derive(Debug)]
struct Sighting {
    place: Place,
    source: WalSource,
    since: Instant,
    last: Instant,
}

impl Sightings {
    /// `source` has other bytes at `place`. Returns for how long nothing else has been seen.
    fn see(
        &mut self,
        place: Place,
        source: &WalSource,
        longest_gap: Duration,
        now: Instant,
    ) -> Duration {
        let is_same = |known: &&mut Sighting| {
            known.place == place
                && known.source == *source
                && now.duration_since(known.last) <= longest_gap
        };
        if let Some(known) = self.now.as_mut().filter(is_same) {
            known.last = now;
            return now.duration_since(known.since);
        }
        self.now = Some(Sighting { place, source: source.clone(), since: now, last: now });
        Duration::ZERO
    }

    /// Something else was seen.
    fn forget(&mut self) {
        self.now = None;
    }
}

impl<E: Environment> Task<E> {
    /// The server has `theirs` at the place of the difference that bars it. Is it to be followed now,
    /// because it has been so for long enough? It may be the one that was found to differ, or one with
    /// the same history; the difference has to bar everybody.
    pub(super) async fn is_confirmed(
        &mut self,
        asked: &mut IdentifiedServer<E::Socket>,
        difference: &Difference,
        theirs: &[u8],
    ) -> Result<bool, AttemptFailure> {
        let config = &self.parts.hub.config;
        let OnDiverge::Follow { after } = config.on_diverge else { return Ok(false) };
        let longest_gap = LONGEST_GAP.max(config.wal_retrieve_retry_interval * 3);
        let place = place_of(difference);
        let bars_all = self.is_cleared_by(place.at) && self.may_accept_theirs(place.at).is_ok();
        let is_the_other = difference.is_history_of(&asked.source, theirs);
        if !bars_all || !is_the_other || nature(&mut asked.link).await?.in_hot_standby {
            self.sightings.forget();
            return Ok(false);
        }
        let seen = self.sightings.see(place, &asked.source, longest_gap, Instant::now());
        if seen.is_zero() {
            tracing::warn!(
                target: super::LOG,
                "{} is out of recovery and has other WAL at {}: if that is still so in {after:?}, this \
                 hub's WAL there is given up (--on-diverge follow)",
                asked.seen.host, place.at
            );
        }
        Ok(seen >= after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::{Lsn, TimelineId};

    #[test]
    fn only_one_server_seen_all_the_time_counts() {
        let (begin, minute) = (Instant::now(), Duration::from_secs(60));
        let place = |at| Place { tli: TimelineId::FIRST, at: Lsn::new(at) };
        let host = |name: &str| WalSource { name: name.to_owned(), server: None };
        let mut sightings = Sightings::default();
        let mut see = |at, name: &str, seconds| {
            let now = begin + Duration::from_secs(seconds);
            sightings.see(place(at), &host(name), minute, now).as_secs()
        };
        assert_eq!([0, 50, 110].map(|second| see(7, "a", second)), [0, 50, 110]);
        assert_eq!(see(7, "a", 171), 0, "it was away");
        assert_eq!(see(7, "a", 200), 29);
        assert_eq!(see(7, "b", 201), 0, "another one differs, too");
        assert_eq!(see(7, "a", 202), 0);
        assert_eq!(see(8, "a", 203), 0, "another place");
    }
}
