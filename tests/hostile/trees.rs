//! Holders that lie in large NARs and about their trees.

use crate::formats::hash_part_bytes;
use crate::nars::{changed, wrong_byte};
use crate::peer::{Item, Move, Peer, Script, honest_nar, peer_id};
use crate::stage::{Expect, Stage};
use crate::table::{Attack, Gets, play};
use crate::tree_wire::{
    LEAF, TREE, TREE_ABSENT, TREE_BUSY, TREE_NOT_YET, TreeRequest, binding, leaves, open_tree, signed_tree, tree_reply,
};
use crate::wire::{NAR, NAR_END, NarRequest, nar_absent, nar_chunks, nar_head, sha256};
use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use libp2p::identity::Keypair;
use narmesh_tests::{get, poll, promised};
use rustix::process::Signal;
use std::time::Duration;

/// The liar is asked for its NAR within this.
const HEARD: Duration = Duration::from_secs(4);
/// A NAR that is too large to be held back whole.
const LARGE_KIB: u32 = 66 << 10;
/// Where its wrong byte is: in the third leaf. A busy machine has ranges further on read from the honest holder as well, and
/// might never ask the liar for one that lies there.
const EARLY_PARTS: usize = 100;
/// The liar sends nothing for so long: by then the honest holder goes on again.
const AWAKE: Duration = Duration::from_millis(200);
/// The liar is looked at in one of so many trials.
const TRIALS: usize = 5;

/// The tree of the NAR that `change` makes of the true one.
fn signs(script: Script, keys: &Keypair, change: impl Fn(&mut Vec<u8>) + Send + Sync + 'static) -> Script {
    let keys = keys.clone();
    script.tree(move |item, request| {
        let mut nar = item.nar.clone();
        change(&mut nar);
        vec![Move::Send(signed_tree(&keys, &request, &nar))]
    })
}

/// Sends the NAR with a wrong byte in its third leaf.
fn wrong_leaf() -> Script {
    Script::default().nar(|item, request| {
        let sent = honest_nar(&changed(&item.nar, EARLY_PARTS), request);
        std::iter::once(Move::Wait(AWAKE)).chain(sent).collect()
    })
}

fn counter(stage: &Stage, name: &str) -> u64 {
    let metrics = get(stage.client.gateway(), "/metrics").unwrap().text();
    let line = metrics.lines().find_map(|line| line.strip_prefix(&format!("narmesh_{name}_total ")).map(str::to_owned));
    line.unwrap_or_else(|| panic!("no {name} in {metrics}")).parse().unwrap()
}

/// A liar and an honest node hold a NAR that is streamed, and the liar is asked first. Its wrong byte is found before Nix
/// sees it: one response brings the whole. On a busy machine the honest one may overtake the liar, whose bytes are then not
/// even looked at.
fn found_within_a_leaf(name: &'static str, liar: impl Fn() -> Peer) {
    assert!((0..TRIALS).any(|_| is_found(name, &liar())), "the liar never sent the first part");
}

/// Whether the liar's bytes were looked at.
fn is_found(name: &'static str, peer: &Peer) -> bool {
    let stage = Stage::new(&[name], LARGE_KIB, &[peer]);
    stage.enter_with(peer, &[stage.item(name, "both")]);
    let path = stage.path(name, "both");
    // A holder that is known to be quick is asked first, so the honest one is stopped until the liar is asked.
    stage.good.signal(Signal::STOP);
    std::thread::scope(|scope| {
        let realised = scope.spawn(|| stage.client.realise(&[path]));
        narmesh_tests::wait_until("the attack takes place", promised(HEARD), || !peer.asked().nars.is_empty());
        stage.good.signal(Signal::CONT);
        realised.join().unwrap().expect_success("an honest holder has it");
    });
    assert!(!stage.assert_right(name, "both"), "taken from a holder");
    assert_eq!(counter(&stage, "nars_aborted"), 0, "in one response");
    assert_eq!(counter(&stage, "nars_complete"), 1, "in one response");
    let is_found = counter(&stage, "nars_continued") > 0;
    if is_found {
        stage.assert_blamed(peer, "sent a false NAR", "false_nar", 1);
        stage.note(name, |row| row.outcome = "goes on with another within 256 KiB".to_owned());
    }
    stage.assert_good_unharmed();
    stage.finish();
    is_found
}

#[test]
fn a_wrong_byte_of_a_large_nar_is_found_by_the_tree_of_another_holder() {
    found_within_a_leaf("leaf-unsigned", || Peer::liar("leaf-unsigned", wrong_leaf()));
}

#[test]
fn a_wrong_byte_of_a_large_nar_is_found_by_the_liars_own_tree() {
    found_within_a_leaf("leaf-signed", || {
        let keys = Keypair::generate_ed25519();
        let script = signs(wrong_leaf(), &keys, |_| {});
        Peer::new("leaf-signed", keys, script)
    });
}

/// The only holder signs the tree of the NAR that it sends, which is not the promised one.
#[test]
fn a_false_tree_fails_no_build_and_is_blamed_on_its_author() {
    let keys = Keypair::generate_ed25519();
    let script = signs(wrong_byte(5_000), &keys, |nar| {
        let at = nar.len() / 2;
        nar[at] ^= 0x55;
    });
    let peer = Peer::new("false-tree", keys, script);
    let stage = Stage::new(&["false-tree"], 9 << 10, &[&peer]);
    stage.enter(&peer, "false-tree", &["a"]);
    let outcome = stage.build_under_attack("false-tree", "single", &["a"]);
    assert!(outcome.substituted.is_empty(), "built: the only holder lies");
    assert!(!peer.asked().trees.is_empty(), "the attack took place");
    stage.assert_blamed(&peer, "sent a false NAR", "false_nar", 1);
    stage.note("false-tree", |row| row.outcome = "builds it".to_owned());
    stage.finish();
}

/// A holder that answers requests for trees with this, and sends true NARs.
fn tree_attack(
    name: &'static str,
    expect: Expect,
    answer: impl Fn(&Item, &TreeRequest, &Keypair) -> Vec<Move> + Send + Sync + 'static,
) -> Attack {
    let keys = Keypair::generate_ed25519();
    let signer = keys.clone();
    let script = Script::default().tree(move |item, request| answer(item, &request, &signer));
    let gets = if expect == Expect::Unblamed { Gets::Takes } else { Gets::TakesSome };
    Attack { keys: Some(keys), gets, ..Attack::new(name, expect, script) }
}

#[test]
fn false_answers_about_trees_do_no_harm() {
    const MALFORMED: Expect = Expect::Blamed("sent a malformed reply", "malformed_reply");
    let sends = |bytes: Vec<u8>| vec![Move::Send(bytes)];
    let attacks = vec![
        tree_attack("tree-not-folding", MALFORMED, move |item, request, keys| {
            let mut leaves = leaves(&item.nar);
            leaves[3][0] ^= 1;
            sends(tree_reply(&binding(keys, request, blake3::hash(&item.nar).as_bytes()), &leaves))
        }),
        tree_attack("tree-too-few", MALFORMED, move |item, request, keys| {
            let leaves = leaves(&item.nar);
            let signature = binding(keys, request, blake3::hash(&item.nar[..leaves.len() / 2 * LEAF]).as_bytes());
            sends(tree_reply(&signature, &leaves[..leaves.len() / 2]))
        }),
        tree_attack("tree-of-another", MALFORMED, move |item, request, keys| {
            let other = TreeRequest { nar_hash: sha256(b"another NAR"), ..*request };
            sends(signed_tree(keys, &other, &item.nar))
        }),
        tree_attack("tree-by-another", MALFORMED, move |item, request, _| {
            sends(signed_tree(&Keypair::generate_ed25519(), request, &item.nar))
        }),
        tree_attack("tree-huge", MALFORMED, move |_, _, _| sends(tree_reply(&[1; 64], &vec![[2; 32]; 1 << 19]))),
        tree_attack("tree-garbage", MALFORMED, move |_, _, _| sends(vec![0xa5; 4_096])),
        tree_attack("tree-not-yet", Expect::Unblamed, move |_, _, _| sends(TREE_NOT_YET.to_vec())),
        tree_attack("tree-silent", Expect::Unblamed, move |_, _, _| vec![Move::Hold]),
    ];
    play(attacks, 9 << 10, |_, peer, name| assert!(!peer.asked().trees.is_empty(), "{name} took place"));
}

#[test]
fn a_daemon_signs_the_tree_of_what_it_offers_and_a_flood_of_requests_is_refused() {
    let peer = Peer::honest("tree-asker");
    let stage = Stage::new(&["asked"], 9 << 10, &[&peer]);
    stage.nix_build("asked", "single").expect_success("nix-build while nobody claims anything");
    stage.client.wait_all_advertised(&[&stage.good]);
    peer.connect(&stage.client);
    let (path, nar) = (stage.path("asked", "a"), stage.nar("asked", "a"));
    let request = TreeRequest { hash_part: hash_part_bytes(&path), nar_hash: sha256(&nar), nar_size: nar.len() as u64 };
    let ask = |request: &TreeRequest| peer.ask(&stage.client, TREE, &request.encode()).unwrap();
    let tree = poll(promised(HEARD), || open_tree(&ask(&request))).expect("it is computed in the background");
    assert_eq!(tree.1, leaves(&nar));
    let root = blake3::hash(&nar);
    let size = request.nar_size.to_le_bytes();
    let signed = [b"narmesh-nar-tree-1;", &request.nar_hash[..], &size, root.as_bytes()];
    let key = libp2p::identity::PublicKey::try_decode_protobuf(&peer_id(&stage.client).to_bytes()[2..]).unwrap();
    assert!(key.verify(&signed.concat(), &tree.0));
    // What is not offered, what is not that NAR, and what has no tree look the same.
    let never =
        TreeRequest { hash_part: hash_part_bytes("/nix/store/00000000000000000000000000000000-never"), ..request };
    for other in [never, TreeRequest { nar_hash: [7; 32], ..request }, TreeRequest { nar_size: 9, ..request }] {
        assert_eq!(ask(&other), TREE_ABSENT, "{other:?}");
    }
    // A range ends where it was said to end.
    let TreeRequest { hash_part, nar_hash, nar_size } = request;
    let range = NarRequest {
        hash_part,
        nar_hash,
        nar_size,
        offset: 100,
        end: 300,
        accept_zstd: false,
        passes_on: false,
        referral: 0,
    };
    let expected = [nar_head(false), nar_chunks(&nar[100..300]), NAR_END.to_vec()].concat();
    // The stream stays open meanwhile: whoever closes it leaves the answer.
    let exchange = |request: &NarRequest, bytes: usize| {
        let (mut stream, mut answer) = (peer.open(&stage.client, NAR).unwrap(), vec![0; bytes]);
        peer.runtime.block_on(async {
            stream.write_all(&request.frame()).await.unwrap();
            stream.flush().await.unwrap();
            stream.read_exact(&mut answer).await.unwrap();
        });
        answer
    };
    assert_eq!(exchange(&range, expected.len()), expected);
    let none = NarRequest { end: nar_size + 1, ..range };
    assert_eq!(exchange(&none, nar_absent().len()), nar_absent(), "it ends before that");
    let is_busy = (0..4_000).any(|_| ask(&request) == TREE_BUSY);
    assert!(is_busy, "requests are answered at a pace");
    stage.finish();
}
