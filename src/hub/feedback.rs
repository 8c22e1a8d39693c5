//! The combined hot standby feedback of all standbys, as the upstream has to be told.
//!
//! Transaction IDs are compared together with their epochs, as 64-bit numbers. The number passed
//! on is always one that some standby sent: the upstream ignores what it considers impossible,
//! such as a foreign epoch.

use crate::wire::copy::HotStandbyFeedback;
use crate::wire::time::PgTime;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Transaction IDs below this have a special meaning (`FirstNormalTransactionId`).
const FIRST_NORMAL: u32 = 3;

/// A transaction ID with its epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FullXid(u64);

impl FullXid {
    /// Returns `None` for an ID that names no transaction.
    pub const fn new(epoch: u32, xid: u32) -> Option<Self> {
        if xid < FIRST_NORMAL { None } else { Some(Self((epoch as u64) << 32 | xid as u64)) }
    }

    const fn epoch(self) -> u32 {
        (self.0 >> 32) as u32
    }

    const fn xid(self) -> u32 {
        self.0 as u32
    }
}

/// The oldest transactions that are needed; none by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Need {
    /// For queries.
    pub xmin: Option<FullXid>,
    /// For the catalogs of slots.
    pub catalog_xmin: Option<FullXid>,
}

impl Need {
    /// What a standby's message asks for.
    pub const fn of(feedback: &HotStandbyFeedback) -> Self {
        Self {
            xmin: FullXid::new(feedback.xmin_epoch, feedback.xmin),
            catalog_xmin: FullXid::new(feedback.catalog_epoch, feedback.catalog_xmin),
        }
    }

    /// Is nothing needed?
    pub const fn is_nothing(&self) -> bool {
        self.xmin.is_none() && self.catalog_xmin.is_none()
    }

    /// The message for the upstream. Zeros mean that nothing is needed.
    pub fn message(&self, client_time: PgTime) -> HotStandbyFeedback {
        let xid = |of: Option<FullXid>| of.map_or(0, FullXid::xid);
        let epoch = |of: Option<FullXid>| of.map_or(0, FullXid::epoch);
        HotStandbyFeedback {
            client_time,
            xmin: xid(self.xmin),
            xmin_epoch: epoch(self.xmin),
            catalog_xmin: xid(self.catalog_xmin),
            catalog_epoch: epoch(self.catalog_xmin),
        }
    }
}

/// One number of one standby, and since when it has had that value.
#[derive(Debug, Clone, Copy)]
struct Held {
    xid: FullXid,
    since: Instant,
}

impl Held {
    fn renew(old: Option<Self>, xid: Option<FullXid>, now: Instant) -> Option<Self> {
        let xid = xid?;
        Some(old.filter(|old| old.xid == xid).unwrap_or(Self { xid, since: now }))
    }
}

/// What every standby needs.
#[derive(Debug)]
pub struct Feedback {
    /// A number that stays the same for longer does not count; zero disables the rule.
    max_age: Duration,
    standbys: BTreeMap<u64, [Option<Held>; 2]>,
}

impl Feedback {
    /// Nobody needs anything.
    pub const fn new(max_age: Duration) -> Self {
        Self { max_age, standbys: BTreeMap::new() }
    }

    /// A standby sent feedback.
    pub fn heard(&mut self, who: u64, need: Need, now: Instant) {
        if need.is_nothing() {
            return self.gone(who);
        }
        let held = self.standbys.entry(who).or_default();
        let said = [need.xmin, need.catalog_xmin];
        for (held, xid) in held.iter_mut().zip(said) {
            *held = Held::renew(*held, xid, now);
        }
    }

    /// A standby is gone, and so is what it needed.
    pub fn gone(&mut self, who: u64) {
        self.standbys.remove(&who);
    }

    /// What all of them need together.
    pub fn minimum(&self, now: Instant) -> Need {
        let oldest = |n: usize| {
            let held = self.standbys.values().filter_map(|held| held.get(n).copied().flatten());
            let counts = |held: &Held| !self.has_run_out(held, now);
            held.filter(counts).map(|held| held.xid).min()
        };
        Need { xmin: oldest(0), catalog_xmin: oldest(1) }
    }

    /// When the next number expires.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        if self.max_age.is_zero() {
            return None;
        }
        let held = self.standbys.values().flatten().flatten();
        held.filter(|held| !self.has_run_out(held, now)).map(|held| held.since + self.max_age).min()
    }

    fn has_run_out(&self, held: &Held, now: Instant) -> bool {
        !self.max_age.is_zero() && now.saturating_duration_since(held.since) >= self.max_age
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn need(xmin: (u32, u32), catalog: (u32, u32)) -> Need {
        Need {
            xmin: FullXid::new(xmin.0, xmin.1),
            catalog_xmin: FullXid::new(catalog.0, catalog.1),
        }
    }

    #[test]
    fn an_older_epoch_is_older_whatever_the_number() {
        let now = Instant::now();
        let mut all = Feedback::new(Duration::ZERO);
        all.heard(1, need((7, 5), (0, 0)), now);
        all.heard(2, need((6, 4_000_000_000), (7, 900)), now);
        assert_eq!(all.minimum(now), need((6, 4_000_000_000), (7, 900)));
        all.heard(2, need((7, 100), (0, 2)), now);
        assert_eq!(all.minimum(now), need((7, 5), (0, 0)));
    }

    #[test]
    fn the_last_holder_takes_it_along() {
        let now = Instant::now();
        let mut all = Feedback::new(Duration::ZERO);
        all.heard(1, need((0, 700), (0, 0)), now);
        all.heard(2, need((0, 701), (0, 0)), now);
        all.gone(1);
        assert_eq!(all.minimum(now), need((0, 701), (0, 0)));
        all.heard(2, need((0, 0), (0, 0)), now);
        assert!(all.minimum(now).is_nothing());
        assert_eq!(all.deadline(now), None);
        let zeros = all.minimum(now).message(PgTime::new(0));
        assert_eq!((zeros.xmin, zeros.xmin_epoch, zeros.catalog_xmin), (0, 0, 0));
    }

    #[test]
    fn a_number_that_stays_too_long_does_not_count_until_it_moves() {
        let t0 = Instant::now();
        let at = |seconds| t0 + Duration::from_secs(seconds);
        let mut all = Feedback::new(Duration::from_secs(60));
        all.heard(1, need((0, 700), (0, 0)), t0);
        all.heard(2, need((0, 900), (0, 0)), at(50));
        all.heard(1, need((0, 700), (0, 0)), at(59));
        assert_eq!(all.deadline(at(59)), Some(at(60)));
        assert_eq!(all.minimum(at(59)), need((0, 700), (0, 0)));
        assert_eq!(all.minimum(at(60)), need((0, 900), (0, 0)));
        assert_eq!(all.deadline(at(60)), Some(at(110)));
        all.heard(1, need((0, 700), (0, 0)), at(61));
        assert_eq!(all.minimum(at(61)), need((0, 900), (0, 0)), "said again, still old");
        all.heard(1, need((0, 800), (0, 0)), at(70));
        assert_eq!(all.minimum(at(70)), need((0, 800), (0, 0)));
    }

    proptest! {
        #[test]
        fn the_minimum_is_that_of_those_who_are_there(
            said in proptest::collection::vec(
                (0u64..5, (0u32..3, 0u32..9), (0u32..3, 0u32..9), any::<bool>()), 0..30
            )
        ) {
            let now = Instant::now();
            let mut all = Feedback::new(Duration::ZERO);
            let mut last = BTreeMap::new();
            for (who, xmin, catalog, goes) in said {
                if goes {
                    all.gone(who);
                    last.remove(&who);
                } else {
                    all.heard(who, need(xmin, catalog), now);
                    last.insert(who, (xmin, catalog));
                }
            }
            let valid = |pair: &(u32, u32)| pair.1 >= 3;
            let xmin = last.values().map(|(xmin, _)| *xmin).filter(valid).min();
            let catalog = last.values().map(|(_, catalog)| *catalog).filter(valid).min();
            let expected = need(xmin.unwrap_or_default(), catalog.unwrap_or_default());
            prop_assert_eq!(all.minimum(now), expected);
            let message = all.minimum(now).message(PgTime::new(1));
            prop_assert_eq!(Need::of(&message), expected);
        }
    }
}
