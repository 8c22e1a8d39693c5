//! Copies of single segments. The scrub asks an upstream for a segment of ours that is damaged, on a
//! connection of its own beside the stream. What comes is proved by who asked for it.
//!
//! Nothing is asked while the hub is fenced, nor of a source against which evidence of another
//! history stands (I13).

use super::attempt::DEFAULT_ATTEMPT;
use super::environment::Environment;
use super::link::{Link, StartReply};
use super::questions::ask;
use crate::hub::Hub;
use crate::hub::course::Upstream;
use crate::upstream::login::start_replication;
use crate::wal::SegmentName;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// How many requests may wait. The scrub makes one at a time.
const REQUESTS: usize = 1;

/// How many pieces of a segment may wait for who asked. Until one is taken, nothing more is read
/// from the upstream.
const PIECES: usize = 4;

/// A part of the answer, in order. When they end without one of the last three, the hub shuts down.
#[derive(Debug, PartialEq, Eq)]
pub enum CopyPart {
    /// The next bytes of the segment.
    Wal(Vec<u8>),
    /// That was all of it.
    End,
    /// The host does not give it.
    Refused(String),
    /// The host could not be asked.
    Unreachable(String),
}

/// A segment that somebody wants from a host.
#[derive(Debug)]
struct CopyRequest {
    upstream: Arc<Upstream>,
    /// Which of its hosts.
    host: usize,
    name: SegmentName,
    parts: mpsc::Sender<CopyPart>,
}

/// Asks for copies.
#[derive(Clone, Debug)]
pub struct CopyClient(mpsc::Sender<CopyRequest>);

/// The requests that wait.
#[derive(Debug)]
pub struct CopyRequests(mpsc::Receiver<CopyRequest>);

/// A queue of requests.
pub fn copies() -> (CopyClient, CopyRequests) {
    let (requests, waiting) = mpsc::channel(REQUESTS);
    (CopyClient(requests), CopyRequests(waiting))
}

impl CopyClient {
    /// Asks a host of an upstream for a segment. Blocks until the request before is answered.
    pub fn ask(
        &self,
        upstream: &Arc<Upstream>,
        host: usize,
        name: SegmentName,
    ) -> mpsc::Receiver<CopyPart> {
        let (parts, answer) = mpsc::channel(PIECES);
        let request = CopyRequest { upstream: Arc::clone(upstream), host, name, parts };
        // When nobody takes it, the answer ends at once.
        drop(self.0.blocking_send(request));
        answer
    }
}

/// Answers requests until nobody can make one any more.
pub async fn copy_segments<E: Environment>(
    hub: Arc<Hub>,
    environment: E,
    mut requests: CopyRequests,
) {
    while let Some(request) = requests.0.recv().await {
        let end = copy(&hub, &environment, &request).await.err().unwrap_or(CopyPart::End);
        // Whoever does not want it any more is not told.
        drop(request.parts.send(end).await);
    }
}

/// Sends the segment.
///
/// # Errors
/// What is sent instead of the end.
async fn copy<E: Environment>(
    hub: &Hub,
    environment: &E,
    request: &CopyRequest,
) -> Result<(), CopyPart> {
    let refused = |why: String| CopyPart::Refused(why);
    if hub.course.fence().is_some() {
        return Err(refused("no upstream is asked while the hub is fenced".to_owned()));
    }
    let Some(identity) = hub.identity() else {
        return Err(refused("the cluster is not known yet".to_owned()));
    };
    let (config, conninfo) = (&hub.config, &request.upstream.conninfo);
    let Some(host) = conninfo.hosts.get(request.host) else {
        return Err(refused("no such host".to_owned()));
    };
    let unreachable =
        |why: &dyn ToString| CopyPart::Unreachable(format!("{host}: {}", why.to_string()));
    let limit = conninfo.connect_timeout.filter(|limit| !limit.is_zero());
    let open = Link::open(environment, conninfo, host, hub.instance, &config.cluster_name);
    let opened = timeout(limit.unwrap_or(DEFAULT_ATTEMPT), open).await;
    let link = opened.map_err(|_| unreachable(&"timeout expired while connecting"))?;
    let link = link.map_err(|fault| unreachable(&fault))?;

    let silence = Some(config.wal_receiver_timeout).filter(|limit| !limit.is_zero());
    let silence = silence.unwrap_or(DEFAULT_ATTEMPT);
    let late = |_| CopyPart::Unreachable(format!("{host}: no answer within wal_receiver_timeout"));
    let asked = timeout(silence, ask(link, &host.to_string())).await.map_err(late)?;
    let mut asked = asked.map_err(|fault| unreachable(&fault))?;
    if (asked.seen.system_id, asked.seen.segment_size)
        != (identity.system_id, identity.segment_size)
    {
        return Err(refused(format!("{host} is a server of another cluster")));
    }
    if hub.course.evidence().against(&asked.source).is_some() {
        return Err(refused(format!("{host} is not asked: evidence of another history stands")));
    }
    let sent = send(&mut asked.link, request, silence).await;
    asked.link.close().await;
    sent.map_err(|why| refused(format!("{host}: {why}")))
}

/// Sends what a stream from the segment's start on brings. It uses no slot: the stream beside it has
/// that.
async fn send<S>(link: &mut Link<S>, request: &CopyRequest, silence: Duration) -> Result<(), String>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let late = |_| "no answer within wal_receiver_timeout".to_owned();
    let CopyRequest { name, parts, .. } = request;
    let (mut at, end) = (name.no.start(name.size), name.no.end(name.size));
    // On its own timeline a server reads the file of this very name.
    let sql = start_replication(None, at, name.tli);
    let reply = timeout(silence, link.start(&sql)).await.map_err(late)?;
    match reply.map_err(|fault| fault.to_string())? {
        StartReply::Stream => {}
        StartReply::TimelineEnded { at, .. } => {
            return Err(format!("timeline {} ended at {at}", name.tli));
        }
    }
    while at < end {
        let more = timeout(silence, link.more_wal(at)).await.map_err(late)?;
        let mut wal = more.map_err(|fault| fault.to_string())?;
        let left = usize::try_from(end.bytes_since(at)).unwrap_or(usize::MAX);
        wal.truncate(left);
        at = at.saturating_add(wal.len() as u64);
        if parts.send(CopyPart::Wal(wal)).await.is_err() {
            return Err("it is not wanted any more".to_owned());
        }
    }
    Ok(())
}

#[cfg(all(test, not(walhub_loom)))]
impl CopyRequests {
    /// Sends what `answer` says of a host and a segment, until nobody asks any more.
    pub(crate) fn answer_with(mut self, answer: impl Fn(usize, SegmentName) -> Vec<CopyPart>) {
        while let Some(request) = self.0.blocking_recv() {
            for part in answer(request.host, request.name) {
                drop(request.parts.blocking_send(part));
            }
        }
    }
}
