//! The proof that an upstream has our history, before it is followed: its WAL is compared with
//! ours, back to a record that says when it was written. That is a stream of its own, which is
//! only a question: it may reach over segments and timelines that no cache holds, and needs no more
//! memory than a piece of it. The stream that follows on the same connection begins at our end.

use super::Parts;
use super::difference::{Compared, Differing};
use super::environment::Environment;
use super::histories::forks_of;
use super::link::{Link, LinkFault, StartReply};
use super::outcome::AttemptFailure;
use super::search::{NoRecord, ProofStart, search};
use crate::archive::check::ReadAt as _;
use crate::config::WeakProof;
use crate::hub::Hub;
use crate::hub::page_rules::page_rules;
use crate::store::evidence::PlaceBytes;
use crate::store::retention::Hold;
use crate::upstream::login::start_replication;
use crate::upstream::oldest::OldestSearch;
use crate::upstream::position::Position;
use crate::upstream::proof::{Lineage, Proof, SharedEnd, Strength};
use crate::wal::Lsn;
use crate::wire::sqlstate;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// How much is compared at once.
const PIECE: usize = 1 << 20;

/// What came of the comparison.
pub(super) enum Shown {
    /// All that could be compared was the same.
    Same(Proof),
    /// It was not, or ours could not be read.
    Not(Compared),
}

/// The position from which an upstream was asked for WAL, and why it has none there.
struct Refused {
    message: String,
}

/// A comparison of our WAL with an upstream's.
struct Comparison<'a, E: Environment> {
    parts: &'a Arc<Parts<E>>,
    link: &'a mut Link<E::Socket>,
    lineage: Lineage,
    shared: SharedEnd,
    /// How long an answer of the upstream may take, and each piece of WAL.
    silence: Duration,
}

/// Compares our WAL up to `shared` with the upstream's, as far back as it takes: WAL that came from
/// the archive unproved shows nothing, so what lies before it is compared, too. Each of its answers
/// and each MiB has to come within `silence`: the whole may take longer.
pub(super) async fn compare_back<E: Environment>(
    parts: &Arc<Parts<E>>,
    link: &mut Link<E::Socket>,
    shared: SharedEnd,
    silence: Duration,
) -> Result<Shown, AttemptFailure> {
    let mut before = None;
    if let Some(earlier) = before_unproved(&parts.hub, shared) {
        match compare_up_to(parts, link, earlier, silence).await? {
            Shown::Same(proof) => before = Some(proof),
            shown @ Shown::Not(_) => return Ok(shown),
        }
    }
    let shown = compare_up_to(parts, link, shared, silence).await?;
    Ok(match (shown, before) {
        (Shown::Same(proof), Some(before)) => Shown::Same(proof.with_earlier(&before)),
        (shown, _) => shown,
    })
}

/// The end of the WAL that comes before what was taken unproved, where that is before `shared`.
pub(super) fn before_unproved(hub: &Hub, shared: SharedEnd) -> Option<SharedEnd> {
    let from = hub.course.unproved_from().filter(|from| *from < shared.end)?;
    Some(SharedEnd { end: from, ..shared })
}

async fn compare_up_to<E: Environment>(
    parts: &Arc<Parts<E>>,
    link: &mut Link<E::Socket>,
    shared: SharedEnd,
    silence: Duration,
) -> Result<Shown, AttemptFailure> {
    let own = find_own(parts, shared.end).await.map_err(AttemptFailure::other)?;
    let OwnWal { lineage, start, hold } = own;
    let mut comparison = Comparison { parts, link, lineage, shared, silence };
    let shown = comparison.run(start).await;
    drop(hold);
    shown
}

/// What is to be compared of our WAL.
pub(super) struct OwnWal {
    pub(super) lineage: Lineage,
    pub(super) start: ProofStart,
    /// It stays until this is dropped.
    pub(super) hold: Hold,
}

/// Finds what is to be compared of our WAL up to `end`.
pub(super) async fn find_own<E: Environment>(
    parts: &Arc<Parts<E>>,
    end: Lsn,
) -> Result<OwnWal, String> {
    let hub = &parts.hub;
    let lineage = lineage_of(hub)?;
    let rules = page_rules(hub, lineage.tli)?;
    let oldest = hub.holds.unbroken_from();
    // What is searched stays until that is done.
    let searched = hub.holds.hold_restorable(oldest);
    let (reader, files) = (Arc::clone(parts), lineage.clone());
    let searching = parts.environment.blocking(move || {
        let read = |from, to| read_own(&reader.environment, &files, from, to);
        search(&rules, oldest, end, read)
    });
    let start = searching.await.map_err(|error| format!("our own WAL: {error}"))?;
    // From here on less of it.
    let hold = hub.holds.hold_restorable(start.from);
    drop(searched);
    Ok(OwnWal { lineage, start, hold })
}

/// Our timeline and its ancestors.
pub(super) fn lineage_of(hub: &Hub) -> Result<Lineage, String> {
    let (Some(identity), Position::At { tli, .. }) = (hub.identity(), hub.position()) else {
        return Err("there is no WAL to compare".to_owned());
    };
    let forks = forks_of(hub, tli)?;
    Ok(Lineage { tli, forks: forks.unwrap_or_default(), size: identity.segment_size })
}

impl<E: Environment> Comparison<'_, E> {
    async fn run(&mut self, found: ProofStart) -> Result<Shown, AttemptFailure> {
        let end = self.shared.end;
        let mut why = found.weakness(end);
        let ProofStart { mut from, record } = found;
        if let (Err(NoRecord::Unreadable(_)), Some(why)) = (&record, &why)
            && from == end
        {
            return Ok(Shown::Not(Compared::Unreadable(why.clone())));
        }
        let mut compared = None;
        while from < end {
            match self.from(from).await? {
                Ok(None) => compared = Some(from),
                Ok(Some(compared)) => {
                    // More may be asked of an upstream that ends the stream in time.
                    drop(timeout(self.silence, self.link.end_stream()).await);
                    return Ok(Shown::Not(compared));
                }
                Err(Refused { message }) => {
                    why = Some(format!("the upstream has no WAL before that: {message}"));
                    from = self.first_kept_after(from).await?;
                    continue;
                }
            }
            break;
        }
        let strength = Strength::of(record.ok(), why);
        Ok(Shown::Same(Proof { shared: self.shared, from: compared, strength }))
    }

    /// Compares everything from `from` on. Returns `None` when it is the same, or that the upstream
    /// has no WAL from there.
    async fn from(
        &mut self,
        from: Lsn,
    ) -> Result<Result<Option<Compared>, Refused>, AttemptFailure> {
        let mut at = from;
        while at < self.shared.end {
            let end = self.lineage.stream_end(at, self.shared.tli, self.shared.end);
            match self.one_stream(at, end).await {
                Ok(None) => at = end,
                Ok(differs) => return Ok(Ok(differs)),
                Err(LinkFault::Server(error)) if error.sqlstate == sqlstate::UNDEFINED_FILE => {
                    return Ok(Err(Refused { message: error.message }));
                }
                Err(fault) => return Err(fault.into()),
            }
        }
        Ok(Ok(None))
    }

    /// Compares what one stream of the upstream brings.
    async fn one_stream(&mut self, from: Lsn, end: Lsn) -> Result<Option<Compared>, LinkFault> {
        if self.start(from).await? == Stream::Ended {
            let what = format!("the timeline ended before {from}, which its history says is on it");
            return Err(LinkFault::Protocol(what));
        }
        let (mut at, mut theirs) = (from, Vec::new());
        while at < end {
            let segment_end = at.segment(self.lineage.size).end(self.lineage.size);
            let want = end.min(segment_end).min(at.saturating_add(PIECE as u64));
            let len = want.bytes_since(at) as usize;
            let silence = self.silence;
            let filling = self.fill(&mut theirs, at, len);
            timeout(silence, filling).await.map_err(|_| LinkFault::Silent)??;
            let piece: Vec<u8> = theirs.drain(..len).collect();
            if let Some(differs) = self.compare(at, piece).await {
                return Ok(Some(differs));
            }
            at = want;
        }
        timeout(self.silence, self.link.end_stream()).await.map_err(|_| LinkFault::Silent)??;
        Ok(None)
    }

    /// Receives until `theirs`, which begins at `at`, has `len` bytes at least.
    async fn fill(&mut self, theirs: &mut Vec<u8>, at: Lsn, len: usize) -> Result<(), LinkFault> {
        while theirs.len() < len {
            theirs.extend(self.link.more_wal(at.saturating_add(theirs.len() as u64)).await?);
        }
        Ok(())
    }

    async fn start(&mut self, from: Lsn) -> Result<Stream, LinkFault> {
        let tli = self.lineage.asked(from, self.shared.tli);
        let sql = start_replication(None, from, tli);
        let started = timeout(self.silence, self.link.start(&sql)).await;
        match started.map_err(|_| LinkFault::Silent)?? {
            StartReply::Stream => Ok(Stream::Begun),
            StartReply::TimelineEnded { .. } => Ok(Stream::Ended),
        }
    }

    /// Compares a piece that lies in one segment with ours.
    async fn compare(&mut self, at: Lsn, theirs: Vec<u8>) -> Option<Compared> {
        let (reader, lineage) = (Arc::clone(self.parts), self.lineage.clone());
        let to = at.saturating_add(theirs.len() as u64);
        let reading = self.parts.environment.blocking(move || {
            let ours = read_own(&reader.environment, &lineage, at, to)?;
            let n = ours.iter().zip(&theirs).position(|(ours, theirs)| ours != theirs);
            Ok(n.map(|n| (n, PlaceBytes::of(&ours, &theirs, n))))
        });
        match reading.await.flatten() {
            Ok(None) => None,
            Ok(Some((n, bytes))) => {
                let first = at.saturating_add(n as u64);
                Some(Compared::Differs(Differing { first, bytes }))
            }
            Err(error) => Some(Compared::unreadable(&error)),
        }
    }

    /// The first segment after the one that holds `lacking` that the upstream has; the end of the
    /// comparison when it has none.
    async fn first_kept_after(&mut self, lacking: Lsn) -> Result<Lsn, AttemptFailure> {
        let (size, end) = (self.lineage.size, self.shared.end);
        let last = end.saturating_sub(1);
        if lacking.segment(size) == last.segment(size) {
            return Ok(end);
        }
        let mut search = OldestSearch::new(last, size);
        while let Some(at) = search.probe() {
            if at <= lacking {
                search.removed();
                continue;
            }
            match self.has(at).await {
                Ok(()) => search.found(),
                Err(LinkFault::Server(error)) if error.sqlstate == sqlstate::UNDEFINED_FILE => {
                    search.removed();
                }
                Err(fault) => return Err(fault.into()),
            }
        }
        Ok(search.oldest())
    }

    async fn has(&mut self, at: Lsn) -> Result<(), LinkFault> {
        if self.start(at).await? == Stream::Begun {
            let first = timeout(self.silence, self.link.first_message()).await;
            first.map_err(|_| LinkFault::Silent)??;
            timeout(self.silence, self.link.end_stream())
                .await
                .map_err(|_| LinkFault::Silent)??;
        }
        Ok(())
    }
}

/// Does the operator ask for more than this?
pub(super) fn refuses(hub: &Hub, proof: &Proof) -> bool {
    hub.config.weak_proof == WeakProof::Refuse && proof.weakness().is_some()
}

/// The answer to a question for WAL.
#[derive(PartialEq, Eq)]
enum Stream {
    Begun,
    /// The timeline ends there.
    Ended,
}

/// Reads our own WAL, which lies in one segment.
pub(super) fn read_own<E: Environment>(
    environment: &E,
    lineage: &Lineage,
    from: Lsn,
    to: Lsn,
) -> io::Result<Vec<u8>> {
    let name = lineage.file(from);
    let missing = || io::Error::new(io::ErrorKind::NotFound, format!("{name} is missing"));
    let file = environment.open_own_wal(name)?.ok_or_else(missing)?;
    let mut wal = vec![0; to.bytes_since(from) as usize];
    file.read_exact_at(&mut wal, from.segment_offset(name.size))?;
    Ok(wal)
}
