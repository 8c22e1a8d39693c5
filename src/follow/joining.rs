//! What has to happen before a stream of a server may be asked for: its verdict, comparisons,
//! switches of timelines.

use super::damage::{CloserLook, MOST_MENDED};
use super::difference::{
    self, Compared, Differing, OTHER_WAL, barred_by, lost_and_not_shown, place_of,
};
use super::environment::Environment;
use super::link::LinkFault;
use super::outcome::AttemptFailure;
use super::proof::{Shown, compare_back, refuses};
use super::questions::IdentifiedServer;
use super::{LOG, Task};
use crate::store::evidence::{Difference, PlaceBytes, WalSource};
use crate::store::switch::Switch;
use crate::upstream::judge::{Known, Verdict, judge};
use crate::upstream::place::Span;
use crate::upstream::position::Position;
use crate::upstream::proof::{Proof, SharedEnd};
use crate::upstream::state::UpstreamState;
use crate::wal::{Lsn, TimelineId};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// A server may be followed.
pub(super) struct Joining {
    pub(super) tli: TimelineId,
    pub(super) at: StreamStart,
    /// Where the receive role stands.
    pub(super) position: Position,
    /// What it has shown of our WAL; `None` when there is none.
    pub(super) proof: Option<Proof>,
}

/// Where the stream begins.
pub(super) enum StreamStart {
    At(Lsn),
    /// At the oldest segment there is; the one at `newest` exists.
    Oldest {
        newest: Lsn,
    },
}

/// What a comparison led to.
#[derive(PartialEq, Eq)]
enum Shows<T> {
    /// The server has our WAL.
    OurWal(T),
    /// A record of ours was damaged and is mended: the server is to be judged again.
    Mended,
}

/// What became of our WAL at a place where a server has other bytes.
#[derive(PartialEq, Eq)]
enum GivesUp {
    Nothing,
    /// It was set aside.
    Ours,
}

impl<E: Environment> Task<E> {
    /// Does what the verdicts about a server ask for, until it may be followed or not. Each of its
    /// answers has to come within `limit`.
    pub(super) async fn join(
        &mut self,
        asked: &mut IdentifiedServer<E::Socket>,
        limit: Duration,
    ) -> Result<Joining, AttemptFailure> {
        let mut proof: Option<Proof> = None;
        let mut mended = 0;
        loop {
            if mended == MOST_MENDED {
                return Err(AttemptFailure::other(format!(
                    "{mended} damaged records of this hub were mended, and there are more: see its \
                     disk"
                )));
            }
            self.settle_difference().await.map_err(AttemptFailure::other)?;
            self.settle_accepting();
            let accepted = self.accepted_place();
            let known = self.known(&asked.source).map_err(AttemptFailure::other)?;
            let known = Known { shown: proof.as_ref().map(|proof| proof.shared), ..known };
            let position = known.position;
            let verdict = judge(&asked.seen, &known);
            if let Some(place) = accepted {
                self.take_theirs(asked, place, verdict, limit).await?;
                proof = None;
                continue;
            }
            let (tli, at) = match verdict {
                Verdict::Start { tli, start } => (tli, StreamStart::At(start)),
                Verdict::FindOldest { tli, newest } => (tli, StreamStart::Oldest { newest }),
                Verdict::Not(state) => return Err(AttemptFailure::State(state)),
                Verdict::Switch { next, at } => {
                    if let Some(state) = self.unproved(asked, proof.as_ref()) {
                        return Err(AttemptFailure::State(state));
                    }
                    warn_of_weak(proof.as_ref(), &asked.seen.host);
                    within(limit, self.switch(asked, next, at)).await?;
                    // What was compared ends where the next timeline begins.
                    if let Some(proof) = &mut proof {
                        proof.shared.tli = next;
                    }
                    continue;
                }
                Verdict::CompareNoted(span) => {
                    self.compare_lost_place(asked, span, limit).await?;
                    continue;
                }
                Verdict::Compare(span) => {
                    let unbarred = Known { differs: None, shown: None, ..known };
                    let then = judge(&asked.seen, &unbarred);
                    if self.compare_place(asked, span, &then, limit).await? == Shows::Mended {
                        mended += 1;
                    }
                    continue;
                }
                Verdict::Prove(shared) => {
                    let shown = Known { shown: Some(shared), ..known };
                    let then = judge(&asked.seen, &shown);
                    match self.prove(asked, shared, &then, limit).await? {
                        Shows::OurWal(shown) => proof = Some(shown),
                        Shows::Mended => mended += 1,
                    }
                    continue;
                }
            };
            if let Some(state) = self.unproved(asked, proof.as_ref()) {
                return Err(AttemptFailure::State(state));
            }
            return Ok(Joining { tli, at, position, proof });
        }
    }

    /// What counts when `source` is judged.
    fn known(&self, source: &WalSource) -> Result<Known, String> {
        let hub = &self.parts.hub;
        Ok(Known {
            instance: hub.instance,
            cluster: hub.identity().map(|identity| (identity.system_id, identity.segment_size)),
            position: hub.position(),
            forks: self.own_forks()?,
            differs: self.accepted_place().or_else(|| barred_by(hub, source)),
            shown: None,
            start_from: self.progress.start_from(),
        })
    }

    /// Checks that the server has our bytes where a difference was found. Without that difference
    /// `then` would follow.
    async fn compare_place(
        &mut self,
        asked: &mut IdentifiedServer<E::Socket>,
        span: Span,
        then: &Verdict,
        limit: Duration,
    ) -> Result<Shows<()>, AttemptFailure> {
        let theirs = asked.seen.tli;
        let barring = self.parts.hub.course.evidence().against(&asked.source).cloned();
        let at = barring.as_ref().map_or(span.from, |barring| barring.at);
        let comparing = difference::compare(&self.parts, &mut asked.link, (span, at), theirs);
        let compared = within(limit, async { Ok(comparing.await?) }).await?;
        if let (Compared::Differs(differing), Verdict::Prove(shared)) = (&compared, then)
            && self.look_closer(asked, *shared, differing.first, limit).await? == CloserLook::Mended
        {
            return Ok(Shows::Mended);
        }
        if let (Compared::Differs(Differing { first, bytes }), Some(barring)) = (&compared, barring)
        {
            let found = (&barring, *first, bytes);
            if self.gives_up_at(asked, found, limit).await? == GivesUp::Ours {
                return Ok(Shows::OurWal(()));
            }
        }
        let IdentifiedServer { seen, source, .. } = asked;
        if let Some(state) = compared.diverged(&self.parts.hub, source) {
            return Err(AttemptFailure::State(state));
        }
        let why = format!("{} has our WAL there", seen.host);
        self.agreed(source, &why).await.map_err(AttemptFailure::other)?;
        Ok(Shows::OurWal(()))
    }

    /// The same where our own bytes are lost: the server has to show what was noted of them.
    async fn compare_lost_place(
        &mut self,
        asked: &mut IdentifiedServer<E::Socket>,
        span: Span,
        limit: Duration,
    ) -> Result<(), AttemptFailure> {
        let evidence = self.parts.hub.course.evidence();
        // It has been judged by this one.
        let Some(barring) = evidence.against(&asked.source) else { return Ok(()) };
        let theirs = asked.seen.tli;
        let comparing = difference::compare_noted(&mut asked.link, span, barring, theirs);
        let compared = within(limit, async { Ok(comparing.await?) }).await?;
        if let Compared::Differs(Differing { first, bytes }) = &compared {
            let found = (barring, *first, bytes);
            return match self.gives_up_at(asked, found, limit).await? {
                GivesUp::Ours => Ok(()),
                GivesUp::Nothing => Err(AttemptFailure::State(lost_and_not_shown(barring))),
            };
        }
        if let Some(state) = compared.diverged(&self.parts.hub, &asked.source) {
            return Err(AttemptFailure::State(state));
        }
        let why = format!("{} has there what was noted of our WAL", asked.seen.host);
        self.agreed(&asked.source, &why).await.map_err(AttemptFailure::other)
    }

    /// The server has other bytes at the place of the difference that bars it: keeps what it has, and
    /// gives up ours if that is due (`--on-diverge follow`). `first` is the first byte that differs.
    async fn gives_up_at(
        &mut self,
        asked: &mut IdentifiedServer<E::Socket>,
        (barring, first, bytes): (&Difference, Lsn, &PlaceBytes),
        limit: Duration,
    ) -> Result<GivesUp, AttemptFailure> {
        let learned = self.learn(&asked.source, bytes).await;
        learned.map_err(AttemptFailure::other)?;
        if !self.is_confirmed(asked, barring, &bytes.theirs).await? {
            return Ok(GivesUp::Nothing);
        }
        let (by, place) = ("--on-diverge follow", place_of(barring));
        let given_up = self.give_up_ours(asked, (place, first), by, limit).await;
        given_up.map_err(|failure| failure.into_diverged(place))?;
        // So it is what is left of ours.
        Ok(GivesUp::Ours)
    }

    /// Compares our WAL up to `shared` with the server's. Other bytes are evidence of another
    /// history, unless a disk has damaged them. What the server no longer has proves nothing, and where no difference stands it is
    /// believed. So it is when ours cannot be read, but then no timeline is left for it. `then` is
    /// what follows if all is the same.
    async fn prove(
        &mut self,
        asked: &mut IdentifiedServer<E::Socket>,
        shared: SharedEnd,
        then: &Verdict,
        limit: Duration,
    ) -> Result<Shows<Proof>, AttemptFailure> {
        let hub = Arc::clone(&self.parts.hub);
        let compared = match compare_back(&self.parts, &mut asked.link, shared, limit).await? {
            Shown::Same(proof) => match (proof.from, proof.weakness()) {
                (None, Some(why)) if barred_by(&hub, &asked.source).is_some() => {
                    Compared::Removed(why.to_owned())
                }
                _ => return Ok(Shows::OurWal(proof)),
            },
            Shown::Not(compared) => compared,
        };
        if let Compared::Differs(Differing { first, .. }) = compared
            && self.look_closer(asked, shared, first, limit).await? == CloserLook::Mended
        {
            return Ok(Shows::Mended);
        }
        let source = &asked.source;
        match &compared {
            Compared::Differs(Differing { first, bytes }) => {
                let bytes = Some(bytes.clone());
                self.keep_difference(source.clone(), *first, bytes, OTHER_WAL).await;
            }
            Compared::Unreadable(why) if barred_by(&hub, source).is_none() => {
                if !matches!(then, Verdict::Switch { .. }) {
                    return Ok(Shows::OurWal(Proof::none(shared, why.clone())));
                }
                let SharedEnd { tli, end } = shared;
                let why = format!("timeline {tli} is not left at {end}: {why}");
                return Err(AttemptFailure::other(why));
            }
            Compared::Same | Compared::Unreadable(_) | Compared::Removed(_) => {}
        }
        let state = compared.diverged(&hub, source);
        Err(state
            .map_or_else(|| AttemptFailure::other("nothing was compared"), AttemptFailure::State))
    }

    /// The state of a server that has shown less than the operator asks for.
    fn unproved(
        &self,
        asked: &IdentifiedServer<E::Socket>,
        proof: Option<&Proof>,
    ) -> Option<UpstreamState> {
        let proof = proof.filter(|proof| proof.weakness().is_some())?;
        let host = asked.seen.host.clone();
        let state = || UpstreamState::Unproved { host, why: proof.to_string() };
        refuses(&self.parts.hub, proof).then(state)
    }

    /// Our timeline ended at `at`, and `next` follows: saves the histories, then the switch, and
    /// waits until standbys can be directed to the next timeline.
    async fn switch(
        &mut self,
        asked: &mut IdentifiedServer<E::Socket>,
        next: TimelineId,
        at: Lsn,
    ) -> Result<(), AttemptFailure> {
        let hub = Arc::clone(&self.parts.hub);
        let Position::At { tli: from, .. } = hub.position() else {
            return Err(AttemptFailure::other("no timeline to leave"));
        };
        let (seen, oldest) = (&asked.seen, hub.holds.unbroken_from());
        if at.segment_start(seen.segment_size) < oldest {
            let message = format!(
                "timeline {from} ended there, before the oldest WAL that is still here, {oldest}"
            );
            return Err(AttemptFailure::State(UpstreamState::Gap { at, message }));
        }
        let newest = seen.tli;
        self.save_histories(&mut asked.link, newest, newest, asked.history.clone()).await?;
        let why = match hub.switchpoint(from, next) {
            Ok(Some(fork)) if fork == at => {
                let switch = Switch { from, to: next, at };
                return self.go_on_with(switch).await.map_err(AttemptFailure::other);
            }
            Ok(Some(fork)) => format!(
                "its history of timeline {next} says that timeline {from} ended at {fork}, \
                 that of timeline {newest} says at {at}"
            ),
            Ok(None) => {
                format!("it has no history of timeline {next} that names timeline {from}")
            }
            Err(fault) => format!("its history of timeline {next}: {fault}"),
        };
        let host = asked.seen.host.clone();
        Err(AttemptFailure::State(UpstreamState::Refused { host, why }))
    }
}

/// Says that `host` is followed on less than a proof: when our timeline is left for its own, and when
/// its stream begins.
pub(super) fn warn_of_weak(proof: Option<&Proof>, host: &str) {
    if let Some(proof) = proof.filter(|proof| proof.weakness().is_some()) {
        tracing::warn!(
            target: LOG,
            "it is not proved that {host} has this hub's history, and it is followed all the same: \
             {proof}"
        );
    }
}

/// An answer that takes longer is none.
pub(super) async fn within<T>(
    limit: Duration,
    answer: impl Future<Output = Result<T, AttemptFailure>>,
) -> Result<T, AttemptFailure> {
    timeout(limit, answer).await.unwrap_or(Err(AttemptFailure::Link(LinkFault::Silent)))
}
