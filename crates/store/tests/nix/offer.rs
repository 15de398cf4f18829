//! Tests which paths are offered and which are withheld.

use crate::harness::{Kind, TestNix, eventually, make_writable, open_policy};
use narmesh_protocol::{HashPart, NarInfo, NarUrl, NixSecretKey, StorePath};
use narmesh_store::{NarStreamError, Offer, OfferPolicy, Offering, Withheld};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::{Arc, Mutex};

pub(crate) fn builder() -> NixSecretKey {
    NixSecretKey::from_seed("builder-1", &[9; 32]).unwrap()
}

pub(crate) fn policy() -> OfferPolicy {
    OfferPolicy { builder_key: Some(builder()), ..open_policy() }
}

/// Starts an offer. Also returns the set of paths that its listener believes to be offered. Waits
/// until all paths are checked.
pub(crate) fn start(nix: &TestNix, policy: OfferPolicy) -> (Offer, Arc<Mutex<BTreeSet<HashPart>>>) {
    let believed = Arc::new(Mutex::new(BTreeSet::new()));
    let listener = Arc::clone(&believed);
    let offer = Offer::start(
        nix.open(),
        policy,
        Box::new(move |change| {
            let mut believed = listener.lock().unwrap();
            for part in &change.removed {
                assert!(believed.remove(part), "{part} was withdrawn twice");
            }
            for part in change.added {
                assert!(believed.insert(part), "{part} was offered twice");
            }
        }),
    )
    .unwrap();
    wait_until_told(&offer, &believed);
    (offer, believed)
}

pub(crate) fn wait_until_told(offer: &Offer, believed: &Mutex<BTreeSet<HashPart>>) {
    eventually("everything was looked at, and told", || {
        let list = offer.list();
        let offered = list.iter().filter(|line| line.2 == Offering::Offered).map(|line| line.0.hash_part()).collect();
        !offer.is_busy()
            && list.iter().all(|line| line.2 != Offering::Withheld(Withheld::Unchecked))
            && *believed.lock().unwrap() == offered
            && offer.hash_parts() == offered
    });
}

pub(crate) fn offerings(offer: &Offer) -> BTreeMap<String, Offering> {
    offer.list().into_iter().map(|(path, _, offering)| (path.name().to_owned(), offering)).collect()
}

pub(crate) fn narinfo(nix: &TestNix, offer: &Offer, path: &StorePath) -> NarInfo {
    let offered = offer.find_offered(&path.hash_part()).unwrap().unwrap_or_else(|| panic!("{path} is not offered"));
    let parsed = NarInfo::parse(&nix.location.store_dir, &offered.narinfo_text).unwrap();
    let text = String::from_utf8(offered.narinfo_text.to_vec()).unwrap();
    let url = NarUrl::new(path.hash_part(), parsed.nar_hash, parsed.nar_size);
    assert!(text.contains(&format!("\nURL: {url}\n")), "{text}");
    assert_eq!(parsed.nar_hash, offered.info.nar_hash);
    parsed
}

#[test]
fn machine_specific_paths_and_their_referrers_are_withheld() {
    let nix = TestNix::new(Kind::Relocated);
    for attribute in ["app", "top", "structured", "system", "etcd", "withsource", "fod", "multi"] {
        nix.build(attribute);
    }
    let (offer, _) = start(&nix, policy());
    let closure = Offering::Withheld(Withheld::ClosureWithheld);
    let by_default = Offering::Withheld(Withheld::ByDefault);
    let forbidden = Offering::Withheld(Withheld::SubstitutesForbidden);
    let expected = [
        ("app-1.0", Offering::Offered),
        ("lib-1.0", Offering::Offered),
        ("multi-1.0", Offering::Offered),
        ("multi-1.0-doc", Offering::Offered),
        ("etcd-1.0", Offering::Offered),
        ("fod-1.0", Offering::Offered),
        ("withsource-1.0", Offering::Offered),
        // A source is offered with the path that refers to it.
        ("a-source", Offering::Offered),
        ("local-1.0", forbidden),
        ("structured-1.0", forbidden),
        ("overlocal-1.0", closure),
        ("top-1.0", closure),
        ("unit-test.service", by_default),
        ("etc", by_default),
        ("nixos-system-host-1", by_default),
    ];
    let expected: BTreeMap<_, _> = expected.into_iter().map(|(name, offering)| (name.to_owned(), offering)).collect();
    assert_eq!(offerings(&offer), expected);
    for (path, _, offering) in offer.list() {
        assert_eq!(offer.find_offered(&path.hash_part()).unwrap().is_some(), offering == Offering::Offered, "{path}");
    }
    // No derivation is offered, although all of them are valid.
    assert!(nix.open().valid_paths() > offer.list().len());
    assert_eq!(offer.find_offered(&HashPart([3; 20])).unwrap(), None);

    let everything = OfferPolicy { withhold_defaults: false, ..policy() };
    offer.set_policy(everything);
    eventually("the defaults are lifted", || offerings(&offer).values().all(|offering| *offering == Offering::Offered));
}

#[test]
fn source_is_offered_only_with_an_offered_referrer() {
    let nix = TestNix::new(Kind::Relocated);
    let output = nix.build("withsource");
    let alone = nix.dir.path().join("alone");
    fs::write(&alone, "of nobody's business").unwrap();
    nix.run("nix-store", &["--add", alone.to_str().unwrap()]);
    let (offer, believed) = start(&nix, policy());
    let of_source = |offer: &Offer| offerings(offer)["a-source"];
    let source = offer.list().into_iter().find(|line| line.0.name() == "a-source").unwrap().0;
    assert_eq!(of_source(&offer), Offering::Offered);
    assert_eq!(offerings(&offer)["alone"], Offering::Withheld(Withheld::Source));
    let told = narinfo(&nix, &offer, &source);
    assert!(told.signatures.is_empty() && told.proven_content_address(&nix.location.store_dir).is_some());
    assert!(offer.find_nar(&source.hash_part(), |_| Some(0)).unwrap().is_some());

    // The source's own name need not be included. But it is not offered if the path that refers to it is not.
    offer.set_policy(OfferPolicy { include: vec!["withsource*".to_owned()], ..policy() });
    wait_until_told(&offer, &believed);
    assert_eq!(of_source(&offer), Offering::Offered);
    narinfo(&nix, &offer, &source);
    for withheld in [
        OfferPolicy { include: vec!["a-source".to_owned(), "alone".to_owned()], ..policy() },
        OfferPolicy { exclude: vec!["withsource*".to_owned()], ..policy() },
        OfferPolicy { builder_key: None, ..policy() },
        OfferPolicy { paths_max: 1, ..policy() },
    ] {
        offer.set_policy(withheld);
        wait_until_told(&offer, &believed);
        assert_eq!(of_source(&offer), Offering::Withheld(Withheld::Source));
        assert_eq!(offer.find_offered(&source.hash_part()).unwrap(), None);
    }
    offer.set_policy(OfferPolicy { exclude: vec!["a-source".to_owned()], ..policy() });
    wait_until_told(&offer, &believed);
    assert_eq!(offerings(&offer)["withsource-1.0"], Offering::Withheld(Withheld::ClosureWithheld));

    // A path is withheld if its source cannot be sent.
    offer.set_policy(policy());
    wait_until_told(&offer, &believed);
    let file = nix.location.real_path(&source);
    make_writable(file.parent().unwrap());
    fs::remove_file(&file).unwrap();
    fs::write(&file, "other contents").unwrap();
    let mut nar = offer.find_nar(&source.hash_part(), |_| Some(0)).unwrap().unwrap();
    assert!(nar.fill(&mut Vec::new(), 1 << 20).is_err());
    eventually("both are withheld", || {
        of_source(&offer) == Offering::Withheld(Withheld::CopyFailed)
            && offerings(&offer)["withsource-1.0"] == Offering::Withheld(Withheld::ClosureWithheld)
    });
    assert_eq!(offer.find_offered(&output.hash_part()).unwrap(), None);
}

#[test]
fn path_that_no_nar_can_hold_is_withheld_as_not_archivable() {
    let nix = TestNix::new(Kind::Relocated);
    let deep = nix.build("deep");
    let (offer, _) = start(&nix, policy());
    let mut nar = offer.find_nar(&deep.hash_part(), |_| Some(0)).unwrap().unwrap();
    assert!(matches!(nar.fill(&mut Vec::new(), 1 << 20), Err(NarStreamError::NotArchivable { .. })));
    eventually("it is withheld, and not for damage", || {
        offerings(&offer)["deep-1.0"] == Offering::Withheld(Withheld::NotArchivable)
    });
    let store = nix.open();
    let info = store.read_path_info(&deep.hash_part()).unwrap().unwrap();
    let mut again = store.open_nar(&info).unwrap();
    assert!(again.fill(&mut Vec::new(), 1 << 20).is_err());
    assert!(store.open_nar(&info).unwrap_err().to_string().ends_with("holds what a NAR cannot hold"));
}

#[test]
fn path_whose_row_gives_it_an_absurd_size_is_withheld() {
    let nix = TestNix::new(Kind::Relocated);
    let [lib, deep] = ["lib", "deep"].map(|attribute| nix.build(attribute));
    update(&nix, &lib, "narSize = 281474976710656");
    update(&nix, &deep, "narSize = 9223372036854775807");
    let (offer, believed) = start(&nix, policy());
    let offerings = offerings(&offer);
    assert_eq!(offerings["deep-1.0"], Offering::Withheld(Withheld::NarTooLarge));
    assert_eq!(offer.find_offered(&deep.hash_part()).unwrap(), None);
    assert!(
        believed.lock().unwrap().contains(&lib.hash_part()) && !believed.lock().unwrap().contains(&deep.hash_part())
    );
    assert!(offer.find_offered(&lib.hash_part()).unwrap().is_some(), "256 TiB is the most");
    // The row is read again at each request.
    update(&nix, &lib, "narSize = 281474976710657");
    assert_eq!(offer.find_offered(&lib.hash_part()).unwrap(), None);
}

/// Changes a row of the Nix database, as otherwise only Nix does.
pub(crate) fn update(nix: &TestNix, path: &StorePath, columns: &str) {
    let connection = rusqlite::Connection::open(nix.database()).unwrap();
    let changed =
        connection.execute(&format!("UPDATE ValidPaths SET {columns} WHERE path = ?1"), [&nix.full(path)]).unwrap();
    assert_eq!(changed, 1);
}

#[test]
fn unreadable_row_withholds_only_itself_and_its_referrers() {
    let nix = TestNix::new(Kind::Relocated);
    let [app, lib, _] = ["app", "lib", "file"].map(|name| nix.build(name));
    let hash = || {
        let connection = rusqlite::Connection::open(nix.database()).unwrap();
        let select = "SELECT hash FROM ValidPaths WHERE path = ?1";
        connection.query_row(select, [nix.full(&lib)], |row| row.get::<_, String>(0)).unwrap()
    };
    let right = hash();
    let (running, _) = start(&nix, OfferPolicy { exclude: vec!["lib*".to_owned()], ..policy() });
    update(&nix, &lib, "hash = 'nonsense'");
    let (started, _) = start(&nix, OfferPolicy { exclude: vec!["lib*".to_owned()], ..policy() });
    for offer in [&running, &started] {
        eventually("nothing is known of it", || {
            offerings(offer)["lib-1.0"] == Offering::Withheld(Withheld::RowUnreadable)
        });
        eventually("nor of what refers to it", || {
            offerings(offer)["app-1.0"] == Offering::Withheld(Withheld::ClosureUnreadable)
        });
        assert_eq!(offerings(offer)["file-1.0"], Offering::Offered);
        assert_eq!(offer.find_offered(&app.hash_part()).unwrap(), None);
        offer.set_policy(policy());
    }
    update(&nix, &lib, &format!("hash = '{right}'"));
    for offer in [&running, &started] {
        eventually("it can be read again", || offerings(offer).values().all(|it| *it == Offering::Offered));
    }
}

#[test]
fn patterns_decide_by_name() {
    let nix = TestNix::new(Kind::Relocated);
    let app = nix.build("app");
    nix.build("file");
    let (offer, believed) = start(&nix, policy());
    assert_eq!(believed.lock().unwrap().len(), 3);
    offer.set_policy(OfferPolicy { include: vec!["app-?.?".to_owned()], ..policy() });
    assert_eq!(offer.hash_parts(), BTreeSet::from([app.hash_part()]), "at once");
    wait_until_told(&offer, &believed);
    assert_eq!(offerings(&offer)["lib-1.0"], Offering::Withheld(Withheld::NotIncluded));
    // Whatever refers to an excluded path is withheld too.
    offer.set_policy(OfferPolicy { exclude: vec!["lib*".to_owned()], withhold_defaults: false, ..policy() });
    assert_eq!(offer.find_offered(&app.hash_part()).unwrap(), None, "at once");
    wait_until_told(&offer, &believed);
    assert_eq!(offerings(&offer)["app-1.0"], Offering::Withheld(Withheld::ClosureWithheld));
    assert_eq!(offerings(&offer)["file-1.0"], Offering::Offered);
    offer.set_policy(policy());
    eventually("all are back", || offer.hash_parts().len() == 3);
}

#[test]
fn each_request_checks_the_row_again() {
    let nix = TestNix::new(Kind::Relocated);
    let path = nix.build("file");
    let (offer, believed) = start(&nix, policy());
    let first = offer.find_offered(&path.hash_part()).unwrap().unwrap();
    let second = offer.find_offered(&path.hash_part()).unwrap().unwrap();
    assert!(Arc::ptr_eq(&first, &second), "rendered and signed twice");
    // A change of another path does not make this one be rendered again.
    nix.build("empty");
    assert!(
        Arc::ptr_eq(&first, &offer.find_offered(&path.hash_part()).unwrap().unwrap()),
        "rendered anew for another path"
    );
    nix.run("nix-store", &["--delete", &nix.full(&path)]);
    assert_eq!(offer.find_offered(&path.hash_part()).unwrap(), None, "offered though the row is gone");
    wait_until_told(&offer, &believed);
    // The same path with another NarHash, as a repair from elsewhere would leave it.
    nix.build("file");
    eventually("it is back", || offer.find_offered(&path.hash_part()).unwrap().is_some());
    let connection = rusqlite::Connection::open(nix.database()).unwrap();
    let other = format!("sha256:{}", "1".repeat(64));
    connection.execute("UPDATE ValidPaths SET hash = ?1 WHERE path = ?2", [&other, &nix.full(&path)]).unwrap();
    let now = offer.find_offered(&path.hash_part()).unwrap().unwrap();
    assert_ne!(now.info.nar_hash, first.info.nar_hash);
    assert!(offer.find_offered(&path.hash_part()).unwrap().unwrap().narinfo_text != first.narinfo_text);
}

#[test]
fn derivation_that_comes_after_its_output_withholds_it() {
    let nix = TestNix::new(Kind::Relocated);
    let local = nix.build("local");
    let full = nix.full(&local);
    let derivation = nix.run("nix-store", &["-q", "--deriver", &full]);
    nix.run(
        "nix-store",
        &[
            "--option",
            "keep-derivations",
            "false",
            "--option",
            "keep-outputs",
            "false",
            "--delete",
            "--ignore-liveness",
            &derivation,
        ],
    );
    let (offer, believed) = start(&nix, policy());
    assert_eq!(offerings(&offer)["local-1.0"], Offering::Offered, "nothing says that it must not be");
    let file = nix.dir.path().join("derivations.nix");
    nix.run("nix-instantiate", &[file.to_str().unwrap(), "-A", "local"]);
    eventually("the derivation is read", || {
        offerings(&offer)["local-1.0"] == Offering::Withheld(Withheld::SubstitutesForbidden)
    });
    wait_until_told(&offer, &believed);
}

#[test]
fn output_of_a_valid_derivation_whose_file_is_gone_is_withheld() {
    let nix = TestNix::new(Kind::Relocated);
    let local = nix.build("lib");
    let derivation = nix.parse(&nix.run("nix-store", &["-q", "--deriver", &nix.full(&local)]));
    let file = nix.open().location().real_path(&derivation);
    make_writable(file.parent().unwrap());
    fs::remove_file(file).unwrap();
    let (offer, _) = start(&nix, policy());
    let withheld = Offering::Withheld(Withheld::DerivationUnreadable);
    assert_eq!(offerings(&offer)["lib-1.0"], withheld, "it may have said allowSubstitutes = false");
}

#[test]
fn newest_paths_are_withheld_beyond_the_limit() {
    let nix = TestNix::new(Kind::Relocated);
    let first = nix.build("file").hash_part();
    let second = nix.build("empty").hash_part();
    let third = nix.build("symlink").hash_part();
    let (offer, believed) = start(&nix, OfferPolicy { paths_max: 2, ..policy() });
    eventually("two are offered", || offer.hash_parts().len() == 2);
    assert_eq!(offer.hash_parts(), BTreeSet::from([first, second]));
    assert_eq!(offer.find_offered(&third).unwrap(), None);
    assert_eq!(offerings(&offer)["symlink-1.0"], Offering::Withheld(Withheld::TooMany));
    let path = offer.find_offered(&first).unwrap().unwrap().info.path.clone();
    nix.run("nix-store", &["--delete", &nix.full(&path)]);
    eventually("the third moves up", || offer.hash_parts() == BTreeSet::from([second, third]));
    wait_until_told(&offer, &believed);
}

#[test]
fn deleted_path_is_withheld_for_the_same_reasons_as_before() {
    let nix = TestNix::new(Kind::Relocated);
    let [app, local, over, file] = ["app", "local", "overlocal", "file"].map(|name| nix.build(name));
    let store = nix.open();
    let references = |path: &StorePath| store.read_path_info(&path.hash_part()).unwrap().unwrap().references;
    let known: Vec<_> = [&app, &local, &over, &file].map(|path| (path.clone(), references(path))).into();
    let (offer, believed) = start(&nix, OfferPolicy { builder_key: None, ..policy() });
    let withheld = || known.iter().map(|(path, references)| offer.why_withheld(path, references)).collect::<Vec<_>>();
    let forbidden = [None, Some(Withheld::SubstitutesForbidden), Some(Withheld::ClosureWithheld), None];
    assert!(offer.has_looked());
    assert_eq!(withheld(), forbidden, "that nobody vouches for them is nothing private");

    // Delete the paths; their derivations and references are still here.
    let full: Vec<String> = [&app, &over, &file].map(|path| nix.full(path)).into();
    let mut delete = vec!["--delete", "--ignore-liveness"];
    delete.extend(full.iter().map(String::as_str));
    nix.run("nix-store", &delete);
    eventually("they are gone", || offer.list().iter().all(|line| line.0 != app && line.0 != over && line.0 != file));
    wait_until_told(&offer, &believed);
    assert_eq!(withheld(), forbidden);
    nix.run("nix-store", &["--delete", "--ignore-liveness", &nix.full(&local)]);
    eventually("so is the other", || offer.list().iter().all(|line| line.0 != local));
    assert_eq!(withheld()[1], Some(Withheld::SubstitutesForbidden), "its derivation is read");
    // Now only the names are left to judge by.
    offer.set_policy(OfferPolicy { exclude: vec!["lib-*".to_owned(), "file-*".to_owned()], ..policy() });
    assert_eq!((withheld()[0], withheld()[3]), (Some(Withheld::ClosureWithheld), Some(Withheld::Excluded)));
    offer.set_policy(OfferPolicy { include: vec!["file-*".to_owned()], ..policy() });
    assert_eq!((withheld()[0], withheld()[3]), (Some(Withheld::NotIncluded), None));

    // A derivation that cannot be read may become readable soon. Peers are not told about the
    // path, but nothing is taken back.
    offer.set_policy(policy());
    let root = store.location().real_dir.clone();
    let named = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().ends_with("-local-1.0.drv");
    let derivation = fs::read_dir(root).unwrap().map(Result::unwrap).find(named).unwrap().path();
    make_writable(derivation.parent().unwrap());
    fs::remove_file(&derivation).unwrap();
    fs::create_dir(&derivation).unwrap();
    assert_eq!(withheld()[1], Some(Withheld::Unchecked));
    fs::remove_dir(&derivation).unwrap();
}
