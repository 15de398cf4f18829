//! The emulator does what it is asked to do, measured from the machines on both sides.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use crate::Turn;
use narmesh_tests::{Link, Namespace, Network, wait_until};

const MS: Duration = Duration::from_millis(1);
/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(10);

/// Waits for the turn of the test; two machines with the link `far` between them.
fn pair(far: Link) -> Option<(Turn, Network)> {
    crate::turn().map(|turn| (turn, Network::in_sites(&[1, 1], Link::PERFECT, far, 1)))
}

/// Answers every datagram with itself, on a thread that ends with the test.
fn echo(machine: &Namespace) -> SocketAddr {
    let socket = machine.enter(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    let address = SocketAddr::from((machine.address(), socket.local_addr().unwrap().port()));
    thread::spawn(move || {
        let mut datagram = [0; 64];
        while let Ok((bytes, from)) = socket.recv_from(&mut datagram) {
            socket.send_to(&datagram[..bytes], from).ok();
        }
    });
    address
}

/// Sends `count` numbered datagrams, one every `every`, and returns the round trips of those that came back.
fn round_trips(from: &Namespace, to: SocketAddr, count: u32, every: Duration) -> Vec<Duration> {
    let socket = from.enter(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    socket.connect(to).unwrap();
    // The first datagram waits until the neighbour's link address is known, so it is not measured.
    socket.set_read_timeout(Some(200 * MS)).unwrap();
    let mut datagram = [0xff; 4];
    wait_until("the first echo", LONG, || {
        socket.send(&datagram).ok();
        socket.recv(&mut [0; 4]).is_ok()
    });
    while socket.recv(&mut [0; 4]).is_ok() {}
    let receiver = socket.try_clone().unwrap();
    receiver.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    let began = Instant::now();
    let arrivals = thread::spawn(move || {
        let mut arrived = Vec::new();
        while receiver.recv(&mut datagram).is_ok() {
            arrived.push((u32::from_le_bytes(datagram), began.elapsed()));
        }
        arrived
    });
    let mut sent = Vec::new();
    for number in 0..count {
        thread::sleep((every * number).saturating_sub(began.elapsed()));
        sent.push(began.elapsed());
        socket.send(&number.to_le_bytes()).ok();
    }
    arrivals.join().unwrap().into_iter().map(|(number, at)| at - sent[number as usize]).collect()
}

#[test]
fn a_link_has_the_delay_and_jitter_asked_for() {
    let Some((_turn, network)) = pair(Link { delay: 40 * MS, jitter: 10 * MS, ..Link::PERFECT }) else { return };
    let [one, other] = [0, 1].map(|number| network.machine(number));
    let mut trips = round_trips(one, echo(other), 200, 5 * MS);
    trips.sort_unstable();
    assert_eq!(trips.len(), 200);
    let (shortest, median) = (trips[0], trips[100]);
    println!("40 ms and up to 10 each way: shortest {shortest:?}, median {median:?}, longest {:?}", trips[199]);
    // A busy machine can only make it later.
    assert!((80 * MS..90 * MS).contains(&shortest), "{shortest:?}");
    assert!(median > 86 * MS, "{median:?}");
    // A link can be changed while it runs.
    network.emulator().set(0, 1, |link| (link.delay, link.jitter) = (5 * MS, Duration::ZERO));
    let mut trips = round_trips(one, echo(other), 50, 5 * MS);
    trips.sort_unstable();
    assert!((10 * MS..20 * MS).contains(&trips[0]), "{:?}", trips[0]);
}

#[test]
fn a_link_loses_the_share_asked_for() {
    let Some((_turn, network)) = pair(Link { loss_permille: 100, ..Link::PERFECT }) else { return };
    let (one, other) = (network.machine(0), network.machine(1));
    let back = round_trips(one, echo(other), 2_000, MS).len();
    println!("10 % each way: {back} of 2,000 came back");
    // 81 % are expected, with a deviation of 18.
    assert!((1_520..1_720).contains(&back), "{back} of 2,000");
    assert!(network.emulator().counts(0, 1).lost > 100);
}

#[test]
fn a_link_has_the_rate_asked_for() {
    const BYTES: usize = 2_000_000;
    let Some((_turn, network)) = pair(Link { rate_bits_s: Some(20_000_000), ..Link::PERFECT }) else { return };
    let (one, other) = (network.machine(0), network.machine(1));
    // A busy machine can only make it slower, so one undisturbed run is enough.
    wait_until("20 Mbit/s less the headers, 6 %", LONG, || {
        let rate = megabits_per_s(one, other, BYTES);
        println!("20 Mbit/s: {rate:.1} Mbit/s of contents");
        assert!(rate < 20.0, "{rate:.1} Mbit/s");
        rate > 16.0
    });
}

/// Sends `bytes` over one TCP connection; returns the rate of the contents, in Mbit/s.
fn megabits_per_s(from: &Namespace, to: &Namespace, bytes: usize) -> f64 {
    let listener = to.enter(|| TcpListener::bind("0.0.0.0:0").unwrap());
    let address = SocketAddr::from((to.address(), listener.local_addr().unwrap().port()));
    let receiver = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let began = Instant::now();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        (all.len(), began.elapsed())
    });
    let mut stream = from.enter(|| TcpStream::connect_timeout(&address, LONG).unwrap());
    stream.write_all(&vec![7; bytes]).unwrap();
    drop(stream);
    let (received, took) = receiver.join().unwrap();
    assert_eq!(received, bytes);
    received as f64 * 8.0 / took.as_secs_f64() / 1e6
}

#[test]
fn a_cut_stops_all_traffic_until_it_ends() {
    let Some(_turn) = crate::turn() else { return };
    let mut network = Network::in_sites(&[2, 1], Link::PERFECT, Link::PERFECT, 1);
    let address = echo(network.machine(1));
    let from = |network: &Network, number: usize| {
        let socket = network.machine(number).enter(|| UdpSocket::bind("0.0.0.0:0").unwrap());
        socket.set_read_timeout(Some(300 * MS)).unwrap();
        socket.send_to(b"here", address).ok();
        socket.recv(&mut [0; 8]).is_ok()
    };
    assert!(from(&network, 2));
    network.emulator().set_cut(0, true);
    assert!(!from(&network, 2), "the sites are apart");
    assert!(from(&network, 0), "within the site nothing changed");
    assert!(network.emulator().counts(1, 0).cut > 0);
    network.emulator().set_cut(0, false);
    wait_until("an echo after the cut", LONG, || from(&network, 2));
    // The machine that echoes moves to the other site and gets another address there.
    network.move_machine(1, 1);
    assert!(!from(&network, 2), "nobody is at the old address");
    let moved = SocketAddr::from((network.machine(1).address(), address.port()));
    assert_eq!(round_trips(network.machine(2), moved, 1, MS).len(), 1);
}

#[test]
fn machines_on_a_bridge_reach_each_other_and_nothing_else() {
    let Some(_turn) = crate::turn() else { return };
    let network = Network::on_a_bridge(3);
    let before = network.machine(0).traffic();
    assert_eq!(round_trips(network.machine(0), echo(network.machine(2)), 100, MS).len(), 100);
    let used = network.machine(0).traffic().sent_bytes - before.sent_bytes;
    // Each datagram has 4 bytes of contents, 8 of UDP, 20 of IP, 14 of Ethernet; looking up the neighbour takes a few more.
    assert!((4_600..6_500).contains(&used), "{used} bytes counted");
    let routes = network.machine(0).command("ip").args(["route", "show"]).output().unwrap();
    let routes = String::from_utf8(routes.stdout).unwrap();
    assert_eq!(routes.lines().count(), 1, "only its own network: {routes}");
}

/// A shaped line carries contents at nearly its rate, in packets of ordinary size; the other direction is not shaped.
#[test]
fn a_shaped_line_has_the_rate_asked_for() {
    const BYTES: usize = 1_000_000;
    let Some(_turn) = crate::turn() else { return };
    let network = Network::on_a_bridge(3);
    network.send_real_packets();
    network.set_uplink(0, 10_000);
    network.set_downlink(1, 10_000);
    let [up, down, free] = [0, 1, 2].map(|number| network.machine(number));
    for (from, to) in [(up, free), (free, down)] {
        let before = from.traffic();
        // A busy machine can only make it slower, so one undisturbed run is enough.
        wait_until("10 Mbit/s less the headers, 4 %", LONG, || {
            let rate = megabits_per_s(from, to, BYTES);
            println!("10 Mbit/s: {rate:.1} Mbit/s of contents");
            assert!(rate < 10.0, "{rate:.1} Mbit/s");
            rate > 8.5
        });
        let sent = from.traffic();
        let packet = (sent.sent_bytes - before.sent_bytes) / (sent.sent_packets - before.sent_packets);
        assert!((1_000..=1_514).contains(&packet), "{packet} bytes a packet");
    }
    // The other direction is not shaped.
    wait_until("faster the other way", LONG, || megabits_per_s(free, up, BYTES) > 50.0);
}
