//! How the hub is steered: which upstream it follows, whether it may receive at all, where
//! another source had other bytes, what was abandoned at switches, where other histories go on, and
//! its current state towards its upstream.

use crate::store::abandoned::Abandoned;
use crate::store::course::{FenceNote, UpstreamNote};
use crate::store::evidence::Evidence;
use crate::store::seams::Seams;
use crate::upstream::proof::Proof;
use crate::upstream::state::UpstreamState;
use crate::wal::Lsn;
use crate::wire::conninfo::{Conninfo, ConninfoFault};
use crate::wire::secret::Secret;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// An upstream as the user named it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// The connection string, word for word.
    pub text: Secret,
    /// Its meaning, the environment included.
    pub conninfo: Conninfo,
}

impl Upstream {
    /// Parses a connection string in the environment of this process.
    pub fn parse(text: &str) -> Result<Self, ConninfoFault> {
        let conninfo = Conninfo::parse(text, &|name| std::env::var(name).ok())?;
        Ok(Self { text: Secret::new(text), conninfo })
    }
}

/// Where the upstream in force was named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NamedBy {
    /// `--primary-conninfo`.
    Flag,
    /// `walhub ctl`.
    Ctl,
}

/// The hub's state towards its upstream, and since when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The state.
    pub state: UpstreamState,
    /// When it entered that state.
    pub since: SystemTime,
}

/// The course of a hub. Only the control thread changes it; every thread may read it.
#[derive(Debug)]
pub struct Course(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    flag: Arc<Upstream>,
    set: Option<Arc<Upstream>>,
    fence: Option<FenceNote>,
    evidence: Arc<Evidence>,
    abandoned: Arc<Abandoned>,
    seams: Arc<Seams>,
    standing: Standing,
    proof: Option<Proof>,
    weak_joins: u64,
    unproved_from: Option<Lsn>,
}

impl Course {
    /// A course that follows the flag.
    pub fn new(flag: Upstream) -> Self {
        let standing = Standing { state: UpstreamState::Connecting, since: SystemTime::now() };
        Self(Mutex::new(Inner {
            flag: Arc::new(flag),
            set: None,
            fence: None,
            evidence: Arc::default(),
            abandoned: Arc::default(),
            seams: Arc::default(),
            standing,
            proof: None,
            weak_joins: 0,
            unproved_from: None,
        }))
    }

    /// Takes over what an earlier run left. An upstream that was set in place of another flag
    /// than today's is ignored. Returns which upstream counts.
    pub fn resume(
        &self,
        flag: Secret,
        set: Option<UpstreamNote>,
        fence: Option<FenceNote>,
        evidence: Option<Evidence>,
    ) -> Result<Resumed, ConninfoFault> {
        let resumed = match set {
            None => Resumed::ByFlag,
            Some(note) if note.instead_of != flag => Resumed::FlagIsNewer,
            Some(note) => {
                let upstream = Upstream::parse(note.primary_conninfo.reveal())?;
                self.lock().set = Some(Arc::new(upstream));
                Resumed::AsSet
            }
        };
        let mut inner = self.lock();
        inner.flag = Arc::new(Upstream { text: flag, conninfo: inner.flag.conninfo.clone() });
        inner.fence = fence;
        inner.evidence = Arc::new(evidence.unwrap_or_default());
        Ok(resumed)
    }

    /// The upstream in force, and where it was named.
    pub fn upstream(&self) -> (Arc<Upstream>, NamedBy) {
        let inner = self.lock();
        match &inner.set {
            Some(set) => (Arc::clone(set), NamedBy::Ctl),
            None => (Arc::clone(&inner.flag), NamedBy::Flag),
        }
    }

    /// The upstream of `--primary-conninfo`.
    pub fn flag(&self) -> Arc<Upstream> {
        Arc::clone(&self.lock().flag)
    }

    /// Sets another upstream; `None` returns to the flag's.
    pub fn set_upstream(&self, upstream: Option<Arc<Upstream>>) {
        self.lock().set = upstream;
    }

    /// The fence, while there is one.
    pub fn fence(&self) -> Option<FenceNote> {
        self.lock().fence
    }

    /// Sets or removes the fence; it is on disk already.
    pub fn set_fence(&self, fence: Option<FenceNote>) {
        self.lock().fence = fence;
    }

    /// Where other sources had other bytes than we, until they were seen to have the same
    /// there: no stream begins of a source that it bars.
    pub fn evidence(&self) -> Arc<Evidence> {
        Arc::clone(&self.lock().evidence)
    }

    /// A difference was found: before it is on disk. Or it was cleared, or stands no more:
    /// after that is on disk.
    pub fn set_evidence(&self, evidence: Evidence) {
        self.lock().evidence = Arc::new(evidence);
    }

    /// What was abandoned at switches and is not confirmed.
    pub fn abandoned(&self) -> Arc<Abandoned> {
        Arc::clone(&self.lock().abandoned)
    }

    /// Something was abandoned, or confirmed; it is on disk already.
    pub fn set_abandoned(&self, abandoned: Abandoned) {
        self.lock().abandoned = Arc::new(abandoned);
    }

    /// Where other histories go on, until an operator confirms it.
    pub fn seams(&self) -> Arc<Seams> {
        Arc::clone(&self.lock().seams)
    }

    /// WAL was set aside at a seam, or one was confirmed; it is on disk already.
    pub fn set_seams(&self, seams: Seams) {
        self.lock().seams = Arc::new(seams);
    }

    /// The hub's state towards its upstream.
    pub fn standing(&self) -> Standing {
        self.lock().standing.clone()
    }

    /// Sets the state.
    pub fn set_standing(&self, standing: Standing) {
        self.lock().standing = standing;
    }

    /// An upstream is followed, or WAL is taken from the archive, and the source has shown this;
    /// `None` when there was no WAL yet. A proof covers what was taken unproved before.
    pub fn joined(&self, proof: Option<Proof>) {
        let mut inner = self.lock();
        match proof.as_ref().map(Proof::weakness) {
            Some(Some(_)) => inner.weak_joins += 1,
            Some(None) => inner.unproved_from = None,
            None => {}
        }
        inner.proof = proof;
    }

    /// WAL from this position on comes from an archive that has not proved to have our history.
    pub fn take_unproved(&self, from: Lsn) {
        let mut inner = self.lock();
        inner.unproved_from = Some(inner.unproved_from.map_or(from, |known| known.min(from)));
    }

    /// From where on WAL came from the archive unproved. Equal bytes past it prove nothing before
    /// those that precede it were compared.
    pub fn unproved_from(&self) -> Option<Lsn> {
        self.lock().unproved_from
    }

    /// What the source that WAL comes from, or came from last, has shown of our WAL; and how often
    /// since the start one was taken from that had not proved to have our history.
    pub fn proof(&self) -> (Option<Proof>, u64) {
        let inner = self.lock();
        (inner.proof.clone(), inner.weak_joins)
    }

    /// The host from which WAL comes in, if it has proved to have our history.
    pub fn proved_host(&self) -> Option<String> {
        let inner = self.lock();
        let is_proved = inner.proof.as_ref().is_some_and(|proof| proof.weakness().is_none());
        match &inner.standing.state {
            UpstreamState::Streaming { host, .. } if is_proved => Some(host.clone()),
            _ => None,
        }
    }

    /// WAL comes in from this host, which has proved to have our history.
    #[cfg(all(test, not(walhub_loom)))]
    pub(crate) fn follow_proved(&self, host: &str) {
        use crate::upstream::proof::{SharedEnd, Strength};
        use crate::wal::TimelineId;
        let (tli, start) = (TimelineId::FIRST, Lsn::new(1));
        let state = UpstreamState::Streaming { host: host.to_owned(), tli, start };
        self.set_standing(Standing { state, since: SystemTime::UNIX_EPOCH });
        let (shared, strength) =
            (SharedEnd { tli, end: start }, Strength::Proved { record: start });
        self.joined(Some(Proof { shared, from: Some(start), strength }));
    }

    // A panic ends the process (`panic = "abort"`); only tests can poison the lock.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which upstream counts after a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resumed {
    /// The flag's: no other was set.
    ByFlag,
    /// The one that was set while the hub ran.
    AsSet,
    /// The flag's: it has changed since the other was set.
    FlagIsNewer,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_unproved_stands_until_a_proof() {
        use crate::upstream::proof::{SharedEnd, Strength};
        let course = Course::new(Upstream::parse("host=a").unwrap());
        let joins = |why: Option<&str>| {
            let shared = SharedEnd { tli: crate::wal::TimelineId::FIRST, end: Lsn::new(9) };
            let strength = Strength::of(Some(Lsn::new(3)), why.map(str::to_owned));
            course.joined(Some(Proof { shared, from: None, strength }));
            course.unproved_from()
        };
        course.take_unproved(Lsn::new(5));
        course.take_unproved(Lsn::new(7));
        assert_eq!(
            joins(Some("nothing older")),
            Some(Lsn::new(5)),
            "a later one does not shorten it"
        );
        assert_eq!(joins(None), None);
        assert_eq!(course.proof().1, 1);
    }

    #[test]
    fn a_changed_flag_is_the_newer_word() {
        let course = || Course::new(Upstream::parse("host=a").unwrap());
        let note = || UpstreamNote {
            primary_conninfo: Secret::new("host=b"),
            instead_of: Secret::new("host=a"),
        };
        let hosts = |course: &Course| {
            let (upstream, by) = course.upstream();
            (upstream.conninfo.hosts[0].to_string(), by)
        };
        let same = course();
        let resumed = same.resume(Secret::new("host=a"), Some(note()), None, None);
        assert_eq!(resumed, Ok(Resumed::AsSet));
        assert_eq!(hosts(&same), ("b:5432".to_owned(), NamedBy::Ctl));
        same.set_upstream(None);
        assert_eq!(hosts(&same), ("a:5432".to_owned(), NamedBy::Flag));

        let changed = Course::new(Upstream::parse("host=c").unwrap());
        let resumed = changed.resume(Secret::new("host=c"), Some(note()), None, None);
        assert_eq!(resumed, Ok(Resumed::FlagIsNewer));
        assert_eq!(hosts(&changed), ("c:5432".to_owned(), NamedBy::Flag));
        assert_eq!(course().resume(Secret::new("host=a"), None, None, None), Ok(Resumed::ByFlag));
    }
}
