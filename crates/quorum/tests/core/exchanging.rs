//! How attestations reach all peers that may have them, and what liars achieve.

use crate::crowd::{Crowd, attestation, spoken};
use crate::stage::{clustered, key, path};
use narmesh_protocol::{HashPart, NarHash};
use narmesh_quorum::exchange::{Exchange, Input, Moment, Output, Spoken};
use narmesh_quorum::reconcile::{Answer, BuilderDigest, Content, Item, Node, Query, Shared};
use narmesh_quorum::wire::{QuorumReply, QuorumRequest};
use narmesh_quorum::{Claim, FingerprintDigest, Ledger, LedgerLimits, NameDigest, VerifiedStatement, WallMs};

/// An attestation has reached every node this long after it was made, milliseconds.
const EVERYWHERE_MS: u64 = 2_000;

fn all_know(crowd: &Crowd, builder: &str, number: u32) -> bool {
    (0..crowd.nodes.len()).all(|node| crowd.knows(node, builder, &path(number)))
}

#[test]
fn one_attestation_reaches_a_mesh_of_twelve_in_a_second() {
    let mut slowest = 0;
    let mut crowd = Crowd::new(12, LedgerLimits::default());
    crowd.connect_all(&["a", "b"]);
    crowd.run(10_000, |_| false);
    for number in 0..20 {
        let since = crowd.now;
        let requests: usize = crowd.nodes.iter().map(|node| node.requests).sum();
        crowd.keeps(number as usize % 12, vec![attestation("a", &path(number), '1')]);
        assert!(crowd.run(EVERYWHERE_MS, |crowd| all_know(crowd, "a", number)), "attestation {number}");
        slowest = slowest.max(crowd.now - since);
        crowd.run(5_000, |_| false);
        let cost = crowd.nodes.iter().map(|node| node.requests).sum::<usize>() - requests;
        assert!(cost < 12 * 24, "{cost} requests for one attestation");
    }
    assert!(slowest < 500, "the slowest of 20 took {slowest} ms over lines of 5 ms");
    assert!(crowd.nodes.iter().all(|node| node.faults.is_empty()));
}

#[test]
fn news_travel_hop_by_hop_where_the_ends_are_not_connected() {
    let mut crowd = Crowd::new(6, LedgerLimits::default());
    for node in 0..5 {
        crowd.connect(node, node + 1, spoken(&["a"]), spoken(&["a"]));
    }
    crowd.run(1_000, |_| false);
    crowd.keeps(0, vec![attestation("a", &path(1), '1'), attestation("a", &path(2), '1')]);
    assert!(crowd.run(EVERYWHERE_MS, |crowd| all_know(crowd, "a", 1) && all_know(crowd, "a", 2)));
}

#[test]
fn thousands_known_on_one_side_are_pulled_by_a_new_peer() {
    let mut crowd = Crowd::new(3, LedgerLimits::default());
    crowd.keeps(0, (0..10_000).map(|number| attestation("a", &path(number), '1')).collect());
    crowd.connect_all(&["a", "b"]);
    assert!(crowd.run(20_000, |crowd| crowd.nodes.iter().all(|node| node.ledger.len() == 10_000)));
    crowd.run(5_000, |_| false);
    let sent: usize = crowd.nodes.iter().map(|node| node.bytes).sum();
    assert!(sent < 3 * 10_000 * 400, "{sent} bytes for 20,000 attestations of 250 bytes");
}

#[test]
fn a_peer_hears_nothing_of_a_builder_that_it_may_not_be_told_of() {
    // Node 1 counts both builders and may tell node 2 of b alone. Node 2 would like both.
    let mut crowd = Crowd::new(3, LedgerLimits::default());
    crowd.connect(0, 1, spoken(&["a", "b"]), spoken(&["a", "b"]));
    crowd.connect(1, 2, spoken(&["b"]), spoken(&["a", "b"]));
    crowd.keeps(0, vec![attestation("a", &path(1), '1'), attestation("b", &path(2), '1')]);
    assert!(crowd.run(EVERYWHERE_MS, |crowd| crowd.knows(2, "b", &path(2))));
    crowd.input(2, Input::Wanted { id: 1, hash_part: path(1).hash_part(), lasting_ms: 1_000 });
    crowd.run(200_000, |_| false);
    assert!(crowd.knows(1, "a", &path(1)) && !crowd.knows(2, "a", &path(1)));
    assert_eq!(crowd.nodes[2].answered, [(1, true)]);
}

#[test]
fn a_pull_returns_only_builders_that_the_asker_may_be_told_of() {
    let mut crowd = Crowd::new(3, LedgerLimits::default());
    crowd.connect(0, 1, spoken(&["a"]), spoken(&["a"]));
    crowd.connect(1, 2, spoken(&["b"]), spoken(&["a", "b"]));
    crowd.keeps(1, vec![attestation("a", &path(1), '1')]);
    // Whoever knows the key, the path and the result can guess the name of an item.
    let builders = vec![BuilderDigest::of(&key("a"))];
    let query = Query { builders: builders.clone(), nodes: vec![(Node::ROOT, [1; 16])] };
    let answer = crowd.nodes[1].ledger.answer(&Shared::new([key("a")]), &query);
    let Answer::Nodes { differing, .. } = answer else { panic!("{answer:?}") };
    let Content::Items(items) = &differing[0].1 else { panic!("{differing:?}") };
    let pull = QuorumRequest::Pull { builders, wanted: vec![(Node::ROOT, items[0])] };
    for (asker, handed) in [(0, 1), (2, 0)] {
        let (from, bytes) = (crowd.nodes[asker].peer, pull.encode().unwrap());
        let node = &mut crowd.nodes[1];
        while node.exchange.poll().is_some() {}
        node.exchange.handle(Moment(0), &node.ledger, Input::Request { from, id: 1, bytes });
        let Some(Output::HandOver(hand_over)) = node.exchange.poll() else { panic!("a pull is answered") };
        assert_eq!(hand_over.wanted.iter().flatten().count(), handed, "asked by {asker}");
    }
}

/// A ledger in which b's many attestations stand between the few of a, of which each first byte has one.
fn few_of_a_between_many_of_b() -> Ledger {
    let mut ledger = Ledger::new(LedgerLimits::default());
    let part = |top: u8, number: u32| {
        let mut bytes = [0; 20];
        bytes[..4].copy_from_slice(&number.to_le_bytes());
        bytes[19] = top;
        HashPart(bytes)
    };
    let claim = Claim {
        fingerprint: FingerprintDigest([1; 32]),
        nar_hash: NarHash([1; 32]),
        nar_size: 1,
        name: NameDigest::of("x"),
    };
    let mut insert =
        |name, part| ledger.insert(&VerifiedStatement::from_record(key(name), part, claim, Some(WallMs(1)), 1), None);
    for top in 0..=255 {
        insert("a", part(top, 0));
        (1..400).for_each(|number| drop(insert("b", part(top, number))));
    }
    ledger
}

/// Sends requests of one peer, each after the one before is answered, and passes the answers on.
fn ask(
    ledger: &Ledger,
    told: &[&str],
    times: u64,
    mut request: impl FnMut() -> Option<QuorumRequest>,
    mut answer: impl FnMut(Output),
) {
    let mut exchange = Exchange::new(Moment(0), [1; 32]);
    let from = Crowd::new(1, LedgerLimits::default()).nodes[0].peer;
    exchange.handle(Moment(0), ledger, Input::Peer { peer: from, spoken: spoken(told) });
    while exchange.poll().is_some() {}
    for id in 0..times {
        let Some(bytes) = request().map(|request| request.encode().unwrap()) else { break };
        exchange.handle(Moment(0), ledger, Input::Request { from, id, bytes });
        while let Some(output) = exchange.poll() {
            answer(output);
        }
    }
}

#[test]
fn a_costly_pull_is_answered_in_part_and_charged_more() {
    let ledger = few_of_a_between_many_of_b();
    let mut wanted = vec![(Node::ROOT, Item([7; 16]))];
    wanted.extend((0..16).map(|top| (Node { depth: 1, prefix: prefix(top << 4) }, Item([7; 16]))));
    wanted.extend((0..=255).map(|top| (Node { depth: 2, prefix: prefix(top) }, Item([7; 16]))));
    let served = |told: &[&str], named: &str| {
        let pull = QuorumRequest::Pull { builders: vec![BuilderDigest::of(&key(named))], wanted: wanted.clone() };
        let mut parts = Vec::new();
        ask(
            &ledger,
            told,
            300,
            || Some(pull.clone()),
            |output| {
                if let Output::HandOver(hand_over) = output {
                    parts.push(hand_over.wanted.len());
                }
            },
        );
        parts
    };
    let costly = served(&["a"], "a");
    assert!(costly.len() < 60 && costly.iter().all(|part| (1..20).contains(part)), "{costly:?}");
    // Nothing is looked for when the named builder may not be told of.
    let cheap = served(&["a"], "b");
    assert!(cheap.len() > 150 && cheap.iter().all(|part| *part == wanted.len()), "{cheap:?}");
}

#[test]
fn a_costly_comparison_is_answered_in_part_and_charged_more() {
    let ledger = few_of_a_between_many_of_b();
    // Under each of these nodes are 400 paths, and the asker claims that all nodes differ.
    let nodes_of = |depth| (0..=255).map(move |top| (Node { depth, prefix: prefix(top) }, [7; 16]));
    let nodes: Vec<_> = nodes_of(2).chain(nodes_of(4)).collect();
    let mut open = nodes.clone();
    let mut parts = Vec::new();
    let left = std::cell::RefCell::new(&mut open);
    ask(
        &ledger,
        &["a", "b"],
        300,
        || {
            let nodes = left.borrow().clone();
            let mut builders = ["a", "b"].map(|name| BuilderDigest::of(&key(name))).to_vec();
            builders.sort_unstable();
            (!nodes.is_empty()).then_some(QuorumRequest::Compare { query: Query { builders, nodes }, news: false })
        },
        |output| {
            let Output::Respond { bytes, .. } = output else { return };
            if let QuorumReply::Compared(Answer::Nodes { answered, differing }) = QuorumReply::decode(&bytes).unwrap() {
                assert_eq!(answered as usize, differing.len());
                parts.push(differing.len());
                left.borrow_mut().drain(..differing.len());
            }
        },
    );
    // Each part is at most a third of the nodes, and all nodes come in the end.
    assert!(parts.len() >= 4 && parts.iter().all(|part| (1..=nodes.len() / 3).contains(part)), "{parts:?}");
    assert_eq!(parts.iter().sum::<usize>(), nodes.len());

    // A peer that asks for all of them again and again is soon told "busy".
    let (mut answers, mut busy) = (0, 0);
    let query = QuorumRequest::Compare {
        query: Query { builders: vec![BuilderDigest::of(&key("b"))], nodes: nodes.clone() },
        news: false,
    };
    ask(
        &ledger,
        &["b"],
        100,
        || Some(query.clone()),
        |output| match output {
            Output::Respond { bytes, .. } if QuorumReply::decode(&bytes).unwrap() == QuorumReply::Busy => busy += 1,
            Output::Respond { .. } => answers += 1,
            _ => {}
        },
    );
    assert!((2..20).contains(&answers) && busy > 80, "{answers} answers, {busy} told busy");
}

fn prefix(top: u8) -> [u8; 20] {
    let mut prefix = [0; 20];
    prefix[0] = top;
    prefix
}

#[test]
fn a_builder_that_we_do_not_count_is_not_asked_for() {
    let mut crowd = Crowd::new(2, LedgerLimits::default());
    let none = Spoken { counted: Shared::new([]), ..spoken(&["a"]) };
    crowd.connect(0, 1, spoken(&["a"]), none);
    crowd.keeps(0, vec![attestation("a", &path(1), '1')]);
    crowd.run(200_000, |_| false);
    assert!(!crowd.knows(1, "a", &path(1)));
    assert!(crowd.nodes[1].faults.is_empty());
}

#[test]
fn a_peer_that_may_be_told_later_hears_it_then() {
    let mut crowd = Crowd::new(2, LedgerLimits::default());
    crowd.connect(0, 1, spoken(&[]), spoken(&["a"]));
    crowd.keeps(0, vec![attestation("a", &path(1), '1')]);
    crowd.run(30_000, |_| false);
    assert!(!crowd.knows(1, "a", &path(1)));
    let peer = crowd.nodes[1].peer;
    crowd.input(0, Input::Peer { peer, spoken: spoken(&["a"]) });
    assert!(crowd.run(EVERYWHERE_MS, |crowd| crowd.knows(1, "a", &path(1))));
}

#[test]
fn peers_are_asked_at_once_for_a_verdict_that_is_waited_for() {
    let mut crowd = Crowd::new(5, LedgerLimits::default());
    crowd.connect_all(&["a"]);
    crowd.run(2_000, |_| false);
    crowd.keeps(3, vec![attestation("a", &path(7), '1'), attestation("a", &path(8), '1')]);
    let builder = Spoken { is_builder: true, ..spoken(&["a"]) };
    let peer = crowd.nodes[3].peer;
    crowd.input(0, Input::Peer { peer, spoken: builder });
    for (id, number) in [(1, 7), (2, 8), (3, 9)] {
        crowd.input(0, Input::Wanted { id, hash_part: path(number).hash_part(), lasting_ms: 1_000 });
    }
    // One round trip for the first question, another for those that gathered meanwhile: sooner than news would come.
    assert!(crowd.run(25, |crowd| crowd.knows(0, "a", &path(7)) && crowd.knows(0, "a", &path(8))));
    assert!(crowd.run(1_000, |crowd| (1..=3).all(|id| crowd.nodes[0].answered.contains(&(id, true)))));
}

#[test]
fn questions_time_out_and_silent_peers_are_left_out() {
    let mut crowd = Crowd::new(2, LedgerLimits::default());
    crowd.connect_all(&["a"]);
    crowd.run(2_000, |_| false);
    // Nobody delivers its requests, so its peer is silent. There are 25 questions a second, each open for a second.
    let node = &mut crowd.nodes[0];
    let mut asked = 0;
    let mut open = std::collections::BTreeMap::new();
    for id in 0..7_500_u64 {
        let now = Moment(10_000 + id * 40);
        let wanted = Input::Wanted { id, hash_part: path(1).hash_part(), lasting_ms: 1_000 };
        open.insert(id, now.0);
        node.exchange.handle(now, &node.ledger, wanted);
        while let Some(output) = node.exchange.poll() {
            match output {
                Output::Answered { id, last: true } => assert!(now.0 - open.remove(&id).unwrap() <= 1_040),
                Output::Request { bytes, .. } => {
                    asked += usize::from(matches!(QuorumRequest::decode(&bytes), Ok(QuorumRequest::Ask { .. })));
                }
                _ => {}
            }
        }
        assert!(open.len() <= 26, "{} wait", open.len());
    }
    assert!((2..=16).contains(&asked), "{asked} questions in five minutes to who answers none");
}

#[test]
fn an_ask_that_nobody_can_answer_ends_at_once() {
    let mut crowd = Crowd::new(1, LedgerLimits::default());
    crowd.input(0, Input::Wanted { id: 5, hash_part: HashPart([0; 20]), lasting_ms: 1_000 });
    assert_eq!(crowd.nodes[0].answered, [(5, true)]);
}

#[test]
fn a_builder_at_its_bound_is_not_pulled_again_and_again() {
    let limits = LedgerLimits { per_builder: 100, ..LedgerLimits::default() };
    let mut crowd = Crowd::new(2, limits);
    // Node 0 has room for everything that node 1 lacks.
    crowd.nodes[0].ledger = Ledger::new(LedgerLimits::default());
    crowd.keeps(0, (0..300).map(|number| attestation("a", &path(number), '1')).collect());
    crowd.keeps(1, (1_000..1_100).map(|number| attestation("a", &path(number), '1')).collect());
    crowd.keeps(0, vec![attestation("b", &path(5_000), '1')]);
    crowd.connect_all(&["a", "b"]);
    crowd.run(300_000, |_| false);
    assert!(crowd.knows(1, "b", &path(5_000)), "another builder is none the worse");
    let requests: usize = crowd.nodes.iter().map(|node| node.requests).sum();
    assert!(requests < 100, "{requests} requests in five minutes");
}

#[test]
fn paths_that_were_ground_to_be_neighbours_slow_nobody_down() {
    let said = |number| attestation("a", &clustered(number), '1');
    for round in 1_000..1_004 {
        let mut crowd = Crowd::new(2, LedgerLimits::default());
        crowd.keeps(0, (0..200).map(said).collect());
        crowd.keeps(1, (0..200).map(said).collect());
        crowd.keeps(0, vec![said(round)]);
        crowd.connect_all(&["a"]);
        // The first finds what only it has thirty queries deep.
        assert!(crowd.run(EVERYWHERE_MS, |crowd| crowd.knows(1, "a", &clustered(round))));
        crowd.run(2_000, |_| false);
        crowd.keeps(1, vec![said(round + 100)]);
        let came = crowd.run(EVERYWHERE_MS, |crowd| crowd.knows(0, "a", &clustered(round + 100)));
        assert!(came, "of its neighbour's news it asks nothing for a minute");
        assert!(crowd.nodes.iter().all(|node| node.faults.is_empty()));
    }
}

#[test]
fn a_peer_that_was_busy_and_then_has_news_is_asked_a_second_later() {
    let mut crowd = Crowd::new(2, LedgerLimits::default());
    crowd.nodes[1].lie = Some(Box::new(|_| Some(QuorumReply::Busy.encode().unwrap())));
    crowd.connect_all(&["a"]);
    crowd.run(100_000, |_| false);
    crowd.nodes[1].lie = None;
    crowd.keeps(1, vec![attestation("a", &path(1), '1')]);
    assert!(crowd.run(EVERYWHERE_MS, |crowd| crowd.knows(0, "a", &path(1))));
}
