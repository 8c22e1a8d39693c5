//! Rules about the rooms of `src/`: the table in `docs/architecture.md` says which room may use
//! which, and no files use each other in a circle.

use crate::markdown::{self, codes};
use crate::project::{Finding, Project};
use crate::tree::{Arrow, Tree};
use std::collections::{BTreeMap, BTreeSet};

const PAGE: &str = "docs/architecture.md";

/// The table of rooms.
#[derive(Debug, Default)]
struct Rooms {
    /// Each room's kind.
    kinds: BTreeMap<String, String>,
    /// The rooms that each room may use.
    may_use: BTreeMap<String, BTreeSet<String>>,
}

impl Rooms {
    /// Reads the table: a cell of the first column holds one or several rooms, `may use` holds
    /// rooms by name and whole kinds in italics.
    fn of(project: &Project) -> Result<Self, Finding> {
        let missing = |what: &str| Finding::new(format!("table of rooms: {what}"), PAGE);
        let table = markdown::table(project, PAGE, "Rooms").ok_or_else(|| missing("none"))?;
        let column = |name: &str| table.column(name).ok_or_else(|| missing(name));
        let (names, kind, uses) = (column("room")?, column("kind")?, column("may use")?);
        let mut rooms = Self::default();
        for row in &table.rows {
            for room in codes(&row[names]).into_iter().map(room_of) {
                rooms.kinds.insert(room, row[kind].clone());
            }
        }
        for row in &table.rows {
            for room in codes(&row[names]).into_iter().map(room_of) {
                let mut used: BTreeSet<_> =
                    codes(&row[uses]).into_iter().map(str::to_owned).collect();
                for kind in row[uses].split('*').skip(1).step_by(2) {
                    let of_kind = rooms.kinds.iter().filter(|(_, own)| *own == kind);
                    used.extend(of_kind.map(|(name, _)| name.clone()));
                }
                used.remove(&room);
                rooms.may_use.insert(room, used);
            }
        }
        Ok(rooms)
    }
}

/// The room of a path: `wal` of `src/wal/page.rs`, `src/wal/` and `src/wal.rs`.
fn room_of(path: &str) -> String {
    let path = path.strip_prefix("src/").unwrap_or(path);
    let first = path.split('/').next().unwrap_or(path);
    first.trim_end_matches(".rs").to_owned()
}

/// Arrows between rooms; the root of the library only declares them.
fn between_rooms(tree: &Tree) -> BTreeMap<(String, String), Vec<Arrow>> {
    let mut between: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for arrow in tree.arrows() {
        let (from, to) = (room_of(&arrow.from), room_of(&arrow.to));
        if from != to && from != "lib" && to != "lib" {
            between.entry((from, to)).or_default().push(arrow);
        }
    }
    between
}

/// Rule: a room uses only what the table lets it use.
pub(crate) fn arrows(project: &Project) -> Vec<Finding> {
    let rooms = match Rooms::of(project) {
        Ok(rooms) => rooms,
        Err(finding) => return vec![finding],
    };
    let tree = Tree::of(project);
    let mut findings = Vec::new();
    for ((from, to), arrows) in between_rooms(&tree) {
        if rooms.may_use.get(&from).is_some_and(|used| used.contains(&to)) {
            continue;
        }
        let places =
            arrows.iter().map(|arrow| format!("{}:{} {}", arrow.from, arrow.line, arrow.path));
        findings
            .push(Finding::new(format!("{from} -> {to}"), places.collect::<Vec<_>>().join(", ")));
    }
    findings
}

/// Rule: the table lists exactly the rooms that exist, and only arrows that exist; *words* and
/// *stages* use only words.
pub(crate) fn table(project: &Project) -> Vec<Finding> {
    let rooms = match Rooms::of(project) {
        Ok(rooms) => rooms,
        Err(finding) => return vec![finding],
    };
    let tree = Tree::of(project);
    let mut findings = Vec::new();
    let files = tree.files(project);
    let standing: BTreeSet<_> =
        files.iter().map(|(path, _)| room_of(path)).filter(|room| room != "lib").collect();
    for room in standing.iter().filter(|room| !rooms.kinds.contains_key(*room)) {
        findings.push(Finding::new(format!("room {room} is not in the table"), PAGE));
    }
    for room in rooms.kinds.keys().filter(|room| !standing.contains(*room)) {
        findings.push(Finding::new(format!("room {room} is in the table only"), PAGE));
    }
    let arrows: BTreeSet<_> = between_rooms(&tree).into_keys().collect();
    for (from, used) in &rooms.may_use {
        for to in used {
            if !arrows.contains(&(from.clone(), to.clone())) && named(project, from, to) {
                let what = format!("{from} may use {to} and does not");
                findings.push(Finding::new(what, PAGE));
            }
            let low = matches!(rooms.kinds[from].as_str(), "words" | "stages");
            if low && rooms.kinds.get(to).is_none_or(|kind| kind != "words") {
                let what = format!(
                    "{from} ({}) may use {to}, which is no room of words",
                    rooms.kinds[from]
                );
                findings.push(Finding::new(what, PAGE));
            }
        }
    }
    findings.extend(tree.strays(project).into_iter().map(|file| {
        Finding::new(format!("{file} is part of no module"), "a module that is declared nowhere")
    }));
    findings
}

/// Whether the table lists `to` for `from` by name, and not only by kind.
fn named(project: &Project, from: &str, to: &str) -> bool {
    let Some(table) = markdown::table(project, PAGE, "Rooms") else { return false };
    let (Some(room), Some(uses)) = (table.column("room"), table.column("may use")) else {
        return false;
    };
    let mut rows = table.rows.iter();
    rows.any(|row| {
        codes(&row[room]).into_iter().any(|path| room_of(path) == from)
            && codes(&row[uses]).contains(&to)
    })
}

/// Rule: no circle of files. A module's file and those of its children are one piece, in which a
/// child may use what its parents define: such arrows do not count.
pub(crate) fn circles(project: &Project) -> Vec<Finding> {
    let tree = Tree::of(project);
    let ties = |arrow: &Arrow| !arrow.handed_on && !is_inside(&arrow.from, &arrow.to);
    let arrows: Vec<_> = tree.arrows().into_iter().filter(ties).collect();
    let mut graph: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for arrow in &arrows {
        graph.entry(&arrow.from).or_default().insert(&arrow.to);
    }
    let reach: BTreeMap<_, _> = graph.keys().map(|file| (*file, reached(&graph, file))).collect();
    let mut findings = Vec::new();
    let mut seen = BTreeSet::new();
    for (file, reached) in &reach {
        if !reached.contains(file) || seen.contains(file) {
            continue;
        }
        let back = |other: &&&str| reach.get(**other).is_some_and(|set| set.contains(file));
        let circle: BTreeSet<_> = reached.iter().filter(back).copied().collect();
        seen.extend(circle.iter().copied());
        let ties = arrows.iter().filter(|arrow| {
            circle.contains(arrow.from.as_str()) && circle.contains(arrow.to.as_str())
        });
        let ties = ties.map(|arrow| format!("{}:{} {}", arrow.from, arrow.line, arrow.path));
        let subject = circle.iter().copied().collect::<Vec<_>>().join(", ");
        findings.push(Finding::new(subject, ties.collect::<Vec<_>>().join("\n    ")));
    }
    findings
}

/// Whether the module of one file is inside that of another.
fn is_inside(file: &str, other: &str) -> bool {
    let folder = other.strip_suffix("/mod.rs").or_else(|| other.strip_suffix(".rs"));
    folder.is_some_and(|folder| file.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/')))
}

fn reached<'a>(graph: &BTreeMap<&'a str, BTreeSet<&'a str>>, from: &str) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::new();
    let mut next: Vec<&str> = graph.get(from).into_iter().flatten().copied().collect();
    while let Some(file) = next.pop() {
        if reached.insert(file) {
            next.extend(graph.get(file).into_iter().flatten());
        }
    }
    reached
}

mod tests {
    use super::*;

    const TABLE: &str = "## Rooms\n\n| room | kind | may use | holds |\n|---|---|---|---|\n\
        | `src/a/` | words | | |\n| `src/b.rs` | stages | *words* | |\n| `src/c/` | engines | `a`, `b` | |\n";

    fn house<'a>(lib: &'a str, files: &[(&'a str, &'a str)]) -> Project {
        let base = [(PAGE, TABLE), ("src/lib.rs", lib)];
        Project::of(&base.iter().chain(files).copied().collect::<Vec<_>>())
    }

    fn subjects(findings: Vec<Finding>) -> Vec<String> {
        findings.into_iter().map(|finding| finding.subject).collect()
    }

    const LIB: &str = "pub mod a; pub mod b; pub mod c;";

    #[test]
    fn finds_forbidden_arrows_however_they_are_written() {
        let good = [
            (
                "src/a/mod.rs",
                "//! [`crate::c`]\npub struct A;\n#[cfg(test)] mod tests { use crate::c::C; }",
            ),
            ("src/b.rs", "use crate::a::A; fn f() -> &str { \"crate::c::C\" }"),
            ("src/c/mod.rs", "pub struct C; use crate::{a::A, b};"),
        ];
        assert_eq!(arrows(&house(LIB, &good)), []);
        assert_eq!(table(&house(LIB, &good)), []);
        for planted in [
            "use crate::c::C;",
            "use crate::{a::A, c::C};",
            "use super::c::C;",
            "fn f() { crate::c::C::new(); }",
            "fn f() { use crate::c; c::g(); }",
            "use crate::c as d;",
            "pub use crate::c::C;",
        ] {
            let mut files = good;
            files[1].1 = planted;
            assert_eq!(subjects(arrows(&house(LIB, &files))), ["b -> c"], "{planted}");
        }
    }

    #[test]
    fn finds_tables_that_are_not_true() {
        let files = [("src/a/mod.rs", ""), ("src/b.rs", ""), ("src/c/mod.rs", "use crate::a::A;")];
        assert_eq!(subjects(table(&house(LIB, &files))), ["c may use b and does not"]);
        let more =
            [files[0], files[1], ("src/c/mod.rs", "use crate::{a::A, b::B};"), ("src/d.rs", "")];
        let lib = format!("{LIB} mod d;");
        assert_eq!(subjects(table(&house(&lib, &more))), ["room d is not in the table"]);
        assert_eq!(subjects(table(&house(LIB, &more))), ["src/d.rs is part of no module"]);
        let table_of_b = TABLE.replace("*words* |", "`c` |");
        let project = Project::of(&[
            (PAGE, table_of_b.as_str()),
            ("src/lib.rs", LIB),
            files[0],
            ("src/b.rs", "use crate::c::C;"),
            more[2],
        ]);
        assert_eq!(subjects(table(&project)), ["b (stages) may use c, which is no room of words"]);
    }

    #[test]
    fn finds_circles_of_files() {
        let circle = |files: &[(&str, &str)]| subjects(circles(&house("mod a;", files)));
        let open = [
            ("src/a/mod.rs", "mod x; mod y; pub use x::X; pub(crate) const N: u8 = 1;"),
            ("src/a/x.rs", "use super::N; pub struct X;"),
            ("src/a/y.rs", "use super::X;"),
        ];
        assert_eq!(circle(&open), [""; 0], "what is only handed on ties nothing");
        let mut used = open;
        used[0].1 = "mod x; mod y; pub use x::X; fn f(_: X) {} pub(crate) const N: u8 = 1;";
        assert_eq!(circle(&used), [""; 0], "a child is a part of its parent");
        let parent = [
            open[0],
            ("src/a/x.rs", "use crate::b::B; pub struct X;"),
            open[2],
            ("src/b.rs", "use crate::a::N; pub struct B;"),
        ];
        let lib = "mod a; mod b;";
        assert_eq!(subjects(circles(&house(lib, &parent))), [""; 0]);
        let mut parent = parent;
        parent[0].1 = "mod x; mod y; pub use x::X; fn f(_: X) {} pub(crate) const N: u8 = 1;";
        assert_eq!(subjects(circles(&house(lib, &parent))), ["src/a/mod.rs, src/a/x.rs, src/b.rs"]);
        let mut through = open;
        through[1].1 = "fn f() { super::y::g(); } pub struct X;";
        assert_eq!(circle(&through), ["src/a/x.rs, src/a/y.rs"], "through the parent's name");
        let mut tests = open;
        tests[1].1 = "#[cfg(test)] mod tests { use super::super::y::Y; } pub struct X;";
        assert_eq!(circle(&tests), [""; 0]);
    }
}
