//! The password file, `~/.pgpass` (`fe-connect.c:passwordFromFile`).

use super::secret::Secret;

/// The password of the first line `host:port:database:user:password` that matches.
///
/// A field `*` matches everything; a backslash takes the next character literally. For replication,
/// `database` is the word `replication`.
pub fn lookup(text: &str, host: &str, port: u16, database: &str, user: &str) -> Option<Secret> {
    let port = port.to_string();
    text.lines()
        .map(|line| line.trim_end_matches('\r'))
        .filter(|line| !line.starts_with('#'))
        .find_map(|line| {
            [host, port.as_str(), database, user]
                .into_iter()
                .try_fold(line, |rest, wanted| after_match(rest, wanted))
                .map(password)
        })
}

/// What follows the field at the front of `line`, if that field matches.
fn after_match<'a>(line: &'a str, wanted: &str) -> Option<&'a str> {
    if let Some(rest) = line.strip_prefix("*:") {
        return Some(rest);
    }
    let mut wanted = wanted.chars();
    let mut field = line.chars();
    loop {
        match field.next()? {
            ':' if wanted.as_str().is_empty() => return Some(field.as_str()),
            '\\' if field.next()? == wanted.next()? => {}
            c if c != '\\' && wanted.next()? == c => {}
            _ => return None,
        }
    }
}

/// The last field, up to a colon that is not escaped.
fn password(field: &str) -> Secret {
    let mut password = String::new();
    let mut chars = field.chars();
    while let Some(c) = chars.next() {
        match c {
            ':' => break,
            // A backslash at the very end stands for itself.
            '\\' => password.push(chars.next().unwrap_or('\\')),
            c => password.push(c),
        }
    }
    Secret::new(password)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn found(text: &str) -> Option<String> {
        lookup(text, "db:1", 5432, "replication", r"re\p").map(|s| s.reveal().to_owned())
    }

    #[test]
    fn first_line_that_fits() {
        assert_eq!(found(r"db\:1:5432:replication:re\\p:secret"), Some("secret".to_owned()));
        assert_eq!(found("*:*:*:*:a\n*:*:*:*:b"), Some("a".to_owned()));
        assert_eq!(found("# *:*:*:*:a\r\n\r\nother:*:*:*:x\n*:*:*:*:b\r\n"), Some("b".to_owned()));
        assert_eq!(found(r"*:*:*:*:a\:b\\c:rest"), Some(r"a:b\c".to_owned()));
        assert_eq!(found(r"*:*:*:*:a\"), Some(r"a\".to_owned()));
        assert_eq!(found("*:*:*:*:"), Some(String::new()));
        for none in [
            "",
            "*:*:*:*",
            "*:5433:*:*:x",
            "*:*:all:*:x",
            "d:*:*:*:x",
            r"db\:11:*:*:*:x",
            "**:*:*:*:x",
            "db:1:5432:replication:rep:x",
        ] {
            assert_eq!(found(none), None, "{none}");
        }
    }

    #[test]
    fn passwords_are_not_shown() {
        let secret = lookup("*:*:*:*:hunter2", "h", 1, "d", "u");
        assert_eq!(format!("{secret:?}"), "Some(********)");
    }

    proptest! {
        #[test]
        fn escaped_lines_fit(
            host in "[a-z:\\\\*]{1,8}", user in "[a-z:\\\\*]{1,8}", word in "[a-z:\\\\]{0,8}",
        ) {
            let escape = |text: &str| text.replace('\\', "\\\\").replace(':', "\\:").replace('*', "\\*");
            let line = format!("{}:1:db:{}:{}", escape(&host), escape(&user), escape(&word));
            prop_assert_eq!(lookup(&line, &host, 1, "db", &user), Some(Secret::new(word)));
        }

        #[test]
        fn garbage_never_panics(text in "[*:\\\\#a\n\r]{0,30}") {
            std::hint::black_box(lookup(&text, "a", 1, "a", "a"));
        }
    }
}
