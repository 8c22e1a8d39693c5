//! Where the hub listens, how a connection begins, what it says of itself.

use crate::client::{Client, startup_packet};
use crate::cluster::Cluster;
use crate::hub::{self, Hub};
use crate::load;
use crate::process::Process;
use crate::scene::{Port, Scene};
use crate::streaming::wait_connected;
use crate::wait;
use std::net::{Ipv4Addr, TcpStream};
use walhub::wal::lsn::Lsn;

const NOBODY: &str = "host=127.0.0.1 port=1 user=postgres";

#[test]
fn addresses_other_than_loopback_are_refused() {
    for address in ["0.0.0.0", "*", "10.0.0.1", "127.0.0.1,::"] {
        let scene = Scene::new();
        let hub = Hub::new(&scene, "hub", NOBODY).flag(&format!("--listen-addresses={address}"));
        let log = hub.refuses_to_start();
        assert!(log.contains("loopback"), "{address}: {log}");
    }
}

#[test]
fn a_directory_serves_one_hub() {
    let scene = Scene::new();
    let first = Hub::run(&scene, "hub", NOBODY);
    let second = Hub::new(&scene, "second", NOBODY).in_directory(&scene.path("hub"));
    drop(second.refuses_to_start());
    drop(first);
}

#[test]
fn settings_come_from_the_environment_too() {
    let scene = Scene::new();
    let port = Port::reserve();
    let (_, out, err) = scene.log("hub");
    let mut serve = hub::command();
    serve.arg("serve").env("WALHUB_DIRECTORY", scene.path("hub"));
    serve.env("WALHUB_PRIMARY_CONNINFO", NOBODY).env("WALHUB_PORT", port.number().to_string());
    let mut server = Process::start(serve.stdout(out).stderr(err));
    wait::until("it listens", || {
        assert!(server.ended().is_none(), "it did not start");
        TcpStream::connect((Ipv4Addr::LOCALHOST, port.number())).is_ok()
    });
}

#[test]
fn inspect_knows_the_directory_of_its_environment() {
    let scene = Scene::new();
    let hub = Hub::run(&scene, "hub", NOBODY);
    let inspect = || {
        let mut command = hub::command();
        command.args(["inspect", "--json"]);
        command
    };
    assert!(!inspect().output().unwrap().status.success(), "no directory is named");
    let output = inspect().env("WALHUB_DIRECTORY", scene.path("hub")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // A directory that is given counts.
    let elsewhere = scene.path("elsewhere");
    let output = inspect().arg(elsewhere).env("WALHUB_DIRECTORY", scene.path("hub")).output();
    assert!(!output.unwrap().status.success());
    drop(hub);
}

#[test]
fn wrong_settings_are_named() {
    let cases = [
        ("--wal-buffers=64XB", "wal-buffers"),
        ("--wal-sender-timeout=never", "wal-sender-timeout"),
        ("--primary-conninfo=host=127.0.0.1 nosuch=1", "nosuch"),
        ("--start-from=yesterday", "start-from"),
        ("--on-gap=jump", "on-gap"),
    ];
    for (flag, named) in cases {
        let scene = Scene::new();
        let mut command = hub::command();
        command.arg("serve").arg("--directory").arg(scene.path("hub")).arg(flag);
        if !flag.starts_with("--primary-conninfo") {
            command.args(["--primary-conninfo", NOBODY]);
        }
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{flag} was accepted");
        assert!(text.contains(named), "{flag}: {text}");
    }
}

#[test]
fn an_upstream_that_must_be_tls_is_refused_for_now() {
    let scene = Scene::new();
    let hub = Hub::new(&scene, "hub", &format!("{NOBODY} sslmode=verify-full"));
    let log = hub.refuses_to_start();
    assert!(log.contains("sslmode"), "{log}");
}

#[test]
fn a_hub_that_knows_no_cluster_says_it_is_starting_up() {
    let scene = Scene::new();
    let hub = Hub::run(&scene, "hub", NOBODY);
    let refusal =
        Client::try_connect(hub.port(), &[("user", "postgres"), ("replication", "true")]).err();
    let refusal = refusal.unwrap();
    assert_eq!(
        (&refusal.severity[..], &refusal.sqlstate[..], &refusal.message[..]),
        ("FATAL", "57P03", "the database system is starting up")
    );
}

#[test]
fn requests_for_encryption_are_answered_no_and_cancel_is_silent() {
    let scene = Scene::new();
    let primary = Cluster::primary(&scene, "primary");
    let hub = Hub::run(&scene, "hub", &primary.conninfo());
    wait_connected(&primary);

    let mut client = Client::dial(hub.port());
    client.send(&[0, 0, 0, 8, 0x04, 0xD2, 0x16, 0x2F]);
    assert_eq!(client.read_bytes(1), b"N", "SSLRequest");
    client.send(&[0, 0, 0, 8, 0x04, 0xD2, 0x16, 0x30]);
    assert_eq!(client.read_bytes(1), b"N", "GSSENCRequest");
    client.send(&startup_packet(0x0003_0000, &[("user", "postgres"), ("replication", "on")]));
    client.read_greeting().unwrap();
    client.query("IDENTIFY_SYSTEM").unwrap();

    let mut cancel = Client::dial(hub.port());
    cancel.send(&[0, 0, 0, 16, 0x04, 0xD2, 0x16, 0x2E, 0, 0, 0, 1, 0, 0, 0, 1]);
    assert_eq!(cancel.read_message(), None);
}

#[test]
fn newer_minor_protocols_and_unknown_options_are_negotiated() {
    let scene = Scene::new();
    let primary = Cluster::primary(&scene, "primary");
    let hub = Hub::run(&scene, "hub", &primary.conninfo());
    wait_connected(&primary);
    for port in [primary.port(), hub.port()] {
        let mut client = Client::dial(port);
        let parameters = [("user", "postgres"), ("replication", "true"), ("_pq_.foo", "1")];
        client.send(&startup_packet(0x0003_0002, &parameters));
        let negotiation = client.read_message().unwrap();
        assert_eq!(negotiation.tag, b'v');
        let mut expected = vec![0, 3, 0, 0, 0, 0, 0, 1];
        expected.extend(b"_pq_.foo\0");
        assert_eq!(negotiation.body, expected);
        client.read_greeting().unwrap();
        client.query("IDENTIFY_SYSTEM").unwrap();
    }
}

#[test]
fn the_hub_speaks_as_its_upstream_does() {
    let scene = Scene::new();
    let primary = Cluster::primary_with_segments(&scene, "primary", 64);
    let hub = Hub::run(&scene, "hub", &primary.conninfo());
    wait_connected(&primary);
    let mut direct = Client::connect(primary.port());
    let mut through = Client::connect(hub.port());
    for name in ["server_version", "integer_datetimes", "server_encoding", "DateStyle", "TimeZone"]
    {
        assert_eq!(through.parameters.get(name), direct.parameters.get(name), "{name}");
    }
    // A hub is a standby to those who choose their server by it.
    assert_eq!(through.parameters["in_hot_standby"], "on");
    for setting in ["wal_segment_size", "server_version", "data_directory_mode"] {
        let command = format!("SHOW {setting}");
        assert_eq!(through.query_value(&command), direct.query_value(&command), "{command}");
    }
    let system_id = direct.query_value("IDENTIFY_SYSTEM");
    assert_eq!(through.query_value("IDENTIFY_SYSTEM"), system_id);
    assert_eq!(hub.inspect().system_id(), system_id);
}

#[test]
fn commands_go_on_after_copy_done_even_if_they_came_with_it() {
    let scene = Scene::new();
    let primary = Cluster::primary(&scene, "primary");
    let hub = Hub::run(&scene, "hub", &primary.conninfo());
    wait_connected(&primary);
    load::write_mib(&primary, 1);
    let start = Lsn::new(primary.flush_lsn().raw() & !0xFF_FFFF);
    for port in [primary.port(), hub.port()] {
        let mut client = Client::connect(port);
        client.start_replication(start, 1).unwrap();
        let commands =
            [crate::client::message(b'c', b""), crate::client::message(b'Q', b"IDENTIFY_SYSTEM\0")];
        client.send(&commands.concat());
        let tags: Vec<u8> = std::iter::from_fn(|| client.read_message())
            .map(|message| message.tag)
            .skip_while(|&tag| tag == b'd')
            .filter(|&tag| tag != b'd')
            .take(7)
            .collect();
        // CopyDone, two CommandCompletes, ready; then the answer to the command.
        assert_eq!(String::from_utf8_lossy(&tags), "cCCZTDC");
    }
}

#[test]
fn a_client_may_choose_its_own_timeout() {
    let scene = Scene::new();
    let primary = Cluster::primary(&scene, "primary");
    let hub = Hub::run(&scene, "hub", &primary.conninfo());
    wait_connected(&primary);
    let start = primary.flush_lsn();
    for port in [primary.port(), hub.port()] {
        let parameters = [
            ("user", "postgres"),
            ("replication", "true"),
            ("options", "-c wal_sender_timeout=1s"),
        ];
        let mut silent = Client::try_connect(port, &parameters).unwrap();
        silent.start_replication(start, 1).unwrap();
        let (error, took) = silent.read_to_close();
        assert_eq!(error, None, "closed in silence");
        assert!((900..3000).contains(&took.as_millis()), "closed after {took:?}");
    }
}
