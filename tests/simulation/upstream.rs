//! A hub's way to its WAL: the control thread's task (`follow`), with the
//! shipped judge and histories, and the archive as one more source.

use crate::archive::Condition;
use crate::client::{Client, Fault, Started, text};
use crate::hub::{News, Process};
use crate::network::{End, Node};
use crate::plants::Plant;
use crate::shared::{pause, promise};
use crate::truth::SYSTEM;
use bytes::{Bytes, BytesMut};
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use walhub::cluster::identity::Identity;
use walhub::cluster::instance::{INSTANCE_PATH, InstancePath};
use walhub::data::receive::Offer;
use walhub::hub::page_rules::page_rules;
use walhub::upstream::end::UpstreamEnd;
use walhub::upstream::position::Position;
use walhub::upstream::position::StartFrom;

use walhub::store::evidence::ARCHIVE;
use walhub::store::retention::Receiving;
use walhub::store::switch::Switch;
use walhub::timeline::History;
use walhub::upstream::judge::{Known, Seen, Verdict, judge};
use walhub::wal::{Lsn, SegmentName, SegmentNo, SystemId, TimelineId, Walker};
use walhub::wire::backend;
use walhub::wire::conninfo::{ServerNature, TargetSessionAttrs};
use walhub::wire::copy::xlog_data_header;
use walhub::wire::time::PgTime;

const REMOVED: &str = "58P01";

/// Why an attempt gave no stream.
enum Failure {
    Other(String),
    /// The upstream no longer has the WAL from there on.
    Removed(Lsn),
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::Other(format!("{fault:?}"))
    }
}

fn other(why: impl Into<String>) -> Failure {
    Failure::Other(why.into())
}

/// Keeps a hub connected.
pub(crate) struct Task {
    process: Rc<Process>,
    hosts: Vec<Node>,
    target: TargetSessionAttrs,
    /// The upstream no longer has this start of ours.
    removed: Cell<Option<Lsn>>,
}

/// A server that was asked who it is.
struct Asked {
    client: Client,
    seen: Seen,
    history: Option<Bytes>,
}

impl Task {
    pub(crate) async fn run(process: Rc<Process>, hosts: Vec<Node>, target: TargetSessionAttrs) {
        let task = Self { process, hosts, target, removed: Cell::new(None) };
        let mut place = 0;
        loop {
            let host = task.hosts[place % task.hosts.len()];
            let end = task.attempt(host).await;
            // A stream that ended with its timeline is asked for again at once.
            if !matches!(end, Some(UpstreamEnd::Timeline { .. })) {
                place += 1;
                for _ in 0..task.process.shared().below(20) {
                    pause().await;
                }
                if place.is_multiple_of(task.hosts.len()) {
                    task.restore().await;
                }
            }
        }
    }

    async fn attempt(&self, host: Node) -> Option<UpstreamEnd> {
        let process = &self.process;
        match self.establish(host).await {
            Ok(news) => process.inbox.borrow_mut().push_back(news),
            Err(Failure::Removed(asked)) => {
                process.shared().seen("upstream no longer has our WAL");
                if let Position::At { start, durable, .. } = process.hub.position()
                    && asked == start
                    && self.without_overlap(start, durable).is_some()
                {
                    self.removed.set(Some(start));
                }
                return None;
            }
            Err(Failure::Other(why)) => {
                process.shared().trace(|| format!("hub {} at {host:?}: {why}", self.id()));
                return None;
            }
        }
        Some(self.end().await)
    }

    fn id(&self) -> usize {
        self.process.ground.id
    }

    async fn end(&self) -> UpstreamEnd {
        loop {
            let end = self.process.ends.borrow_mut().pop_front();
            match end {
                Some(end) => {
                    if let UpstreamEnd::Diverged { at, .. } = &end {
                        self.process.shared().seen("upstream has other bytes");
                        self.process.shared().trace(|| format!("hub {}: alarm at {at}", self.id()));
                        self.process.ground.model.borrow_mut().alarms += 1;
                    }
                    return end;
                }
                None => pause().await,
            }
        }
    }

    fn without_overlap(&self, start: Lsn, durable: Lsn) -> Option<Lsn> {
        let identity = self.process.hub.identity()?;
        let open = durable.segment_start(identity.segment_size);
        (open > start).then_some(open)
    }

    fn known(&self) -> Known {
        let hub = &self.process.hub;
        Known {
            instance: hub.instance,
            cluster: hub.identity().map(|identity| (identity.system_id, identity.segment_size)),
            position: hub.position(),
            forks: self.own_forks(),
            differs: None,
            same: None,
            oldest: hub.holds.unbroken_from(),
            start_from: StartFrom::Current,
        }
    }

    fn own_forks(&self) -> Option<Vec<(TimelineId, Lsn)>> {
        let Position::At { tli, .. } = self.process.hub.position() else { return None };
        let history = History::parse(tli, self.process.hub.history(tli)?).ok()?;
        Some(history.forks())
    }

    /// From nothing to a stream.
    async fn establish(&self, host: Node) -> Result<News, Failure> {
        let (process, hub) = (&self.process, &self.process.hub);
        if hub.receiving() == Receiving::Paused {
            return Err(other("no space"));
        }
        let mut client = Client::open(process.shared(), Node::Hub(self.id()), host).await?;
        if self.target == TargetSessionAttrs::Primary && matches!(host, Node::Server(_)) {
            let rows = client.query("SHOW transaction_read_only").await?;
            let in_hot_standby = text(&rows[0], 0) == Some("on");
            let nature = ServerNature { in_hot_standby, read_only: false };
            if let Some(objection) = self.target.objection(nature) {
                return Err(other(objection));
            }
        }
        let mut asked = ask(client, host).await?;
        let (known, verdict) = loop {
            let known = self.known();
            match judge(&asked.seen, &known) {
                Verdict::Switch { next, at } => self.switch(&mut asked, next, at).await?,
                verdict => break (known, verdict),
            }
        };
        let (tli, mut start) = match verdict {
            Verdict::Start { tli, start } => (tli, start),
            Verdict::Not(state) => {
                if state.name() == "upstream refused" {
                    process.shared().seen("upstream refused");
                }
                return Err(other(state.to_string()));
            }
            verdict => return Err(other(format!("{verdict:?}"))),
        };
        let Asked { mut client, seen, history } = asked;
        self.save_histories(Some(&mut client), tli, seen.tli, history).await?;
        if let Position::At { durable, .. } = known.position
            && process.shared().plant == Plant::AsksWithoutOverlap
        {
            start = durable;
        }
        if let Position::At { durable, .. } = known.position
            && self.removed.get() == Some(start)
        {
            start = self.without_overlap(start, durable).unwrap_or(start);
        }
        hub.set_above(seen.path.clone());
        match client.start(None, start, tli).await {
            Ok(Started::Stream) => {}
            Ok(Started::TimelineEnded { next, at }) => {
                return Err(other(format!("timeline {tli} ended at {at}, {next} follows")));
            }
            Err(Fault::Server(error)) if error.sqlstate == REMOVED => {
                return Err(Failure::Removed(start));
            }
            Err(fault) => return Err(fault.into()),
        }
        match client.first_message().await {
            Err(Fault::Server(error)) if error.sqlstate == REMOVED => {
                return Err(Failure::Removed(start));
            }
            first => first?,
        }
        if known.position == Position::Empty {
            let identity = Identity {
                system_id: seen.system_id,
                segment_size: seen.segment_size,
                data_directory_mode: "0700".to_owned(),
                parameters: client.parameters.clone(),
            };
            process.begin(&identity, tli, start).await.map_err(other)?;
            hub.set_identity(Arc::new(identity));
        }
        let (conn, unread) = client.leave();
        let offer = Offer { tli, start, host: format!("{host:?}") };
        Ok(News::Upstream { conn, from: host, unread, offer })
    }

    /// As `Task::switch`.
    async fn switch(&self, asked: &mut Asked, next: TimelineId, at: Lsn) -> Result<(), Failure> {
        let newest = asked.seen.tli;
        let history = asked.history.clone();
        self.may_switch(at)?;
        self.save_histories(Some(&mut asked.client), newest, newest, history).await?;
        self.go_on(next, at).await
    }

    fn may_switch(&self, at: Lsn) -> Result<(), Failure> {
        let hub = &self.process.hub;
        let size = self.process.shared().truth.borrow().size;
        match at.segment_start(size) < hub.holds.unbroken_from() {
            true => Err(other(format!("the timeline ended at {at}, before our oldest WAL"))),
            false => Ok(()),
        }
    }

    async fn go_on(&self, next: TimelineId, at: Lsn) -> Result<(), Failure> {
        let hub = &self.process.hub;
        let Position::At { tli: from, .. } = hub.position() else {
            return Err(other("no timeline to leave"));
        };
        let history = hub.history(next).and_then(|content| History::parse(next, content).ok());
        let fork = history.and_then(|history| history.switchpoint_of(from));
        if fork != Some(at) {
            return Err(other(format!("histories differ about timeline {from}")));
        }
        self.removed.set(None);
        self.process.switch(Switch { from, to: next, at }).await.map_err(other)
    }

    /// As `Task::save_histories`; without a client from the archive.
    async fn save_histories(
        &self,
        mut client: Option<&mut Client>,
        tli: TimelineId,
        of: TimelineId,
        mut content: Option<Bytes>,
    ) -> Result<(), Failure> {
        let hub = &self.process.hub;
        for raw in (2..=tli.raw()).rev() {
            let Some(one) = TimelineId::new(raw) else { continue };
            let known = hub.history(one);
            let ours = match hub.position() {
                Position::At { tli, .. } => Some(tli),
                Position::Empty => None,
            };
            if known.is_some() && ours.is_some_and(|ours| one <= ours) {
                continue;
            }
            let file = match &mut client {
                _ if one == of => content.take(),
                Some(client) => fetch_history(client, one).await?,
                None => {
                    let shared = self.process.shared();
                    shared.archive.borrow_mut().history(&shared.truth.borrow(), one)
                }
            };
            let Some(file) = file.filter(|file| known.as_ref() != Some(file)) else { continue };
            let saved = self.process.keeper.save_history(one, file.to_vec()).await;
            saved.map_err(|fault| other(fault.to_string()))?;
            hub.set_history(one, file);
        }
        Ok(())
    }
}

/// Who is it?
async fn ask(mut client: Client, host: Node) -> Result<Asked, Failure> {
    let rows = client.query("IDENTIFY_SYSTEM").await?;
    let row = rows.first().expect("a row");
    let system_id = SystemId::new(text(row, 0).unwrap().parse().unwrap());
    let tli = TimelineId::new(text(row, 1).unwrap().parse().unwrap()).unwrap();
    let xlogpos: Lsn = text(row, 2).unwrap().parse().unwrap();
    let size = client.query("SHOW wal_segment_size").await?;
    assert_eq!(text(&size[0], 0), Some("1MB"));
    let segment_size = client.shared.truth.borrow().size;
    let history = match tli {
        TimelineId::FIRST => None,
        tli => fetch_history(&mut client, tli).await?,
    };
    let forks = history.clone().map(|content| History::parse(tli, content).unwrap().forks());
    let path = client.parameters.iter().find(|(name, _)| name == INSTANCE_PATH);
    let path = path.map_or(InstancePath::empty(), |(_, path)| path.parse().unwrap());
    let host = format!("{host:?}");
    let seen = Seen { host, system_id, tli, xlogpos, segment_size, forks, path };
    Ok(Asked { client, seen, history })
}

async fn fetch_history(client: &mut Client, tli: TimelineId) -> Result<Option<Bytes>, Fault> {
    match client.query(&format!("TIMELINE_HISTORY {tli}")).await {
        Ok(rows) => Ok(rows.first().and_then(|row| row.get(1).cloned().flatten())),
        Err(Fault::Server(error)) if error.sqlstate == REMOVED => Ok(None),
        Err(fault) => Err(fault),
    }
}

/// The archive as a source: the same rules as for an upstream, and every byte that is held
/// is compared. Only what is proven goes in: of a record that a segment does not end,
/// nothing can be said before the next one is here.
impl Task {
    async fn restore(&self) {
        let Position::At { tli, durable, start } = self.process.hub.position() else { return };
        let shared = Rc::clone(self.process.shared());
        // Without a record of ours nothing proves the rest of a record that a file begins with.
        let proves = start < durable || shared.calm.get();
        if !shared.archive.borrow().there || !proves || start.page_offset() > 0 {
            return;
        }
        let end = match self.probe_histories(tli).await {
            Ok(end) => end,
            Err(Failure::Other(why)) => {
                return shared.trace(|| format!("hub {} at the archive: {why}", self.id()));
            }
            Err(Failure::Removed(_)) => return,
        };
        let now = self.process.hub.position();
        if now != (Position::At { tli, durable, start }) {
            return;
        }
        let size = shared.truth.borrow().size;
        let mut no = durable.segment(size);
        let Some(first) = self.fetch((tli, no), durable, end) else { return };
        let Some(mut walker) = self.walk_own(tli, start, durable) else { return };
        shared.trace(|| format!("hub {}: restores from {start} on", self.id()));
        let (here, archive) = (Node::Hub(self.id()), Node::Archive(self.id()));
        let conn = {
            let mut network = shared.network.borrow_mut();
            let conn = network.connect(here, archive);
            network.accept(archive);
            conn
        };
        // No earlier than the cache can compare; the rest was compared with the files.
        let mut at = match shared.plant {
            Plant::ArchiveWinsSilently => durable,
            _ => start.max(no.start(size)),
        };
        let mut waiting = first[at.segment_offset(size) as usize..].to_vec();
        let offer = Offer { tli, start: at, host: ARCHIVE.to_owned() };
        let news = News::Upstream { conn, from: archive, unread: BytesMut::new(), offer };
        self.process.inbox.borrow_mut().push_back(news);
        let limit = end.map_or(Lsn::MAX, |(_, end)| end);
        let mut valid = walker.feed(&first[durable.segment_offset(size) as usize..]).is_ok();
        let mut open = true;
        loop {
            let to = walker.record_end().max(at).min(limit);
            let proven: Vec<u8> = waiting.drain(..to.bytes_since(at) as usize).collect();
            open = open && self.feed(conn, (at, to), &proven).await;
            at = to;
            if !valid {
                shared.seen("half a segment in the archive");
            }
            if !open || !valid || at >= limit {
                break;
            }
            no = no.next();
            let held = no.start(size);
            let Some(next) = self.fetch((tli, no), held, end) else {
                // When nothing is damaged any more, what is not proven is good all the same:
                // upstream may have nothing but what follows.
                if shared.calm.get() {
                    let rest = (at, walker.position().min(limit));
                    open = self.feed(conn, rest, &waiting).await;
                }
                break;
            };
            valid = walker.feed(&next).is_ok();
            waiting.extend_from_slice(&next);
        }
        if open
            && at >= limit
            && let Some((next, end)) = end
        {
            self.name_next(conn, next, end).await;
        }
        // What was sent arrives before the end does.
        while open && !shared.network.borrow().is_empty(conn) {
            open = shared.network.borrow().is_open(conn);
            pause().await;
        }
        shared.network.borrow_mut().close(conn, End::Server);
        self.end().await;
    }

    /// The walk over what we hold ourselves, from the last record on.
    fn walk_own(&self, tli: TimelineId, start: Lsn, durable: Lsn) -> Option<Walker> {
        let ground = &self.process.ground;
        let size = ground.shared.truth.borrow().size;
        let mut walker = Walker::new(page_rules(&self.process.hub, tli).ok()?, start);
        let mut at = start;
        while at < durable {
            let no = at.segment(size);
            let to = no.end(size).min(durable);
            let ours = self.own_file((tli, no))?;
            let offset = at.segment_offset(size) as usize;
            walker.feed(&ours[offset..offset + to.bytes_since(at) as usize]).ok()?;
            at = to;
        }
        Some(walker)
    }

    fn own_file(&self, (tli, no): (TimelineId, SegmentNo)) -> Option<Vec<u8>> {
        let ground = &self.process.ground;
        let name = SegmentName { tli, no, size: ground.shared.truth.borrow().size };
        let paths = [ground.layout.segment(name), ground.layout.partial(name)];
        paths.iter().find_map(|path| ground.disk.disk.views(path).0)
    }

    /// Histories first: the timeline that follows, and where ours ended, if the archive
    /// knows; switches when all of ours is here.
    async fn probe_histories(&self, tli: TimelineId) -> Result<Option<(TimelineId, Lsn)>, Failure> {
        let shared = self.process.shared();
        let probe = |raw: u32| {
            let one = TimelineId::new(raw).unwrap();
            shared.archive.borrow_mut().history(&shared.truth.borrow(), one)
        };
        let mut newest = None;
        let mut raw = tli.raw() + 1;
        while let Some(content) = probe(raw) {
            newest = Some((TimelineId::new(raw).unwrap(), content));
            raw += 1;
        }
        let Some((newest, content)) = newest else { return Ok(None) };
        let history = History::parse(newest, content.clone()).unwrap();
        let identity = self.process.hub.identity().ok_or_else(|| other("no cluster"))?;
        let seen = Seen {
            host: "archive".to_owned(),
            system_id: SYSTEM,
            tli: newest,
            xlogpos: Lsn::MAX,
            segment_size: identity.segment_size,
            forks: Some(history.forks()),
            path: InstancePath::empty(),
        };
        match judge(&seen, &self.known()) {
            Verdict::Switch { next, at } => {
                self.may_switch(at)?;
                self.save_histories(None, newest, newest, Some(content)).await?;
                self.go_on(next, at).await?;
                shared.seen("switched by the archive");
                Ok(None)
            }
            Verdict::Start { .. } => {
                let fork = history.next_after(tli).zip(history.switchpoint_of(tli));
                self.save_histories(None, newest, newest, Some(content)).await?;
                Ok(fork)
            }
            // A branch that is not ours: as if it were not there.
            _ => Ok(None),
        }
    }

    /// A segment's file; none when it is not there, or when it is not what we hold.
    fn fetch(
        &self,
        (tli, no): (TimelineId, SegmentNo),
        held: Lsn,
        end: Option<(TimelineId, Lsn)>,
    ) -> Option<Vec<u8>> {
        let (process, shared) = (&self.process, self.process.shared());
        let size = shared.truth.borrow().size;
        // A segment in which the timeline ended may be there under the next one's name.
        let heir = end.filter(|(_, end)| end.segment(size) == no).map(|(next, _)| next);
        let (file, condition) = [Some(tli), heir].into_iter().flatten().find_map(|name| {
            let truth = shared.truth.borrow();
            shared.archive.borrow_mut().segment(&truth, (name, no), held)
        })?;
        if file.len() as u64 != size.bytes() {
            return None;
        }
        if shared.plant != Plant::ArchiveWinsSilently
            && let Some(at) = self.differs((tli, no), held, &file)
        {
            promise!(shared, condition != Condition::Good, "a good segment differs at {at}");
            shared.seen("archive has other bytes");
            shared.trace(|| format!("hub {}: the archive differs at {at}", self.id()));
            process.ground.model.borrow_mut().alarms += 1;
            return None;
        }
        Some(file)
    }

    /// The first place before `held` at which a restored segment is not what our file says.
    fn differs(&self, (tli, no): (TimelineId, SegmentNo), held: Lsn, file: &[u8]) -> Option<Lsn> {
        let size = self.process.shared().truth.borrow().size;
        let ours = self.own_file((tli, no))?;
        let len = held.bytes_since(no.start(size)).min(size.bytes()) as usize;
        let place = ours.iter().zip(file).take(len).position(|(ours, theirs)| ours != theirs);
        place.map(|place| no.start(size).saturating_add(place as u64))
    }

    /// Sends WAL as an upstream would. False: nobody listens.
    async fn feed(&self, conn: u64, (from, to): (Lsn, Lsn), wal: &[u8]) -> bool {
        for message in walhub::fanout::message::cut(from, to, u64::MAX) {
            let header = xlog_data_header(message.start, to, PgTime::new(0), message.wal_len());
            let offset = message.start.bytes_since(from) as usize;
            let wal = &wal[offset..offset + message.wal_len()];
            if !self.send(conn, &[&header[..], wal].concat()).await {
                return false;
            }
        }
        true
    }

    async fn send(&self, conn: u64, bytes: &[u8]) -> bool {
        let shared = self.process.shared();
        let (mut sent, mut ignored) = (0, BytesMut::new());
        while sent < bytes.len() {
            let count = {
                let mut network = shared.network.borrow_mut();
                network.receive(conn, End::Server, &mut ignored);
                if !network.is_open(conn) {
                    return false;
                }
                network.send(conn, End::Server, &bytes[sent..])
            };
            sent += count;
            if count == 0 {
                pause().await;
            }
        }
        true
    }

    /// The end of the timeline, as an upstream says it.
    async fn name_next(&self, conn: u64, next: TimelineId, at: Lsn) {
        let mut out = BytesMut::new();
        backend::copy_done(&mut out);
        backend::row_description(&mut out, &[]);
        let (next, at) = (next.to_string(), at.to_string());
        backend::data_row(&mut out, &[Some(next.as_bytes()), Some(at.as_bytes())]);
        self.process.shared().seen("timeline's end from the archive");
        self.send(conn, &out).await;
    }
}
