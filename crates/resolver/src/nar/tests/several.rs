//! NARs that are read from several sources at once.

use super::*;

const CHUNK: usize = 64 << 10;

/// A holder behind a line of its own, which brings 64 KiB in each `pause_ms`.
fn holder(tree: &NarTree, pause_ms: u64) -> Script {
    let tree = Some(TreeAnswer::Bound(tree.clone()));
    Script { tree, is_line: true, ..Script::honest(pause_ms, CHUNK) }
}

#[tokio::test(start_paused = true)]
async fn four_holders_bring_a_large_nar_in_little_more_than_a_quarter_of_the_time() {
    let nar = nar_of(96 << 20, 1);
    let tree = tree_of(&nar);
    // 2.6 MB/s each.
    let (_, alone) = deliver(&nar, vec![holder(&tree, 25)], 0).await;
    assert_exact(&alone, &nar);
    let (order, four) = deliver(&nar, vec![holder(&tree, 25); 4], 0).await;
    assert_exact(&four, &nar);
    let ratio = alone.elapsed.as_secs_f64() / four.elapsed.as_secs_f64();
    assert!(ratio >= 3.5, "{ratio:.2} times");
    let sent: u64 = four.sent_bytes.values().sum();
    assert!(sent < nar.len() as u64 * 21 / 20, "{sent} bytes for {}", nar.len());
    assert!(order.iter().all(|source| !is_blamed(&four, *source) && !has_timed_out(&four, *source)));
}

#[tokio::test(start_paused = true)]
async fn quick_holder_is_not_slowed_by_slow_ones() {
    let nar = nar_of(48 << 20, 1);
    let tree = tree_of(&nar);
    let (_, alone) = deliver(&nar, vec![holder(&tree, 10)], 0).await;
    let slow = holder(&tree, 2_000);
    let (_, beside) = deliver(&nar, vec![holder(&tree, 10), slow.clone(), slow.clone(), slow], 0).await;
    assert_exact(&beside, &nar);
    let ratio = beside.elapsed.as_secs_f64() / alone.elapsed.as_secs_f64();
    assert!(ratio < 1.1, "{ratio:.2} times as long");
}

#[tokio::test(start_paused = true)]
async fn nar_that_ends_soon_is_read_from_one_source() {
    let nar = nar_of(24 << 20, 1);
    let tree = tree_of(&nar);
    let (order, outcome) = deliver(&nar, vec![holder(&tree, 5), holder(&tree, 5)], 0).await;
    assert_exact(&outcome, &nar);
    assert_eq!(outcome.requests.get(&order[1]), None);
}

#[tokio::test(start_paused = true)]
async fn sources_that_fail_stall_or_lie_while_several_are_read_do_no_harm() {
    let nar = nar_of(48 << 20, 1);
    let tree = tree_of(&nar);
    let (pause, at) = (Duration::from_millis(25), 30 << 20);
    let breaks = |how| Act::Break { chunk: CHUNK, pause, after: 3 << 20, flips: None, how };
    let bad = [
        breaks(Break::Closed),
        breaks(Break::Failed),
        breaks(Break::Malformed),
        breaks(Break::SaysComplete),
        Act::Send { chunk: CHUNK, pause, flips: Some(at) },
        Act::Silent,
        Act::Absent,
        Act::Refuse,
        Act::Send { chunk: 1_000, pause, flips: None },
    ];
    for act in bad {
        let script = Script { acts: vec![act.clone()], ..holder(&tree, 25) };
        let scripts = vec![holder(&tree, 25), script.clone(), holder(&tree, 25), script];
        let (order, outcome) = deliver(&nar, scripts, 0).await;
        assert_exact(&outcome, &nar);
        for honest in [order[0], order[2]] {
            assert!(!is_blamed(&outcome, honest) && !has_timed_out(&outcome, honest), "beside {act:?}");
        }
        // Two honest ones alone take some 10 s.
        assert!(outcome.elapsed < Duration::from_secs(20), "{:?} beside {act:?}", outcome.elapsed);
    }
}

#[tokio::test(start_paused = true)]
async fn source_that_takes_over_and_then_crawls_costs_little_wherever_it_does() {
    let nar = nar_of(17 << 20, 1);
    let tree = tree_of(&nar);
    // 3 MB/s.
    let honest = holder(&tree, 21);
    let (_, alone) = deliver(&nar, vec![honest.clone()], 0).await;
    assert_exact(&alone, &nar);
    let nar_bytes = nar.len() as u64;
    let mut late = Vec::new();
    for left in [1, 100, 1_000, 70_000, 140_000, 262_144, 300_000, 600_000, 3 << 20, 10 << 20] {
        for every_ms in [300, 1_500, 4_500] {
            let (pause, every) = (Duration::from_millis(1), Duration::from_millis(every_ms));
            let act = Act::Crawl { pause, at: nar_bytes - left, every };
            let crawling = Script { is_line: true, ..Script::acting(vec![act]) };
            for scripts in [vec![honest.clone(), crawling.clone()], vec![crawling, honest.clone()]] {
                let (order, outcome) = deliver(&nar, scripts, 0).await;
                assert_exact(&outcome, &nar);
                let added = outcome.elapsed.saturating_sub(alone.elapsed);
                if added >= Duration::from_secs(5) {
                    late.push(format!("{added:?} more: a byte in {every_ms} ms, {left} bytes before the end"));
                }
                assert!(order.iter().all(|source| !is_blamed(&outcome, *source)));
            }
        }
    }
    assert!(late.is_empty(), "{late:#?}");
}
