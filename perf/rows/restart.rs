//! From the start of the process to the first byte of WAL at a standby, with a
//! directory full of segments.

use super::{Row, Run};
use crate::fault::{During, Fault, Outcome};
use crate::report::{Bound, Report};
use crate::servers::{Bed, Birth, Way};
use bytes::BytesMut;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};
use walhub::wal::Lsn;
use walhub::wire::copy::FromSender;
use walhub::wire::frame::next_frame;
use walhub::wire::frontend;

pub(super) const ROW: Row = Row {
    name: "restart",
    what: "start of the process to the first byte of WAL at a standby",
    measure,
};

const SEGMENT: u64 = 16 << 20;
const TIME: &str = "ms";
const PATIENCE: Duration = Duration::from_secs(60);
/// The WAL begins far enough from 0 for all the segments before it.
const FIRST_SEGMENT: &str = "000000010000012C00000001";

fn measure(run: &mut Run<'_>, row: &Row) -> Outcome<Report> {
    let segments: u64 = run.options.sized(65_536, 2_048);
    let mut report = row.report(format!(
        "A hub's directory with {segments} segments, all but the newest sparse files. Timed from \
         before the process is started; a standby asks again and again from then on and wants \
         the open segment from its beginning."
    ));
    let mut bed = Bed::new(&Birth { first_segment: Some(FIRST_SEGMENT), ..run.birth(0) })?;
    bed.hub.flag("--wal-keep-size=2TB");
    bed.open(Way::Hub)?;
    bed.primary.write_wal(40)?;
    bed.primary.wait_follower("walhub")?;
    bed.close(Way::Hub)?;
    let start = bed.primary.segment_start()?;
    bed.primary.sql("select pg_logical_emit_message(true, 'walhub', repeat('x', 10000))")?;
    let full = format!("{segments} segments");
    for name in ["3 segments", &full] {
        if name == full {
            fill(&bed.hub.pg_wal(), segments)?;
        }
        for _ in 0..run.options.repeats() {
            let begun = Instant::now();
            bed.hub.spawn(run.place)?;
            first_byte(bed.hub.port(), start, begun + PATIENCE)?;
            let took = begun.elapsed();
            report.samples.add(name, TIME, took.as_secs_f64() * 1e3);
            bed.hub.stop()?;
        }
    }
    report.target(&full, TIME, Bound::AtMost(1000.0), Bound::AtMost(200.0));
    Ok(report)
}

/// Adds older segments until there are so many.
fn fill(folder: &Path, segments: u64) -> Outcome {
    let names = fs::read_dir(folder).during(folder.display())?;
    let oldest = names
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.len() == 24)
        .min()
        .ok_or_else(|| Fault::new("the hub has no segment"))?;
    let hex = |range: std::ops::Range<usize>| {
        oldest.get(range).and_then(|text| u64::from_str_radix(text, 16).ok())
    };
    let number = hex(8..16).zip(hex(16..24)).map(|(high, low)| (high << 8) | low);
    let number = number.ok_or_else(|| Fault::new(format!("{oldest} is no segment's name")))?;
    for older in number.saturating_sub(segments)..number {
        let path = folder.join(format!("00000001{:08X}{:08X}", older >> 8, older & 0xff));
        let file = File::create(&path).during(path.display())?;
        file.set_len(SEGMENT).during(path.display())?;
    }
    Ok(())
}

/// Asks for WAL from `start` on until some comes.
fn first_byte(port: u16, start: Lsn, deadline: Instant) -> Outcome {
    let mut last = None;
    while Instant::now() < deadline {
        match ask(port, start) {
            Ok(()) => return Ok(()),
            // It does not listen yet, or says that it is starting up.
            Err(fault) => last = Some(fault),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Err(last.unwrap_or_else(|| Fault::new("there was no time to ask")))
}

fn ask(port: u16, start: Lsn) -> Outcome {
    let mut socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).during("connect")?;
    socket.set_read_timeout(Some(Duration::from_secs(5))).during("a timeout")?;
    let mut out = BytesMut::new();
    frontend::startup(&mut out, &[("user", "postgres"), ("replication", "true")]);
    frontend::query(&mut out, &format!("START_REPLICATION {start} TIMELINE 1"));
    socket.write_all(&out).during("send")?;
    let mut bytes = BytesMut::new();
    let mut block = vec![0; 64 << 10];
    loop {
        while let Some(frame) = next_frame(&bytes, 1 << 20).during("a frame")? {
            let len = frame.len;
            match frame.tag {
                b'E' => {
                    let text = String::from_utf8_lossy(frame.body).replace('\0', " ");
                    return Err(Fault::new(text));
                }
                b'd' if matches!(
                    FromSender::parse(frame.body).during("a message")?,
                    FromSender::XLogData { .. }
                ) =>
                {
                    return Ok(());
                }
                _ => {}
            }
            drop(bytes.split_to(len));
        }
        let count = socket.read(&mut block).during("receive")?;
        if count == 0 {
            return Err(Fault::new("the server has closed"));
        }
        bytes.extend_from_slice(block.get(..count).unwrap_or_default());
    }
}
