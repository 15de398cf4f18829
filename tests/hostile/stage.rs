//! The surroundings of an attack: a daemon with a real Nix, an honest daemon beside it, and paths that only the liar claims.

use crate::formats::{Nar, NarInfo, NixKey, hash_part_bytes};
use crate::peer::{Item, Peer, peer_id};
use crate::report;
use crate::wire::{NarRequest, from_hex, sha256};
use narmesh_tests::{
    Finished, MemoryPeak, TestMesh, TestNode, finish, get, poll, promised, sha256_hex, wait_for, with_gateway,
};
use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

/// Memory that the daemon may use above idle under any attack, bytes.
const MEMORY_RISE_MAX: u64 = 64 << 20;

/// A summary is promised to be known within this.
const HEARD: Duration = Duration::from_secs(2);

/// A client, an honest node, and the key that signs what our peers claim.
pub struct Stage {
    pub mesh: TestMesh,
    pub client: TestNode,
    pub good: TestNode,
    pub key: NixKey,
    /// The client's memory before anything happened.
    idle: MemoryPeak,
    /// Measures the client from one attack to the next.
    meter: report::Meter,
    paths: BTreeMap<String, BTreeMap<String, String>>,
    kib: u32,
    tags: String,
}

/// Whether an attack is to be blamed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// The liar is blamed, in these words in `status` and with this label in `/metrics`.
    Blamed(&'static str, &'static str),
    /// The lie cannot be told from bad luck or from different trust, so nobody is blamed.
    Unblamed,
}

/// How an attack went for the client.
#[derive(Debug)]
pub struct Outcome {
    pub took: Duration,
    pub rise_bytes: u64,
    pub substituted: Vec<String>,
}

impl Stage {
    /// A client that allows `peers`, which are no daemons, and an honest node that holds `held` and `both` of every tag.
    /// Each path has `kib` KiB.
    #[track_caller]
    pub fn new(tags: &[&str], kib: u32, peers: &[&Peer]) -> Self {
        Self::with(tags, kib, peers, |_| {})
    }

    #[track_caller]
    pub fn with(tags: &[&str], kib: u32, peers: &[&Peer], change: impl FnOnce(&mut TestNode)) -> Self {
        let mesh = TestMesh::new();
        let [mut client, mut good] = ["client", "good"].map(|name| mesh.node(name));
        let key = NixKey::new("hostile-test-1");
        for peer in peers {
            client.allow(&peer.card());
        }
        client.config.trusted_public_keys.push(key.public());
        change(&mut client);
        let quoted: Vec<_> = tags.iter().map(|tag| format!("\"{tag}\"")).collect();
        let tags = format!("[{}]", quoted.join(","));
        let mut evaluate = nix(&client, "nix-instantiate", &tags, kib);
        let evaluated = finish(evaluate.args(["--eval", "--strict", "--json", "-A", "paths"]));
        let paths = serde_json::from_str(&evaluated.expect_success("nix-instantiate --eval")).unwrap();
        finish(nix(&good, "nix-build", &tags, kib).args(["-A", "honest", "--no-out-link"])).expect_success("nix-build");
        TestMesh::start_all(&mut [&mut client, &mut good]);
        good.wait_all_advertised(&[&client]);
        let idle = client.watch_memory();
        let meter = report::Meter::start(&client);
        Self { mesh, client, good, key, idle, meter, paths, kib, tags }
    }

    /// Changes the row of `attack` in the table, and adds what the client used up since the last call.
    pub fn note(&self, attack: &str, change: impl FnOnce(&mut report::Row)) {
        report::note(attack, self.meter.take(&self.client), change);
    }

    /// What the client used up since the last row.
    pub fn spent(&self) -> report::Spent {
        self.meter.take(&self.client)
    }

    pub fn path(&self, tag: &str, leaf: &str) -> String {
        self.paths[tag][leaf].clone()
    }

    /// The NAR of a leaf, as Nix makes it.
    pub fn nar(&self, tag: &str, leaf: &str) -> Vec<u8> {
        let line = format!("{tag} {leaf}\n");
        let bytes = self.kib as usize * 1_024;
        Nar::begin().file(&line.as_bytes().repeat(bytes / line.len() + 1)[..bytes]).0
    }

    /// The leaf with its true narinfo, signed by the trusted key.
    pub fn item(&self, tag: &str, leaf: &str) -> Item {
        let nar = self.nar(tag, leaf);
        let narinfo = NarInfo {
            store_path: self.path(tag, leaf),
            url: "nar/elsewhere.nar".to_owned(),
            nar_hash: sha256(&nar),
            nar_size: nar.len() as u64,
            references: Vec::new(),
            signatures: Vec::new(),
            content_address: None,
        };
        Item { narinfo: narinfo.signed(&self.key), nar }
    }

    /// Has the client build and offer `attribute`; returns a request for that NAR from its first byte.
    pub fn nar_frame(&self, attribute: &str) -> Vec<u8> {
        let path = self.client.store.build_one(attribute);
        let row = self.client.store.row(&path).unwrap();
        self.client.wait_all_advertised(&[&self.good]);
        let nar_hash = from_hex(row.nar_hash.trim_start_matches("sha256:"));
        let (hash_part, nar_size) = (hash_part_bytes(&path), row.nar_size);
        let (accept_zstd, passes_on, referral) = (false, false, 0);
        NarRequest { hash_part, nar_hash, nar_size, offset: 0, end: nar_size, accept_zstd, passes_on, referral }.frame()
    }

    /// Lets `peer` claim `leaves` of `tag`, and connects it.
    #[track_caller]
    pub fn enter(&self, peer: &Peer, tag: &str, leaves: &[&str]) {
        let items: Vec<_> = leaves.iter().map(|leaf| self.item(tag, leaf)).collect();
        self.enter_with(peer, &items);
    }

    /// Lets `peer` claim `items`, and connects it.
    #[track_caller]
    pub fn enter_with(&self, peer: &Peer, items: &[Item]) {
        peer.offer(items, &[peer_id(&self.client)]);
        peer.connect(&self.client);
        self.wait_heard(peer, items.len() as u64);
    }

    #[track_caller]
    pub fn wait_heard(&self, peer: &Peer, paths: u64) {
        self.client.wait_status(&format!("has heard of {paths} paths of {}", peer.name), HEARD, |status| {
            status.summary_paths(&peer.name) == Some(paths)
        });
    }

    /// `nix-build` of one attribute of one tag, with the gateway as the only substituter.
    pub fn nix_build(&self, tag: &str, attribute: &str) -> Finished {
        let mut command = nix(&self.client, "nix-build", &self.tags, self.kib);
        command.args(["-A", &format!("of.{tag}.{attribute}"), "--no-out-link"]);
        finish(with_gateway(&mut command, self.client.gateway(), &self.client.config.trusted_public_keys))
    }

    /// The same on another node, by itself and without any substituter.
    pub fn build_alone(&self, node: &TestNode, tag: &str, attribute: &str) -> Finished {
        let mut command = nix(node, "nix-build", &self.tags, self.kib);
        finish(command.args(["-A", &format!("of.{tag}.{attribute}"), "--no-out-link", "--option", "substituters", ""]))
    }

    /// Builds `attribute` of `tag` under attack. Asserts that it succeeds with the right contents, with only 200 and 404
    /// from the gateway, within the memory bound, and that what only the honest node holds comes from there.
    #[track_caller]
    pub fn build_under_attack(&self, tag: &str, attribute: &str, leaves: &[&str]) -> Outcome {
        // Resets the kernel's memory peak.
        drop(self.client.watch_memory());
        let prober = self.client.probe(&[]);
        let started = Instant::now();
        self.nix_build(tag, attribute).expect_success("nix-build with the gateway as the only substituter");
        let took = started.elapsed();
        prober.finish().assert_fit_for_nix(self.client.narinfo_slowest_max());
        let rise = self.idle.rise_bytes();
        assert!(rise <= MEMORY_RISE_MAX, "{tag}: {rise} bytes above idle");
        let substituted = leaves.iter().filter(|leaf| !self.assert_right(tag, leaf)).map(|leaf| (*leaf).to_owned());
        let substituted = substituted.collect();
        assert!(!self.assert_right(tag, "held"), "{tag}: the honest node's own path was not taken from it");
        self.assert_good_unharmed();
        Outcome { took, substituted, rise_bytes: rise }
    }

    /// Asserts that the leaf is in the client's store with the right contents; returns whether it was built there.
    #[track_caller]
    pub fn assert_right(&self, tag: &str, leaf: &str) -> bool {
        let row = self.client.store.row(&self.path(tag, leaf)).unwrap_or_else(|| panic!("{tag} {leaf} is not there"));
        assert_eq!(row.nar_hash, format!("sha256:{}", sha256_hex(&self.nar(tag, leaf))), "{tag} {leaf}");
        row.ultimate
    }

    /// Asserts that the honest node is connected, not blamed and not set aside.
    #[track_caller]
    pub fn assert_good_unharmed(&self) {
        let status = self.client.status();
        let good = status.peer("good").expect("on the allowlist");
        assert!(
            good["connected"] == true && good["misdeeds"] == 0 && good["set_aside_s"].is_null(),
            "the honest one suffered: {good}"
        );
    }

    /// Asserts that `peer` is blamed at least `times` times, with the reason in `status`, in the log and in `/metrics`.
    #[track_caller]
    pub fn assert_blamed(&self, peer: &Peer, words: &str, label: &str, times: u64) {
        self.assert_blamed_within(peer, words, label, times, HEARD);
    }

    #[track_caller]
    pub fn assert_blamed_within(&self, peer: &Peer, words: &str, label: &str, times: u64, bound: Duration) {
        let mut seen = None;
        let blamed = poll(promised(bound), || {
            let known = self.client.status().peer(&peer.name).expect("on the allowlist").clone();
            let blamed = known["last_misdeed"] == words && known["misdeeds"].as_u64() >= Some(times);
            seen = Some(known);
            blamed.then_some(())
        });
        assert!(blamed.is_some(), "{} is not blamed for '{words}' {times} times: {seen:?}", peer.name);
        self.client.wait_logged(&[&peer.id.to_string().to_lowercase(), &words.to_lowercase()]);
        let metrics = get(self.client.gateway(), "/metrics").unwrap().text();
        let line = format!("narmesh_peer_misdeeds_total{{peer=\"{}\",reason=\"{label}\"}} ", peer.id);
        let count = metrics.lines().find_map(|known| known.strip_prefix(&line)?.parse::<u64>().ok());
        assert!(count.is_some_and(|count| count >= times), "{line}{count:?}\n{}", grep(&metrics, "misdeeds"));
    }

    #[track_caller]
    pub fn assert_unblamed(&self, peer: &Peer) {
        let status = self.client.status();
        let known = status.peer(&peer.name).expect("on the allowlist");
        assert!(known["misdeeds"] == 0 && known["last_misdeed"].is_null(), "{known}");
    }

    /// Asserts that `peer` is set aside for up to 5 minutes, and is asked nothing although it claims `later`.
    #[track_caller]
    pub fn assert_set_aside(&self, peer: &Peer, tag: &str) {
        let status = self.client.wait_status(&format!("{} is set aside", peer.name), HEARD, |status| {
            status.peer(&peer.name).is_some_and(|known| known["set_aside_s"].as_u64().is_some())
        });
        let left_s = status.peer(&peer.name).unwrap()["set_aside_s"].as_u64().unwrap();
        assert!((200..=300).contains(&left_s), "{left_s} s");
        let before = peer.asked().count();
        self.nix_build(tag, "later").expect_success("nix-build of what only the liar claims");
        assert!(self.assert_right(tag, "later"), "built: there is nobody to be asked");
        assert_eq!(peer.asked().count(), before, "the liar is asked nothing");
    }

    /// An announcement of the honest node, as it reaches our peer.
    #[track_caller]
    pub fn envelope_of_good(&self, peer: &Peer) -> Vec<u8> {
        let good = peer_id(&self.good).to_bytes();
        wait_for("an announcement of the honest node", promised(HEARD), || {
            let announced = peer.asked().announced;
            let mine = announced.iter().find(|(author, _)| author.to_bytes() == good).map(|(_, data)| data.clone());
            if mine.is_none() {
                // Gossip carries only what is new.
                self.good.store.build_fresh(&format!("news-{}", crate::peer::now_ms()));
            }
            mine
        })
    }

    /// Asserts at the end that nothing wrong is in the store, and that the daemon never panicked.
    #[track_caller]
    pub fn finish(self) {
        self.client.store.verify_contents();
        assert_eq!(self.client.log().matches("panicked").count(), 0, "{}", self.client.log());
    }
}

fn grep(text: &str, word: &str) -> String {
    text.lines().filter(|line| line.contains(word)).collect::<Vec<_>>().join("\n")
}

fn nix(node: &TestNode, program: &str, tags: &str, kib: u32) -> Command {
    let mut command = node.store.nix(program);
    command.arg(narmesh_tests::repository_root().join("tests/hostile/pkgs.nix"));
    command.args(["--argstr", "tags", tags, "--argstr", "kib", &kib.to_string()]);
    command
}
