//! What is kept of differences, and whom each of them bars.

use super::*;

fn source(name: &str, server: Option<&str>) -> WalSource {
    WalSource { name: name.to_owned(), server: server.map(str::to_owned) }
}

fn difference(source: WalSource, at: u64, cleared: bool) -> Difference {
    Difference {
        tli: TimelineId::FIRST,
        at: Lsn::new(at),
        source,
        since: UNIX_EPOCH + Duration::from_millis(1_790_000_000_123),
        detail: "a \"b\"".to_owned(),
        bytes: None,
        cleared,
    }
}

fn host(name: &str) -> WalSource {
    source(name, None)
}

#[test]
fn cleared_evidence_bars_its_author_alone() {
    let of_db1 = |cleared| difference(host("db1:5432"), 7, cleared);
    for source in [host("db1:5432"), host("db2:5432"), WalSource::archive()] {
        assert!(of_db1(false).bars(&source), "{source:?}");
        assert_eq!(of_db1(true).bars(&source), source.name == "db1:5432", "{source:?}");
    }
    // The archive is one source, whichever file it was.
    let of_archive = difference(WalSource::archive_file("000000010000000000000005"), 7, true);
    assert!(of_archive.bars(&WalSource::archive()));
    assert!(of_archive.bars(&WalSource::archive_file("000000010000000000000006")));
    assert!(!of_archive.bars(&host("db1:5432")));
}

#[test]
fn a_server_is_known_under_each_of_its_names() {
    let of_a = difference(source("db1:5432", Some("a")), 7, true);
    assert!(of_a.bars(&source("10.0.0.1:5432", Some("a"))));
    assert!(!of_a.bars(&source("db2:5432", Some("b"))));
    // Another server has taken over the name.
    assert!(!of_a.bars(&source("db1:5432", Some("b"))));
    // A server that says nothing is known by its name.
    assert!(of_a.bars(&host("db1:5432")));
    assert!(!of_a.bars(&host("10.0.0.1:5432")));
}

#[test]
fn each_source_has_a_difference_of_its_own() {
    let mut evidence = Evidence::default();
    assert_eq!(evidence.add(difference(host("a"), 7, false)), None);
    let cleared = evidence.agree(&host("c"));
    assert!(matches!(cleared, Some((_, Agreement::Cleared))));
    evidence.add(difference(host("b"), 9, false));
    let place = |evidence: &Evidence, name: &str| {
        evidence.against(&host(name)).map(|difference| difference.at.raw())
    };
    // The one that is not cleared comes first, and bars everybody.
    assert_eq!(["a", "b", "c"].map(|name| place(&evidence, name)), [Some(9); 3]);
    assert!(matches!(evidence.agree(&host("c")), Some((_, Agreement::Cleared))));
    let places = ["a", "b", "c"].map(|name| place(&evidence, name));
    assert_eq!(places, [Some(7), Some(9), None], "neither is forgotten");
    assert!(matches!(evidence.agree(&host("a")), Some((_, Agreement::Resolved))));
    let places = ["a", "b", "c"].map(|name| place(&evidence, name));
    assert_eq!(places, [None, Some(9), None]);
    assert_eq!(evidence.agree(&host("a")), None);
}

#[test]
fn an_operator_clears_one_place() {
    let mut evidence = Evidence::from(difference(host("a"), 7, true));
    evidence.add(difference(host("b"), 9, false));
    let before = evidence.clone();
    assert_eq!(evidence.clear(Lsn::new(8)), None);
    assert_eq!(evidence.clear(Lsn::new(7)), Some(host("a")));
    assert_eq!(evidence, before, "it was cleared before");
    assert_eq!(evidence.clear(Lsn::new(9)), Some(host("b")));
    let place = |name: &str| evidence.against(&host(name)).map(|found| found.at.raw());
    assert_eq!(["a", "b", "c"].map(place), [Some(7), Some(9), None]);
}

fn bytes(ours: &[u8], theirs: &[u8]) -> PlaceBytes {
    PlaceBytes::of(ours, theirs, 0)
}

#[test]
fn what_was_seen_names_the_history_whoever_has_it() {
    let known = |bytes| Difference { bytes, ..difference(source("a", Some("x")), 7, false) };
    let own = source("a", Some("x"));
    let whose = |difference: &Difference, theirs: &[u8]| {
        [&own, &host("b")].map(|source| difference.is_history_of(source, theirs))
    };
    // Only its source may have it.
    assert_eq!(whose(&known(None), &[1, 2]), [true, false]);
    assert_eq!(whose(&known(Some(bytes(&[1, 2], &[1, 2]))), &[1, 2]), [true, false]);
    let little = known(Some(bytes(&[1, 3], &[1, 2])));
    assert_eq!(whose(&little, &[1, 2, 9]), [true, false]);
    // A copy says the same of itself.
    assert!(!known(None).is_history_of(&source("b", Some("x")), &[1, 2]));
    let seen = known(Some(bytes(&[1; 16], &[2; 16])));
    assert_eq!(whose(&seen, &[2; 20]), [true, true]);
    // Not even its source has it any more, or not all of it.
    for other in [&[1; 16][..], &[2; 15], &[]] {
        assert_eq!(whose(&seen, other), [false, false], "{other:?}");
    }
}

#[test]
fn a_source_that_shows_something_else_has_another_history_now() {
    let mut evidence = Evidence::from(difference(host("a"), 7, false));
    let mut learn = |name: &str, theirs: &[u8]| {
        let shown = bytes(&[1, 1, 1], theirs);
        let later = UNIX_EPOCH + Duration::from_secs(9);
        let lesson = evidence.learn(&host(name), &shown, later);
        let own = evidence.at(Lsn::new(7)).unwrap();
        (lesson, own.bytes.as_ref().unwrap().theirs.clone(), own.since == later)
    };
    assert_eq!(learn("a", &[2, 2]), (Some(Lesson::Same), vec![2, 2], false));
    assert_eq!(learn("b", &[3, 3]), (None, vec![2, 2], false), "it is another's");
    assert_eq!(learn("a", &[2]), (Some(Lesson::Same), vec![2, 2], false));
    assert_eq!(learn("a", &[2, 2, 4]), (Some(Lesson::Same), vec![2, 2, 4], false));
    assert_eq!(learn("a", &[3]), (Some(Lesson::Changed), vec![3], true));
}

#[test]
fn agreement_under_another_name_leaves_the_first_one_barred() {
    let first = source("db1:5432", Some("main"));
    let mut evidence = Evidence::from(difference(first.clone(), 7, false));
    let second = source("db2:5432", Some("main"));
    assert!(matches!(evidence.agree(&second), Some((_, Agreement::Cleared))));
    assert_eq!(evidence.against(&second), None);
    assert!(evidence.against(&first).is_some());
    assert!(matches!(evidence.agree(&first), Some((_, Agreement::Resolved))));
    assert!(evidence.is_empty());
}

#[test]
fn the_list_is_bounded() {
    let mut evidence = Evidence::default();
    let lost = (0..=MOST as u64)
        .filter_map(|n| evidence.add(difference(host(&format!("db{n}")), n + 1, true)));
    assert_eq!(lost.map(|difference| difference.at.raw()).collect::<Vec<_>>(), [1]);
    assert_eq!(evidence.iter().count(), MOST);
}

#[test]
fn evidence_without_the_field_stands_against_everybody() {
    let text = Text::of(&difference(host("db1:5432"), 7, false));
    let mut text = serde_json::to_value(text).unwrap();
    text.as_object_mut().unwrap().remove("cleared");
    let evidence = Evidence::decode(&seal("evidence", 1, &text)).unwrap();
    assert!(evidence.iter().all(|difference| !difference.cleared));
    assert_eq!(evidence.iter().count(), 1);
}

#[test]
fn round_trip() {
    let one = Evidence::from(difference(source("db1:5432", Some("a")), 7, true));
    let mut two = one.clone();
    let seen = Some(bytes(&[0, 0x1f], &[0xff; 100]));
    two.add(Difference { bytes: seen, ..difference(host("db2:5432"), 9, false) });
    for known in [one, two, Evidence::default()] {
        assert_eq!(Evidence::decode(&known.encode()), Ok(known.clone()));
        let mut bytes = known.encode();
        let last = bytes.len() - 2;
        bytes[last] ^= 1;
        assert!(Evidence::decode(&bytes).is_err());
    }
    assert!(Evidence::decode(b"").is_err());
}

#[test]
fn a_single_difference_is_stored_as_before() {
    let bytes = Evidence::from(difference(host("db1:5432"), 7, true)).encode();
    let text = String::from_utf8(bytes).unwrap();
    assert!(text.starts_with("walhub evidence 1 "), "{text}");
    assert!(!text.contains("server") && !text.contains("theirs"), "{text}");
}
