//! An operator's word about two histories: which of them is the true one where a difference was
//! found.
//!
//! *Ours*: the difference stands against its source alone. *Theirs*: the next attempts ask each host
//! in turn for its WAL at the place. The source of the difference, or a host that has the same bytes
//! there, is compared further back, up to where it has ours; hosts with yet another history do not do. From the last record that both have, our WAL is set aside, and the
//! same connection goes on with its stream. The order is answered then, or when all hosts were asked
//! in vain.

use super::difference::{Compared, Differing, compare, compare_noted, hole_before, place_of};
use super::environment::Environment;
use super::histories::forks_of;
use super::joining::within;
use super::link::Link;
use super::outcome::AttemptFailure;
use super::proof::{Shown, compare_back, read_own, refuses};
use super::questions::IdentifiedServer;
use super::{LOG, Parts, Task};
use crate::hub::page_rules::page_rules;
use crate::store::evidence::{Difference, Evidence, WalSource};
use crate::store::seams::{self, Cut, Seam};
use crate::upstream::judge::Verdict;
use crate::upstream::place::Place;
use crate::upstream::position::Position;
use crate::upstream::proof::{Lineage, Proof, SharedEnd};
use crate::upstream::state::UpstreamState;
use crate::wal::walk::Walker;
use crate::wal::{Lsn, TimelineId};
use crate::wire::date::date_millis;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// How much of our own WAL is walked at once.
const PIECE: u64 = 1 << 20;

/// What is left to do when no seam can be made. A new directory has none, so nothing keeps apart from it
/// what a standby got from this one.
const NEW_DIRECTORY: &str = "what is left is a new directory, and before its hub is started every \
     standby that has followed this one has to be stopped, and made again from a base backup";

/// An order to accept an upstream's history.
pub(super) struct Accepting {
    /// The difference, as it was when the order was given.
    difference: Difference,
    answer: oneshot::Sender<Result<(), String>>,
    /// Why each host that was asked does not do.
    refused: Vec<String>,
}

impl<E: Environment> Task<E> {
    /// Would [`Task::accept_ours`] change anything?
    pub(super) fn is_cleared_by(&self, at: Lsn) -> bool {
        let evidence = self.parts.hub.course.evidence();
        evidence.iter().any(|difference| difference.at == at && !difference.cleared)
    }

    /// Our history is the true one at `at`: the difference there stands against its source alone, as
    /// if another source had shown our bytes.
    pub(super) async fn accept_ours(&mut self, at: Lsn) -> Result<(), String> {
        let before = self.parts.hub.course.evidence();
        let mut evidence = Evidence::clone(&before);
        if before.at(at).is_none() && self.has_gone_back(at) {
            return Ok(());
        }
        let source = evidence.clear(at).ok_or_else(|| no_difference(&before, at))?;
        if evidence == *before {
            return Ok(());
        }
        self.change_evidence(evidence).await?;
        tracing::warn!(
            target: LOG,
            "this hub's history is the true one, by walhub ctl: the difference at {at} stands \
             against {} alone from now on",
            source.name
        );
        Ok(())
    }

    /// Whether an upstream's history can be accepted at `at`, as far as that is known without it.
    pub(super) fn may_accept_theirs(&self, at: Lsn) -> Result<(), String> {
        let hub = &self.parts.hub;
        let evidence = hub.course.evidence();
        let difference = evidence.at(at);
        let place = place_of(difference.ok_or_else(|| no_difference(&evidence, at))?);
        if hub.course.fence().is_some() {
            return Err("the hub is fenced: it asks no upstream for anything".to_owned());
        }
        let own = self.own_timeline();
        if own != Some(place.tli) {
            return Err(format!(
                "{at} lies in WAL of timeline {}, from before the hub's own timeline; {NEW_DIRECTORY}",
                place.tli
            ));
        }
        if let Some(hole) = hole_before(hub, place) {
            return Err(format!("this hub's WAL at {at} lies past missing segments ({hole})"));
        }
        if hub.course.seams().iter().count() >= seams::MOST {
            return Err(seams::NoSeam::TooMany.to_string());
        }
        Ok(())
    }

    /// The upstream's history is the true one at `at`: the next attempts are about that.
    pub(super) fn accept_theirs(&mut self, at: Lsn, answer: oneshot::Sender<Result<(), String>>) {
        if let Err(why) = self.may_accept_theirs(at) {
            tracing::warn!(target: LOG, "walhub ctl: {why}");
            // The caller may have gone.
            return drop(answer.send(Err(why)));
        }
        let Some(difference) = self.parts.hub.course.evidence().at(at).cloned() else { return };
        self.accepting = Some(Accepting { difference, answer, refused: Vec::new() });
        self.begin_course();
    }

    /// Other hosts are asked from now on.
    pub(super) fn forget_refusals(&mut self) {
        if let Some(accepting) = &mut self.accepting {
            accepting.refused.clear();
        }
    }

    /// The order is no longer in force.
    pub(super) fn answer_accepting(&mut self, result: Result<(), String>) {
        if let Some(Accepting { answer, .. }) = self.accepting.take() {
            if let Err(why) = &result {
                tracing::warn!(target: LOG, "walhub ctl: {why}");
            }
            // The caller may have gone.
            drop(answer.send(result));
        }
    }

    /// The place at which an upstream's history is to be accepted.
    pub(super) fn accepted_place(&self) -> Option<Place> {
        let at = self.accepting.as_ref()?.difference.at;
        self.parts.hub.course.evidence().at(at).map(place_of)
    }

    /// Answers the order when it is done: the difference stands no more. It cannot be done while
    /// there is a fence.
    pub(super) fn settle_accepting(&mut self) {
        if self.accepting.is_none() {
            return;
        }
        if self.accepted_place().is_none() {
            self.answer_accepting(Ok(()));
        } else if self.parts.hub.course.fence().is_some() {
            self.answer_accepting(Err("the hub was fenced meanwhile".to_owned()));
        }
    }

    /// A host does not do. When none does, the order is answered.
    pub(super) fn note_refusal(&mut self, host: &str, failure: &AttemptFailure) {
        let hosts = self.upstream.conninfo.hosts.len();
        // What was decided will be finished, and then the order is done.
        let is_under_way = self.cutting.is_some() && self.parts.hub.current_cell().is_none();
        let Some(accepting) = self.accepting.as_mut().filter(|_| !is_under_way) else { return };
        let why = failure.to_string();
        let why = if why.contains(host) { why } else { format!("{host}: {why}") };
        let at = accepting.difference.at;
        tracing::warn!(target: LOG, "its history is not accepted at {at}: {why}");
        accepting.refused.push(why);
        if accepting.refused.len() >= hosts {
            let Difference { at, source, .. } = &accepting.difference;
            let (source, why) = (&source.name, accepting.refused.join("; "));
            let why = format!("no upstream shows the history that {source} had at {at}: {why}");
            self.answer_accepting(Err(why));
        }
    }

    /// Gives up our WAL if the server has the other history at the place. `verdict` is what is due with
    /// it.
    pub(super) async fn take_theirs(
        &mut self,
        asked: &mut IdentifiedServer<E::Socket>,
        place: Place,
        verdict: Verdict,
        limit: Duration,
    ) -> Result<(), AttemptFailure> {
        let host = asked.seen.host.clone();
        let theirs = asked.seen.tli;
        let none = || AttemptFailure::other(format!("{host} has no WAL at {}", place.at));
        let question = async {
            let compared = match verdict {
                Verdict::Compare(span) => {
                    compare(&self.parts, &mut asked.link, (span, place.at), theirs).await
                }
                Verdict::CompareNoted(span) => {
                    let evidence = self.parts.hub.course.evidence();
                    let difference = evidence.at(place.at).ok_or_else(none)?;
                    compare_noted(&mut asked.link, span, difference, theirs).await
                }
                Verdict::Not(state) => return Err(AttemptFailure::State(state)),
                _ => return Err(none()),
            };
            compared.map_err(AttemptFailure::from)
        };
        let differs = match within(limit, question).await? {
            Compared::Same => {
                let why = format!("{host} has this hub's WAL at {}", place.at);
                return Err(AttemptFailure::other(why));
            }
            Compared::Removed(why) | Compared::Unreadable(why) => {
                return Err(AttemptFailure::other(format!("{host}: {why}")));
            }
            Compared::Differs(Differing { first, bytes }) => {
                if let Some(why) = self.is_yet_another(&asked.source, &bytes.theirs) {
                    return Err(AttemptFailure::other(why));
                }
                first
            }
        };
        self.give_up_ours(asked, (place, differs), "walhub ctl", limit).await
    }

    /// Why `source`, which has `theirs` at the place of the order, has neither our history there nor the
    /// one that the order is about.
    fn is_yet_another(&self, source: &WalSource, theirs: &[u8]) -> Option<String> {
        let Difference { at, source: author, bytes, since, .. } = self
            .accepting
            .as_ref()
            .map(|accepting| &accepting.difference)
            .filter(|difference| !difference.is_history_of(source, theirs))?;
        let (name, author, since) = (&source.name, &author.name, date_millis(*since));
        Some(match bytes {
            Some(_) => format!(
                "{name} has neither this hub's WAL at {at} nor what {author} had there at {since}"
            ),
            None => format!(
                "{name} does not have this hub's WAL at {at}, and whether it has what {author} had \
                 there at {since} is not known"
            ),
        })
    }

    /// The server has other bytes at the place, and `differs` is the first of them that was found. Sets
    /// our WAL aside from the last record on that both have, at our end at the latest: standbys may have
    /// what we have lost. `by` says who wants it.
    pub(super) async fn give_up_ours(
        &mut self,
        asked: &mut IdentifiedServer<E::Socket>,
        (place, differs): (Place, Lsn),
        by: &str,
        limit: Duration,
    ) -> Result<(), AttemptFailure> {
        let host = asked.seen.host.clone();
        let differs = match self.parts.hub.position() {
            Position::At { durable, .. } => differs.min(durable),
            Position::Empty => differs,
        };
        let proof = shared_before(&self.parts, &mut asked.link, place.tli, differs, limit).await?;
        if refuses(&self.parts.hub, &proof) {
            return Err(AttemptFailure::State(UpstreamState::Unproved {
                host,
                why: proof.to_string(),
            }));
        }
        // What is walked, and what is left, stays here meanwhile.
        let kept = proof.from.map(|from| self.parts.hub.holds.hold_restorable(from));
        let seam = seam_of(&self.parts, place.tli, &proof).await?;
        tracing::warn!(
            target: LOG,
            "the history of {host} is the true one, by {by}: from {} on it has other WAL, and this \
             hub's past {seam} is set aside ({proof})",
            proof.shared.end
        );
        // What can fail on a full disk comes first: until then nothing has changed.
        self.prepare_cut(Cut::Past(seam)).await?;
        // No source of the former WAL is followed from here on, whatever happens.
        let mut evidence = Evidence::clone(&self.parts.hub.course.evidence());
        evidence.bar_all(place.at);
        self.change_evidence(evidence).await.map_err(AttemptFailure::other)?;
        let done = self.cut_at(Cut::Past(seam)).await;
        drop(kept);
        done.map_err(AttemptFailure::other)
    }
}

/// What the server has of our WAL before the first byte that differs, `differs` or an earlier one.
async fn shared_before<E: Environment>(
    parts: &Arc<Parts<E>>,
    link: &mut Link<E::Socket>,
    tli: TimelineId,
    differs: Lsn,
    limit: Duration,
) -> Result<Proof, AttemptFailure> {
    let mut end = differs;
    loop {
        let shared = SharedEnd { tli, end };
        match compare_back(parts, link, shared, limit).await? {
            Shown::Same(proof) => return Ok(proof),
            Shown::Not(Compared::Differs(Differing { first, .. })) if first < end => end = first,
            Shown::Not(Compared::Removed(why) | Compared::Unreadable(why)) => {
                return Err(AttemptFailure::other(why));
            }
            Shown::Not(_) => return Err(AttemptFailure::other("nothing was compared")),
        }
    }
}

/// The end of our last whole record in what was compared.
async fn seam_of<E: Environment>(
    parts: &Arc<Parts<E>>,
    tli: TimelineId,
    proof: &Proof,
) -> Result<Seam, AttemptFailure> {
    let hub = &parts.hub;
    let nothing = || {
        let (end, why) = (proof.shared.end, proof.weakness().unwrap_or("no record was compared"));
        AttemptFailure::other(format!(
            "it is not known how far back the two histories differ, before {end} at least: {why}; \
             {NEW_DIRECTORY}"
        ))
    };
    let from = proof.from.ok_or_else(nothing)?.page_start();
    let identity = hub.identity().ok_or_else(nothing)?;
    let forks = forks_of(hub, tli).map_err(AttemptFailure::other)?.unwrap_or_default();
    let begins = forks.last().map_or(Lsn::INVALID, |(_, end)| *end);
    let lineage = Lineage { tli, forks, size: identity.segment_size };
    let rules = page_rules(hub, tli).map_err(AttemptFailure::other)?;
    let (reader, end, files) = (Arc::clone(parts), proof.shared.end, lineage.clone());
    let walking = parts.environment.blocking(move || {
        let mut walker = Walker::new(rules, from);
        let mut at = from;
        while at < end {
            let segment_end = at.segment(files.size).end(files.size);
            let to = end.min(segment_end).min(at.saturating_add(PIECE));
            let bytes = read_own(&reader.environment, &files, at, to);
            let bytes = bytes.map_err(|error| error.to_string())?;
            walker.feed(&bytes).map_err(|fault| fault.to_string())?;
            at = to;
        }
        Ok::<_, String>(walker.last_record().map(|_| walker.record_end()))
    });
    let unread = |why: String| {
        AttemptFailure::other(format!("this hub's own WAL before {end} cannot be read: {why}"))
    };
    let walked = walking.await.map_err(|error| unread(error.to_string()))?;
    let at = walked.map_err(unread)?.ok_or_else(nothing)?;
    if at < begins || lineage.file(at).tli != tli {
        return Err(AttemptFailure::other(format!(
            "the two histories differ from {at} on, before the hub's timeline {tli} begins; \
             {NEW_DIRECTORY}"
        )));
    }
    Ok(Seam { tli, at })
}

/// There is none at `at`; names those that there are.
fn no_difference(evidence: &Evidence, at: Lsn) -> String {
    let one = |difference: &Difference| {
        let Difference { tli, at, source, .. } = difference;
        format!("at {at} on timeline {tli}, from {}", source.name)
    };
    match evidence.iter().map(one).collect::<Vec<_>>().as_slice() {
        [] => format!("there is no evidence of another history at {at}, nor anywhere else"),
        known => format!(
            "there is no evidence of another history at {at}; there is {}",
            known.join("; ")
        ),
    }
}
