//! Sixty small NARs are the first things asked for on a new connection, sixteen at a time.

use std::time::{Duration, Instant};

use narmesh_tests::{NixVersion, Pair, fetch_all, missing};

use crate::report::{Row, nix};

/// Paths asked for in a round, right after a new connection: Nix starts on a cache like this.
const PATHS: usize = 60;
/// Contents of each NAR, bytes: about the smallest that is worth fetching.
const NAR_BYTES: u64 = 128;
/// Nix's `max-substitution-jobs`.
const AT_ONCE: usize = 16;
/// Rounds of a run; each begins with a new connection.
const ROUNDS: usize = 6;
/// Half of a round trip of ten milliseconds.
const ONE_WAY: Duration = Duration::from_millis(5);

/// Asks for other paths in every round, so that no answer is remembered. `ask` returns how many did not arrive.
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

/// Two machines on loopback, or with a round trip of 10 ms between them; `None` where networks cannot be made.
fn pair(place: &str) -> Option<Pair> {
    match place {
        LOOPBACK => Some(Pair::on_loopback()),
        _ => crate::has_networks().then(|| Pair::apart(ONE_WAY)),
    }
}

fn with_nix(place: &'static str, version: NixVersion, before: &'static str) {
    let _turn = crate::alone();
    let Some(mut pair) = pair(place) else { return };
    pair.use_nix(version);
    let seen = rounds(&mut pair, ROUNDS, |pair, paths| {
        // Which paths arrived says enough; the exit status is not needed.
        pair.client.realise(paths);
        PATHS - pair.arrived(paths)
    });
    Row { what: place, client: nix(version), before, must_be: NONE_LOST }.now(&seen);
    assert!(seen.starts_with("0 of "), "Nix {}: {seen}", version.name());
}

fn with_http(place: &'static str, before: &'static str) {
    let _turn = crate::alone();
    let Some(mut pair) = pair(place) else { return };
    let seen = rounds(&mut pair, 2 * ROUNDS, |pair, paths| missing(&fetch_all(&pair.client, paths, AT_ONCE)));
    Row { what: place, client: "16 requests", before, must_be: NONE_LOST }.now(&seen);
    assert!(seen.starts_with("0 of "), "{seen}");
}

const LOOPBACK: &str = "01 60 NARs of 128 bytes first on a new connection, loopback";
const APART: &str = "02 the same, 10 ms round trip";
const NONE_LOST: &str = "0 missing";

#[test]
fn a_burst_of_small_nars_on_loopback_arrives_with_nix_2_26() {
    with_nix(LOOPBACK, NixVersion::V2_26, "15 of 360 missing, 2 of 6 runs fail");
}

#[test]
fn a_burst_of_small_nars_on_loopback_arrives_with_nix_2_34() {
    with_nix(LOOPBACK, NixVersion::V2_34, "30 of 360 missing, 5 of 6 runs fail");
}

#[test]
fn a_burst_of_small_nars_on_loopback_arrives_with_sixteen_parallel_requests() {
    with_http(LOOPBACK, "35 of 720 missing, 9 of 12 runs fail");
}

#[test]
fn a_burst_of_small_nars_from_afar_arrives_with_nix_2_26() {
    with_nix(APART, NixVersion::V2_26, "10 of 360 missing, 3 of 6 runs fail");
}

#[test]
fn a_burst_of_small_nars_from_afar_arrives_with_nix_2_34() {
    with_nix(APART, NixVersion::V2_34, "6 of 360 missing, 2 of 6 runs fail");
}

#[test]
fn a_burst_of_small_nars_from_afar_arrives_with_sixteen_parallel_requests() {
    with_http(APART, "2 of 720 missing, 1 of 12 runs fail");
}
