//! Peers that lie about which path an output is, or ask for it without end.

use crate::log_wire::{REALISATION, REALISATION_ABSENT, REALISATION_BUSY, realisation_found, realisation_request};
use crate::peer::{Move, Peer, Script};
use crate::stage::Stage;
use narmesh_tests::{get, promised, wait_until};
use std::time::{Duration, Instant};

/// What the daemon may hold above idle.
const MEMORY_RISE_MAX: u64 = 64 << 20;
/// A realisation that nobody has is told absent within this.
const ABSENT_WITHIN: Duration = Duration::from_secs(2);

fn id(digit: char, output: &str) -> String {
    format!("sha256:{}!{output}", digit.to_string().repeat(64))
}

fn json(id: &str, signatures: &str) -> Vec<u8> {
    let path = format!("{}-mesh-evil-1.0", "1".repeat(32));
    format!(r#"{{"dependentRealisations":{{}},"id":"{id}","outPath":"{path}","signatures":[{signatures}]}}"#)
        .into_bytes()
}

#[test]
fn false_realisations_are_blamed_and_never_passed_on() {
    let forged = format!("\"hostile-test-1:{}==\"", "A".repeat(86));
    let stranger = forged.replace("hostile-test-1", "stranger-1");
    let answers: [(&str, Vec<u8>, bool); 6] = [
        ("realisation-garbage", vec![0xa5; 4_096], true),
        ("realisation-not-json", realisation_found(b"not JSON"), true),
        ("realisation-of-another", realisation_found(&json(&id('0', "doc"), &forged)), true),
        ("realisation-forged", realisation_found(&json(&id('0', "out"), &forged)), true),
        ("realisation-unsigned", realisation_found(&json(&id('0', "out"), "")), false),
        ("realisation-of-a-stranger", realisation_found(&json(&id('0', "out"), &stranger)), false),
    ];
    let liar = |(name, bytes, _): &(&str, Vec<u8>, bool)| {
        let bytes = bytes.clone();
        Peer::liar(name, Script::default().realisation(move |_| vec![Move::Send(bytes.clone())]))
    };
    let mut peers: Vec<_> = answers.iter().map(liar).collect();
    peers.push(Peer::honest("of-an-earlier-version"));
    let stage = Stage::new(&["realisations"], 64, &peers.iter().collect::<Vec<_>>());
    peers.iter().for_each(|peer| peer.connect(&stage.client));
    let since = Instant::now();
    let target = format!("/realisations/{}.doi", id('0', "out"));
    assert_eq!(get(stage.client.gateway(), &target).unwrap().status, 404);
    assert!(since.elapsed() < promised(ABSENT_WITHIN), "{:?}", since.elapsed());
    for (peer, (name, _, is_blamed)) in peers.iter().zip(&answers) {
        assert_eq!(peer.asked().realisations.len(), 1, "{name} took place");
        match is_blamed {
            true => stage.assert_blamed(peer, "sent a malformed reply", "malformed_reply", 1),
            false => stage.assert_unblamed(peer),
        }
    }
    stage.assert_unblamed(peers.last().unwrap());
    stage.finish();
}

#[test]
fn a_flood_of_requests_for_realisations_is_refused() {
    let flooder = Peer::honest("realisation-flooder");
    let stage = Stage::new(&["asked"], 64, &[&flooder]);
    flooder.connect(&stage.client);
    let memory = stage.client.watch_memory();
    let request = realisation_request(&[7; 32], "out");
    let ask = || flooder.ask(&stage.client, REALISATION, &request);
    assert_eq!(ask().unwrap(), REALISATION_ABSENT);
    let lanes = || {
        std::thread::scope(|scope| {
            let lanes: Vec<_> = (0..16)
                .map(|_| scope.spawn(|| (0..400).any(|_| ask().is_ok_and(|reply| reply == REALISATION_BUSY))))
                .collect();
            lanes.into_iter().map(|lane| lane.join().unwrap()).filter(|is_busy| *is_busy).count()
        })
    };
    wait_until("requests are answered at a pace", promised(Duration::from_secs(20)), || lanes() > 0);
    assert!(memory.rise_bytes() <= MEMORY_RISE_MAX, "{} MiB", memory.rise_bytes() >> 20);
    stage.assert_good_unharmed();
    stage.finish();
}
