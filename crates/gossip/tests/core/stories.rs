//! Peers among friends.

use crate::net::{Net, part, parts, peer};
use narmesh_gossip::{Event, Input, PathChange};

#[test]
fn a_path_built_here_is_a_candidate_there() {
    let mut net = Net::full(2);
    assert!(!net.candidate(2, 1, 5));
    net.update(1, 0..10, 0..0);
    net.run(700);
    assert!((0..10).all(|path| net.candidate(2, 1, path)));
    assert_eq!(net.view(2, 1).summary.unwrap().paths, 10);
    assert!(net.nodes.values().all(|node| node.misdeeds.is_empty()));
}
