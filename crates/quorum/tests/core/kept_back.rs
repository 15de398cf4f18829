//! Attestations that were named in a comparison and are withheld by the time they are pulled.

use crate::crowd::{Crowd, attestation};
use crate::stage::{key, path};
use libp2p_identity::PeerId;
use narmesh_quorum::exchange::HandOver;
use narmesh_quorum::wire::QuorumReply;
use narmesh_quorum::{Evicted, LedgerLimits};

#[test]
fn withholding_attestations_after_a_comparison_is_not_a_fault() {
    let mut crowd = Crowd::new(2, LedgerLimits::default());
    crowd.keeps(0, (1..=3).map(|number| attestation("a", &path(number), '1')).collect());
    // Each of them was withheld since, before the ledger lost it.
    let kept = std::mem::take(&mut crowd.nodes[0].kept);
    crowd.connect_all(&["a"]);
    crowd.run(600_000, |_| false);
    assert!(crowd.nodes[1].faults.is_empty() && !crowd.knows(1, "a", &path(1)), "{:?}", crowd.nodes[1].faults);
    assert!((5..60).contains(&crowd.nodes[1].requests), "{} requests", crowd.nodes[1].requests);
    // That delays nothing else.
    crowd.keeps(0, vec![attestation("a", &path(4), '1')]);
    assert!(crowd.run(3_000, |crowd| crowd.knows(1, "a", &path(4))), "news come as always");
    crowd.run(60_000, |_| false);
    // Once one of them may be handed over, and the ledger has lost the others, nothing is promised that is not there.
    crowd.nodes[0].kept = kept.into_iter().filter(|((_, part), _)| *part == path(1).hash_part()).collect();
    for number in 2..=3 {
        let gone = attestation("a", &path(number), '1');
        let (builder, hash_part) = (gone.builder, path(number).hash_part());
        let node = &mut crowd.nodes[0];
        let fingerprint = node.ledger.votes(&hash_part).next().unwrap().claim.fingerprint;
        node.ledger.withdraw(&Evicted { builder, hash_part, fingerprint });
    }
    assert!(crowd.run(120_000, |crowd| crowd.knows(1, "a", &path(1))));
    let before = crowd.nodes[1].requests;
    crowd.run(600_000, |_| false);
    assert!(crowd.nodes[1].faults.is_empty() && crowd.nodes[1].requests - before < 30);
}

#[test]
fn a_guess_at_a_withheld_attestation_is_answered_as_if_there_were_none() {
    let builder = key("a");
    let reply = |promised| {
        let wanted = vec![vec![(builder, path(1).hash_part())]];
        let hand_over = HandOver { to: PeerId::random(), id: 1, wanted, promised };
        QuorumReply::decode(&hand_over.encode_reply(|_, _| None)).unwrap()
    };
    let nothing = HandOver { to: PeerId::random(), id: 1, wanted: vec![Vec::new()], promised: false };
    assert_eq!(reply(false), QuorumReply::decode(&nothing.encode_reply(|_, _| None)).unwrap());
    assert_eq!(reply(true), QuorumReply::Busy);
}
