//! Any mixture of peers, upstream caches, trees, ranges and names, in virtual time, for NARs that are read leaf by leaf.

use super::*;
use crate::source::UpstreamId;

/// One case of these is as much work as this many of small NARs.
const WORK: u64 = 1_000;

fn random_large_script(rng: &mut ChaCha8Rng, trees: &[NarTree; 2], size: u64, sources: usize) -> Script {
    let chunk = [16 << 10, 64 << 10, 256 << 10][rng.random_range(0..3)];
    let pause = Duration::from_millis([1, 10, 50, 400][rng.random_range(0..4)]);
    let flips = rng.random_bool(0.2).then(|| rng.random_range(0..size));
    let act = |rng: &mut ChaCha8Rng| match rng.random_range(0..14) {
        0 => Act::Silent,
        1 => Act::Absent,
        2 => Act::Refuse,
        3..6 => {
            let how = [Break::Closed, Break::Malformed, Break::Failed, Break::SaysComplete][rng.random_range(0..4)];
            Act::Break { chunk, pause, after: rng.random_range(0..size), flips, how }
        }
        6..9 => {
            let named = (0..rng.random_range(1..4)).map(|_| rng.random_range(0..sources)).collect();
            Act::Name { named, chunk, pause }
        }
        _ => Act::Send { chunk, pause, flips },
    };
    let acts = (0..rng.random_range(1..4)).map(|_| act(rng)).collect();
    let tree = match rng.random_range(0..8) {
        0 => None,
        1 => Some(TreeAnswer::Absent),
        2 => Some(TreeAnswer::NotYet),
        3 => Some(TreeAnswer::Bound(trees[1].clone())),
        _ => Some(TreeAnswer::Bound(trees[0].clone())),
    };
    let tree_after = Duration::from_millis([1, 5, 200, 2_000][rng.random_range(0..4)]);
    let (is_line, is_hidden) = (rng.random_bool(0.5), rng.random_bool(0.2));
    Script { tree, tree_after, is_line, is_hidden, ..Script::acting(acts) }
}

/// Whether an answer of this source may mislead: by bytes, or by a tree.
fn misleads(script: &Script, right: &NarTree) -> bool {
    script.lies() || matches!(&script.tree, Some(TreeAnswer::Bound(tree)) if tree != right)
}

#[test]
fn client_gets_the_exact_nar_or_a_short_body_whatever_sources_of_all_kinds_do() {
    let cases = std::env::var("NARMESH_TRANSFER_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(10_000_u64);
    let nar = nar_of(11 << 20, 1);
    let size = nar.len() as u64;
    let mut wrong = nar.clone();
    wrong[5 << 20] ^= 1;
    let trees = [tree_of(&nar), tree_of(&wrong)];
    let mut complete = 0;
    for seed in 0..cases / WORK {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let sources = rng.random_range(1..6);
        let mut scripts: Vec<_> = (0..sources).map(|_| random_large_script(&mut rng, &trees, size, sources)).collect();
        let mut order: Vec<_> = scripts.iter().map(|_| SourceId::random()).collect();
        if rng.random_bool(0.4) {
            // An upstream cache names nobody and has no tree.
            (order[0], scripts[0].tree, scripts[0].is_hidden) = (SourceId::Upstream(UpstreamId(1)), None, false);
            scripts[0].acts.retain(|act| !matches!(act, Act::Name { .. }));
            scripts[0].acts.push(Act::Send { chunk: 64 << 10, pause: Duration::from_millis(5), flips: None });
        }
        let first_byte = if rng.random_bool(0.2) { rng.random_range(0..size) } else { 0 };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let outcome = runtime.block_on(deliver_from(&order, (&nar, &nar), scripts.clone(), first_byte, None, |_| {}));
        let wanted = &nar[usize::try_from(first_byte).unwrap()..];
        let told = || {
            let briefly =
                |script: &Script| format!("{:?} hidden {} line {}", script.acts, script.is_hidden, script.is_line);
            format!("seed {seed} from {first_byte}: {:#?}", scripts.iter().map(briefly).collect::<Vec<_>>())
        };
        let is_reliable = scripts.iter().any(|script| script.is_reliable() && !script.is_hidden);
        let may_be_misled = scripts.iter().any(|script| misleads(script, &trees[0]));
        match outcome.ended {
            Ended::Complete => {
                complete += 1;
                assert!(outcome.body == wanted && !outcome.aborted, "a wrong body: {}", told());
            }
            Ended::Gone => {
                assert!(outcome.body.len() < wanted.len() && outcome.aborted, "a complete body: {}", told());
                assert!(may_be_misled || !is_reliable, "gone although a source sends it: {}", told());
            }
            Ended::NotNow => panic!("nobody is there and cannot be asked: {}", told()),
            Ended::HungUp => panic!("nobody hung up: {}", told()),
        }
        for (source, script) in order.iter().zip(&scripts) {
            let is_honest = script.is_reliable() && !misleads(script, &trees[0]);
            assert!(!is_honest || !is_blamed(&outcome, *source), "an honest source is blamed: {}", told());
        }
    }
    assert!(complete * 3 > cases / WORK, "{complete} of {}", cases / WORK);
}
