//! Whether a client is admitted. Its startup packet is checked in PostgreSQL's order. No client is
//! asked to authenticate.

use crate::cluster::identity::Identity;
use crate::cluster::instance::{INSTANCE_ID, InstanceId};
use crate::config::Config;
use crate::hub::{Hub, SenderPermit};
use crate::standby::client::Session;
use crate::standby::parameters::clean_name;
use crate::standby::refusals;
use crate::wire::backend;
use crate::wire::refusal::Refusal;
use crate::wire::startup::{ReplicationMode, Startup, StartupFault};
use crate::wire::units::{TimeUnit, parse_duration};
use bytes::BytesMut;
use std::sync::Arc;
use std::time::Duration;

/// A client that may send commands.
#[derive(Debug)]
pub struct Admitted {
    /// Who it is.
    pub session: Session,
    /// The cluster's identity, as reported to the client.
    pub identity: Arc<Identity>,
    /// Its place among `max_wal_senders`.
    pub permit: SenderPermit,
}

/// NegotiateProtocolVersion, when the client asked for more than 3.0 has. It comes
/// before everything else.
pub fn negotiate(startup: &Startup, out: &mut BytesMut) {
    if let Some(negotiation) = startup.negotiation() {
        backend::negotiate_protocol_version(out, negotiation.minor, &negotiation.unknown);
    }
}

/// Checks the startup packet. `pid` is the new connection's, `peer` its address.
pub fn admit(startup: &Startup, hub: &Hub, pid: u32, peer: &str) -> Result<Admitted, Refusal> {
    let mode = startup.replication().map_err(refusal)?;
    let user = startup.user().map(clean_name).map_err(refusal)?;
    let (Some(identity), Some(_)) = (hub.identity(), hub.current_cell()) else {
        return Err(refusals::starting_up());
    };
    if mode == ReplicationMode::None {
        return Err(refusals::not_a_database());
    }
    let Some(permit) = hub.take_sender() else {
        let max = hub.config.max_wal_senders;
        return Err(refusals::too_many_senders(max, identity.server_major()));
    };
    let settings = Settings::read(startup, &hub.config)?;
    if let Some(id) = settings.instance
        && (id == hub.instance || hub.above().contains(id))
    {
        return Err(refusals::loop_below(id));
    }
    let session = Session {
        pid,
        user,
        application_name: settings.application_name,
        peer: peer.to_owned(),
        wal_sender_timeout: settings.wal_sender_timeout,
        instance: settings.instance,
    };
    Ok(Admitted { session, identity, permit })
}

fn refusal(fault: StartupFault) -> Refusal {
    fault.refusal().unwrap_or_else(|| Refusal::protocol_violation(fault.to_string()))
}

/// The settings a client may choose for its session. Others are ignored: clients send whatever
/// suits a PostgreSQL server.
struct Settings {
    application_name: String,
    wal_sender_timeout: Duration,
    instance: Option<InstanceId>,
}

impl Settings {
    fn read(startup: &Startup, config: &Config) -> Result<Self, Refusal> {
        let mut settings = Self {
            application_name: String::new(),
            wal_sender_timeout: config.wal_sender_timeout,
            instance: None,
        };
        for (name, value) in startup.settings().map_err(refusal)? {
            let bad = |name: &str| refusals::invalid_parameter_value(name, &clean_name(&value));
            match name.to_ascii_lowercase().as_str() {
                "application_name" => settings.application_name = clean_name(&value),
                "wal_sender_timeout" => {
                    settings.wal_sender_timeout =
                        wal_sender_timeout(&value).ok_or_else(|| bad("wal_sender_timeout"))?;
                }
                INSTANCE_ID => {
                    settings.instance = Some(value.parse().map_err(|_| bad(INSTANCE_ID))?);
                }
                _ => {}
            }
        }
        Ok(settings)
    }
}

/// PostgreSQL's range: 0 to INT_MAX milliseconds.
fn wal_sender_timeout(text: &str) -> Option<Duration> {
    let timeout = parse_duration(text, TimeUnit::Millisecond).ok()?;
    (timeout.as_millis() <= 0x7FFF_FFFF).then_some(timeout)
}
