//! Peers that are on no allowlist, or that answer in place of a peer that is.

use crate::formats::hash_part_bytes;
use crate::peer::{Peer, peer_id, runtime};
use crate::report::{self, Meter};
use crate::stage::Stage;
use crate::wire::{GossipReply, GossipRequest, NAR, NARINFO, audience_digest, open_envelope};
use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use narmesh_tests::{TestMesh, TestNode, poll, promised, wait_until};
use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// A connection is promised to be made, or to be ended, within this.
const MEETING: Duration = Duration::from_secs(5);

/// A stranger completes the handshake and then gets nothing: no stream is answered, no message comes, it is disconnected.
#[test]
fn a_stranger_learns_nothing() {
    let stranger = Peer::honest("stranger");
    let stage = Stage::new(&["stranger"], 64, &[]);
    let held = stage.path("stranger", "held");
    stage.nix_build("stranger", "held").expect_success("nix-build");
    for node in [&stage.client, &stage.good] {
        for _ in 0..3 {
            stranger.dial(node);
            let part = hash_part_bytes(&held);
            assert!(stranger.sync(node).is_err(), "no announcement, no address, no name of a peer");
            assert!(stranger.ask(node, NARINFO, &part).is_err(), "no narinfo");
            assert!(stranger.open_and_read(node, NAR).is_err(), "no NAR");
            wait_until("the stranger is put out", promised(MEETING), || !stranger.is_connected(node));
        }
        let status = node.status();
        assert!(status.peer("stranger").is_none(), "it leaves no trace");
    }
    let asked = stranger.asked();
    assert_eq!(asked.count(), 0, "it is asked nothing");
    assert!(asked.announced.is_empty(), "no announcement reaches it");
    stage.note("stranger connects and asks", |row| row.outcome = "put out before any protocol".to_owned());
    stage.finish();
}

/// Another peer that is allowed too answers a dial: it is not taken for the peer that was dialled.
#[test]
fn a_dial_answered_by_another_allowlisted_peer_is_refused() {
    let mesh = TestMesh::new();
    let [mut a, mut b, mut client] = ["a", "b", "client"].map(|name| mesh.node(name));
    TestMesh::introduce(&mut [&mut a, &mut b, &mut client]);
    b.start();
    a.start();
    // B answers where A is said to be.
    client.learn_address("a", &b.p2p_address());
    client.start();
    client.wait_status("says that another one answers", MEETING, |status| {
        let a = status.peer("a").unwrap();
        a["connected"] == false && a["why"].as_str().is_some_and(|why| why.to_lowercase().contains("another"))
    });
    assert!(!client.status().connected("a"));
}

/// C trusts B and B trusts A; A has never heard of C. Whatever C asks B for, it learns nothing about A.
#[test]
fn what_a_gives_b_does_not_reach_c() {
    let mesh = TestMesh::new();
    let [mut a, mut b] = ["a", "b"].map(|name| mesh.node(name));
    let lib = a.store.build_one("lib");
    let c = Peer::honest("c");
    b.allow(&c.card());
    TestMesh::start_all(&mut [&mut a, &mut b]);
    a.wait_all_advertised(&[&b]);
    c.connect(&b);
    let owner = peer_id(&a);
    let (epoch, seq) = b.status().summary_version("a").expect("B holds A's summary");
    let digest = audience_digest(&owner);
    for have_seq in [None, Some(seq), Some(0)] {
        let pull = GossipRequest::Pull { owner: digest, epoch, seq, have_seq };
        assert_eq!(c.ask_gossip(&b, &pull).unwrap(), GossipReply::Absent, "no body");
    }
    let key = owner.to_bytes();
    let port = a.p2p_socket().port().to_le_bytes();
    for yours in [None, Some(c.greeting_envelope())] {
        let reply = c.ask_gossip(&b, &crate::peer::sync_request(yours)).unwrap();
        let GossipReply::Sync { ref news, .. } = reply else { panic!("{reply:?}") };
        assert!(!news.is_empty(), "B tells its own");
        assert!(news.iter().filter_map(|one| open_envelope(one)).all(|(signer, _)| !key.ends_with(&signer)));
        let bytes = [&[0, 0, 0, 0, 127, 0, 0, 1][..], &port].concat();
        assert!(!reply.encode().windows(bytes.len()).any(|window| window == bytes), "no address of A");
    }
    assert_eq!(c.ask(&b, NARINFO, &hash_part_bytes(&lib)).unwrap(), crate::wire::ABSENT, "no path of A");
    // A itself gives C nothing either.
    c.dial(&a);
    assert!(c.sync(&a).is_err());
}

/// Handshakes are begun and never completed, from one address or from many. A peer that is allowed gets in at its first
/// dial: from an address that the flood does not use; or, when the flood comes from many, from one where a peer is known.
#[test]
fn half_open_handshakes_keep_nobody_out() {
    let mesh = TestMesh::new();
    for (addresses, is_known) in [(1, false), (100, true)] {
        let mut node = mesh.node(&format!("node{addresses}"));
        let friend = Peer::honest("friend");
        node.allow(&friend.card());
        if is_known {
            // Nobody listens there.
            node.learn_address("friend", "/ip4/127.0.0.1/tcp/1");
        }
        node.start();
        let (memory, meter) = (node.watch_memory(), Meter::start(&node));
        let flood = Flood::start(node.p2p_socket(), addresses);
        wait_until("the flood is under way", promised(MEETING), || flood.opened() > 2_000);
        let started = Instant::now();
        friend.dial(&node);
        let connected = poll(MEETING, || friend.sync(&node).is_ok().then_some(()));
        assert!(
            connected.is_some(),
            "kept out by a flood from {addresses} addresses: {:?}",
            friend.state(|state| state.ended.clone())
        );
        let took = started.elapsed();
        let rise = memory.rise_bytes();
        assert!(rise <= 64 << 20, "{rise} bytes above idle");
        report::note(&format!("half-open handshakes, from addresses: {addresses}"), meter.take(&node), |row| {
            row.outcome = format!("an allowlisted peer got in at once ({:.1} s)", took.as_secs_f64());
            row.rise_bytes = Some(rise);
        });
    }
}

/// Opens connections all the time, sends the first line of a handshake on each, and then nothing.
struct Flood {
    stop: Arc<AtomicBool>,
    opened: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Flood {
    fn start(target: SocketAddr, addresses: u8) -> Self {
        let (stop, opened) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&opened));
        let thread = std::thread::spawn(move || {
            let (runtime, mut held) = (runtime(), Vec::new());
            for number in (0..addresses).cycle().take_while(|_| !stopped.load(Ordering::Relaxed)) {
                let from = IpAddr::V4(Ipv4Addr::new(127, 0, 7, number + 1));
                held.extend(connect_from(&runtime, from, target));
                let count = counted.fetch_add(1, Ordering::Relaxed);
                if count.is_multiple_of(64) {
                    // Accepted connections stay until the daemon closes them.
                    held.retain(is_open);
                }
            }
        });
        Self { stop, opened, thread: Some(thread) }
    }

    fn opened(&self) -> u64 {
        self.opened.load(Ordering::Relaxed)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// Whether the other side has not closed the connection.
fn is_open(stream: &TcpStream) -> bool {
    let mut answer = [0; 64];
    stream.set_nonblocking(true).ok();
    loop {
        match (&*stream).read(&mut answer) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
        }
    }
}

/// Connects from the given local address, and sends the first message of multistream-select.
fn connect_from(runtime: &Runtime, from: IpAddr, target: SocketAddr) -> Option<TcpStream> {
    let stream = runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4().ok()?;
        socket.bind(SocketAddr::new(from, 0)).ok()?;
        tokio::time::timeout(Duration::from_secs(1), socket.connect(target)).await.ok()?.ok()?.into_std().ok()
    })?;
    stream.set_nonblocking(false).ok()?;
    (&stream).write_all(b"\x13/multistream/1.0.0\n").ok()?;
    Some(stream)
}

/// A connection that sends garbage learns only that the daemon speaks multistream.
#[test]
fn garbage_before_the_handshake_learns_nothing() {
    let mesh = TestMesh::new();
    let mut node = mesh.node("node");
    node.start();
    let mut heard = BTreeSet::new();
    for bytes in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4_096], &[0; 4_096], b"\x13/multistream/1.0.0\n\x10/plaintext/2.0\n"]
    {
        let mut stream = TcpStream::connect(node.p2p_socket()).unwrap();
        stream.set_read_timeout(Some(promised(Duration::from_secs(3)))).unwrap();
        stream.write_all(bytes).ok();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok();
        heard.insert(answer.len());
        let text = String::from_utf8_lossy(&answer).replace("/multistream/1.0.0", "");
        let rest: String = text.chars().filter(|letter| letter.is_ascii_alphanumeric()).collect();
        assert!(["", "na"].contains(&rest.as_str()), "it says {text:?}");
    }
    assert!(still_answers(&node), "{heard:?}");
}

fn still_answers(node: &TestNode) -> bool {
    node.status().number("/uptime_s") < 1_000
}

impl Peer {
    fn open_and_read(&self, node: &TestNode, protocol: &'static str) -> std::io::Result<usize> {
        let mut stream = self.open(node, protocol)?;
        self.runtime.block_on(async {
            stream.write_all(&[0; 4]).await?;
            stream.flush().await?;
            let mut byte = [0];
            match tokio::time::timeout(Duration::from_secs(3), stream.read(&mut byte)).await {
                Ok(Ok(0)) | Err(_) => Err(std::io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => read,
            }
        })
    }

    /// An envelope with an announcement of its own, which it also publishes.
    fn greeting_envelope(&self) -> Vec<u8> {
        let summary = self.summary(&vec![0; 1_024], 0, &[]);
        self.announce(&summary);
        self.state(|state| state.published.as_ref().unwrap().envelope.clone())
    }
}
