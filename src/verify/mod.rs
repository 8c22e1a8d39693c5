//! `walhub verify`: walks every complete segment of a directory whose hub does not run, compares it
//! with its digest, names what is damaged, and repairs it from an archive.

mod own;
mod repair;

use self::own::OwnSegments;
use self::repair::{Repaired, repair};
use crate::archive::prove::{Head, Neighbours, Reason, SegmentProof, prove};
use crate::archive::restore::RestoreCommand;
use crate::archive::template::Template;
use crate::store::digest::{DigestComparison, compare, hash_file};
use crate::store::directory::{Directory, check_is_a_hubs};
use crate::store::disk::run_ready;
use crate::store::durable::{read_small_now, replace_durably};
use crate::store::layout::Layout;
use crate::store::plain_disk::PlainDisk;
use crate::store::scrub::ScrubNote;
use crate::wal::{Lsn, SegmentContents, SegmentName, Stamp};
use crate::wire::date::date_millis;
use crate::wire::time::PgTime;
use clap::Args;
use std::collections::BTreeSet;
use std::error::Error;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// Flags of `walhub verify`.
#[derive(Debug, Args)]
pub struct VerifyFlags {
    /// The directory of a hub that does not run
    #[arg(value_name = "DIR", env = "WALHUB_DIRECTORY")]
    pub directory: PathBuf,
    /// Replace damaged segments by what the archive has, and keep them in DIR/damaged
    #[arg(long)]
    pub repair: bool,
    /// Shell command that fetches file %f of the WAL archive to the path %p, for --repair
    #[arg(long, value_name = "COMMAND", default_value = "", env = "WALHUB_RESTORE_COMMAND")]
    pub restore_command: String,
}

/// Damage that a walk found.
#[derive(Debug)]
struct Damage {
    /// The segment, or the first and the last of those in which the record has a part.
    first: SegmentName,
    last: SegmentName,
    /// Where the WAL that is not proved begins.
    from: Lsn,
    what: String,
}

/// What a walk of one segment has shown.
enum Verdict {
    Whole,
    Damaged(Damage),
    /// Its last record goes on where no complete segment is.
    EndsInside(Lsn),
}

/// Verifies the directory and writes what it found to standard output. The exit status is 0 when
/// nothing is damaged any more, 2 when something is, and 1 with an error.
///
/// # Errors
/// The hub runs, or the directory cannot be read or repaired.
pub fn verify(flags: &VerifyFlags) -> Result<ExitCode, Box<dyn Error>> {
    let damaged = verify_directory(flags, &mut io::stdout().lock())?;
    Ok(if damaged == 0 { ExitCode::SUCCESS } else { ExitCode::from(2) })
}

/// Returns how many segments are damaged still.
fn verify_directory(flags: &VerifyFlags, out: &mut impl Write) -> Result<u64, Box<dyn Error>> {
    let layout = Layout::new(&flags.directory);
    check_is_a_hubs(&layout)?;
    if !layout.control().exists() {
        return Err(
            format!("directory \"{}\" holds no control file", layout.root().display()).into()
        );
    }
    let command = command(flags)?;
    let locked = Directory::open(layout.root())?;
    let layout = locked.layout();
    let own = OwnSegments::read(layout)?;
    let mut whole = BTreeSet::new();
    let damaged = verify_all(layout, &own, command.as_ref(), &mut whole, out)?;
    forget_damage(layout, &whole)?;
    Ok(damaged)
}

/// Removes from what scrubs have found what they said of segments that are `whole` now. Otherwise the
/// hub would not serve them before its next scrub.
fn forget_damage(layout: &Layout, whole: &BTreeSet<SegmentName>) -> io::Result<()> {
    let path = layout.scrub();
    // One that cannot be read counts as missing, also for the hub.
    let note = read_small_now(&path)?.and_then(|bytes| ScrubNote::decode(&bytes).ok());
    let Some(mut note) = note else { return Ok(()) };
    if !note.mend(|name| !whole.contains(&name)) {
        return Ok(());
    }
    let written = run_ready(replace_durably(&PlainDisk, &path, note.encode()));
    written.unwrap_or_else(|| Err(io::ErrorKind::WouldBlock.into()))
}

/// Adds the segments that are whole in the end to `whole`. Returns how many are damaged still.
fn verify_all(
    layout: &Layout,
    own: &OwnSegments,
    command: Option<&RestoreCommand>,
    whole: &mut BTreeSet<SegmentName>,
    out: &mut impl Write,
) -> io::Result<u64> {
    let (mut proved, mut segments, mut damaged, mut unknown) = (BTreeSet::new(), 0, 0, 0);
    let mut contents = SegmentContents::default();
    for name in own.complete() {
        segments += 1;
        let (mut verdict, comparison) = look_at(layout, own, name, &mut proved)?;
        match &comparison {
            DigestComparison::Unknown => unknown += 1,
            DigestComparison::Same(digest) => {
                contents = contents.and(digest.contents.unwrap_or_default());
            }
            DigestComparison::Differs(_) => {}
        }
        if let Verdict::Damaged(damage) = &verdict {
            tell(out, damage)?;
            if let Some(command) = command {
                let head = head(&proved, name);
                let range = (damage.first, damage.last);
                match repair(layout, own, command, range, head)? {
                    Repaired::Yes(names) => {
                        for name in names {
                            writeln!(out, "{name}: repaired from the archive")?;
                        }
                        (verdict, _) = look_at(layout, own, name, &mut proved)?;
                    }
                    Repaired::DigestOnly => {
                        writeln!(out, "{name}: the archive has the same, its digest was removed")?;
                        (verdict, _) = look_at(layout, own, name, &mut proved)?;
                    }
                    Repaired::No(why) => writeln!(out, "{name}: not repaired: {why}")?,
                }
            }
        }
        match verdict {
            Verdict::Whole => {
                whole.insert(name);
            }
            Verdict::EndsInside(from) => {
                writeln!(out, "{name}: its last record, at {from}, is not whole after its end")?;
            }
            Verdict::Damaged(damage) => {
                damaged += 1;
                // What the record has in the next ones is not damage of theirs once more.
                let mut next = own.after(name);
                proved.insert(next);
                while next.no < damage.last.no {
                    next = own.after(next);
                    proved.insert(next);
                }
            }
        }
    }
    tell_contents(out, contents)?;
    write!(out, "{segments} complete segments, {damaged} damaged")?;
    match unknown {
        0 => writeln!(out)?,
        _ => writeln!(out, ", {unknown} without a digest")?,
    }
    Ok(damaged)
}

fn tell(out: &mut impl Write, damage: &Damage) -> io::Result<()> {
    let Damage { first, last, from, what } = damage;
    match first == last {
        true => writeln!(out, "{first}: damaged from {from} on: {what}"),
        false => writeln!(out, "{first} to {last}: damaged from {from} on: {what}"),
    }
}

/// What the digests say of all segments together.
fn tell_contents(out: &mut impl Write, contents: SegmentContents) -> io::Result<()> {
    if let Some((first, last)) = contents.stamps {
        let date = |stamp: Stamp| date_millis(PgTime::new(stamp.time).into());
        let (from, to) = (date(first), date(last));
        writeln!(out, "written from {from}, at {}, to {to}, at {}", first.at, last.at)?;
    }
    match contents.next_xid {
        Some(next) => writeln!(out, "next transaction ID {next}"),
        None => Ok(()),
    }
}

/// Walks one segment, and compares it with its digest.
fn look_at(
    layout: &Layout,
    own: &OwnSegments,
    name: SegmentName,
    proved: &mut BTreeSet<SegmentName>,
) -> io::Result<(Verdict, DigestComparison)> {
    let verdict = walk(own, name, proved)?;
    let found = own.open(name).and_then(|segment| match segment {
        Some(segment) => hash_file(&segment.file, name, |_| Ok(())).map(Some),
        None => Ok(None),
    });
    // The walk has said what cannot be read.
    let Ok(Some(found)) = found else { return Ok((verdict, DigestComparison::Unknown)) };
    let comparison = compare(layout, name, &found)?;
    let verdict = match (verdict, &comparison) {
        (Verdict::Damaged(damage), DigestComparison::Differs(blocks)) => {
            Verdict::Damaged(Damage { what: format!("{}; {blocks}", damage.what), ..damage })
        }
        (Verdict::Damaged(damage), DigestComparison::Same(_)) => {
            let what = format!("{}; {name} itself is as its digest says", damage.what);
            Verdict::Damaged(Damage { what, ..damage })
        }
        (_, DigestComparison::Differs(blocks)) => {
            let (from, what) = (blocks.from(), blocks.to_string());
            Verdict::Damaged(Damage { first: name, last: name, from, what })
        }
        (verdict, _) => verdict,
    };
    Ok((verdict, comparison))
}

/// Walks one segment; `proved` holds those whose first bytes are proved.
fn walk(
    own: &OwnSegments,
    name: SegmentName,
    proved: &mut BTreeSet<SegmentName>,
) -> io::Result<Verdict> {
    let unreadable = |error: io::Error| {
        let from = name.no.start(name.size);
        let what = format!("it cannot be read: {error}");
        Verdict::Damaged(Damage { first: name, last: name, from, what })
    };
    let segment = match own.open(name) {
        Ok(Some(segment)) => segment,
        Ok(None) => return Ok(unreadable(io::ErrorKind::NotFound.into())),
        Err(error) => return Ok(unreadable(error)),
    };
    let SegmentProof { unproved, continued } = match prove(own, &segment, head(proved, name)) {
        Ok(proof) => proof,
        Err(error) if own.rules(name.tli).is_err() => return Err(error),
        Err(error) => return Ok(unreadable(error)),
    };
    proved.extend(continued);
    let Some(unproved) = unproved else { return Ok(Verdict::Whole) };
    let from = unproved.from;
    Ok(match unproved.why {
        Reason::Missing(_) | Reason::NotWritten(_) => Verdict::EndsInside(from),
        // What a killed hub had not received yet is no damage.
        Reason::Damaged { last, .. } if own.is_open(last) => Verdict::EndsInside(from),
        Reason::Damaged { first, last, fault } => {
            Verdict::Damaged(Damage { first, last, from, what: fault.to_string() })
        }
    })
}

fn head(proved: &BTreeSet<SegmentName>, name: SegmentName) -> Head {
    if proved.contains(&name) { Head::Proved } else { Head::Unknown }
}

/// The command to repair with; `None` without `--repair`.
fn command(flags: &VerifyFlags) -> Result<Option<RestoreCommand>, String> {
    if !flags.repair {
        return Ok(None);
    }
    if flags.restore_command.is_empty() {
        return Err("--repair needs a --restore-command".to_owned());
    }
    let template = Template::parse(&flags.restore_command, &['f', 'p', 'r']);
    let template = template.map_err(|fault| format!("--restore-command: {fault}"))?;
    Ok(Some(RestoreCommand::new(template, &flags.directory)))
}

#[cfg(test)]
mod tests;
