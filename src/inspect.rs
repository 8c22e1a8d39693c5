//! `walhub inspect`: shows a directory, or gives a copied one an ID of its own.

use crate::cluster::instance::InstanceId;
use crate::status::{DirectoryStatus, LockStatus};
use crate::store::directory::check_is_a_hubs;
use crate::store::inspect::{inspect_now, replace_instance_id};
use crate::store::layout::Layout;
use crate::store::rebuild::{Rebuilt, rebuild_control};
use clap::Args;
use std::error::Error;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// Flags of `walhub inspect`.
#[derive(Debug, Args)]
pub struct InspectFlags {
    /// The hub's directory
    #[arg(value_name = "DIR", env = "WALHUB_DIRECTORY")]
    pub directory: PathBuf,
    /// Print JSON
    #[arg(long, conflicts_with = "new_instance_id")]
    pub json: bool,
    /// Give a copied directory an identity of its own; the hub must not be running
    #[arg(long)]
    pub new_instance_id: bool,
    /// Say what is wrong with the control file, and write another one by what the WAL segments say;
    /// the damaged one is kept. The hub must not be running
    #[arg(long, conflicts_with_all = ["json", "new_instance_id"])]
    pub rebuild_control: bool,
}

/// Reads the directory and writes what it found to standard output. The exit status is
/// 0 when nothing is wrong, 2 when something is, and 1 with an error.
///
/// # Errors
/// The directory cannot be read, or the hub runs and its ID is to be replaced.
pub fn inspect(flags: &InspectFlags) -> Result<ExitCode, Box<dyn Error>> {
    let layout = Layout::new(&flags.directory);
    check_is_a_hubs(&layout)?;
    let mut out = io::stdout().lock();
    if flags.new_instance_id {
        let new = InstanceId::random().map_err(|e| e.to_string())?;
        let old = replace_instance_id(&layout, new)?;
        writeln!(out, "instance ID {old} replaced by {new}")?;
        return Ok(ExitCode::SUCCESS);
    }
    if flags.rebuild_control {
        let fresh = InstanceId::random().map_err(|e| e.to_string())?;
        return tell_rebuilt(&rebuild_control(&layout, fresh)?, &mut out);
    }
    let report = look(&layout)
        .map_err(|error| format!("could not read \"{}\": {error}", layout.root().display()))?;
    if flags.json {
        report.write_json(&mut out)?;
    } else {
        report.write_text(&mut out)?;
    }
    Ok(if report.wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(2) })
}

fn tell_rebuilt(rebuilt: &Rebuilt, out: &mut impl Write) -> Result<ExitCode, Box<dyn Error>> {
    for damage in &rebuilt.damage {
        writeln!(out, "{damage}")?;
    }
    writeln!(out, "{}", rebuilt.by)?;
    if let Some(kept) = &rebuilt.kept {
        writeln!(out, "the damaged control file is kept as \"{}\"", kept.display())?;
    }
    writeln!(out, "a control file was written for the hub {}", rebuilt.control.instance)?;
    Ok(ExitCode::SUCCESS)
}

/// Looks at the directory of a hub that may be running: a file can get its final name,
/// or go, between the listing and the look at it. What is still wrong at the last of
/// several looks is wrong.
fn look(layout: &Layout) -> io::Result<DirectoryStatus> {
    let mut report = inspect_now(layout)?;
    for _ in 1..LOOKS {
        if report.wrong.is_empty() || matches!(report.running, LockStatus::No) {
            break;
        }
        report = inspect_now(layout)?;
    }
    Ok(report)
}

const LOOKS: u32 = 5;
