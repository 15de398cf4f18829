//! Holders that name others, who have the NAR on its way.

use super::*;
use crate::source::{MeetingPlace, UpstreamId};

const CHUNK: usize = 64 << 10;

/// A holder that names the sources with these numbers, and brings 64 KiB in each `pause_ms` to who insists.
fn naming(tree: &NarTree, named: &[usize], pause_ms: u64) -> Script {
    let act = Act::Name { named: named.to_vec(), chunk: CHUNK, pause: Duration::from_millis(pause_ms) };
    Script { tree: Some(TreeAnswer::Bound(tree.clone())), ..Script::acting(vec![act]) }
}

fn hidden(script: Script) -> Script {
    Script { is_hidden: true, ..script }
}

#[tokio::test(start_paused = true)]
async fn who_is_named_is_asked_and_the_holder_sends_nothing() {
    let nar = nar_of(9 << 20, 1);
    let scripts = vec![naming(&tree_of(&nar), &[1], 1), hidden(Script::honest(1, CHUNK))];
    let (order, outcome) = deliver(&nar, scripts, 0).await;
    assert_exact(&outcome, &nar);
    assert_eq!(outcome.requests[&order[1]], [0]);
    assert_eq!(outcome.sent_bytes.get(&order[0]), None);
}

#[tokio::test(start_paused = true)]
async fn holder_is_asked_again_when_who_was_named_has_nothing_breaks_off_or_lies() {
    let nar = nar_of(9 << 20, 1);
    let (tree, pause, flip) = (tree_of(&nar), Duration::from_millis(1), 5 << 20);
    for act in [
        Act::Absent,
        Act::Refuse,
        Act::Silent,
        Act::Break { chunk: CHUNK, pause, after: 3 << 20, flips: None, how: Break::Failed },
        Act::Break { chunk: CHUNK, pause, after: 3 << 20, flips: None, how: Break::Closed },
        Act::Send { chunk: CHUNK, pause, flips: Some(flip) },
    ] {
        let lies = matches!(act, Act::Send { .. });
        let scripts = vec![naming(&tree, &[1], 1), hidden(Script::acting(vec![act.clone()]))];
        let (order, outcome) = deliver(&nar, scripts, 0).await;
        assert_exact(&outcome, &nar);
        assert!(!is_blamed(&outcome, order[0]), "{act:?}");
        assert_eq!(is_blamed(&outcome, order[1]), lies, "{act:?}");
        assert!(outcome.elapsed < 2 * STALL, "{act:?}: {:?}", outcome.elapsed);
    }
}

#[tokio::test(start_paused = true)]
async fn another_holder_is_asked_before_who_has_the_nar_on_its_way() {
    let nar = nar_of(9 << 20, 1);
    let tree = tree_of(&nar);
    let other = Script { tree: Some(TreeAnswer::Bound(tree.clone())), ..Script::honest(1, CHUNK) };
    let scripts = vec![naming(&tree, &[2], 1), other, hidden(Script::honest(1, CHUNK))];
    let (order, outcome) = deliver(&nar, scripts, 0).await;
    assert_exact(&outcome, &nar);
    assert_eq!(outcome.requests[&order[1]], [0]);
    assert_eq!(outcome.requests.get(&order[2]), None);
}

#[tokio::test(start_paused = true)]
async fn holder_that_is_quicker_than_who_was_named_goes_on() {
    let nar = nar_of(24 << 20, 1);
    let tree = tree_of(&nar);
    // Who is named brings 0.3 MB/s, the holder 6 MB/s once it is compared; so it would take 80 s, or 4.
    let compared = Act::Send { chunk: CHUNK, pause: Duration::from_millis(10), flips: None };
    let name = naming(&tree, &[1], 10).acts[0].clone();
    let holder = Script { acts: vec![name, compared], ..naming(&tree, &[1], 10) };
    let (order, outcome) = deliver(&nar, vec![holder, hidden(Script::honest(200, CHUNK))], 0).await;
    assert_exact(&outcome, &nar);
    assert!(outcome.elapsed < Duration::from_secs(12), "{:?}", outcome.elapsed);
    assert!(outcome.sent_bytes[&order[0]] > nar.len() as u64 / 2);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_taken_of_what_no_tree_proves() {
    let nar = nar_of(9 << 20, 1);
    let holder = Script { tree: None, ..naming(&tree_of(&nar), &[1], 1) };
    let (order, outcome) = deliver(&nar, vec![holder, hidden(Script::honest(1, CHUNK))], 0).await;
    assert_exact(&outcome, &nar);
    assert_eq!(outcome.sent_bytes[&order[0]], nar.len() as u64, "all of it comes from the holder");
}

#[tokio::test(start_paused = true)]
async fn holders_that_name_each_other_are_asked_in_the_end() {
    let nar = nar_of(9 << 20, 1);
    let tree = tree_of(&nar);
    let (order, outcome) = deliver(&nar, vec![naming(&tree, &[1, 0], 1), naming(&tree, &[0, 1], 1)], 0).await;
    assert_exact(&outcome, &nar);
    assert!(order.iter().all(|source| !is_blamed(&outcome, *source)));
    let asked: usize = outcome.requests.values().map(Vec::len).sum();
    assert!(asked <= 6, "{asked} requests");
}

/// A NAR of a cache, the first source, that may be met at the second one or was wanted before by it.
async fn deliver_beside_cache(nar: &[u8], scripts: Vec<Script>, is_here: bool) -> (Vec<SourceId>, Outcome) {
    let mut order: Vec<_> = scripts.iter().map(|_| SourceId::random()).collect();
    order[0] = SourceId::Upstream(UpstreamId(1));
    let place = if is_here { MeetingPlace::Here(vec![order[1]]) } else { MeetingPlace::At(order[1]) };
    let outcome = deliver_from(&order, (nar, nar), scripts, 0, None, |transfer| transfer.meet(place)).await;
    (order, outcome)
}

#[tokio::test(start_paused = true)]
async fn neighbour_that_fetches_a_nar_from_a_cache_is_asked_before_the_cache() {
    for contents in [1_500, 100_000, 9 << 20] {
        let nar = nar_of(contents, 1);
        for is_here in [true, false] {
            let scripts = vec![Script::honest(1, CHUNK), hidden(Script::honest(1, CHUNK))];
            let (order, outcome) = deliver_beside_cache(&nar, scripts, is_here).await;
            assert_exact(&outcome, &nar);
            assert_eq!(outcome.requests.get(&order[0]), None, "{contents} bytes");
        }
        // The peer where those meet names the one that fetches it.
        let names = Act::Name { named: vec![2], chunk: CHUNK, pause: Duration::from_millis(1) };
        let meeting = hidden(Script::acting(vec![names]));
        let scripts = vec![Script::honest(1, CHUNK), meeting, hidden(Script::honest(1, CHUNK))];
        let (order, outcome) = deliver_beside_cache(&nar, scripts, false).await;
        assert_exact(&outcome, &nar);
        assert_eq!(outcome.requests.get(&order[0]), None, "{contents} bytes");
    }
}

#[tokio::test(start_paused = true)]
async fn cache_goes_on_when_a_neighbour_fails_and_nobody_is_blamed_for_what_he_passed_on() {
    let pause = Duration::from_millis(1);
    for contents in [1_500, 9 << 20] {
        let nar = nar_of(contents, 1);
        let middle = nar.len() as u64 / 2;
        for act in [
            Act::Absent,
            Act::Refuse,
            Act::Silent,
            Act::Break { chunk: CHUNK, pause, after: middle, flips: None, how: Break::Failed },
            Act::Break { chunk: CHUNK, pause, after: middle, flips: None, how: Break::Closed },
        ] {
            let scripts = vec![Script::honest(1, CHUNK), hidden(Script::acting(vec![act.clone()]))];
            let (order, outcome) = deliver_beside_cache(&nar, scripts, false).await;
            assert_exact(&outcome, &nar);
            assert!(order.iter().all(|source| !is_blamed(&outcome, *source)), "{act:?}");
            assert!(outcome.elapsed < Duration::from_secs(7), "{act:?}: {:?}", outcome.elapsed);
        }
    }
    // A small one is held back, so a lie costs nothing; it is no crime, as the cache may have lied to the neighbour.
    let nar = nar_of(1_500, 1);
    let lie = Act::Send { chunk: CHUNK, pause, flips: Some(800) };
    let scripts = vec![Script::honest(1, CHUNK), hidden(Script::acting(vec![lie]))];
    let (order, outcome) = deliver_beside_cache(&nar, scripts, false).await;
    assert_exact(&outcome, &nar);
    assert!(!is_blamed(&outcome, order[1]) && outcome.suspects.contains(&order[1]));
}

#[tokio::test(start_paused = true)]
async fn cache_is_not_asked_beside_a_slow_neighbour_unless_it_is_our_turn() {
    let nar = nar_of(24 << 20, 1);
    let name = Act::Name { named: vec![2], chunk: CHUNK, pause: Duration::from_millis(1) };
    // 0.6 MB/s, while the cache brings 60.
    let slow = || hidden(Script::honest(100, CHUNK));
    let meeting = hidden(Script::acting(vec![name.clone()]));
    let scripts = vec![Script::honest(1, CHUNK), meeting, slow()];
    let (order, outcome) = deliver_beside_cache(&nar, scripts, false).await;
    assert_exact(&outcome, &nar);
    assert_eq!(outcome.requests.get(&order[0]), None, "another one compares");
    let released = hidden(Script::acting(vec![name, Act::Absent]));
    let (order, outcome) = deliver_beside_cache(&nar, vec![Script::honest(1, CHUNK), released, slow()], false).await;
    assert_exact(&outcome, &nar);
    assert!(outcome.sent_bytes[&order[0]] > nar.len() as u64 / 2, "the cache is quicker");
    assert!(outcome.elapsed < Duration::from_secs(12), "{:?}", outcome.elapsed);
}
