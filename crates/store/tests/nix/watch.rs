//! Tests that new and deleted paths are noticed as they appear and disappear.

use crate::harness::{Kind, PATIENCE, TestNix, info};
use narmesh_protocol::{HashPart, StorePath};
use narmesh_store::{NixStore, StoreChange, Watcher};
use std::collections::BTreeSet;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

fn watch(store: &Arc<NixStore>) -> (Watcher, Receiver<StoreChange>) {
    let (sender, changes) = channel();
    let watcher = store.watch(Box::new(move |change| assert!(sender.send(change).is_ok()))).unwrap();
    (watcher, changes)
}

/// Waits for a change for which `is_it` is true, and skips all others.
fn wait_for(changes: &Receiver<StoreChange>, what: &str, is_it: impl Fn(&StoreChange) -> bool) -> StoreChange {
    let start = Instant::now();
    loop {
        let left = PATIENCE.saturating_sub(start.elapsed());
        match changes.recv_timeout(left) {
            Ok(change) if is_it(&change) => return change,
            Ok(_) => {}
            Err(error) => panic!("not within {PATIENCE:?}: {what} ({error})"),
        }
    }
}

#[test]
fn builds_and_deletions_are_noticed() {
    let nix = TestNix::new(Kind::Relocated);
    let store = nix.open();
    let (watcher, changes) = watch(&store);
    let part = nix.build("file").hash_part();
    wait_for(&changes, "the build", |change| change.added.contains(&part));
    assert!(store.contains(&part));
    let path = info(&store, &part).path;
    nix.run("nix-store", &["--delete", &nix.full(&path)]);
    wait_for(&changes, "the deletion", |change| change.removed.contains(&part));
    assert!(!store.contains(&part));
    nix.build("file");
    wait_for(&changes, "the second build", |change| change.added.contains(&part));
    drop(watcher);
    assert!(changes.recv().is_err(), "the callback lives on");
}

#[test]
fn store_created_while_it_is_watched_is_noticed() {
    let nix = TestNix::new(Kind::Relocated);
    let state = nix.location.state_dir.clone();
    std::fs::remove_dir_all(&state).unwrap();
    let store = nix.open();
    let (_watcher, changes) = watch(&store);
    let part = nix.build("file").hash_part();
    wait_for(&changes, "the first path", |change| change.added.contains(&part));
    // The store is deleted and created again, so ids start at 1 again.
    std::fs::remove_dir_all(&state).unwrap();
    wait_for(&changes, "that it is gone", |change| change.removed.contains(&part));
    let other = nix.build("symlink").hash_part();
    wait_for(&changes, "the first path of the second store", |change| change.added.contains(&other));
    assert_eq!(store.read_path_info(&part).unwrap(), None);
}

#[test]
fn new_signature_is_reported_as_removal_and_addition() {
    let nix = TestNix::new(Kind::Relocated);
    let path = nix.build("file");
    let store = nix.open();
    let (_watcher, changes) = watch(&store);
    let key = nix.dir.path().join("key");
    let key = key.to_str().unwrap();
    nix.run("nix-store", &["--generate-binary-cache-key", "test-1", key, &format!("{key}.pub")]);
    nix.run("nix", &["store", "sign", "-k", key, &nix.full(&path)]);
    let part = path.hash_part();
    wait_for(&changes, "the signature", |change| change.added.contains(&part) && change.removed.contains(&part));
    assert_eq!(info(&store, &part).signatures.len(), 1);
}

/// Two readers ask without pause while Nix registers and deletes paths. No answer is an error, and none is incomplete.
#[test]
fn readers_get_right_answers_while_nix_writes() {
    let nix = TestNix::new(Kind::Relocated);
    let app = nix.build("app");
    let store = nix.open();
    let before = info(&store, &app.hash_part());
    let (_watcher, changes) = watch(&store);
    let done = AtomicBool::new(false);
    let added: BTreeSet<HashPart> = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut asked = 0_u32;
                    while !done.load(Ordering::Acquire) {
                        assert_eq!(info(&store, &app.hash_part()), before);
                        asked += 1;
                        if asked.is_multiple_of(16) {
                            store.refresh().unwrap();
                        }
                    }
                    asked
                })
            })
            .collect();
        let mut paths = Vec::new();
        for number in 0..25 {
            let file = nix.dir.path().join(format!("source-{number}"));
            std::fs::write(&file, format!("{number}")).unwrap();
            paths.push(nix.parse(&nix.run("nix-store", &["--add", file.to_str().unwrap()])));
        }
        let deleted: Vec<_> = paths.drain(..10).map(|path| nix.full(&path)).collect();
        let mut arguments = vec!["--delete"];
        arguments.extend(deleted.iter().map(String::as_str));
        let status = nix.command("nix-store", &arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
        assert!(status.unwrap().success());
        done.store(true, Ordering::Release);
        for reader in readers {
            assert!(reader.join().unwrap() > 10, "nothing was read meanwhile");
        }
        paths.iter().map(StorePath::hash_part).collect()
    });
    let mut seen = BTreeSet::new();
    while !added.iter().all(|part| seen.contains(part)) {
        let change = wait_for(&changes, "all that were added and kept", |_| true);
        for part in &change.removed {
            seen.remove(part);
        }
        seen.extend(change.added);
    }
    store.refresh().unwrap();
    assert_eq!(store.valid_paths(), nix.open().valid_paths());
}
