//! Peers that lie about build logs, keep them to themselves, or ask for them without end.

use crate::formats::hash_part_bytes;
use crate::log_wire::{LOG, LOG_ABSENT, LOG_BUSY, LogPart, LogRequest, PART};
use crate::peer::{Move, Peer, Play, Script};
use crate::stage::Stage;
use narmesh_tests::{HttpAnswer, get, hash_part, poll, promised, wait_until};
use std::time::{Duration, Instant};

/// What the daemon may hold above idle.
const MEMORY_RISE_MAX: u64 = 64 << 20;
/// A summary is promised to be known within this.
const HEARD: Duration = Duration::from_secs(2);
/// A log that nobody has is told absent within this.
const ABSENT_WITHIN: Duration = Duration::from_secs(1);
/// 33 MiB of `a`, compressed with bzip2. Several of them after each other are a valid file, too.
const BOMB: &str =
    "425a6839314159265359fa9145ab01090b4100800120000008200030cc0529a71910441b088220f177245385090fa9145ab0";

fn url(number: usize) -> String {
    format!("/log/{}-x.drv", "0123456789abcdfghijklmnpqrsvwxyz".get(number..=number).unwrap().repeat(32))
}

fn part(size_bytes: u64, bytes: Vec<u8>) -> LogPart {
    LogPart { is_compressed: false, size_bytes, version: 7, bytes }
}

fn sends(bytes: Vec<u8>) -> Play {
    vec![Move::Send(bytes)]
}

fn ask(stage: &Stage, number: usize) -> HttpAnswer {
    get(stage.client.gateway(), &url(number)).unwrap()
}

#[test]
fn malformed_answers_about_logs_are_blamed_and_a_peer_that_does_not_know_the_question_is_not() {
    let answers: [(&str, Vec<u8>); 6] = [
        ("log-garbage", vec![0xa5; 4_096]),
        ("log-beyond-its-end", part(3, vec![1; 4]).encode()),
        ("log-without-progress", part(3, Vec::new()).encode()),
        ("log-too-large", part((64 << 20) + 1, vec![1; 4]).encode()),
        ("log-part-too-large", part(1 << 20, vec![1; PART + 1]).encode()),
        ("log-reply-huge", part(16 << 20, vec![1; 8 << 20]).encode()),
    ];
    let mut peers: Vec<_> = answers
        .into_iter()
        .map(|(name, bytes)| Peer::liar(name, Script::default().log(move |_| sends(bytes.clone()))))
        .collect();
    peers.push(Peer::honest("of-an-earlier-version"));
    let stage = Stage::new(&["logs"], 64, &peers.iter().collect::<Vec<_>>());
    let memory = stage.client.watch_memory();
    peers.iter().for_each(|peer| peer.connect(&stage.client));
    let since = Instant::now();
    assert_eq!(ask(&stage, 0).status, 404);
    assert!(since.elapsed() < promised(ABSENT_WITHIN), "{:?}", since.elapsed());
    let (old, liars) = peers.split_last().unwrap();
    for liar in liars {
        assert_eq!(liar.asked().logs.len(), 1, "{} took place", liar.name);
        stage.assert_blamed(liar, "sent a malformed reply", "malformed_reply", 1);
    }
    stage.assert_unblamed(old);
    assert!(old.is_connected(&stage.client));
    assert!(memory.rise_bytes() <= MEMORY_RISE_MAX, "{} MiB", memory.rise_bytes() >> 20);
    stage.finish();
}

/// What comes of a log whose parts are answered like this.
fn shown(name: &'static str, answer: impl Fn(u64) -> LogPart + Send + Sync + 'static) -> HttpAnswer {
    let liar = Peer::liar(name, Script::default().log(move |request| sends(answer(request.offset).encode())));
    let stage = Stage::new(&[name], 64, &[&liar]);
    let memory = stage.client.watch_memory();
    liar.connect(&stage.client);
    let answer = ask(&stage, 0);
    assert!(memory.rise_bytes() <= MEMORY_RISE_MAX, "{name}: {} MiB", memory.rise_bytes() >> 20);
    stage.assert_unblamed(&liar);
    stage.finish();
    answer
}

#[test]
fn a_log_that_unpacks_without_end_is_cut_off() {
    let bomb: Vec<u8> =
        (0..BOMB.len()).step_by(2).map(|at| u8::from_str_radix(&BOMB[at..at + 2], 16).unwrap()).collect();
    let bytes = bomb.repeat(20);
    let size_bytes = bytes.len() as u64;
    let whole = part(size_bytes, bytes);
    let answer = shown("log-bomb", move |_| LogPart { is_compressed: true, ..whole.clone() });
    assert_eq!((answer.status, answer.complete), (200, false));
    assert!(answer.body.len() <= 64 << 20, "{}", answer.body.len());
    assert!(answer.body.iter().all(|byte| *byte == b'a'));
}

#[test]
fn a_log_that_changes_while_it_is_read_is_cut_off() {
    let answer = shown("log-changes", |offset| LogPart {
        version: if offset == 0 { 1 } else { 2 },
        ..part(2 * PART as u64, vec![b'x'; PART])
    });
    assert_eq!((answer.status, answer.complete, answer.body.len()), (200, false, PART));
}

#[test]
fn a_peer_that_keeps_silent_about_logs_is_not_taken_for_one_that_has_none() {
    let silent = Peer::liar("log-silent", Script::default().log(|_| vec![Move::Hold]));
    let stage = Stage::new(&["silent"], 64, &[&silent]);
    silent.connect(&stage.client);
    // The other peer said that it has none: as long as one was not heard, the client is to ask again.
    assert_eq!(ask(&stage, 0).status, 429);
    assert_eq!(ask(&stage, 1).status, 429);
    // Now it is left alone for a while, and costs nothing.
    let since = Instant::now();
    assert_eq!(ask(&stage, 2).status, 404);
    assert!(since.elapsed() < promised(ABSENT_WITHIN), "{:?}", since.elapsed());
    assert_eq!(silent.asked().logs.len(), 2);
    stage.assert_unblamed(&silent);
    stage.finish();
}

#[test]
fn a_daemon_gives_logs_of_what_it_offers_and_a_flood_of_requests_is_refused() {
    let peers = ["log-asker", "log-flooder"].map(Peer::honest);
    let [asker, flooder] = &peers;
    let stage = Stage::with(&["asked"], 64, &[asker, flooder], |client| {
        client.config.exclude = vec!["mesh-noisy-*".to_owned()];
    });
    let store = &stage.client.store;
    let [chatty, noisy] = ["chatty", "noisy"].map(|name| store.build_one(name));
    let derivations = store.derivations(&[&chatty, &noisy]);
    peers.iter().for_each(|peer| peer.connect(&stage.client));
    let request = |of: &str, offset| LogRequest { derivation: hash_part_bytes(of), offset }.encode();
    let get = |of: &str, offset| asker.ask(&stage.client, LOG, &request(of, offset)).unwrap();
    let first = poll(promised(HEARD), || LogPart::decode(&get(&derivations[0], 0))).expect("it is offered");
    let mut file = Vec::new();
    while file.len() as u64 != first.size_bytes {
        let part = LogPart::decode(&get(&derivations[0], file.len() as u64)).unwrap();
        assert!(part.bytes.len() <= PART);
        assert_eq!((part.is_compressed, part.size_bytes, part.version), (true, first.size_bytes, first.version));
        file.extend(part.bytes);
    }
    assert_eq!(file, std::fs::read(store.log_file(&derivations[0])).unwrap());
    // What is withheld, what is no derivation, what is not here and what is not in the file look the same.
    let never = "/nix/store/00000000000000000000000000000000-never.drv";
    for (of, offset) in [(&*derivations[1], 0), (&*chatty, 0), (never, 0), (&*derivations[0], u64::MAX)] {
        assert_eq!(get(of, offset), LOG_ABSENT, "{} from {offset}", hash_part(of));
    }
    // Many at once, so that they are faster than what a peer is granted.
    let memory = stage.client.watch_memory();
    let request = request(&derivations[0], 0);
    let is_busy = (0..4_000).any(|_| flooder.ask(&stage.client, LOG, &request).is_ok_and(|reply| reply == LOG_BUSY));
    assert!(is_busy, "requests are answered at a pace");
    wait_until("who goes on is blamed", promised(Duration::from_secs(10)), || {
        (0..200).for_each(|_| drop(flooder.ask(&stage.client, LOG, &request)));
        stage.client.status().peer("log-flooder").is_some_and(|known| known["last_misdeed"] == "asked too fast")
    });
    assert!(memory.rise_bytes() <= MEMORY_RISE_MAX, "{} MiB", memory.rise_bytes() >> 20);
    assert!(LogPart::decode(&get(&derivations[0], 0)).is_some(), "another peer is none the worse");
    stage.assert_unblamed(asker);
    stage.assert_good_unharmed();
    stage.finish();
}
