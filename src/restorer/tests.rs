//! The threads, with a shell as the archive and the test as the keeper.

use super::*;
use crate::archive::prove::Reason;
use crate::archive::template::Template;
use crate::hub::tests::hub;
use crate::keeper::{AnswerInbox, Job, Order, Orders, queue};
use crate::wal::synth::Synth;
use crate::wal::{Lsn, SegmentSize};
use crate::watermark::Cell;
use std::num::NonZeroUsize;
use std::sync::mpsc as answers;

const SEGMENT: u64 = 16 << 20;
const PATIENCE: Duration = Duration::from_secs(30);
const TLI: TimelineId = TimelineId::FIRST;

struct World {
    root: tempfile::TempDir,
    restorer: Restorer,
    orders: Orders,
    tell: answers::Sender<(usize, JobDone)>,
    answers: answers::Receiver<(usize, JobDone)>,
}

impl World {
    /// A hub whose WAL begins with segment 10 here, and an archive with segments 4 to 7.
    fn new(command: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        let archive = root.path().join("archive");
        std::fs::create_dir(layout.wal()).unwrap();
        std::fs::create_dir(&archive).unwrap();
        let hub = Arc::new(hub("15.18"));
        let identity = hub.identity().unwrap();
        let (system, size) = (identity.system_id, identity.segment_size);
        hub.holds.begin(Lsn::new(10 * SEGMENT));
        let durable = Lsn::new(20 * SEGMENT);
        hub.push_cell(Arc::new(Cell::new(TLI, Lsn::new(10 * SEGMENT), durable)));
        let mut synth = Synth::new(system, size, TLI, 0xD110, Lsn::new(4 * SEGMENT));
        while synth.position() < Lsn::new(8 * SEGMENT) {
            synth.record(&[7; 500_000]);
        }
        let (_, wal) = synth.take_bytes();
        for (no, bytes) in (4..8).zip(wal.chunks(SEGMENT as usize)) {
            std::fs::write(archive.join(name(no)), bytes).unwrap();
        }
        let settings = RestoreSettings {
            timeline_grace: Duration::ZERO,
            command: Template::parse(command, &['f', 'p', 'r']).unwrap(),
            jobs: NonZeroUsize::new(2).unwrap(),
        };
        let (keeper, orders) = queue(64);
        let (tell, answers) = answers::channel();
        let restorer = Restorer::start(&settings, layout, hub, keeper).unwrap();
        Self { root, restorer, orders, tell, answers }
    }

    fn want(&self, no: SegmentNo, core: usize) {
        let inbox = Inbox { core, tell: Mutex::new(self.tell.clone()) };
        self.restorer.want(TLI, no, Reply::Inbox(Arc::new(inbox)));
    }

    fn order(&mut self) -> Order {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.orders.take() {
                Some(order) => return order,
                None => assert!(Instant::now() < end, "no job comes"),
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The answer: which core, and the kind of the error.
    fn answer(&self) -> (usize, Option<io::ErrorKind>) {
        let (core, done) = self.answers.recv_timeout(PATIENCE).unwrap();
        match done {
            JobDone::Opened { result, .. } => (core, result.err().map(|error| error.kind())),
            // No segment here has a good part.
            JobDone::OpenedPartly { no, unproved, .. } => {
                assert_eq!(unproved.from, Lsn::new(no.raw() * SEGMENT));
                assert!(matches!(unproved.why, Reason::Damaged { .. }), "{unproved:?}");
                (core, Some(io::ErrorKind::InvalidData))
            }
            other => panic!("{other:?}"),
        }
    }

    /// Names that were requested from the shell.
    fn asked(&self) -> Vec<String> {
        let asked = std::fs::read_to_string(self.root.path().join("asked")).unwrap_or_default();
        let mut asked: Vec<_> = asked.lines().map(str::to_owned).collect();
        asked.sort();
        asked
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.restorer.stop();
        self.restorer.join(Instant::now() + PATIENCE);
    }
}

/// Where a core takes its answers.
struct Inbox {
    core: usize,
    tell: Mutex<answers::Sender<(usize, JobDone)>>,
}

impl AnswerInbox for Inbox {
    fn answer(&self, done: JobDone) {
        self.tell.lock().unwrap().send((self.core, done)).unwrap();
    }
}

fn name(no: u64) -> String {
    let size = SegmentSize::new(SEGMENT).unwrap();
    SegmentName { tli: TLI, no: SegmentNo::new(no), size }.to_string()
}

#[test]
fn one_fetch_serves_all_and_the_next_segments_come_ahead() {
    let mut world = World::new("echo %f >> asked; cp archive/%f %p");
    let no = SegmentNo::new(4);
    world.want(no, 0);
    world.want(no, 1);
    let mut adopted = Vec::new();
    for _ in 0..3 {
        let Order { job: Job::Adopt { tli, no, .. }, reply } = world.order() else {
            panic!("another job")
        };
        assert_eq!(tli, TLI);
        let path = Layout::new(world.root.path()).restoring(&name(no.raw()));
        assert_eq!(std::fs::metadata(&path).unwrap().len(), SEGMENT);
        let file = File::open(path).unwrap();
        reply.send(JobDone::Adopted { tli, no, result: Ok(Arc::new(file.into())) });
        adopted.push(no.raw());
    }
    adopted.sort_unstable();
    assert_eq!(adopted, [4, 5, 6]);
    let mut cores = [world.answer(), world.answer()];
    cores.sort_unstable_by_key(|(core, _)| *core);
    assert_eq!(cores, [(0, None), (1, None)]);
    // Each is proved with the one after it. That is fetched again if it is with the keeper by then.
    let mut asked = world.asked();
    assert_eq!(asked.iter().filter(|asked| **asked == name(4)).count(), 1, "{asked:?}");
    asked.dedup();
    assert_eq!(asked, [4, 5, 6, 7].map(name));
}

/// Its records may be whole all the same: the same job gives the same positions.
#[test]
fn what_is_not_what_was_here_is_not_taken() {
    use crate::store::digest::{self, BlockHasher};
    use crate::store::disk::run_ready;
    use crate::store::plain_disk::PlainDisk;
    let mut world = World::new("cp archive/%f %p");
    let layout = Layout::new(world.root.path());
    let identity = world.restorer.inner.hub.identity().unwrap();
    std::fs::create_dir_all(layout.removed_digests()).unwrap();
    for (no, received) in [(4, None), (5, Some(1_500_000))] {
        let mut wal = std::fs::read(world.root.path().join("archive").join(name(no))).unwrap();
        received.into_iter().for_each(|at: usize| wal[at] ^= 1);
        let mut hasher = BlockHasher::default();
        hasher.feed(&wal);
        let segment = SegmentName { tli: TLI, no: SegmentNo::new(no), size: identity.segment_size };
        let digest = hasher.finish().of_segment(identity.system_id, segment, None).unwrap();
        run_ready(digest::store(&PlainDisk, &layout, &digest)).unwrap().unwrap();
        run_ready(digest::retire(&PlainDisk, &layout, segment)).unwrap().unwrap();
    }
    let refused = |world: &World| match world.answers.recv_timeout(PATIENCE).unwrap() {
        (_, JobDone::Opened { result: Err(error), .. }) => (error.kind(), error.to_string()),
        (_, other) => panic!("{other:?}"),
    };
    let place = crate::store::evidence::Difference {
        tli: TLI,
        at: Lsn::new(19 * SEGMENT),
        source: crate::store::evidence::WalSource { name: "db1".to_owned(), server: None },
        since: std::time::SystemTime::UNIX_EPOCH,
        detail: String::new(),
        bytes: None,
        cleared: false,
    };
    world.restorer.inner.hub.course.set_evidence(place.into());
    world.want(SegmentNo::new(4), 0);
    let Order { job: Job::Adopt { no, shown, .. }, .. } = world.order() else { panic!("no job") };
    assert_eq!((no.raw(), shown), (4, ShownBy::Digest));
    world.want(SegmentNo::new(5), 0);
    let (kind, why) = refused(&world);
    assert_eq!(kind, io::ErrorKind::InvalidData);
    let at = Lsn::new(5 * SEGMENT + (1 << 20));
    assert!(why.contains(&format!("of another history or damaged: from {at} on")), "{why}");

    // Of the seventh nothing is known.
    world.want(SegmentNo::new(7), 0);
    let (_, why) = refused(&world);
    assert!(why.contains("cannot be shown to be of this hub's history, and db1 had"), "{why}");
}

#[test]
fn what_the_archive_lacks_is_missing_and_what_is_broken_is_not() {
    for (command, kind) in [
        ("exit 1", io::ErrorKind::NotFound),
        ("exit 127", io::ErrorKind::Other),
        ("truncate -s 16M %p", io::ErrorKind::InvalidData),
        ("truncate -s 17M %p", io::ErrorKind::Other),
        ("truncate -s 15M %p", io::ErrorKind::NotFound),
    ] {
        let world = World::new(command);
        world.want(SegmentNo::new(9), 0);
        assert_eq!(world.answer(), (0, Some(kind)), "{command}");
        assert_eq!(std::fs::read_dir(world.root.path().join("pg_wal")).unwrap().count(), 0);
    }
}

#[test]
fn histories() {
    let world = World::new("cp archive/%f %p");
    let archive = world.root.path().join("archive");
    let text = "1\t0/3000060\tno recovery target specified\n";
    std::fs::write(archive.join("00000002.history"), text).unwrap();
    std::fs::write(archive.join("00000003.history"), "a tale").unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let fetch =
        |tli| runtime.block_on(world.restorer.history(TimelineId::new(tli).unwrap())).unwrap();
    assert_eq!(fetch(2), Ok(Some(Bytes::from_static(text.as_bytes()))));
    assert!(fetch(3).unwrap_err().contains("00000003.history"));
    assert_eq!(fetch(4), Ok(None));
    assert_eq!(std::fs::read_dir(world.root.path().join("pg_wal")).unwrap().count(), 0);
}

/// One thread that waited for the keeper's answer would keep the others' files from it.
#[test]
fn a_slow_keeper_holds_up_no_fetch() {
    let mut world = World::new("cp archive/%f %p");
    for no in [4, 5, 6] {
        world.want(SegmentNo::new(no), no as usize);
    }
    // Two threads, three segments, and no answer so far.
    let orders: Vec<_> = (0..3).map(|_| world.order()).collect();
    for Order { job, reply } in orders.into_iter().rev() {
        let Job::Adopt { tli, no, .. } = job else { panic!("{job:?}") };
        let file = File::open(Layout::new(world.root.path()).restoring(&name(no.raw()))).unwrap();
        reply.send(JobDone::Adopted { tli, no, result: Ok(Arc::new(file.into())) });
    }
    let mut cores: Vec<_> = (0..3).map(|_| world.answer()).collect();
    cores.sort_unstable_by_key(|(core, _)| *core);
    assert_eq!(cores, [(4, None), (5, None), (6, None)]);
}

/// Without an upstream it is asked for every few seconds.
#[test]
fn what_the_command_says_of_a_history_that_is_not_there_is_logged_once() {
    let world = World::new("echo none of %f; exit 1");
    let log = Log::default();
    let written = log.clone();
    let subscriber =
        tracing_subscriber::fmt().with_ansi(false).with_writer(move || written.clone()).finish();
    // With only one subscriber, another test's thread may decide that no event is wanted.
    let _second =
        tracing::Dispatch::new(tracing_subscriber::fmt().with_writer(std::io::sink).finish());
    tracing::subscriber::with_default(subscriber, || {
        for raw in [2, 2, 2, 3] {
            let found = world.restorer.inner.fetch_history(TimelineId::new(raw).unwrap());
            assert_eq!(found, Ok(None));
        }
    });
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert_eq!(text.matches("none of 00000002.history").count(), 1, "{text}");
    assert_eq!(text.matches("none of 00000003.history").count(), 1, "{text}");
}

/// What is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        io::Write::write(&mut *self.0.lock().unwrap(), bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
