//! Upstream caches beside the mesh: narmesh is the only line in nix.conf, and what a cache has arrives, however it is
//! packed and whatever fails beside it.

use std::net::{SocketAddr, TcpListener};
use std::thread;
use std::time::{Duration, Instant};

use narmesh_tests::{GatedProxy, PlainCache, TestMesh, TestNode, free_address, get, promised, sha256_hex, wait_until};

/// A lookup waits at most this long for an upstream that says nothing.
const DEADLINE_MAX: Duration = Duration::from_secs(10);

fn assert_arrived(holder: &TestNode, client: &TestNode, paths: &[String]) {
    client.realise(paths).expect_success("nix-store --realise");
    client.store.verify_contents();
    for path in paths {
        let (source, copy) = (holder.store.row(path).expect("built there"), client.store.row(path).expect("arrived"));
        assert_eq!((&copy.nar_hash, copy.nar_size), (&source.nar_hash, source.nar_size), "{path}");
        assert!(!copy.ultimate, "{path} was built here");
    }
}

/// An upstream that is only an address, without keys.
fn lone_upstream(name: &str, address: SocketAddr) -> String {
    format!("[[upstream]]\nname = '{name}'\nurl = 'http://{address}'\n")
}

#[test]
fn every_compression_of_a_cache_is_unpacked() {
    let mesh = TestMesh::new();
    let holder = mesh.node("holder");
    let paths = holder.store.build("everything");
    for compression in ["none", "xz", "zstd", "bzip2", "br", "gzip", "lz4"] {
        let cache = PlainCache::on_loopback(&holder, &paths, compression);
        let mut client = mesh.node(&format!("client-{compression}"));
        client.config.trusted_public_keys = vec![holder.builder_key()];
        client.config.more = cache.upstream("plain", &holder);
        client.start();
        assert_arrived(&holder, &client, &paths);
        let status = client.status();
        assert_eq!(status.text("/upstreams/0/state"), Some("up"), "{compression}");
        assert!(status.number("/upstreams/0/bytes_in") > 0, "{compression}");
        let failures = status.0.pointer("/upstreams/0/failures").and_then(|failures| failures.as_object()).unwrap();
        assert!(failures.is_empty(), "{compression}: {failures:?}");
    }
}

#[test]
fn a_directory_is_an_upstream_too() {
    let mesh = TestMesh::new();
    let holder = mesh.node("holder");
    let paths = holder.store.build("everything");
    let cache = PlainCache::on_loopback(&holder, &paths, "xz");
    let (key, dir) = (holder.builder_key(), cache.dir().display());
    let mut client = mesh.node("client");
    client.config.trusted_public_keys = vec![holder.builder_key()];
    client.config.more = format!("[[upstream]]\nname = 'disk'\nurl = 'file://{dir}'\npublic_keys = ['{key}']\n");
    client.start();
    assert_arrived(&holder, &client, &paths);
}

#[test]
fn dead_and_frozen_upstreams_fail_no_build() {
    let mesh = TestMesh::new();
    let holder = mesh.node("holder");
    let paths = holder.store.build("everything");
    let cache = PlainCache::on_loopback(&holder, &paths, "xz");
    let refusing = free_address();
    // Connections are accepted by the kernel, and nothing is ever answered.
    let frozen = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = mesh.node("client");
    client.config.trusted_public_keys = vec![holder.builder_key()];
    client.config.more = [
        lone_upstream("refusing", refusing),
        lone_upstream("frozen", frozen.local_addr().unwrap()) + "stall_timeout_ms = 1000\n",
        cache.upstream("good", &holder),
    ]
    .concat();
    client.start();
    assert_arrived(&holder, &client, &paths);
    // What nobody has is asked for until the cache that refuses is down: before that it may be starting again.
    assert_eq!(client.get_narinfo("/nix/store/00000000000000000000000000000000-nothing").status, 404);
    let status = client.status();
    assert_eq!(status.text("/upstreams/0/state"), Some("down"));
    assert_eq!(status.text("/upstreams/2/state"), Some("up"));
    let probed = client.narmesh(&["check-config", "--probe"]).expect_failure("narmesh check-config --probe");
    for words in ["refusing: NOT reachable: connect:", "frozen: NOT reachable: timeout:", "good: reachable, answered"] {
        assert!(probed.contains(words), "{words}\n{probed}");
    }
    let metrics = get(client.gateway(), "/metrics").unwrap().text();
    for line in [
        "narmesh_upstream_up{upstream=\"refusing\"} 0",
        "narmesh_upstream_up{upstream=\"good\"} 1",
        "narmesh_upstream_failures_total{upstream=\"refusing\",kind=\"connect\"}",
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
}

/// The longest wait before the next source is asked.
const HEDGE_MAX: Duration = Duration::from_millis(250);

#[test]
fn a_frozen_upstream_costs_one_lookup_a_hedge_and_the_others_nothing() {
    let mesh = TestMesh::new();
    let holder = mesh.node("holder");
    let paths = holder.store.build("everything");
    let cache = PlainCache::on_loopback(&holder, &paths, "xz");
    let frozen = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = mesh.node("client");
    client.config.more = lone_upstream("frozen", frozen.local_addr().unwrap()) + &cache.upstream("good", &holder);
    client.start();
    assert_eq!(client.get_narinfo(&paths[0]).status, 200);
    let since = Instant::now();
    paths[1..].iter().for_each(|path| assert_eq!(client.get_narinfo(path).status, 200));
    let others = u32::try_from(paths.len() - 1).unwrap();
    assert!(since.elapsed() < HEDGE_MAX * others / 2, "{others} lookups took {:?}", since.elapsed());
    assert_eq!(client.status().text("/upstreams/0/state"), Some("up"), "nothing has timed out yet");
}

#[test]
fn what_a_peer_holds_comes_from_the_peer() {
    let mesh = TestMesh::new();
    let [mut holder, mut client] = ["holder", "client"].map(|name| mesh.node(name));
    let paths = holder.store.build("everything");
    let cache = PlainCache::on_loopback(&holder, &paths, "xz");
    client.config.more = cache.upstream("plain", &holder);
    TestMesh::start_all(&mut [&mut holder, &mut client]);
    holder.wait_all_advertised(&[&client]);
    assert_arrived(&holder, &client, &paths);
    let status = client.status();
    let (from_peer, from_cache) =
        (status.peer("holder").unwrap()["bytes_in"].as_u64().unwrap(), status.number("/upstreams/0/bytes_in"));
    assert!(from_cache * 10 < from_peer, "{from_cache} bytes over the internet, {from_peer} from the neighbour");
}

#[test]
fn with_upstreams_preferred_the_peer_is_the_reserve() {
    let mesh = TestMesh::new();
    let [mut holder, mut client] = ["holder", "client"].map(|name| mesh.node(name));
    let paths = ["one", "two"].map(|tag| holder.store.build_fresh(tag));
    let mut cache = PlainCache::on_loopback(&holder, &paths, "xz");
    client.config.more = cache.upstream("plain", &holder);
    client.config.prefer = Some("upstream");
    TestMesh::start_all(&mut [&mut holder, &mut client]);
    holder.wait_all_advertised(&[&client]);
    let of_peer = |client: &TestNode| client.status().peer("holder").unwrap()["bytes_in"].as_u64().unwrap();
    assert_arrived(&holder, &client, &paths[1..]);
    let (from_peer, from_cache) = (of_peer(&client), client.status().number("/upstreams/0/bytes_in"));
    assert_eq!(from_peer, 0, "{from_cache} bytes came from the cache");
    assert!(from_cache > 0);
    cache.kill();
    assert_arrived(&holder, &client, &paths[..1]);
    assert!(of_peer(&client) > from_peer);
}

#[test]
fn what_no_trusted_key_of_the_upstream_signed_is_not_given() {
    let mesh = TestMesh::new();
    let holder = mesh.node("holder");
    let stranger = mesh.node("stranger");
    let path = holder.store.build_one("rootfile");
    let cache = PlainCache::on_loopback(&holder, std::slice::from_ref(&path), "xz");
    let mut client = mesh.node("client");
    // The mesh may trust this key, but it is none of this cache's.
    client.config.trusted_public_keys = vec![holder.builder_key()];
    client.config.more = cache.upstream("plain", &stranger);
    client.start();
    assert_eq!(client.get_narinfo(&path).status, 404);
    let why = client.narmesh(&["why", &path]).expect_success("narmesh why");
    assert!(why.contains("the answer of plain is not handed on: no trusted signature"), "{why}");
    assert_eq!(client.status().number("/upstreams/0/failures/untrusted"), 1);
}

#[test]
fn a_path_that_a_cache_denied_is_asked_for_again_after_a_reload_and_not_before() {
    let mesh = TestMesh::new();
    let holder = mesh.node("holder");
    let [held, absent] = ["held", "absent"].map(|tag| holder.store.build_fresh(tag));
    let mut cache = PlainCache::on_loopback(&holder, std::slice::from_ref(&held), "xz");
    let mut client = mesh.node("client");
    client.config.more = cache.upstream("plain", &holder);
    client.start();
    assert_eq!(client.get_narinfo(&absent).status, 404);
    // From now on each request would fail, and be counted.
    cache.kill();
    (0..100).for_each(|_| assert_eq!(client.get_narinfo(&absent).status, 404));
    let failures = || client.status().0.pointer("/upstreams/0/failures").unwrap().as_object().unwrap().len();
    assert_eq!(failures(), 0, "it was not asked");
    let why = client.narmesh(&["why", &absent]).expect_success("narmesh why");
    assert!(why.contains("no upstream cache may have it"), "{why}");
    client.narmesh(&["reload"]).expect_success("narmesh reload");
    assert_eq!(client.get_narinfo(&absent).status, 404);
    assert_eq!(failures(), 1);
}

#[test]
fn without_a_network_the_answer_comes_at_once() {
    let mesh = TestMesh::new();
    let holder = mesh.node("holder");
    let path = holder.store.build_one("rootfile");
    let frozen = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = mesh.node("client");
    client.config.more = lone_upstream("frozen", frozen.local_addr().unwrap()) + "stall_timeout_ms = 500\n";
    client.start();
    for _ in 0..3 {
        let since = Instant::now();
        assert_eq!(client.get_narinfo(&path).status, 404);
        assert!(since.elapsed() < promised(DEADLINE_MAX));
    }
    let since = Instant::now();
    (0..100).for_each(|_| assert_eq!(client.get_narinfo(&path).status, 404));
    assert!(since.elapsed() < DEADLINE_MAX, "100 lookups took {:?} while the upstream was down", since.elapsed());
    let status = client.narmesh(&["status"]).expect_success("narmesh status");
    assert!(status.contains("offline"), "{status}");
}

#[test]
fn while_all_caches_refuse_one_lookup_finds_it_out_and_the_next_ones_are_answered_at_once() {
    let mesh = TestMesh::new();
    let path = mesh.node("holder").store.build_one("rootfile");
    let mut client = mesh.node("client");
    client.config.more = lone_upstream("one", free_address()) + &lone_upstream("two", free_address());
    client.start();
    assert_eq!(client.get_narinfo(&path).status, 404);
    let failures = || {
        let status = client.status();
        ["/upstreams/0/failures/connect", "/upstreams/1/failures/connect"].map(|counted| status.number(counted))
    };
    let after_one = failures();
    assert!(after_one.iter().all(|failures| (3..20).contains(failures)), "asked until they are down: {after_one:?}");
    let since = Instant::now();
    (0..20).for_each(|_| assert_eq!(client.get_narinfo(&path).status, 404));
    let after_more = failures();
    // In the background each is tried again, once a second at most, because somebody wants something of it.
    let tries_max = since.elapsed().as_secs() + 2;
    let are_tries = after_more.iter().zip(&after_one).all(|(more, one)| more - one <= tries_max);
    assert!(are_tries, "no lookup asks while all are down: {after_one:?}, then {after_more:?}");
    let status = client.narmesh(&["status"]).expect_success("narmesh status");
    assert!(status.contains("offline"), "{status}");
}

#[test]
fn over_tls_narinfos_come_on_http_2_and_nars_on_http_1() {
    let mesh = TestMesh::new();
    let holder = mesh.node("holder");
    let paths = holder.store.build("everything");
    let cache = PlainCache::on_loopback(&holder, &paths, "zstd").twin_over_tls();
    let mut client = mesh.node("client");
    client.config.trusted_public_keys = vec![holder.builder_key()];
    client.config.more = cache.upstream("tls", &holder);
    client.start();
    assert_arrived(&holder, &client, &paths);
    let requests = cache.requests();
    for (what, protocol) in [(".narinfo", "HTTP/2.0"), ("/nar/", "HTTP/1.1")] {
        let of_kind: Vec<_> = requests.iter().filter(|request| request.contains(what)).collect();
        assert!(!of_kind.is_empty() && of_kind.iter().all(|request| request.starts_with(protocol)), "{of_kind:?}");
    }
    let mut stranger = mesh.node("without-ca-file");
    stranger.config.more = lone_upstream("tls", cache.address).replace("http:", "https:");
    stranger.start();
    assert_eq!(stranger.get_narinfo(&paths[0]).status, 404);
    assert_eq!(stranger.status().number("/upstreams/0/failures/tls"), 1, "its certificate is nobody's");
}

/// Bytes of a NAR of 24 MiB that come before its cache is killed.
const BEFORE_THE_KILL: u64 = 10 << 20;

/// Asks the gateway once for the NAR of `path`; meanwhile the cache behind `gate` stands still in the middle of it, and
/// `act` is called. Whatever then sends the rest, the one answer has to be the whole NAR.
fn get_over(gate: &GatedProxy, client: &TestNode, path: &str, act: impl FnOnce()) {
    let narinfo = client.wait_narinfo(path);
    gate.hold_after(BEFORE_THE_KILL);
    thread::scope(|scope| {
        let answer = scope.spawn(|| get(client.gateway(), &narinfo.url).unwrap());
        wait_until("the cache stands still", promised(DEADLINE_MAX), || gate.is_holding());
        act();
        gate.release();
        let answer = answer.join().unwrap();
        assert_eq!((answer.status, answer.complete), (200, true));
        assert_eq!(format!("sha256:{}", sha256_hex(&answer.body)), narinfo.nar_hash);
    });
}

fn gated_upstream(gate: &GatedProxy, holder: &TestNode) -> String {
    format!("{}public_keys = ['{}']\n", lone_upstream("doomed", gate.address()), holder.builder_key())
}

#[test]
fn nar_goes_on_from_another_cache_when_its_cache_is_killed() {
    let mesh = TestMesh::new();
    let holder = mesh.node("holder");
    let path = holder.store.build_one("middle");
    let mut doomed = PlainCache::on_loopback(&holder, std::slice::from_ref(&path), "none");
    let other = doomed.twin();
    let gate = GatedProxy::to(doomed.address);
    let mut client = mesh.node("client");
    client.config.more = gated_upstream(&gate, &holder) + &other.upstream("other", &holder) + "tier = 1\n";
    client.start();
    get_over(&gate, &client, &path, || doomed.kill());
    let status = client.status();
    let [from_doomed, from_other] = [0, 1].map(|number| status.number(&format!("/upstreams/{number}/bytes_in")));
    assert!(from_doomed > BEFORE_THE_KILL / 2, "{from_doomed}");
    assert!(from_other < 24 << 20, "{from_other}: it begins in the middle");
}

#[test]
fn nar_goes_on_from_a_peer_when_its_cache_is_killed() {
    let mesh = TestMesh::new();
    let [mut holder, mut client] = ["holder", "client"].map(|name| mesh.node(name));
    let path = holder.store.build_one("middle");
    let mut doomed = PlainCache::on_loopback(&holder, std::slice::from_ref(&path), "none");
    let gate = GatedProxy::to(doomed.address);
    client.config.more = gated_upstream(&gate, &holder);
    TestMesh::introduce(&mut [&mut holder, &mut client]);
    client.start();
    holder.learn_address(&client.name, &client.p2p_address());
    get_over(&gate, &client, &path, || {
        holder.start();
        holder.wait_all_advertised(&[&client]);
        doomed.kill();
    });
    let status = client.status();
    let from_peer = status.peer("holder").unwrap()["bytes_in"].as_u64().unwrap();
    assert!(from_peer > 0 && from_peer < 24 << 20, "{from_peer}: it begins in the middle");
}
