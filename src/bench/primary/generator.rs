//! Makes the WAL that is due.

use super::files::SegmentFiles;
use super::mix::Mix;
use crate::bench::clock::{Clock, Nanos};
use crate::bench::commits::Commits;
use crate::bench::profile::Load;
use crate::bench::schedule::{Due, Schedule};
use crate::bench::truth::Truth;
use crate::wal::Lsn;
use crate::wal::synth::Synth;
use bytes::Bytes;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// About how much WAL is made before it is sent: little enough to stay in the CPU's cache.
const BATCH: u64 = 256 << 10;

/// The load's WAL, from the schedule to the truth.
#[derive(Debug)]
pub(super) struct Generator {
    load: Load,
    synth: Synth,
    mix: Mix,
    /// `None` before the load begins.
    schedule: Option<Schedule>,
    /// When the segment is switched next, in the load's time.
    next_switch: Option<Duration>,
    clock: Clock,
    truth: Arc<Truth>,
    commits: Arc<Commits>,
    files: Option<SegmentFiles>,
    pub(super) bytes: u64,
    pub(super) made: u64,
    /// The greatest delay of a commit since the last query.
    late: Duration,
}

/// Where the WAL goes.
#[derive(Debug)]
pub(super) struct Sinks {
    pub(super) truth: Arc<Truth>,
    pub(super) commits: Arc<Commits>,
    pub(super) files: Option<SegmentFiles>,
}

impl Generator {
    /// Writes the first record, without which there is no WAL to start from.
    pub(super) fn new(load: Load, synth: Synth, clock: Clock, sinks: Sinks) -> io::Result<Self> {
        let mut generator = Self {
            mix: Mix::new(&load),
            next_switch: load.switch_every,
            load,
            synth,
            schedule: None,
            clock,
            truth: sinks.truth,
            commits: sinks.commits,
            files: sinks.files,
            bytes: 0,
            made: 0,
            late: Duration::ZERO,
        };
        generator.synth.record(b"walhub bench: the WAL begins here");
        generator.publish()?;
        Ok(generator)
    }

    /// Starts or resumes the load.
    pub(super) fn begin(&mut self, now: Nanos) {
        match &mut self.schedule {
            Some(schedule) => schedule.resume(now),
            None => self.schedule = Some(Schedule::new(&self.load, now)),
        }
    }

    pub(super) fn pause(&mut self, now: Nanos) {
        if let Some(schedule) = &mut self.schedule {
            schedule.pause(now);
        }
    }

    /// When something is due next.
    pub(super) fn due(&self) -> Due {
        if self.finished() {
            return Due::Paused;
        }
        self.schedule.as_ref().map_or(Due::Paused, Schedule::due)
    }

    /// Has the load's total been made?
    pub(super) fn finished(&self) -> bool {
        self.load.total.is_some_and(|total| self.bytes >= total)
    }

    pub(super) fn end(&self) -> Lsn {
        self.synth.position()
    }

    /// The greatest delay against the schedule since the last call.
    pub(super) fn take_late(&mut self) -> Duration {
        std::mem::take(&mut self.late)
    }

    /// Makes the WAL that is due by now: at most one batch, and not past `limit` in a closed loop.
    pub(super) fn make(&mut self, limit: Lsn) -> io::Result<()> {
        let batch = self.end().saturating_add(BATCH);
        let mut now = self.clock.now();
        while self.end() < batch {
            let due = match self.due() {
                Due::At(due) if due <= now => due,
                Due::At(due) => {
                    // Making the previous ones took time.
                    now = self.clock.now();
                    if due > now {
                        break;
                    }
                    due
                }
                Due::AtOnce if self.end() < limit => self.clock.now(),
                Due::AtOnce | Due::Paused => break,
            };
            self.late = self.late.max(now.since(due));
            self.commit(due);
        }
        self.publish()
    }

    fn commit(&mut self, due: Nanos) {
        let Some(schedule) = &mut self.schedule else { return };
        let elapsed = schedule.elapsed();
        let before = self.synth.position();
        let end = self.mix.commit(&mut self.synth, elapsed);
        let bytes = end.bytes_since(before);
        schedule.made(bytes);
        // The commit is added before its WAL can be received.
        self.commits.add(end, due);
        self.made += 1;
        if let (Some(at), Some(every)) = (self.next_switch, self.load.switch_every)
            && schedule.elapsed() >= at
        {
            self.synth.switch_segment();
            self.next_switch = Some(at.saturating_add(every));
        }
        // The zeros after a switch are WAL too, but not part of the scheduled load.
        self.bytes += self.synth.position().bytes_since(before);
    }

    fn publish(&mut self) -> io::Result<()> {
        let (start, mut bytes) = self.synth.take_bytes();
        if bytes.is_empty() {
            return Ok(());
        }
        if let Some(files) = &mut self.files {
            files.append(start, &bytes)?;
        }
        self.commits.complete_to(self.synth.position());
        // The window holds many of them for a long time.
        bytes.shrink_to_fit();
        let appended = self.truth.append(start, Bytes::from(bytes));
        debug_assert!(appended, "nobody else appends to the truth");
        Ok(())
    }
}
