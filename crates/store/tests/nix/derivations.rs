//! Tests which derivations are offered, where they are offered at all.

use crate::harness::{Kind, TestNix, eventually, make_writable, open_policy};
use narmesh_protocol::NixSecretKey;
use narmesh_store::{Offer, OfferPolicy, Offering, Withheld};
use std::collections::BTreeMap;
use std::fs;

fn policy() -> OfferPolicy {
    let key = NixSecretKey::from_seed("builder-1", &[9; 32]).unwrap();
    OfferPolicy { builder_key: Some(key), derivations: true, ..open_policy() }
}

/// Where everything ending with `suffix` stands, when nothing more is to be looked at.
fn offerings(offer: &Offer, suffix: &str) -> BTreeMap<String, Offering> {
    let is_unchecked = |offer: &Offer| offer.list().iter().any(|it| it.2 == Offering::Withheld(Withheld::Unchecked));
    eventually("everything was looked at", || !offer.is_busy() && !is_unchecked(offer));
    for (path, _, offering) in offer.list() {
        assert_eq!(offer.find_offered(&path.hash_part()).unwrap().is_some(), offering == Offering::Offered, "{path}");
    }
    let lines = offer.list().into_iter().filter(|(path, ..)| path.name().ends_with(suffix));
    lines.map(|(path, _, offering)| (path.name().trim_end_matches(suffix).to_owned(), offering)).collect()
}

#[test]
fn a_derivation_leaves_only_where_what_it_builds_would() {
    let nix = TestNix::new(Kind::Relocated);
    for attribute in ["app", "top", "structured", "system", "etcd", "withsource", "fod", "multi"] {
        nix.build(attribute);
    }
    let file = nix.build("file");
    let broken = nix.parse(nix.run("nix-store", &["--query", "--deriver", &nix.full(&file)]).trim());
    let broken = nix.location.real_path(&broken);
    make_writable(&broken);
    fs::write(&broken, "no derivation").unwrap();
    let offer = Offer::start(nix.open(), policy(), Box::new(|_| {})).unwrap();
    let [closure, by_default, forbidden, unreadable, excluded, source] = [
        Withheld::ClosureWithheld,
        Withheld::ByDefault,
        Withheld::SubstitutesForbidden,
        Withheld::DerivationUnreadable,
        Withheld::Excluded,
        Withheld::Source,
    ]
    .map(Offering::Withheld);
    let expected = [
        ("app-1.0", Offering::Offered),
        ("lib-1.0", Offering::Offered),
        ("multi-1.0", Offering::Offered),
        ("etcd-1.0", Offering::Offered),
        ("fod-1.0", Offering::Offered),
        ("withsource-1.0", Offering::Offered),
        ("local-1.0", forbidden),
        ("structured-1.0", forbidden),
        ("overlocal-1.0", closure),
        ("top-1.0", closure),
        ("unit-test.service", by_default),
        ("etc", by_default),
        ("nixos-system-host-1", by_default),
        ("file-1.0", unreadable),
    ];
    let expected: BTreeMap<_, _> = expected.into_iter().map(|(name, offering)| (name.to_owned(), offering)).collect();
    assert_eq!(offerings(&offer, ".drv"), expected);

    // By the name of one of its outputs, also for those that are built from it.
    offer.set_policy(OfferPolicy { exclude: vec!["multi-1.0-doc".to_owned(), "lib-1.0".to_owned()], ..policy() });
    let told = offerings(&offer, ".drv");
    assert_eq!((told["multi-1.0"], told["lib-1.0"], told["app-1.0"]), (excluded, excluded, closure));
    assert_eq!(told["fod-1.0"], Offering::Offered);
    offer.set_policy(OfferPolicy { include: vec!["withsource-1.0".to_owned()], ..policy() });
    let told = offerings(&offer, ".drv");
    assert_eq!(
        (told["withsource-1.0"], told["fod-1.0"]),
        (Offering::Offered, Offering::Withheld(Withheld::NotIncluded))
    );

    // What is no derivation is a source, whatever the defaults are.
    offer.set_policy(OfferPolicy { withhold_defaults: false, ..policy() });
    let told = offerings(&offer, ".drv");
    assert_eq!((told["file-1.0"], told["top-1.0"], told["etc"]), (source, Offering::Offered, Offering::Offered));
    offer.set_policy(OfferPolicy { derivations: false, ..policy() });
    assert_eq!(offer.hash_parts().len(), offer.list().iter().filter(|line| line.2 == Offering::Offered).count());
    eventually("they are dropped", || offerings(&offer, ".drv").is_empty());
    assert_eq!(offerings(&offer, "")["app-1.0"], Offering::Offered);
}

#[test]
fn a_source_leaves_with_a_derivation_of_which_nothing_is_built() {
    let nix = TestNix::new(Kind::Relocated);
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/nix/derivations.nix");
    nix.run("nix-instantiate", &[file, "-A", "withsource"]);
    let offer = Offer::start(nix.open(), policy(), Box::new(|_| {})).unwrap();
    assert_eq!(offerings(&offer, "a-source").into_values().collect::<Vec<_>>(), [Offering::Offered]);
    offer.set_policy(OfferPolicy { exclude: vec!["a-source".to_owned()], ..policy() });
    let told = offerings(&offer, "");
    assert_eq!(told["a-source"], Offering::Withheld(Withheld::Excluded));
    assert_eq!(told["withsource-1.0.drv"], Offering::Withheld(Withheld::ClosureWithheld));
    offer.set_policy(OfferPolicy { derivations: false, ..policy() });
    eventually("it stays again", || offerings(&offer, "")["a-source"] == Offering::Withheld(Withheld::Source));
}
