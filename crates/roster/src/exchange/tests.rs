//! One exchange, and peers that are played by hand.

use super::*;
use libp2p_identity::Keypair;
use narmesh_protocol::{Lineage, Member, MemberRole, NixSecretKey, Roster, Succession, node_key_of};

const NOW: Moment = Moment(5_000);

fn key(seed: u8) -> NixSecretKey {
    NixSecretKey::from_seed("home", &[seed; 32]).unwrap()
}

fn peers(count: usize) -> Vec<PeerId> {
    let mut peers: Vec<PeerId> = (0..count).map(|_| Keypair::generate_ed25519().public().to_peer_id()).collect();
    peers.sort();
    peers
}

fn signed(version: u64, members: &[PeerId]) -> Arc<SignedRoster> {
    signed_by(&key(1), version, members)
}

fn signed_by(key: &NixSecretKey, version: u64, members: &[PeerId]) -> Arc<SignedRoster> {
    signed_with_lineage(key, &Lineage::default(), version, members)
}

/// One of the key that has taken the place of key 1.
fn signed_after(seed: u8, version: u64, members: &[PeerId]) -> Arc<SignedRoster> {
    let succession = Succession::sign(&key(1), &key(seed).public().bytes(), 1);
    signed_with_lineage(&key(seed), &Lineage::default().continued(succession).unwrap(), version, members)
}

fn signed_with_lineage(key: &NixSecretKey, lineage: &Lineage, version: u64, members: &[PeerId]) -> Arc<SignedRoster> {
    let member = |(number, peer): (usize, &PeerId)| Member {
        node_key: node_key_of(peer).unwrap(),
        name: format!("machine {number}"),
        role: MemberRole::Client,
        builder_key: None,
        group: None,
        relay: false,
        ephemeral_s: 0,
        addresses: Vec::new(),
    };
    let members = members.iter().enumerate().map(member).collect();
    let roster = Roster { version, issued_at_ms: 1, members, edits: Vec::new(), removals: Vec::new() };
    Arc::new(SignedRoster::sign_with_lineage(key, lineage, roster).unwrap())
}

fn hold(exchange: &mut RosterExchange, roster: &Arc<SignedRoster>) {
    let membership = Membership { key: roster.key().clone(), roster: Some(Arc::clone(roster)) };
    exchange.handle(NOW, Input::Held(Some(membership)));
}

/// One that holds `roster` and is connected with `peers`, which were told of it.
fn exchange(roster: &Arc<SignedRoster>, peers: &[PeerId]) -> RosterExchange {
    let mut exchange = RosterExchange::new(NOW);
    hold(&mut exchange, roster);
    for peer in peers {
        exchange.handle(NOW, Input::Peer(*peer));
        let (id, _) = asked(&mut exchange).remove(0);
        exchange.handle(NOW, Input::Response { from: *peer, id, bytes: RosterReply::Same.encode().unwrap() });
    }
    exchange
}

fn outputs(exchange: &mut RosterExchange) -> Vec<Output> {
    std::iter::from_fn(|| exchange.poll()).collect()
}

/// The questions that it asks: their ids, and whom.
fn asked(exchange: &mut RosterExchange) -> Vec<(u64, PeerId)> {
    let question = |output| match output {
        Output::Request { to, id, .. } => Some((id, to)),
        _ => None,
    };
    outputs(exchange).into_iter().filter_map(question).collect()
}

fn ask(exchange: &mut RosterExchange, from: PeerId, have: RosterVersion) -> RosterReply {
    ask_of(exchange, from, 1, have)
}

/// Asks of the mesh of this key.
fn ask_of(exchange: &mut RosterExchange, from: PeerId, seed: u8, have: RosterVersion) -> RosterReply {
    let bytes = RosterRequest { mesh: key(seed).public().bytes(), have }.encode().unwrap();
    exchange.handle(NOW, Input::Request { from, id: 1, bytes });
    let Some(Output::Respond { bytes, .. }) = exchange.poll() else { panic!("no answer") };
    RosterReply::decode(&bytes).unwrap()
}

fn answer(exchange: &mut RosterExchange, from: PeerId, id: u64, reply: &RosterReply) -> Vec<Output> {
    exchange.handle(NOW, Input::Response { from, id, bytes: reply.encode().unwrap() });
    outputs(exchange)
}

#[test]
fn members_are_given_what_they_lack_and_others_nothing() {
    let all = peers(3);
    let (member, removed) = (all[0], all[2]);
    let roster = signed(2, &all[..2]);
    let mut exchange = exchange(&roster, &all);
    assert_eq!(ask(&mut exchange, member, RosterVersion::default()), RosterReply::Newer(roster.as_bytes().to_vec()));
    assert_eq!(ask(&mut exchange, member, roster.version()), RosterReply::Same);
    assert_eq!(ask(&mut exchange, removed, RosterVersion::default()), RosterReply::Absent);
    assert_eq!(ask(&mut exchange, removed, roster.version()), RosterReply::Absent);
    assert_eq!(ask(&mut exchange, member, signed(3, &all).version()), RosterReply::Older);
}

#[test]
fn of_many_who_have_a_newer_one_one_is_asked_at_a_time() {
    let all = peers(4);
    let (old, new) = (signed(1, &all), signed(2, &all));
    let mut exchange = exchange(&old, &all);
    let mut first = Vec::new();
    for peer in &all {
        assert_eq!(ask(&mut exchange, *peer, new.version()), RosterReply::Older);
        first.extend(asked(&mut exchange));
    }
    assert_eq!(first.iter().map(|(_, peer)| *peer).collect::<Vec<_>>(), all[..1]);
    // It is silent, so the next one is asked as well, and no further one at once.
    assert_eq!(exchange.deadline(), Some(NOW + PATIENCE_MS));
    exchange.handle(NOW + PATIENCE_MS, Input::Tick);
    let second = asked(&mut exchange);
    assert_eq!(second.iter().map(|(_, peer)| *peer).collect::<Vec<_>>(), all[1..2]);
    let bytes = RosterReply::Newer(new.as_bytes().to_vec()).encode().unwrap();
    exchange.handle(NOW + PATIENCE_MS, Input::Response { from: all[1], id: second[0].0, bytes });
    let heard = outputs(&mut exchange);
    assert!(
        matches!(&heard[..], [Output::Heard { from, roster }] if *from == all[1] && roster.version() == new.version())
    );
    // In force, it is told to nobody who is known to have it.
    hold(&mut exchange, &new);
    assert_eq!(asked(&mut exchange), []);
}

#[test]
fn another_roster_in_force_is_told_to_all_who_lack_it() {
    let all = peers(3);
    let mut exchange = exchange(&signed(1, &all), &all);
    hold(&mut exchange, &signed(2, &all));
    assert_eq!(asked(&mut exchange).into_iter().map(|(_, peer)| peer).collect::<Vec<_>>(), all);
    hold(&mut exchange, &signed(2, &all));
    assert_eq!(asked(&mut exchange), [], "the same one");
    exchange.handle(NOW, Input::Held(None));
    assert_eq!(exchange.deadline(), None, "of no mesh there is nothing to compare");
    assert_eq!(ask(&mut exchange, all[0], RosterVersion::default()), RosterReply::Absent);
}

#[test]
fn what_the_mesh_key_did_not_sign_and_what_is_old_is_not_heard() {
    let all = peers(3);
    let answers = |roster: &Arc<SignedRoster>| {
        let mut exchange = exchange(&signed(5, &all), &[]);
        exchange.handle(NOW, Input::Peer(all[0]));
        let (id, _) = asked(&mut exchange)[0];
        let bytes = RosterReply::Newer(roster.as_bytes().to_vec()).encode().unwrap();
        // Another peer's answer to this question is none.
        exchange.handle(NOW, Input::Response { from: all[1], id, bytes: bytes.clone() });
        assert!(outputs(&mut exchange).is_empty());
        exchange.handle(NOW, Input::Response { from: all[0], id, bytes });
        outputs(&mut exchange)
    };
    assert!(answers(&signed(4, &all)).is_empty());
    let cut = |end: usize| {
        let mut exchange = exchange(&signed(5, &all), &[]);
        exchange.handle(NOW, Input::Peer(all[0]));
        let (id, _) = asked(&mut exchange)[0];
        let bytes = RosterReply::Newer(signed(6, &all).as_bytes().to_vec()).encode().unwrap();
        exchange.handle(NOW, Input::Response { from: all[0], id, bytes: bytes[..bytes.len() - end].to_vec() });
        outputs(&mut exchange)
    };
    assert!(cut(1).is_empty(), "what ends too early may be the fault of the connection");
    let forged = answers(&signed_by(&key(2), 6, &all));
    assert!(matches!(&forged[..], [Output::Misbehaved { fault: Fault::MalformedReply, .. }]), "{forged:?}");
    assert!(matches!(&answers(&signed(6, &all))[..], [Output::Heard { .. }]));
}

#[test]
fn a_roster_of_a_later_format_is_not_heard_and_nobodys_fault() {
    let all = peers(3);
    let later = [&[3], &signed(6, &all).as_bytes()[1..]].concat();
    for reply in [RosterReply::Newer(later.clone()), RosterReply::OtherKey(later)] {
        let mut exchange = exchange(&signed(5, &all), &[]);
        exchange.handle(NOW, Input::Peer(all[0]));
        let (id, _) = asked(&mut exchange)[0];
        let told = answer(&mut exchange, all[0], id, &reply);
        assert!(told.is_empty(), "{told:?}");
    }
}

#[test]
fn nothing_is_kept_of_peers_that_are_gone() {
    let all = peers(3);
    let mut exchange = exchange(&signed(1, &all), &all);
    for peer in &all {
        assert_eq!(ask(&mut exchange, *peer, signed(9, &all).version()), RosterReply::Older);
        asked(&mut exchange);
    }
    for peer in &all {
        exchange.handle(NOW, Input::Gone(*peer));
    }
    assert!(exchange.peers.is_empty() && exchange.waiting.is_empty() && exchange.asked.deadline().is_none());
}

#[test]
fn each_minute_the_next_peer_is_asked_whatever_it_is_known_to_have() {
    let all = peers(2);
    let mut exchange = exchange(&signed(1, &all), &all);
    let mut rounds = Vec::new();
    for round in 1..=3 {
        let due = NOW + round * ROUND_MS;
        assert_eq!(exchange.deadline(), Some(due));
        exchange.handle(due, Input::Tick);
        for (id, peer) in asked(&mut exchange) {
            rounds.push(peer);
            exchange.handle(due, Input::Failed { id });
        }
    }
    assert_eq!(rounds, [all[0], all[1], all[0]]);
}

#[test]
fn who_has_the_new_mesh_key_brings_the_others_to_it_and_not_back() {
    let all = peers(3);
    let (old, new) = (signed(900, &all[..2]), signed_after(2, 2, &all[..2]));
    let given = RosterReply::Newer(new.as_bytes().to_vec());
    // One that asks with the old key is given the new roster, though its version is lower; who is no member is not.
    let mut ahead = exchange(&new, &[]);
    assert_eq!(ask(&mut ahead, all[0], old.version()), given);
    assert_eq!(ask(&mut ahead, all[2], old.version()), RosterReply::Absent);
    assert_eq!(ask_of(&mut ahead, all[0], 2, new.version()), RosterReply::Same);
    // One that is asked with a key it does not know asks in turn, once for each key, and follows.
    let mut behind = exchange(&old, &all[..1]);
    assert_eq!(ask_of(&mut behind, all[0], 2, new.version()), RosterReply::Absent);
    let (id, peer) = asked(&mut behind)[0];
    assert_eq!(peer, all[0]);
    behind.handle(NOW, Input::Failed { id });
    assert_eq!(ask_of(&mut behind, all[0], 2, new.version()), RosterReply::Absent);
    assert_eq!(asked(&mut behind), [], "it has asked");
    behind.handle(NOW, Input::Peer(all[1]));
    let (id, _) = asked(&mut behind)[0];
    let heard = answer(&mut behind, all[1], id, &given);
    assert!(matches!(&heard[..], [Output::Heard { roster, .. }] if **roster == *new), "{heard:?}");
    // What the old key signs is refused from then on, however new it is.
    hold(&mut behind, &new);
    let (id, peer) = asked(&mut behind)[0];
    let back = answer(&mut behind, peer, id, &RosterReply::Newer(old.as_bytes().to_vec()));
    assert!(matches!(&back[..], [Output::Misbehaved { fault: Fault::MalformedReply, .. }]), "{back:?}");
}

#[test]
fn an_answer_about_the_key_before_is_nobodys_fault() {
    let all = peers(2);
    let mut exchange = RosterExchange::new(NOW);
    hold(&mut exchange, &signed(4, &all));
    exchange.handle(NOW, Input::Peer(all[1]));
    let (id, _) = asked(&mut exchange).remove(0);
    // Our own `rekey`, while the answer is on its way.
    hold(&mut exchange, &signed_after(2, 5, &all));
    let (next, _) = asked(&mut exchange).remove(0);
    let of_old = RosterReply::Newer(signed(5, &all).as_bytes().to_vec());
    assert!(answer(&mut exchange, all[1], id, &of_old).is_empty(), "neither heard nor blamed");
    let blamed = |output: &Output| matches!(output, Output::Misbehaved { .. });
    assert!(answer(&mut exchange, all[1], next, &of_old).iter().any(blamed), "asked with the new key");
}

#[test]
fn two_keys_in_the_place_of_one_are_shown_once_and_change_nothing() {
    let all = peers(3);
    let (ours, theirs) = (signed_after(2, 2, &all), signed_after(3, 2, &all));
    let mut exchange = exchange(&ours, &all[..1]);
    assert_eq!(
        ask_of(&mut exchange, all[0], 3, theirs.version()),
        RosterReply::OtherKey(ours.as_bytes().to_vec()),
        "so that it sees the contradiction as well"
    );
    let (id, _) = asked(&mut exchange)[0];
    let reply = RosterReply::OtherKey(theirs.as_bytes().to_vec());
    let heard = answer(&mut exchange, all[0], id, &reply);
    assert!(matches!(&heard[..], [Output::Heard { roster, .. }] if **roster == *theirs), "{heard:?}");
    for peer in &all[1..] {
        exchange.handle(NOW, Input::Peer(*peer));
        let (id, _) = asked(&mut exchange)[0];
        assert!(answer(&mut exchange, *peer, id, &reply).is_empty(), "told once");
    }
    let forged = RosterReply::OtherKey(vec![2; 300]);
    exchange.handle(NOW, Input::Peer(all[2]));
    let (id, _) = asked(&mut exchange)[0];
    let blamed = answer(&mut exchange, all[2], id, &forged);
    assert!(matches!(&blamed[..], [Output::Misbehaved { .. }]), "{blamed:?}");
}
