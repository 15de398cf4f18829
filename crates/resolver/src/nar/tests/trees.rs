//! NARs whose holders signed their trees: what is wrong is found within one leaf, before Nix sees it.

use super::*;

const LEAF: u64 = 256 << 10;
const CHUNK: usize = 64 << 10;
/// Where the wrong byte is.
const WRONG_AT: u64 = 5 << 20;

/// A NAR that is streamed, and has a tree.
fn large_nar() -> Vec<u8> {
    nar_of(9 << 20, 1)
}

/// The tree of the NAR with the wrong byte.
fn false_tree(nar: &[u8]) -> NarTree {
    let mut nar = nar.to_vec();
    nar[usize::try_from(WRONG_AT).unwrap()] ^= 1;
    tree_of(&nar)
}

fn with_tree(tree: NarTree, script: Script) -> Script {
    Script { tree: Some(TreeAnswer::Bound(tree)), ..script }
}

fn honest() -> Script {
    Script::honest(1, CHUNK)
}

fn lying() -> Script {
    flipped(CHUNK, None, WRONG_AT)
}

/// Asserts that just these of the sources are blamed.
fn assert_blamed(order: &[SourceId], outcome: &Outcome, expected: &[bool]) {
    let blamed: Vec<_> = order.iter().map(|source| is_blamed(outcome, *source)).collect();
    assert_eq!(blamed, expected);
}

#[tokio::test(start_paused = true)]
async fn wrong_leaf_is_not_given_to_nix_and_its_sender_alone_is_blamed() {
    let nar = large_nar();
    let (order, outcome) = deliver(&nar, vec![lying(), with_tree(tree_of(&nar), honest())], 0).await;
    assert_exact(&outcome, &nar);
    assert_blamed(&order, &outcome, &[true, false]);
    assert_eq!(outcome.requests[&order[1]], [WRONG_AT / LEAF * LEAF], "goes on at the beginning of that leaf");
    assert!(outcome.sent_bytes[&order[0]] <= WRONG_AT + 2 * LEAF, "left within a leaf");
}

#[tokio::test(start_paused = true)]
async fn source_that_signs_one_leaf_and_sends_another_is_blamed_at_once() {
    let nar = large_nar();
    let (order, outcome) = deliver(&nar, vec![with_tree(tree_of(&nar), lying()), honest()], 0).await;
    assert_exact(&outcome, &nar);
    assert_blamed(&order, &outcome, &[true, false]);
}

#[tokio::test(start_paused = true)]
async fn false_tree_with_the_bytes_to_it_is_found_at_the_end_and_blamed_on_its_author() {
    let nar = large_nar();
    let (order, outcome) = deliver(&nar, vec![with_tree(false_tree(&nar), lying()), honest()], 0).await;
    assert_eq!((outcome.ended, outcome.aborted), (Ended::Gone, true));
    assert_blamed(&order, &outcome, &[true, false]);
}

#[tokio::test(start_paused = true)]
async fn source_of_right_bytes_is_not_blamed_when_a_false_tree_contradicts_it() {
    let nar = large_nar();
    let author = with_tree(false_tree(&nar), Script::acting(vec![Act::Absent]));
    let (order, outcome) = deliver(&nar, vec![honest(), author], 0).await;
    assert_exact(&outcome, &nar);
    assert_blamed(&order, &outcome, &[false, true]);
}

#[tokio::test(start_paused = true)]
async fn who_sent_what_a_false_tree_says_without_having_signed_it_is_not_blamed() {
    let nar = large_nar();
    // The first sends the beginning, which is right; the second one the rest, with the wrong byte, and signs it.
    let pause = Duration::from_millis(1);
    let begins = Act::Break { chunk: CHUNK, pause, after: 2 << 20, flips: None, how: Break::Failed };
    let liar = with_tree(false_tree(&nar), lying());
    let (order, outcome) = deliver(&nar, vec![Script::acting(vec![begins]), liar], 0).await;
    assert_eq!(outcome.ended, Ended::Gone);
    assert_blamed(&order, &outcome, &[false, true]);
    assert!(outcome.suspects.is_empty(), "it is known who lied");
}

#[tokio::test(start_paused = true)]
async fn tree_of_two_holders_counts_more_than_that_of_one_that_came_first() {
    let nar = large_nar();
    let liar = with_tree(false_tree(&nar), lying());
    let late = Script { tree_after: Duration::from_millis(50), ..with_tree(tree_of(&nar), honest()) };
    let (order, outcome) = deliver(&nar, vec![liar, late.clone(), late], 0).await;
    assert_exact(&outcome, &nar);
    assert_blamed(&order, &outcome, &[true, false, false]);
}

#[tokio::test(start_paused = true)]
async fn holder_that_never_has_its_tree_costs_seconds_and_no_blame() {
    let nar = large_nar();
    let (_, without) = deliver(&nar, vec![honest()], 0).await;
    let (order, outcome) = deliver(&nar, vec![Script { tree: Some(TreeAnswer::NotYet), ..honest() }], 0).await;
    assert_exact(&outcome, &nar);
    assert_blamed(&order, &outcome, &[false]);
    assert!(outcome.elapsed < without.elapsed + Duration::from_millis(3_700), "{:?}", outcome.elapsed);
}

#[tokio::test(start_paused = true)]
async fn tree_that_a_busy_holder_takes_long_to_compute_is_waited_for() {
    let nar = large_nar();
    let liar = flipped(CHUNK, None, 1_000);
    let busy = Script { tree_takes: Duration::from_secs(2), ..with_tree(tree_of(&nar), honest()) };
    let (order, outcome) = deliver(&nar, vec![liar, busy], 0).await;
    assert_exact(&outcome, &nar);
    assert_blamed(&order, &outcome, &[true, false]);
}

#[tokio::test(start_paused = true)]
async fn tree_that_comes_late_still_finds_what_is_wrong_after_it() {
    let nar = large_nar();
    let (pause, flips) = (Duration::from_millis(40), Some(8 << 20));
    let liar = Script::acting(vec![Act::Send { chunk: CHUNK, pause, flips }]);
    let late =
        Script { tree_after: Duration::from_millis(2_500), ..with_tree(tree_of(&nar), Script::honest(40, CHUNK)) };
    let (order, outcome) = deliver(&nar, vec![liar, late], 0).await;
    assert_exact(&outcome, &nar);
    // By then both are read, and the liar may not be asked for that leaf.
    assert!(!is_blamed(&outcome, order[1]));
}

#[tokio::test(start_paused = true)]
async fn author_of_a_false_tree_that_drips_does_not_keep_an_honest_source_from_going_on_for_long() {
    let nar = large_nar();
    let drips = Act::Send { chunk: 100, pause: Duration::from_secs(1), flips: Some(WRONG_AT) };
    let author = with_tree(false_tree(&nar), Script::acting(vec![drips]));
    let (order, outcome) = deliver(&nar, vec![honest(), author], 0).await;
    assert_exact(&outcome, &nar);
    assert_blamed(&order, &outcome, &[false, true]);
    assert!(outcome.elapsed < Duration::from_secs(60), "{:?}", outcome.elapsed);
}

#[tokio::test(start_paused = true)]
async fn resumed_nar_is_proven_too() {
    let nar = large_nar();
    let scripts = vec![lying(), with_tree(tree_of(&nar), honest())];
    let (order, outcome) = deliver(&nar, scripts, (6 << 20) + 100).await;
    assert_eq!((outcome.ended, outcome.aborted), (Ended::Complete, false));
    assert!(outcome.body == nar[(6 << 20) + 100..]);
    assert_blamed(&order, &outcome, &[true, false]);
}

#[tokio::test(start_paused = true)]
async fn one_honest_holder_with_a_tree_is_enough_whatever_the_others_send() {
    let nar = large_nar();
    for seed in 0..8 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut bad = || {
            let (chunk, pause) = (rng.random_range(1_000..300_000), Duration::from_millis(1));
            // Nobody can find out what is wrong before there is a tree, so all is held back until then.
            let flips = rng.random_bool(0.8).then(|| rng.random_range(100..nar.len() as u64 - 100));
            let after = rng.random_range(0..nar.len() as u64);
            let how = [Break::Closed, Break::Malformed, Break::Failed, Break::SaysComplete][rng.random_range(0..4)];
            let act = match rng.random_bool(0.5) {
                true => Act::Send { chunk, pause, flips },
                false => Act::Break { chunk, pause, after, flips, how },
            };
            let tree = rng.random_bool(0.3).then(|| TreeAnswer::Bound(tree_of(&nar)));
            Script { tree, ..Script::acting(vec![act]) }
        };
        let scripts = vec![bad(), bad(), with_tree(tree_of(&nar), honest())];
        let (order, outcome) = deliver(&nar, scripts, 0).await;
        assert_exact(&outcome, &nar);
        assert!(!is_blamed(&outcome, order[2]), "seed {seed}");
    }
}
