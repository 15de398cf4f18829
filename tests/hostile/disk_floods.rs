//! Attacks on the disk: a local user asks the gateway as fast as possible for paths that make the daemon write, and a peer
//! announces as often as it may. What else they can repeat is in `disk_repeats`.

use crate::filter::filter;
use crate::formats::NixKey;
use crate::peer::{Peer, peer_id};
use crate::report::{self, Meter};
use crate::stage::Stage;
use libp2p::PeerId;
use narmesh_tests::{TestMesh, get};
use rand::Rng as _;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

pub const FLOOD: Duration = Duration::from_secs(15);
const CLIENTS: usize = 8;
/// Requests that are sent before their answers are read.
const AT_ONCE: usize = 64;
/// Bytes that may be written in all: pages of a database that grows, each once into its log and once into its file, and
/// what an idle daemon writes.
const WRITTEN_BYTES_MAX: u64 = 16 << 20;

pub fn any_hash_part() -> String {
    const LETTERS: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";
    let mut random = [0; 32];
    rand::rng().fill_bytes(&mut random);
    random.iter().map(|byte| char::from(LETTERS[usize::from(byte % 32)])).collect()
}

/// Asks for paths that nobody has, each once; returns how many.
fn ask_without_end(gateway: SocketAddr) -> usize {
    let mut socket = TcpStream::connect(gateway).unwrap();
    let (until, mut asked, mut buffer) = (Instant::now() + FLOOD, 0, vec![0; 1 << 16]);
    while Instant::now() < until {
        let requests: String = (0..AT_ONCE)
            .map(|_| format!("GET /{}.narinfo HTTP/1.1\r\nHost: {gateway}\r\n\r\n", any_hash_part()))
            .collect();
        socket.write_all(requests.as_bytes()).unwrap();
        let mut answers = String::new();
        // The body of the last one may be read with the next answers.
        while answers.matches("\r\n\r\n").count() < AT_ONCE {
            let length = socket.read(&mut buffer).unwrap();
            assert!(length > 0, "the gateway closed the connection");
            answers += std::str::from_utf8(&buffer[..length]).unwrap();
        }
        assert_eq!(answers.matches("HTTP/1.1 404 ").count(), AT_ONCE, "{answers}");
        asked += AT_ONCE;
    }
    asked
}

/// When a node counts builders, it notes what Nix asks for in the database of attestations.
#[test]
fn endless_lookups_cause_bounded_disk_writes() {
    let mesh = TestMesh::new();
    let mut node = mesh.node("node");
    let builder = NixKey::new("elsewhere-1").public();
    node.config.more =
        format!("\n[quorum]\nmode = 'observe'\nk = 1\n\n[[builder]]\nname = 'elsewhere'\npublic_key = '{builder}'\n");
    node.run_under(&["env", "NARMESH_LOG=info"]);
    node.start();
    let gateway = node.gateway();
    assert_eq!(get(gateway, &format!("/{}.narinfo", any_hash_part())).unwrap().status, 404);
    let meter = Meter::start(&node);
    let clients: Vec<_> = (0..CLIENTS).map(|_| std::thread::spawn(move || ask_without_end(gateway))).collect();
    let asked: usize = clients.into_iter().map(|client| client.join().unwrap()).sum();
    let spent = meter.take(&node);
    let written = spent.costs.disk_bytes;
    report::note("disk: paths that nobody has, asked for", spent, |row| {
        row.outcome = format!("{asked} questions in {} s, {written} bytes written", FLOOD.as_secs());
    });
    assert!(asked > 10_000, "only {asked} questions: no flood");
    assert!(written <= WRITTEN_BYTES_MAX, "{written} bytes written for {asked} questions");
    // At the end everything is written: waiting lost nothing.
    node.terminate();
    let noted = fs::metadata(node.dir().join("state/quorum.sqlite")).unwrap().len();
    assert!(noted > 1 << 20, "{noted} bytes");
}

/// A cache that has nothing; returns its address.
fn empty_cache() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for connection in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let mut lines = BufReader::new(connection.try_clone().unwrap()).lines().map_while(Result::ok);
                while lines.any(|line| line.is_empty()) {
                    (&connection).write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").ok();
                }
            });
        }
    });
    address
}

/// Bytes that may be written for questions to caches: what an idle daemon writes.
pub const IDLE_BYTES_MAX: u64 = 1 << 20;

/// What caches do not have is remembered in memory alone.
#[test]
fn endless_questions_to_an_upstream_cache_write_nothing() {
    let mesh = TestMesh::new();
    let mut node = mesh.node("node");
    node.config.more = format!("\n[[upstream]]\nname = 'empty'\nurl = 'http://{}'\n", empty_cache());
    node.run_under(&["env", "NARMESH_LOG=info"]);
    node.start();
    let gateway = node.gateway();
    let meter = Meter::start(&node);
    let clients: Vec<_> = (0..CLIENTS).map(|_| std::thread::spawn(move || ask_without_end(gateway))).collect();
    let asked: usize = clients.into_iter().map(|client| client.join().unwrap()).sum();
    let spent = meter.take(&node);
    let written = spent.costs.disk_bytes;
    report::note("disk: paths that an upstream cache does not have, asked for", spent, |row| {
        row.outcome = format!("{asked} questions in {} s, {written} bytes written", FLOOD.as_secs());
    });
    assert!(asked > 1_000, "only {asked} questions: no flood");
    assert!(written <= IDLE_BYTES_MAX, "{written} bytes written for {asked} questions");
}

/// Time between two new summaries: about 4 a second are taken without blame.
pub const ANNOUNCED_EVERY: Duration = Duration::from_millis(260);
const ANNOUNCEMENTS: u64 = 60;
/// Bytes that may be written in all, with what an idle daemon writes: 60 MB an hour are 17 kB a second.
const ANNOUNCED_BYTES_MAX: u64 = 2 << 20;

/// The announcer is the node of a builder, so that each new audience is written, too.
#[test]
fn endless_announcements_cause_bounded_disk_writes() {
    let peer = Peer::honest("announcer");
    let key = NixKey::new("announcer-1").public();
    let stage = Stage::with(&["announcer"], 64, &[&peer], |client| {
        client.run_under(&["env", "NARMESH_LOG=info"]);
        client.config.more = format!("\n[[builder]]\nname = 'announcer'\npublic_key = '{key}'\npeer = 'announcer'\n");
    });
    stage.enter(&peer, "announcer", &["a"]);
    let (before, started) = (stage.client.costs(), Instant::now());
    for number in 1..=ANNOUNCEMENTS {
        let parts: Vec<[u8; 20]> = (0..number).map(|part| [u8::try_from(part).unwrap(); 20]).collect();
        let audience = [peer_id(&stage.client), PeerId::random()];
        peer.announce(&peer.summary(&filter(&parts, 13), number, &audience));
        std::thread::sleep(ANNOUNCED_EVERY);
    }
    let seconds = started.elapsed().as_secs();
    stage.wait_heard(&peer, ANNOUNCEMENTS);
    let written = stage.client.costs().since(before).disk_bytes;
    stage.note("disk: announcements", |row| {
        row.outcome = format!("{ANNOUNCEMENTS} in {seconds} s, {written} bytes written");
    });
    stage.assert_unblamed(&peer);
    assert!(written <= ANNOUNCED_BYTES_MAX, "{written} bytes written in {seconds} s");
    stage.finish();
}
