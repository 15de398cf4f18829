//! Members that find each other on the local network, and a stranger there.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use narmesh_tests::{Namespace, Network, TestMesh, TestNode, promised, wait_until};
use serde_json::Value;

/// Members are promised to find each other within this.
const FOUND: Duration = Duration::from_secs(1);
/// A machine that has another address is promised to be back within this.
const BACK: Duration = Duration::from_secs(5);
const GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
const PORT: u16 = 5353;
/// How often the time of discovery is measured.
const TRIES: u8 = 5;

/// Two members of one mesh, a builder and a client, that have met at the addresses of the roster.
fn pair(mesh: &TestMesh, network: &Network) -> [TestNode; 2] {
    let mut nodes = ["a", "b"].map(|name| mesh.node(name));
    for (node, machine) in nodes.iter_mut().zip(network.machines()) {
        node.live_on(machine);
        node.config.sign = true;
    }
    let [a, b] = &mut nodes;
    a.start();
    a.narmesh(&["mesh", "create", "home"]).expect_success("mesh create");
    // No default route says which address is meant: the token has those of the interfaces.
    let token = a.narmesh(&["mesh", "invite"]).expect_success("mesh invite");
    b.start();
    b.narmesh(&["join", &token]).expect_success("join");
    let list: Value = serde_json::from_str(&a.narmesh(&["mesh", "list", "--json"]).expect_success("list")).unwrap();
    let key = list["mesh"].as_str().unwrap();
    for node in [&mut *a, &mut *b] {
        node.config.mesh_key = Some(key.to_owned());
    }
    b.trust_the_gateway_alone();
    wait_met(a, b, BACK);
    nodes
}

fn wait_met(one: &TestNode, other: &TestNode, bound: Duration) {
    for (node, peer) in [(one, other), (other, one)] {
        node.wait_status(&format!("met {}", peer.name), promised(bound), |status| {
            status.connected(&peer.name) && status.summary_paths(&peer.name).is_some()
        });
    }
}

/// Has both find each other from now on.
fn switch_on(nodes: &mut [TestNode; 2]) {
    for node in nodes {
        node.config.discover_lan = true;
        node.write_config();
    }
}

fn middle_and_last(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    format!("p50 {:?}, max {:?}, of {}", times[times.len() / 2], times[times.len() - 1], times.len())
}

/// What comes by multicast to this machine.
struct Ear(UdpSocket);

impl Ear {
    fn on(machine: &Namespace) -> Self {
        let std::net::IpAddr::V4(own) = machine.address() else { panic!("a network of IPv4") };
        let socket = machine.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap());
        socket.join_multicast_v4(&GROUP, &own).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self(socket)
    }

    /// All packets since the last call.
    fn take(&self) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        let mut buffer = [0; 9_000];
        loop {
            match self.0.recv(&mut buffer) {
                Ok(length) => packets.push(buffer[..length].to_vec()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return packets,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// How long a multicast question and its answer take with nothing but two sockets.
fn plain_round_trip(network: &Network) -> Duration {
    let [asks, answers] = [0, 1].map(|number| network.machine(number));
    let bound = |machine: &Namespace| {
        let socket = machine.enter(|| UdpSocket::bind((machine.address(), PORT)).unwrap());
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        socket
    };
    let (ear, asking, answering) = (Ear::on(answers), bound(asks), bound_elsewhere(answers));
    ear.0.set_nonblocking(false).unwrap();
    let begun = Instant::now();
    asking.send_to(b"?", (GROUP, PORT)).unwrap();
    let (_, from) = ear.0.recv_from(&mut [0; 9]).unwrap();
    answering.send_to(b"!", from).unwrap();
    asking.recv(&mut [0; 9]).unwrap();
    begun.elapsed()
}

fn bound_elsewhere(machine: &Namespace) -> UdpSocket {
    machine.enter(|| UdpSocket::bind((machine.address(), 0)).unwrap())
}

#[test]
fn members_without_a_right_address_find_each_other_and_one_that_moves_is_found_again() {
    let Some(_turn) = crate::turn() else { return };
    let mut network = Network::on_a_bridge(2);
    let mesh = TestMesh::new();
    let plain = (0..TRIES).map(|_| plain_round_trip(&network)).collect();
    let mut nodes = pair(&mesh, &network);
    switch_on(&mut nodes);
    let mut found = Vec::new();
    for number in 0..TRIES {
        // While neither runs, both get other addresses: what the roster and the kept summaries say is wrong.
        for (machine, node) in nodes.iter_mut().enumerate() {
            node.terminate();
            network.renumber(machine, 1 + 2 * number + u8::try_from(machine).unwrap());
            node.live_on(network.machine(machine));
        }
        let [a, b] = &mut nodes;
        a.start();
        b.start();
        let begun = Instant::now();
        b.wait_connected("a", true, FOUND);
        found.push(begun.elapsed());
        wait_met(a, b, FOUND);
    }
    let [a, b] = &mut nodes;
    let built = a.store.build_fresh("found");
    a.wait_all_advertised(&[b]);
    b.realise(&[built]).expect_success("from a member that no file names an address of");
    b.store.verify_contents();

    let mut back = Vec::new();
    for number in 0..TRIES {
        network.renumber(1, 100 + number);
        b.live_on(network.machine(1));
        let (moved, address) = (Instant::now(), b.p2p_address());
        a.wait_status("b is back", promised(BACK), |status| {
            let known = status.peer("b").map(|peer| peer["addresses"].to_string()).unwrap_or_default();
            status.connected("b") && known.contains(&address)
        });
        back.push(moved.elapsed());
        let built = a.store.build_fresh(&format!("moved-{number}"));
        a.wait_all_advertised(&[b]);
        b.realise(&[built]).expect_success("from where b has never been");
    }
    println!("multicast question and answer, plain sockets: {}", middle_and_last(plain));
    println!("connected after the daemon was up: {}", middle_and_last(found));
    println!("connected after another address: {}", middle_and_last(back));
}

#[test]
fn nothing_is_said_that_is_switched_off_and_nothing_that_a_stranger_can_read() {
    let Some(_turn) = crate::turn() else { return };
    let network = Network::on_a_bridge(3);
    let mesh = TestMesh::new();
    let ear = Ear::on(network.machine(2));
    let mut nodes = pair(&mesh, &network);
    for node in &mut nodes {
        node.terminate();
        node.start();
    }
    wait_met(&nodes[0], &nodes[1], BACK);
    assert_eq!(ear.take(), Vec::<Vec<u8>>::new(), "nothing while it is switched off");
    switch_on(&mut nodes);
    for node in &nodes {
        node.narmesh(&["reload"]).expect_success("reload");
    }
    let mut heard = Vec::new();
    wait_until("both have asked and answered", promised(FOUND), || {
        heard.extend(ear.take());
        heard.len() >= 8
    });
    let text: Vec<u8> = heard.concat();
    let occurs = |needle: &[u8]| text.windows(needle.len()).any(|bytes| bytes == needle);
    assert!(occurs(b"\x08_narmesh\x04_tcp\x05local"), "other programs can list the service");
    let key = nodes[0].config.mesh_key.clone().unwrap();
    let (_, key) = key.split_once(':').unwrap();
    let hidden = [b"home".as_slice(), &key.as_bytes()[..16], &7_280_u16.to_be_bytes(), &[10, 77, 1, 1]];
    for needle in hidden.into_iter().chain([b"12D3Koo".as_slice()]) {
        assert!(!occurs(needle), "{needle:?} is to be read by everybody");
    }
    // And off again.
    for node in &mut nodes {
        node.config.discover_lan = false;
        node.write_config();
        node.narmesh(&["reload"]).expect_success("reload");
    }
    ear.take();
    let asking = bound_elsewhere(network.machine(2));
    asking.send_to(&question(), (GROUP, PORT)).unwrap();
    let built = nodes[0].store.build_fresh("silent");
    nodes[0].wait_all_advertised(&[&nodes[1]]);
    nodes[1].realise(&[built]).expect_success("while it is off");
    // The stranger hears itself.
    assert_eq!(ear.take(), [question()], "no answer to a question");
}

fn name(text: &str) -> Vec<u8> {
    let labels = text.split('.').flat_map(|label| [&[u8::try_from(label.len()).unwrap()], label.as_bytes()].concat());
    labels.chain([0]).collect()
}

/// Who is there? As `docs/protocol.md` has it.
fn question() -> Vec<u8> {
    [&[0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0], name("_narmesh._tcp.local").as_slice(), &[0, 12, 0, 1]].concat()
}

/// A service of our kind that is nobody's, with 200 bytes that mean nothing.
fn bogus(number: u32) -> Vec<u8> {
    let (service, instance) = (name("_narmesh._tcp.local"), name(&format!("{number:032x}._narmesh._tcp.local")));
    let noise: Vec<u8> =
        (0_u32..200).flat_map(|at| (at * 40_503 + number * 7).to_le_bytes().into_iter().take(1)).collect();
    let text = [&[202, b'm', b'='], noise.as_slice()].concat();
    let record = |owner: &[u8], kind: u8, data: &[u8]| {
        let length = u16::try_from(data.len()).unwrap().to_be_bytes();
        [owner, &[0, kind, 0, 1, 0, 0, 0x11, 0x94], &length, data].concat()
    };
    let header = [0, 0, 0x84, 0, 0, 0, 0, 2, 0, 0, 0, 0];
    [&header, record(&service, 12, &instance).as_slice(), &record(&instance, 16, &text)].concat()
}

#[test]
fn ten_thousand_bogus_services_of_a_stranger_cost_nothing_and_hide_nobody() {
    let Some(_turn) = crate::turn() else { return };
    let mut network = Network::on_a_bridge(3);
    let mesh = TestMesh::new();
    let ear = Ear::on(network.machine(2));
    let mut nodes = pair(&mesh, &network);
    switch_on(&mut nodes);
    for node in &nodes {
        node.narmesh(&["reload"]).expect_success("reload");
    }
    let mut real = Vec::new();
    wait_until("the stranger has heard answers", promised(FOUND), || {
        real.extend(ear.take().into_iter().filter(|packet| packet.get(2) == Some(&0x84)));
        real.len() >= 2
    });
    let here = network.machine(2);
    let stranger = bound_elsewhere(here);
    // Where the stranger says that members are.
    let trap = here.enter(|| TcpListener::bind((here.address(), 7_280)).unwrap());
    trap.set_nonblocking(true).unwrap();
    let [a, b] = &nodes;
    let (lines, before) = (a.log().lines().count(), network.machine(0).traffic());
    let (memory, spent) = (a.watch_memory(), a.processor_time());
    let begun = Instant::now();
    for number in 0..10_000_u32 {
        let mut packet = bogus(number);
        stranger.send_to(&packet, (GROUP, PORT)).unwrap();
        if number % 10 == 0 {
            // A header that promises thousands of records, an answer that was heard, that answer changed, and a question.
            packet[4..12].fill(0xff);
            let heard = &real[number as usize % real.len()];
            let mut changed = heard.clone();
            *changed.last_mut().unwrap() ^= 1;
            for packet in [&packet, heard, &changed, &question()] {
                stranger.send_to(packet, (GROUP, PORT)).unwrap();
            }
        }
        if number % 100 == 0 {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    let lasted = begun.elapsed();
    wait_met(a, b, BACK);
    let (spent, risen) = (a.processor_time().saturating_sub(spent), memory.rise_bytes());
    let sent = network.machine(0).traffic().sent_packets - before.sent_packets;
    println!("14,000 packets in {lasted:?}: {sent} sent, {spent:?} of a processor, {} KiB more", risen >> 10);
    assert_eq!(a.log().lines().count(), lines, "nothing is logged: {}", a.log());
    assert!(risen < 8 << 20, "{} KiB more", risen >> 10);
    let allowed = 200 + 10 * lasted.as_secs();
    assert!(sent < allowed, "{sent} packets in {lasted:?}");
    assert_eq!(trap.accept().unwrap_err().kind(), ErrorKind::WouldBlock, "nobody is dialled");
    // Members find each other as before.
    network.renumber(1, 9);
    nodes[1].live_on(network.machine(1));
    let address = nodes[1].p2p_address();
    nodes[0].wait_status("b is back", promised(BACK), |status| {
        status.connected("b") && status.peer("b").is_some_and(|peer| peer["addresses"].to_string().contains(&address))
    });
}
