//! Peers that lie about what builders attest: none of their lies is kept, and they are blamed.

use crate::formats::{NixKey, hash_part_bytes};
use crate::peer::{Move, Peer, Play, Script, peer_id};
use crate::quorum_wire::{
    BUSY, QuorumRequest, ROOT, attestation, attestations, builder_digest, children, handed_over, items, only_builders,
};
use crate::stage::Stage;
use crate::wire::{QUORUM, sha256};
use narmesh_tests::{get, poll, promised, wait_for};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Time until the liar is set aside: three lies, each five seconds after the one before.
const SET_ASIDE: Duration = Duration::from_secs(15);
/// Memory that the daemon may use above idle, bytes.
const MEMORY_RISE_MAX: u64 = 64 << 20;

/// A client that counts the builder with this key, and takes the liar for the builder's node.
fn stage(tag: &str, liar: &Peer, builder: &NixKey) -> Stage {
    let counted =
        format!("\n[[builder]]\nname = 'liar'\npublic_key = '{}'\npeer = '{}'\n", builder.public(), liar.name);
    Stage::with(&[tag], 64, &[liar], |client| client.config.more = counted)
}

/// The liar says again and again that it has news, until it is set aside. Asserts that nothing it handed over was kept.
#[track_caller]
fn until_set_aside(stage: &Stage, liar: &Peer, builder: &NixKey, words: &str, label: &str) {
    let memory = stage.client.watch_memory();
    liar.connect(&stage.client);
    liar.offer(&[], &[peer_id(&stage.client)]);
    let news =
        QuorumRequest::Compare { builders: vec![builder_digest(builder)], nodes: vec![(ROOT, [9; 16])], news: true };
    let set_aside = poll(promised(SET_ASIDE), || {
        liar.ask(&stage.client, QUORUM, &news.encode()).ok();
        let status = stage.client.status();
        status.peer(&liar.name).unwrap()["set_aside_s"].as_u64()
    });
    assert!(set_aside.is_some(), "{} is not set aside: {:?}", liar.name, stage.client.status().peer(&liar.name));
    stage.assert_blamed(liar, words, label, 3);
    let before = liar.asked().attestations.len();
    for _ in 0..20 {
        liar.ask(&stage.client, QUORUM, &news.encode()).ok();
    }
    assert_eq!(liar.asked().attestations.len(), before, "who is set aside is asked nothing");
    let export = stage.client.narmesh(&["quorum", "export"]).stdout;
    assert_eq!(export.lines().count(), 1, "nothing but the header: {export}");
    let rise = memory.rise_bytes();
    assert!(rise <= MEMORY_RISE_MAX, "{rise} bytes above idle");
    stage.assert_good_unharmed();
    stage.note(&format!("attestations: {}", liar.name), |row| {
        row.rise_bytes = Some(rise);
        row.outcome = "keeps nothing of it".to_owned();
        row.set_aside = Some(format!("after the third: {label}"));
    });
}

/// A script that names an item under each tree node that it is asked about, and answers a pull with `pull`.
fn names_and_hands(pull: impl Fn(usize) -> Play + Send + Sync + 'static) -> Script {
    Script::default().quorum(move |request| match request {
        QuorumRequest::Compare { nodes, .. } => vec![Move::Send(items(nodes.len(), &[[7; 16]]))],
        QuorumRequest::Pull { wanted, .. } => pull(wanted.len()),
        QuorumRequest::Ask { .. } => vec![Move::Send(BUSY.to_vec())],
    })
}

const PATH: &str = "/nix/store/7h7qgvs4kgzsn8a6rb273saxyqh4jxlz-x";

#[test]
fn forged_and_foreign_attestations_are_not_kept() {
    let (builder, stranger) = (NixKey::new("liar-1"), NixKey::new("stranger-1"));
    let mut forged = attestation(&builder, PATH, [1; 32], 112);
    *forged.last_mut().unwrap() ^= 1;
    let foreign = attestation(&stranger, PATH, [1; 32], 112);
    for (name, tag, bytes) in [("forged", "fo", forged), ("foreign", "fr", foreign)] {
        let script = names_and_hands(move |asked| vec![Move::Send(attestations(asked, std::slice::from_ref(&bytes)))]);
        let liar = Peer::liar(name, script);
        let stage = stage(tag, &liar, &builder);
        until_set_aside(&stage, &liar, &builder, "sent a false attestation", "false_attestation");
        stage.finish();
    }
}

#[test]
fn endless_replies_and_bottomless_comparisons_are_blamed_and_not_kept() {
    let builder = NixKey::new("liar-1");
    let endless = names_and_hands(|_| vec![Move::Endless(vec![0xa5; 64 << 10], Duration::ZERO)]);
    let bottomless = Script::default().quorum(|request| match request {
        QuorumRequest::Compare { nodes, .. } => vec![Move::Send(children(nodes.len(), [5; 16]))],
        QuorumRequest::Pull { .. } | QuorumRequest::Ask { .. } => vec![Move::Send(BUSY.to_vec())],
    });
    for (name, tag, script) in [("endless", "en", endless), ("bottomless", "bo", bottomless)] {
        let liar = Peer::liar(name, script);
        let stage = stage(tag, &liar, &builder);
        until_set_aside(&stage, &liar, &builder, "sent a malformed reply", "malformed_reply");
        stage.finish();
    }
}

/// A client that lets only paths through that the builder with this key attests, and takes the peer for the builder's node.
fn demanding(tag: &str, peer: &Peer, builder: &NixKey) -> Stage {
    let policy = format!(
        "\n[quorum]\nmode = 'require'\nk = 1\n[[builder]]\nname = 'b'\npublic_key = '{}'\npeer = '{}'\n",
        builder.public(),
        peer.name
    );
    Stage::with(&[tag], 64, &[peer], |client| client.config.more = policy)
}

/// A peer that knows nothing when attestations are compared. When it is asked about a path it counts that in `asked` and
/// does what `answer` says.
fn speaks_when_asked(name: &str, asked: &Arc<AtomicUsize>, answer: impl Fn() -> Play + Send + Sync + 'static) -> Peer {
    let asked = Arc::clone(asked);
    Peer::liar(
        name,
        Script::default().quorum(move |request| match request {
            QuorumRequest::Compare { .. } => vec![Move::Send(only_builders(&[]))],
            QuorumRequest::Pull { .. } => vec![Move::Send(BUSY.to_vec())],
            QuorumRequest::Ask { .. } => {
                asked.fetch_add(1, Ordering::SeqCst);
                answer()
            }
        }),
    )
}

#[test]
fn an_attestation_that_is_told_only_on_request_counts_for_the_first_narinfo() {
    let builder = NixKey::new("asked-1");
    let (asked, said) = (Arc::new(AtomicUsize::new(0)), Arc::new(OnceLock::new()));
    let bytes = Arc::clone(&said);
    let peer = speaks_when_asked("asked", &asked, move || {
        let attested: &Vec<u8> = bytes.get().expect("said before it is asked");
        vec![Move::Send(attestations(1, std::slice::from_ref(attested)))]
    });
    let stage = demanding("asked", &peer, &builder);
    let nar = stage.nar("asked", "a");
    let path = stage.path("asked", "a");
    said.set(attestation(&builder, &path, sha256(&nar), nar.len() as u64)).unwrap();
    stage.enter(&peer, "asked", &["a", "b"]);
    assert_eq!(stage.client.narmesh(&["quorum", "export"]).stdout.lines().count(), 1, "nothing was told yet");
    assert_eq!(stage.client.get_narinfo(&path).status, 200, "{}", stage.client.log());
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    // A known attestation is not asked for again.
    assert_eq!(stage.client.get_narinfo(&path).status, 200);
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    // The peer hands over the attestation of `a`, whatever it is asked about.
    assert_eq!(stage.client.get_narinfo(&stage.path("asked", "b")).status, 404);
    stage.assert_good_unharmed();
    stage.finish();
}

#[test]
fn a_peer_silent_about_attestations_delays_a_narinfo_only_until_its_deadline() {
    let builder = NixKey::new("silent-1");
    let asked = Arc::new(AtomicUsize::new(0));
    let peer = speaks_when_asked("silent", &asked, || vec![Move::Hold]);
    let stage = demanding("silent", &peer, &builder);
    stage.enter(&peer, "silent", &["a"]);
    let path = stage.path("silent", "a");
    let started = Instant::now();
    let answer = stage.client.get_narinfo(&path);
    let took = started.elapsed();
    assert_eq!((answer.status, asked.load(Ordering::SeqCst)), (404, 1));
    assert!(took <= stage.client.narinfo_slowest_max(), "{took:?}");
    // The reason is known as soon as the answer is.
    let metrics = get(stage.client.gateway(), "/metrics").unwrap().text();
    assert!(metrics.contains("narmesh_quorum_not_given_total{reason=\"none\"} 1\n"), "{metrics}");
    let why = stage.client.narmesh(&["why", &path]).stdout;
    assert!(why.contains("no builder that counts says anything of it"), "{why}");
    stage.assert_unblamed(&peer);
    stage.finish();
}

#[test]
fn a_flood_of_attestation_requests_is_blamed() {
    let builder = NixKey::new("liar-1");
    let liar = Peer::honest("flooder");
    let stage = stage("flood", &liar, &builder);
    let memory = stage.client.watch_memory();
    liar.connect(&stage.client);
    let ask = QuorumRequest::Ask { builders: vec![builder_digest(&builder)], paths: vec![hash_part_bytes(PATH)] };
    let ask = ask.encode();
    let blamed = poll(promised(SET_ASIDE), || {
        let asks = (0..100).map(|_| {
            let (control, client, ask) = (liar.control.clone(), peer_id(&stage.client), ask.clone());
            crate::peer::timed(crate::peer::ask(control, client, QUORUM, ask))
        });
        liar.runtime.block_on(futures::future::join_all(asks));
        (stage.client.status().peer(&liar.name).unwrap()["misdeeds"].as_u64() > Some(0)).then_some(())
    });
    assert!(blamed.is_some(), "{:?}", stage.client.status().peer(&liar.name));
    stage.assert_blamed(&liar, "asked too fast", "request_flood", 1);
    let rise = memory.rise_bytes();
    assert!(rise <= MEMORY_RISE_MAX, "{rise} bytes above idle");
    stage.assert_good_unharmed();
    stage.finish();
}

#[test]
fn a_peer_outside_of_an_audience_is_told_nothing() {
    let peer = Peer::honest("outside");
    // The honest node allows the client, and not our peer.
    let mut stage = Stage::new(&["outside"], 64, &[&peer]);
    let key = stage.good.builder_key();
    stage.client.config.more = format!("\n[[builder]]\nname = 'good'\npublic_key = '{key}'\npeer = 'good'\n");
    stage.client.reload();
    let held = stage.path("outside", "held");
    wait_for("the client has what the honest node attests", promised(Duration::from_secs(3)), || {
        let export = stage.client.narmesh(&["quorum", "export"]).stdout;
        export.contains(&held).then_some(())
    });
    peer.connect(&stage.client);
    peer.offer(&[], &[peer_id(&stage.client)]);
    let digest = builder_digest_of(&stage.good.builder_key());
    let paths = vec![hash_part_bytes(&held)];
    let ask = QuorumRequest::Ask { builders: vec![digest], paths };
    let reply = peer.ask(&stage.client, QUORUM, &ask.encode()).unwrap();
    assert_eq!(handed_over(&reply), Some(Vec::new()));
    let compare = QuorumRequest::Compare { builders: vec![digest], nodes: vec![(ROOT, [9; 16])], news: true };
    let reply = peer.ask(&stage.client, QUORUM, &compare.encode()).unwrap();
    assert_eq!(reply, only_builders(&[]), "as if it knew no such builder");
    // Once the builder's node admits the peer, the peer is told.
    stage.good.allow(&peer.card());
    stage.good.reload();
    let told = poll(promised(Duration::from_secs(3)), || {
        let reply = peer.ask(&stage.client, QUORUM, &ask.encode()).unwrap();
        handed_over(&reply).filter(|handed| handed.len() == 1)
    });
    assert!(told.is_some(), "once the builder's node admits it, it is told");
    stage.assert_unblamed(&peer);
    stage.finish();
}

#[test]
fn a_client_that_starts_again_while_the_builder_is_away_tells_only_the_last_audience() {
    let [inside, outside] = ["inside", "outside"].map(Peer::honest);
    let mut stage = Stage::new(&["away"], 64, &[&inside, &outside]);
    let key = stage.good.builder_key();
    stage.good.allow(&inside.card());
    stage.good.reload();
    stage.client.config.more = format!("\n[[builder]]\nname = 'good'\npublic_key = '{key}'\npeer = 'good'\n");
    stage.client.reload();
    let paths = vec![hash_part_bytes(&stage.path("away", "held"))];
    let ask = QuorumRequest::Ask { builders: vec![builder_digest_of(&key)], paths };
    let handed = |stage: &Stage, peer: &Peer| {
        let reply = peer.ask(&stage.client, QUORUM, &ask.encode()).ok()?;
        handed_over(&reply).map(|handed| handed.len())
    };
    inside.connect(&stage.client);
    let told = poll(promised(Duration::from_secs(3)), || handed(&stage, &inside).filter(|handed| *handed == 1));
    assert!(told.is_some(), "admitted by the builder's node");

    stage.good.kill();
    stage.client.kill();
    stage.client.start();
    for peer in [&inside, &outside] {
        peer.connect(&stage.client);
    }
    let told = poll(promised(Duration::from_secs(3)), || handed(&stage, &inside).filter(|handed| *handed == 1));
    assert!(told.is_some(), "it is remembered that it was admitted");
    assert_eq!(handed(&stage, &outside), Some(0), "and that this one was not");
    let status = stage.client.status().0;
    let good = &status["builders"][0];
    assert_eq!(
        (&good["audience"], &good["told"], &good["not_told"]),
        (&"last-summary".into(), &serde_json::json!(["inside"]), &serde_json::json!(["outside"]))
    );
}

fn builder_digest_of(public_key: &str) -> [u8; 8] {
    use base64::Engine as _;
    let (_, key) = public_key.split_once(':').unwrap();
    let key = base64::engine::general_purpose::STANDARD.decode(key).unwrap();
    sha256(&key)[..8].try_into().unwrap()
}
