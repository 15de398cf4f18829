//! What machines are told that were removed from a mesh, implemented a second time from `docs/protocol.md`.

use crate::peer::{Move, Peer, Script, runtime};
use crate::rosters::{member_of, newer, public_key, public_key_of, sign_roster};
use crate::wire::{REMOVAL, Writer};
use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use libp2p::core::Endpoint;
use libp2p::core::transport::{DialOpts, PortUse, Transport as _};
use libp2p::core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade, UpgradeInfo, Version};
use libp2p::identity::Keypair;
use libp2p::{tcp, tls, yamux};
use narmesh_tests::{TestMesh, TestNode, promised, wait_until};
use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const HEARD: Duration = Duration::from_secs(2);
/// One machine is told at most once in this time.
const PAUSE: Duration = Duration::from_secs(5);
/// How often a removed machine asks without a pause.
const ASKS: u64 = 30;

/// What the mesh key signs of a machine: the version, and the signature.
fn removal(mesh: &Keypair, node_key: &[u8; 32], version: u64) -> Vec<u8> {
    let signed = [b"narmesh-removal-1;", public_key(mesh).as_slice(), node_key, &version.to_le_bytes()].concat();
    [&version.to_le_bytes(), mesh.sign(&signed).expect("Ed25519 signs").as_slice()].concat()
}

/// Reads, in the place of a multiplexer, until the other side closes; what was read goes into the list.
#[derive(Clone)]
struct Read(&'static str, Arc<Mutex<Vec<u8>>>);

impl UpgradeInfo for Read {
    type Info = &'static str;
    type InfoIter = std::iter::Once<&'static str>;

    fn protocol_info(&self) -> Self::InfoIter {
        std::iter::once(self.0)
    }
}

impl<C: AsyncRead + AsyncWrite + Send + Unpin + 'static> OutboundConnectionUpgrade<C> for Read {
    type Output = yamux::Muxer<C>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<yamux::Muxer<C>>> + Send>>;

    fn upgrade_outbound(self, mut socket: C, _: &'static str) -> Self::Future {
        Box::pin(async move {
            let mut bytes = Vec::new();
            socket.read_to_end(&mut bytes).await?;
            *self.1.lock().expect("no panic") = bytes;
            // There is no connection that would stay.
            Err(io::ErrorKind::UnexpectedEof.into())
        })
    }
}

impl<C> InboundConnectionUpgrade<C> for Read {
    type Output = yamux::Muxer<C>;
    type Error = io::Error;
    type Future = Ready<io::Result<yamux::Muxer<C>>>;

    fn upgrade_inbound(self, _: C, _: &'static str) -> Self::Future {
        ready(Err(io::ErrorKind::Unsupported.into()))
    }
}

/// What a node says on a protocol in the place of a multiplexer, and how the connection ended.
fn ask(node: &TestNode, keys: &Keypair, name: &'static str) -> (Vec<u8>, String) {
    let read = Arc::new(Mutex::new(Vec::new()));
    let said = Arc::clone(&read);
    let ended = runtime().block_on(async move {
        let mut transport = tcp::tokio::Transport::new(tcp::Config::new().nodelay(true))
            .upgrade(Version::V1)
            .authenticate(tls::Config::new(keys).expect("Ed25519"))
            .multiplex(Read(name, said))
            .boxed();
        let options = DialOpts { role: Endpoint::Dialer, port_use: PortUse::New };
        let dial = transport.dial(node.p2p_address().parse().expect("an address"), options).expect("an address");
        dial.await.map_or_else(|error| error.to_string(), |_| "connected".to_owned())
    });
    (std::mem::take(&mut read.lock().expect("no panic")), ended)
}

/// A stranger, a member, and a machine that was removed ask.
#[test]
fn a_removal_is_told_to_the_machine_that_it_names_and_seldom() {
    let (tests, mesh) = (TestMesh::new(), Keypair::generate_ed25519());
    let [removed, stranger] = [(); 2].map(|()| Keypair::generate_ed25519());
    let given = Arc::new(Mutex::new(Vec::new()));
    let give = Arc::clone(&given);
    let answer = move |_: &_, _| vec![Move::Send(newer(&give.lock().expect("no panic")))];
    let script = Script { roster: Some(Box::new(answer)), ..Script::default() };
    let peer = Peer::new("member", Keypair::generate_ed25519(), script);
    let node = member_of(&tests, &mesh, &peer);
    let mut members = [(public_key_of(&node), "node"), (public_key(&peer.keys), "member")];
    members.sort_by_key(|(key, _)| *key);
    let removed_key = public_key(&removed);
    // Two are told nothing although they have a removal: a machine that is a peer all the same, and no key at all.
    let mut named = [removed_key, public_key(&peer.keys), [2; 32]];
    named.sort_unstable();
    let removals = named.map(|key| [key.as_slice(), &removal(&mesh, &key, 6)].concat());
    let removals = Writer::default().list(&removals, |writer, removal| writer.raw(removal)).0;
    let roster = sign_roster(&mesh, 6, &members, &removals);
    given.lock().expect("no panic").clone_from(&roster);
    peer.connect(&node);
    let kept = || std::fs::read(node.dir().join("state/roster")).unwrap_or_default();
    wait_until("the roster is kept", promised(HEARD), || kept() == roster);

    let unknown = ask(&node, &stranger, "/narmesh/1/nothing");
    assert_eq!(ask(&node, &stranger, REMOVAL), unknown, "to a stranger it is as any protocol that there is not");
    assert!(ask(&node, &peer.keys, REMOVAL).0.is_empty(), "a peer is told nothing");
    let asked = Instant::now();
    let told = removal(&mesh, &removed_key, 6);
    wait_until("the removed machine is told", promised(HEARD), || ask(&node, &removed, REMOVAL).0 == told);
    let answers = (0..ASKS).map(|_| ask(&node, &removed, REMOVAL).0).filter(|said| !said.is_empty()).count();
    let most = asked.elapsed().as_secs() / PAUSE.as_secs();
    assert!(answers as u64 <= most, "{answers} answers in {:?}", asked.elapsed());
    assert!(node.status().peer("member").is_some() && node.status().connected("member"));
}
