//! A well-behaved peer of the second implementation is treated like any other peer.

use crate::formats::hash_part_bytes;
use crate::peer::{Peer, peer_id};
use crate::stage::Stage;
use crate::wire::{GossipReply, GossipRequest, NARINFO, audience_digest, open_envelope, sha256};

#[test]
fn a_peer_of_the_second_implementation_is_heard_shown_and_substituted_from() {
    let peer = Peer::honest("second");
    let stage = Stage::new(&["honest"], 64, &[&peer]);
    stage.enter(&peer, "honest", &["a", "b", "c", "both", "later"]);
    let outcome = stage.build_under_attack("honest", "top", &["a", "b", "c", "both"]);
    assert_eq!(outcome.substituted, ["a", "b", "c", "both"], "all of it can be had");
    stage.assert_unblamed(&peer);
    let status = stage.client.status();
    let known = status.peer("second").unwrap();
    assert_eq!(known["software"], "second/1");
    assert!(known["allowed_there"] == true && known["hits"].as_u64() >= Some(3), "{known}");
    stage.finish();
}

#[test]
fn a_peer_that_follows_the_document_can_sync_pull_and_ask() {
    let peer = Peer::honest("second");
    let stage = Stage::new(&["asks"], 64, &[&peer]);
    peer.connect(&stage.client);
    let Ok(GossipReply::Sync { news, store_dir, .. }) = peer.sync(&stage.client) else { panic!("a sync is answered") };
    assert_eq!(store_dir, "/nix/store");
    let me = peer_id(&stage.client);
    let own = news.iter().filter_map(|envelope| open_envelope(envelope)).find(|(key, _)| me.to_bytes().ends_with(key));
    let (_, announcement) = own.expect("its own announcement is among the news");
    let pull = GossipRequest::Pull {
        owner: audience_digest(&me),
        epoch: announcement.epoch,
        seq: announcement.seq,
        have_seq: None,
    };
    let Ok(GossipReply::Body(body)) = peer.ask_gossip(&stage.client, &pull) else { panic!("its body is given") };
    assert_eq!(sha256(&body), announcement.body_digest);
    let nothing = peer.ask(&stage.client, NARINFO, &hash_part_bytes(&stage.path("asks", "a"))).unwrap();
    assert_eq!(nothing, crate::wire::ABSENT);
    stage.finish();
}
