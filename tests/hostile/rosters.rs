//! Rosters of meshes and joining, implemented a second time from `docs/protocol.md`.

use crate::bulk::dial_as;
use crate::disk_floods::IDLE_BYTES_MAX;
use crate::peer::{Move, Peer, Script, runtime};
use crate::report::{self, Meter};
use crate::wire::{JOIN, ROSTER, ROSTER_ABSENT, Reader, Writer};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::future::poll_fn;
use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use libp2p::core::muxing::{StreamMuxer as _, StreamMuxerBox, SubstreamBox};
use libp2p::identity::Keypair;
use narmesh_tests::{TestMesh, TestNode, free_address, promised, wait_until};
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::{Duration, Instant};

const HEARD: Duration = Duration::from_secs(2);
/// Requests that one stranger begins and does not finish.
const SILENT: usize = 60;
/// Wrong secrets that he tries beside them.
const GUESSES: usize = 40;

pub(crate) fn public_key(keys: &Keypair) -> [u8; 32] {
    keys.public().try_into_ed25519().expect("Ed25519").to_bytes()
}

/// A roster of these members, each a node key and a name, signed by `mesh`.
fn roster(mesh: &Keypair, version: u64, members: &[([u8; 32], &str)]) -> Vec<u8> {
    sign_roster(mesh, version, members, &[])
}

/// The same with these bytes behind it, which are the list of removals if there are any.
pub(crate) fn sign_roster(mesh: &Keypair, version: u64, members: &[([u8; 32], &str)], removals: &[u8]) -> Vec<u8> {
    let member = |writer: Writer, (key, name): &([u8; 32], &str)| {
        writer.raw(key).bytes(name.as_bytes()).u32(0).u8(0).u8(0).u32(0).u64(0)
    };
    let payload = Writer::default().u64(version).u64(1).list(members, member).u64(0).raw(removals).0;
    let signature = mesh.sign(&[b"narmesh-roster-1;", payload.as_slice()].concat()).expect("Ed25519 signs");
    Writer::default().u8(1).raw(&public_key(mesh)).raw(&signature).raw(&payload).0
}

/// What the key `old` says of the one that has taken its place.
fn succession(old: &Keypair, new: &Keypair, version: u64) -> Vec<u8> {
    let said = Writer::default().raw(&public_key(old)).raw(&public_key(new)).u64(version).0;
    let signature = old.sign(&[b"narmesh-mesh-key-1;", said.as_slice()].concat()).expect("Ed25519 signs");
    [said, signature].concat()
}

/// A roster like [`roster`], of a key to which these successions lead.
fn roster_with_lineage(mesh: &Keypair, lineage: &[Vec<u8>], version: u64, members: &[([u8; 32], &str)]) -> Vec<u8> {
    let count = [u8::try_from(lineage.len()).expect("few")];
    // The payload is the same.
    let payload = &roster(mesh, version, members)[97..];
    let signed = [&count, lineage.concat().as_slice(), payload].concat();
    let signature = mesh.sign(&[b"narmesh-roster-2;", signed.as_slice()].concat()).expect("Ed25519 signs");
    Writer::default().u8(2).raw(&public_key(mesh)).raw(&signature).raw(&signed).0
}

pub(crate) fn newer(roster: &[u8]) -> Vec<u8> {
    Writer::default().u32(2).bytes(roster).0
}

fn compare(mesh: &[u8; 32], version: u64) -> Vec<u8> {
    Writer::default().raw(mesh).u64(version).raw(&[0; 32]).0
}

/// A running daemon of the mesh of `mesh`, which knows no roster, and has `peer` as a `[[peer]]`.
pub(crate) fn member_of(tests: &TestMesh, mesh: &Keypair, peer: &Peer) -> TestNode {
    let mut node = tests.node("node");
    node.allow(&peer.card());
    node.config.mesh_key = Some(format!("home:{}", STANDARD.encode(public_key(mesh))));
    node.start();
    node
}

#[test]
fn a_roster_that_the_mesh_key_did_not_sign_is_refused_and_blamed() {
    let (tests, mesh, thief) = (TestMesh::new(), Keypair::generate_ed25519(), Keypair::generate_ed25519());
    let by_thief = newer(&roster(&thief, 9, &[]));
    let answer = move |_: &_, _| vec![Move::Send(by_thief.clone())];
    let script = Script { roster: Some(Box::new(answer)), ..Script::default() };
    let peer = Peer::new("forger", Keypair::generate_ed25519(), script);
    let node = member_of(&tests, &mesh, &peer);
    peer.connect(&node);
    node.wait_status("blames the forger", promised(HEARD), |status| {
        let forger = status.peer("forger").expect("on the allowlist");
        forger["last_misdeed"].as_str().is_some_and(|misdeed| misdeed.contains("malformed reply"))
    });
    assert!(!node.dir().join("state/roster").exists(), "nothing was kept");
}

#[test]
fn the_newest_roster_is_kept_whatever_else_comes_and_told_to_members_alone() {
    let (tests, mesh) = (TestMesh::new(), Keypair::generate_ed25519());
    let given = Arc::new(Mutex::new(Vec::new()));
    let give = Arc::clone(&given);
    let answer = move |_: &_, _| vec![Move::Send(newer(&give.lock().expect("no panic")))];
    let script = Script { roster: Some(Box::new(answer)), ..Script::default() };
    let peer = Peer::new("member", Keypair::generate_ed25519(), script);
    let node = member_of(&tests, &mesh, &peer);
    let own_key = public_key_of(&node);
    let version = |version: u64, with_peer: bool| {
        let members = [(own_key, "node"), (public_key(&peer.keys), "member")];
        let mut members = members[..1 + usize::from(with_peer)].to_vec();
        members.sort_by_key(|(key, _)| *key);
        roster(&mesh, version, &members)
    };
    let kept = || std::fs::read(node.dir().join("state/roster")).unwrap_or_default();
    let set = |roster: Vec<u8>| *given.lock().expect("no panic") = roster;
    set(version(5, true));
    peer.connect(&node);
    wait_until("the roster is kept", promised(HEARD), || kept() == version(5, true));
    let asks = |mesh: &[u8; 32], version| peer.ask(&node, ROSTER, &compare(mesh, version)).expect("an answer");
    assert_eq!(asks(&public_key(&mesh), 0), newer(&version(5, true)), "a member is told");
    assert_eq!(asks(&[7; 32], 0), ROSTER_ABSENT, "nothing of another mesh");
    // An older one, offered when the node asks in turn, does not replace it.
    set(version(4, true));
    assert_eq!(asks(&public_key(&mesh), 6), [3, 0, 0, 0], "it says that its own is older");
    wait_until("the node has asked in turn", promised(HEARD), || {
        asks(&public_key(&mesh), 0) == newer(&version(5, true))
    });
    assert_eq!(kept(), version(5, true));
    // One without the peer: it is told nothing any more.
    set(version(7, false));
    assert_eq!(asks(&public_key(&mesh), 7), [3, 0, 0, 0]);
    wait_until("the newer roster is kept", promised(HEARD), || kept() == version(7, false));
    wait_until("who was removed is told nothing", promised(HEARD), || asks(&public_key(&mesh), 0) == ROSTER_ABSENT);
}

#[test]
fn only_the_mesh_key_itself_names_the_next_one_once_and_nothing_goes_back() {
    let (tests, mesh) = (TestMesh::new(), Keypair::generate_ed25519());
    let [new, second, thief] = [(); 3].map(|()| Keypair::generate_ed25519());
    let given = Arc::new(Mutex::new(Vec::new()));
    let (give, asked) = (Arc::clone(&given), Arc::new(AtomicU32::new(0)));
    let count = Arc::clone(&asked);
    let answer = move |_: &_, _| {
        count.fetch_add(1, Ordering::SeqCst);
        vec![Move::Send(give.lock().expect("no panic").clone())]
    };
    let script = Script { roster: Some(Box::new(answer)), ..Script::default() };
    let peer = Peer::new("member", Keypair::generate_ed25519(), script);
    let node = member_of(&tests, &mesh, &peer);
    let mut members = [(public_key_of(&node), "node"), (public_key(&peer.keys), "member")];
    members.sort_by_key(|(key, _)| *key);
    let signed = |key: &Keypair, version| roster(key, version, &members);
    let after = |key: &Keypair, said: Vec<u8>, version| roster_with_lineage(key, &[said], version, &members);
    let kept = || std::fs::read(node.dir().join("state/roster")).unwrap_or_default();
    let set = |reply: Vec<u8>| *given.lock().expect("no panic") = reply;
    let asks =
        |key: &Keypair, version| peer.ask(&node, ROSTER, &compare(&public_key(key), version)).expect("an answer");
    // The node asks in turn whenever the peer names something that it does not know.
    let offer = |roster: &[u8], version: u64| {
        set(newer(roster));
        assert_eq!(asks(&mesh, version), [3, 0, 0, 0], "the node asks in turn");
    };
    set(newer(&signed(&mesh, 5)));
    peer.connect(&node);
    wait_until("the roster is kept", promised(HEARD), || kept() == signed(&mesh, 5));
    // Forged: the thief says it, for the mesh key or for itself; a roster that goes back; a key that the lineage does not lead to.
    let mut forged = succession(&thief, &new, 5);
    forged[..32].copy_from_slice(&public_key(&mesh));
    let wrong = [
        after(&new, forged, 6),
        after(&new, succession(&thief, &new, 5), 6),
        after(&new, succession(&mesh, &new, 5), 5),
        after(&thief, succession(&mesh, &new, 5), 6),
    ];
    for (roster, version) in wrong.iter().zip(10..) {
        let before = asked.load(Ordering::SeqCst);
        offer(roster, version);
        wait_until("it is given", promised(HEARD), || asked.load(Ordering::SeqCst) > before);
    }
    node.wait_status("blames who gave it", promised(HEARD), |status| {
        let peer = status.peer("member").expect("on the allowlist");
        peer["last_misdeed"].as_str().is_some_and(|misdeed| misdeed.contains("malformed reply"))
    });
    assert_eq!(kept(), signed(&mesh, 5));
    // The true one is followed, though its version is lower than what was named.
    let followed = after(&new, succession(&mesh, &new, 5), 6);
    offer(&followed, 99);
    wait_until("the new key is followed", promised(HEARD), || kept() == followed);
    wait_until("and passed on to who names the old one", promised(HEARD), || asks(&mesh, 99) == newer(&followed));
    // What the old key signs, or says of another one, changes nothing any more; the second one is shown.
    let other = after(&second, succession(&mesh, &second, 50), 51);
    let other_key = [&[5, 0, 0, 0][..], &Writer::default().bytes(&other).0].concat();
    set(other_key);
    let answer = asks(&second, 51);
    assert_eq!(answer, [&[5, 0, 0, 0][..], &Writer::default().bytes(&followed).0].concat(), "both see it");
    let shown = format!("home:{}", STANDARD.encode(public_key(&second)));
    node.wait_status("shows the other key", promised(HEARD), |status| {
        status.text("/mesh/contradicting_key") == Some(shown.as_str())
    });
    set(newer(&signed(&mesh, 900)));
    assert_eq!(asks(&new, 900), [3, 0, 0, 0]);
    wait_until("the node has asked in turn", promised(HEARD), || asks(&new, 0) == newer(&followed));
    assert_eq!(kept(), followed);
}

pub(crate) fn public_key_of(node: &TestNode) -> [u8; 32] {
    let peer: libp2p::PeerId = node.card().peer_id.parse().expect("a peer id");
    let bytes = peer.to_bytes();
    bytes[bytes.len() - 32..].try_into().expect("32 bytes")
}

/// One request on a connection of its own; the answer, if there is one.
async fn join(keys: &Keypair, node: &TestNode, frame: &[u8]) -> io::Result<Vec<u8>> {
    let (mut muxer, mut stream) = begin(keys, node, frame).await?;
    let read = async {
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply).await?;
        Ok(reply)
    };
    drive(&mut muxer, read).await
}

/// A connection with one stream on which these bytes were sent.
async fn begin(keys: &Keypair, node: &TestNode, bytes: &[u8]) -> io::Result<(StreamMuxerBox, SubstreamBox)> {
    let mut muxer = dial_as(keys, node.p2p_address().parse().expect("an address"), JOIN).await?;
    let mut stream = poll_fn(|context| Pin::new(&mut muxer).poll_outbound(context)).await.map_err(io::Error::other)?;
    let write = async {
        stream.write_all(bytes).await?;
        stream.flush().await
    };
    drive(&mut muxer, write).await?;
    Ok((muxer, stream))
}

/// Moves a connection on while `work` uses its stream.
async fn drive<T>(muxer: &mut StreamMuxerBox, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let mut work = std::pin::pin!(work);
    poll_fn(|context| {
        while let Poll::Ready(moved) = Pin::new(&mut *muxer).poll_inbound(context) {
            if moved.is_err() {
                break;
            }
        }
        work.as_mut().poll(context)
    })
    .await
}

fn join_frame(secret: [u8; 16]) -> Vec<u8> {
    let request = Writer::default().raw(&secret).bytes(b"stranger").u8(0).u64(0).0;
    Writer::default().u32(u32::try_from(request.len()).expect("short")).raw(&request).0
}

#[test]
fn a_stranger_without_the_secret_gets_nothing_and_keeps_nobody_out() {
    let tests = TestMesh::new();
    let [mut founder, invited] = ["founder", "invited"].map(|name| tests.node(name));
    founder.config.listen = vec![format!("/ip4/127.0.0.1/tcp/{}", free_address().port())];
    founder.start();
    invited.write_config();
    founder.narmesh(&["mesh", "create"]).expect_success("mesh create");
    let (stranger, runtime) = (Keypair::generate_ed25519(), runtime());
    let ask = |frame: &[u8]| runtime.block_on(join(&stranger, &founder, frame));
    let closed = ask(&join_frame([1; 16]));
    assert!(closed.as_ref().map_or(true, Vec::is_empty), "no invitation is open: {closed:?}");
    let token = founder.narmesh(&["mesh", "invite", "--uses", "2"]).expect_success("mesh invite");
    let meter = Meter::start(&founder);
    let asked = Instant::now();
    let refused = ask(&join_frame([1; 16])).expect("an answer");
    let mut reply = Reader(&refused);
    assert_eq!((reply.u32(), reply.u32(), reply.0.len()), (Some(4), Some(1), 0), "refused");
    assert!(asked.elapsed() >= Duration::from_millis(500), "after half a second, whatever the reason");
    for garbage in [&[0xff; 8][..], &[0; 4], &[8, 0, 0, 0, 1, 2, 3], &join_frame([1; 16])[..30]] {
        let answer = ask(garbage);
        assert!(answer.as_ref().map_or(true, Vec::is_empty), "{garbage:?}: {answer:?}");
    }
    // They say how long their requests are, and then nothing.
    let silent = runtime.block_on(async {
        let mut open = Vec::new();
        for _ in 0..SILENT {
            open.extend(begin(&stranger, &founder, &[40, 0, 0, 0]).await.ok());
        }
        open
    });
    assert!(silent.len() > SILENT / 2, "only {} connections", silent.len());
    // Others ask with wrong secrets, as many at a time as are answered.
    let guessed = runtime.block_on(async {
        let frame = join_frame([2; 16]);
        let guesses = (0..GUESSES).map(|_| async {
            tokio::time::timeout(Duration::from_secs(10), join(&stranger, &founder, &frame)).await.ok()?.ok()
        });
        futures::future::join_all(guesses).await.into_iter().flatten().filter(|reply| *reply == refused).count()
    });
    let spent = meter.take(&founder);
    report::note("join: silence, and wrong secrets", spent, |row| {
        row.outcome = format!("nobody joins; {guessed} secrets refused");
    });
    // The limits on handshakes of one address keep out most of them.
    assert!(guessed > 0, "none of {GUESSES} guesses was answered");
    assert!(spent.costs.disk_bytes <= IDLE_BYTES_MAX, "{spent:?}");
    invited.narmesh(&["join", &token]).expect_success("join beside them");
    let status = founder.status();
    assert!(status.peer("invited").is_some() && status.peer("stranger").is_none());
    assert!(ask(&join_frame([1; 16])).is_ok_and(|reply| reply == refused), "and the same answer as before");
}
