//! The modules of the product, and which file takes names from which.
//!
//! It reads the paths in the code, in `use` and written out in place, that begin with `crate`,
//! `self`, `super`, a module declared in the file, or a name that a `use` imported. A re-exported
//! name counts as taken from the file that defines it. A module that only re-exports a name
//! (`pub use`, and no other mention) takes nothing for itself.
//!
//! It does not see method calls on types that the file does not name, names imported by a glob,
//! and code that macros generate. Code only for tests is left out: it may use every room.

use crate::lex::{self, Kind, Token};
use crate::project::Project;
use std::collections::{BTreeMap, BTreeSet};

/// A path of modules from the crate's root.
type Place = Vec<String>;

/// One module of the product.
#[derive(Debug, Default)]
struct Module {
    file: String,
    children: BTreeSet<String>,
    /// Imported names, and the paths they stand for as written.
    imports: BTreeMap<String, Vec<String>>,
    /// Paths in the code.
    mentions: Vec<Mention>,
    /// Types defined here.
    types: Vec<TypeDefinition>,
}

#[derive(Debug)]
struct Mention {
    path: Vec<String>,
    line: usize,
    /// Only re-exported.
    handed_on: bool,
}

/// A type defined in the product.
#[derive(Debug, Clone)]
pub(crate) struct TypeDefinition {
    pub(crate) name: String,
    pub(crate) file: String,
    pub(crate) line: usize,
    /// Whether other files can name it.
    pub(crate) is_visible: bool,
}

/// One file takes a name from another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Arrow {
    pub(crate) from: String,
    pub(crate) to: String,
    /// As written.
    pub(crate) path: String,
    pub(crate) line: usize,
    /// The file only re-exports the name.
    pub(crate) handed_on: bool,
}

/// The product's modules.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    modules: BTreeMap<Place, Module>,
    /// Files of `src/` that are only for tests.
    test_files: BTreeSet<String>,
}

impl Tree {
    pub(crate) fn of(project: &Project) -> Self {
        let mut tree = Self::default();
        tree.read(project, "src/lib.rs", Vec::new());
        if project.files.contains_key("src/main.rs") {
            tree.read(project, "src/main.rs", vec!["main".to_owned()]);
        }
        tree
    }

    /// The files of the product, with their tokens.
    pub(crate) fn files<'a>(&self, project: &'a Project) -> Vec<(&'a str, Vec<Token>)> {
        let product: BTreeSet<_> = self.modules.values().map(|module| &module.file).collect();
        let files =
            project.under("src/", ".rs").filter(|(path, _)| product.contains(&(*path).to_owned()));
        files.map(|(path, text)| (path, lex::without_tests(&lex::tokens(text)))).collect()
    }

    /// Files of `src/` that no module declares.
    pub(crate) fn strays<'a>(&self, project: &'a Project) -> Vec<&'a str> {
        let known: BTreeSet<_> = self.modules.values().map(|module| module.file.as_str()).collect();
        let stray = |path: &&str| !known.contains(path) && !self.test_files.contains(*path);
        project.under("src/", ".rs").map(|(path, _)| path).filter(stray).collect()
    }

    pub(crate) fn types(&self) -> impl Iterator<Item = &TypeDefinition> {
        self.modules.values().flat_map(|module| &module.types)
    }

    /// Which file takes which name from which other file.
    pub(crate) fn arrows(&self) -> BTreeSet<Arrow> {
        let mut arrows = BTreeSet::new();
        for (place, module) in &self.modules {
            for mention in &module.mentions {
                let Some(to) = self.resolve(place, &mention.path, 0) else { continue };
                if to != module.file {
                    arrows.insert(Arrow {
                        from: module.file.clone(),
                        to,
                        path: mention.path.join("::"),
                        line: mention.line,
                        handed_on: mention.handed_on,
                    });
                }
            }
        }
        arrows
    }

    /// The file in which a path written at `place` ends; `None` outside the product.
    fn resolve(&self, place: &[String], path: &[String], depth: u32) -> Option<String> {
        // A circle of imports leads back to this name.
        if depth > 32 {
            return None;
        }
        let (first, rest) = path.split_first()?;
        let (start, rest): (Place, &[String]) = match first.as_str() {
            "crate" => (root_of(place), rest),
            "walhub" => (Vec::new(), rest),
            "self" => (place.to_vec(), rest),
            "super" => {
                let mut start = place.to_vec();
                start.pop();
                let mut rest = rest;
                while let Some((word, after)) = rest.split_first()
                    && word == "super"
                {
                    start.pop();
                    rest = after;
                }
                (start, rest)
            }
            _ => {
                let module = self.modules.get(place)?;
                let known = module.children.contains(first) || module.imports.contains_key(first);
                if !known || module.imports.get(first).is_some_and(|import| import == path) {
                    return None;
                }
                (place.to_vec(), path)
            }
        };
        let mut at = start;
        for (taken, name) in rest.iter().enumerate() {
            let module = self.modules.get(&at)?;
            if module.children.contains(name) {
                at.push(name.clone());
                if !self.modules.contains_key(&at) {
                    // A module for tests.
                    return None;
                }
            } else if let Some(import) = module.imports.get(name) {
                let after = rest.get(taken + 1..).unwrap_or_default();
                let path: Vec<_> = import.iter().chain(after).cloned().collect();
                return self
                    .resolve(&at, &path, depth + 1)
                    .or_else(|| Some(module.file.clone()).filter(|_| is_ours(import)));
            } else {
                return Some(module.file.clone());
            }
        }
        self.modules.get(&at).map(|module| module.file.clone())
    }

    fn read(&mut self, project: &Project, file: &str, place: Place) {
        let tokens = lex::tokens(project.text(file));
        for name in test_modules(&tokens) {
            self.note_test_files(project, &child_files(file, &name));
        }
        let tokens: Vec<_> = lex::without_tests(&tokens)
            .into_iter()
            .filter(|token| token.comment().is_none())
            .collect();
        self.read_module(project, file, place, &tokens);
    }

    fn note_test_files(&mut self, project: &Project, candidates: &[String]) {
        for file in candidates {
            let Some(text) = project.files.get(file) else { continue };
            self.test_files.insert(file.clone());
            let tokens = lex::tokens(text);
            for at in 0..tokens.len() {
                if let Some(name) = declared(&tokens[at..]) {
                    self.note_test_files(project, &child_files(file, name));
                }
            }
        }
    }

    fn read_module(&mut self, project: &Project, file: &str, place: Place, tokens: &[Token]) {
        let mut module = Module { file: file.to_owned(), ..Module::default() };
        let mut at = 0;
        while at < tokens.len() {
            let here = &tokens[at..];
            if let Some(name) = declared(here) {
                module.children.insert(name.to_owned());
                let child: Place = place.iter().cloned().chain([name.to_owned()]).collect();
                for file in child_files(file, name) {
                    if project.files.contains_key(&file) {
                        self.read(project, &file, child.clone());
                    }
                }
                at += 3;
            } else if let Some((name, body)) = inline(here) {
                module.children.insert(name.to_owned());
                let child: Place = place.iter().cloned().chain([name.to_owned()]).collect();
                self.read_module(project, file, child, &body[1..body.len() - 1]);
                at += 2 + body.len();
            } else if here[0].is_word("use") {
                let end = here.iter().position(|token| token.is(';')).unwrap_or(here.len());
                let public = at > 0 && (tokens[at - 1].is_word("pub") || tokens[at - 1].is(')'));
                module.import(&here[1..end], public, tokens);
                at += end;
            } else {
                module.note_type(here, at.checked_sub(1).map(|before| &tokens[before]));
                at += module.mention(here, at.checked_sub(1).map(|before| &tokens[before]));
            }
        }
        self.modules.insert(place, module);
    }
}

impl Module {
    fn import(&mut self, tree: &[Token], public: bool, all: &[Token]) {
        let mut leaves = Vec::new();
        use_leaves(tree, &[], &mut leaves);
        let line = tree.first().map_or(0, |token| token.line);
        for (path, name) in leaves {
            let mentioned = |name: &str| all.iter().filter(|token| token.is_word(name)).count() > 1;
            let handed_on = public && !mentioned(&name);
            if name != "_" && name != "*" {
                self.imports.insert(name, path.clone());
            }
            self.mentions.push(Mention { path, line, handed_on });
        }
    }

    /// Records the path that begins here; returns how many tokens it takes, at least one.
    fn mention(&mut self, tokens: &[Token], before: Option<&Token>) -> usize {
        let mut path = Vec::new();
        let mut at = 0;
        while let Some(word) = tokens.get(at).and_then(Token::word) {
            path.push(word.to_owned());
            at += 1;
            let colons = tokens.get(at..at + 2).is_some_and(|two| two[0].is(':') && two[1].is(':'));
            if !colons || tokens.get(at + 2).is_none_or(|next| next.word().is_none()) {
                break;
            }
            at += 2;
        }
        let goes_on = before.is_some_and(|token| token.is('.') || token.is(':'));
        if path.len() > 1 && !goes_on {
            self.mentions.push(Mention { path, line: tokens[0].line, handed_on: false });
        }
        at.max(1)
    }

    fn note_type(&mut self, tokens: &[Token], before: Option<&Token>) {
        let defines = ["struct", "enum", "trait", "type", "union"];
        let [keyword, name, ..] = tokens else { return };
        let (Some(word), Some(name)) = (keyword.word(), name.word()) else { return };
        let upper = name.starts_with(|c: char| c.is_ascii_uppercase());
        // An associated type of a trait is not a type of its own.
        let associated = word == "type" && before.is_none_or(|token| !visible(token));
        if !defines.contains(&word) || !upper || associated {
            return;
        }
        self.types.push(TypeDefinition {
            name: name.to_owned(),
            file: self.file.clone(),
            line: keyword.line,
            is_visible: before.is_some_and(visible),
        });
    }
}

fn visible(token: &Token) -> bool {
    token.is_word("pub") || token.is(')')
}

fn is_ours(path: &[String]) -> bool {
    matches!(path.first().map(String::as_str), Some("crate" | "self" | "super" | "walhub"))
}

/// The program's root is its own crate, which knows the library as `walhub`.
fn root_of(place: &[String]) -> Place {
    place.iter().take(1).filter(|first| *first == "main").cloned().collect()
}

/// `mod name;`
fn declared(tokens: &[Token]) -> Option<&str> {
    let [keyword, name, end, ..] = tokens else { return None };
    (keyword.is_word("mod") && end.is(';')).then(|| name.word()).flatten()
}

/// `mod name { ... }`
fn inline(tokens: &[Token]) -> Option<(&str, &[Token])> {
    let [keyword, name, open, ..] = tokens else { return None };
    let name = (keyword.is_word("mod") && open.is('{')).then(|| name.word()).flatten()?;
    Some((name, &tokens[2..2 + lex::group_len(&tokens[2..])]))
}

/// The names of modules declared only for tests.
fn test_modules(tokens: &[Token]) -> Vec<String> {
    let product = lex::without_tests(tokens);
    let declarations = |tokens: &[Token]| -> Vec<String> {
        (0..tokens.len()).filter_map(|at| declared(&tokens[at..]).map(str::to_owned)).collect()
    };
    let mut all = declarations(tokens);
    let kept = declarations(&product);
    all.retain(|name| !kept.contains(name));
    all
}

/// Where the file of a child module may be.
fn child_files(file: &str, name: &str) -> [String; 2] {
    let (folder, own) = file.rsplit_once('/').unwrap_or(("", file));
    let folder = match own {
        "mod.rs" | "lib.rs" | "main.rs" => folder.to_owned(),
        _ => format!("{folder}/{}", own.trim_end_matches(".rs")),
    };
    [format!("{folder}/{name}.rs"), format!("{folder}/{name}/mod.rs")]
}

/// The paths of a `use`, each with its name in this file.
fn use_leaves(tree: &[Token], prefix: &[String], leaves: &mut Vec<(Vec<String>, String)>) {
    let mut path = prefix.to_vec();
    let mut at = 0;
    while let Some(token) = tree.get(at) {
        match &token.kind {
            Kind::Word(word) if word == "as" => {
                let name = tree.get(at + 1).and_then(Token::word).unwrap_or("_").to_owned();
                leaves.push((path, name));
                return;
            }
            Kind::Word(word) if word == "self" && !path.is_empty() => {}
            Kind::Word(word) => path.push(word.clone()),
            Kind::Sign('*') => {
                leaves.push((path, "*".to_owned()));
                return;
            }
            Kind::Sign('{') => {
                let group = &tree[at..at + lex::group_len(&tree[at..])];
                for part in lex::split(&group[1..group.len() - 1]) {
                    use_leaves(part, &path, leaves);
                }
                return;
            }
            _ => {}
        }
        at += 1;
    }
    if let Some(name) = path.last().cloned() {
        leaves.push((path, name));
    }
}
