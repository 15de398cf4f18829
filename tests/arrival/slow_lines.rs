//! Large NARs over slow lines, compared with plain HTTP on a line of the same rate.

use std::thread;
use std::time::{Duration, Instant};

use narmesh_tests::{Network, NixVersion, Shipment, TestMesh, TestNode, promised};

use crate::report::{Row, nix};

/// Most bytes sent beyond those of the NARs, in percent of them: narinfos, framing, encryption, retransmissions.
const OVERHEAD_PERCENT_MAX: u64 = 5;

const ALL_ARRIVE: &str = "all arrive, bytes <= 1.05, time <= 1.05 of plain HTTP";

/// Longest time, as a multiple of what plain HTTP takes at the same time on a line of its own. Promised is 1.05, which a
/// busy machine may miss.
const TIME_MAX: f64 = 2.0;

/// Ships the same NARs by the mesh and by plain HTTP at the same time, each on a line of its own.
fn compare(
    what: &'static str,
    version: NixVersion,
    (nars, nar_bytes, kilobits_per_s): (usize, u64, u32),
    before: &'static str,
) {
    let _turn = crate::beside_others();
    if !crate::has_networks() {
        return;
    }
    let shipment = Shipment { nars, nar_bytes, kilobits_per_s };
    let row = Row { what, client: nix(version), before, must_be: ALL_ARRIVE };
    let (mesh, plain) = thread::scope(|scope| {
        let plain = scope.spawn(|| shipment.by_plain_http(version));
        (shipment.by_mesh(version), plain.join().unwrap())
    });
    let ratio = mesh.took.as_secs_f64() / plain.took.as_secs_f64();
    let of_nars = |bytes: u64| bytes as f64 / shipment.all_bytes() as f64;
    row.now(&format!(
        "{} of {} arrive, {:.2} of the NARs' bytes, {:.0} s (plain HTTP {:.2}, {:.0} s; ratio {:.2})",
        mesh.arrived,
        shipment.nars,
        of_nars(mesh.bytes),
        mesh.took.as_secs_f64(),
        of_nars(plain.bytes),
        plain.took.as_secs_f64(),
        ratio
    ));
    assert_eq!(mesh.arrived, shipment.nars, "what plain HTTP carries over this line, the mesh carries");
    assert!(ratio <= TIME_MAX, "{ratio:.2} of the time of plain HTTP");
    let allowed = shipment.all_bytes() * (100 + OVERHEAD_PERCENT_MAX) / 100;
    assert!(mesh.bytes <= allowed, "{} bytes on the line for {} of NARs", mesh.bytes, shipment.all_bytes());
}

#[test]
fn sixteen_nars_of_1_5_mb_over_5_mbit_arrive_with_nix_2_34() {
    compare(
        "03 16 x 1.5 MB over 5 Mbit/s",
        NixVersion::V2_34,
        (16, 1_500_000, 5_000),
        "12 of 16, 1.27 of the bytes, 52 s",
    );
}

#[test]
fn sixteen_nars_of_1_5_mb_over_5_mbit_arrive_with_nix_2_26() {
    compare("03 16 x 1.5 MB over 5 Mbit/s", NixVersion::V2_26, (16, 1_500_000, 5_000), "6 of 16, given up after 17 s");
}

#[test]
fn a_nar_of_4_mb_over_1_mbit_arrives_with_nix_2_8() {
    compare("04 1 x 4 MB over 1 Mbit/s", NixVersion::V2_8, (1, 4_000_000, 1_000), "0 of 1, given up after 34 s");
}

#[test]
fn a_nar_of_4_mb_over_1_mbit_arrives_with_nix_2_34() {
    compare("04 1 x 4 MB over 1 Mbit/s", NixVersion::V2_34, (1, 4_000_000, 1_000), "0 of 1, given up after 34 s");
}

#[test]
fn sixteen_nars_of_8_mb_over_30_mbit_arrive() {
    compare(
        "05 16 x 8 MB over 30 Mbit/s",
        NixVersion::V2_34,
        (16, 8_000_000, 30_000),
        "0 of 16, 1.70 of the bytes, 61 s",
    );
}

#[test]
fn sixteen_nars_of_half_a_mb_over_10_mbit_arrive() {
    compare("06 16 x 0.5 MB over 10 Mbit/s", NixVersion::V2_34, (16, 500_000, 10_000), "10 of 16");
}

/// A slow holder beside an honest quick one is promised to cost no more than this.
const MORE_WITH_A_SLOW_HOLDER: Duration = Duration::from_secs(5);

/// One holder sends at 1 Mbit/s and one at 30. Whichever is asked first, the client is compared with one that knows the
/// quick holder alone.
#[test]
fn a_slow_holder_beside_a_quick_one_costs_a_client_little() {
    const NARS: usize = 4;
    const NAR_BYTES: u64 = 4_000_000;
    let _turn = crate::beside_others();
    if !crate::has_networks() {
        return;
    }
    let network = Network::on_a_bridge(4);
    network.send_real_packets();
    network.set_uplink(0, 1_000);
    network.set_uplink(1, 30_000);
    let mesh = TestMesh::new();
    let [mut slow, mut quick, mut client, mut lucky] = ["slow", "quick", "client", "lucky"].map(|name| mesh.node(name));
    // `lucky`, which knows the quick holder alone, fetches other paths, so that nobody has read them before.
    let paths = quick.store.hold_noise(2 * NARS, NAR_BYTES, 1);
    assert_eq!(slow.store.hold_noise(2 * NARS, NAR_BYTES, 1), paths);
    for (node, machine) in [&mut slow, &mut quick, &mut client, &mut lucky].into_iter().zip(network.machines()) {
        node.live_on(machine);
        node.store.use_nix(NixVersion::V2_34);
    }
    TestMesh::introduce(&mut [&mut quick, &mut lucky]);
    TestMesh::introduce(&mut [&mut slow, &mut quick, &mut client]);
    TestMesh::start_introduced(&mut [&mut slow, &mut quick, &mut client]);
    lucky.learn_address("quick", &quick.p2p_address());
    lucky.start();
    quick.wait_all_advertised(&[&client, &lucky]);
    slow.wait_all_advertised(&[&client]);
    let (alone, both) = paths.split_at(NARS);
    let time = |node: &TestNode, paths: &[String]| {
        let since = Instant::now();
        node.realise(paths);
        let has = node.store.outputs();
        (paths.iter().filter(|path| has.contains(*path)).count(), since.elapsed())
    };
    let (_, undisturbed) = time(&lucky, alone);
    let (arrived, took) = time(&client, both);
    Row {
        what: "22 4 x 4 MB, one holder behind 1 Mbit/s, one behind 30",
        client: "Nix 2.34",
        before: "4 of 4, 5 s (5 s)",
        must_be: "all arrive, at most 5 s more than from the quick one alone",
    }
    .now(&format!(
        "{arrived} of {NARS} arrive, {:.0} s ({:.0} s from the quick one alone)",
        took.as_secs_f64(),
        undisturbed.as_secs_f64()
    ));
    assert_eq!(arrived, NARS, "both had them all the time");
    assert!(took <= undisturbed + promised(MORE_WITH_A_SLOW_HOLDER), "{took:?} instead of {undisturbed:?}");
}

/// Least share of a direction's rate. Promised is half, which a busy machine may miss.
const RATE_MIN: f64 = 0.25;

/// A home line carries 100 Mbit/s in and 10 out: acknowledgements of what it fetches wait behind what it sends.
#[test]
fn both_directions_of_a_home_line_are_used_at_once() {
    const UP_KILOBITS: u32 = 10_000;
    const DOWN_KILOBITS: u32 = 100_000;
    const OUT: (usize, u64) = (8, 1_500_000);
    const IN: (usize, u64) = (16, 6_000_000);
    let _turn = crate::beside_others();
    if !crate::has_networks() {
        return;
    }
    let network = Network::on_a_bridge(3);
    network.send_real_packets();
    network.set_uplink(0, UP_KILOBITS);
    network.set_downlink(0, DOWN_KILOBITS);
    let mesh = TestMesh::new();
    let [mut home, mut office, mut laptop] = ["home", "office", "laptop"].map(|name| mesh.node(name));
    let outgoing = home.store.hold_noise(OUT.0, OUT.1, 1);
    let incoming = office.store.hold_noise(IN.0, IN.1, 2);
    for (node, machine) in [&mut home, &mut office, &mut laptop].into_iter().zip(network.machines()) {
        node.live_on(machine);
        node.store.use_nix(NixVersion::V2_34);
    }
    TestMesh::introduce(&mut [&mut home, &mut office, &mut laptop]);
    TestMesh::start_introduced(&mut [&mut home, &mut office, &mut laptop]);
    home.wait_all_advertised(&[&laptop]);
    office.wait_all_advertised(&[&home]);
    let line_time =
        |(nars, bytes): (usize, u64), kilobits: u32| nars as f64 * bytes as f64 * 8e-3 / f64::from(kilobits);
    let ship = |node: &TestNode, paths: &[String]| {
        let since = Instant::now();
        node.realise(paths);
        let has = node.store.outputs();
        (paths.iter().filter(|path| has.contains(*path)).count(), since.elapsed().as_secs_f64())
    };
    let (received, sent) = thread::scope(|scope| {
        let sent = scope.spawn(|| ship(&laptop, &outgoing));
        (ship(&home, &incoming), sent.join().unwrap())
    });
    Row {
        what: "23 home line, 10 Mbit/s up and 100 down, both in use: 8 x 1.5 MB out, 16 x 6 MB in",
        client: "Nix 2.34",
        before: "not measured",
        must_be: "all arrive, each at half of its direction's rate at least",
    }
    .now(&format!(
        "{} of {} out at {:.2} of the rate, {} of {} in at {:.2}",
        sent.0,
        OUT.0,
        line_time(OUT, UP_KILOBITS) / sent.1,
        received.0,
        IN.0,
        line_time(IN, DOWN_KILOBITS) / received.1,
    ));
    assert_eq!((sent.0, received.0), (OUT.0, IN.0), "both holders were there all the time");
    let rates = [line_time(OUT, UP_KILOBITS) / sent.1, line_time(IN, DOWN_KILOBITS) / received.1];
    assert!(rates.iter().all(|rate| *rate >= RATE_MIN), "{rates:?} of the line's");
}

#[test]
#[ignore = "takes minutes: in `test.sh --full`"]
fn shipments_that_take_minutes_arrive() {
    thread::scope(|scope| {
        for (what, before, shape) in [
            ("07 16 x 6 MB over 10 Mbit/s", "0 of 16, 0.75 of the bytes, 61 s", (16, 6_000_000, 10_000)),
            ("08 1 x 6 MB over 1 Mbit/s", "0 of 1, given up after 35 s", (1, 6_000_000, 1_000)),
            ("09 16 x 9 MB over 10 Mbit/s", "14 of 16", (16, 9_000_000, 10_000)),
        ] {
            scope.spawn(move || compare(what, NixVersion::V2_34, shape, before));
        }
    });
}
