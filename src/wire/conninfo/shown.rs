//! A connection string for display: what it and the environment resolve to, without the password.

use super::{Conninfo, HostAddr, TargetSessionAttrs};

impl Conninfo {
    /// As libpq would accept it, but without the password.
    pub fn shown(&self) -> String {
        let mut words = Vec::new();
        let mut say = |name: &str, value: &str| words.push(format!("{name}={}", quoted(value)));
        let list = |items: Vec<String>| items.join(",");
        say("host", &list(self.hosts.iter().map(|host| name_of(&host.addr)).collect()));
        if self.hosts.iter().any(|host| hostaddr_of(&host.addr).is_some()) {
            let of = |addr| hostaddr_of(addr).unwrap_or_default();
            say("hostaddr", &list(self.hosts.iter().map(|host| of(&host.addr)).collect()));
        }
        say("port", &list(self.hosts.iter().map(|host| host.port.to_string()).collect()));
        for (name, value) in [
            ("user", &self.user),
            ("password", &self.password.as_ref().map(|_| "********".to_owned())),
            ("application_name", &self.application_name),
            ("options", &self.options),
        ] {
            if let Some(value) = value {
                say(name, value);
            }
        }
        if let Some(limit) = self.connect_timeout {
            say("connect_timeout", &limit.as_secs().to_string());
        }
        if self.target_session_attrs != TargetSessionAttrs::Any {
            say("target_session_attrs", self.target_session_attrs.as_str());
        }
        words.join(" ")
    }
}

fn name_of(addr: &HostAddr) -> String {
    match addr {
        HostAddr::Tcp { name, .. } => name.clone(),
        HostAddr::Unix(directory) => directory.display().to_string(),
    }
}

fn hostaddr_of(addr: &HostAddr) -> Option<String> {
    match addr {
        HostAddr::Tcp { hostaddr, .. } => hostaddr.map(|ip| ip.to_string()),
        HostAddr::Unix(_) => None,
    }
}

fn quoted(value: &str) -> String {
    let plain = |c: char| !c.is_whitespace() && c != '\'' && c != '\\';
    if !value.is_empty() && value.chars().all(plain) {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_says_the_same_but_for_the_password() {
        for text in [
            "host=db1,db2 port=5432,5433 user=rep",
            "host=/run/pg user='it\\'s' options='-c a=b' application_name='a b\\\\c'",
            "postgres://u@[::1]:7/?target_session_attrs=primary&connect_timeout=3",
            "host=db hostaddr=10.0.0.1",
        ] {
            let conninfo = Conninfo::parse(text, &|_| None).unwrap();
            let again = Conninfo::parse(&conninfo.shown(), &|_| None);
            assert_eq!(again.as_ref(), Ok(&conninfo), "{}", conninfo.shown());
        }
        let secret = Conninfo::parse("host=a password=hunter2", &|_| None).unwrap();
        assert_eq!(secret.shown(), "host=a port=5432 password=********");
    }
}
