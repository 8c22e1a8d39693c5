//! The proof that the archive has our history, before its WAL is taken: its files are compared with
//! our own WAL, back to a record that says when it was written, as an upstream's WAL is
//! ([`compare_back`](crate::follow::proof::compare_back)). Another history may continue ours byte for
//! byte at our end. A file that this hub may have archived itself shows nothing.

use super::segments::{Ahead, Unusable, first_difference};
use super::turn::{Advance, ArchiveTurn, ShuttingDown};
use crate::follow::Task;
use crate::follow::environment::{Archive as _, Environment};
use crate::follow::joining::warn_of_weak;
use crate::follow::proof::{OwnWal, before_unproved, find_own, refuses};
use crate::upstream::follow::TargetTimeline;
use crate::upstream::proof::{Proof, SharedEnd, Strength};
use crate::upstream::state::UpstreamState;
use crate::wal::SegmentName;

/// The archive as a host.
const ARCHIVE: &str = "the archive";

/// What was compared, or what becomes of the attempt to advance without it.
type Compared<T> = Result<Result<T, Advance>, ShuttingDown>;

impl<E: Environment> Task<E> {
    /// Has the archive show our WAL up to `shared`, once in a turn. Other bytes are evidence of
    /// another history. When nothing is proved, its WAL is taken all the same, unless the operator
    /// asks for a proof.
    pub(super) async fn prove_archive(
        &mut self,
        archive: &E::Archive,
        target: &TargetTimeline,
        shared: SharedEnd,
        turn: &mut ArchiveTurn<'_>,
    ) -> Compared<()> {
        if turn.shown.as_ref().is_some_and(|proof| proof.shared == shared) {
            return Ok(Ok(()));
        }
        let mut earlier = None;
        if let Some(end) = before_unproved(&self.parts.hub, shared) {
            earlier = match self.compare_files(archive, target, end, turn).await? {
                Ok(proof) => Some(proof),
                Err(advance) => return Ok(Err(advance)),
            };
        }
        let proof = match self.compare_files(archive, target, shared, turn).await? {
            Ok(proof) => proof,
            Err(advance) => return Ok(Err(advance)),
        };
        let proof = match earlier {
            Some(earlier) => proof.with_earlier(&earlier),
            None => proof,
        };
        if refuses(&self.parts.hub, &proof) {
            let (host, why) = (ARCHIVE.to_owned(), proof.to_string());
            self.note(UpstreamState::Unproved { host, why });
            return Ok(Err(Advance::Stuck));
        }
        let was_weak = turn.shown.as_ref().is_some_and(|shown| shown.weakness().is_some());
        if proof.weakness().is_some() {
            self.parts.hub.course.take_unproved(shared.end);
        }
        // It is said and counted once in a turn.
        if proof.weakness().is_none() || !was_weak {
            warn_of_weak(Some(&proof), ARCHIVE);
            self.parts.hub.course.joined(Some(proof.clone()));
        }
        turn.shown = Some(proof);
        Ok(Ok(()))
    }

    /// Compares our WAL up to `shared` with the archive's files, as far back as it takes.
    async fn compare_files(
        &mut self,
        archive: &E::Archive,
        target: &TargetTimeline,
        shared: SharedEnd,
        turn: &mut ArchiveTurn<'_>,
    ) -> Compared<Proof> {
        let own = match find_own(&self.parts, shared.end).await {
            Ok(own) => own,
            Err(why) => return Ok(Ok(Proof::none(shared, why))),
        };
        let OwnWal { lineage, start, hold } = own;
        let (mut at, mut from) = (start.from, start.from);
        let mut why = start.weakness(shared.end);
        while at < shared.end {
            let ours = lineage.file(at);
            let to = ours.no.end(ours.size).min(shared.end);
            let names = Ahead::new(archive, ours.tli, ours.size).names(ours.no, target);
            let fetched = tokio::select! {
                biased;
                fetched = archive.segment(names) => fetched.map_err(|_| ShuttingDown)?,
                () = turn.cut_short() => return Ok(Err(Advance::Over)),
            };
            match fetched {
                Ok(Some((name, file))) => {
                    let span = (at, to);
                    let differs = first_difference(&self.parts, (name, file), ours.tli, span, None);
                    match differs.await {
                        Ok(None) => why = self.own_copy(name).await.or(why),
                        Ok(Some(differing)) => {
                            self.tell_unusable(name, Unusable::Differs(differing)).await;
                            return Ok(Err(Advance::Stuck));
                        }
                        Err(unusable) => {
                            self.tell_unusable(name, unusable).await;
                            return Ok(Err(Advance::Stuck));
                        }
                    }
                }
                Ok(None) => {
                    why = Some(format!("the archive has no file \"{ours}\""));
                    from = to;
                }
                Err(_) => return Ok(Err(Advance::Stuck)),
            }
            at = to;
        }
        drop(hold);
        let from = (from < shared.end).then_some(from);
        Ok(Ok(Proof { shared, from, strength: Strength::of(start.record.ok(), why) }))
    }

    /// Why a file of the archive that is the same as ours shows nothing.
    async fn own_copy(&self, name: SegmentName) -> Option<String> {
        let why = format!("this hub may have archived \"{name}\" itself (--archive-command)");
        self.may_be_own_copy(name).await.then_some(why)
    }
}
