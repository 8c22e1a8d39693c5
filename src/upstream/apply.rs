//! The replay position reported to the upstream. A hub replays nothing, but what it reports decides
//! about commits that wait for `synchronous_commit = remote_apply`.

use crate::wal::Lsn;

/// `--report-apply`: the replay position reported to the upstream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ReportApply {
    /// None: 0/0.
    None,
    /// What is durable here.
    #[default]
    Flush,
    /// What all connected standbys have replayed.
    Slowest,
}

/// The replay position that is reported.
#[derive(Debug, Clone, Copy)]
pub struct ApplyReport {
    choice: ReportApply,
    /// The slowest standby's position, from when one was last connected.
    last: Lsn,
}

impl ApplyReport {
    /// Nothing has been replayed yet.
    pub const fn new(choice: ReportApply) -> Self {
        Self { choice, last: Lsn::INVALID }
    }

    /// Whether it depends on standbys.
    pub fn is_of_standbys(&self) -> bool {
        self.choice == ReportApply::Slowest
    }

    /// Notes what all connected standbys have replayed. The last value stays while there is none.
    pub fn note(&mut self, slowest: Option<Lsn>) {
        self.last = slowest.unwrap_or(self.last);
    }

    /// The replay position to report with this flush. A standby may be ahead of the flush position
    /// that we report, but the reported replay position never is.
    pub fn value(&self, flush: Lsn) -> Lsn {
        match self.choice {
            ReportApply::None => Lsn::INVALID,
            ReportApply::Flush => flush,
            ReportApply::Slowest => self.last.min(flush),
        }
    }
}

/// Whether `synchronous_standby_names` names this standby, read as `syncrep_gram.y` does: a list,
/// perhaps in brackets after `FIRST n`, `ANY n` or `n`; in any case; `*` matches every standby.
pub fn names_standby(list: &str, application_name: &str) -> bool {
    let inner = match (list.find('('), list.rfind(')')) {
        (Some(begin), Some(end)) if begin < end => list.get(begin + 1..end).unwrap_or_default(),
        _ => list,
    };
    inner.split(',').map(str::trim).any(|name| {
        let bare = name.strip_prefix('"').and_then(|name| name.strip_suffix('"'));
        let name = bare.map_or_else(|| name.to_owned(), |bare| bare.replace("\"\"", "\""));
        name == "*" || name.eq_ignore_ascii_case(application_name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_waited_for() {
        for list in ["hub", "a, Hub", "FIRST 1 (a, hub)", "ANY 2 (\"hub\",b)", "*", "2 ( * )"] {
            assert!(names_standby(list, "hub"), "{list}");
        }
        for list in ["", "hub2", "a, b", "FIRST 1 (a)", "first", "\"*x\""] {
            assert!(!names_standby(list, "hub"), "{list}");
        }
    }

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
