//! Peers that answer with false narinfos.

use crate::formats::{Nar, NarInfo, NixKey, nix32};
use crate::peer::{Item, Move, Peer, Script};
use crate::stage::{Expect, Stage};
use crate::table::{Attack, play};
use crate::wire::{found, sha256};
use narmesh_tests::{NarInfoText, Rules, TestMesh, TestNode, sha256_hex, wait_until};
use std::net::TcpListener;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

const FALSE_NARINFO: Expect = Expect::Blamed("sent a false narinfo", "false_narinfo");
const MALFORMED: Expect = Expect::Blamed("sent a malformed reply", "malformed_reply");

fn text(change: impl Fn(NarInfo) -> NarInfo + Send + Sync + 'static) -> Script {
    Script::default().narinfo(move |item| change(item.narinfo.clone()).text().into_bytes())
}

fn raw(change: impl Fn(String) -> Vec<u8> + Send + Sync + 'static) -> Script {
    Script::default().narinfo(move |item| change(item.narinfo.text()))
}

fn reply(play: impl Fn(&Item) -> Vec<Move> + Send + Sync + 'static) -> Script {
    Script::default().narinfo_play(play)
}

/// An attack whose narinfo has a trusted key's name on a signature that does not cover it.
fn forged(name: &'static str, change: fn(NarInfo) -> NarInfo) -> Attack {
    Attack::new(name, FALSE_NARINFO, text(change))
}

/// Attacks on the signatures of a narinfo; some could come from a peer that trusts other keys than we do.
fn signatures(foreign: &NixKey) -> Vec<Attack> {
    let (key, other) = (foreign.clone(), foreign.clone());
    vec![
        Attack::new(
            "foreign-sig",
            Expect::Unblamed,
            text(move |mut narinfo| {
                narinfo.signatures.clear();
                narinfo.signed(&key)
            }),
        ),
        forged("malformed-sig", |mut narinfo| {
            narinfo.signatures = vec!["hostile-test-1:AAAA".to_owned(), "no colon".to_owned(), ":".to_owned()];
            narinfo
        }),
        forged("sigs-stripped", |mut narinfo| {
            narinfo.signatures.clear();
            narinfo
        }),
        Attack::new(
            "sigs-added",
            Expect::Unblamed,
            text(move |mut narinfo| {
                for _ in 0..40 {
                    narinfo = narinfo.signed(&other);
                }
                narinfo.signatures.insert(0, "hostile-test-1:AAAA".to_owned());
                narinfo
            }),
        )
        .takes(),
    ]
}

fn attacks(foreign: &NixKey, elsewhere: &str) -> Vec<Attack> {
    let url = elsewhere.to_owned();
    let mut attacks = signatures(foreign);
    attacks.extend([
        forged("references-changed", |mut narinfo| {
            narinfo.references.push("00000000000000000000000000000000-evil".to_owned());
            narinfo
        }),
        forged("narsize-changed", |mut narinfo| {
            narinfo.nar_size += 8;
            narinfo
        }),
        forged("narhash-changed", |mut narinfo| {
            narinfo.nar_hash[0] ^= 1;
            narinfo
        }),
        Attack::new(
            "other-hash-part",
            FALSE_NARINFO,
            text(|mut narinfo| {
                let end = narinfo.store_path.split_off("/nix/store/".len() + 32);
                narinfo.store_path = format!("/nix/store/{}{end}", "0".repeat(32));
                narinfo
            }),
        ),
        Attack::new("crlf", FALSE_NARINFO, raw(|text| text.replace('\n', "\r\n").into_bytes())),
        Attack::new("two-store-paths", FALSE_NARINFO, raw(|text| format!("{text}{text}").into_bytes())),
        Attack::new("no-text", FALSE_NARINFO, raw(|_| vec![0xff; 1_000])),
        // Unknown fields are ignored and not passed on.
        Attack::new(
            "of-1-mib",
            Expect::Unblamed,
            raw(|text| format!("{text}{}", "X: y\n".repeat(200_000)).into_bytes()),
        )
        .takes(),
        Attack::new("of-10-mb", MALFORMED, raw(|text| format!("{text}{}", "X: y\n".repeat(2_000_000)).into_bytes())),
        Attack::new("garbage-reply", MALFORMED, reply(|_| vec![Move::Send(vec![0xa5; 300])])),
        Attack::new(
            "trailing-bytes",
            MALFORMED,
            reply(|item| vec![Move::Send([found(item.narinfo.text().as_bytes()), vec![0]].concat())]),
        ),
        Attack::new(
            "url-elsewhere",
            Expect::Unblamed,
            text(move |mut narinfo| {
                narinfo.url.clone_from(&url);
                narinfo
            }),
        )
        .takes(),
        Attack::new(
            "after-the-deadline",
            Expect::Unblamed,
            reply(|item| vec![Move::Wait(Duration::from_secs(2)), Move::Send(found(item.narinfo.text().as_bytes()))]),
        ),
        Attack::new("never", Expect::Unblamed, reply(|_| vec![Move::Hold])),
    ]);
    attacks
}

#[test]
fn false_narinfos_do_no_harm() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let foreign = NixKey::new("foreign-1");
    let elsewhere = format!("http://{}/nar/evil.nar", listener.local_addr().unwrap());
    play(attacks(&foreign, &elsewhere), 64, |stage, _, tag| {
        if tag == "sigs-added" {
            let shown = NarInfoText::parse(&shown(stage, &stage.client, tag));
            assert_eq!(
                shown.signatures,
                stage.item(tag, "later").narinfo.signatures,
                "only the trusted one is handed on"
            );
        }
        if tag == "url-elsewhere" {
            assert!(!shown(stage, &stage.client, tag).contains("evil"), "our own URL is printed");
        }
        assert!(listener.accept().is_err(), "{tag}: nobody follows a URL of a peer");
    });
}

/// A correctly signed narinfo names a Deriver that is in our store and wants its output built locally, and has a content
/// address of an unknown method. No signature covers these fields.
#[test]
fn unsigned_fields_of_a_narinfo_decide_nothing() {
    let derivation = Arc::new(OnceLock::<String>::new());
    let named = Arc::clone(&derivation);
    let lie = raw(move |text| {
        let deriver = named.get().map_or("", String::as_str);
        let lies = format!("Deriver: {deriver}\nSystem: hurd\nCA: fixed:git:sha1:{}\n", "0".repeat(32));
        format!("{text}{lies}").into_bytes()
    });
    let peer = Peer::liar("false-deriver", lie);
    let stage = Stage::new(&["deriver"], 64, &[&peer]);
    let store = &stage.client.store;
    let private = store.build_one("private");
    let full = store.query(&["--query", "--deriver", &private]);
    let base = full.trim().trim_start_matches("/nix/store/").to_owned();
    assert!(base.ends_with(".drv"), "{base}");
    derivation.set(base).unwrap();
    let own = || stage.client.status().number("/own/paths");
    let before = own();
    stage.enter(&peer, "deriver", &["a", "later"]);
    let shown = shown(&stage, &stage.client, "deriver");
    assert!(!shown.contains("Deriver") && !shown.contains("CA:"), "{shown}");
    let outcome = stage.build_under_attack("deriver", "single", &["a"]);
    assert_eq!(outcome.substituted, ["a"]);
    let path = stage.path("deriver", "a");
    let known = store.query(&["--query", "--deriver", &path]);
    assert!(known.contains("unknown-deriver") || known.contains("hostile-deriver-a"), "Nix believes {known}");
    // The path, `both`, `held` and what refers to them: none of these is withheld.
    stage.client.wait_status("all of it is advertised", Duration::from_secs(5), |status| {
        status.number("/own/paths") >= before + 4
    });
    stage.assert_unblamed(&peer);
    stage.note("unsigned fields of a signed narinfo", |row| {
        row.outcome = "takes it without them; all of it is advertised".to_owned();
        row.rise_bytes = Some(outcome.rise_bytes);
    });
    stage.finish();
}

/// A liar would silence an honest builder by a false Deriver, so that nobody contradicts a builder whose word alone counts
/// for what no other has.
#[test]
fn a_false_deriver_keeps_no_builder_from_contradicting_one_with_grace() {
    const TAG: &str = "silenced";
    let derivation = Arc::new(OnceLock::<String>::new());
    let named = Arc::clone(&derivation);
    let lie = raw(move |text| format!("{text}Deriver: {}\n", named.get().map_or("", String::as_str)).into_bytes());
    let peer = Peer::liar(TAG, lie);
    let mut stage = Stage::new(&[TAG], 64, &[&peer]);
    let [mut other, mut judge] = ["other", "judge"].map(|name| stage.mesh.node(name));
    let private = stage.client.store.build_one("private");
    let full = stage.client.store.query(&["--query", "--deriver", &private]);
    derivation.set(full.trim().trim_start_matches("/nix/store/").to_owned()).unwrap();
    TestMesh::introduce(&mut [&mut stage.client, &mut other, &mut judge]);
    stage.client.reload();
    let rules = Rules::require(2, &[&stage.client, &other]).with("grace = ['other']").told_by_their_machines("judge");
    judge.follow(&rules);
    // The honest builder takes what its build needs from the liar.
    stage.enter(&peer, TAG, &["a"]);
    stage.nix_build(TAG, "varies").expect_success("nix-build at the honest builder");
    assert!(!stage.client.store.row(&stage.path(TAG, "a")).unwrap().ultimate, "it came from the liar");
    // The other one has something else, and its word alone would be enough.
    stage.build_alone(&other, TAG, "varies").expect_success("nix-build at the other builder");
    let path = stage.path(TAG, "varies");
    let hash = |node: &TestNode| node.store.row(&path).unwrap().nar_hash;
    assert_ne!(hash(&stage.client), hash(&other));
    other.start();
    for address in [stage.client.p2p_address(), other.p2p_address()].into_iter().zip(["client", "other"]) {
        judge.learn_address(address.1, &address.0);
    }
    judge.start();
    judge.wait_connected("client", true, Duration::from_secs(5));
    judge.wait_connected("other", true, Duration::from_secs(5));
    // By grace it gets what the other one alone has.
    let alone = stage.path(TAG, "b");
    stage.build_alone(&other, TAG, "b").expect_success("nix-build of what nobody else has");
    drop(judge.wait_narinfo(&alone));
    let heard = || judge.narmesh(&["quorum", "export", &path]).stdout.lines().count();
    wait_until("the judge has heard both", Duration::from_secs(20), || {
        judge.get_narinfo(&path).status == 404 && heard() > 2
    });
    assert_eq!(judge.get_narinfo(&path).status, 404, "they contradict each other");
    stage.note("a false Deriver against a quorum with grace", |row| {
        row.outcome = "the builder is not silenced; the false result is not served".to_owned();
    });
    stage.finish();
}

fn shown(stage: &Stage, client: &TestNode, tag: &str) -> String {
    let answer = client.get_narinfo(&stage.path(tag, "later"));
    assert_eq!(answer.status, 200, "{tag}: {}", answer.text());
    answer.text()
}

/// A true content address, which needs no signature, with a false NarHash, which Nix would remember for 30 days.
#[test]
fn a_false_nar_hash_with_a_true_content_address_is_refused() {
    let peer = Peer::liar("false-under-ca", Script::default());
    let stage = Stage::new(&["ca"], 64, &[&peer]);
    let leaves = ["flat1", "flat2", "flat3", "recursive"];
    let items: Vec<_> = leaves.iter().map(|leaf| content_addressed(&stage, leaf)).collect();
    stage.enter_with(&peer, &items);
    for leaf in leaves {
        let answer = stage.client.get_narinfo(&stage.path("ca", leaf));
        assert_eq!(answer.status, 404, "{leaf}: {}", answer.text());
    }
    let outcome = stage.build_under_attack("ca", "addressed", &[]);
    for (leaf, contents) in leaves.iter().zip([FLATS[0], FLATS[1], FLATS[2], RECURSIVE]) {
        let row = stage.client.store.row(&stage.path("ca", leaf)).unwrap();
        assert_eq!(row.nar_hash, format!("sha256:{}", sha256_hex(&Nar::begin().file(contents.as_bytes()).0)), "{leaf}");
    }
    stage.assert_blamed(&peer, "sent a false narinfo", "false_narinfo", 3);
    stage.assert_set_aside(&peer, "ca");
    stage.note("false-narhash-under-true-ca", |row| {
        row.outcome = "builds it".to_owned();
        (row.rise_bytes, row.set_aside) = (Some(outcome.rise_bytes), Some("after the third: false_narinfo".to_owned()));
    });
    stage.finish();
}

/// The contents of the fixed outputs in `pkgs.nix`.
const FLATS: [&str; 3] = ["flat1 of ca\n", "flat2 of ca\n", "flat3 of ca\n"];
const RECURSIVE: &str = "recursive\n";

fn content_addressed(stage: &Stage, leaf: &str) -> Item {
    let flat = leaf.starts_with("flat");
    let contents = if flat { format!("{leaf} of ca\n") } else { RECURSIVE.to_owned() };
    let truth = Nar::begin().file(contents.as_bytes()).0;
    let (digest, method) = if flat { (sha256(contents.as_bytes()), "") } else { (sha256(&truth), "r:") };
    // This NAR matches the NarHash of the narinfo, and not the content address.
    let nar = Nar::begin().file(b"something else").0;
    let narinfo = NarInfo {
        store_path: stage.path("ca", leaf),
        url: "nar/x.nar".to_owned(),
        nar_hash: sha256(&nar),
        nar_size: nar.len() as u64,
        references: Vec::new(),
        signatures: Vec::new(),
        content_address: Some(format!("fixed:{method}sha256:{}", nix32(&digest))),
    };
    Item { narinfo, nar }
}
