//! What a filter reveals, to whom, and for how long: the three questions of `docs/decisions/0013-filters-compared.md`.

use crate::net::{Net, part, peer};
use narmesh_protocol::wire::GossipReply;
use narmesh_protocol::{BitPositions, Filter, Summary};

/// Long enough for a publication, one hop of gossip and a pull.
const SOON_MS: u64 = 700;
/// A removal waits a second for others, and for 5 s after the last epoch; then it is announced and pulled.
const REMOVED_MS: u64 = 1_000 + 5_000 + SOON_MS;
const LIFETIME_MS: u64 = 4 * 3_600_000;

/// All filters that this machine was ever given, by anyone.
fn filters_given_to(net: &Net, number: u8) -> Vec<Filter> {
    let replies = net.nodes.values().flat_map(|node| &node.responses).filter(|(to, _)| *to == peer(number));
    let bodies = replies.filter_map(|(_, bytes)| match GossipReply::decode(bytes).unwrap() {
        GossipReply::Body(body) => Some(Summary::decode(&body).unwrap().filter().unwrap()),
        _ => None,
    });
    bodies.collect()
}

fn guesses(filters: &[Filter], paths: std::ops::Range<u32>) -> usize {
    let claimed = |path: &u32| filters.iter().any(|filter| filter.may_contain(&BitPositions::of(&part(*path))));
    paths.filter(claimed).count()
}

#[test]
fn a_filter_answers_every_guess_so_strangers_get_none() {
    // 1 and 2 trust each other. 3 is trusted by 2 alone, but is connected to both.
    let mut net = Net::with_trust(3, &[(1, 2), (2, 3)]);
    net.connect(1, 2);
    net.connect(2, 3);
    net.connect(1, 3);
    net.update(1, 0..500, 0..0);
    net.run(100_000);
    let of_the_friend = filters_given_to(&net, 2);
    assert_eq!(guesses(&of_the_friend, 0..500), 500, "a filter answers every right guess with yes");
    assert!(guesses(&of_the_friend, 10_000..20_000) < 100, "and nearly every wrong one with no");
    assert_eq!(guesses(&filters_given_to(&net, 3), 0..500), 0, "so it is not for others");
}

#[test]
fn a_removed_path_stays_guessable_for_seconds_or_for_a_lifetime() {
    let mut net = Net::full(3);
    net.update(1, 0..300, 0..0);
    net.run(10_000);
    net.disconnect(1, 3);
    net.disconnect(2, 3);
    net.update(1, 0..0, 0..50);
    net.run(REMOVED_MS);
    assert!((0..50).all(|path| !net.candidate(2, 1, path)), "who hears of it forgets it in seconds");
    assert!((0..50).all(|path| net.candidate(3, 1, path)), "who does not, goes on asking");
    net.run(LIFETIME_MS);
    assert!((0..300).all(|path| !net.candidate(3, 1, path)), "but not beyond the lifetime");
    // A peer that keeps the filter it was given is another matter.
    assert_eq!(guesses(&filters_given_to(&net, 3), 0..300), 300, "what was told is told for ever");
}

#[test]
fn a_distrusted_peer_keeps_what_it_knew_and_learns_nothing_new() {
    let mut net = Net::full(3);
    net.update(1, 0..300, 0..0);
    net.run(10_000);
    assert!(net.candidate(3, 1, 50));
    assert_eq!(guesses(&filters_given_to(&net, 3), 0..300), 300, "what it was given it has");
    net.clear();
    net.trust(1, &[(1, 2)]);
    net.disconnect(1, 3);
    net.update(1, 1_000..1_400, 0..0);
    net.run(100_000);
    assert!((1_000..1_400).all(|path| net.candidate(2, 1, path)), "the others hear of what is new");
    let replies = net.nodes.values().flat_map(|node| &node.responses).filter(|(to, _)| *to == peer(3));
    let told = replies.filter(|(_, bytes)| match GossipReply::decode(bytes).unwrap() {
        GossipReply::Body(_) | GossipReply::Delta(_) => true,
        GossipReply::Sync { news, .. } => !news.is_empty(),
        GossipReply::StoreDirDiffers { .. } | GossipReply::Absent | GossipReply::Busy => false,
    });
    assert_eq!(told.count(), 0, "it does not, not even from the other peer");
    net.run(LIFETIME_MS);
    assert!(!net.candidate(3, 1, 50), "its own daemon stops using it after the lifetime");
}
