//! The archive in place of the upstream: while no upstream streams, the hub continues with what
//! `restore_command` fetches.
//!
//! Histories come first, before each segment, so that a timeline that has ended is not followed
//! past its end. A segment is read up to the true end of its WAL, compared with what we have of it,
//! and fed to the receive role as a stream like any other ([`Feed`]). The receive role makes all
//! its own checks. An upstream that was found takes over at a segment boundary.

use super::super::orders::Order;
use super::difference::{self, open_own};
use super::feed::Feed;
use super::probe::Probe;
use super::{LOG, Task};
use crate::archive::check;
use crate::config::OnGap;
use crate::hub::page_rules::page_rules;
use crate::restorer::{RestoreResult, RestoredFile, Restorer};
use crate::store::evidence::{ARCHIVE, in_archive};
use crate::store::layout::Layout;
use crate::store::retention::Receiving;
use crate::store::switch::Switch;
use crate::timeline::History;
use crate::upstream::end::UpstreamEnd;
use crate::upstream::follow::{Course, course};
use crate::upstream::place::Span;
use crate::upstream::position::Position;
use crate::upstream::state::UpstreamState;
use crate::wal::walk::{WalkFault, Walker};
use crate::wal::{Lsn, SegmentName, SegmentNo, SegmentSize, TimelineId};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use tracing::{error, info, warn};

/// Bytes read from a file at a time.
const PIECE: u64 = 1 << 20;

/// How long to wait for a running fetch after an upstream was found.
const PATIENCE: Duration = Duration::from_secs(5);

/// The outcome of an attempt to advance.
enum Advance {
    /// The archive has no more, for now.
    Exhausted,
    /// It may have more, but the command is broken, a file cannot be used, or its WAL could not be
    /// taken.
    Stuck,
    /// The next timeline has begun, or something was stored: look again.
    Further,
    /// An upstream could continue, or an operator has an order.
    Over,
}

/// The hub is shutting down.
struct Ends;

/// What ends the archive's turn.
struct Turn<'a> {
    probe: Probe,
    orders: &'a mut mpsc::Receiver<Order>,
    /// The order that came.
    order: Option<Order>,
}

impl Turn<'_> {
    fn is_over(&self) -> bool {
        self.probe.has_found() || self.order.is_some() || !self.orders.is_empty()
    }

    /// Completes when the turn is over.
    async fn over(&mut self) {
        if self.order.is_some() {
            return;
        }
        tokio::select! {
            Some(order) = self.orders.recv() => self.order = Some(order),
            () = self.probe.found() => {}
        }
    }

    /// Completes when the running fetch is no longer worth waiting for: on an order, or some time
    /// after an upstream was found. That upstream may still refuse us, so a fetch deserves a little
    /// patience; a command that hangs does not.
    async fn cut_short(&mut self) {
        self.over().await;
        if self.order.is_none() {
            tokio::select! {
                Some(order) = self.orders.recv() => self.order = Some(order),
                () = tokio::time::sleep(PATIENCE) => {}
            }
        }
    }
}

/// Sleeps until `at`, or until there is an order.
async fn sleep(at: Instant, orders: &mut mpsc::Receiver<Order>) -> Option<Order> {
    tokio::select! {
        order = orders.recv() => order,
        () = tokio::time::sleep_until(at.into()) => None,
    }
}

/// A segment that was checked.
struct Judged {
    file: RestoredFile,
    /// At the end of the segment, if all of it is WAL.
    walker: Walker,
    /// Where its WAL ends.
    valid_to: Lsn,
    /// Why it ended before the segment's end.
    fault: Option<WalkFault>,
}

/// Why a segment is not used.
enum Unusable {
    /// Its bytes differ from ours from there on.
    Differs(Lsn),
    /// It could not be read, or nothing is known of its timeline.
    Unknown(String),
}

impl Task {
    /// The archive's turn: no upstream is asked before `at`. Returns when an upstream could stream,
    /// or with an order. When the archive cannot be asked, returns at `at`.
    pub(super) async fn wait(
        &mut self,
        at: Instant,
        orders: &mut mpsc::Receiver<Order>,
    ) -> Option<Order> {
        self.failures = 0;
        let Some(restorer) = self.shared.restorer.clone() else {
            return sleep(at, orders).await;
        };
        if self.shared.hub.position() == Position::Empty {
            if !std::mem::replace(&mut self.told.empty, true) {
                info!(
                    target: LOG,
                    "the directory is empty: where its WAL begins and whose it is only an \
                     upstream can say; the archive is not asked before"
                );
            }
            return sleep(at, orders).await;
        }
        let pause = self.shared.hub.config.wal_retrieve_retry_interval;
        let probe = Probe::start(&self.shared, &self.upstream);
        let mut turn = Turn { probe, orders, order: None };
        loop {
            match self.advance(&restorer, &mut turn).await {
                Ok(Advance::Further) if turn.order.is_none() => {}
                Ok(Advance::Further | Advance::Over) => break,
                Ok(advance @ (Advance::Exhausted | Advance::Stuck)) => {
                    if matches!(advance, Advance::Exhausted)
                        && self.shared.hub.config.on_gap == OnGap::RestartAtCurrent
                    {
                        // The upstream is asked once more before the hub gives up.
                        self.exhausted = Some(self.shared.hub.position());
                        return sleep(at, turn.orders).await;
                    }
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = turn.over() => break,
                    }
                }
                Err(Ends) => std::future::pending().await,
            }
        }
        self.supervisor.forget();
        turn.order
    }

    /// Has the archive nothing more for our position?
    pub(super) fn archive_is_exhausted(&self) -> bool {
        self.shared.restorer.is_none() || self.exhausted == Some(self.shared.hub.position())
    }

    /// Advances as far as the archive goes on one timeline.
    async fn advance(&mut self, restorer: &Restorer, turn: &mut Turn<'_>) -> Result<Advance, Ends> {
        let hub = Arc::clone(&self.shared.hub);
        let (Position::At { tli, durable, start }, Some(identity)) =
            (hub.position(), hub.identity())
        else {
            return Ok(Advance::Stuck);
        };
        if hub.receiving() == Receiving::Paused {
            return Ok(Advance::Stuck);
        }
        let size = identity.segment_size;
        let surveyed = tokio::select! {
            surveyed = self.survey(restorer, tli, durable) => surveyed?,
            () = turn.cut_short() => return Ok(Advance::Over),
        };
        let Some(mut course) = surveyed else { return Ok(Advance::Stuck) };
        if let Some(place) = difference::barred_by(&hub, ARCHIVE) {
            let upto = course.ends.map_or(durable, |(_, end)| end.min(durable));
            return self.compare_archive(restorer, &course, place.span(size, upto), turn).await;
        }
        if let Some((next, at)) = course.ends
            && at == durable
        {
            return self.switch_to(tli, next, at).await;
        }
        let mut ahead = Ahead::new(restorer, tli, size);
        let mut at = start.max(durable.segment_start(size));
        let (mut walker, mut feed): (Option<Walker>, Option<Feed>) = (None, None);
        let advance = loop {
            let upto = course.ends.map_or(Lsn::MAX, |(_, end)| end);
            if at >= upto {
                break Advance::Further;
            }
            let no = at.segment(size);
            let fetched = tokio::select! {
                fetched = during(&mut feed, ahead.take(no, &course)) => fetched,
                () = turn.cut_short() => break Advance::Over,
            };
            let Ok(fetched) = fetched else { break Advance::Stuck };
            let (name, file) = match fetched? {
                Ok(Some(file)) => file,
                Ok(None) => break Advance::Exhausted,
                Err(_) => break Advance::Stuck,
            };
            let known = durable.max(no.start(size));
            let judging = self.judge((name, file), walker.take(), (tli, known, upto));
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
            if let Some(fault) = &judged.fault {
                self.tell_fault(name, judged.valid_to, fault);
            }
            if judged.valid_to > known {
                let feed = match &mut feed {
                    Some(feed) => feed,
                    empty => match self.open(tli, at).await {
                        Some(opened) => empty.insert(opened),
                        None => break Advance::Stuck,
                    },
                };
                if pour(feed, &judged, name, at).await.is_err() {
                    break Advance::Stuck;
                }
                info!(target: LOG, "restored log file \"{name}\" from archive");
            }
            at = judged.valid_to;
            walker = Some(judged.walker);
            if judged.fault.is_some() {
                break Advance::Exhausted;
            }
            if turn.is_over() {
                break Advance::Over;
            }
            let survey = self.survey(restorer, tli, durable.max(at));
            let surveyed = tokio::select! {
                surveyed = during(&mut feed, survey) => surveyed,
                () = turn.cut_short() => break Advance::Over,
            };
            let Ok(surveyed) = surveyed else { break Advance::Stuck };
            let Some(surveyed) = surveyed? else { break Advance::Stuck };
            course = surveyed;
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

    /// Opens a stream to the core, which begins at `start`.
    async fn open(&mut self, tli: TimelineId, start: Lsn) -> Option<Feed> {
        match Feed::open(&self.shared, tli, start).await {
            Ok(Some(feed)) => {
                let mut news = Vec::new();
                if !matches!(self.supervisor.state(), UpstreamState::Restoring { .. }) {
                    self.supervisor.note(UpstreamState::Restoring { tli, start }, &mut news);
                }
                self.tell(news);
                Some(feed)
            }
            Ok(None) => None,
            Err(error) => {
                warn!(target: LOG, "could not begin a stream from the archive: {error}");
                None
            }
        }
    }

    /// Ends the stream, and waits until its WAL is durable.
    async fn finish(&mut self, feed: Feed, advance: Advance) -> Result<Advance, Ends> {
        let refused = feed.was_ended();
        drop(feed);
        let Some(end) = self.ends.recv().await else { return Err(Ends) };
        match end {
            UpstreamEnd::Lost { error, at } if refused => {
                warn!(target: LOG, "the stream from the archive ended at {at}: {error}");
                return Ok(Advance::Stuck);
            }
            UpstreamEnd::Lost { .. } | UpstreamEnd::TimedOut | UpstreamEnd::Recalled => {}
            UpstreamEnd::Stopped => return Err(Ends),
            UpstreamEnd::NoSpace => {
                self.alarm(UpstreamState::NoSpace);
                return Ok(Advance::Stuck);
            }
            UpstreamEnd::Diverged { at, detail } => {
                warn!(target: LOG, "{detail}");
                let file = self.file_at(at);
                self.keep_difference(&in_archive(&file), at, &detail).await;
                self.alarm(UpstreamState::ArchiveDiffers { file, at });
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
        let hub = &self.shared.hub;
        match (hub.current_cell(), hub.identity()) {
            (Some(cell), Some(identity)) => {
                let size = identity.segment_size;
                SegmentName { tli: cell.tli(), no: at.segment(size), size }.to_string()
            }
            _ => String::new(),
        }
    }

    fn alarm(&mut self, state: UpstreamState) {
        let mut news = Vec::new();
        self.supervisor.note(state, &mut news);
        self.tell(news);
    }

    /// Saves all history files newer than our timeline, and returns where they lead. Returns `None`
    /// when it is unknown whether there is one more: no WAL of our timeline may be taken past its
    /// switchpoint.
    async fn survey(
        &mut self,
        restorer: &Restorer,
        tli: TimelineId,
        durable: Lsn,
    ) -> Result<Option<Course>, Ends> {
        let hub = Arc::clone(&self.shared.hub);
        let mut newer = Vec::new();
        for raw in tli.raw().saturating_add(1).. {
            let Some(next) = TimelineId::new(raw) else { break };
            let content = match hub.history(next) {
                Some(content) => content,
                None => match restorer.history(next).await.map_err(|_| Ends)? {
                    Ok(Some(content)) => {
                        let saved = self.shared.keeper.save_history(next, content.to_vec());
                        if let Err(error) = saved.await {
                            warn!(target: LOG, "could not save the history of timeline {next}: {error}");
                            return Ok(None);
                        }
                        info!(target: LOG, "restored log file \"{}\" from archive", History::file_name(next));
                        hub.set_history(next, content.clone());
                        content
                    }
                    Ok(None) => break,
                    Err(error) => {
                        if self.told.unread.replace(next) != Some(next) {
                            error!(
                                target: LOG,
                                "nothing is taken from the archive while the history of timeline \
                                 {next} cannot be read: {error}"
                            );
                        }
                        return Ok(None);
                    }
                },
            };
            match History::parse(next, content) {
                Ok(history) => newer.push(history),
                Err(_) => break,
            }
        }
        self.told.unread = None;
        let own = match hub.history(tli) {
            Some(content) => History::parse(tli, content).ok(),
            None => (tli == TimelineId::FIRST).then(History::first),
        };
        let course = own.map(|own| course(&own, &newer, durable));
        let course = course.unwrap_or_default();
        if let Some((branch, at)) = course.passed
            && self.told.passed.replace(branch) != Some(branch)
        {
            warn!(
                target: LOG,
                "timeline {branch} in the archive left ours at {at}, before our end, {durable}; \
                 it is not followed by the archive's word alone"
            );
        }
        Ok(Some(course))
    }

    /// Our timeline has ended, all of it is here, and `next` follows.
    async fn switch_to(
        &mut self,
        from: TimelineId,
        next: TimelineId,
        at: Lsn,
    ) -> Result<Advance, Ends> {
        let history = self.shared.hub.history(next);
        let history = history.and_then(|content| History::parse(next, content).ok());
        let fork = history.and_then(|history| history.switchpoint_of(from));
        if fork != Some(at) {
            error!(
                target: LOG,
                "the archive's histories do not agree on where timeline {from} ended: at {at}, and \
                 by that of timeline {next} {}",
                fork.map_or_else(|| "nowhere".to_owned(), |fork| format!("at {fork}"))
            );
            return Ok(Advance::Stuck);
        }
        match self.go_on_with(Switch { from, to: next, at }).await {
            Ok(()) => Ok(Advance::Further),
            Err(error) => {
                error!(target: LOG, "{error}");
                Ok(Advance::Stuck)
            }
        }
    }

    /// Checks a segment, on a thread that may wait for the disk.
    async fn judge(
        &self,
        (name, file): (SegmentName, RestoredFile),
        walker: Option<Walker>,
        (tli, known, upto): (TimelineId, Lsn, Lsn),
    ) -> Result<Judged, Unusable> {
        // The WAL up to a fork belongs to the parent, whichever file it is in.
        let rules = page_rules(&self.shared.hub, tli).map_err(Unusable::Unknown)?;
        let layout = Layout::new(&self.shared.hub.config.directory);
        let own = SegmentName { tli, ..name };
        let judging = tokio::task::spawn_blocking(move || {
            let walker = walker.unwrap_or_else(|| Walker::new(rules, name.no.start(name.size)));
            let look = || look(&layout, (name, own), &file, walker, (known, upto));
            match look() {
                Ok(Ok((walker, fault))) => {
                    let valid_to = walker.position();
                    Ok(Judged { file, walker, valid_to, fault })
                }
                Ok(Err(at)) => Err(Unusable::Differs(at)),
                Err(error) => Err(Unusable::Unknown(error.to_string())),
            }
        });
        judging.await.unwrap_or_else(|error| Err(Unusable::Unknown(error.to_string())))
    }

    /// Checks that the archive has our bytes where a difference was found.
    async fn compare_archive(
        &mut self,
        restorer: &Restorer,
        course: &Course,
        span: Span,
        turn: &mut Turn<'_>,
    ) -> Result<Advance, Ends> {
        let Some(identity) = self.shared.hub.identity() else { return Ok(Advance::Stuck) };
        let size = identity.segment_size;
        let ahead = Ahead::new(restorer, span.tli, size);
        let names = ahead.names(span.from.segment(size), course);
        let fetched = tokio::select! {
            fetched = restorer.segment(names) => fetched.map_err(|_| Ends)?,
            () = turn.cut_short() => return Ok(Advance::Over),
        };
        let (name, file) = match fetched {
            Ok(Some(file)) => file,
            Ok(None) => return Ok(Advance::Exhausted),
            Err(_) => return Ok(Advance::Stuck),
        };
        let layout = Layout::new(&self.shared.hub.config.directory);
        let own = SegmentName { tli: span.tli, ..name };
        let comparing = tokio::task::spawn_blocking(move || {
            let ours = open_own(&layout, own)?.ok_or(io::ErrorKind::NotFound)?;
            check::first_difference(&File::open(file.path())?, &ours, name, span.to)
        });
        let compared = comparing.await.unwrap_or_else(|error| Err(error.into()));
        match compared {
            Ok(None) => {
                let why = format!("{} has our WAL there", in_archive(&name.to_string()));
                match self.agreed(ARCHIVE, &why).await {
                    Ok(()) => return Ok(Advance::Further),
                    Err(error) => error!(target: LOG, "{error}"),
                }
            }
            Ok(Some(at)) => self.tell_unusable(name, Unusable::Differs(at)).await,
            Err(error) => self.tell_unusable(name, Unusable::Unknown(error.to_string())).await,
        }
        Ok(Advance::Stuck)
    }

    async fn tell_unusable(&mut self, name: SegmentName, unusable: Unusable) {
        match unusable {
            Unusable::Differs(at) => {
                let detail = "the archive has other WAL under positions that are stored here";
                self.keep_difference(&in_archive(&name.to_string()), at, detail).await;
                self.alarm(UpstreamState::ArchiveDiffers { file: name.to_string(), at });
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
        if fault.is_unwritten() && valid_to > name.no.start(name.size) {
            info!(target: LOG, "archive file \"{name}\" holds WAL up to {valid_to}: {fault}");
        } else {
            error!(
                target: LOG,
                "archive file \"{name}\" is not the WAL that belongs there from {valid_to} on, \
                 which is not used: {fault}"
            );
        }
    }
}

/// What was said once.
#[derive(Default)]
pub(super) struct Told {
    empty: bool,
    passed: Option<TimelineId>,
    unread: Option<TimelineId>,
    ended: Option<(SegmentName, Lsn)>,
}

/// The walk to the end of its WAL, or the first byte that differs from ours.
type Looked = io::Result<Result<(Walker, Option<WalkFault>), Lsn>>;

fn look(
    layout: &Layout,
    (name, own): (SegmentName, SegmentName),
    file: &RestoredFile,
    mut walker: Walker,
    (known, upto): (Lsn, Lsn),
) -> Looked {
    let theirs = File::open(file.path())?;
    if known > name.no.start(name.size)
        && let Some(ours) = open_own(layout, own)?
        && let Some(at) = check::first_difference(&theirs, &ours, name, known.min(upto))?
    {
        return Ok(Err(at));
    }
    let fault = check::walk_on(&mut walker, &theirs, name, upto)?;
    Ok(Ok((walker, fault)))
}

/// Runs `work`; keeps the stream, if any, alive meanwhile.
async fn during<T>(feed: &mut Option<Feed>, work: impl Future<Output = T>) -> io::Result<T> {
    match feed {
        Some(feed) => feed.during(work).await,
        None => Ok(work.await),
    }
}

/// Sends a segment's WAL from `from` on.
async fn pour(feed: &mut Feed, judged: &Judged, name: SegmentName, from: Lsn) -> io::Result<()> {
    let file = Arc::new(File::open(judged.file.path())?);
    let mut at = from;
    while at < judged.valid_to {
        let len = judged.valid_to.bytes_since(at).min(PIECE) as usize;
        let (file, offset) = (Arc::clone(&file), at.segment_offset(name.size));
        let reading = tokio::task::spawn_blocking(move || {
            let mut piece = vec![0; len];
            file.read_exact_at(&mut piece, offset).map(|()| piece)
        });
        let piece = feed.during(reading).await??;
        feed.send(&piece?, judged.valid_to).await?;
        at = at.saturating_add(len as u64);
    }
    Ok(())
}

/// Segments being fetched from the archive, in order.
struct Ahead<'a> {
    restorer: &'a Restorer,
    tli: TimelineId,
    size: SegmentSize,
    coming: VecDeque<(SegmentNo, Coming)>,
}

type Fetched = RestoreResult<(SegmentName, RestoredFile)>;
type Coming = oneshot::Receiver<Fetched>;

impl<'a> Ahead<'a> {
    fn new(restorer: &'a Restorer, tli: TimelineId, size: SegmentSize) -> Self {
        Self { restorer, tli, size, coming: VecDeque::new() }
    }

    /// Takes this segment; the ones after it are being fetched from now on.
    async fn take(&mut self, no: SegmentNo, course: &Course) -> Result<Fetched, Ends> {
        while self.coming.front().is_some_and(|(first, _)| *first != no) {
            self.coming.pop_front();
        }
        let mut next = self.coming.back().map_or(no, |(last, _)| last.next());
        while next.raw() <= no.raw().saturating_add(self.restorer.ahead())
            && course.ends.is_none_or(|(_, end)| next.start(self.size) < end)
        {
            self.coming.push_back((next, self.restorer.segment(self.names(next, course))));
            next = next.next();
        }
        match self.coming.pop_front() {
            Some((_, coming)) => coming.await.map_err(|_| Ends),
            None => Ok(Ok(None)),
        }
    }

    /// Where our timeline ends inside the segment, the file of the timeline that continues past it
    /// holds the same WAL, and is more likely to have been archived whole.
    fn names(&self, no: SegmentNo, course: &Course) -> Vec<SegmentName> {
        let size = self.size;
        let last = no.end(size).saturating_sub(1);
        let heir = course.history.as_ref().map(|history| history.tli_at(last));
        let heir = heir.filter(|heir| *heir != self.tli);
        let tlis = heir.into_iter().chain([self.tli]);
        tlis.map(|tli| SegmentName { tli, no, size }).collect()
    }
}
