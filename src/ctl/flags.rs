//! Flags of `walhub ctl`.

use super::request::TrueHistory;
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Flags of `walhub ctl`.
#[derive(Debug, Args)]
#[command(after_help = "\
Asks the hub that runs in DIR, by the socket walhub.ctl there, which only the hub's own user and \
root may use. Exit status: 0 done; 1 the hub refused; 2 the hub could not be asked (none runs \
there, no permission, no answer in time), or the command line is wrong. When no answer comes, ask \
again: what is already done is not done twice.\n\n\
--json prints the hub's answer, one JSON object; errors too.")]
pub struct CtlFlags {
    /// The hub's directory
    #[arg(short = 'D', long, value_name = "DIR", env = "WALHUB_DIRECTORY")]
    pub directory: PathBuf,

    /// Print JSON
    #[arg(long, global = true)]
    pub json: bool,

    /// How long to wait for the answer; a number without a unit counts milliseconds
    #[arg(long, value_name = "TIME", default_value = "60s", global = true)]
    pub timeout: String,

    /// What to ask for
    #[command(subcommand)]
    pub command: CtlCommand,
}

/// What a hub can be asked for.
#[derive(Debug, Subcommand)]
pub enum CtlCommand {
    /// Show the hub's state: its upstream, its positions, how many standbys and slots
    Status,
    /// Show the connected standbys, and those that have diverged
    Standbys,
    /// Show the replication slots, or drop one
    Slots {
        /// What to do with a slot
        #[command(subcommand)]
        action: Option<SlotAction>,
    },
    /// Show which old WAL would be removed next, which slots would lose theirs, and who keeps what
    Retention,
    /// Read all complete segments again and compare them with their digests
    ///
    /// The hub reads at --scrub-rate. This begins it, unless it is under way, and prints how far it
    /// is and what is damaged; `walhub ctl status` shows the same. Ask again to see how it goes on.
    Verify {
        /// The most that this scrub reads in a second, instead of --scrub-rate; a number without a
        /// unit counts megabytes
        #[arg(long, value_name = "SIZE")]
        rate: Option<String>,
    },
    /// Show the upstream, or follow another one
    ///
    /// Another upstream applies at once and survives restarts, until --primary-conninfo itself is
    /// changed; the standbys stay connected. Prints how the connection goes after at most 2 s; an
    /// upstream that cannot be followed stays set.
    Upstream {
        /// The connection string; "-" reads it from standard input, out of sight of ps
        #[arg(value_name = "CONNINFO", conflicts_with = "reset")]
        conninfo: Option<String>,
        /// Follow the upstream of --primary-conninfo again
        #[arg(long)]
        reset: bool,
    },
    /// Stop receiving and acknowledging, and print the timeline and the LSN where that was
    ///
    /// The hub continues to serve standbys and connects to no upstream, also after a restart. A
    /// standby that has replayed up to this LSN has every commit that the hub ever acknowledged:
    /// it may be promoted. Fencing a fenced hub prints the same again.
    Fence,
    /// Receive again, from another upstream if one is named
    Unfence {
        /// Another upstream, in the same step; "-" reads it from standard input
        #[arg(long, value_name = "CONNINFO")]
        upstream: Option<String>,
    },
    /// Show what there is to confirm, or confirm it
    ///
    /// Without a position this shows what there is, with the command for each, and changes nothing.
    ///
    /// `abandoned LSN`: it is known what was lost there. When a timeline ended, or another history
    /// took its place, before the end of the WAL that the hub had of it, `walhub ctl status` shows what
    /// lay past that position, and how many commits are in it, until this is said. The WAL stays where
    /// it was set aside. `confirm LSN` is the same.
    ///
    /// `seam LSN`: no standby has the former WAL past the seam any more. From then on standbys past it
    /// are let in without a question. It is refused while a standby that was refused there still asks,
    /// unless --let-in names it.
    ///
    /// `aside NAME`: nobody needs what was set aside under this name. Its files, as the hub has seen
    /// them last, are removed when the hub has run for --keep-set-aside since.
    Confirm {
        /// What: abandoned, seam or aside
        #[arg(value_name = "WHAT")]
        what: Option<String>,
        /// The position, or the name, as in `walhub ctl status`
        #[arg(value_name = "LSN|NAME")]
        lsn: Option<String>,
        /// A standby (application_name) that is refused at the seam and does not have the former WAL,
        /// because it was made again; once for each
        #[arg(long, value_name = "NAME", requires = "lsn")]
        let_in: Vec<String>,
    },
    /// Say whose history is the true one where another source had other WAL
    ///
    /// `ours`: as if another source had shown the hub's WAL there. From then on only the source that
    /// had other WAL is not followed before it has the hub's.
    ///
    /// `theirs`: the hub's WAL from there on moves to `diverged/`, all streams end, and the hub
    /// follows an upstream that has the history which was seen there. A standby that is past the place is refused
    /// until `walhub ctl confirm seam` names it.
    AcceptHistory {
        /// Whose history it is
        #[arg(value_enum, hide_possible_values = true)]
        history: TrueHistory,
        /// The place, as in `walhub ctl status`
        #[arg(value_name = "LSN")]
        lsn: String,
    },
}

/// What to do with a slot.
#[derive(Debug, Subcommand)]
pub enum SlotAction {
    /// Drop a slot that nobody uses
    Drop {
        /// Its name
        name: String,
    },
}
