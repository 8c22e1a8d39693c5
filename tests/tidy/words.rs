//! Rules about words in the code: which it may contain, and which the documents must mention.

use crate::lex::{Kind, Token};
use crate::markdown;
use crate::project::{Finding, Project};
use crate::tree::Tree;
use std::collections::{BTreeMap, BTreeSet};

const PAGE: &str = "docs/architecture.md";

/// Rule: the documents and the code name the same set.
fn same(docs: &BTreeSet<String>, code: &BTreeSet<String>) -> Vec<Finding> {
    let only = |some: &BTreeSet<String>, others: &BTreeSet<String>, whose: &str| {
        let missing = some.difference(others);
        missing.map(|name| Finding::new(format!("{name}: only {whose}"), "")).collect::<Vec<_>>()
    };
    let mut findings = only(docs, code, "in the documents");
    findings.extend(only(code, docs, "in the code"));
    findings
}

/// Rule: the code names every documented invariant, and no other.
pub(crate) fn invariants(project: &Project) -> Vec<Finding> {
    let items = markdown::prose(project.text(PAGE)).filter_map(|(_, line)| {
        let (number, _) = line.strip_prefix("- **")?.split_once("**")?;
        Some(number.to_owned())
    });
    let docs: BTreeSet<_> = items.filter(|item| is_invariant(item)).collect();
    let mut code = BTreeSet::new();
    for (_, text) in project.under("src/", ".rs") {
        for token in crate::lex::tokens(text) {
            if let Kind::Comment(text) | Kind::Text(text) = token.kind {
                let words = text.split(|c: char| !c.is_ascii_alphanumeric());
                code.extend(words.filter(|word| is_invariant(word)).map(str::to_owned));
            }
        }
    }
    same(&docs, &code)
}

fn is_invariant(word: &str) -> bool {
    let number = word.strip_prefix('I').unwrap_or_default();
    (1..=2).contains(&number.len()) && number.bytes().all(|b| b.is_ascii_digit())
}

/// Rule: the table of threads names the threads that a hub starts. The load generator's threads
/// are not in it.
pub(crate) fn threads(project: &Project) -> Vec<Finding> {
    let mut docs = BTreeSet::new();
    for row in markdown::table(project, PAGE, "Threads").map(|table| table.rows).unwrap_or_default()
    {
        docs.extend(markdown::codes(&row[0]).into_iter().map(numberless));
    }
    let mut code = BTreeSet::new();
    for (path, tokens) in Tree::of(project).files(project) {
        if path.starts_with("src/bench/") {
            continue;
        }
        for at in 0..tokens.len() {
            if is_path(&tokens[at..], &["Builder", "new"]) {
                let after = tokens[at..].iter().take(24);
                let name = after
                    .clone()
                    .zip(after.skip(1))
                    .position(|(dot, word)| dot.is('.') && word.is_word("name"));
                let name =
                    name.and_then(|name| tokens[at + name..].iter().take(8).find_map(Token::text));
                code.insert(
                    name.map_or_else(|| format!("{path}: a thread without a name"), numberless),
                );
            }
            if is_path(&tokens[at..], &["thread", "spawn"]) {
                code.insert(format!("{path}: a thread without a name"));
            }
        }
    }
    same(&docs, &code)
}

fn is_path(tokens: &[Token], path: &[&str]) -> bool {
    path.iter().enumerate().all(|(n, word)| {
        let at = 3 * n;
        tokens.get(at).is_some_and(|token| token.is_word(word))
            && (n == 0 || (tokens[at - 1].is(':') && tokens[at - 2].is(':')))
    })
}

/// `data-N` of `data-0` and `data-{index}`.
fn numberless(name: &str) -> String {
    match name.rsplit_once('-') {
        Some((stem, last)) if last.starts_with('{') || last.bytes().all(|b| b.is_ascii_digit()) => {
            format!("{stem}-N")
        }
        _ => name.to_owned(),
    }
}

/// The first two characters of PostgreSQL's SQLSTATEs (`errcodes.txt`).
const CLASSES: [&str; 44] = [
    "00", "01", "02", "03", "08", "09", "0A", "0B", "0F", "0L", "0P", "0Z", "10", "20", "21", "22",
    "23", "24", "25", "26", "27", "28", "2B", "2D", "2F", "34", "38", "39", "3B", "3D", "3F", "40",
    "42", "44", "53", "54", "55", "57", "58", "72", "F0", "HV", "P0", "XX",
];

/// Rule: SQLSTATEs are written only in `src/wire/sqlstate.rs`.
pub(crate) fn sqlstates(project: &Project) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, tokens) in Tree::of(project).files(project) {
        if path == "src/wire/sqlstate.rs" {
            continue;
        }
        for token in &tokens {
            if let Some(text) = token.text().filter(|text| is_sqlstate(text)) {
                let place = format!("line {}, belongs in src/wire/sqlstate.rs", token.line);
                findings.push(Finding::new(format!("{path}: \"{text}\""), place));
            }
        }
    }
    findings.dedup_by(|a, b| a.subject == b.subject);
    findings
}

fn is_sqlstate(text: &str) -> bool {
    let [a, b, c, d, e] = *text.as_bytes() else { return false };
    let class = std::str::from_utf8(&[a, b]).is_ok_and(|class| CLASSES.contains(&class));
    let sign = |b: u8| b.is_ascii_digit() || b.is_ascii_uppercase();
    let digits = d.is_ascii_digit() && e.is_ascii_digit();
    class && ((c == b'0' && sign(d) && sign(e)) || ((c.is_ascii_digit() || c == b'P') && digits))
}

/// Rule: no two types that other files can name have the same name. The hub and the load
/// generator are separate programs, each with its own names.
pub(crate) fn types(project: &Project) -> Vec<Finding> {
    let tree = Tree::of(project);
    let mut places: BTreeMap<_, Vec<String>> = BTreeMap::new();
    for definition in tree.types().filter(|definition| definition.is_visible) {
        let place = format!("{}:{}", definition.file, definition.line);
        let program = definition.file.starts_with("src/bench/");
        places.entry((&definition.name, program)).or_default().push(place);
    }
    let twice = places.into_iter().filter(|(_, places)| places.len() > 1);
    twice.map(|((name, _), places)| Finding::new(name, places.join(", "))).collect()
}

/// Rule: only `src/ring/` has unsafe code.
pub(crate) fn unsafe_code(project: &Project) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, tokens) in project.sources() {
        if !path.starts_with("src/ring/") {
            let here = tokens.iter().find(|token| token.is_word("unsafe"));
            findings.extend(here.map(|token| Finding::new(path, format!("line {}", token.line))));
        }
    }
    findings
}

/// Rule: no reminder of unfinished work is left.
pub(crate) fn reminders(project: &Project) -> Vec<Finding> {
    let reminders = ["FIXME", "TODO", "XXX", "HACK"];
    let has = |text: &str| {
        let mut words = text.split(|c: char| !c.is_ascii_alphanumeric());
        words.any(|word| reminders.contains(&word))
    };
    let mut findings = Vec::new();
    for (path, tokens) in project.sources() {
        let mut comments = tokens.iter().filter(|token| token.comment().is_some_and(has));
        findings.extend(
            comments.next().map(|token| Finding::new(path, format!("line {}", token.line))),
        );
    }
    for (page, text) in project.pages() {
        findings.extend(has(text).then(|| Finding::new(page, "")));
    }
    findings
}

/// Rule: a file begins with a comment that says what it is for.
pub(crate) fn headers(project: &Project) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, tokens) in project.sources() {
        let first = tokens.first().and_then(Token::comment).unwrap_or_default();
        if !first.starts_with("//!") && !first.starts_with("/*!") {
            findings.push(Finding::new(path, "does not begin with `//!`"));
        }
    }
    findings
}

mod tests {
    use super::*;

    fn subjects(findings: Vec<Finding>) -> Vec<String> {
        findings.into_iter().map(|finding| finding.subject).collect()
    }

    fn product(code: &str) -> Project {
        Project::of(&[("src/lib.rs", "mod a;"), ("src/a.rs", code)])
    }

    #[test]
    fn finds_invariants_that_one_side_names() {
        let page = "- **I1** Something.\n- **I2** Else (I3).\n- **Bold** no.\n";
        let code = "// I1: kept\nfn f() { panic!(\"I4: broken\"); let I5 = 0; }";
        let project = Project::of(&[(PAGE, page), ("src/a.rs", code)]);
        assert_eq!(
            subjects(invariants(&project)),
            ["I2: only in the documents", "I4: only in the code"]
        );
    }

    #[test]
    fn finds_threads_that_one_side_names() {
        let page = "## Threads\n\n| thread |\n|---|\n| `data-0`, `data-1` |\n| `gone` |\n";
        let code = "fn f() {
            std::thread::Builder::new().name(format!(\"data-{index}\")).spawn(g);
            Builder::new()
                .name(\"new\".to_owned());
            std::thread::spawn(|| {});
        }
        #[cfg(test)] mod tests { fn f() { std::thread::spawn(|| {}); } }";
        let project = Project::of(&[(PAGE, page), ("src/lib.rs", "mod a;"), ("src/a.rs", code)]);
        let found = subjects(threads(&project));
        assert_eq!(
            found,
            [
                "gone: only in the documents",
                "new: only in the code",
                "src/a.rs: a thread without a name: only in the code"
            ]
        );
    }

    #[test]
    fn finds_sqlstates_out_of_place() {
        let code = "const A: &str = \"57P03\"; // \"57P01\"\nconst B: [&str; 3] = [\"FATAL\", \"WRITE\", \"256MB\"];
            #[cfg(test)] mod tests { const C: &str = \"XX000\"; }";
        assert_eq!(subjects(sqlstates(&product(code))), ["src/a.rs: \"57P03\""]);
        let at_home = Project::of(&[
            ("src/lib.rs", "mod wire;"),
            ("src/wire/mod.rs", "mod sqlstate;"),
            ("src/wire/sqlstate.rs", "const A: &str = \"57P03\";"),
        ]);
        assert_eq!(sqlstates(&at_home), []);
    }

    #[test]
    fn finds_types_of_one_name() {
        let code = "pub struct A; struct B; pub(crate) enum C {} trait T { type A; } impl T for B { type A = u8; }
            mod c { pub struct A; struct B; pub trait C {} }";
        assert_eq!(subjects(types(&product(code))), ["A", "C"]);
    }

    #[test]
    fn finds_unsafe_code_outside_its_room() {
        let files = [
            ("src/ring/a.rs", "unsafe { f() }"),
            ("src/b.rs", "// unsafe\n#![forbid(unsafe_code)]"),
        ];
        assert_eq!(unsafe_code(&Project::of(&files)), []);
        let planted = Project::of(&[
            ("src/b.rs", "fn f() { unsafe { g() } }"),
            ("perf/c.rs", "unsafe fn f() {}"),
        ]);
        assert_eq!(subjects(unsafe_code(&planted)), ["perf/c.rs", "src/b.rs"]);
    }

    #[test]
    fn finds_what_is_left_to_do() {
        let word = ["TO", "DO"].concat();
        let planted = format!("fn f() {{}} // {word}: more");
        let good = format!("fn f() {{ g(\"{word}\") }} // mastodon");
        let page = format!("{word}\n");
        let project = Project::of(&[
            ("src/a.rs", planted.as_str()),
            ("src/b.rs", good.as_str()),
            ("docs/c.md", page.as_str()),
        ]);
        assert_eq!(subjects(reminders(&project)), ["src/a.rs", "docs/c.md"]);
    }

    #[test]
    fn finds_files_without_a_header() {
        let project = Project::of(&[
            ("src/a.rs", "//! A.\n"),
            ("src/b.rs", "// B.\nfn f() {}"),
            ("src/c.rs", ""),
        ]);
        assert_eq!(subjects(headers(&project)), ["src/b.rs", "src/c.rs"]);
    }
}
