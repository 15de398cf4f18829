//! What peers ask and answer about attestations, given to the core that exchanges them.

use super::attestations::{ledger, shared, signed};
use super::{Outcome, Target, magnitude};
use crate::memory::MemoryBound;
use libp2p_identity::{Keypair, PeerId};
use narmesh_protocol::HashPart;
use narmesh_quorum::Ledger;
use narmesh_quorum::exchange::{Exchange, Input, Moment, Output, Spoken};
use narmesh_quorum::reconcile::{Answer, Content, Item, Node};
use narmesh_quorum::wire::{QuorumReply, QuorumRequest};
use std::sync::OnceLock;

/// Each byte string of a list takes 24 bytes itself, for 8 bytes of length in the input.
const MEMORY: MemoryBound = MemoryBound { per_byte: 56, constant: 4 << 10 };
const WORDS: &[&[u8]] = &[&[0; 8], &[1, 0, 0, 0, 0, 0, 0, 0], &[1, 0, 0, 0], &[2, 0, 0, 0], &[0xff; 8], &[0; 21]];

pub(super) const TARGETS: [Target; 2] = [
    Target { name: "quorum-request", run: request, seeds: request_seeds, words: WORDS, input_bytes_max: 4 << 10 },
    Target { name: "quorum-reply", run: reply, seeds: reply_seeds, words: WORDS, input_bytes_max: 4 << 10 },
];

fn peer() -> PeerId {
    Keypair::ed25519_from_bytes([5; 32]).expect("32 bytes").public().to_peer_id()
}

/// One ledger for all inputs, because nothing here changes it.
fn known() -> &'static Ledger {
    static KNOWN: OnceLock<Ledger> = OnceLock::new();
    KNOWN.get_or_init(ledger)
}

/// An exchange that has just begun to compare with its only peer, with the id of its request and the request.
fn comparing() -> (Exchange, u64, QuorumRequest) {
    let ledger = known();
    let mut exchange = Exchange::new(Moment(0), [1; 32]);
    let spoken = Spoken { told: shared(), counted: shared(), is_builder: true };
    exchange.handle(Moment(0), ledger, Input::Peer { peer: peer(), spoken });
    loop {
        match exchange.poll() {
            Some(Output::Request { id, bytes, .. }) => {
                let request = QuorumRequest::decode(&bytes).expect("what we send decodes");
                if matches!(request, QuorumRequest::Compare { news: false, .. }) {
                    return (exchange, id, request);
                }
            }
            Some(_) => {}
            None => {
                let at = exchange.deadline().expect("a comparison is due");
                exchange.handle(at, ledger, Input::Tick);
            }
        }
    }
}

fn request_seeds() -> Vec<Vec<u8>> {
    let (_, _, compare) = comparing();
    let QuorumRequest::Compare { query, .. } = compare.clone() else { return Vec::new() };
    let builders = query.builders;
    let requests = [
        compare,
        QuorumRequest::Pull { builders: builders.clone(), wanted: vec![(Node::ROOT, Item([3; 16]))] },
        QuorumRequest::Ask { builders, paths: vec![HashPart([37; 20]), HashPart([0; 20])] },
    ];
    requests.iter().map(|request| request.encode().expect("fits")).collect()
}

fn request(input: &[u8]) -> Outcome {
    let decoded = MEMORY.hold(input.len(), || QuorumRequest::decode(input));
    if let Ok(request) = &decoded {
        assert_eq!(request.encode().expect("what was decoded encodes"), input, "one spelling");
    }
    let (mut exchange, ..) = comparing();
    let asked = Input::Request { from: peer(), id: 7, bytes: input.to_vec() };
    exchange.handle(Moment(1_000), known(), asked);
    let (mut answers, mut facts) = (0, (0, 0));
    while let Some(output) = exchange.poll() {
        match output {
            Output::Respond { id: 7, bytes, .. } => {
                QuorumReply::decode(&bytes).expect("what we answer decodes");
                answers += 1;
                facts = (1, magnitude(bytes.len()));
            }
            Output::HandOver(hand_over) => {
                let bytes = hand_over.encode_reply(|_, _| Some(signed()));
                QuorumReply::decode(&bytes).expect("what we hand over decodes");
                answers += 1;
                facts = (2, magnitude(bytes.len()));
            }
            Output::Misbehaved { .. } => facts.0 = 3,
            _ => {}
        }
    }
    assert_eq!(answers, 1, "every request is answered once");
    Outcome::of((decoded.is_ok(), facts))
}

fn reply_seeds() -> Vec<Vec<u8>> {
    let items = Content::Items(vec![Item([1; 16]), Item([2; 16])]);
    let children = Content::Children(Box::new([[9; 16]; 16]));
    let attestations = signed().iter().map(|it| it.encode().expect("fits")).collect();
    let replies = [
        QuorumReply::Compared(Answer::Nodes { answered: 1, differing: vec![(0, items)] }),
        QuorumReply::Compared(Answer::Nodes { answered: 1, differing: vec![(0, children)] }),
        QuorumReply::Compared(Answer::Builders(Vec::new())),
        QuorumReply::Attestations { answered: 1, attestations },
        QuorumReply::Busy,
    ];
    replies.iter().map(|reply| reply.encode().expect("fits")).collect()
}

/// The input is first the answer to a comparison, and then to whatever is asked next.
fn reply(input: &[u8]) -> Outcome {
    let decoded = MEMORY.hold(input.len(), || QuorumReply::decode(input));
    if let Ok(reply) = &decoded {
        assert_eq!(reply.encode().expect("what was decoded encodes"), input, "one spelling");
    }
    let (mut exchange, mut id, _) = comparing();
    let ledger = known();
    let mut facts = Vec::new();
    for _ in 0..3 {
        exchange.handle(Moment(1_000), ledger, Input::Response { from: peer(), id, bytes: input.to_vec() });
        while let Some(output) = exchange.poll() {
            match output {
                Output::Request { id: next, bytes, .. } => {
                    QuorumRequest::decode(&bytes).expect("what we ask decodes");
                    id = next;
                    facts.push((1, magnitude(bytes.len())));
                }
                Output::Verify { attestations, .. } => {
                    assert!(attestations.iter().all(|it| shared().contains(&it.builder)), "of builders that count");
                    facts.push((2, magnitude(attestations.len())));
                }
                Output::Misbehaved { fault, .. } => facts.push((3, fault as u64)),
                _ => {}
            }
        }
    }
    Outcome::of((decoded.is_ok(), facts))
}
