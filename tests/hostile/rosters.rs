//! Rosters of meshes and joining, implemented a second time from `docs/protocol.md`.

use crate::bulk::dial_as;
use crate::peer::{Move, Peer, Script, runtime};
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
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::{Duration, Instant};

const HEARD: Duration = Duration::from_secs(2);
/// Requests that one stranger begins and does not finish.
const SILENT: usize = 60;

fn public_key(keys: &Keypair) -> [u8; 32] {
    keys.public().try_into_ed25519().expect("Ed25519").to_bytes()
}

/// A roster of these members, each a node key and a name, signed by `mesh`.
fn roster(mesh: &Keypair, version: u64, members: &[([u8; 32], &str)]) -> Vec<u8> {
    let member = |writer: Writer, (key, name): &([u8; 32], &str)| {
        writer.raw(key).bytes(name.as_bytes()).u32(0).u8(0).u8(0).u32(0).u64(0)
    };
    let payload = Writer::default().u64(version).u64(1).list(members, member).u64(0).0;
    let signature = mesh.sign(&[b"narmesh-roster-1;", payload.as_slice()].concat()).expect("Ed25519 signs");
    Writer::default().u8(1).raw(&public_key(mesh)).raw(&signature).raw(&payload).0
}

fn newer(roster: &[u8]) -> Vec<u8> {
    Writer::default().u32(2).bytes(roster).0
}

fn compare(mesh: &[u8; 32], version: u64) -> Vec<u8> {
    Writer::default().raw(mesh).u64(version).raw(&[0; 32]).0
}

/// A running daemon of the mesh of `mesh`, which knows no roster, and has `peer` as a `[[peer]]`.
fn member_of(tests: &TestMesh, mesh: &Keypair, peer: &Peer) -> TestNode {
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

fn public_key_of(node: &TestNode) -> [u8; 32] {
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
    invited.narmesh(&["join", &token]).expect_success("join beside them");
    let status = founder.status();
    assert!(status.peer("invited").is_some() && status.peer("stranger").is_none());
    assert!(ask(&join_frame([1; 16])).is_ok_and(|reply| reply == refused), "and the same answer as before");
}
