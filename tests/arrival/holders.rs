//! Holders that freeze, hold a corrupt copy, or hold other contents than before, and what their peers get.

use std::time::{Duration, Instant};

use narmesh_tests::{NarInfoText, Pair, TestMesh, get_from, hash_part, narinfo_url, promised, wait_for};
use rustix::process::Signal;

use crate::report::Row;

/// A machine is promised to notice a change of its own store within this.
const NOTICED: Duration = Duration::from_secs(1);

#[test]
fn a_frozen_holder_makes_at_most_two_lookups_wait_for_the_deadline() {
    const LOOKUPS: usize = 14;
    const SLOW_MAX: usize = 2;
    const ROUNDS: usize = 3;
    let _turn = crate::alone();
    let mut pair = Pair::on_loopback();
    let paths = pair.holder.store.hold_noise((LOOKUPS + 1) * ROUNDS, 128, 1);
    pair.start();
    let deadline = Duration::from_millis(pair.client.config.narinfo_deadline_ms.into());
    let mut counts = Vec::new();
    for paths in paths.chunks(LOOKUPS + 1) {
        let (first, paths) = paths.split_first().unwrap();
        assert_eq!(get_from(&pair.client, &narinfo_url(first)).status, 200);
        pair.holder.signal(Signal::STOP);
        let slow = |path: &&String| {
            let since = Instant::now();
            assert_eq!(get_from(&pair.client, &narinfo_url(path)).status, 404);
            // A fifth below the deadline: a lookup that reaches the deadline waits for all of it.
            since.elapsed() > deadline * 4 / 5
        };
        counts.push(paths.iter().filter(slow).count());
        pair.holder.signal(Signal::CONT);
        pair.restart_client();
    }
    let slow = counts.iter().copied().max().unwrap();
    Row {
        what: "16 holder frozen, 14 lookups",
        client: "HTTP",
        before: "3 to 10 wait the whole second",
        must_be: "at most 2 wait the whole second",
    }
    .now(&format!("in {ROUNDS} rounds {counts:?} wait the whole second"));
    assert!(slow <= SLOW_MAX, "{slow} of {LOOKUPS} waited for a peer that says nothing");
}

#[test]
fn a_large_nar_with_one_corrupt_copy_comes_from_the_other_holder() {
    const NARS: usize = 4;
    const NAR_BYTES: u64 = 12_000_000;
    let _turn = crate::beside_others();
    let mesh = TestMesh::new();
    let [mut one, mut other, mut client] = ["one", "other", "client"].map(|name| mesh.node(name));
    let paths = one.store.hold_noise(NARS, NAR_BYTES, 1);
    assert_eq!(other.store.hold_noise(NARS, NAR_BYTES, 1), paths);
    // Each holder has every other path corrupt: whichever the client asks first has some corrupt copies.
    for (number, path) in paths.iter().enumerate() {
        if number % 2 == 0 { &one } else { &other }.store.corrupt(path);
    }
    TestMesh::start_all(&mut [&mut one, &mut other, &mut client]);
    one.wait_all_advertised(&[&client]);
    other.wait_all_advertised(&[&client]);
    for path in &paths {
        let _known = client.wait_narinfo(path);
    }
    let failed = paths.iter().filter(|path| !client.realise(&[(*path).clone()]).status.success()).count();
    Row {
        what: "17 NAR of 12 MB, one holder corrupt, one good",
        client: "Nix",
        before: "2 of 4 fail",
        must_be: "0 of 4 fail",
    }
    .now(&format!("{failed} of {NARS} fail"));
    assert_eq!(failed, 0, "somebody had it all the time");
    client.store.verify_contents();
}

#[test]
fn a_path_rebuilt_with_other_contents_is_answered_with_its_new_narinfo() {
    let _turn = crate::beside_others();
    let mut pair = Pair::on_loopback();
    let path = pair.holder.store.build_one("nondet");
    pair.start();
    let old = pair.client.wait_narinfo(&path);
    pair.holder.store.delete(std::slice::from_ref(&path));
    assert_eq!(pair.holder.store.build_one("nondet"), path);
    let new = wait_for("the holder knows what it built", promised(NOTICED), || {
        let answer = pair.holder.get_narinfo(&path);
        (answer.status == 200).then(|| NarInfoText::parse(&answer.text())).filter(|new| new.nar_hash != old.nar_hash)
    });
    pair.holder.wait_all_advertised(&[&pair.client]);
    let gone = get_from(&pair.client, &old.url).status;
    let next = pair.client.get_narinfo(&path);
    let told = if next.status == 200 { NarInfoText::parse(&next.text()).nar_hash } else { next.status.to_string() };
    let told = match told {
        told if told == new.nar_hash => "the truth".to_owned(),
        told if told == old.nar_hash => "the old narinfo".to_owned(),
        status => status,
    };
    Row {
        what: "18 path built again with other contents",
        client: "HTTP",
        before: "the old NAR 404, then the old narinfo",
        must_be: "the old NAR 404, then the truth",
    }
    .now(&format!("the old NAR {gone}, then {told}"));
    assert_eq!((gone, told.as_str()), (404, "the truth"));
}

#[test]
fn a_narinfo_of_a_megabyte_is_served_to_a_peer() {
    const REFERENCES: usize = 17_500;
    let _turn = crate::beside_others();
    let mut pair = Pair::on_loopback();
    let [path] = &pair.holder.store.hold_noise(1, 128, 1)[..] else { panic!("one path") };
    pair.holder.store.refer_to_many(path, REFERENCES);
    pair.start();
    let own = get_from(&pair.holder, &narinfo_url(path));
    let seen = get_from(&pair.client, &narinfo_url(path));
    Row {
        what: "19 narinfo of 17,500 references",
        client: "HTTP",
        before: "own gateway 200, the peer's 404",
        must_be: "200 from the peer's gateway as well",
    }
    .now(&format!("{} bytes, own gateway {}, the peer's {}", own.body.len(), own.status, seen.status));
    assert_eq!((own.status, seen.status), (200, 200), "{}", hash_part(path));
    let references = |text: &str| {
        text.lines().find_map(|line| line.strip_prefix("References: ")).unwrap_or_default().split(' ').count()
    };
    assert_eq!(references(&seen.text()), REFERENCES);
}
