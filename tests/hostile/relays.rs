//! Who wants to be relayed and may not, who opens circuits without end, and who claims to be a relay.

use crate::peer::{Move, Peer, Script, peer_id};
use crate::wire::{
    CIRCUIT, CIRCUIT_BUSY, CIRCUIT_COMING, CIRCUIT_REFUSED, CIRCUIT_TICKET, RELAY, come, meet, open_circuit,
};
use libp2p::PeerId;
use libp2p::identity::Keypair;
use narmesh_tests::{TestMesh, TestNode, promised, wait_until};
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A circuit that nobody comes to is given up after 5 s.
const GIVEN_UP: Duration = Duration::from_secs(6);
/// Circuits of one member.
const PER_MEMBER: usize = 48;

/// The Ed25519 key in a PeerId.
fn node_key(peer: &PeerId) -> [u8; 32] {
    // Two bytes of the multihash and four of a protobuf go before it.
    peer.to_bytes()[6..].try_into().unwrap()
}

fn id(peer: &Peer) -> PeerId {
    peer.card().peer_id.parse().unwrap()
}

/// A connection on which `/narmesh/1/relay` is spoken in the place of TLS.
struct AtRelay(TcpStream);

impl AtRelay {
    fn dial(relay: &TestNode) -> io::Result<Self> {
        let mut stream = TcpStream::connect(relay.p2p_socket())?;
        stream.set_read_timeout(Some(promised(GIVEN_UP)))?;
        for name in ["/multistream/1.0.0", RELAY] {
            stream.write_all(&named(name))?;
        }
        let mut at_relay = Self(stream);
        for name in ["/multistream/1.0.0", RELAY] {
            let mut heard = vec![0; named(name).len()];
            at_relay.0.read_exact(&mut heard)?;
            if heard != named(name) {
                return Err(io::Error::other(String::from_utf8_lossy(&heard).into_owned()));
            }
        }
        Ok(at_relay)
    }

    fn show(&mut self, ticket: &[u8]) {
        let hello = [&20_u32.to_le_bytes(), [0; 4].as_slice(), ticket].concat();
        self.0.write_all(&hello).unwrap();
    }

    /// The variant of the welcome.
    fn welcome(&mut self) -> io::Result<u32> {
        let mut frame = [0; 8];
        self.0.read_exact(&mut frame)?;
        assert_eq!(frame[..4], 4_u32.to_le_bytes());
        Ok(u32::from_le_bytes(frame[4..].try_into().unwrap()))
    }
}

fn named(name: &str) -> Vec<u8> {
    let length = u8::try_from(name.len() + 1).unwrap();
    [&[length], name.as_bytes(), b"\n"].concat()
}

/// Two peers of a relay. The first asks, and the second answers as told, and remembers its tickets.
fn pair(answer: [u8; 4]) -> (Peer, Peer, Arc<Mutex<Vec<Vec<u8>>>>) {
    let tickets: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    let kept = Arc::clone(&tickets);
    let circuit = move |_: &_, request: Vec<u8>| {
        assert_eq!(request.len(), 52, "Come, with a node key and a ticket");
        kept.lock().unwrap().push(request[36..].to_vec());
        vec![Move::Send(answer.to_vec())]
    };
    let script = Script { circuit: Some(Box::new(circuit)), ..Script::default() };
    (Peer::honest("asker"), Peer::new("asked", Keypair::generate_ed25519(), script), tickets)
}

fn relay_of(mesh: &TestMesh, peers: &[&Peer], is_relay: bool) -> TestNode {
    let mut relay = mesh.node("relay");
    for peer in peers {
        relay.allow(&peer.card());
    }
    relay.config.relay = Some(is_relay);
    relay.start();
    peers.iter().for_each(|peer| peer.connect(&relay));
    relay
}

/// The ticket of a circuit from `asker` to `asked`.
fn ticket(asker: &Peer, asked: &Peer, relay: &TestNode) -> Result<Vec<u8>, Vec<u8>> {
    let reply = asker.ask(relay, CIRCUIT, &open_circuit(&node_key(&id(asked)))).unwrap();
    if reply.starts_with(&CIRCUIT_TICKET) && reply.len() == 20 { Ok(reply[4..].to_vec()) } else { Err(reply) }
}

#[test]
fn a_relay_joins_two_peers_and_nobody_else() {
    let mesh = TestMesh::new();
    let (asker, asked, tickets) = pair(CIRCUIT_COMING);
    let absent = Peer::honest("absent");
    let relay = relay_of(&mesh, &[&asker, &asked], true);
    let own = ticket(&asker, &asked, &relay).unwrap();
    wait_until("the other one is told", promised(GIVEN_UP), || !tickets.lock().unwrap().is_empty());
    let theirs = tickets.lock().unwrap()[0].clone();
    let [mut one, mut other] = [&own, &theirs].map(|ticket| {
        let mut end = AtRelay::dial(&relay).unwrap();
        end.show(ticket);
        end
    });
    assert_eq!((one.welcome().unwrap(), other.welcome().unwrap()), (0, 0), "both are joined");
    one.0.write_all(b"there").unwrap();
    other.0.write_all(b"back").unwrap();
    let mut heard = [0; 5];
    other.0.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"there");
    one.0.read_exact(&mut heard[..4]).unwrap();
    assert_eq!(&heard[..4], b"back");
    assert!(relay.status().number("/relay/bytes") >= 9);
    // A ticket is good for one connection, and none is good that the relay did not give.
    for bad in [own.as_slice(), theirs.as_slice(), &[7; 16]] {
        let mut stranger = AtRelay::dial(&relay).unwrap();
        stranger.show(bad);
        assert_eq!(stranger.welcome().unwrap(), 1);
    }
    assert_eq!(ticket(&asker, &absent, &relay).unwrap_err(), CIRCUIT_REFUSED, "who is not on the allowlist");
    assert_eq!(ticket(&asker, &asker, &relay).unwrap_err(), CIRCUIT_REFUSED, "nobody is joined with itself");
    drop((one, other));
    wait_until("the circuit has ended", promised(GIVEN_UP), || relay.status().number("/relay/circuits") == 0);
}

#[test]
fn a_stranger_is_not_relayed_and_a_node_that_is_no_relay_relays_nobody() {
    let mesh = TestMesh::new();
    let (asker, asked, _) = pair(CIRCUIT_COMING);
    let relay = relay_of(&mesh, &[&asker, &asked], true);
    let stranger = Peer::honest("stranger");
    stranger.dial(&relay);
    assert!(stranger.ask(&relay, CIRCUIT, &open_circuit(&node_key(&id(&asked)))).is_err(), "no answer at all");
    // Strangers that come and say nothing keep nobody out, and are gone after three seconds.
    let silent: Vec<_> = (0..24).filter_map(|_| AtRelay::dial(&relay).ok()).collect();
    for mut one in silent {
        assert!(one.welcome().is_err(), "it is closed");
    }
    ticket(&asker, &asked, &relay).unwrap();
    relay.narmesh(&["status"]).expect_success("narmesh status");

    let elsewhere = TestMesh::new();
    let (asker, asked, _) = pair(CIRCUIT_COMING);
    let no_relay = relay_of(&elsewhere, &[&asker, &asked], false);
    assert_eq!(ticket(&asker, &asked, &no_relay).unwrap_err(), CIRCUIT_REFUSED);
    let refused = AtRelay::dial(&no_relay).err().map(|error| error.to_string());
    assert!(refused.is_some(), "it does not know the protocol");
}

#[test]
fn a_member_that_opens_circuits_without_end_has_48_and_takes_none_from_others() {
    let mesh = TestMesh::new();
    let (greedy, asked, _) = pair(CIRCUIT_COMING);
    let [modest, third] = ["modest", "third"].map(|name| {
        let circuit = |_: &_, _| vec![Move::Send(CIRCUIT_COMING.to_vec())];
        Peer::new(name, Keypair::generate_ed25519(), Script { circuit: Some(Box::new(circuit)), ..Script::default() })
    });
    let relay = relay_of(&mesh, &[&greedy, &asked, &modest, &third], true);
    let answers: Vec<_> = (0..PER_MEMBER + 8).map(|_| ticket(&greedy, &asked, &relay)).collect();
    assert!(answers[..PER_MEMBER].iter().all(Result::is_ok), "{answers:?}");
    assert!(answers[PER_MEMBER..].iter().all(|answer| *answer == Err(CIRCUIT_BUSY.to_vec())), "{answers:?}");
    ticket(&modest, &third, &relay).expect("others have theirs");
    // Nobody comes to them: they are given up, and may be asked for again.
    wait_until("they are given up", promised(GIVEN_UP), || relay.status().number("/relay/circuits") == 0);
    ticket(&greedy, &asked, &relay).unwrap();
}

#[test]
fn a_circuit_that_the_other_member_refuses_is_given_up_at_once() {
    let mesh = TestMesh::new();
    let (asker, asked, _) = pair(CIRCUIT_REFUSED);
    let relay = relay_of(&mesh, &[&asker, &asked], true);
    let own = ticket(&asker, &asked, &relay).unwrap();
    let mut end = AtRelay::dial(&relay).unwrap();
    end.show(&own);
    assert_eq!(end.welcome().unwrap(), 1, "refused");
    wait_until("nothing is kept", promised(GIVEN_UP), || relay.status().number("/relay/circuits") == 0);
}

#[test]
fn nobody_is_called_to_a_relay_by_a_peer_that_is_none() {
    let mesh = TestMesh::new();
    let (caller, friend) = (Peer::honest("caller"), Peer::honest("friend"));
    let mut node = mesh.node("node");
    for peer in [&caller, &friend] {
        node.allow(&peer.card());
    }
    node.start();
    caller.connect(&node);
    let call = |from: &PeerId| caller.ask(&node, CIRCUIT, &come(&node_key(from), &[1; 16])).unwrap();
    assert_eq!(call(&id(&friend)), CIRCUIT_REFUSED, "it is no relay of ours");
    assert_eq!(call(&peer_id(&node)), CIRCUIT_REFUSED);
    assert_eq!(caller.ask(&node, CIRCUIT, &[9; 40]).map(|reply| reply.len()).unwrap_or(0), 0, "no request");
    node.wait_status("blames the caller", promised(GIVEN_UP), |status| {
        status.peer("caller").unwrap()["last_misdeed"].as_str().is_some_and(|what| what.contains("malformed request"))
    });
}

#[test]
fn nobody_is_met_who_is_reached_directly() {
    let mesh = TestMesh::new();
    let caller = Peer::honest("caller");
    let mut node = mesh.node("node");
    node.allow(&caller.card());
    node.start();
    caller.connect(&node);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    for _ in 0..8 {
        assert_eq!(caller.ask(&node, CIRCUIT, &meet([127, 0, 0, 1], port, &[1; 16])).unwrap(), CIRCUIT_REFUSED);
    }
    assert!(listener.accept().is_err(), "it did not connect there");
}
