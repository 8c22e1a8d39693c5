//! Connection strings, compared with what libpq makes of them.

use super::*;
use proptest::prelude::*;

fn parse(text: &str) -> Result<Conninfo, ConninfoFault> {
    Conninfo::parse(text, &|_| None)
}

fn fault(text: &str) -> String {
    parse(text).map_err(|fault| fault.to_string()).unwrap_err()
}

fn with_env(text: &str, env: &[(&str, &str)]) -> Conninfo {
    let look =
        |name: &str| env.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
    Conninfo::parse(text, &look).unwrap()
}

fn hosts(text: &str) -> Vec<String> {
    parse(text).unwrap().hosts.iter().map(Host::to_string).collect()
}

#[test]
fn what_basebackup_writes() {
    let conninfo = parse(
        "user=rep passfile='/home/p g/.pgpass' channel_binding=prefer host=10.0.0.1 port=5433 \
         sslmode=prefer sslnegotiation=postgres sslcompression=0 sslcertmode=allow sslsni=1 \
         ssl_min_protocol_version=TLSv1.2 gssencmode=prefer krbsrvname=postgres \
         gssdelegation=0 target_session_attrs=any load_balance_hosts=disable \
         application_name=s1",
    )
    .unwrap();
    assert_eq!(conninfo.user.as_deref(), Some("rep"));
    assert_eq!(conninfo.passfile, Some("/home/p g/.pgpass".into()));
    assert_eq!(conninfo.application_name.as_deref(), Some("s1"));
    assert_eq!(conninfo.hosts.iter().map(Host::to_string).collect::<Vec<_>>(), ["10.0.0.1:5433"]);
}

#[test]
fn quotes_and_backslashes() {
    let conninfo =
        parse(r"password = 'it\'s \\ secret'user=a\ b\\  host=h dbname='' options=-c\ x=1\")
            .unwrap();
    assert_eq!(conninfo.password, Some(Secret::new(r"it's \ secret")));
    assert_eq!(conninfo.user.as_deref(), Some(r"a b\"));
    assert_eq!(conninfo.options.as_deref(), Some("-c x=1"));
    assert_eq!(conninfo.dbname, None);
    assert_eq!(parse("user=a user=b").unwrap().user.as_deref(), Some("b"));
    assert_eq!(parse("host"), Err(ConninfoFault::MissingEquals));
    assert_eq!(parse("user=a b"), Err(ConninfoFault::MissingEquals));
    assert_eq!(parse("user='a"), Err(ConninfoFault::UnterminatedQuote));
    assert_eq!(parse(r"user='a\'"), Err(ConninfoFault::UnterminatedQuote));
    assert_eq!(fault("=x"), "invalid connection option \"\"");
    assert_eq!(fault("Host=x"), "invalid connection option \"Host\"");
}

#[test]
fn uris() {
    let conninfo = parse(
        "postgresql://re%70:p%40ss%2F@[2001:db8::1]:5433,db2,:5434/da%20ta?connect_timeout=5&\
         application_name=a%26b&",
    )
    .unwrap();
    assert_eq!(conninfo.user.as_deref(), Some("rep"));
    assert_eq!(conninfo.password, Some(Secret::new("p@ss/")));
    assert_eq!(conninfo.dbname.as_deref(), Some("da ta"));
    assert_eq!(conninfo.application_name.as_deref(), Some("a&b"));
    assert_eq!(conninfo.connect_timeout, Some(Duration::from_secs(5)));
    assert_eq!(
        conninfo.hosts.iter().map(Host::to_string).collect::<Vec<_>>(),
        [
            "[2001:db8::1]:5433",
            "db2:5432",
            "/var/run/postgresql/.s.PGSQL.5434",
            "/tmp/.s.PGSQL.5434"
        ]
    );
    assert_eq!(hosts("postgres://%2Ftmp%2Fx?port=7"), ["/tmp/x/.s.PGSQL.7"]);
    assert_eq!(hosts("postgres://u@h/db?host=other"), ["other:5432"]);
    assert_eq!(parse("postgres:///d").unwrap().dbname.as_deref(), Some("d"));
    for (bad, expected) in [
        ("postgres://[::1", ConninfoFault::Bracket),
        ("postgres://[]", ConninfoFault::Bracket),
        ("postgres://[::1]x", ConninfoFault::Bracket),
        ("postgres://h%2", ConninfoFault::PercentEncoding),
        ("postgres://h%zz", ConninfoFault::PercentEncoding),
        ("postgres://h%00", ConninfoFault::PercentEncoding),
        ("postgres://h%ff", ConninfoFault::PercentEncoding),
        ("postgres://h?x", ConninfoFault::Parameter),
        ("postgres://h?user=a=b", ConninfoFault::Parameter),
        ("postgres://h?&user=a", ConninfoFault::Parameter),
        ("postgres://h?nonsense=1", ConninfoFault::UnknownOption("nonsense".to_owned())),
        ("postgres://u:pa/ss@h", ConninfoFault::InvalidUriPort),
    ] {
        assert_eq!(parse(bad), Err(expected), "{bad}");
    }
    assert!(fault("postgres://h?ssl=true").starts_with("sslmode \"require\" demands TLS"));
}

#[test]
fn lists_of_hosts() {
    assert_eq!(hosts("host=a,b port=1,"), ["a:1", "b:5432"]);
    assert_eq!(hosts("host=a,b port=7"), ["a:7", "b:7"]);
    let conninfo = parse("host=a,b hostaddr=::1,").unwrap();
    let known = HostAddr::Tcp { name: "a".to_owned(), hostaddr: Some("::1".parse().unwrap()) };
    assert_eq!(conninfo.hosts[0].addr, known);
    assert_eq!(conninfo.hosts[1].addr, HostAddr::Tcp { name: "b".to_owned(), hostaddr: None });
    assert_eq!(fault("host=a,b port=1,2,3"), "could not match 3 port numbers to 2 hosts");
    assert_eq!(fault("host=a hostaddr=::1,::2"), "could not match 2 hostaddr values to 1 hosts");
    for port in ["0", "65536", "x", "-1", "5 4"] {
        let said = format!("invalid port number: \"{port}\"");
        assert_eq!(fault(&format!("host=a port='{port}'")), said);
    }
    assert!(fault("host=@abstract").contains("abstract namespace"));
    assert_eq!(fault("hostaddr=db"), "invalid hostaddr value: \"db\"");
}

#[test]
fn the_environment_fills_gaps_only() {
    let env = [
        ("PGHOST", "envhost"),
        ("PGPORT", "6000"),
        ("PGUSER", "envuser"),
        ("PGPASSWORD", "pw"),
        ("PGAPPNAME", "app"),
        ("PGSSLMODE", "disable"),
        ("PGOPTIONS", "-c a=b"),
        ("PGCONNECT_TIMEOUT", "3"),
        ("HOME", "/home/x"),
    ];
    let conninfo = with_env("user=me fallback_application_name=walhub", &env);
    assert_eq!(conninfo.hosts[0].to_string(), "envhost:6000");
    assert_eq!(conninfo.user.as_deref(), Some("me"));
    assert_eq!(conninfo.password, Some(Secret::new("pw")));
    assert_eq!(conninfo.application_name.as_deref(), Some("app"));
    assert_eq!(conninfo.sslmode, SslMode::Disable);
    assert_eq!(conninfo.passfile, Some("/home/x/.pgpass".into()));
    assert_eq!(conninfo.connect_timeout, Some(Duration::from_secs(3)));
    let conninfo = with_env("host='' fallback_application_name=walhub", &env[..1]);
    assert!(matches!(conninfo.hosts[0].addr, HostAddr::Unix(_)), "set to nothing is set");
    assert_eq!(conninfo.application_name.as_deref(), Some("walhub"));
    let refused = Conninfo::parse("host=a", &|name| {
        (name == "PGTARGETSESSIONATTRS").then(|| "master".to_owned())
    });
    assert!(matches!(
        refused,
        Err(ConninfoFault::InvalidValue { option: "target_session_attrs", .. })
    ));
}

#[test]
fn refused_only_when_it_matters() {
    for text in [
        "sslmode=require",
        "sslmode=verify-full sslrootcert=system",
        "sslcert=/x",
        "sslrootcert=/x sslmode=prefer",
        "sslpassword=hunter2",
        "channel_binding=require",
        "gssencmode=require",
        "service=x",
        "requirepeer=postgres",
        "require_auth=scram-sha-256",
        "load_balance_hosts=random",
        "min_protocol_version=3.2",
        "scram_client_key=hunter2",
    ] {
        let message = fault(&format!("host=a {text}"));
        let option = text.split('=').next().unwrap();
        assert!(message.contains(option) && !message.contains("hunter2"), "{message}");
    }
    for text in [
        "host=a sslmode=disable sslcert=/x sslrootcert=/y",
        "host=/tmp sslmode=require",
        "host=a sslmode=allow requirepeer='' service=",
        "host=a max_protocol_version=latest replication=database client_encoding=auto",
    ] {
        assert!(parse(text).is_ok(), "{text}");
    }
    assert_eq!(fault("host=a gssencmode=maybe"), "invalid gssencmode value: \"maybe\"");
    assert_eq!(fault("host=a sslmode=Require"), "invalid sslmode value: \"Require\"");
    assert_eq!(
        fault("host=a sslmode=require"),
        "sslmode \"require\" demands TLS, which walhub does not speak yet"
    );
}

#[test]
fn numbers() {
    let conninfo = parse(
        "host=a connect_timeout=-1 keepalives_idle=' 30 ' keepalives_count=0 tcp_user_timeout=1500",
    )
    .unwrap();
    assert_eq!(conninfo.connect_timeout, None);
    let idle = Some(Duration::from_secs(30));
    assert_eq!(conninfo.keepalives, Keepalives::On { idle, interval: None, count: None });
    assert_eq!(conninfo.tcp_user_timeout, Some(Duration::from_millis(1500)));
    assert_eq!(parse("keepalives=0").unwrap().keepalives, Keepalives::Off);
    assert_eq!(
        fault("connect_timeout=1s"),
        "invalid integer value \"1s\" for connection option \"connect_timeout\""
    );
}

#[test]
fn passwords() {
    let conninfo = parse("host=a,/var/run/postgresql password=''").unwrap();
    let file = "localhost:5432:replication:u:socket\na:5432:replication:u:tcp";
    let found = |at: usize| conninfo.password_for(&conninfo.hosts[at], "u", Some(file));
    assert_eq!(found(0), Some(Secret::new("tcp")));
    assert_eq!(found(1), Some(Secret::new("socket")));
    assert_eq!(conninfo.password_for(&conninfo.hosts[0], "u", None), None);
    let given = parse("host=a password=hunter2").unwrap();
    assert_eq!(given.password_for(&given.hosts[0], "u", Some(file)), given.password);
    assert!(!format!("{given:?}").contains("hunter2"));
}

proptest! {
    #[test]
    fn both_syntaxes_say_the_same(
        user in "[^\0]{1,9}", password in "[^\0]{1,9}", name in "[a-z0-9.-]{1,9}", port in 1u16..,
    ) {
        let quote = |text: &str| format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"));
        let pairs = format!(
            "user={} password = {} host={name} port={port}", quote(&user), quote(&password));
        let percent = |text: &str| text.bytes().map(|b| format!("%{b:02x}")).collect::<String>();
        let uri = format!("postgres://{}:{}@{name}:{port}", percent(&user), percent(&password));
        let parsed = parse(&pairs).unwrap();
        prop_assert_eq!(parsed.user.as_deref(), Some(user.as_str()));
        prop_assert_eq!(parsed.password.clone(), Some(Secret::new(password)));
        prop_assert_eq!(parse(&uri), Ok(parsed));
    }

    #[test]
    fn garbage_never_panics(
        text in ".{0,40}",
        pieces in proptest::collection::vec(proptest::sample::select(vec![
            "postgres://", "user", "host", "port", "=", "'", "\\", " ", "@", ":", "/", "?", "&",
            "[", "]", "::1", "%", "%41", "a", "5", ",", "sslmode", "disable",
        ]), 0..14),
    ) {
        std::hint::black_box(parse(&text).is_ok());
        std::hint::black_box(parse(&pieces.concat()).is_ok());
        std::hint::black_box(parse(&format!("postgres://{text}")).is_ok());
    }
}
