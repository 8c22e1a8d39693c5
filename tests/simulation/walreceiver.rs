//! A standby behind hubs: what PostgreSQL's walreceiver and startup process do together.
//! Every byte that it is sent is looked at.

use crate::client::{Client, Fault, Started, text};
use crate::kinds::Kind;
use crate::network::Node;
use crate::server::{Server, Source};
use crate::shared::{Shared, pause, promise};
use crate::truth::SYSTEM;
use bytes::{Buf, BytesMut};
use std::cell::RefCell;
use std::rc::Rc;
use walhub::timeline::History;
use walhub::upstream::stream::{StreamMessage, next_message};
use walhub::wal::{Lsn, TimelineId};
use walhub::wire::copy::{ReplyRequest, StatusReply};
use walhub::wire::frontend;
use walhub::wire::time::PgTime;

/// Follows one hub after the other, for as long as the server is a standby of some.
pub(crate) async fn run(shared: Rc<Shared>, me: Rc<RefCell<Server>>) {
    loop {
        let hub = match &me.borrow().source {
            Source::Hubs(hubs) => Some(hubs[shared.below(hubs.len() as u64) as usize]),
            _ => None,
        };
        if let Some(hub) = hub {
            let id = me.borrow().id;
            if let Err(Fault::Server(error)) = follow(&shared, &me, hub).await {
                shared.trace(|| format!("server {id} at hub {hub}: {error}"));
            }
        }
        for _ in 0..1 + shared.below(30) {
            pause().await;
        }
    }
}

/// One connection.
async fn follow(shared: &Rc<Shared>, me: &Rc<RefCell<Server>>, hub: usize) -> Result<(), Fault> {
    let id = me.borrow().id;
    let mut client = Client::open(shared, Node::Server(id), Node::Hub(hub)).await?;
    if shared.kind == Kind::Pipelines {
        talk_ahead(&mut client, id).await?;
    }
    let slot = me.borrow().slot.clone();
    if let Some(slot) = &slot
        && !shared.calm.get()
        && shared.chance(30)
    {
        match client.query(&format!("DROP_REPLICATION_SLOT {slot}")).await {
            Ok(_) => shared.seen("slot dropped"),
            Err(Fault::Server(_)) => {}
            Err(gone) => return Err(gone),
        }
    }
    loop {
        let theirs = identify(&mut client).await?;
        let history = fetch_histories(shared, me, &mut client, theirs).await?;
        // The latest timeline whose history has all that we have.
        let (tli, flush) = (me.borrow().tli, me.borrow().flush);
        let fork = history.switchpoint_of(tli);
        if theirs < tli || !history.contains(tli) {
            return Ok(());
        }
        if fork.is_some_and(|fork| fork < flush) {
            me.borrow_mut().diverged = true;
        }
        let asked = if fork == Some(flush) { history.next_after(tli).unwrap() } else { tli };
        let start = flush.segment_start(shared.truth.borrow().size);
        match client.start(slot.as_deref(), start, asked).await {
            Ok(Started::Stream) => {
                me.borrow_mut().tli = asked;
                if me.borrow().diverged {
                    let end = fork.unwrap_or(Lsn::MAX);
                    promise!(shared, start <= end, "server {id} has diverged and is served");
                }
                stream(shared, me, &mut client, (hub, start), fork.filter(|_| asked == tli))
                    .await?;
                // What follows is on the same connection.
            }
            Ok(Started::TimelineEnded { next, at }) => {
                let due = shared.truth.borrow().history(next).switchpoint_of(asked);
                promise!(shared, due == Some(at), "server {id} is told that {asked} ends at {at}");
                if at != flush {
                    return Ok(());
                }
                me.borrow_mut().tli = next;
            }
            Err(Fault::Server(error)) if error.sqlstate == "42704" => {
                let slot = slot.as_deref().expect("a slot was named");
                let reserve = if shared.chance(500) { " RESERVE_WAL" } else { "" };
                let create = format!("CREATE_REPLICATION_SLOT {slot} PHYSICAL{reserve}");
                client.query(&create).await?;
                shared.seen("slot created");
            }
            Err(fault) => return refused(shared, me, hub, start, fault),
        }
    }
}

/// Many commands at once, and their answers in the same order.
async fn talk_ahead(client: &mut Client, id: usize) -> Result<(), Fault> {
    let shared = Rc::clone(&client.shared);
    let mut commands = Vec::new();
    for n in 0..4 + shared.below(10) {
        let slot = format!("p{id}_{n}");
        let command = match shared.below(5) {
            0 => ("IDENTIFY_SYSTEM".to_owned(), Ok(Some(SYSTEM.raw().to_string()))),
            1 => ("TIMELINE_HISTORY 9999".to_owned(), Err("58P01")),
            2 => ("SHOW wal_segment_size".to_owned(), Ok(Some("1MB".to_owned()))),
            3 => (format!("DROP_REPLICATION_SLOT {slot}"), Err("42704")),
            _ => {
                let create = format!("CREATE_REPLICATION_SLOT {slot} PHYSICAL");
                commands.push((create, Ok(Some(slot.clone()))));
                (format!("DROP_REPLICATION_SLOT {slot}"), Ok(None))
            }
        };
        commands.push(command);
    }
    let mut out = BytesMut::new();
    for (command, _) in &commands {
        frontend::query(&mut out, command);
    }
    client.send(&out);
    for (command, due) in commands {
        let answer = match client.answer().await {
            Ok(rows) => Ok(rows.first().and_then(|row| text(row, 0).map(str::to_owned))),
            Err(Fault::Server(error)) => Err(error.sqlstate),
            Err(gone) => return Err(gone),
        };
        let due = due.map_err(str::to_owned);
        promise!(shared, answer == due, "\"{command}\" is answered {answer:?}, not {due:?}");
    }
    shared.seen("a pipeline of commands");
    Ok(())
}

fn refused(
    shared: &Shared,
    me: &Rc<RefCell<Server>>,
    hub: usize,
    start: Lsn,
    fault: Fault,
) -> Result<(), Fault> {
    let Fault::Server(error) = &fault else { return Err(fault) };
    let mut me = me.borrow_mut();
    if error.message.contains("history") || error.message.contains("forked") {
        shared.seen("diverged standby refused");
    }
    if error.sqlstate == "58P01" {
        shared.trace(|| format!("server {} finds WAL at {start} gone at hub {hub}", me.id));
        me.note_gap(hub);
    }
    Err(fault)
}

async fn identify(client: &mut Client) -> Result<TimelineId, Fault> {
    let rows = client.query("IDENTIFY_SYSTEM").await?;
    Ok(TimelineId::new(text(&rows[0], 1).unwrap().parse().unwrap()).unwrap())
}

/// The files of all timelines from ours up to the hub's; the history of the last.
async fn fetch_histories(
    shared: &Shared,
    me: &Rc<RefCell<Server>>,
    client: &mut Client,
    theirs: TimelineId,
) -> Result<History, Fault> {
    let mut history = shared.truth.borrow().history(TimelineId::FIRST);
    for raw in 2..=theirs.raw() {
        let tli = TimelineId::new(raw).unwrap();
        let is_ours = shared.truth.borrow().history(theirs).contains(tli);
        if !is_ours {
            continue;
        }
        let rows = client.query(&format!("TIMELINE_HISTORY {tli}")).await?;
        let content = rows[0][1].clone().unwrap();
        let due = shared.truth.borrow().history_file(tli);
        promise!(
            shared,
            content == due,
            "server {} is given another history of timeline {tli}",
            me.borrow().id
        );
        history = History::parse(tli, content).unwrap();
    }
    Ok(history)
}

/// One stream, to the end of its timeline.
async fn stream(
    shared: &Rc<Shared>,
    me: &Rc<RefCell<Server>>,
    client: &mut Client,
    (hub, start): (usize, Lsn),
    fork: Option<Lsn>,
) -> Result<(), Fault> {
    let (id, tli) = (me.borrow().id, me.borrow().tli);
    let mut written = start;
    let mut told = Lsn::INVALID;
    let mut idle = 0;
    loop {
        let mut taken = 0;
        let mut over = false;
        while !over && let Some((message, len)) = next_message(&client.unread[taken..]).unwrap() {
            taken += len;
            match message {
                StreamMessage::Wal { start, wal } => {
                    promise!(shared, start == written, "server {id} gets {start} behind {written}");
                    let wrong = shared.truth.borrow().first_false(tli, start, wal);
                    promise!(shared, wrong.is_none(), "server {id} gets a false byte at {wrong:?}");
                    me.borrow_mut().note_received(tli, start, wal);
                    written = start.saturating_add(wal.len() as u64);
                    if let Some(fork) = fork {
                        promise!(
                            shared,
                            written <= fork,
                            "server {id} gets timeline {tli} up to {written}, past the \
                             switchpoint {fork}"
                        );
                    }
                    idle = 0;
                }
                StreamMessage::CopyDone => {
                    let mut done = BytesMut::new();
                    frontend::copy_done(&mut done);
                    client.send(&done);
                }
                StreamMessage::Next { tli: next, at } => {
                    let due = shared.truth.borrow().history(next).switchpoint_of(tli);
                    promise!(
                        shared,
                        due == Some(at),
                        "server {id} is told that {tli} ends at {at}"
                    );
                    over = true;
                }
                StreamMessage::Error(error) => {
                    client.unread.advance(taken);
                    let mut me = me.borrow_mut();
                    me.flushed(written);
                    if error.sqlstate == "58P01" {
                        me.note_gap(hub);
                    }
                    return Err(Fault::Server(error));
                }
                // What it has told before it tells again.
                StreamMessage::ReplyWanted => told = Lsn::INVALID,
                StreamMessage::Nothing | StreamMessage::ShutDown => {}
            }
        }
        client.unread.advance(taken);
        if over {
            me.borrow_mut().flushed(written);
            // Up to ReadyForQuery.
            return client.settle().await;
        }
        // Written and flushed now and then.
        let haste = if shared.kind == Kind::Returns { 3 } else { 300 };
        if written > me.borrow().flush && (shared.chance(haste) || shared.calm.get()) {
            me.borrow_mut().flush = written;
        }
        let flush = me.borrow().flush;
        if flush != told && flush >= start {
            if let Some(slot) = &me.borrow().slot {
                let mut promised = shared.promised.borrow_mut();
                if let Some(known) = promised.get_mut(&(hub, slot.clone())) {
                    *known = flush.max(*known);
                }
            }
            let (client_time, reply) = (PgTime::new(0), ReplyRequest::No);
            let status = StatusReply { write: flush, flush, apply: flush, client_time, reply };
            client.send(&status.encode());
            told = flush;
        }
        idle += 1;
        // A standby that hears nothing for long looks elsewhere.
        if idle > 3000 || !matches!(me.borrow().source, Source::Hubs(_)) {
            me.borrow_mut().flushed(written);
            return Err(Fault::Gone);
        }
        match client.read() {
            Ok(0) => pause().await,
            Ok(_) => {}
            Err(gone) => {
                let mut me = me.borrow_mut();
                if shared.kind == Kind::Returns {
                    // What it had not flushed it asks for again.
                    me.left = Some((hub, shared.steps.get()));
                } else {
                    me.flushed(written);
                }
                return Err(gone);
            }
        }
    }
}
