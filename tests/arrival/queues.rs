//! One holder gets many requests at once: who waits, for how long, and in which order.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use narmesh_tests::{
    LookupsBesideBulk, Namespace, Pair, TestMesh, TestNode, fetch_all, get, get_from, hash_part, missing, nar_url,
    narinfo_url, promised, request, wait_until,
};

use crate::report::Row;

/// Upload limit of the holder, bytes per second.
const LIMIT_BYTES_S: u32 = 256 << 10;
/// Highest rate, as a multiple of the limit: it includes the burst that a holder may send after a rest.
const RATE_MAX: f64 = 1.2;
/// How far from the order of requests a NAR may finish: sixteen share the limit at a time and finish in any order.
const PLACES_APART_MAX: usize = 16;

#[test]
fn nars_that_wait_for_an_upload_limit_arrive_in_the_order_of_requests() {
    const NARS: usize = 48;
    const NAR_BYTES: u64 = 150_000;
    let _turn = crate::beside_others();
    let mut pair = Pair::on_loopback();
    pair.holder.config.upload_bytes_per_s = Some(LIMIT_BYTES_S);
    let paths = pair.holder.store.hold_noise(NARS, NAR_BYTES, 1);
    pair.start();
    let since = Instant::now();
    // Sixteen at a time, like Nix.
    let all = fetch_all(&pair.client, &paths, 16);
    let took = since.elapsed();
    let lost = missing(&all);
    let rate = (NARS - lost) as f64 * NAR_BYTES as f64 / took.as_secs_f64() / f64::from(LIMIT_BYTES_S);
    let mut by_asked: Vec<_> = all.iter().filter(|one| one.arrived).collect();
    by_asked.sort_by_key(|one| one.asked);
    let mut by_ended: Vec<_> = by_asked.iter().enumerate().collect();
    by_ended.sort_by_key(|(_, one)| one.ended);
    let apart = by_ended.iter().enumerate().map(|(ended, (asked, _))| ended.abs_diff(*asked)).max().unwrap_or(0);
    Row {
        what: "10 upload_bytes_per_s of 256 KiB/s, 48 x 150 kB, 16 at once",
        client: "16 requests",
        before: "20 of 48 told gone, up to 25 places from their own",
        must_be: "0 told gone, in order, at that rate",
    }
    .now(&format!("{lost} of {NARS} told gone, at most {apart} places from their own, {rate:.2} of the rate"));
    assert_eq!(lost, 0, "a limit means waiting, not gone");
    assert!(rate <= RATE_MAX, "{rate:.2} of the limit");
    assert!(apart <= PLACES_APART_MAX, "one finished {apart} places from where it was asked");
}

/// Looks five paths up again and again, while sixteen NARs fill the line.
fn lookups_beside_bulk(kilobits_per_s: u32, bulk_bytes: u64, what: &'static str, before: &'static str) {
    let _turn = crate::beside_others();
    if !crate::has_networks() {
        return;
    }
    let seen = LookupsBesideBulk::run(kilobits_per_s, bulk_bytes);
    let must_be = "0 answered 404, p99 <= queue + 2 round trips + 50 ms";
    Row { what, client: "HTTP", before, must_be }.now(&format!(
        "{} of {} answered 404, p99 {} ms (the line's own queue {} ms)",
        seen.refused,
        seen.times.len(),
        seen.p99().as_millis(),
        Namespace::full_queue(kilobits_per_s).as_millis()
    ));
    assert_eq!(seen.refused, 0, "a narinfo never waits behind NARs until it is told as absent");
}

#[test]
fn lookups_beside_bulk_on_10_mbit_are_all_answered() {
    let what = "11 five lookups at once beside 16 NARs on 10 Mbit/s";
    lookups_beside_bulk(10_000, 1_500_000, what, "122 of 171 answered 404, p99 1,028 ms");
}

#[test]
fn lookups_beside_bulk_on_1_mbit_are_all_answered() {
    let what = "12 five lookups at once beside 16 NARs on 1 Mbit/s";
    lookups_beside_bulk(1_000, 150_000, what, "1,000 of 1,000 answered 404");
}

/// How often each path is fetched: often enough that the large NAR is asked for several times meanwhile.
const AGAIN: usize = 5;

/// Fetches NARs through `node`, one after the other; returns bytes per second.
fn rate(node: &TestNode, paths: &[String]) -> f64 {
    let since = Instant::now();
    let bytes: usize = paths
        .iter()
        .cycle()
        .take(paths.len() * AGAIN)
        .map(|path| {
            let body = get_from(node, &nar_url(&get_from(node, &narinfo_url(path))).expect("a narinfo"));
            assert!(body.status == 200 && body.complete);
            body.body.len()
        })
        .sum();
    bytes as f64 / since.elapsed().as_secs_f64()
}

#[test]
fn requests_for_the_last_byte_of_a_large_nar_cost_other_clients_little() {
    const LARGE_BYTES: u64 = 600 << 20;
    const AT_ONCE: usize = 16;
    let _turn = crate::alone();
    let mesh = TestMesh::new();
    let [mut holder, mut greedy, mut other] = ["holder", "greedy", "other"].map(|name| mesh.node(name));
    let large = holder.store.hold_hole(LARGE_BYTES);
    let paths = holder.store.hold_noise(40, 2_000_000, 1);
    TestMesh::start_all(&mut [&mut holder, &mut greedy, &mut other]);
    holder.wait_all_advertised(&[&greedy, &other]);
    let narinfo = greedy.wait_narinfo(&large);
    let range = format!("bytes={}-", narinfo.nar_size - 1);
    let (undisturbed_paths, disturbed_paths) = paths.split_at(paths.len() / 2);
    let idle = holder.processor_time();
    let undisturbed = rate(&other, undisturbed_paths);
    let of_whole_nars = (holder.processor_time() - idle).as_secs_f64() / (AGAIN * undisturbed_paths.len()) as f64;
    let ended = AtomicBool::new(false);
    let (disturbed, last_bytes) = thread::scope(|scope| {
        let ask = || {
            let mut answered = 0;
            while !ended.load(Ordering::Relaxed) {
                let body = request(greedy.gateway(), "GET", &narinfo.url, &[("Range", &range)]);
                answered += usize::from(body.is_ok_and(|body| body.finish().body.len() == 1));
            }
            answered
        };
        let asking: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(ask)).collect();
        let busy = holder.processor_time();
        wait_until("the holder works for them", promised(Duration::from_secs(2)), || {
            holder.processor_time() > busy + Duration::from_millis(20)
        });
        let disturbed = rate(&other, disturbed_paths);
        ended.store(true, Ordering::Relaxed);
        (disturbed, asking.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>())
    });
    let ratio = disturbed / undisturbed;
    let of_last_bytes = ((holder.processor_time() - idle).as_secs_f64() - of_whole_nars * (AGAIN * paths.len()) as f64)
        .max(0.0)
        / last_bytes.max(1) as f64;
    // The kernel counts processor time in steps of 10 ms, so a NAR of 2 MB may seem to cost nothing.
    let cost = of_last_bytes / of_whole_nars.max(1e-4);
    Row {
        what: "13 16 at a time ask for the last byte of a 600 MiB NAR",
        client: "another's HTTP",
        before: "0.17 of the rate, each at the cost of 295 NARs",
        must_be: "more than a third of the undisturbed rate, each at the cost of a NAR of 2 MB at most",
    }
    .now(&format!(
        "{ratio:.2} of the undisturbed rate, {last_bytes} last bytes meanwhile, each at the cost of {cost:.1} NARs of 2 MB"
    ));
    assert!(ratio > 1.0 / 3.0, "others get {ratio:.2} of their rate");
    assert!(cost < 1.0, "one byte costs the holder as much as {cost:.1} NARs of 2 MB");
    assert_eq!(get(other.gateway(), &format!("/{}.narinfo", hash_part(&large))).unwrap().status, 200);
}
