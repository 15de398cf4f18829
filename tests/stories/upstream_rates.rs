//! What several caches give at different rates: a closure takes little longer than with the quickest of them alone, and a
//! cache that limits requests is asked about as often as it allows.

use std::io::Write as _;
use std::thread;
use std::time::{Duration, Instant};

use narmesh_tests::{Finished, NixVersion, PlainCache, TestMesh, TestNode, promised, wait_until};

/// A client of these caches.
fn client_of(mesh: &TestMesh, name: &str, holder: &TestNode, upstreams: String) -> TestNode {
    let mut client = mesh.node(name);
    client.config.trusted_public_keys = vec![holder.builder_key()];
    client.config.more = upstreams;
    client.start();
    client
}

fn say(text: &str) {
    let mut out = std::io::stdout();
    writeln!(out, "{text}").unwrap();
}

fn timed(what: &str, realise: impl FnOnce() -> Finished) -> Duration {
    let since = Instant::now();
    realise().expect_success(what);
    let took = since.elapsed();
    say(&format!("{what}: {:.2} s", took.as_secs_f64()));
    took
}

/// So many times what the quick one takes alone.
const SLOWER_MAX: u32 = 2;
/// Before a slow cache is known as one, the first NARs wait for it; Nix 2.34 asks for 16 at once.
const LEARNT: Duration = Duration::from_secs(2);

#[test]
fn slow_cache_of_a_lower_tier_costs_a_closure_no_more_than_twice_the_time_of_the_quick_one() {
    let mesh = TestMesh::new();
    let holder = mesh.node("holder");
    let paths = holder.store.build("rated");
    let quick = PlainCache::on_loopback(&holder, &paths, "none");
    // 200 kB/s on each connection.
    let slow = quick.twin_with("slow", "limit_rate 200k; limit_rate_after 1;", "");
    let alone = client_of(&mesh, "alone", &holder, quick.upstream("quick", &holder));
    let alone = timed("the quick cache alone", || alone.realise(&paths));
    let upstreams = slow.upstream("slow", &holder) + &quick.upstream("quick", &holder) + "tier = 1\n";
    let both = client_of(&mesh, "both", &holder, upstreams);
    let took = timed("a slow cache of a lower tier before it", || both.realise(&paths));
    assert!(took <= alone * SLOWER_MAX + LEARNT, "{took:?} with both, {alone:?} alone\n{}", both.log());
    assert_eq!(both.status().text("/upstreams/0/state"), Some("up"), "it is slow, and does not fail");
}

/// What a cache allows, requests per second; each path is a narinfo and a NAR.
const ALLOWED_PER_S: u32 = 20;
/// So much longer it may take, until that rate is found: each refusal costs up to a second.
const SLOWER_THAN_ALLOWED_MAX: u32 = 3;
/// Of all answers, so many may be refusals: some, until it is known how much the cache allows.
const REFUSED_PERCENT_MAX: usize = 15;

#[test]
fn cache_that_limits_requests_is_asked_about_as_often_as_it_allows() {
    let mesh = TestMesh::new();
    let holder = mesh.node("holder");
    let paths = holder.store.build("sixty");
    let cache = PlainCache::on_loopback(&holder, &paths, "none");
    let least = Duration::from_secs(paths.len() as u64 * 2) / ALLOWED_PER_S;
    for (name, burst, retry_after) in [
        ("strict", "", ""),
        ("strict-named", "", "add_header Retry-After 1 always;"),
        ("burst", "burst=10 nodelay", ""),
        ("burst-named", "burst=10 nodelay", "add_header Retry-After 1 always;"),
    ] {
        let limited = |client: &str| {
            cache.twin_with(
                &format!("{client}-{name}"),
                &format!("limit_req zone=all {burst}; limit_req_status 429; {retry_after}"),
                &format!("limit_req_zone $binary_remote_addr zone=all:1m rate={ALLOWED_PER_S}r/s;"),
            )
        };
        let say_refused = |cache: &PlainCache| {
            let answers = cache.requests();
            let refused = answers.iter().filter(|status| *status == "429").count();
            say(&format!("{refused} of {} answers are 429", answers.len()));
            refused * 100 / answers.len()
        };
        // It may well fail: it tries each file five times. Nix 2.34 waits a minute after each refusal.
        if NixVersion::from_environment() == NixVersion::V2_8 {
            let plain_cache = limited("plain");
            let plain = mesh.node(&format!("plain-{name}"));
            let since = Instant::now();
            let ended = plain.store.realise(&paths, plain_cache.address, &[holder.builder_key()]).status;
            say(&format!("Nix alone, {name}: {:.2} s, {ended}", since.elapsed().as_secs_f64()));
            say_refused(&plain_cache);
        }
        let our_cache = limited("ours");
        let client = client_of(&mesh, &format!("client-{name}"), &holder, our_cache.upstream("limited", &holder));
        let ours = timed(&format!("narmesh, {name}"), || client.realise(&paths));
        assert!(say_refused(&our_cache) <= REFUSED_PERCENT_MAX, "{}", client.log());
        assert!(
            ours < least * SLOWER_THAN_ALLOWED_MAX,
            "{ours:?}, of {least:?} that it takes at least\n{}",
            client.log()
        );
    }
}

/// A cache that is back is promised to be used within this.
const BACK: Duration = Duration::from_secs(2);
/// For how long a cache is away.
const OUTAGE: Duration = Duration::from_secs(6);

#[test]
fn only_cache_that_is_away_for_some_seconds_fails_no_build() {
    let mesh = TestMesh::new();
    let holder = mesh.node("holder");
    let paths = holder.store.build("rated");
    let mut cache = PlainCache::on_loopback(&holder, &paths, "none").twin_with("slow", "limit_rate 2m;", "");
    let client = client_of(&mesh, "client", &holder, cache.upstream("only", &holder));
    thread::scope(|scope| {
        let realised = scope.spawn(|| timed("narmesh over the outage", || client.realise(&paths)));
        wait_until("the build is under way", promised(OUTAGE), || client.status().number("/requests/nar_ok") > 10);
        cache.kill();
        thread::sleep(OUTAGE);
        cache.start_again();
        let since = Instant::now();
        client.wait_status("the cache is used again", BACK, |status| status.text("/upstreams/0/state") == Some("up"));
        say(&format!("used again after {:.2} s", since.elapsed().as_secs_f64()));
        realised.join().unwrap();
    });
}
