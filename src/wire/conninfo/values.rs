//! What a connection string and the environment give, and what each option's value means.

use super::keyword::{self, KEYWORDS, Stance};
use super::{
    ConninfoFault, Host, HostAddr, Keepalives, SOCKET_DIRECTORIES, SslMode, TargetSessionAttrs,
    syntax,
};
use std::collections::BTreeMap;
use std::time::Duration;

const NEEDS_TLS: &str = "is for TLS, which walhub does not speak yet (sslmode=disable says that \
                         none is wanted)";
const DEFAULT_PORT: u16 = 5432;

/// What the string and the environment give, by option.
pub(super) struct Values(BTreeMap<&'static str, String>);

impl Values {
    pub(super) fn gather(
        text: &str,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ConninfoFault> {
        let mut values = BTreeMap::new();
        for (name, value) in syntax::pairs(text)? {
            match keyword::find(&name) {
                Some(keyword) => values.insert(keyword.name, value),
                None => return Err(ConninfoFault::UnknownOption(name)),
            };
        }
        // An option that is empty in the string still hides the environment.
        for keyword in KEYWORDS {
            if let Some(value) = keyword.env.and_then(env) {
                values.entry(keyword.name).or_insert(value);
            }
        }
        Ok(Self(values))
    }

    /// `None` when it is missing or empty.
    fn given(&self, option: &str) -> Option<&str> {
        self.0.get(option).map(String::as_str).filter(|value| !value.is_empty())
    }

    pub(super) fn owned(&self, option: &str) -> Option<String> {
        self.given(option).map(str::to_owned)
    }

    pub(super) fn sslmode(&self, hosts: &[Host]) -> Result<SslMode, ConninfoFault> {
        let value = self.given("sslmode").unwrap_or("prefer");
        let by_tcp = hosts.iter().any(|host| matches!(host.addr, HostAddr::Tcp { .. }));
        match value {
            "disable" => Ok(SslMode::Disable),
            "allow" => Ok(SslMode::Allow),
            "prefer" => Ok(SslMode::Prefer),
            "require" | "verify-ca" | "verify-full" if by_tcp => Err(ConninfoFault::Unsupported {
                option: "sslmode",
                value: value.to_owned(),
                why: "demands TLS, which walhub does not speak yet",
            }),
            // Unix-domain sockets have no TLS; libpq ignores the option there, too.
            "require" | "verify-ca" | "verify-full" => Ok(SslMode::Disable),
            _ => Err(ConninfoFault::InvalidValue { option: "sslmode", value: value.to_owned() }),
        }
    }

    pub(super) fn target_session_attrs(&self) -> Result<TargetSessionAttrs, ConninfoFault> {
        const OPTION: &str = "target_session_attrs";
        let Some(value) = self.given(OPTION) else { return Ok(TargetSessionAttrs::default()) };
        let invalid = |_| ConninfoFault::InvalidValue { option: OPTION, value: value.to_owned() };
        value.parse().map_err(invalid)
    }

    pub(super) fn refuse_unsupported(&self, sslmode: SslMode) -> Result<(), ConninfoFault> {
        for keyword in KEYWORDS {
            let Some(value) = self.given(keyword.name) else { continue };
            let option = keyword.name;
            let owned = || value.to_owned();
            match keyword.stance {
                Stance::Honoured | Stance::Harmless => {}
                Stance::Choice { fine, .. } if fine.contains(&value) => {}
                Stance::Choice { refused, why, .. } if refused.contains(&value) => {
                    return Err(ConninfoFault::Unsupported { option, value: owned(), why });
                }
                Stance::Choice { .. } => {
                    return Err(ConninfoFault::InvalidValue { option, value: owned() });
                }
                Stance::Refused { why } => {
                    return Err(ConninfoFault::UnsupportedOption { option, why });
                }
                Stance::Tls if sslmode == SslMode::Disable => {}
                Stance::Tls => {
                    return Err(ConninfoFault::UnsupportedOption { option, why: NEEDS_TLS });
                }
            }
        }
        Ok(())
    }

    pub(super) fn hosts(&self) -> Result<Vec<Host>, ConninfoFault> {
        let list = |option: &str| -> Vec<&str> {
            self.given(option).map(|list| list.split(',').collect()).unwrap_or_default()
        };
        let (names, addresses, ports) = (list("host"), list("hostaddr"), list("port"));
        if !names.is_empty() && !addresses.is_empty() && names.len() != addresses.len() {
            return Err(ConninfoFault::HostCount {
                what: "hostaddr values",
                given: addresses.len(),
                hosts: names.len(),
            });
        }
        let count = names.len().max(addresses.len()).max(1);
        if ports.len() > 1 && ports.len() != count {
            return Err(ConninfoFault::HostCount {
                what: "port numbers",
                given: ports.len(),
                hosts: count,
            });
        }
        let item = |list: &[&str], at: usize| -> String {
            list.get(at).map(|item| (*item).to_owned()).unwrap_or_default()
        };
        let mut hosts = Vec::new();
        for at in 0..count {
            let text = item(&ports, if ports.len() == 1 { 0 } else { at });
            let port = port(&text)?;
            let addrs = addresses_of(item(&names, at), &item(&addresses, at))?;
            hosts.extend(addrs.into_iter().map(|addr| Host { addr, port }));
        }
        Ok(hosts)
    }

    pub(super) fn keepalives(&self) -> Result<Keepalives, ConninfoFault> {
        let idle = self.seconds("keepalives_idle")?;
        let interval = self.seconds("keepalives_interval")?;
        let count = self.positive("keepalives_count")?;
        Ok(match self.integer("keepalives")? {
            Some(0) => Keepalives::Off,
            _ => Keepalives::On { idle, interval, count },
        })
    }

    pub(super) fn seconds(&self, option: &'static str) -> Result<Option<Duration>, ConninfoFault> {
        Ok(self.positive(option)?.map(|n| Duration::from_secs(u64::from(n))))
    }

    pub(super) fn milliseconds(
        &self,
        option: &'static str,
    ) -> Result<Option<Duration>, ConninfoFault> {
        Ok(self.positive(option)?.map(|n| Duration::from_millis(u64::from(n))))
    }

    /// A number above zero; zero and below mean "not set".
    fn positive(&self, option: &'static str) -> Result<Option<u32>, ConninfoFault> {
        Ok(self.integer(option)?.and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0))
    }

    fn integer(&self, option: &'static str) -> Result<Option<i32>, ConninfoFault> {
        let Some(value) = self.given(option) else { return Ok(None) };
        match value.trim_ascii().parse() {
            Ok(n) => Ok(Some(n)),
            Err(_) => Err(ConninfoFault::InvalidInteger { option, value: value.to_owned() }),
        }
    }
}

/// The addresses of one entry of the host list.
fn addresses_of(name: String, hostaddr: &str) -> Result<Vec<HostAddr>, ConninfoFault> {
    if !hostaddr.is_empty() {
        let address = hostaddr.parse().map_err(|_| ConninfoFault::InvalidValue {
            option: "hostaddr",
            value: hostaddr.to_owned(),
        })?;
        let name = if name.is_empty() { hostaddr.to_owned() } else { name };
        return Ok(vec![HostAddr::Tcp { name, hostaddr: Some(address) }]);
    }
    match name.chars().next() {
        None => Ok(SOCKET_DIRECTORIES.iter().map(|dir| HostAddr::Unix(dir.into())).collect()),
        Some('/') => Ok(vec![HostAddr::Unix(name.into())]),
        Some('@') => Err(ConninfoFault::Unsupported {
            option: "host",
            value: name,
            why: "is a socket in the abstract namespace, which walhub does not use",
        }),
        Some(_) => Ok(vec![HostAddr::Tcp { name, hostaddr: None }]),
    }
}

fn port(text: &str) -> Result<u16, ConninfoFault> {
    match text.trim_ascii() {
        "" => Ok(DEFAULT_PORT),
        digits => {
            let port = digits.parse().ok().filter(|port| *port != 0);
            port.ok_or_else(|| ConninfoFault::InvalidPort(digits.to_owned()))
        }
    }
}
