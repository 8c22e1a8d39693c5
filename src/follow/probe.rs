//! Is there an upstream that could continue from the archive's position, or one with which something
//! is wrong? This is asked concurrently, so that a host that does not answer delays nothing.

use super::Parts;
use super::attempt::{DEFAULT_ATTEMPT, FIRST_MESSAGE};
use super::difference::{self, barred_by};
use super::environment::Environment;
use super::heard::HeardUpstreams;
use super::histories::forks_of;
use super::link::{Link, LinkFault, StartReply};
use super::outcome::AttemptFailure;
use super::proof::{Shown, compare_back, refuses};
use super::questions::{IdentifiedServer, ask, nature};
use crate::hub::Hub;
use crate::hub::course::Upstream;
use crate::store::evidence::WalSource;
use crate::upstream::judge::{Known, Verdict, judge};
use crate::upstream::login::start_replication;
use crate::upstream::position::Position;
use crate::upstream::position::StartFrom;
use crate::upstream::state::UpstreamState;
use crate::wire::conninfo::{Conninfo, Host, TargetSessionAttrs};
use std::sync::Arc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::debug;

/// The question, asked every `wal_retrieve_retry_interval` until the answer is yes, or is news on which
/// an operator must act. Dropping it stops the asking.
pub(super) struct Probe {
    asking: JoinHandle<()>,
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.asking.abort();
    }
}

impl Probe {
    pub(super) fn start<E: Environment>(
        parts: &Arc<Parts<E>>,
        upstream: &Arc<Upstream>,
        heard: &Arc<HeardUpstreams>,
    ) -> Self {
        let asking = ask_all(Arc::clone(parts), Arc::clone(upstream), Arc::clone(heard));
        Self { asking: tokio::spawn(asking) }
    }

    /// Is an attempt worth it?
    pub(super) fn has_found(&self) -> bool {
        self.asking.is_finished()
    }

    /// Completes when an attempt is worth it.
    pub(super) async fn found(&mut self) {
        if !self.asking.is_finished() {
            // It neither panics nor is aborted while it is awaited.
            drop((&mut self.asking).await);
        }
    }
}

async fn ask_all<E: Environment>(
    parts: Arc<Parts<E>>,
    upstream: Arc<Upstream>,
    heard: Arc<HeardUpstreams>,
) {
    let config = Arc::clone(&parts.hub.config);
    let hosts = &upstream.conninfo.hosts;
    loop {
        tokio::time::sleep(config.wal_retrieve_retry_interval).await;
        for host in hosts {
            let answered = answer(&parts, &upstream.conninfo, host, &heard).await;
            // An attempt says what is wrong, and does what follows: keeps evidence, mends a record.
            if let Ok(state) = &answered
                && heard.is_news(&host.to_string(), state.as_ref())
            {
                return;
            }
            match answered {
                Ok(None) => return,
                Ok(Some(state)) => debug!(target: super::LOG, "{host}: {state}"),
                Err(fault) => debug!(target: super::LOG, "{host}: {fault}"),
            }
        }
    }
}

/// Could this host continue? Returns `None` if so.
async fn answer<E: Environment>(
    parts: &Arc<Parts<E>>,
    conninfo: &Conninfo,
    host: &Host,
    heard: &HeardUpstreams,
) -> Result<Option<UpstreamState>, LinkFault> {
    let config = &parts.hub.config;
    let limit = conninfo.connect_timeout.filter(|t| !t.is_zero()).unwrap_or(DEFAULT_ATTEMPT);
    let late = |_| LinkFault::Connect(std::io::ErrorKind::TimedOut.into());
    let open =
        Link::open(&parts.environment, conninfo, host, parts.hub.instance, &config.cluster_name);
    let mut link = heard.link(timeout(limit, open).await.map_err(late)?)?;
    let target = conninfo.target_session_attrs;
    let questions = async {
        if !matches!(target, TargetSessionAttrs::Any | TargetSessionAttrs::PreferStandby)
            && let Some(why) = target.objection(nature(&mut link).await?)
        {
            return Ok(Err(UpstreamState::Disconnected { why: why.to_owned() }));
        }
        Ok::<_, LinkFault>(Ok(ask(link, &host.to_string()).await?))
    };
    let mut asked = match timeout(DEFAULT_ATTEMPT, questions).await.map_err(late)?? {
        Ok(asked) => asked,
        Err(state) => return Ok(Some(state)),
    };
    heard.server(&parts.hub, &asked.seen, &asked.source);
    let found = match known(&parts.hub, &asked.source) {
        Ok(known) => judged(parts, &mut asked, known).await,
        Err(why) => Ok(Some(UpstreamState::Disconnected { why })),
    };
    asked.link.close().await;
    found
}

/// Could this server continue? Returns `None` if so.
async fn judged<E: Environment>(
    parts: &Arc<Parts<E>>,
    asked: &mut IdentifiedServer<E::Socket>,
    known: Known,
) -> Result<Option<UpstreamState>, LinkFault> {
    let late = |_| LinkFault::Connect(std::io::ErrorKind::TimedOut.into());
    let IdentifiedServer { link, seen, source, .. } = asked;
    let mut verdict = judge(seen, &known);
    if let Verdict::Prove(shared) = verdict {
        match compare_back(parts, link, shared, DEFAULT_ATTEMPT).await {
            Ok(Shown::Same(proof)) if refuses(&parts.hub, &proof) => {
                let (host, why) = (seen.host.clone(), proof.to_string());
                return Ok(Some(UpstreamState::Unproved { host, why }));
            }
            Ok(Shown::Same(_)) => {}
            Ok(Shown::Not(compared)) => return Ok(compared.diverged(&parts.hub, source)),
            Err(AttemptFailure::Link(fault)) => return Err(fault),
            Err(AttemptFailure::State(state)) => return Ok(Some(state)),
            Err(AttemptFailure::Removed { .. }) => return Ok(None),
        }
        verdict = judge(seen, &Known { shown: Some(shared), ..known });
    }
    let answer = async {
        match verdict {
            Verdict::Not(state) => Ok(Some(state)),
            Verdict::Compare(span) => {
                let compared = difference::compare(parts, link, (span, span.from), seen.tli).await;
                compared.map(|compared| compared.diverged(&parts.hub, source))
            }
            Verdict::CompareNoted(span) => {
                let evidence = parts.hub.course.evidence();
                let Some(barring) = evidence.against(source) else { return Ok(None) };
                let compared = difference::compare_noted(link, span, barring, seen.tli).await;
                compared.map(|compared| compared.diverged(&parts.hub, source))
            }
            Verdict::Prove(_) | Verdict::Switch { .. } | Verdict::FindOldest { .. } => Ok(None),
            // Only its answer shows whether it still has the WAL.
            Verdict::Start { tli, start } => {
                match link.start(&start_replication(None, start, tli)).await? {
                    StartReply::TimelineEnded { .. } => Ok(None),
                    StartReply::Stream => {
                        match timeout(FIRST_MESSAGE, link.first_message()).await {
                            Ok(Err(fault)) => Err(fault),
                            Ok(Ok(())) | Err(_) => Ok(None),
                        }
                    }
                }
            }
        }
    };
    timeout(DEFAULT_ATTEMPT, answer).await.map_err(late)?
}

/// What this hub holds now, while WAL is coming in, and what counts when `source` is judged.
fn known(hub: &Hub, source: &WalSource) -> Result<Known, String> {
    let identity = hub.identity();
    let (mut position, mut forks) = (Position::Empty, None);
    if let (Some(cell), Some(identity)) = (hub.current_cell(), &identity) {
        let (tli, durable) = (cell.tli(), cell.durable());
        let start = durable.segment_start(identity.segment_size);
        position = Position::At { tli, durable, start };
        forks = forks_of(hub, tli)?;
    }
    Ok(Known {
        instance: hub.instance,
        cluster: identity.map(|identity| (identity.system_id, identity.segment_size)),
        position,
        forks,
        differs: barred_by(hub, source),
        shown: None,
        start_from: StartFrom::Current,
    })
}
