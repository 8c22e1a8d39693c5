//! Advances through the archive on one timeline: segment after segment, to the receive role.

use super::segments::{Ahead, Expected, Judged, Named, Unusable, first_difference, judge, pour};
use super::turn::{Advance, ArchiveTurn, ShuttingDown};
use crate::follow::difference::{Differing, barred_by};
use crate::follow::environment::{Archive as _, Environment, HandOverFault};
use crate::follow::feed::Feed;
use crate::follow::{LOG, Task};
use crate::hub::page_rules::page_rules;
use crate::store::evidence::WalSource;
use crate::store::retention::Receiving;
use crate::upstream::end::UpstreamEnd;
use crate::upstream::follow::TargetTimeline;
use crate::upstream::place::Span;
use crate::upstream::position::Position;
use crate::upstream::proof::SharedEnd;
use crate::upstream::state::UpstreamState;
use crate::wal::walk::{WalkFault, Walker};
use crate::wal::{Lsn, SegmentName, TimelineId};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tracing::{error, info, warn};

impl<E: Environment> Task<E> {
    /// Advances as far as the archive goes on one timeline.
    pub(super) async fn advance(
        &mut self,
        archive: &E::Archive,
        turn: &mut ArchiveTurn<'_>,
    ) -> Result<Advance, ShuttingDown> {
        let hub = Arc::clone(&self.parts.hub);
        let (Position::At { tli, durable, start }, Some(identity)) =
            (hub.position(), hub.identity())
        else {
            return Ok(Advance::Stuck);
        };
        if hub.receiving() == Receiving::Paused {
            return Ok(Advance::Stuck);
        }
        if self.is_mixed(tli) {
            return Ok(Advance::Stuck);
        }
        let size = identity.segment_size;
        let surveyed = tokio::select! {
            biased;
            surveyed = self.survey(archive, tli, durable) => surveyed?,
            () = turn.cut_short() => return Ok(Advance::Over),
        };
        let Some(mut target) = surveyed else { return Ok(Advance::Stuck) };
        if let Some(place) = barred_by(&hub, &WalSource::archive()) {
            // Where our WAL is lost, a file has nothing of ours to be compared with.
            if place.tli == tli && place.at >= durable {
                return Ok(Advance::Stuck);
            }
            let upto = target.ends.map_or(durable, |(_, end)| end.min(durable));
            let span = place.span(size, upto);
            return self.compare_archive(archive, &target, (span, place.at), turn).await;
        }
        if let Some((next, at)) = target.ends
            && at == durable
        {
            return self.switch_to(tli, next, at).await;
        }
        let mut ahead = Ahead::new(archive, tli, size);
        let mut at = start.max(durable.segment_start(size));
        let (mut walker, mut feed): (Option<Walker>, Option<Feed<E::Socket>>) = (None, None);
        // Files with WAL that is not proved before the next one is here, and how far all is sent.
        let (mut held, mut sent) = (VecDeque::new(), at);
        let advance = loop {
            let upto = target.ends.map_or(Lsn::MAX, |(_, end)| end);
            if at >= upto {
                break Advance::Further;
            }
            let no = at.segment(size);
            let fetched = tokio::select! {
                biased;
                fetched = during(&mut feed, ahead.take(no, &target)) => fetched,
                () = turn.cut_short() => break Advance::Over,
            };
            let Ok(fetched) = fetched else { break Advance::Stuck };
            let (name, file) = match fetched? {
                Ok(Some(file)) => file,
                // More will be known when the rest of the last record is there.
                Ok(None) if !held.is_empty() => break Advance::Stuck,
                Ok(None) => break Advance::Exhausted,
                Err(_) => break Advance::Stuck,
            };
            let known = durable.max(no.start(size));
            let rules = match page_rules(&hub, tli) {
                Ok(rules) => rules,
                Err(error) => {
                    self.tell_unusable(name, Unusable::Unknown(error)).await;
                    break Advance::Stuck;
                }
            };
            let expected = Expected { rules, known, upto };
            let judging = judge(&self.parts, (name, file), walker.take(), expected);
            let judged = match during(&mut feed, judging).await {
                Ok(judged) => judged,
                Err(_) => break Advance::Stuck,
            };
            let judged = match judged {
                Ok(judged) => judged,
                Err(unusable) => {
                    self.tell_unusable(name, unusable).await;
                    break Advance::Stuck;
                }
            };
            let proved = judged.proved_to(upto);
            if let Some(fault) = &judged.fault {
                self.tell_fault(name, proved, fault);
            }
            let Judged { file, walker: walked, fault } = judged;
            held.push_back((name, file));
            if proved > durable.max(sent) {
                let feed = match &mut feed {
                    Some(feed) => feed,
                    empty => {
                        let shared = SharedEnd { tli, end: durable };
                        match self.open_proved(archive, &target, (shared, sent), turn).await? {
                            Ok(opened) => empty.insert(opened),
                            Err(advance) => break advance,
                        }
                    }
                };
                if self.pour_all(feed, &mut held, (sent, proved)).await.is_err() {
                    break Advance::Stuck;
                }
                sent = proved;
            }
            if fault.is_some() {
                break Advance::Exhausted;
            }
            at = walked.position();
            walker = Some(walked);
            if turn.is_over() {
                break Advance::Over;
            }
            let survey = self.survey(archive, tli, durable.max(at));
            let surveyed = tokio::select! {
                biased;
                surveyed = during(&mut feed, survey) => surveyed,
                () = turn.cut_short() => break Advance::Over,
            };
            let Ok(surveyed) = surveyed else { break Advance::Stuck };
            let Some(surveyed) = surveyed? else { break Advance::Stuck };
            target = surveyed;
        };
        let Some(feed) = feed else { return Ok(advance) };
        let before = hub.position();
        let advance = self.finish(feed, advance).await?;
        // WAL that the core refused is not offered again at once.
        match advance {
            Advance::Further if hub.position() == before => Ok(Advance::Stuck),
            advance => Ok(advance),
        }
    }

    /// Sends what is proved, and lets go of the files of which all is sent.
    async fn pour_all(
        &self,
        feed: &mut Feed<E::Socket>,
        held: &mut VecDeque<Named<E>>,
        (from, to): (Lsn, Lsn),
    ) -> io::Result<()> {
        while let Some(named) = held.front() {
            let name = named.0;
            let (start, end) = (name.no.start(name.size), name.no.end(name.size));
            if start >= to {
                break;
            }
            pour(&self.parts, feed, named, (from.max(start), to.min(end))).await?;
            info!(target: LOG, "restored log file \"{name}\" from archive");
            if end > to {
                break;
            }
            held.pop_front();
        }
        Ok(())
    }

    /// Opens a stream to the core from `start` on, after the archive has shown our WAL up to `shared`.
    async fn open_proved(
        &mut self,
        archive: &E::Archive,
        target: &TargetTimeline,
        (shared, start): (SharedEnd, Lsn),
        turn: &mut ArchiveTurn<'_>,
    ) -> Result<Result<Feed<E::Socket>, Advance>, ShuttingDown> {
        if let Err(advance) = self.prove_archive(archive, target, shared, turn).await? {
            return Ok(Err(advance));
        }
        Ok(self.open(shared.tli, start).await.ok_or(Advance::Stuck))
    }

    /// Opens a stream to the core, which begins at `start`.
    async fn open(&mut self, tli: TimelineId, start: Lsn) -> Option<Feed<E::Socket>> {
        let timeout = self.parts.hub.config.wal_receiver_timeout;
        match Feed::open(&self.parts.environment, timeout, tli, start).await {
            Ok(feed) => {
                if !matches!(self.supervisor.state(), UpstreamState::Restoring { .. }) {
                    self.note(UpstreamState::Restoring { tli, start });
                }
                Some(feed)
            }
            Err(HandOverFault::QueueFull) => None,
            Err(HandOverFault::Socket(error)) => {
                warn!(target: LOG, "could not begin a stream from the archive: {error}");
                None
            }
        }
    }

    /// Ends the stream, and waits until its WAL is durable.
    async fn finish(
        &mut self,
        feed: Feed<E::Socket>,
        advance: Advance,
    ) -> Result<Advance, ShuttingDown> {
        let refused = feed.was_ended();
        feed.end().await;
        let Some(end) = self.ends.recv().await else { return Err(ShuttingDown) };
        match end {
            UpstreamEnd::Lost { error, at } if refused => {
                warn!(target: LOG, "the stream from the archive ended at {at}: {error}");
                return Ok(Advance::Stuck);
            }
            UpstreamEnd::Lost { .. } | UpstreamEnd::TimedOut | UpstreamEnd::Recalled => {}
            UpstreamEnd::Stopped => return Err(ShuttingDown),
            UpstreamEnd::NoSpace => {
                self.note(UpstreamState::NoSpace { why: self.parts.hub.no_space() });
                return Ok(Advance::Stuck);
            }
            UpstreamEnd::Diverged { at, detail } => {
                warn!(target: LOG, "{detail}");
                let file = self.file_at(at);
                self.keep_difference(WalSource::archive_file(&file), at, None, &detail).await;
                self.note(UpstreamState::ArchiveDiffers { file, at });
                return Ok(Advance::Stuck);
            }
            UpstreamEnd::Timeline { .. } | UpstreamEnd::Refused { .. } => {
                return Ok(Advance::Stuck);
            }
        }
        Ok(advance)
    }

    /// Our timeline's file that holds a position.
    fn file_at(&self, at: Lsn) -> String {
        let hub = &self.parts.hub;
        match (hub.current_cell(), hub.identity()) {
            (Some(cell), Some(identity)) => {
                let size = identity.segment_size;
                SegmentName { tli: cell.tli(), no: at.segment(size), size }.to_string()
            }
            _ => String::new(),
        }
    }

    /// Checks that the archive has our bytes where a difference was found.
    async fn compare_archive(
        &mut self,
        archive: &E::Archive,
        target: &TargetTimeline,
        (span, at): (Span, Lsn),
        turn: &mut ArchiveTurn<'_>,
    ) -> Result<Advance, ShuttingDown> {
        let Some(identity) = self.parts.hub.identity() else { return Ok(Advance::Stuck) };
        let size = identity.segment_size;
        let ahead = Ahead::new(archive, span.tli, size);
        let names = ahead.names(span.from.segment(size), target);
        let fetched = tokio::select! {
            biased;
            fetched = archive.segment(names) => fetched.map_err(|_| ShuttingDown)?,
            () = turn.cut_short() => return Ok(Advance::Over),
        };
        let (name, file) = match fetched {
            Ok(Some(file)) => file,
            Ok(None) => return Ok(Advance::Exhausted),
            Err(_) => return Ok(Advance::Stuck),
        };
        let source = WalSource::archive_file(&name.to_string());
        let compared = (name.no.start(name.size), span.to);
        let differs = first_difference(&self.parts, (name, file), span.tli, compared, Some(at));
        match differs.await {
            Ok(None) if self.is_no_witness(name, &source).await => {
                if self.told.own.replace(at) != Some(at) {
                    warn!(
                        target: LOG,
                        "{} has our WAL at {at}, and this hub may have archived it itself \
                         (--archive-command): that shows nothing, and an upstream has to show it",
                        source.name
                    );
                }
            }
            Ok(None) => {
                let why = format!("{} has our WAL there", source.name);
                match self.agreed(&source, &why).await {
                    Ok(()) => return Ok(Advance::Further),
                    Err(error) => error!(target: LOG, "{error}"),
                }
            }
            Ok(Some(differing)) => {
                if let Err(error) = self.learn(&source, &differing.bytes).await {
                    error!(target: LOG, "{error}");
                }
                self.tell_unusable(name, Unusable::Differs(differing)).await;
            }
            Err(unusable) => self.tell_unusable(name, unusable).await,
        }
        Ok(Advance::Stuck)
    }

    /// May our own copy have come back? What this hub has archived is no witness of its WAL. A
    /// difference that stands against the archive alone is another matter: nobody else is followed
    /// for it.
    async fn is_no_witness(&self, name: SegmentName, source: &WalSource) -> bool {
        let evidence = self.parts.hub.course.evidence();
        match evidence.against(source).is_none_or(|difference| difference.cleared) {
            true => false,
            false => self.may_be_own_copy(name).await,
        }
    }

    /// May the archive's file of this segment be one that this hub has archived?
    pub(super) async fn may_be_own_copy(&self, name: SegmentName) -> bool {
        if self.parts.hub.config.archive_command.is_some() {
            return true;
        }
        let reader = Arc::clone(&self.parts);
        let looking =
            self.parts.environment.blocking(move || reader.environment.has_archived(name));
        // What is not known may be so.
        looking.await.flatten().unwrap_or(true)
    }

    pub(super) async fn tell_unusable(&mut self, name: SegmentName, unusable: Unusable) {
        match unusable {
            Unusable::Differs(Differing { first: at, bytes }) => {
                let detail = "the archive has other WAL under positions that are stored here";
                let source = WalSource::archive_file(&name.to_string());
                self.keep_difference(source, at, Some(bytes), detail).await;
                self.note(UpstreamState::ArchiveDiffers { file: name.to_string(), at });
            }
            Unusable::Unknown(error) => {
                warn!(target: LOG, "archive file \"{name}\" cannot be used: {error}");
            }
        }
    }

    /// Reports a file that ends before its segment, once for each end.
    fn tell_fault(&mut self, name: SegmentName, valid_to: Lsn, fault: &WalkFault) {
        if self.told.ended.replace((name, valid_to)) == Some((name, valid_to)) {
            return;
        }
        let start = name.no.start(name.size);
        if fault.is_unwritten() && valid_to > start {
            info!(target: LOG, "archive file \"{name}\" holds WAL up to {valid_to}: {fault}");
        } else if fault.at < start {
            error!(
                target: LOG,
                "archive file \"{name}\" or one before it is not the WAL that belongs there from \
                 {valid_to} on, which is not used: {fault}"
            );
        } else {
            error!(
                target: LOG,
                "archive file \"{name}\" is not the WAL that belongs there from {valid_to} on, \
                 which is not used: {fault}"
            );
        }
    }
}

/// Runs `work`; keeps the stream, if any, alive meanwhile.
async fn during<S, T>(feed: &mut Option<Feed<S>>, work: impl Future<Output = T>) -> io::Result<T>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    match feed {
        Some(feed) => feed.during(work).await,
        None => Ok(work.await),
    }
}
