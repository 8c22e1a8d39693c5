//! What the task asks a server before a stream, command by command.

use super::LOG;
use super::link::{Link, LinkFault, StartReply, text};
use crate::cluster::instance::InstancePath;
use crate::store::evidence::WalSource;
use crate::timeline::History;
use crate::upstream::judge::Seen;
use crate::upstream::login::{create_slot, start_replication};
use crate::upstream::oldest::OldestSearch;
use crate::wal::{Lsn, SegmentSize, SystemId, TimelineId};
use crate::wire::conninfo::ServerNature;
use crate::wire::sqlstate;
use crate::wire::units::{SizeUnit, parse_bytes};
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

/// A link whose server has identified itself.
pub(super) struct IdentifiedServer<S> {
    pub(super) link: Link<S>,
    pub(super) seen: Seen,
    pub(super) data_directory_mode: String,
    /// The history file of its timeline.
    pub(super) history: Option<Bytes>,
    /// Who it is, should its bytes differ from ours.
    pub(super) source: WalSource,
}

/// Asks the server who it is, in a walreceiver's order; 13 and 14 standbys want IDENTIFY_SYSTEM
/// first.
pub(super) async fn ask<S>(mut link: Link<S>, name: &str) -> Result<IdentifiedServer<S>, LinkFault>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let invalid = |what: &str| LinkFault::Protocol(format!("invalid {what}"));
    let rows = link.query("IDENTIFY_SYSTEM").await?;
    let identified = rows.first().and_then(|row| {
        let system_id = SystemId::new(text(row, 0)?.parse().ok()?);
        let tli = TimelineId::new(text(row, 1)?.parse().ok()?)?;
        Some((system_id, tli, text(row, 2)?.parse::<Lsn>().ok()?))
    });
    let (system_id, tli, xlogpos) =
        identified.ok_or_else(|| invalid("answer to IDENTIFY_SYSTEM"))?;
    let size = show(&mut link, "wal_segment_size").await?;
    let segment_size = parse_bytes(&size, SizeUnit::Byte)
        .ok()
        .and_then(SegmentSize::new)
        .ok_or_else(|| invalid("answer to SHOW wal_segment_size"))?;
    let data_directory_mode = show(&mut link, "data_directory_mode").await?;
    if !matches!(data_directory_mode.as_str(), "0700" | "0750") {
        return Err(invalid("answer to SHOW data_directory_mode"));
    }
    let history =
        if tli == TimelineId::FIRST { None } else { fetch_history(&mut link, tli).await? };
    let forks = match &history {
        Some(content) => {
            let history = History::parse(tli, content.clone()).map_err(|fault| {
                LinkFault::Protocol(format!("history of timeline {tli}: {fault}"))
            })?;
            Some(history.forks())
        }
        None => None,
    };
    let path = link.welcome.path.clone();
    let server = name_of_its_own(&mut link, &path).await?;
    let source = WalSource { name: name.to_owned(), server };
    let host = name.to_owned();
    let seen = Seen { host, system_id, tli, xlogpos, segment_size, forks, path };
    Ok(IdentifiedServer { link, seen, data_directory_mode, history, source })
}

/// What a server says of itself, whichever name it is reached by: a hub its ID, PostgreSQL its
/// `cluster_name`, if it has one.
async fn name_of_its_own<S>(
    link: &mut Link<S>,
    path: &InstancePath,
) -> Result<Option<String>, LinkFault>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    if let Some(own) = path.ids().first() {
        return Ok(Some(format!("hub {own}")));
    }
    match show(link, "cluster_name").await {
        Ok(name) if name.is_empty() => Ok(None),
        Ok(name) => Ok(Some(format!("cluster_name {name}"))),
        // It has no such setting, because it is not PostgreSQL.
        Err(LinkFault::Server(_)) => Ok(None),
        Err(fault) => Err(fault),
    }
}

/// Is it in recovery, and is it read-only?
pub(super) async fn nature<S>(link: &mut Link<S>) -> Result<ServerNature, LinkFault>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let said = |link: &Link<S>, name: &str| {
        let parameter = link.welcome.parameters.iter().find(|(known, _)| known == name);
        parameter.map(|(_, value)| value == "on")
    };
    let in_hot_standby = match said(link, "in_hot_standby") {
        Some(known) => known,
        // 13 does not report it; in recovery every transaction is read-only.
        None => show(link, "transaction_read_only").await? == "on",
    };
    let read_only = said(link, "default_transaction_read_only").unwrap_or(false);
    Ok(ServerNature { in_hot_standby, read_only })
}

pub(super) async fn show<S>(link: &mut Link<S>, name: &str) -> Result<String, LinkFault>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let rows = link.query(&format!("SHOW {name}")).await?;
    let value = rows.first().and_then(|row| text(row, 0));
    value.map(str::to_owned).ok_or_else(|| LinkFault::Protocol(format!("no answer to SHOW {name}")))
}

/// The file's content; `None` when the upstream has no such file.
pub(super) async fn fetch_history<S>(
    link: &mut Link<S>,
    tli: TimelineId,
) -> Result<Option<Bytes>, LinkFault>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    match link.query(&format!("TIMELINE_HISTORY {tli}")).await {
        Ok(rows) => {
            let name = History::file_name(tli);
            let row = rows.first().filter(|row| text(row, 0) == Some(name.as_str()));
            let content = row.and_then(|row| row.get(1).cloned().flatten());
            let missing = || LinkFault::Protocol(format!("no answer to TIMELINE_HISTORY {tli}"));
            content.map(Some).ok_or_else(missing)
        }
        Err(LinkFault::Server(error)) if error.sqlstate == sqlstate::UNDEFINED_FILE => Ok(None),
        Err(fault) => Err(fault),
    }
}

pub(super) async fn create<S>(link: &mut Link<S>, slot: Option<&str>) -> Result<(), LinkFault>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Some(name) = slot else { return Ok(()) };
    match link.query(&create_slot(name, link.welcome.server_version_num())).await {
        Ok(_) => {
            tracing::info!(target: LOG, slot = name, "created the slot at the upstream");
            Ok(())
        }
        Err(LinkFault::Server(error)) if error.sqlstate == sqlstate::DUPLICATE_OBJECT => Ok(()),
        Err(fault) => Err(fault),
    }
}

pub(super) async fn find_oldest<S>(
    link: &mut Link<S>,
    tli: TimelineId,
    newest: Lsn,
    size: SegmentSize,
) -> Result<Lsn, LinkFault>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut search = OldestSearch::new(newest, size);
    while let Some(lsn) = search.probe() {
        let there = match link.start(&start_replication(None, lsn, tli)).await {
            Ok(StartReply::Stream) => match link.first_message().await {
                Ok(()) => link.end_stream().await,
                Err(fault) => Err(fault),
            },
            Ok(StartReply::TimelineEnded { .. }) => Ok(()),
            Err(fault) => Err(fault),
        };
        match there {
            Ok(()) => search.found(),
            Err(LinkFault::Server(error)) if error.sqlstate == sqlstate::UNDEFINED_FILE => {
                search.removed()
            }
            Err(fault) => return Err(fault),
        }
    }
    Ok(search.oldest())
}
