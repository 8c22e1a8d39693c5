//! The replay position that the upstream is told. A hub replays nothing; what it says
//! decides about commits that wait for `synchronous_commit = remote_apply`.

use crate::config::ReportApply;
use crate::wal::Lsn;

/// The replay position that is reported.
#[derive(Debug, Clone, Copy)]
pub struct ApplyReport {
    choice: ReportApply,
    /// The slowest standby's position, when there was one last.
    last: Lsn,
}

impl ApplyReport {
    /// Nobody has replayed anything yet.
    pub const fn new(choice: ReportApply) -> Self {
        Self { choice, last: Lsn::INVALID }
    }

    /// Does it depend on standbys?
    pub fn is_of_standbys(&self) -> bool {
        self.choice == ReportApply::Slowest
    }

    /// What all connected standbys have replayed. Without any the last value stays.
    pub fn note(&mut self, slowest: Option<Lsn>) {
        self.last = slowest.unwrap_or(self.last);
    }

    /// What is reported beside this flush. A standby may be ahead of our disk's report,
    /// never of what we say is flushed.
    pub fn value(&self, flush: Lsn) -> Lsn {
        match self.choice {
            ReportApply::None => Lsn::INVALID,
            ReportApply::Flush => flush,
            ReportApply::Slowest => self.last.min(flush),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apply_by_choice() {
        let at = Lsn::new;
        assert_eq!(ApplyReport::new(ReportApply::None).value(at(9)), Lsn::INVALID);
        assert_eq!(ApplyReport::new(ReportApply::Flush).value(at(9)), at(9));
        let mut slowest = ApplyReport::new(ReportApply::Slowest);
        assert_eq!(slowest.value(at(9)), Lsn::INVALID, "nobody has said anything");
        slowest.note(Some(at(5)));
        assert_eq!(slowest.value(at(9)), at(5));
        slowest.note(None);
        assert_eq!(slowest.value(at(9)), at(5), "the last value stays");
        slowest.note(Some(at(12)));
        assert_eq!(slowest.value(at(9)), at(9), "never ahead of flush");
        slowest.note(Some(at(3)));
        assert_eq!(slowest.value(at(9)), at(3), "a slower one came");
    }
}
