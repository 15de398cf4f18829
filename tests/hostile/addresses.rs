//! Addresses that a peer names to have this machine dial them.

use crate::filter::filter;
use crate::formats::hash_part_bytes;
use crate::peer::{Peer, peer_id};
use crate::stage::Stage;
use crate::summaries::HEARD;
use crate::wire::{Address, Summary};
use narmesh_tests::{promised, wait_until};
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Addresses that a peer tells are dialled only where that can do no harm.
#[test]
fn addresses_that_could_do_harm_are_not_dialled() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let peer = Peer::honest("addresses");
    let stage = Stage::with(&["addresses"], 64, &[&peer], |client| client.config.advertise_loopback = false);
    peer.connect(&stage.client);
    let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1];
    let mut link_local = [0; 16];
    (link_local[0], link_local[1], link_local[15]) = (0xfe, 0x80, 1);
    let addresses = vec![
        Address::V4([127, 0, 0, 1], port),
        Address::V4([127, 0, 0, 1], 22),
        Address::V6(mapped, port),
        Address::V4([169, 254, 169, 254], 80),
        Address::V6(link_local, 80),
        Address::V4([0, 0, 0, 0], port),
        Address::V4([255, 255, 255, 255], 80),
        Address::V4([224, 0, 0, 1], 80),
    ];
    let part = hash_part_bytes(&stage.path("addresses", "a"));
    let summary = peer.summary(&filter(&[part], 13), 1, &[peer_id(&stage.client)]);
    peer.announce(&Summary { addresses, ..summary });
    stage.wait_heard(&peer, 1);
    let status = stage.client.status();
    assert_eq!(status.peer("addresses").unwrap()["addresses"], serde_json::json!([]), "none of them is kept");
    peer.leave(&stage.client);
    stage.client.wait_connected("addresses", false, HEARD);
    // With nobody there, it would dial what it had learned.
    assert_eq!(stage.client.get_narinfo(&stage.path("addresses", "a")).status, 404);
    assert!(listener.accept().is_err(), "somebody was sent to a port of this machine");
    stage.finish();
}

/// Whoever is at an address that a peer names sees one connection, whatever he does with it, and however often and in
/// whatever form the peer names it.
#[test]
fn an_address_that_a_peer_names_sees_one_connection() {
    let hold: fn(TcpStream) -> Option<TcpStream> = Some;
    let close: fn(TcpStream) -> Option<TcpStream> = |_| None;
    let refuse: fn(TcpStream) -> Option<TcpStream> = |mut socket| {
        drop(socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n"));
        None
    };
    let targets: Vec<(u16, Arc<AtomicUsize>)> = [hold, close, refuse].map(listen).into();
    let peer = Peer::honest("addresses");
    let stage = Stage::new(&["addresses"], 64, &[&peer]);
    peer.connect(&stage.client);
    let part = hash_part_bytes(&stage.path("addresses", "a"));
    let summary = peer.summary(&filter(&[part], 13), 1, &[peer_id(&stage.client)]);
    let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1];
    let forms = |port| [Address::V4([127, 0, 0, 1], port), Address::V6(mapped, port)];
    let mut addresses: Vec<_> = targets.iter().flat_map(|(port, _)| forms(*port)).collect();
    addresses.extend(forms(targets[0].0));
    peer.announce(&Summary { addresses, ..summary });
    stage.wait_heard(&peer, 1);
    peer.leave(&stage.client);
    stage.client.wait_connected("addresses", false, HEARD);
    // A lookup has it dialled, and so does gossip; the holder of the connection lets the handshake run out.
    let port = targets[0].0.to_string();
    wait_until("the dial has failed", promised(HEARD), || {
        assert_eq!(stage.client.get_narinfo(&stage.path("addresses", "a")).status, 404);
        stage.client.status().peer("addresses").unwrap()["why"].as_str().is_some_and(|why| why.contains(&port))
    });
    assert_eq!(stage.client.get_narinfo(&stage.path("addresses", "a")).status, 404);
    for (_, seen) in &targets {
        assert_eq!(seen.load(Ordering::Relaxed), 1);
    }
    stage.finish();
}

/// A port of this machine where connections are counted, and given to `take`; what it returns is held open.
fn listen(take: fn(TcpStream) -> Option<TcpStream>) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen = Arc::<AtomicUsize>::default();
    let counter = Arc::clone(&seen);
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for socket in listener.incoming().flatten() {
            counter.fetch_add(1, Ordering::Relaxed);
            held.extend(take(socket));
        }
    });
    (port, seen)
}
