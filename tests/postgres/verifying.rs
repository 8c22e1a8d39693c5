//! Old WAL is what it was: digests of a running hub's segments, and who finds that one does not
//! agree.

use crate::cluster::Cluster;
use crate::hub::{self, Hub};
use crate::load;
use crate::scene::Scene;
use crate::segments::complete_segments;
use crate::wait;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Output;

const MIB: u64 = 1 << 20;

/// Every complete segment has a digest.
fn wait_digests(hub: &Hub<'_>) {
    wait::until("every complete segment has a digest", || {
        let digest = |name: &String| hub.pg_wal().join(format!("digests/{name}.digest"));
        complete_segments(&hub.pg_wal()).iter().all(|name| digest(name).exists())
    });
}

/// Flips a bit, in place.
fn flip(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

fn verify(hub: &Hub<'_>, flags: &[&str]) -> (Option<i32>, String) {
    let mut command = hub::command();
    let Output { status, stdout, .. } =
        command.arg("verify").arg(hub.directory()).args(flags).output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap())
}

#[test]
fn segments_get_digests_and_a_flipped_bit_is_named() {
    let scene = Scene::new();
    let primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let mut hub = Hub::run(&scene, "hub", &primary.conninfo());
    hub.wait_state("streaming");
    load::write_mib(&primary, 12);
    wait::until("segments are complete", || complete_segments(&hub.pg_wal()).len() >= 10);
    wait_digests(&hub);
    assert!(hub.inspect().wrong().is_empty());
    hub.stop();
    let names = complete_segments(&hub.pg_wal());
    let (code, said) = verify(&hub, &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.ends_with(&format!("{} complete segments, 0 damaged\n", names.len())), "{said}");
    // In the header of a page, where no checksum is.
    flip(&hub.pg_wal().join(&names[4]), MIB / 2 + 20);
    let (code, said) = verify(&hub, &[]);
    assert_eq!(code, Some(2), "{said}");
    let line = said.lines().find(|line| line.starts_with(&names[4])).unwrap();
    assert!(line.contains("is not what it was when the segment was completed"), "{said}");
    fs::remove_file(hub.pg_wal().join(format!("digests/{}.digest", names[4]))).unwrap();
    let (code, said) = verify(&hub, &[]);
    assert_eq!(code, Some(0), "a walk does not see it: {said}");
    assert!(said.ends_with(", 1 without a digest\n"), "{said}");
}
