//! Rules about names that operators meet: flags and states are what the documents say.

use crate::lex;
use crate::markdown::{self, codes};
use crate::project::{Finding, Project};
use std::collections::BTreeSet;

/// The long flags of a command and of all below it.
pub(crate) fn flags_of(command: &clap::Command) -> BTreeSet<String> {
    let own = command.get_arguments().filter(|arg| !arg.is_hide_set());
    let own = own.filter_map(|arg| arg.get_long()).map(|long| format!("--{long}"));
    own.chain(command.get_subcommands().flat_map(flags_of)).collect()
}

/// The flags of the programs outside the product: fields of their `clap` structs.
fn other_flags(project: &Project) -> BTreeSet<String> {
    let mut flags = BTreeSet::new();
    for (_, text) in project.under("perf/options.rs", ".rs") {
        let tokens = lex::tokens(text);
        let long = tokens.windows(3).enumerate().filter(|(_, three)| {
            three[0].is_word("arg") && three[1].is('(') && three[2].is_word("long")
        });
        for (at, _) in long {
            let mut after = tokens[at..].iter().skip_while(|token| !token.is(']'));
            let field = after
                .find_map(|token| token.word().filter(|word| *word != "pub" && *word != "crate"));
            flags.extend(field.map(|field| format!("--{}", field.replace('_', "-"))));
        }
    }
    flags
}

/// Flags in the documents.
#[derive(Default)]
struct Documented {
    /// Anywhere in code.
    mentioned: BTreeSet<String>,
    /// In code that begins with a flag or with `walhub`, so that it can only be ours.
    claimed: BTreeSet<String>,
}

impl Documented {
    fn of(project: &Project) -> Self {
        let mut documented = Self::default();
        for (_, page) in project.pages() {
            for (_, line) in markdown::prose(page) {
                for code in codes(line) {
                    documented.mentioned.extend(flags_in(code));
                    let first = code.split_whitespace().next().unwrap_or_default();
                    if first.starts_with("--") || first == "walhub" {
                        documented.claimed.extend(flags_in(code));
                    }
                }
            }
            documented.read_commands(page);
        }
        documented.mentioned.extend(documented.claimed.iter().cloned());
        documented
    }

    /// The commands of fenced code that run `walhub`, over all their lines.
    fn read_commands(&mut self, page: &str) {
        let (mut fenced, mut goes_on) = (false, false);
        for line in page.lines() {
            fenced ^= line.trim_start().starts_with("```");
            let command = line.split('#').next().unwrap_or_default();
            let begin = command.find("walhub ").filter(|at| {
                let before = &command[..*at];
                before.trim().is_empty() || before.ends_with('/')
            });
            let ours = fenced && (begin.is_some() || goes_on);
            if ours {
                self.claimed.extend(flags_in(&command[begin.unwrap_or(0)..]));
            }
            goes_on = ours && command.trim_end().ends_with('\\');
        }
    }
}

fn flags_in(text: &str) -> impl Iterator<Item = String> {
    let sign = |c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    text.split(sign).filter(|word| word.starts_with("--") && word.len() > 2).map(str::to_owned)
}

/// Rule: the documents know every flag, and no other.
pub(crate) fn flags(project: &Project, product: &BTreeSet<String>) -> Vec<Finding> {
    let Documented { mentioned, claimed } = Documented::of(project);
    let others = other_flags(project);
    let of_clap = ["--help", "--version"].map(str::to_owned);
    let missing = product.difference(&mentioned).filter(|flag| !of_clap.contains(flag));
    let mut findings: Vec<_> =
        missing.map(|flag| Finding::new(format!("{flag}: not in the documents"), "")).collect();
    let unknown = claimed
        .difference(product)
        .filter(|flag| !others.contains(*flag) && !of_clap.contains(flag));
    findings.extend(unknown.map(|flag| Finding::new(format!("{flag}: in the documents only"), "")));
    findings
}

/// Rule: the table of states names the states of the upstream connection.
pub(crate) fn states(project: &Project) -> Vec<Finding> {
    let table = markdown::table(project, "docs/operations.md", "States");
    let rows = table.map(|table| table.rows).unwrap_or_default();
    let docs: BTreeSet<_> = rows
        .into_iter()
        .filter_map(|row| row.into_iter().next())
        .filter(|name| !name.is_empty())
        .collect();
    let tokens = lex::tokens(project.text("src/upstream/state.rs"));
    let body = tokens.windows(2).position(|two| two[0].is_word("fn") && two[1].is_word("name"));
    let body = body.map_or(&[][..], |at| &tokens[at..]);
    let open = body.iter().position(|token| token.is('{')).unwrap_or(body.len());
    let body = body.get(open..open + lex::group_len(&body[open..])).unwrap_or_default();
    let code: BTreeSet<_> =
        body.iter().filter_map(|token| token.text()).map(str::to_owned).collect();
    let mut findings = Vec::new();
    for name in docs.symmetric_difference(&code) {
        let side = if docs.contains(name) { "documents" } else { "code" };
        findings.push(Finding::new(
            format!("{name}: only in the {side}"),
            "docs/operations.md, States",
        ));
    }
    findings
}

mod tests {
    use super::*;

    fn subjects(findings: Vec<Finding>) -> Vec<String> {
        findings.into_iter().map(|finding| finding.subject).collect()
    }

    #[test]
    fn finds_flags_that_one_side_names() {
        let product = ["--alpha", "--beta", "--gamma-delta", "--help"].map(str::to_owned).into();
        let page = "`status --alpha SIZE`, `pg_ctl --mode`, not --beta\n\n```sh\n\
            target/release/walhub serve -D x \\\n    --beta 1\npsql --csv\nwalhub ctl --epsilon # --no\n```\n\
            `--repeats-of`\n";
        let options = "struct O { #[arg(long, default_value_t = 5)] pub(crate) repeats_of: usize }";
        let project = Project::of(&[("docs/a.md", page), ("perf/options.rs", options)]);
        assert_eq!(
            subjects(flags(&project, &product)),
            ["--gamma-delta: not in the documents", "--epsilon: in the documents only"]
        );
    }

    #[test]
    fn finds_states_that_one_side_names() {
        let page = "## States\n\n| state | b |\n|---|---|\n| one | |\n| | |\n| two | |\n";
        let code = "impl S { pub fn name(&self) -> &str { match self { A => \"one\", B => \"three\" } } fn f() { \"four\" } }";
        let project = Project::of(&[("docs/operations.md", page), ("src/upstream/state.rs", code)]);
        assert_eq!(
            subjects(states(&project)),
            ["three: only in the code", "two: only in the documents"]
        );
    }
}
