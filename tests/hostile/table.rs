//! Attacks as rows of a table: each has its own liar, and one daemon faces all of them.

use crate::peer::{Item, Peer, Script};
use crate::stage::{Expect, Stage};
use libp2p::identity::Keypair;
use std::panic::{self, AssertUnwindSafe};
use std::time::Duration;

/// The paths that the liar claims in each attack; `later` is asked for once the liar is set aside.
const CLAIMED: [&str; 5] = ["a", "b", "c", "both", "later"];

/// Turns a true item into the one that the liar holds.
type Falsify = Box<dyn Fn(&Stage, Item) -> Item>;

/// One attack.
pub struct Attack {
    pub name: &'static str,
    pub script: Script,
    /// The liar's node key, if the script needs it.
    pub keys: Option<Keypair>,
    /// Changes the items that the liar holds.
    pub shelf: Falsify,
    pub expect: Expect,
    pub gets: Gets,
}

/// How the client gets the paths that only the liar claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gets {
    /// It builds all of them.
    Builds,
    /// It takes them from the liar, whose attack has no effect.
    Takes,
    /// It takes them from the liar until that is set aside.
    TakesSome,
}

impl Attack {
    pub fn new(name: &'static str, expect: Expect, script: Script) -> Self {
        Self { name, script, keys: None, shelf: Box::new(|_, item| item), expect, gets: Gets::Builds }
    }

    pub fn takes(mut self) -> Self {
        self.gets = Gets::Takes;
        self
    }

    pub fn shelf(mut self, shelf: impl Fn(&Stage, Item) -> Item + 'static) -> Self {
        self.shelf = Box::new(shelf);
        self
    }
}

struct Row {
    peer: Peer,
    shelf: Falsify,
    expect: Expect,
    gets: Gets,
}

/// Plays all attacks one after the other against one daemon; each liar stays connected. Calls `after` behind each.
#[track_caller]
pub fn play(attacks: Vec<Attack>, kib: u32, mut after: impl FnMut(&Stage, &Peer, &str)) {
    let mut rows = Vec::new();
    for attack in attacks {
        let Attack { name, script, keys, shelf, expect, gets } = attack;
        let keys = keys.unwrap_or_else(Keypair::generate_ed25519);
        rows.push(Row { peer: Peer::new(name, keys, script), shelf, expect, gets });
    }
    let mut tags: Vec<_> = rows.iter().map(|row| row.peer.name.clone()).collect();
    tags.push("nobody".to_owned());
    let tags: Vec<_> = tags.iter().map(String::as_str).collect();
    let liars: Vec<_> = rows.iter().map(|row| &row.peer).collect();
    let stage = Stage::with(&tags, kib, &liars, |client| client.config.compress = "always");
    let started = std::time::Instant::now();
    stage.nix_build("nobody", "top").expect_success("nix-build while nobody claims anything");
    let alone = started.elapsed();
    let mut failed = Vec::new();
    for row in &rows {
        // All rows are played, so that no defect hides another.
        let played = panic::catch_unwind(AssertUnwindSafe(|| {
            play_one(&stage, row, alone);
            after(&stage, &row.peer, &row.peer.name);
        }));
        if played.is_err() {
            failed.push(row.peer.name.clone());
        }
    }
    assert!(failed.is_empty(), "these attacks did harm: {failed:?}");
    stage.finish();
}

#[track_caller]
fn play_one(stage: &Stage, row: &Row, alone: Duration) {
    let Row { peer, shelf, expect, gets } = row;
    let tag = peer.name.as_str();
    let items: Vec<_> = CLAIMED.iter().map(|leaf| shelf(stage, stage.item(tag, leaf))).collect();
    stage.enter_with(peer, &items);
    let outcome = stage.build_under_attack(tag, "top", &["a", "b", "c"]);
    match gets {
        Gets::Builds => assert!(outcome.substituted.is_empty(), "{tag}: taken {:?}", outcome.substituted),
        Gets::TakesSome => assert!(!outcome.substituted.is_empty(), "{tag}: built all of them"),
        Gets::Takes => assert_eq!(outcome.substituted.len(), 3, "{tag}: built instead"),
    }
    stage.assert_right(tag, "both");
    match expect {
        Expect::Blamed(words, label) => {
            stage.assert_blamed(peer, words, label, 3);
            stage.assert_set_aside(peer, tag);
        }
        Expect::Unblamed => stage.assert_unblamed(peer),
    }
    stage.note(tag, |row| {
        row.outcome = if *gets == Gets::Builds { "builds it" } else { "takes it, unharmed" }.to_owned();
        row.rise_bytes = Some(outcome.rise_bytes);
        row.added = Some(outcome.took.as_secs_f64() - alone.as_secs_f64());
        row.set_aside = Some(match expect {
            Expect::Blamed(_, label) => format!("after the third: {label}"),
            Expect::Unblamed => "no: not told from an honest peer".to_owned(),
        });
    });
}
