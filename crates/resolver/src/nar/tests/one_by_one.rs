//! NARs that are read from one source after the other.

use super::*;
use crate::source::UpstreamId;

#[tokio::test(start_paused = true)]
async fn source_that_waits_for_memory_of_ours_is_neither_left_nor_blamed() {
    let queue = (0..90).map(|_| (Duration::from_secs(1), 0)).collect();
    let script = Script { queue, without_memory: true, ..Script::honest(1, 64) };
    let nar = nar_of(4_000, 1);
    let (sources, outcome) = deliver(&nar, vec![script], 0).await;
    assert!(outcome.body == nar && !outcome.aborted, "{:?} after {:?}", outcome.ended, outcome.elapsed);
    assert_eq!(outcome.requests[&sources[0]].len(), 1, "asked once");
    assert!(!has_timed_out(&outcome, sources[0]));
}

#[tokio::test(start_paused = true)]
async fn dripping_source_is_left_for_a_quick_one() {
    for size in [1_500, 6_000, 60_000] {
        let nar = nar_of(size, 1);
        let (order, outcome) = deliver(&nar, vec![Script::honest(400, 1), Script::honest(1, 512)], 0).await;
        assert_eq!((outcome.ended, outcome.body == nar), (Ended::Complete, true), "{size}");
        assert!(outcome.elapsed < Duration::from_secs(5), "{size}: {:?}", outcome.elapsed);
        assert!(!is_blamed(&outcome, order[0]) && !is_blamed(&outcome, order[1]));
    }
}

#[tokio::test(start_paused = true)]
async fn slow_source_that_never_rests_is_left_for_a_quick_one() {
    let nar = nar_of(60_000, 1);
    let (_, outcome) = deliver(&nar, vec![Script::honest(50, 64), Script::honest(1, 512)], 0).await;
    assert_eq!((outcome.ended, outcome.body == nar), (Ended::Complete, true));
    assert!(outcome.elapsed < Duration::from_secs(10), "{:?}", outcome.elapsed);
}

#[tokio::test(start_paused = true)]
async fn only_source_is_waited_for_however_slow_it_is() {
    let nar = nar_of(1_500, 1);
    let (_, outcome) = deliver(&nar, vec![Script::honest(4_000, 8)], 0).await;
    assert_eq!((outcome.ended, outcome.body == nar), (Ended::Complete, true));
    assert!(outcome.elapsed > Duration::from_secs(600));
}

#[tokio::test(start_paused = true)]
async fn source_that_is_there_is_waited_for_until_it_can_be_asked() {
    let nar = nar_of(1_500, 1);
    for failures in [1, 4, 12] {
        let mut acts = vec![Act::Unreachable; failures];
        acts.push(Act::Send { chunk: 64, pause: Duration::from_millis(1), flips: None });
        let (order, outcome) = deliver(&nar, vec![Script::acting(acts)], 0).await;
        assert_exact(&outcome, &nar);
        assert_eq!(outcome.requests[&order[0]].len(), failures + 1);
        let said = outcome.told.iter().filter(|said| said.contains("the connection for NARs cannot be opened now"));
        assert_eq!(said.count(), 1, "said once: {:?}", outcome.told);
    }
}

#[tokio::test(start_paused = true)]
async fn nar_of_a_source_that_is_there_and_is_never_reached_is_not_gone() {
    let nar = nar_of(1_500, 1);
    for opens_after in [Duration::from_millis(5), Duration::from_secs(3), Duration::from_secs(60)] {
        let script = Script { opens_after, ..Script::acting(vec![Act::Unreachable]) };
        let (order, outcome) = deliver(&nar, vec![script], 0).await;
        assert_eq!((outcome.ended, outcome.aborted), (Ended::NotNow, true));
        // Nix's clients bear 30 s.
        assert!((Duration::from_secs(16)..Duration::from_secs(30)).contains(&outcome.elapsed), "{:?}", outcome.elapsed);
        assert!(!has_timed_out(&outcome, order[0]), "it answers narinfos, and is asked for more");
    }
}

#[tokio::test(start_paused = true)]
async fn other_sources_are_asked_before_one_that_cannot_be_reached_is_asked_again() {
    let nar = nar_of(1_500, 1);
    let slow = Script { opens_after: Duration::from_secs(3), ..Script::acting(vec![Act::Unreachable]) };
    for first in [Script::acting(vec![Act::Unreachable]), slow] {
        let (order, outcome) = deliver(&nar, vec![first, Script::honest(1, 64)], 0).await;
        assert_exact(&outcome, &nar);
        assert_eq!(outcome.requests[&order[0]].len(), 1);
        assert!(outcome.elapsed < Duration::from_secs(4), "{:?}", outcome.elapsed);
    }
}

#[tokio::test(start_paused = true)]
async fn place_in_a_queue_is_kept_while_the_queue_moves() {
    let nar = nar_of(1_500, 1);
    let queue = (1..200).rev().map(|place| (Duration::from_secs(2), place)).collect();
    let (_, outcome) = deliver(&nar, vec![Script { queue, ..Script::honest(1, 64) }], 0).await;
    assert_eq!((outcome.ended, outcome.body == nar), (Ended::Complete, true));
}

#[tokio::test(start_paused = true)]
async fn time_in_a_queue_does_not_count_as_slow_pace() {
    let queue = (1..=20).rev().map(|place| (Duration::from_secs(2), place)).collect();
    let nar = nar_of(60_000, 1);
    // If the time in the queue counted, the first bytes would promise a transfer of weeks.
    let (_, outcome) = deliver(&nar, vec![Script { queue, ..Script::honest(2, 1) }], 0).await;
    assert_eq!((outcome.ended, outcome.body == nar), (Ended::Complete, true));
}

#[tokio::test(start_paused = true)]
async fn queue_in_which_nothing_moves_is_left() {
    let nar = nar_of(1_500, 1);
    let queue = (1..1_000).map(|_| (Duration::from_secs(1), 3)).collect();
    let (order, outcome) = deliver(&nar, vec![Script { queue, ..Script::honest(1, 64) }], 0).await;
    assert_eq!(outcome.ended, Ended::Gone);
    assert!(has_timed_out(&outcome, order[0]));
    assert!(outcome.elapsed < 8 * STALL, "{:?}", outcome.elapsed);
}

#[tokio::test(start_paused = true)]
async fn honest_source_is_never_shut_out_for_the_bytes_of_another() {
    // One source flips a byte and then closes the stream; the honest one goes on, and the hash is wrong.
    for size in [1_500, 6_000] {
        let nar = nar_of(size, 1);
        let (order, outcome) = deliver(&nar, vec![flipped(64, Some(900), 300), Script::honest(1, 64)], 0).await;
        assert_eq!((outcome.ended, outcome.body == nar), (Ended::Complete, true), "{size}");
        assert!(!is_blamed(&outcome, order[1]), "{size}");
    }
}

#[tokio::test(start_paused = true)]
async fn source_that_began_a_wrong_nar_and_broke_off_is_suspect_and_the_one_that_ended_it_is_not() {
    // Held back whole, and streamed: then the body ends short.
    for (size, ended) in [(1_500, Ended::Complete), (60_000, Ended::Gone)] {
        let nar = nar_of(size, 1);
        let (order, outcome) = deliver(&nar, vec![flipped(64, Some(900), 300), Script::honest(1, 64)], 0).await;
        assert_eq!(outcome.ended, ended, "{size}");
        assert_eq!(outcome.suspects, HashSet::from([order[0]]), "{size}");
        let is_told = |said: &String| said.contains("which of them sent wrong bytes is not known");
        assert!(outcome.told.iter().any(is_told), "{:?}", outcome.told);
    }
    let nar = nar_of(6_000, 1);
    let (_, outcome) = deliver(&nar, vec![Script::honest(1, 64), Script::honest(1, 64)], 0).await;
    assert!(outcome.suspects.is_empty());
}

#[tokio::test(start_paused = true)]
async fn source_that_alone_sent_a_wrong_nar_is_blamed_and_the_next_one_saves_it() {
    for size in [1_500, 6_000] {
        let nar = nar_of(size, 1);
        let (order, outcome) = deliver(&nar, vec![flipped(64, None, 300), Script::honest(1, 64)], 0).await;
        assert_eq!((outcome.ended, outcome.body == nar), (Ended::Complete, true), "{size}");
        assert!(is_blamed(&outcome, order[0]) && !is_blamed(&outcome, order[1]));
    }
}

#[tokio::test(start_paused = true)]
async fn source_of_a_nar_that_is_too_deep_is_not_said_to_have_lied() {
    // This many directories below each other, the innermost empty.
    let deep = |directories: usize| {
        let mut nar = NAR_PREFIX.to_vec();
        token(&mut nar, b"directory");
        for _ in 1..directories {
            for word in ["entry", "(", "name", "d", "node", "(", "type", "directory"] {
                token(&mut nar, word.as_bytes());
            }
        }
        (1..directories).for_each(|_| [")", ")"].iter().for_each(|word| token(&mut nar, word.as_bytes())));
        token(&mut nar, b")");
        nar
    };
    let (_, outcome) = deliver(&deep(64), vec![Script::honest(1, 64)], 0).await;
    assert_eq!(outcome.ended, Ended::Complete);
    let (order, outcome) = deliver(&deep(66), vec![Script::honest(1, 64)], 0).await;
    assert_eq!(outcome.ended, Ended::Gone);
    assert!(outcome.observed.contains(&(order[0], Observation::DeepNar)) && !is_blamed(&outcome, order[0]));
    let is_told = |said: &String| said.contains("is not taken: it is over 64 nodes deep");
    assert!(outcome.told.iter().any(is_told), "{:?}", outcome.told);
    assert!(!outcome.told.iter().any(|said| said.contains("the hash differs")), "{:?}", outcome.told);
}

#[tokio::test(start_paused = true)]
async fn source_that_finishes_what_another_began_wrong_is_not_blamed() {
    let nar = nar_of(60_000, 1);
    let mut beginning = nar.clone();
    beginning[20_000] ^= 1;
    let (order, outcome) = deliver_after(&beginning, &nar, vec![Script::honest(1, 512)], 50_000, None).await;
    assert_eq!((outcome.ended, outcome.aborted), (Ended::Gone, true));
    assert!(!is_blamed(&outcome, order[0]));
}

#[tokio::test(start_paused = true)]
async fn wrong_byte_that_nix_has_seen_ends_the_body_short() {
    let nar = nar_of(60_000, 1);
    let (order, outcome) = deliver(&nar, vec![flipped(512, None, 300), Script::honest(1, 64)], 0).await;
    assert_eq!((outcome.ended, outcome.aborted), (Ended::Gone, true));
    assert!(outcome.body.len() < nar.len());
    assert!(is_blamed(&outcome, order[0]) && !is_blamed(&outcome, order[1]));
}

#[tokio::test(start_paused = true)]
async fn nar_that_could_be_saved_waits_for_memory_for_the_whole_while_anything_moves() {
    // Enough is free to stream it, but then Nix would see the wrong byte. The smaller one is held whole however many
    // sources it has.
    let others = Others { free_bytes: 1_024, lasting: Duration::from_secs(70), moving: true };
    for size in [1_500, 6_000] {
        let nar = nar_of(size, 1);
        let (order, outcome) = deliver_beside(others, &nar, vec![flipped(64, None, 300), Script::honest(1, 64)]).await;
        assert_eq!((outcome.ended, outcome.body == nar), (Ended::Complete, true), "{size}");
        assert!(is_blamed(&outcome, order[0]), "{size}");
        let elapsed = outcome.elapsed;
        assert!(elapsed >= others.lasting && elapsed < Duration::from_secs(75), "{size}: {elapsed:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn nar_streams_when_nothing_moves_or_its_client_cannot_wait_longer() {
    for (moving, soonest_s, latest_s) in [(false, 20, 25), (true, 80, 106)] {
        let others = Others { free_bytes: 1_024, lasting: Duration::from_secs(3_600), moving };
        for size in [1_500, 6_000] {
            let nar = nar_of(size, 1);
            let (_, outcome) = deliver_beside(others, &nar, vec![Script::honest(1, 64), Script::honest(1, 64)]).await;
            assert_eq!((outcome.ended, outcome.body == nar), (Ended::Complete, true), "{size}");
            let elapsed_s = outcome.elapsed.as_secs();
            assert!((soonest_s..latest_s).contains(&elapsed_s), "{size}, {moving}: {elapsed_s} s");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn nar_waits_for_memory_for_as_long_as_its_client_does() {
    // Longer than the client can be kept waiting, and nothing comes in meanwhile.
    let others = Others { free_bytes: 0, lasting: Duration::from_secs(600), moving: false };
    for size in [1_500, 60_000] {
        let nar = nar_of(size, 1);
        let (_, outcome) = deliver_beside(others, &nar, vec![Script::honest(1, 512)]).await;
        assert_eq!((outcome.ended, outcome.body == nar), (Ended::Complete, true), "{size}");
        assert!(outcome.elapsed >= others.lasting, "{size}: {:?}", outcome.elapsed);
    }
}

#[tokio::test(start_paused = true)]
async fn tiny_nar_does_not_wait_behind_others() {
    let others = Others { free_bytes: 0, lasting: Duration::from_secs(600), moving: false };
    let nar = nar_of(8, 1);
    assert!(nar.len() as u64 <= LIMITS.tiny, "{}", nar.len());
    let (_, outcome) = deliver_beside(others, &nar, vec![Script::honest(1, 64)]).await;
    assert_eq!((outcome.ended, outcome.body == nar), (Ended::Complete, true));
    assert!(outcome.elapsed < Duration::from_secs(1), "{:?}", outcome.elapsed);
}

#[tokio::test(start_paused = true)]
async fn nar_that_no_other_source_could_save_streams_at_once() {
    let others = Others { free_bytes: 1_024, lasting: Duration::from_secs(3_600), moving: true };
    let nar = nar_of(6_000, 1);
    let (_, outcome) = deliver_beside(others, &nar, vec![Script::honest(1, 64)]).await;
    assert_eq!((outcome.ended, outcome.body == nar), (Ended::Complete, true));
    assert!(outcome.elapsed < Duration::from_secs(5), "{:?}", outcome.elapsed);
}

#[tokio::test(start_paused = true)]
async fn source_that_comes_back_after_a_break_goes_on_at_the_same_byte() {
    let nar = nar_of(60_000, 1);
    let pause = Duration::from_millis(1);
    let acts = vec![
        Act::Break { chunk: 512, pause, after: 20_480, flips: None, how: Break::Closed },
        Act::Refuse,
        Act::Refuse,
        Act::Send { chunk: 512, pause, flips: None },
    ];
    let (order, outcome) = deliver(&nar, vec![Script::acting(acts)], 0).await;
    assert_eq!((outcome.ended, outcome.body == nar), (Ended::Complete, true));
    assert_eq!(outcome.requests[&order[0]], [0, 20_480, 20_480, 20_480]);
}

#[tokio::test(start_paused = true)]
async fn cache_that_fails_for_a_moment_is_asked_again_and_one_that_goes_on_failing_is_given_up() {
    let nar = nar_of(1_500, 1);
    let send = Act::Send { chunk: 512, pause: Duration::from_millis(1), flips: None };
    let mut acts = vec![Act::FailForNow; 6];
    acts.push(send);
    let (_, outcome) = deliver(&nar, vec![Script::acting(acts)], 0).await;
    assert_exact(&outcome, &nar);
    let (_, outcome) = deliver(&nar, vec![Script::acting(vec![Act::FailForNow])], 0).await;
    assert_eq!(outcome.ended, Ended::Gone);
    assert!(outcome.elapsed < Duration::from_secs(10), "{:?}", outcome.elapsed);
}

#[tokio::test(start_paused = true)]
async fn cache_that_breaks_off_and_is_away_for_six_seconds_goes_on_with_the_nar() {
    let nar = nar_of(6_000, 1);
    let pause = Duration::from_millis(1);
    let mut acts = vec![Act::Break { chunk: 512, pause, after: 2_000, flips: None, how: Break::Closed }];
    // After 0.1, 0.2, 0.4 and 0.8 s, and each second from then on.
    acts.extend(vec![Act::FailForNow; 9]);
    acts.push(Act::Send { chunk: 512, pause, flips: None });
    let source = SourceId::Upstream(UpstreamId(0));
    let outcome = deliver_from(&[source], (&nar, &nar), vec![Script::acting(acts)], 0, None, |_| {}).await;
    assert_exact(&outcome, &nar);
    assert!(outcome.elapsed > Duration::from_secs(6), "{:?}", outcome.elapsed);
}

#[tokio::test(start_paused = true)]
async fn slow_cache_is_left_early_for_another_one() {
    let nar = nar_of(60_000, 1);
    let caches = [0, 1].map(|number| SourceId::Upstream(UpstreamId(number)));
    // 20 s at its pace; the other one takes 0.1 s.
    let scripts = vec![Script::honest(50, 150), Script::honest(1, 512)];
    let outcome = deliver_from(&caches, (&nar, &nar), scripts, 0, None, |_| {}).await;
    assert_exact(&outcome, &nar);
    assert!(outcome.elapsed < Duration::from_secs(1), "{:?}", outcome.elapsed);
}

#[tokio::test(start_paused = true)]
async fn source_that_restarts_with_a_request_in_its_queue_is_asked_again() {
    let nar = nar_of(6_000, 1);
    let pause = Duration::from_millis(1);
    let acts = vec![
        Act::Break { chunk: 1, pause, after: 0, flips: None, how: Break::Closed },
        Act::Refuse,
        Act::Send { chunk: 512, pause, flips: None },
    ];
    let script = Script { queue: vec![(pause, 3)], ..Script::acting(acts) };
    let (order, outcome) = deliver(&nar, vec![script], 0).await;
    assert_eq!((outcome.ended, outcome.body == nar), (Ended::Complete, true));
    assert_eq!(outcome.requests[&order[0]].len(), 3);
}

#[tokio::test(start_paused = true)]
async fn only_source_that_breaks_off_after_each_byte_is_given_up() {
    let nar = nar_of(60_000, 1);
    let drip = Act::Break { chunk: 1, pause: Duration::from_secs(1), after: 1, flips: None, how: Break::Closed };
    let (_, outcome) = deliver(&nar, vec![Script::acting(vec![drip])], 0).await;
    assert_eq!(outcome.ended, Ended::Gone);
    assert!(outcome.elapsed < Duration::from_secs(60), "{:?}", outcome.elapsed);
}

#[tokio::test(start_paused = true)]
async fn nar_of_a_dead_source_is_soon_reported_as_gone() {
    let nar = nar_of(1_500, 1);
    for act in [Act::Refuse, Act::Absent, Act::Silent] {
        let (_, outcome) = deliver(&nar, vec![Script::acting(vec![act.clone()])], 0).await;
        assert_eq!(outcome.ended, Ended::Gone, "{act:?}");
        assert!(outcome.elapsed < 2 * STALL, "{act:?}: {:?}", outcome.elapsed);
    }
}

#[tokio::test(start_paused = true)]
async fn resumed_nar_is_read_from_its_checkpoint_not_from_the_beginning() {
    let nar = nar_of(60_000, 1);
    let (order, outcome) = deliver(&nar, vec![Script::honest(1, 512)], 50_000).await;
    assert_eq!((outcome.ended, outcome.body == nar[50_000..]), (Ended::Complete, true));
    assert_eq!(outcome.requests[&order[0]], [25_000]);
}

#[tokio::test(start_paused = true)]
async fn race_between_equals_wastes_little() {
    // Both take a minute, so neither is quicker.
    let nar = nar_of(60_000, 1);
    let (order, outcome) = deliver(&nar, vec![Script::honest(100, 100), Script::honest(100, 100)], 0).await;
    assert_eq!((outcome.ended, outcome.body == nar), (Ended::Complete, true));
    let sent: u64 = order.iter().map(|source| outcome.sent_bytes.get(source).copied().unwrap_or(0)).sum();
    assert!(sent * 100 < nar.len() as u64 * 115, "{sent} of {}", nar.len());
}

fn random_script(rng: &mut ChaCha8Rng, size: u64) -> Script {
    let pause = Duration::from_millis([0, 1, 10, 100, 1_000, 4_000][rng.random_range(0..6)]);
    // Slow sources send more at a time, so that every case ends.
    let chunk = rng.random_range(1..512)
        + usize::try_from(size).unwrap() * usize::try_from(pause.as_millis()).unwrap() / 60_000;
    let flips = rng.random_bool(0.15).then(|| rng.random_range(0..size));
    let act = |rng: &mut ChaCha8Rng| match rng.random_range(0..14) {
        13 => Act::Unreachable,
        12 => Act::FailForNow,
        0 => Act::Silent,
        1 => Act::Absent,
        2 => Act::Refuse,
        3..6 => {
            let how = [Break::Closed, Break::Closed, Break::Malformed, Break::Failed, Break::SaysComplete]
                [rng.random_range(0..5)];
            Act::Break { chunk, pause, after: rng.random_range(0..size), flips, how }
        }
        _ => Act::Send { chunk, pause, flips },
    };
    let acts = (0..rng.random_range(1..4)).map(|_| act(rng)).collect();
    let queue = match rng.random_range(0..4) {
        0 => (1..=rng.random_range(1..6))
            .rev()
            .map(|place| (Duration::from_millis(rng.random_range(0..4_000)), place))
            .collect(),
        _ => Vec::new(),
    };
    let opens_after = Duration::from_millis([0, 5, 200, 3_000][rng.random_range(0..4)]);
    Script { opens_after, queue, ..Script::acting(acts) }
}

/// Plays `NARMESH_TRANSFER_CASES` cases, 5,000 by default.
#[test]
fn client_gets_the_exact_nar_or_a_short_body_whatever_sources_do() {
    let cases = std::env::var("NARMESH_TRANSFER_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(5_000_u64);
    let (mut complete, mut gone) = (0, 0);
    for seed in 0..cases {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let contents = [0, 1, 300, 1_500, 3_000, 7_000, 20_000][rng.random_range(0..7)];
        let nar = nar_of(contents, u8::try_from(seed % 256).unwrap());
        let size = nar.len() as u64;
        let scripts: Vec<_> = (0..rng.random_range(1..5)).map(|_| random_script(&mut rng, size)).collect();
        let first_byte = if rng.random_bool(0.2) { rng.random_range(0..size) } else { 0 };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let (order, outcome) = runtime.block_on(deliver(&nar, scripts.clone(), first_byte));
        let wanted = &nar[usize::try_from(first_byte).unwrap()..];
        let told = format!("seed {seed}: {contents} bytes from {first_byte}, {scripts:?}");
        match outcome.ended {
            Ended::Complete => {
                complete += 1;
                assert!(outcome.body == wanted && !outcome.aborted, "a wrong body: {told}");
            }
            Ended::Gone => {
                gone += 1;
                assert!(outcome.body.len() < wanted.len() && outcome.aborted, "a complete body: {told}");
                // Nix may have seen a wrong byte of a NAR that is not held back, or not for ever.
                let is_streamed = size > LIMITS.small || outcome.elapsed >= Duration::from_secs(15);
                let may_be_spoilt = is_streamed && scripts.iter().any(Script::lies);
                let is_reliable = scripts.iter().any(Script::is_reliable);
                assert!(may_be_spoilt || !is_reliable, "reported as gone although a source sends it: {told}");
            }
            Ended::NotNow => {
                assert!(outcome.body.len() < wanted.len() && outcome.aborted, "a complete body: {told}");
                assert!(scripts.iter().any(Script::is_unreachable), "nobody is there and cannot be asked: {told}");
                assert!(!scripts.iter().any(Script::is_reliable), "although a source sends it: {told}");
            }
            Ended::HungUp => panic!("nobody hung up: {told}"),
        }
        for (source, script) in order.iter().zip(&scripts) {
            assert!(!script.is_reliable() || !is_blamed(&outcome, *source), "an honest source is blamed: {told}");
        }
    }
    assert!(complete > cases / 4 && gone > cases / 20, "both happen: {complete}, {gone}");
}
