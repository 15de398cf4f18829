//! What peers achieve that lie in an exchange, never come to an end, or ask too much.

use crate::crowd::{Crowd, attestation, spoken};
use crate::stage::{key, path};
use narmesh_quorum::LedgerLimits;
use narmesh_quorum::exchange::{Fault, Input, Moment, Output};
use narmesh_quorum::reconcile::{Answer, Content, Item, Node, Query, Session, Shared};
use narmesh_quorum::wire::{QuorumReply, QuorumRequest};
use std::collections::BTreeSet;

/// Leads to the bottom of the tree, and names nothing there, or an item that does not exist.
fn deep(request: &QuorumRequest, items: &[Item]) -> Option<QuorumReply> {
    let QuorumRequest::Compare { query, .. } = request else { return None };
    let mut digests = [[0; 16]; 16];
    digests[15] = [9; 16];
    answers(query.nodes.len(), |number| match query.nodes[number as usize].0.depth {
        0..30 => Content::Children(Box::new(digests)),
        _ => Content::Items(items.to_vec()),
    })
}

fn depth(request: &QuorumRequest) -> Option<u8> {
    let QuorumRequest::Compare { query, .. } = request else { return None };
    query.nodes.first().map(|(node, _)| node.depth)
}

/// How many requests node 0 makes in ten minutes of node 1, which lies, has news each second, and if it `returns` connects
/// anew each time. Nothing of it is provably wrong.
fn requests_in_ten_minutes(returns: bool, lie: impl Fn(&QuorumRequest) -> Option<Vec<u8>> + 'static) -> usize {
    let mut crowd = Crowd::new(2, LedgerLimits::default());
    crowd.nodes[1].lie = Some(Box::new(lie));
    crowd.connect_all(&["a"]);
    let liar = crowd.nodes[1].peer;
    let (_, query) = Session::start(&crowd.nodes[0].ledger, Shared::new([key("a")]));
    let query = Query { nodes: vec![(Node::ROOT, [8; 16])], ..query };
    let news = QuorumRequest::Compare { query, news: true }.encode().unwrap();
    crowd.keeps(0, vec![attestation("a", &path(1), '1')]);
    for id in 0..600 {
        if returns {
            crowd.input(0, Input::Gone(liar));
            crowd.input(0, Input::Peer { peer: liar, spoken: spoken(&["a"]) });
        }
        crowd.input(0, Input::Request { from: liar, id: 1_000_000 + id, bytes: news.clone() });
        crowd.run(1_000, |_| false);
    }
    assert!(crowd.nodes[0].faults.is_empty(), "{:?}", crowd.nodes[0].faults);
    // What it has in truth is found, if late.
    crowd.nodes[1].lie = None;
    crowd.keeps(1, vec![attestation("a", &path(2), '1')]);
    assert!(crowd.run(600_000, |crowd| crowd.knows(0, "a", &path(2))));
    crowd.nodes[0].requests
}

#[test]
fn comparisons_with_a_peer_that_always_differs_are_rate_limited() {
    let encoded = |reply: Option<QuorumReply>| reply.map(|reply| reply.encode().unwrap());
    let busy = || Some(QuorumReply::Busy.encode().unwrap());
    let item = [Item([7; 16])];
    let limited = |ending: &str, requests: usize| {
        assert!((100..1_000).contains(&requests), "{ending}: {requests} requests in ten minutes");
    };
    limited("nothing is wanted", requests_in_ten_minutes(false, move |request| encoded(deep(request, &[]))));
    // The news itself is told once a second, too, and nothing comes of it.
    let at_the_pull = move |request: &QuorumRequest| encoded(deep(request, &item)).or_else(busy);
    limited("busy at the pull", requests_in_ten_minutes(false, at_the_pull));
    let at_the_bottom = move |request: &QuorumRequest| match depth(request) {
        Some(29..) => busy(),
        _ => encoded(deep(request, &[])),
    };
    limited("busy at the bottom", requests_in_ten_minutes(false, at_the_bottom));
    let cut = move |request: &QuorumRequest| match depth(request) {
        Some(29..) => Some(vec![0]),
        _ => encoded(deep(request, &[])),
    };
    limited("a reply that is cut short", requests_in_ten_minutes(false, cut));
    limited("busy at once", requests_in_ten_minutes(false, move |_| busy()));
    let turn = std::cell::Cell::new(0);
    let in_turns = move |request: &QuorumRequest| {
        turn.set(turn.get() + usize::from(depth(request) == Some(0)));
        if turn.get().is_multiple_of(2) {
            encoded(answers(1, |_| Content::Items(Vec::new())))
        } else {
            at_the_bottom(request)
        }
    };
    limited("busy, and then as if there were no difference", requests_in_ten_minutes(false, in_turns));
}

#[test]
fn a_peer_that_always_differs_and_returns_is_rate_limited() {
    // Each connection is told of the news, which is one request.
    let limited = |ending: &str, requests: usize| {
        assert!((700..1_600).contains(&requests), "{ending}: {requests} requests in ten minutes");
    };
    let bottomless = |request: &QuorumRequest| deep(request, &[]).map(|reply| reply.encode().unwrap());
    limited("nothing is wanted", requests_in_ten_minutes(true, bottomless));
    let silent = move |request: &QuorumRequest| match depth(request) {
        // The connection ends first.
        Some(29..) => Some(Vec::new()),
        _ => bottomless(request),
    };
    limited("no answer at the bottom", requests_in_ten_minutes(true, silent));
}

fn lying(lie: impl Fn(&QuorumRequest) -> Option<QuorumReply> + 'static) -> Crowd {
    let mut crowd = Crowd::new(3, LedgerLimits::default());
    crowd.keeps(0, (0..1_000).map(|number| attestation("a", &path(number), '1')).collect());
    crowd.keeps(2, vec![attestation("b", &path(9_000), '1')]);
    crowd.nodes[1].lie = Some(Box::new(move |request| lie(request).map(|reply| reply.encode().unwrap())));
    crowd.connect_all(&["a", "b"]);
    crowd
}

/// Both honest nodes get what the other has, and node 0 blames the liar for this fault.
fn nothing_but(mut crowd: Crowd, fault: Fault) {
    crowd.run(600_000, |_| false);
    assert!(crowd.knows(0, "b", &path(9_000)), "the honest ones go on");
    assert_eq!(crowd.nodes[0].ledger.len(), 1_001);
    let liar = crowd.nodes[1].peer;
    assert!(crowd.nodes[0].faults.contains(&(liar, fault)), "{:?}", crowd.nodes[0].faults);
    assert!(crowd.nodes[0].faults.iter().all(|(peer, _)| *peer == liar));
    let (requests, bytes) = (crowd.nodes[0].requests, crowd.nodes[0].bytes);
    assert!(requests < 1_000 && bytes < 32 << 20, "{requests} requests, {bytes} bytes in ten minutes");
}

fn answers(answered: usize, content: impl Fn(u32) -> Content) -> Option<QuorumReply> {
    let answered = u32::try_from(answered).unwrap();
    let differing = (0..answered).map(|number| (number, content(number))).collect();
    Some(QuorumReply::Compared(Answer::Nodes { answered, differing }))
}

/// Names items that do not exist.
fn promises(request: &QuorumRequest) -> Option<QuorumReply> {
    let QuorumRequest::Compare { query, .. } = request else { return None };
    answers(query.nodes.len(), |number| Content::Items((0..24).map(|item| Item([item + number as u8; 16])).collect()))
}

#[test]
fn digests_that_always_differ_are_blamed() {
    nothing_but(
        lying(|request| {
            let QuorumRequest::Compare { query, .. } = request else { return None };
            answers(query.nodes.len(), |number| Content::Children(Box::new([[number as u8 | 1; 16]; 16])))
        }),
        // The liar leads below the bottom of the tree.
        Fault::MalformedReply,
    );
}

#[test]
fn items_that_are_never_handed_over_are_blamed() {
    let never = |request: &QuorumRequest| match request {
        QuorumRequest::Pull { wanted, .. } => {
            let answered = u32::try_from(wanted.len()).unwrap();
            Some(QuorumReply::Attestations { answered, attestations: Vec::new() })
        }
        other => promises(other),
    };
    nothing_but(lying(never), Fault::FalseComparison);
}

#[test]
fn forged_foreign_and_endless_attestations_are_blamed() {
    let hands = |make: fn() -> Vec<Vec<u8>>| {
        lying(move |request| match request {
            QuorumRequest::Pull { .. } => Some(QuorumReply::Attestations { answered: 1, attestations: make() }),
            other => promises(other),
        })
    };
    let forged = || {
        let mut forged = attestation("a", &path(77_000), '1');
        forged.nix_signature = [3; 64];
        vec![forged.encode().unwrap()]
    };
    nothing_but(hands(forged), Fault::FalseAttestation);
    nothing_but(hands(|| vec![attestation("stranger", &path(77_000), '1').encode().unwrap()]), Fault::FalseAttestation);
    nothing_but(hands(|| vec![b"no attestation".to_vec()]), Fault::FalseAttestation);
    let endless = || (0..500).map(|number| attestation("a", &path(80_000 + number), '1').encode().unwrap()).collect();
    nothing_but(hands(endless), Fault::MalformedReply);
}

#[test]
fn answers_to_another_question_are_blamed() {
    let wrong = |request: &QuorumRequest| match request {
        QuorumRequest::Compare { .. } => Some(QuorumReply::Attestations { answered: 1, attestations: Vec::new() }),
        QuorumRequest::Pull { .. } | QuorumRequest::Ask { .. } => None,
    };
    nothing_but(lying(wrong), Fault::MalformedReply);
    nothing_but(lying(|_| answers(2, |_| Content::Items(Vec::new()))), Fault::MalformedReply);
}

/// How many of `count` requests of node 1 node 0 answers at once; the faults that it reports are noted.
fn flood(crowd: &mut Crowd, count: u64) -> usize {
    let (flooder, ask) = (crowd.nodes[1].peer, QuorumRequest::Ask { builders: Vec::new(), paths: Vec::new() });
    let bytes = ask.encode().unwrap();
    let mut answered = 0;
    for id in 0..count {
        let node = &mut crowd.nodes[0];
        node.exchange.handle(Moment(0), &node.ledger, Input::Request { from: flooder, id, bytes: bytes.clone() });
        while let Some(output) = crowd.nodes[0].exchange.poll() {
            match output {
                Output::Misbehaved { fault, .. } => crowd.nodes[0].faults.push((flooder, fault)),
                Output::HandOver(_) => answered += 1,
                _ => {}
            }
        }
    }
    answered
}

#[test]
fn a_flood_of_requests_is_told_busy_and_then_blamed() {
    let mut crowd = Crowd::new(2, LedgerLimits::default());
    crowd.connect_all(&["a"]);
    flood(&mut crowd, 5_000);
    let flooder = crowd.nodes[1].peer;
    assert_eq!(crowd.nodes[0].faults, [(flooder, Fault::RequestFlood)]);
}

#[test]
fn a_reconnect_does_not_reset_what_a_peer_used_up() {
    let mut crowd = Crowd::new(2, LedgerLimits::default());
    crowd.connect_all(&["a"]);
    let peer = crowd.nodes[1].peer;
    let again = |crowd: &mut Crowd| {
        crowd.input(0, Input::Gone(peer));
        assert_eq!(flood(crowd, 1), 0, "nobody is there to be answered");
        crowd.input(0, Input::Peer { peer, spoken: spoken(&["a"]) });
    };
    assert!(flood(&mut crowd, 5_000) > 100);
    again(&mut crowd);
    assert_eq!((flood(&mut crowd, 100), crowd.nodes[0].faults.len()), (0, 1), "neither answers nor a second blame");
    // The peer stays set aside: it is asked for nothing.
    crowd.input(0, Input::SetAside { peer, lasting_ms: 300_000 });
    again(&mut crowd);
    crowd.input(0, Input::Wanted { id: 1, hash_part: path(1).hash_part(), lasting_ms: 1_000 });
    assert_eq!(crowd.nodes[0].answered, [(1, true)]);
    // A peer that was taken off the allowlist and put on it again is a new one.
    crowd.input(0, Input::Gone(peer));
    crowd.input(0, Input::Allowlist(BTreeSet::new()));
    crowd.input(0, Input::Peer { peer, spoken: spoken(&["a"]) });
    assert_eq!(flood(&mut crowd, 1), 1);
}
