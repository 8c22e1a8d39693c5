//! A client of a replication server, up to its stream: commands out, answers in.

use crate::network::{Conn, End, Node};
use crate::shared::{Shared, pause};
use bytes::{Buf, Bytes, BytesMut};
use std::rc::Rc;
use walhub::wal::{Lsn, TimelineId};
use walhub::wire::backend_read::{FromServer, ServerError};
use walhub::wire::frame::next_frame;
use walhub::wire::frontend;

const MAX_MESSAGE: usize = 1 << 20;

/// Why a command has no answer.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The connection is gone.
    Gone,
    Server(ServerError),
}

/// The answer's rows.
pub(crate) type Rows = Vec<Vec<Option<Bytes>>>;

/// What START_REPLICATION was answered.
pub(crate) enum Started {
    Stream,
    TimelineEnded { next: TimelineId, at: Lsn },
}

/// An open connection.
pub(crate) struct Client {
    pub(crate) shared: Rc<Shared>,
    pub(crate) conn: Conn,
    pub(crate) unread: BytesMut,
    /// Parameter statuses.
    pub(crate) parameters: Vec<(String, String)>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.shared.network.borrow_mut().close(self.conn, End::Client);
    }
}

pub(crate) fn text(row: &[Option<Bytes>], column: usize) -> Option<&str> {
    std::str::from_utf8(row.get(column)?.as_deref()?).ok()
}

impl Client {
    /// Connects and waits for the first ReadyForQuery.
    pub(crate) async fn open(shared: &Rc<Shared>, from: Node, to: Node) -> Result<Self, Fault> {
        let conn = shared.connect(from, to).ok_or(Fault::Gone)?;
        let unread = BytesMut::new();
        let shared = Rc::clone(shared);
        let mut client = Self { shared, conn, unread, parameters: Vec::new() };
        client.collect().await?;
        Ok(client)
    }

    pub(crate) fn send(&self, bytes: &[u8]) {
        self.shared.network.borrow_mut().send_all(self.conn, End::Client, bytes);
    }

    /// What has arrived; 0 for nothing new.
    pub(crate) fn read(&mut self) -> Result<usize, Fault> {
        let mut network = self.shared.network.borrow_mut();
        network.receive(self.conn, End::Client, &mut self.unread).ok_or(Fault::Gone)
    }

    async fn fill(&mut self) -> Result<(), Fault> {
        while self.read()? == 0 {
            pause().await;
        }
        Ok(())
    }

    pub(crate) async fn query(&mut self, sql: &str) -> Result<Rows, Fault> {
        let mut out = BytesMut::new();
        frontend::query(&mut out, sql);
        self.send(&out);
        self.collect().await
    }

    /// The answer to a command that was sent.
    pub(crate) async fn answer(&mut self) -> Result<Rows, Fault> {
        self.collect().await
    }

    /// Everything up to ReadyForQuery.
    async fn collect(&mut self) -> Result<Rows, Fault> {
        let mut rows = Rows::new();
        let mut failed = None;
        loop {
            let Some(frame) = next_frame(&self.unread, MAX_MESSAGE).unwrap() else {
                self.fill().await?;
                continue;
            };
            let len = frame.len;
            match FromServer::parse(frame).unwrap() {
                FromServer::ParameterStatus { name, value } => self.parameters.push((name, value)),
                FromServer::DataRow(row) => {
                    rows.push(row.into_iter().map(|v| v.map(Bytes::copy_from_slice)).collect());
                }
                FromServer::Error(error) => failed = Some(error),
                FromServer::ReadyForQuery => {
                    self.unread.advance(len);
                    return failed.map_or(Ok(rows), |error| Err(Fault::Server(error)));
                }
                _ => {}
            }
            self.unread.advance(len);
        }
    }

    pub(crate) async fn start(
        &mut self,
        slot: Option<&str>,
        start: Lsn,
        tli: TimelineId,
    ) -> Result<Started, Fault> {
        let sql = walhub::upstream::login::start_replication(slot, start, tli);
        let mut out = BytesMut::new();
        frontend::query(&mut out, &sql);
        self.send(&out);
        while self.unread.is_empty() {
            self.fill().await?;
        }
        if self.unread.first() == Some(&b'W') {
            loop {
                if let Some(frame) = next_frame(&self.unread, MAX_MESSAGE).unwrap() {
                    let len = frame.len;
                    self.unread.advance(len);
                    return Ok(Started::Stream);
                }
                self.fill().await?;
            }
        }
        let rows = self.collect().await?;
        let row = rows.first().expect("a stream, an error, or the next timeline");
        let next = text(row, 0).unwrap().parse().ok().and_then(TimelineId::new).unwrap();
        Ok(Started::TimelineEnded { next, at: text(row, 1).unwrap().parse().unwrap() })
    }

    /// What follows a stream, up to ReadyForQuery.
    pub(crate) async fn settle(&mut self) -> Result<(), Fault> {
        self.collect().await.map(drop)
    }
}
