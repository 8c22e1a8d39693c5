//! Connection strings: any text is refused or gives hosts to try, and no fault
//! shows the password.
#![no_main]

use libfuzzer_sys::fuzz_target;
use walhub::wire::conninfo::Conninfo;

fuzz_target!(|input: (&str, &str, &str)| {
    let (text, variable, value) = input;
    let env = |name: &str| (name == variable).then(|| value.to_owned());
    match Conninfo::parse(text, &env) {
        Ok(conninfo) => {
            assert!(!conninfo.hosts.is_empty());
            for host in &conninfo.hosts {
                assert!(host.port != 0 && !host.to_string().is_empty());
                drop(conninfo.password_for(host, "u", Some(value)));
            }
        }
        Err(fault) => assert!(!fault.to_string().is_empty()),
    }
});
