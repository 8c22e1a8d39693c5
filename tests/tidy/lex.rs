//! Rust source as tokens: enough to tell code from comments and string literals.

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An identifier or a keyword.
    Word(String),
    /// A string literal of any form, without its quotes; escapes stay as written.
    Text(String),
    /// A comment with its delimiters.
    Comment(String),
    /// One punctuation character.
    Sign(char),
    /// A number, a character, a lifetime.
    Other,
}

/// A token and the line it begins on, counted from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) kind: Kind,
    pub(crate) line: usize,
}

impl Token {
    pub(crate) fn word(&self) -> Option<&str> {
        match &self.kind {
            Kind::Word(word) => Some(word),
            _ => None,
        }
    }

    pub(crate) fn text(&self) -> Option<&str> {
        match &self.kind {
            Kind::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(crate) fn comment(&self) -> Option<&str> {
        match &self.kind {
            Kind::Comment(text) => Some(text),
            _ => None,
        }
    }

    pub(crate) fn is_word(&self, word: &str) -> bool {
        self.word() == Some(word)
    }

    pub(crate) fn is(&self, sign: char) -> bool {
        self.kind == Kind::Sign(sign)
    }
}

struct Lexer<'a> {
    rest: &'a str,
    line: usize,
}

/// The tokens of a whole source file.
pub(crate) fn tokens(source: &str) -> Vec<Token> {
    let mut lexer = Lexer { rest: source, line: 1 };
    std::iter::from_fn(|| lexer.next()).collect()
}

impl Lexer<'_> {
    fn next(&mut self) -> Option<Token> {
        let blank = self.rest.len() - self.rest.trim_start().len();
        self.take(blank);
        let line = self.line;
        let first = self.rest.chars().next()?;
        let kind = match first {
            '/' if self.rest.starts_with("//") => {
                let len = self.rest.find('\n').unwrap_or(self.rest.len());
                Kind::Comment(self.take(len))
            }
            '/' if self.rest.starts_with("/*") => Kind::Comment(self.block_comment()),
            '"' => Kind::Text(self.quoted()),
            '\'' => self.quote(),
            _ if first.is_ascii_digit() => {
                let digit = |c: char| !(c.is_alphanumeric() || c == '_');
                let len = self.rest.find(digit).unwrap_or(self.rest.len());
                self.take(len);
                Kind::Other
            }
            _ if first.is_alphabetic() || first == '_' => self.word_or_text(),
            sign => {
                self.take(sign.len_utf8());
                Kind::Sign(sign)
            }
        };
        Some(Token { kind, line })
    }

    fn take(&mut self, len: usize) -> String {
        let (taken, rest) = self.rest.split_at(len);
        self.line += taken.matches('\n').count();
        self.rest = rest;
        taken.to_owned()
    }

    fn block_comment(&mut self) -> String {
        let (mut depth, mut at) = (0_u32, 0);
        while at < self.rest.len() {
            let here = &self.rest[at..];
            if here.starts_with("/*") {
                (depth, at) = (depth + 1, at + 2);
            } else if here.starts_with("*/") {
                (depth, at) = (depth - 1, at + 2);
                if depth == 0 {
                    break;
                }
            } else {
                at += here.chars().next().map_or(1, char::len_utf8);
            }
        }
        self.take(at)
    }

    /// From a quotation mark to the next one that is not escaped.
    fn quoted(&mut self) -> String {
        self.take(1);
        let mut escaped = false;
        let end = self.rest.find(|c| {
            let ends = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        let text = self.take(end.unwrap_or(self.rest.len()));
        self.take(usize::from(end.is_some()));
        text
    }

    /// A character or a lifetime.
    fn quote(&mut self) -> Kind {
        let mut chars = self.rest.chars().skip(1);
        let (first, second) = (chars.next(), chars.next());
        let len = if first == Some('\\') {
            // Skip an escaped quote: it does not close the literal.
            self.rest[3..].find('\'').map_or(self.rest.len(), |end| end + 4)
        } else if second == Some('\'') {
            2 + first.map_or(0, char::len_utf8)
        } else {
            let name = |c: char| !(c.is_alphanumeric() || c == '_');
            self.rest[1..].find(name).map_or(self.rest.len(), |end| end + 1)
        };
        self.take(len);
        Kind::Other
    }

    fn word_or_text(&mut self) -> Kind {
        let name = |c: char| !(c.is_alphanumeric() || c == '_');
        let len = self.rest.find(name).unwrap_or(self.rest.len());
        let (word, after) = self.rest.split_at(len);
        let hashes = after.len() - after.trim_start_matches('#').len();
        let raw = matches!(word, "r" | "br" | "cr") && after[hashes..].starts_with('"');
        if raw {
            self.take(len + hashes + 1);
            let mark = format!("\"{}", "#".repeat(hashes));
            let end = self.rest.find(&mark).unwrap_or(self.rest.len());
            let text = self.take(end);
            self.take(mark.len().min(self.rest.len()));
            return Kind::Text(text);
        }
        if matches!(word, "b" | "c") && after.starts_with('"') {
            self.take(len);
            return Kind::Text(self.quoted());
        }
        if word == "b" && after.starts_with('\'') {
            self.take(len);
            return self.quote();
        }
        Kind::Word(self.take(len))
    }
}

/// The tokens of the product, without code that is compiled only for tests.
pub(crate) fn without_tests(tokens: &[Token]) -> Vec<Token> {
    let mut kept = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        match attribute(&tokens[at..]) {
            Some(attribute) if is_for_tests(attribute) => {
                at += attribute.len();
                at += item_len(&tokens[at..]);
            }
            Some(attribute) => {
                kept.extend_from_slice(attribute);
                at += attribute.len();
            }
            None => {
                kept.push(tokens[at].clone());
                at += 1;
            }
        }
    }
    kept
}

/// `#[...]` at the beginning.
pub(crate) fn attribute(tokens: &[Token]) -> Option<&[Token]> {
    let opens = tokens.first()?.is('#') && tokens.get(1)?.is('[');
    opens.then(|| &tokens[..1 + group_len(&tokens[1..])])
}

/// Whether the code after this attribute is compiled only for tests.
pub(crate) fn is_for_tests(attribute: &[Token]) -> bool {
    attribute.get(2).is_some_and(|token| token.is_word("cfg"))
        && !holds(&attribute[4..]).is_possible
}

/// Whether a predicate of `cfg` can hold, and can fail, where tests are not built.
struct Outside {
    is_possible: bool,
    can_fail: bool,
}

fn holds(predicate: &[Token]) -> Outside {
    let (Some(word), group) = (predicate.first().and_then(Token::word), predicate.get(1)) else {
        return Outside { is_possible: true, can_fail: true };
    };
    if group.is_none_or(|token| !token.is('(')) {
        return Outside { is_possible: word != "test", can_fail: true };
    }
    let inner = &predicate[2..group_len(&predicate[1..])];
    let mut parts = split(inner).into_iter().map(holds);
    match word {
        "not" => parts.next().map_or(Outside { is_possible: true, can_fail: true }, |part| {
            Outside { is_possible: part.can_fail, can_fail: part.is_possible }
        }),
        "any" => parts.fold(Outside { is_possible: false, can_fail: true }, |all, part| Outside {
            is_possible: all.is_possible || part.is_possible,
            can_fail: all.can_fail && part.can_fail,
        }),
        _ => parts.fold(Outside { is_possible: true, can_fail: false }, |all, part| Outside {
            is_possible: all.is_possible && part.is_possible,
            can_fail: all.can_fail || part.can_fail,
        }),
    }
}

/// The parts between commas outside brackets.
pub(crate) fn split(tokens: &[Token]) -> Vec<&[Token]> {
    let (mut parts, mut begin, mut at) = (Vec::new(), 0, 0);
    while at < tokens.len() {
        if tokens[at].is(',') {
            parts.push(&tokens[begin..at]);
            begin = at + 1;
        }
        let opens = ['(', '[', '{'].iter().any(|sign| tokens[at].is(*sign));
        at += if opens { group_len(&tokens[at..]) } else { 1 };
    }
    parts.push(&tokens[begin..]);
    parts.retain(|part| !part.is_empty());
    parts
}

/// The length of the group that begins with an opening bracket, including both brackets.
pub(crate) fn group_len(tokens: &[Token]) -> usize {
    let mut depth = 0_u32;
    for (at, token) in tokens.iter().enumerate() {
        if ['(', '[', '{'].iter().any(|sign| token.is(*sign)) {
            depth += 1;
        } else if [')', ']', '}'].iter().any(|sign| token.is(*sign)) {
            depth -= 1;
            if depth == 0 {
                return at + 1;
            }
        }
    }
    tokens.len()
}

/// The length of the item, field or variant at the beginning.
fn item_len(tokens: &[Token]) -> usize {
    const ITEMS: [&str; 16] = [
        "async",
        "const",
        "enum",
        "extern",
        "fn",
        "impl",
        "macro_rules",
        "mod",
        "pub",
        "static",
        "struct",
        "trait",
        "type",
        "union",
        "unsafe",
        "use",
    ];
    let mut at = 0;
    while let Some(attribute) = tokens.get(at..).and_then(attribute) {
        at += attribute.len();
    }
    let mut first = at;
    while tokens.get(first).is_some_and(|token| token.comment().is_some()) {
        first += 1;
    }
    let item = tokens.get(first).and_then(Token::word).is_some_and(|word| ITEMS.contains(&word));
    while let Some(token) = tokens.get(at) {
        if token.is(';') || (token.is(',') && !item) {
            return at + 1;
        }
        if token.is('}') {
            return at;
        }
        let opens = ['(', '[', '{'].iter().any(|sign| token.is(*sign));
        let braces = token.is('{');
        at += if opens { group_len(&tokens[at..]) } else { 1 };
        if braces && item {
            return at;
        }
    }
    tokens.len()
}

mod tests {
    use super::*;

    fn words(source: &str) -> Vec<String> {
        tokens(source).iter().filter_map(|token| token.word().map(str::to_owned)).collect()
    }

    #[test]
    fn tells_code_from_comments_and_texts() {
        let source =
            "// a b\nlet x = \"c \\\" d\"; /* e /* f */ g */ y r#\"h \" i\"# b\"j\" '\\'' 'k 'l'";
        assert_eq!(words(source), ["let", "x", "y"]);
        let all = tokens(source);
        let texts: Vec<_> = all.iter().filter_map(Token::text).collect();
        assert_eq!(texts, ["c \\\" d", "h \" i", "j"]);
        assert_eq!(all.iter().filter(|token| token.comment().is_some()).count(), 2);
        assert_eq!(all.last().map(|token| token.line), Some(2));
    }

    #[test]
    fn leaves_out_what_is_for_tests() {
        let source = "
            use a; #[cfg(test)] use b; #[cfg(all(test, not(walhub_loom)))] mod c;
            #[cfg(not(test))] fn d() {} #[cfg(any(test, fuzzing))] fn r() {} #[cfg(test)] pub(crate) mod e { fn f() { g(); } }
            struct H { #[cfg(test)] i: J<K, L>, m: N } #[cfg(test)] struct O(P); fn q() {}";
        let kept: Vec<_> = without_tests(&tokens(source))
            .iter()
            .filter_map(Token::word)
            .map(str::to_owned)
            .collect();
        for word in ["b", "c", "e", "f", "g", "i", "J", "K", "O", "P"] {
            assert!(!kept.iter().any(|kept| kept == word), "{word} in {kept:?}");
        }
        for word in ["a", "d", "r", "H", "m", "N", "q"] {
            assert!(kept.iter().any(|kept| kept == word), "{word} not in {kept:?}");
        }
    }
}
