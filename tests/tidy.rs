//! Compares the documents with the code: what `docs/architecture.md` says about rooms, threads and
//! invariants, and the other documents about flags, states and figures. Also looks for what does
//! not belong in the code at all. It reads files and runs nothing.
//!
//! Each rule has a test beside it that plants what the rule has to find.

#[path = "tidy/figures.rs"]
mod figures;
#[path = "tidy/lex.rs"]
mod lex;
#[path = "tidy/markdown.rs"]
mod markdown;
#[path = "tidy/names.rs"]
mod names;
#[path = "tidy/project.rs"]
mod project;
#[path = "tidy/rooms.rs"]
mod rooms;
#[path = "tidy/tree.rs"]
mod tree;
#[path = "tidy/words.rs"]
mod words;

use clap::CommandFactory;
use project::{Finding, Project};

/// Known violations: the rule, and the finding's subject. An exception that is no longer found
/// has to be removed from here.
const EXCEPTIONS: &[(&str, &str)] = &[];

/// Panics on findings that are not known exceptions, and on exceptions that are not found.
fn hold(rule: &str, findings: Vec<Finding>) {
    let report = judge(rule, findings, EXCEPTIONS);
    assert!(report.is_empty(), "{rule}:\n  {}", report.join("\n  "));
}

fn judge(rule: &str, findings: Vec<Finding>, exceptions: &[(&str, &str)]) -> Vec<String> {
    let known = |subject: &str| exceptions.contains(&(rule, subject));
    let idle = exceptions.iter().filter(|(of, subject)| {
        *of == rule && !findings.iter().any(|finding| finding.subject == *subject)
    });
    let idle: Vec<_> =
        idle.map(|(_, subject)| format!("{subject}: is no exception any more")).collect();
    let new = findings.into_iter().filter(|finding| !known(&finding.subject));
    new.map(|finding| format!("{}  [{}]", finding.subject, finding.detail)).chain(idle).collect()
}

#[test]
fn rooms_use_what_they_may() {
    hold("arrow", rooms::arrows(&Project::here()));
}

#[test]
fn the_table_of_rooms_is_true() {
    hold("room", rooms::table(&Project::here()));
}

#[test]
fn no_files_use_each_other_in_a_circle() {
    hold("circle", rooms::circles(&Project::here()));
}

#[test]
fn invariants_are_named_where_they_are_kept() {
    hold("invariant", words::invariants(&Project::here()));
}

#[test]
fn threads_are_those_of_the_table() {
    hold("thread", words::threads(&Project::here()));
}

#[test]
fn sqlstates_stand_in_their_file() {
    hold("sqlstate", words::sqlstates(&Project::here()));
}

#[test]
fn types_have_names_of_their_own() {
    hold("type", words::types(&Project::here()));
}

#[test]
fn only_the_ring_is_unsafe() {
    hold("unsafe", words::unsafe_code(&Project::here()));
}

#[test]
fn nothing_is_left_to_do() {
    hold("reminder", words::reminders(&Project::here()));
}

#[test]
fn files_say_what_they_are_for() {
    hold("header", words::headers(&Project::here()));
}

#[test]
fn flags_are_documented() {
    let command = walhub::cli::Cli::command();
    hold("flag", names::flags(&Project::here(), &names::flags_of(&command)));
}

#[test]
fn states_are_documented() {
    hold("state", names::states(&Project::here()));
}

#[test]
fn tables_are_whole() {
    hold("table", markdown::broken_tables(&Project::here()));
}

#[test]
fn figures_are_those_kept() {
    hold("figure", figures::figures(&Project::here()));
}

#[test]
fn exceptions_are_of_rules_that_there_are_and_go_when_they_are_not_needed() {
    const RULES: [&str; 14] = [
        "arrow",
        "room",
        "circle",
        "invariant",
        "thread",
        "sqlstate",
        "type",
        "unsafe",
        "reminder",
        "header",
        "flag",
        "state",
        "table",
        "figure",
    ];
    for (rule, subject) in EXCEPTIONS {
        assert!(RULES.contains(rule), "{rule}: {subject}");
    }
    let found = || vec![Finding::new("a", ""), Finding::new("b", "")];
    assert_eq!(judge("r", found(), &[("r", "a"), ("r", "b")]), [""; 0]);
    assert_eq!(judge("r", found(), &[("r", "a"), ("s", "b")]).len(), 1, "b is new");
    assert_eq!(judge("r", found(), &[("r", "a"), ("r", "b"), ("r", "c")]).len(), 1, "c is gone");
}
