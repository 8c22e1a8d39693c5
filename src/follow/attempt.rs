//! One attempt: from nothing to a stream of a host, and the stream's life.

use super::environment::{Environment, HandOverFault, Stream};
use super::joining::{Joining, StreamStart, warn_of_weak};
use super::link::{Link, LinkFault, StartReply};
use super::orders::UpstreamOrder;
use super::outcome::AttemptFailure;
use super::progress::Preference;
use super::questions::{self, IdentifiedServer, ask, find_oldest, nature};
use super::{Parts, Task};
use crate::cluster::identity::Identity;
use crate::config::MissingSlot;
use crate::data::handoff::ToCore;
use crate::store::control_file::{Cluster, ControlFile};
use crate::store::evidence::WalSource;
use crate::store::retention::Receiving;
use crate::upstream::login::start_replication;
use crate::upstream::position::Position;
use crate::upstream::proof::Proof;
use crate::upstream::state::UpstreamState;
use crate::wal::{Lsn, TimelineId};
use crate::wire::conninfo::TargetSessionAttrs;
use crate::wire::sqlstate;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// How long an attempt may take when neither connect_timeout nor wal_receiver_timeout is set.
pub(super) const DEFAULT_ATTEMPT: Duration = Duration::from_secs(60);

/// The same with an archive.
const SHORT_ATTEMPT: Duration = Duration::from_secs(5);

/// The longest wait for the first message of a stream. Our start is nearly always before the
/// upstream's end, so it comes at once.
pub(super) const FIRST_MESSAGE: Duration = Duration::from_secs(1);

/// A link whose stream has begun.
struct Begun<S> {
    link: Link<S>,
    tli: TimelineId,
    start: Lsn,
    source: WalSource,
    proof: Option<Proof>,
}

impl<E: Environment> Task<E> {
    /// Connects, and stays until the stream has ended. An order that ends it is returned, to be
    /// carried out afterwards.
    pub(super) async fn attempt(
        &mut self,
        index: usize,
        orders: &mut mpsc::Receiver<UpstreamOrder>,
    ) -> Option<UpstreamOrder> {
        let upstream = Arc::clone(&self.upstream);
        let Some(host) = upstream.conninfo.hosts.get(index) else {
            self.progress.is_interrupted();
            return None;
        };
        let name = host.to_string();
        let established = tokio::select! {
            biased;
            order = orders.recv() => {
                self.progress.is_interrupted();
                return order;
            }
            established = self.establish(index, &name) => established,
        };
        let begun = match established {
            Ok(begun) => begun,
            Err(failure) => {
                self.note_refusal(&name, &failure);
                self.failed(index, name, failure).await;
                return None;
            }
        };
        let Begun { link, tli, start, source, proof } = begun;
        let (socket, unread) = link.leave();
        let stream = Stream { socket, unread, start, tli, source: source.clone() };
        if let Err(fault) = self.parts.environment.hand_over(stream).await {
            let why = match fault {
                HandOverFault::Socket(error) => format!("{name}: {error}"),
                HandOverFault::QueueFull => fault.to_string(),
            };
            self.ended(index, UpstreamState::Disconnected { why }).await;
            return None;
        }
        self.source = source;
        warn_of_weak(proof.as_ref(), &name);
        self.parts.hub.course.joined(proof);
        self.note_agreement(&name).await;
        self.progress.begins();
        let mut news = Vec::new();
        let state = UpstreamState::Streaming { host: name.clone(), tli, start };
        self.supervisor.started(index, state, &mut news);
        self.tell(news);
        self.stay(index, start, orders).await
    }

    /// The core receives: waits for the end of the stream, or for an order that ends it. The stream
    /// lasts until that order is carried out.
    async fn stay(
        &mut self,
        index: usize,
        start: Lsn,
        orders: &mut mpsc::Receiver<UpstreamOrder>,
    ) -> Option<UpstreamOrder> {
        let end = loop {
            tokio::select! {
                biased;
                end = self.ends.recv() => break end,
                Some(order) = orders.recv() => match self.interrupts(&order) {
                    true => {
                        self.progress.is_interrupted();
                        return Some(order);
                    }
                    false => self.obey(order).await,
                },
            }
        };
        self.heard.answer();
        match end {
            Some(end) => self.stream_ended(index, start, end).await,
            // The control thread ends.
            None => self.progress.stops(),
        }
        None
    }

    /// From nothing to a stream.
    async fn establish(
        &mut self,
        index: usize,
        name: &str,
    ) -> Result<Begun<E::Socket>, AttemptFailure> {
        let config = Arc::clone(&self.parts.hub.config);
        if self.parts.hub.receiving() == Receiving::Paused {
            let why = self.parts.hub.no_space();
            return Err(AttemptFailure::State(UpstreamState::NoSpace { why }));
        }
        let upstream = Arc::clone(&self.upstream);
        let conninfo = &upstream.conninfo;
        let Some(host) = conninfo.hosts.get(index) else {
            return Err(AttemptFailure::other("no such host"));
        };
        let instance = self.parts.hub.instance;
        let limit = conninfo.connect_timeout.filter(|t| !t.is_zero());
        let limit = limit.unwrap_or_else(|| self.patience());
        let environment = &self.parts.environment;
        let open = Link::open(environment, conninfo, host, instance, &config.cluster_name);
        let link = match timeout(limit, open).await {
            Ok(link) => self.heard.link(link)?,
            Err(_) => {
                return Err(AttemptFailure::other(format!(
                    "{name}: timeout expired while connecting"
                )));
            }
        };
        let limit = Some(config.wal_receiver_timeout).filter(|t| !t.is_zero());
        let limit = limit.unwrap_or(DEFAULT_ATTEMPT);
        self.begin(link, name, limit).await
    }

    /// How long a host may take to accept us when no timeout is set. With an archive there is
    /// something better to do in the meantime.
    fn patience(&self) -> Duration {
        let interval = self.parts.hub.config.wal_retrieve_retry_interval;
        match self.parts.archive {
            Some(_) => DEFAULT_ATTEMPT.min(SHORT_ATTEMPT.max(interval)),
            None => DEFAULT_ATTEMPT,
        }
    }

    /// Asks the server who it is, has it show our WAL, and asks for a stream. Each of the three has
    /// to be answered within `limit`, but a long comparison may take longer.
    async fn begin(
        &mut self,
        mut link: Link<E::Socket>,
        name: &str,
        limit: Duration,
    ) -> Result<Begun<E::Socket>, AttemptFailure> {
        let late =
            |_| AttemptFailure::other(format!("{name}: no answer within wal_receiver_timeout"));
        let objection = timeout(limit, self.objection(&mut link)).await.map_err(late)?;
        if let Some(objection) = objection? {
            link.close().await;
            return Err(AttemptFailure::other(format!("{name}: {objection}")));
        }
        let mut asked = timeout(limit, ask(link, name)).await.map_err(late)??;
        self.heard.server(&self.parts.hub, &asked.seen, &asked.source);
        let joining = match self.join(&mut asked, limit).await {
            Err(AttemptFailure::State(state)) => {
                asked.link.close().await;
                return Err(AttemptFailure::State(state));
            }
            joining => joining?,
        };
        let first = FIRST_MESSAGE.min(limit / 2);
        // An upstream that has answered everything and has nothing to send is not late.
        timeout(limit + first, self.request(asked, joining, name, first)).await.map_err(late)?
    }

    /// Asks for a stream and waits at most `first` for its first message.
    async fn request(
        &mut self,
        asked: IdentifiedServer<E::Socket>,
        joining: Joining,
        name: &str,
        first: Duration,
    ) -> Result<Begun<E::Socket>, AttemptFailure> {
        let hub = Arc::clone(&self.parts.hub);
        let Joining { tli, at, position, proof } = joining;
        let IdentifiedServer { mut link, seen, data_directory_mode, history, source } = asked;
        self.save_histories(&mut link, tli, seen.tli, history).await?;
        if seen.path.is_empty() {
            self.warn_of_apply(&mut link).await?;
        }
        let slot = hub.config.primary_slot_name.as_deref();
        if position == Position::Empty && hub.config.missing_slot == MissingSlot::Create {
            // Before a start is chosen, so that its WAL stays.
            questions::create(&mut link, slot).await?;
        }
        let mut start = match at {
            StreamStart::Oldest { newest } => {
                find_oldest(&mut link, tli, newest, seen.segment_size).await?
            }
            StreamStart::At(start) => start,
        };
        if let Position::At { durable, .. } = position
            && self.progress.lacks(start)
        {
            start = self.without_overlap(start, durable).unwrap_or(start);
        }
        if hub.above() != seen.path {
            hub.set_above(seen.path);
            // In a task of its own: this attempt may be given up while a core's queue is full.
            tokio::spawn(end_hub_streams(Arc::clone(&self.parts)));
        }
        self.start(&mut link, name, (tli, start), first).await?;
        // The stream is certain; its first bytes wait in the socket.
        let identity = Arc::new(Identity {
            system_id: seen.system_id,
            segment_size: seen.segment_size,
            data_directory_mode,
            parameters: link.welcome.parameters.clone(),
        });
        self.remember(identity, position, tli, start).await?;
        Ok(Begun { link, tli, start, source, proof })
    }

    /// Asks for the stream, and waits at most `first` for its first message.
    async fn start(
        &self,
        link: &mut Link<E::Socket>,
        name: &str,
        (tli, start): (TimelineId, Lsn),
        first: Duration,
    ) -> Result<(), AttemptFailure> {
        let config = &self.parts.hub.config;
        let slot = config.primary_slot_name.as_deref();
        let sql = start_replication(slot, start, tli);
        let started = match link.start(&sql).await {
            Err(LinkFault::Server(error))
                if error.sqlstate == sqlstate::UNDEFINED_OBJECT && slot.is_some() =>
            {
                if config.missing_slot == MissingSlot::Refuse {
                    return Err(AttemptFailure::other(format!(
                        "{name}: {error}; create it there, or start the hub with --create-slot"
                    )));
                }
                questions::create(link, slot).await?;
                link.start(&sql).await
            }
            other => other,
        };
        let first = match started {
            Ok(StartReply::Stream) => timeout(first, link.first_message()).await,
            Ok(StartReply::TimelineEnded { next, at }) => {
                let why = format!("{name}: timeline {tli} ended at {at}, timeline {next} follows");
                return Err(AttemptFailure::other(why));
            }
            Err(fault) => Ok(Err(fault)),
        };
        match first {
            Ok(Err(LinkFault::Server(error))) if error.sqlstate == sqlstate::UNDEFINED_FILE => {
                Err(AttemptFailure::Removed { start, message: error.message })
            }
            Ok(first) => Ok(first?),
            // At the very end of its WAL there is nothing to send yet.
            Err(_) => Ok(()),
        }
    }

    /// Why this server is not the one that `target_session_attrs` asks for.
    async fn objection(
        &mut self,
        link: &mut Link<E::Socket>,
    ) -> Result<Option<&'static str>, LinkFault> {
        let target = self.upstream.conninfo.target_session_attrs;
        if target == TargetSessionAttrs::Any {
            return Ok(None);
        }
        let objection = target.objection(nature(link).await?);
        if target == TargetSessionAttrs::PreferStandby && objection.is_some() {
            return Ok(match self.progress.meets_no_standby() {
                Preference::GivenUp => None,
                Preference::Waits => objection,
            });
        }
        Ok(objection)
    }

    async fn remember(
        &self,
        identity: Arc<Identity>,
        position: Position,
        tli: TimelineId,
        start: Lsn,
    ) -> Result<(), AttemptFailure> {
        let hub = &self.parts.hub;
        let keeper = &self.parts.keeper;
        let (mode, parameters) =
            (identity.data_directory_mode.clone(), identity.parameters.clone());
        let saved = match position {
            Position::Empty => {
                let cluster = Cluster {
                    system_id: identity.system_id,
                    segment_size: identity.segment_size,
                    data_directory_mode: mode,
                    parameters,
                    timeline: tli,
                    start,
                    sealed: Vec::new(),
                };
                let control = ControlFile { instance: hub.instance, cluster: Some(cluster) };
                keeper.save_control(control).await
            }
            Position::At { .. } if hub.identity().is_some_and(|old| *old == *identity) => {
                return Ok(());
            }
            Position::At { .. } => keeper.save_identity(mode, parameters).await,
        };
        saved.map_err(|fault| {
            AttemptFailure::unsaved(hub, "could not write the control file", &fault)
        })?;
        hub.set_identity(identity);
        Ok(())
    }
}

/// Tells every core that the hubs below must check their path again.
async fn end_hub_streams<E: Environment>(parts: Arc<Parts<E>>) {
    for core in &parts.cores {
        core.insist(ToCore::EndHubStreams).await;
    }
}
