//! Password files: whatever they hold, and an escaped line is always found.
#![no_main]

use libfuzzer_sys::fuzz_target;
use walhub::wire::passfile::lookup;

fuzz_target!(|input: (&str, &str, u16, &str, &str)| {
    let (text, host, port, database, user) = input;
    drop(lookup(text, host, port, database, user));
    if [host, database, user].iter().any(|field| field.contains(['\n', '\r'])) {
        return;
    }
    let escape = |field: &str| {
        field.replace('\\', "\\\\").replace(':', "\\:").replace('*', "\\*").replace('#', "\\#")
    };
    let [host_field, database_field, user_field] = [host, database, user].map(escape);
    let line = format!("{host_field}:{port}:{database_field}:{user_field}:secret");
    let found = lookup(&line, host, port, database, user);
    assert_eq!(found.map(|secret| secret.reveal().to_owned()), Some("secret".to_owned()));
});
