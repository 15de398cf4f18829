//! Sixty small NARs as the first thing on a new connection, sixteen at once.

use std::time::{Duration, Instant};

use narmesh_tests::NixVersion;

use crate::asked::{fetch_all, missing};
use crate::report::Row;
use crate::stage::Pair;

/// What Nix opens a cache with.
const PATHS: usize = 60;
/// The smallest NARs that hold anything worth it.
const NAR_BYTES: u64 = 128;
/// Nix's `max-substitution-jobs`.
const AT_ONCE: usize = 16;
/// Each begins with a new connection.
const ROUNDS: usize = 6;
/// Half of a round trip of ten milliseconds.
const ONE_WAY: Duration = Duration::from_millis(5);

/// Asks in every round for other paths, so that nothing is remembered; returns how many did not come.
fn rounds(pair: &mut Pair, rounds: usize, ask: impl Fn(&Pair, &[String]) -> usize) -> String {
    let paths = pair.holder.store.hold_noise(rounds * PATHS, NAR_BYTES, 1);
    pair.start();
    let (mut lost, mut failed, mut busy) = (0, 0, Duration::ZERO);
    for (round, paths) in paths.chunks(PATHS).enumerate() {
        if round > 0 {
            pair.restart_client();
        }
        let since = Instant::now();
        let missing = ask(pair, paths);
        busy += since.elapsed();
        lost += missing;
        failed += usize::from(missing > 0);
    }
    format!(
        "{lost} of {} missing, {failed} of {rounds} runs fail, {:.0} ms a run",
        rounds * PATHS,
        busy.as_secs_f64() * 1e3 / rounds as f64
    )
}

fn with_nix(mut pair: Pair, version: NixVersion, row: &Row) {
    pair.use_nix(version);
    let seen = rounds(&mut pair, ROUNDS, |pair, paths| {
        // How it ends is told by what is there.
        pair.client.realise(paths);
        PATHS - pair.arrived(paths)
    });
    row.now(&seen);
    assert!(seen.starts_with("0 of "), "Nix {}: {seen}", version.name());
}

fn with_http(mut pair: Pair, row: &Row) {
    let seen = rounds(&mut pair, 2 * ROUNDS, |pair, paths| missing(&fetch_all(&pair.client, paths, AT_ONCE)));
    row.now(&seen);
    assert!(seen.starts_with("0 of "), "{seen}");
}

const LOOPBACK: &str = "01 60 NARs of 128 bytes first on a new connection, loopback";
const APART: &str = "02 the same, 10 ms round trip";
const NONE_LOST: &str = "0 missing";

#[test]
fn a_burst_of_small_nars_on_loopback_arrives_with_nix_2_26() {
    let _turn = crate::alone();
    let row =
        Row { what: LOOPBACK, client: "Nix 2.26", before: "15 of 360 missing, 2 of 6 runs fail", must_be: NONE_LOST };
    with_nix(Pair::on_loopback(), NixVersion::V2_26, &row);
}

#[test]
fn a_burst_of_small_nars_on_loopback_arrives_with_nix_2_34() {
    let _turn = crate::alone();
    let row =
        Row { what: LOOPBACK, client: "Nix 2.34", before: "30 of 360 missing, 5 of 6 runs fail", must_be: NONE_LOST };
    with_nix(Pair::on_loopback(), NixVersion::V2_34, &row);
}

#[test]
fn a_burst_of_small_nars_on_loopback_arrives_at_sixteen_requests() {
    let _turn = crate::alone();
    let row = Row {
        what: LOOPBACK,
        client: "16 requests",
        before: "35 of 720 missing, 9 of 12 runs fail",
        must_be: NONE_LOST,
    };
    with_http(Pair::on_loopback(), &row);
}

#[test]
fn a_burst_of_small_nars_from_afar_arrives_with_nix_2_26() {
    let _turn = crate::alone();
    if crate::has_networks() {
        let row =
            Row { what: APART, client: "Nix 2.26", before: "10 of 360 missing, 3 of 6 runs fail", must_be: NONE_LOST };
        with_nix(Pair::apart(ONE_WAY), NixVersion::V2_26, &row);
    }
}

#[test]
fn a_burst_of_small_nars_from_afar_arrives_with_nix_2_34() {
    let _turn = crate::alone();
    if crate::has_networks() {
        let row =
            Row { what: APART, client: "Nix 2.34", before: "6 of 360 missing, 2 of 6 runs fail", must_be: NONE_LOST };
        with_nix(Pair::apart(ONE_WAY), NixVersion::V2_34, &row);
    }
}

#[test]
fn a_burst_of_small_nars_from_afar_arrives_at_sixteen_requests() {
    let _turn = crate::alone();
    if crate::has_networks() {
        let row = Row {
            what: APART,
            client: "16 requests",
            before: "2 of 720 missing, 1 of 12 runs fail",
            must_be: NONE_LOST,
        };
        with_http(Pair::apart(ONE_WAY), &row);
    }
}
