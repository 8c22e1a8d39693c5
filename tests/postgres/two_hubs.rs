//! Two hubs beside each other: a fleet that knows both, and slots on each.

use crate::cluster::{Cluster, assert_converged};
use crate::hub::Hub;
use crate::load;
use crate::programs::Programs;
use crate::receivewal::Receiver;
use crate::scene::Scene;
use crate::segments::assert_identical;
use crate::wait;
use rustix::process::Signal;

/// Receivers with slots, besides the standbys.
const RECEIVERS: usize = 47;
const STANDBYS: usize = 3;

/// One hub is killed while the other is megabytes behind and without a primary: all fifty
/// clients go there, wait for it, and stream on with the slots that come into being there.
#[test]
fn fifty_clients_go_to_the_other_hub() {
    let scene = Scene::new();
    let programs = Programs::usual();
    let mut primary = Cluster::primary(&scene, "primary");
    load::prepare(&scene, &primary);
    let hub = |name: &str| {
        Hub::new(&scene, name, &primary.conninfo())
            .flag("--auto-create-slots=*,limit=100,ttl=1h")
            .flag("--max-replication-slots=100")
            .flag("--max-wal-senders=200")
            .flag(&format!("--cluster-name={name}"))
            .started()
    };
    let (mut first, second) = (hub("first"), hub("second"));
    first.wait_state("streaming");
    second.wait_state("streaming");
    let both =
        format!("host=127.0.0.1,127.0.0.1 port={},{} user=postgres", first.port(), second.port());
    let standbys: Vec<_> = (0..STANDBYS)
        .map(|n| {
            let (name, slot) = (format!("standby{n}"), format!("standby_{n}"));
            primary.standby_with(&name, &both, &slot)
        })
        .collect();
    let mut receivers: Vec<_> = (0..RECEIVERS)
        .map(|n| {
            let slot = format!("receiver_{n}");
            Receiver::create_slot(programs, &first.conninfo(), &slot);
            let options = ["--slot", &slot];
            Receiver::start(&scene, programs, &format!("received{n}"), &both, &options)
        })
        .collect();
    for standby in &standbys {
        standby.wait_streaming();
    }
    for receiver in &receivers {
        receiver.wait_begun();
    }
    load::write_mib(&primary, 2);

    // The second one is left behind, and cannot help itself: whatever sockets hold for it, nothing
    // more is sent to it.
    second.signal(Signal::STOP);
    let senders = "from pg_stat_replication where application_name = 'second'";
    primary.sql(&format!("select pg_terminate_backend(pid) {senders}"));
    wait::until("nothing is sent to it", || {
        primary.sql(&format!("select count(*) {senders}")) == "0"
    });
    load::write_mib(&primary, 32);
    let end = primary.flush_lsn();
    for standby in &standbys {
        standby.wait_replayed(end);
    }
    primary.kill();
    first.kill();
    second.signal(Signal::CONT);
    let have = second.inspect().record_end();
    assert!(end.bytes_since(have) >= 1 << 20, "the second has {have}, the fleet {end}");

    primary.start();
    load::write_mib(&primary, 20);
    load::switch_segment(&primary);
    let last = primary.sql("select pg_walfile_name(pg_switch_wal())");
    load::write_mib(&primary, 1);
    let followers: Vec<&Cluster<'_>> = standbys.iter().collect();
    assert_converged(&primary, &followers);
    for receiver in &mut receivers {
        receiver.wait_segment(&last);
        receiver.stop();
        assert_identical(receiver.folder(), &primary.pg_wal(), 2);
    }
    assert_identical(&second.pg_wal(), &primary.pg_wal(), 2);
    assert_eq!(second.slot_names().len(), RECEIVERS + STANDBYS);
}
