//! Seeds that fail because the hub has a fault that they show. An entry goes when its fault
//! goes: a run fails when a listed seed passes, and when one that is not listed fails.

use crate::kinds::Kind;

/// Why some seeds of a world fail.
pub(crate) struct Expected {
    pub(crate) kind: Kind,
    /// Those among the first [`LISTED`].
    pub(crate) seeds: &'static [u64],
    /// What each of them says, one of these. Later seeds may fail by it, too.
    pub(crate) signs: &'static [&'static str],
    /// The fault.
    pub(crate) why: &'static str,
}

/// Seeds of a world that are listed one by one.
pub(crate) const LISTED: u64 = 20;

pub(crate) const EXPECTED: &[Expected] = &[
    Expected {
        kind: Kind::RolledBack,
        seeds: &[1, 2, 4, 7, 8, 9, 10, 13, 14, 15, 17],
        signs: &["is sent two histories", "false byte"],
        why: "a history that differs before the overlap is joined",
    },
    Expected {
        kind: Kind::FullDisk,
        seeds: &[0, 1, 3, 4, 7, 9, 10, 11, 12, 15],
        signs: &["is invalidated (Some(WalRemoved))"],
        why: "a start above the watermark does not wait for those who use the slots",
    },
    Expected {
        kind: Kind::ManySlots,
        seeds: &[0, 1, 3, 4, 7, 9, 12, 14, 15, 16, 17, 18, 19],
        signs: &["what a commit waits for took"],
        why: "the files of slots are written one after the other, and commits queue behind them",
    },
    Expected {
        kind: Kind::ClockJumps,
        seeds: &[0, 1, 2, 4, 5, 7, 8, 10, 11, 12, 15, 16, 17, 18],
        signs: &["is invalidated (Some(IdleTimeout))"],
        why: "how long a slot is idle is told by the time of day",
    },
    Expected {
        kind: Kind::Returns,
        seeds: &[0, 1, 2, 3, 4, 6, 7, 8, 10, 11, 12, 13, 14, 15, 17, 19],
        signs: &["is back after"],
        why: "WAL is held up to what was sent, and only while its standby is connected",
    },
];

impl Expected {
    fn is_meant_by(&self, broken: &str) -> bool {
        self.signs.iter().any(|sign| broken.contains(sign))
    }
}

/// What a run of a seed came to, against what was expected of it.
pub(crate) fn judge(kind: Kind, seed: u64, result: Result<(), String>) -> Result<(), String> {
    let entries = || EXPECTED.iter().filter(|entry| entry.kind == kind);
    let listed = entries().find(|entry| entry.seeds.contains(&seed));
    match (result, listed) {
        (Ok(()), None) => Ok(()),
        (Ok(()), Some(entry)) => {
            Err(format!("{kind:?} seed {seed} passes, though expected to fail: {}", entry.why))
        }
        (Err(broken), None) if seed < LISTED => Err(format!("{kind:?} {broken}")),
        (Err(broken), _) if entries().any(|entry| entry.is_meant_by(&broken)) => Ok(()),
        (Err(broken), _) => Err(format!("{kind:?} fails by something else: {broken}")),
    }
}
