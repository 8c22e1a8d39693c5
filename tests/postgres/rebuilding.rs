//! A control file that is damaged, and rebuilt from the segments.

use crate::cluster::{Cluster, assert_converged};
use crate::hub::{self, Hub};
use crate::load;
use crate::scene::Scene;
use crate::segments::flip;
use crate::streaming::wait_connected;
use crate::wait;
use std::fs;
use std::process::Output;

fn inspect(hub: &Hub<'_>, flags: &[&str]) -> (Option<i32>, String) {
    let mut command = hub::command();
    let Output { status, stdout, stderr } =
        command.arg("inspect").arg(hub.directory()).args(flags).output().unwrap();
    (status.code(), String::from_utf8([stdout, stderr].concat()).unwrap())
}

/// Over a promotion: the new file has both timelines.
#[test]
fn a_hub_goes_on_with_a_control_file_that_was_rebuilt() {
    let scene = Scene::new();
    let old = Cluster::primary_with_segments(&scene, "old", 1);
    load::prepare(&scene, &old);
    let upstream = old.standby("upstream", &old.conninfo());
    upstream.wait_streaming();
    let mut hub = Hub::run(&scene, "hub", &upstream.conninfo());
    wait_connected(&upstream);
    let standby = old.standby("standby", &hub.conninfo());
    standby.wait_streaming();
    load::write_mib(&old, 3);
    assert_converged(&old, &[&upstream, &standby]);
    upstream.promote();
    load::write_mib(&upstream, 3);
    assert_converged(&upstream, &[&standby]);
    let end = upstream.flush_lsn();
    wait::until("the hub has it all", || hub.inspect().record_end() >= end);
    let (code, said) = inspect(&hub, &["--rebuild-control"]);
    assert_eq!(code, Some(1), "it runs: {said}");
    hub.stop();
    let (code, said) = inspect(&hub, &["--rebuild-control"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("is whole"), "{said}");

    let control = hub.directory().join("walhub.control");
    let good = fs::read(&control).unwrap();
    drop(flip(&control, good.len() as u64 / 2));
    let (code, said) = inspect(&hub, &[]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("has checksum") && said.contains("--rebuild-control"), "{said}");
    assert!(hub.refuses_to_start().contains("has checksum"));
    let (code, said) = inspect(&hub, &["--rebuild-control"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("timeline 2 here since"), "{said}");
    let kept = fs::read(hub.directory().join("walhub.control.damaged")).unwrap();
    assert_ne!(kept, good);
    let (code, said) = inspect(&hub, &[]);
    assert_eq!(code, Some(0), "{said}");

    hub.start();
    wait_connected(&upstream);
    load::write_mib(&upstream, 3);
    assert_converged(&upstream, &[&standby]);
    // Nothing of it is lost: WAL of both timelines is served from files.
    let late = old.standby("late", &hub.conninfo());
    assert_converged(&upstream, &[&late]);
    hub.wait_state("streaming");
}
