//! Tests that a damaged copy is withdrawn once it was read, and not offered again before it is repaired.

use crate::harness::{Kind, PATIENCE, TestNix, info, make_writable, open_policy, read_all};
use narmesh_protocol::{HashPart, NixSecretKey};
use narmesh_store::{
    CopyFault, KeptFault, NarStreamError, Offer, OfferChange, OfferPolicy, Offering, StoreError, Withheld,
};
use std::fs;
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

fn policy() -> OfferPolicy {
    OfferPolicy { builder_key: Some(NixSecretKey::from_seed("here-1", &[7; 32]).unwrap()), ..open_policy() }
}

fn wait_for(changes: &Receiver<OfferChange>, what: &str, is_it: impl Fn(&OfferChange) -> bool) {
    let start = Instant::now();
    loop {
        match changes.recv_timeout(PATIENCE.saturating_sub(start.elapsed())) {
            Ok(change) if is_it(&change) => return,
            Ok(_) => {}
            Err(error) => panic!("not within {PATIENCE:?}: {what} ({error})"),
        }
    }
}

fn offering(offer: &Offer, part: &HashPart) -> Offering {
    offer.list().into_iter().find(|(path, _, _)| path.hash_part() == *part).unwrap().2
}

#[test]
fn damaged_copy_is_withheld_until_nix_repairs_it() {
    let nix = TestNix::new(Kind::Relocated);
    let path = nix.build("lib");
    let part = path.hash_part();
    let store = nix.open();
    let (sender, changes) = channel();
    let offer = Offer::start(store.clone(), policy(), Box::new(move |change| drop(sender.send(change)))).unwrap();
    wait_for(&changes, "the offer", |change| change.added.contains(&part));

    let file = nix.location.real_path(&path).join("lib/text");
    make_writable(&file);
    let good = fs::read(&file).unwrap();
    let mut bad = good.clone();
    bad[3] ^= 1;
    fs::write(&file, &bad).unwrap();
    fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o444)).unwrap();
    assert!(offer.find_offered(&part).unwrap().is_some(), "nobody has read it yet");
    let info = info(&store, &part);
    let refused = read_all(store.open_nar(&info).unwrap(), 4096);
    assert!(matches!(refused, Err(NarStreamError::HashMismatch { .. })), "{refused:?}");
    assert_eq!(offer.find_offered(&part).unwrap(), None, "offered at once after it failed");
    wait_for(&changes, "the withdrawal", |change| change.removed.contains(&part));
    assert!(matches!(store.open_nar(&info), Err(StoreError::CopyFailed { .. })));
    assert_eq!(offering(&offer, &part), Offering::Withheld(Withheld::CopyFailed));
    assert!(store.contains(&part), "it is valid as ever");
    // A change elsewhere in the store does not bring it back.
    let other = nix.build("file").hash_part();
    wait_for(&changes, "another path", |change| change.added.contains(&other) && !change.added.contains(&part));
    assert_eq!(offer.find_offered(&part).unwrap(), None);

    // A restart forgets it, unless it was kept.
    let kept = store.kept_fault(&part).unwrap();
    let again = nix.open();
    assert!(again.open_nar(&info).is_ok());
    assert!(!again.restore_fault(&part, KeptFault { stamp: kept.stamp ^ 1, ..kept }).unwrap(), "of another copy");
    assert!(again.open_nar(&info).is_ok());
    assert!(again.restore_fault(&part, kept).unwrap());
    assert!(matches!(again.open_nar(&info), Err(StoreError::CopyFailed { fault: CopyFault::Corrupt, .. })));
    assert_eq!(again.kept_fault(&part), Some(kept));

    nix.run("nix-store", &["--repair-path", &nix.full(&path)]);
    assert_eq!(fs::read(&file).unwrap(), good, "nix did not repair it");
    wait_for(&changes, "the repaired path", |change| change.added.contains(&part));
    assert!(offer.find_offered(&part).unwrap().is_some());
    assert!(!nix.open().restore_fault(&part, kept).unwrap(), "it was repaired");
    assert!(read_all(store.open_nar(&info).unwrap(), 4096).unwrap() == nix.dump(&path));
}

#[test]
fn missing_copy_is_offered_again_when_it_is_put_back() {
    let nix = TestNix::new(Kind::Relocated);
    let path = nix.build("file");
    let part = path.hash_part();
    let store = nix.open();
    let (sender, changes) = channel();
    let offer = Offer::start(store.clone(), policy(), Box::new(move |change| drop(sender.send(change)))).unwrap();
    wait_for(&changes, "the offer", |change| change.added.contains(&part));
    let real = nix.location.real_path(&path);
    let aside = nix.dir.path().join("aside");
    fs::rename(&real, &aside).unwrap();
    let refused = read_all(store.open_nar(&info(&store, &part)).unwrap(), 4096);
    assert!(matches!(refused, Err(NarStreamError::Io { .. })), "{refused:?}");
    wait_for(&changes, "the withdrawal", |change| change.removed.contains(&part));
    assert_eq!(offering(&offer, &part), Offering::Withheld(Withheld::CopyGone), "it is no matter of its hash");
    let again = store.open_nar(&info(&store, &part)).map(drop).unwrap_err().to_string();
    assert!(again.contains("is gone from the disk"), "{again}");
    fs::rename(&aside, &real).unwrap();
    wait_for(&changes, "its return", |change| change.added.contains(&part));
}
